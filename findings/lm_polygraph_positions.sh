#!/usr/bin/env bash
# lm-polygraph reads two of its statistics one position off: RAUQ's attention and the likelihoods without a prompt.
#
# Version: lm-polygraph 0.7.0, torch 2.13.0 (CPU), transformers 5.23.0; a model of random weights.
# Expected: `attention_all[:, j, j - 1]`, which RAUQ takes for how much token j looks at the token before
#   (arXiv 2505.20045, section 4), is the attention map's entry of row j and column j - 1; and
#   `greedy_lm_log_likelihoods[t]`, which mutual information subtracts, is log P(token t | tokens before it).
# Seen: the first is the entry (j - 1, j - 1): how much the token before looks at itself, as generation's j-th map has the
#   row of token j - 1. The second is read from the logits behind token t, so it is how likely token t is to come twice.
# Output seen on 2026-12-01:
#   attention_all[:, j, j - 1]: row j - 1, column j - 1
#   greedy_lm_log_likelihoods[t]: from the logits behind token t
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 lm-polygraph==0.7.0
"$folder/venv/bin/python" -W ignore - <<'PY' | tee "$folder/seen"
import numpy as np
import torch
from lm_polygraph.stat_calculators.greedy_lm_probs import GreedyLMProbsCalculator
from lm_polygraph.stat_calculators.greedy_probs import GreedyProbsCalculator
from lm_polygraph.utils.generation_parameters import GenerationParameters
from lm_polygraph.utils.model import WhiteboxModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
plain = Tokenizer(models.WordLevel({f"w{number}": number for number in range(40)}, unk_token="w0"))
plain.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="w0", eos_token="w39", pad_token="w38")
config = LlamaConfig(
    vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, eos_token_id=39, pad_token_id=38, bos_token_id=None,
)
config._attn_implementation = "eager"
bare = LlamaForCausalLM(config).eval()
for weights in bare.parameters():
    if weights.dim() > 1:
        torch.nn.init.normal_(weights, std=0.3)
model = WhiteboxModel(bare, tokenizer, "none", "CausalLM", GenerationParameters())
stats = GreedyProbsCalculator()({}, ["w3 w7 w11 w2"], model, max_new_tokens=6)
said, prompt = stats["greedy_tokens"][0], stats["input_tokens"][0]
with torch.no_grad():
    maps = torch.cat(bare(torch.tensor([[*prompt, *said]]), output_attentions=True).attentions).flatten(0, 1).numpy()
    log = bare(torch.tensor([said])).logits[0].log_softmax(-1)


def places(candidates, seen):
    return " and ".join(name for name, wanted in candidates.items() if np.allclose(seen, wanted, atol=1e-4)) or "neither"


steps, first = range(1, len(said)), len(prompt)
print("attention_all[:, j, j - 1]:", places(
    {
        "row j, column j - 1": [maps[:, first + j, first + j - 1] for j in steps],
        "row j - 1, column j - 1": [maps[:, first + j - 1, first + j - 1] for j in steps],
    },
    [stats["attention_all"][0][:, j, j - 1] for j in steps],
))
alone = GreedyLMProbsCalculator()(stats, [""], model)["greedy_lm_log_likelihoods"][0]
print("greedy_lm_log_likelihoods[t]:", places(
    {
        "from the logits before token t": [float(log[t - 1, said[t]]) for t in steps],
        "from the logits behind token t": [float(log[t, said[t]]) for t in steps],
    },
    alone[1:],
))
PY
diff "$folder/seen" - <<'SEEN'
attention_all[:, j, j - 1]: row j - 1, column j - 1
greedy_lm_log_likelihoods[t]: from the logits behind token t
SEEN
