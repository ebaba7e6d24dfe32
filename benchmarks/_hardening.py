"""What the hardening study measures with: variants of a model, what each is still worth, what the host gets.

A variant is a plain-layout model whose tables (and perhaps layers) were changed in secret before it is
obfuscated. Fidelity is measured on the variant; keys and permutations of preset `exact` add a KL of 0.004
(`obfuscate_fidelity.py`) and are left out of it. The host's side is really obfuscated, with those keys.

Shapes: V vocabulary, D width, B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obfuscate_fidelity import ANSWERS, documents, questions
from transom.audit.attacks.weights import Weights, from_state
from transom.obfuscation.calibrate import isotropic
from transom.obfuscation.keys import Space, preset, token_map
from transom.obfuscation.plan import loadable_h, norm_names, obfuscate_state, plan, target_config

Ints = NDArray[np.int64]
SECRET = bytes(32)  # a benchmark's key need not be secret, and a fixed one repeats


@dataclass(frozen=True)
class Yardstick:
    """What a variant is compared with: documents, the plain model's log-probabilities on them, SST-2."""

    tokenizer: Any
    ids_BT: Any
    log_p_BTV: Any
    rows: list[tuple[list[int], int]]
    answers: tuple[int, int]


def yardstick(model: Any, tokenizer: Any, texts: int, rows: int) -> Yardstick:
    """Measure the plain model once. SST-2: its `rows` shortest sentences, which cost least."""
    import torch

    ids_BT = torch.tensor(documents(tokenizer, texts))
    with torch.inference_mode():
        log_p = [_log_probabilities(model, ids_T).half() for ids_T in ids_BT]
    prompts = [
        (tokenizer.encode(text, add_special_tokens=False).ids, label)
        for text, label in sorted(questions(10**6)["sst2"], key=lambda row: len(row[0]))[:rows]
    ]
    answers = [tokenizer.encode(text, add_special_tokens=False).ids[0] for text in ANSWERS["sst2"]]
    return Yardstick(tokenizer, ids_BT, log_p, prompts, (answers[0], answers[1]))


def fidelity(model: Any, by: Yardstick) -> dict[str, float]:
    """KL (nats), agreement, loss, accuracy of next tokens on documents; accuracy on SST-2 by likelihood."""
    import torch

    kl = same = nll = hit = 0.0
    positions = by.ids_BT.numel()
    with torch.inference_mode():
        for ids_T, half_TV in zip(by.ids_BT, by.log_p_BTV, strict=True):
            p_TV, q_TV = half_TV.float(), _log_probabilities(model, ids_T)
            kl += float((p_TV.exp() * (p_TV - q_TV)).sum())
            same += int((p_TV.argmax(-1) == q_TV.argmax(-1)).sum())
            nll -= float(q_TV[:-1].gather(1, ids_T[1:, None]).sum())
            hit += int((q_TV[:-1].argmax(-1) == ids_T[1:]).sum())
    following = positions - len(by.ids_BT)
    return {
        "kl": kl / positions,
        "top1_agreement": same / positions,
        "nll": nll / following,
        "next_token_accuracy": hit / following,
        "sst2_accuracy": choice_accuracy(model, by.rows, by.answers),
    }


def choice_accuracy(
    model: Any, rows: list[tuple[list[int], int]], answers: tuple[int, int], batch: int = 16
) -> float:
    """Share of prompts after which the right answer's token is likelier than the other's."""
    import torch

    right, head_VD = 0, model.get_output_embeddings().weight
    order = sorted(rows, key=lambda row: len(row[0]))
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            block = order[start : start + batch]
            width = len(block[-1][0])
            ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in block])
            states = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
            last = states[torch.arange(len(block)), torch.tensor([len(ids) - 1 for ids, _ in block])]
            scores = last @ head_VD[list(answers)].T
            guess = (scores[:, 1] > scores[:, 0]).long()
            right += int((guess == torch.tensor([label for _, label in block])).sum())
    return right / len(rows)


def _log_probabilities(model: Any, ids_T: Any) -> Any:
    return model(input_ids=ids_T[None], use_cache=False).logits[0].float().log_softmax(-1)


def untie(model: Any) -> Any:
    """The same model with a head of its own."""
    import torch

    if model.config.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    return model


@contextmanager
def tables(model: Any, embedding_VD: NDArray[np.float32], head_VD: NDArray[np.float32]) -> Iterator[Any]:
    """The untied model with other tables; its own are back on leaving."""
    import torch

    kept = [
        (module, module.weight.data)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    for (module, _), table in zip(kept, (embedding_VD, head_VD), strict=True):
        module.weight.data = torch.from_numpy(table)
    try:
        yield model
    finally:
        for module, weight in kept:
            module.weight.data = weight


def host_weights(model: Any, layers: int, *, h: int = 128) -> tuple[Weights, Ints]:
    """The first `layers` layers and the two tables as the host gets them (preset `exact`), and tau."""
    config = model.config.to_dict() | {"architectures": [type(model).__name__], "num_hidden_layers": layers}
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = config["layer_types"][:layers]
    settings = preset("exact", h=loadable_h(config, h, "transformers"))
    space = Space(SECRET, config["hidden_size"], settings)
    tau_V = token_map(SECRET, config["vocab_size"])
    wanted = {name for task in plan(config, settings, SECRET) for name in task.sources}
    state = {name: tensor for name, tensor in model.state_dict().items() if name in wanted}
    kappas = isotropic(space, norm_names(plan(config, settings, SECRET)))
    made = obfuscate_state(state, config, space, kappas)
    return from_state(made, target_config(config, settings, tau_V), layers=layers), tau_V
