"""What a model does while it reads a prompt and gives an answer, in one pass, by stage and by family.

A step is a token of the answer with what ends it, seen where the model chose it; step 0 is the prompt's last
token. The prompt is read under whatever attention the model has; of the answer's tokens alone the rows of
attention are computed, so that no map of the prompt is.

    hidden.L    the stream after layer L, of length 1 [D]
    lookback    of each layer and head, mean attention to the prompt over that and mean attention to the
    answer,
                the first token left out, as it draws what goes nowhere
    sink        of each layer and head, attention to the first token
    entropy     of each layer and head, of its attention, over the logarithm of how many tokens it has
    newest      of each layer and head, attention to the token before
    mlp         of each layer, the inner neurons' root mean square, how unequal they are (Hoyer 2004), and the
                share of the largest hundredth
    lens        of some layers, what the unembedding makes of the stream, among the tokens that are likeliest
    in
                the end: entropy, the chosen token's logarithm, and how far that is from the end (divergence)
    logits      logarithm of the chosen token, of the likeliest, entropy, lead over the second, logarithm of
    the
                chosen one's rank, and the share of the last state that the unembedding's weak directions take

Attention has no step 0, whose row would be of the prompt. Stages: the mean of hidden states over the
context's tokens (`understanding`) and over the question's (`query`); `generation` is the steps.
Threat model: see the room. Does not protect anything: what is read tells most of the input.
Source: Chuang et al. 2024, arXiv 2407.07071 (lookback); Hu et al. 2025, HARP, arXiv 2509.11536 (weak
directions); Vazhentsev et al. 2025, arXiv 2505.20045 (attention to the token before); nostalgebraist 2020
(logit lens). The combination is own.

Shapes: S steps, P tokens of the prompt, T all, L layers, H heads, D model width, N inner neurons, V
vocabulary, F numbers of a family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint.observe import Kind, observing
from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import CheckpointError, MisconfiguredError
from transom.trust.prompt import PLAIN, Frame, generates

Floats = NDArray[np.floating[Any]]
Ids = tuple[int, ...]
LAYERS = (1 / 3, 1 / 2, 2 / 3, 5 / 6)  # of the depth, beside the last but one
LOOKS = ("lookback", "sink", "entropy", "newest")
ATTENTION = frozenset({*LOOKS, "mlp"})  # families beside the cheap ones
_CANDIDATES = 32  # of the end's likeliest tokens, which the lens looks at
_WEAK = 1 / 8  # of the directions of the unembedding
_LEAST = 1e-9
SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Example:
    """An answer to a question, with what was to be read before it; `made_up` None where nobody said. Of an
    answer that the model gave `ids` are its tokens, with what ended it, if it was not cut."""

    answer: str
    question: str = ""
    context: str = ""
    made_up: bool | None = None
    ids: Ids = ()


@dataclass(frozen=True, eq=False)
class Encoded:
    """Ids of a prompt and of an answer, with what ends it, and for each prompt token 1 in the context, 2 in
    the question, else 0."""

    prompt: Ids
    answer: Ids
    stage_P: Ids


@dataclass(frozen=True, eq=False)
class States:
    """Of one answer: each family [S, F], those of attention from step 1 on, and stages [L D] where there are
    tokens of them."""

    families: dict[str, Floats]
    stages: dict[str, Floats]


def prompt_of(tokenizer: TokenizerFiles, example: Example, frame: Frame = PLAIN) -> tuple[Ids, Ids]:
    """Ids of what stands before the answer, one at least, and the stage of each."""
    whole, first = SEPARATOR.join(filter(None, (example.context, example.question))), len(frame.before)
    found = tokenizer.tokenizer.encode(frame.around(whole))
    if len(found.ids) > 1 and found.special_tokens_mask[0] and found.ids[0] == found.ids[1]:
        found = tokenizer.tokenizer.encode(frame.around(whole), add_special_tokens=False)  # a template has it
    question = first + (len(example.context + SEPARATOR) if example.context else 0)
    stage = [
        0 if end <= first or start >= first + len(whole) or start == end else 1 + (start >= question)
        for start, end in found.offsets
    ]
    if found.ids:
        return tuple(found.ids), tuple(stage)
    return (min(tokenizer.eos_ids, default=0),), (0,)  # an answer to nothing begins somewhere


def encode(tokenizer: TokenizerFiles, example: Example, frame: Frame = PLAIN, *, most_tokens: int) -> Encoded:
    """Raises MisconfiguredError for an empty answer and for more tokens than are read."""
    prompt, stage_P = prompt_of(tokenizer, example, frame)
    answer = tokenizer.tokenizer.encode(example.answer, add_special_tokens=False).ids
    if len(prompt) + len(answer) > most_tokens:
        raise MisconfiguredError(f"prompt and answer have more than {most_tokens} tokens; shorten them")
    if not answer or not example.answer.strip():
        raise MisconfiguredError("the answer is empty; there is nothing to score")
    whole = example.ids or (*answer, *_end(tokenizer, frame))
    if len(whole) < 2:
        raise MisconfiguredError("an answer of one token that nothing ends is too short to be scored")
    return Encoded(prompt, whole, stage_P)


def _end(tokenizer: TokenizerFiles, frame: Frame) -> Ids:
    """What ends an answer: of several the one that stands in the frame too, as it ends turns there, then the
    tokenizer's own."""
    spelled = {one: tokenizer.tokenizer.id_to_token(one) or "" for one in sorted(tokenizer.eos_ids)}
    own = tokenizer.tokenizer.token_to_id(tokenizer.specials.get("eos_token", ""))
    in_frame = [one for one, text in spelled.items() if text and text in frame.before + frame.after]
    return tuple([*in_frame, *(one for one in spelled if one == own), *spelled][:1])


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads the states of answers. Raises MisconfiguredError for a model that generates no text."""

    model: Any
    attention: bool = True

    def __post_init__(self) -> None:
        if not generates(self.model):
            raise MisconfiguredError(
                f"a {type(self.model).__name__} generates no text, so it makes nothing up"
            )

    @cached_property
    def layers(self) -> list[int]:
        """Those whose states are kept, and which the lens looks at."""
        count = self.model.config.num_hidden_layers
        return sorted({max(round(share * count) - 1, 0) for share in LAYERS} | {max(count - 2, 0)})

    def read(self, one: Encoded) -> States:
        """Raises CheckpointError for states that are not finite."""
        import torch
        from transformers import DynamicCache

        device = self.model.device
        prompt_1P = torch.tensor([one.prompt], device=device)
        answer_1S = torch.tensor([one.answer[:-1]], device=device)
        kinds: list[Kind] = ["hidden", "attention", "mlp"] if self.attention else ["hidden"]
        steps = _Steps(self, len(one.prompt))
        stage_P = torch.tensor(one.stage_P, device=device)
        with torch.no_grad():
            with observing(
                self.model, self.layers, ["hidden"], lambda _k, _l, state: state[0].float()
            ) as seen:
                first = self.model(
                    input_ids=prompt_1P, use_cache=True, logits_to_keep=1,
                    past_key_values=DynamicCache(),  # which keeps every position, as an engine's does
                )  # fmt: skip
            whole = {layer: seen["hidden", layer][0] for layer in self.layers}
            every = range(self.model.config.num_hidden_layers)
            with observing(self.model, every if self.attention else self.layers, kinds, steps) as rest:
                out = self.model(input_ids=answer_1S, past_key_values=first.past_key_values, use_cache=True)
            hidden = {
                layer: torch.cat([whole[layer][-1:], rest["hidden", layer][0]]) for layer in self.layers
            }
            logits_SV = torch.cat([first.logits[0], out.logits[0]]).float()
            families = {f"hidden.{layer}": unit(state_SD) for layer, state_SD in hidden.items()}
            families |= self.chosen(logits_SV, hidden, one.answer)
        if self.attention:
            families |= side_by_side(rest, self.model.config.num_hidden_layers)
        stages = {
            name: torch.cat([unit(whole[layer])[stage_P == number].mean(0) for layer in self.layers])
            for number, name in ((1, "understanding"), (2, "query"))
            if bool((stage_P == number).any())
        }
        made = {name: np.asarray(value.cpu().numpy(), np.float32) for name, value in families.items()}
        if not all(np.isfinite(value).all() for value in made.values()):
            raise CheckpointError(
                "the model has states that are not finite on this answer; nothing is scored"
            )
        return States(made, {name: value.cpu().numpy() for name, value in stages.items()})

    def prepare(self) -> None:
        """Compute now what is else computed with the first answer."""
        _ = self._weak_KD, self.layers

    def chosen(self, logits_SV: Any, hidden: dict[int, Any], chosen: Sequence[int]) -> dict[str, Any]:
        """Families `logits` and `lens` of steps, of states [S, D] by layer and the tokens that were
        chosen."""
        import torch

        states_LSD = torch.stack([hidden[layer] for layer in self.layers])
        normed_LSD = self._norm(states_LSD.to(self.model.dtype)).float()
        weak_S = (normed_LSD[-1] @ self._weak_KD.T).square().sum(1) / normed_LSD[-1].square().sum(1)
        log_SV = logits_SV.log_softmax(1)
        chosen_S1 = torch.tensor(chosen, device=log_SV.device)[:, None]
        own_S = log_SV.gather(1, chosen_S1)[:, 0]
        top = log_SV.topk(_CANDIDATES, dim=1)
        rank_S = (log_SV > own_S[:, None]).sum(1)
        found = {
            "logits": torch.stack(
                [
                    own_S, top.values[:, 0], torch.special.entr(log_SV.exp()).sum(1),
                    top.values[:, 0] - top.values[:, 1],
                    (1.0 + rank_S).log(), weak_S,
                ],
                dim=1,
            )
        }  # fmt: skip
        candidates_SK = torch.cat([chosen_S1, top.indices[:, :-1]], dim=1)
        end_SK = log_SV.gather(1, candidates_SK).log_softmax(1)
        rows_SKD = self.model.get_output_embeddings().weight[candidates_SK].float()
        at_LSK = torch.einsum("skd,lsd->lsk", rows_SKD, normed_LSD).log_softmax(2)
        chance_LSK = at_LSK.exp()
        apart_LS = (chance_LSK * (at_LSK - end_SK)).sum(2)
        lens_LSM = torch.stack([torch.special.entr(chance_LSK).sum(2), at_LSK[..., 0], apart_LS], dim=2)
        return found | {"lens": lens_LSM.transpose(0, 1).flatten(1)}

    @cached_property
    def _norm(self) -> Any:
        for name in ("norm", "final_layernorm", "ln_f", "final_layer_norm"):
            if hasattr(self.model.base_model, name):
                return getattr(self.model.base_model, name)
        return lambda state: state

    @cached_property
    def _weak_KD(self) -> Any:
        """The directions in which tokens' rows of the unembedding differ least."""
        import torch

        rows_VD = self.model.get_output_embeddings().weight.detach().float()
        _, ways_DD = torch.linalg.eigh(rows_VD.T @ rows_VD)
        return ways_DD[:, : max(1, round(_WEAK * ways_DD.shape[0]))].T


@dataclass(frozen=True, eq=False)
class _Steps:
    """What stays of each layer while an answer is read."""

    reader: Reader
    prompt: int

    def __call__(self, kind: str, layer: int, value: Any) -> Any:
        if kind == "hidden":
            return value[0].float() if layer in self.reader.layers else None
        return (
            attention_of(value[0].float(), self.prompt) if kind == "attention" else mlp_of(value[0].float())
        )


def side_by_side(seen: Any, layers: int) -> dict[str, Any]:
    """The families of `ATTENTION`, of all layers beside each other [S, F]."""
    import torch

    maps_SLHM = torch.stack([seen["attention", layer][0] for layer in range(layers)], dim=1)
    found = {name: maps_SLHM[..., place].flatten(1) for place, name in enumerate(LOOKS)}
    return found | {"mlp": torch.cat([seen["mlp", layer][0] for layer in range(layers)], dim=1)}


def attention_of(map_HST: Any, prompt: int) -> Any:
    """The four numbers of each row and head [S, H, 4]; `prompt` tokens come before the answer's."""
    import torch

    steps, length = map_HST.shape[1:]
    own_S = torch.arange(length - steps, length, device=map_HST.device)  # each row's own place
    sink_HS = map_HST[..., 0]
    before_HS = map_HST[..., 1:prompt].sum(2) / max(prompt - 1, 1)
    after_HS = map_HST[..., prompt:].sum(2) / (own_S - prompt + 1)
    entropy_HS = -(map_HST * (map_HST + _LEAST).log()).sum(2) / (own_S + 1.0).log().clamp(min=_LEAST)
    newest_HS = map_HST[:, torch.arange(steps), own_S - 1]
    lookback_HS = before_HS / (before_HS + after_HS).clamp(min=_LEAST)
    return torch.stack([lookback_HS, sink_HS, entropy_HS, newest_HS], dim=-1).transpose(0, 1)


def mlp_of(inner_SN: Any) -> Any:
    """The three numbers of a layer's inner neurons [S, 3]."""
    import torch

    size_SN, count = inner_SN.abs(), inner_SN.shape[1]
    total_S, square_S = size_SN.sum(1), size_SN.square().sum(1).clamp(min=_LEAST)
    unequal_S = (math.sqrt(count) - total_S / square_S.sqrt()) / (math.sqrt(count) - 1)
    most_S = size_SN.topk(max(1, count // 100), dim=1).values.sum(1) / total_S.clamp(min=_LEAST)
    return torch.stack([(square_S / count).sqrt(), unequal_S, most_S], dim=1)


def unit(state_SD: Any) -> Any:
    """Of length 1."""
    return state_SD / state_SD.norm(dim=1, keepdim=True).clamp(min=_LEAST)
