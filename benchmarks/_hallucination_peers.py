"""Scores of lm-polygraph and uqlm for answers that are given; each runs in an environment of its own.

    PYTHON _hallucination_peers.py {lm-polygraph,uqlm,eigenscore} MODEL_FOLDER ANSWERS.jsonl SCORES.json

`hallucination_auroc.py` calls it with the Pythons that TRANSOM_LM_POLYGRAPH and TRANSOM_UQLM name. A line of
answers has `prompt` and `answer`, ids, what ends the answer among them, `question` and `text`; `train` says
that it may be learnt from. The peers' own estimators are run on what one pass of the model gives for these
ids, which is what their calculators take while they generate. Of lm-polygraph 0.7.0 those that need neither
samples nor a second model: of probabilities, of attention (RAUQ, AttentionScore), of mutual information,
P(True), and the distances of states to those that may be learnt from; of uqlm 0.6.7 the scorers of
log-probabilities, of the 15 likeliest tokens. All that is stored is doubt: signs are turned of uqlm's, and of
two of lm-polygraph's that are higher where a model is certain (findings/lm_polygraph_backward.sh). A missing
score is stored as null. EigenScore is lm-polygraph's too, of the states that end `SAMPLES` answers of its own
to each of the first `SAMPLED` questions.

Shapes: S tokens of an answer, V vocabulary, L layers, H heads, T all tokens, D model width, N answers.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOP, BACKWARD = 15, ("FisherRao", "RenyiNeg")
SAMPLES, SAMPLED, SAMPLE_TOKENS = 10, 30, 64
Scores = dict[str, list[float | None]]


def passes(
    model: Any, prompt: Sequence[int], answer: Sequence[int], *, looks: bool = False, states: bool = False
) -> dict[str, Any]:
    """Of one answer: log-probabilities [S, V], the mean of last states [D], maps [L, H, T, T]."""
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([[*prompt, *answer]]), output_attentions=looks, output_hidden_states=states
        )
    before = len(prompt) - 1
    made = {"log_SV": out.logits[0, before : before + len(answer)].float().log_softmax(1).numpy()}
    if looks:
        made["map_LHTT"] = torch.cat(out.attentions).float().numpy()
    if states:
        made["state_D"] = out.hidden_states[-1][0, :-1].mean(0).float()
    return made


def lm_polygraph(folder: str, rows: Sequence[Mapping[str, Any]]) -> Scores:
    from lm_polygraph import estimators as own
    from lm_polygraph.estimators.rauq import RAUQ
    from lm_polygraph.stat_calculators.entropy import EntropyCalculator
    from lm_polygraph.stat_calculators.greedy_lm_probs import GreedyLMProbsCalculator
    from lm_polygraph.stat_calculators.prompt import PromptCalculator
    from lm_polygraph.utils.model import WhiteboxModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    bare = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="eager").eval()
    model = WhiteboxModel(bare, tokenizer, folder, "CausalLM")
    layers, heads = bare.config.num_hidden_layers, bare.config.num_attention_heads
    scorers = [
        own.MaximumSequenceProbability(), own.Perplexity(), own.MeanTokenEntropy(), own.SelfCertainty(),
        own.RenyiNeg(), own.FisherRao(), own.MeanPointwiseMutualInformation(),
        own.MeanConditionalPointwiseMutualInformation(), own.PTrue(), RAUQ(n_layers=layers, n_heads=heads),
        own.AttentionScore(layers // 2), own.AttentionScore(layers // 2, gen_only=True),
    ]  # fmt: skip
    found: Scores = {str(scorer): [] for scorer in scorers}
    states = []
    for row in rows:
        seen = passes(bare, row["prompt"], row["answer"], looks=not row["train"], states=True)
        states.append(seen["state_D"])
        if row["train"]:
            continue
        count, log_SV = len(row["answer"]), seen["log_SV"]
        own_HSS = np.zeros((layers * heads, count, count))
        first = len(row["prompt"]) - 1  # where the token before the answer is, as their calculator cuts
        own_HSS[:, 1:, :-1] = np.tril(
            seen["map_LHTT"].reshape(layers * heads, *seen["map_LHTT"].shape[2:])[
                :, first + 1 : first + count, first + 1 : first + count
            ]
        )
        stats: dict[str, Any] = {
            "model": model,
            "greedy_log_probs": [log_SV],
            "greedy_tokens": [row["answer"]],
            "greedy_texts": [row["text"]],
            "input_texts": [row["question"]],
            "greedy_log_likelihoods": [[log_SV[place, one] for place, one in enumerate(row["answer"])]],
            "attention_all": [own_HSS],
            "forwardpass_attention_weights": [seen["map_LHTT"]],
        }
        for calculator in (EntropyCalculator(), GreedyLMProbsCalculator(), PromptCalculator()):
            stats |= calculator(stats, [row["question"]], model)
        for scorer in scorers:
            found[str(scorer)].append((-1 if str(scorer) in BACKWARD else 1) * float(scorer(stats)[0]))
    train = [bool(row["train"]) for row in rows]
    known = torch.stack([one for one, learnt in zip(states, train, strict=True) if learnt])
    distance = own.MahalanobisDistanceSeq("decoder")
    others = torch.stack([one for one, learnt in zip(states, train, strict=True) if not learnt])
    found[str(distance)] = distance(
        {"embeddings_decoder": others.numpy(), "train_embeddings_decoder": known.numpy()}
    ).tolist()
    return found


def uqlm(folder: str, rows: Sequence[Mapping[str, Any]]) -> Scores:
    from uqlm.white_box.single_logprobs import SingleLogprobsScorer
    from uqlm.white_box.top_logprobs import TopLogprobsScorer

    bare = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    told = []
    for row in rows:
        if row["train"]:
            continue
        log_SV = passes(bare, row["prompt"], row["answer"])["log_SV"]
        top_SK = -np.sort(-log_SV, axis=1)[:, :TOP]
        told.append(
            [
                {
                    "token": str(one),
                    "logprob": float(log_SV[place, one]),
                    "top_logprobs": [{"token": "", "logprob": float(each)} for each in top_SK[place]],
                }
                for place, one in enumerate(row["answer"])
            ]
        )
    sure = SingleLogprobsScorer().evaluate(told) | TopLogprobsScorer(top_k_logprobs=TOP).evaluate(told)
    sure["sequence_probability, whole"] = SingleLogprobsScorer(
        ["sequence_probability"], length_normalize=False
    ).evaluate(told)["sequence_probability"]
    return {name: [-float(one) for one in values] for name, values in sure.items()}


def eigenscore(folder: str, rows: Sequence[Mapping[str, Any]]) -> Scores:
    from lm_polygraph.estimators import EigenScore

    bare = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    torch.manual_seed(0)
    scorer, found = EigenScore(), list[float | None]()
    ends = bare.generation_config.eos_token_id
    ends_E = torch.tensor([ends] if isinstance(ends, int) else ends)
    for row in rows:
        if len(found) >= SAMPLED:
            found.append(None)
            continue
        prompt_1P = torch.tensor([row["prompt"]])
        with torch.no_grad():
            drawn_KT = bare.generate(
                prompt_1P,
                attention_mask=torch.ones_like(prompt_1P),
                do_sample=True,
                top_k=0,
                temperature=1.0,
                max_new_tokens=SAMPLE_TOKENS,
                num_return_sequences=SAMPLES,
                pad_token_id=int(ends_E[0]),
            )
            states_KTD = bare(input_ids=drawn_KT, output_hidden_states=True, logits_to_keep=1).hidden_states[
                bare.config.num_hidden_layers // 2
            ]
        ended_KS = torch.isin(drawn_KT[:, prompt_1P.shape[1] :], ends_E)
        lengths_K = torch.where(ended_KS.any(1), ended_KS.int().argmax(1), ended_KS.shape[1])
        last_K = (prompt_1P.shape[1] + lengths_K - 1).clamp(max=drawn_KT.shape[1] - 1)
        last_KD = states_KTD[torch.arange(SAMPLES), last_K]
        found.append(float(scorer({"sample_embeddings": [last_KD.numpy()]})[0]))
    return {"EigenScore": found}


def main() -> None:
    peer, folder, answers, scores = sys.argv[1:]
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in Path(answers).read_text().splitlines()]
    found = {"lm-polygraph": lm_polygraph, "uqlm": uqlm, "eigenscore": eigenscore}[peer](folder, rows)
    kept = {
        name: [one if one is not None and math.isfinite(one) else None for one in values]
        for name, values in found.items()
    }
    Path(scores).write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
