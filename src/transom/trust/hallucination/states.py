"""What a model does while it reads a prompt and gives an answer, in one pass, by stage and by family.

A step is a token of the answer with what ends it, seen where the model chose it; step 0 is the prompt's last
token. The prompt is read under whatever attention the model has; of the answer's tokens alone the rows of
attention are computed, so that no map of the prompt is.

    hidden.L    the stream after layer L, of length 1 [D]
    lens        of these layers, what the unembedding makes of the stream, among the tokens that are likeliest
                in the end: entropy, the chosen token's logarithm, and how far all is from the end
                (divergence)
    logits.*    one number each: the logarithm of the chosen token (`own`) and of the likeliest, entropy, lead
                over the second, logarithm of the chosen one's rank, and the share of the last state that the
                unembedding's weak directions take (`weak`)
    lookback, sink, entropy, newest, laplacian, rauq, mlp
                of attention and of neurons, in up to `_LOOKED` layers (`looks`)

What looks at attention or neurons has no step 0, whose row would be of the prompt. Stages: the mean of
hidden states over the context's tokens (`understanding`) and over the question's (`query`); `generation` is
the steps.
Threat model: see the room. Does not protect anything: what is read tells most of the input.
Source: Hu et al. 2025, HARP, arXiv 2509.11536 (weak directions); nostalgebraist 2020 (logit lens); of
attention see `looks`. The combination is own.

Shapes: S steps, P tokens of the prompt, T all, L layers, H heads, D model width, N inner neurons, V
vocabulary, F numbers of a family."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint.observe import Kind, observing
from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import CheckpointError, MisconfiguredError
from transom.privacy.forms import FORM
from transom.trust.hallucination.looks import LOOKS, Memory, attention_of, laplacian_of, mlp_of, rauq_of
from transom.trust.prompt import PLAIN, Frame, generates

Floats = NDArray[np.floating[Any]]
Ids = tuple[int, ...]
LAYERS = (0.4, 0.5, 0.6, 0.7, 0.8)  # of the depth, beside the last but one
LOGITS = ("own", "likeliest", "entropy", "lead", "rank", "weak")
ATTENTION = frozenset({*LOOKS, "laplacian", "rauq", "mlp"})  # families beside the cheap ones
_LOOKED = 10
_BEGUN = re.compile(r"\[\w*\Z")
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
    """Raises MisconfiguredError for an answer that is empty or placeholders alone, and for more tokens than
    are read."""
    prompt, stage_P = prompt_of(tokenizer, example, frame)
    answer = tokenizer.tokenizer.encode(example.answer, add_special_tokens=False).ids
    if len(prompt) + len(answer) > most_tokens:
        raise MisconfiguredError(f"prompt and answer have more than {most_tokens} tokens; shorten them")
    if not answer or not example.answer.strip():
        raise MisconfiguredError("the answer is empty; there is nothing to score")
    if placeholders_alone(example.answer):
        raise MisconfiguredError("the answer is placeholders alone; there is nothing to score")
    whole = example.ids or (*answer, *_end(tokenizer, frame))
    if len(whole) < 2:
        raise MisconfiguredError("an answer of one token that nothing ends is too short to be scored")
    return Encoded(prompt, whole, stage_P)


def placeholders_alone(text: str) -> bool:
    """Whether a text has placeholders and no other word: what stands there is the user's own. One that is
    begun at the end, as a stream may be cut, is no word.

    >>> placeholders_alone("[PERSON_1], [DATE_2]."), placeholders_alone("Ask [PERSON_1].")
    (True, False)
    """
    rest, count = FORM.subn("", text)
    return count > 0 and not any(map(str.isalnum, _BEGUN.sub("", rest)))


def _end(tokenizer: TokenizerFiles, frame: Frame) -> Ids:
    """What ends an answer: of several the one that stands in the frame too, as it ends turns there, then the
    tokenizer's own."""
    spelled = {one: tokenizer.tokenizer.id_to_token(one) or "" for one in sorted(tokenizer.eos_ids)}
    own = tokenizer.tokenizer.token_to_id(tokenizer.specials.get("eos_token", ""))
    in_frame = [one for one, text in spelled.items() if text and text in frame.before + frame.after]
    return tuple([*in_frame, *(one for one in spelled if one == own), *spelled][:1])


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads the states of answers, one thread at a time. Raises MisconfiguredError for a model that generates
    no text."""

    model: Any
    attention: bool = True  # or neurons
    only: frozenset[str] | None = None  # families, instead of all

    def __post_init__(self) -> None:
        if not generates(self.model):
            raise MisconfiguredError(
                f"a {type(self.model).__name__} generates no text, so it makes nothing up"
            )

    def wants(self, *families: str) -> bool:
        """Whether one of them is read."""
        return any(
            (self.attention or one not in ATTENTION) and (self.only is None or one in self.only)
            for one in families
        )

    @cached_property
    def layers(self) -> list[int]:
        """Those whose states are families, and which the lens looks at."""
        count = self.model.config.num_hidden_layers
        return sorted({max(round(share * count) - 1, 0) for share in LAYERS} | {max(count - 2, 0)})

    @cached_property
    def needed(self) -> list[int]:
        """Those of `layers` that a family that is read needs."""
        last = self.layers[-1] if self.wants("logits.weak") else None
        return [one for one in self.layers if self.wants(f"hidden.{one}", "lens") or one == last]

    @cached_property
    def looked(self) -> list[int]:
        """Those whose attention and neurons are looked at, if any are."""
        count = self.model.config.num_hidden_layers
        return sorted({(2 * one + 1) * count // (2 * _LOOKED) for one in range(_LOOKED)})

    @cached_property
    def kinds(self) -> list[Kind]:
        """What is looked at in these."""
        rows: list[Kind] = ["rows"] if self.wants(*ATTENTION - {"mlp"}) else []
        return [*rows, "mlp"] if self.wants("mlp") else rows

    @cached_property
    def recurrent(self) -> list[int]:
        """Places among these that `rauq` has: of the middle third, or all."""
        count = self.model.config.num_hidden_layers
        middle = [place for place, one in enumerate(self.looked) if count <= 3 * one < 2 * count]
        return middle or list(range(len(self.looked)))

    def read(self, one: Encoded) -> States:
        """Raises CheckpointError for states that are not finite."""
        import torch
        from transformers import DynamicCache

        device = self.model.device
        prompt_1P = torch.tensor([one.prompt], device=device)
        answer_1S = torch.tensor([one.answer[:-1]], device=device)
        stage_P = torch.tensor(one.stage_P, device=device)
        looks = _Looks(self, len(one.prompt))
        with torch.no_grad():
            with observing(self.model, self.layers, ["hidden"], _states) as seen:
                first = self.model(
                    input_ids=prompt_1P, use_cache=True, logits_to_keep=1,
                    past_key_values=DynamicCache(),  # which keeps every position, as an engine's does
                )  # fmt: skip
            whole = {layer: seen["hidden", layer][0] for layer in self.layers}
            with (
                observing(self.model, self.looked if self.kinds else [], self.kinds, looks),
                observing(self.model, self.layers, ["hidden"], _states) as rest,
            ):
                out = self.model(input_ids=answer_1S, past_key_values=first.past_key_values, use_cache=True)
            hidden = {
                layer: torch.cat([whole[layer][-1:], rest["hidden", layer][0]]) for layer in self.layers
            }
            logits_SV = torch.cat([first.logits[0], out.logits[0]]).float()
            families = self.chosen(logits_SV, hidden, one.answer)
            families |= looks.families(families.get("logits.own"))
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
        _ = self.wants("logits.weak") and self._weak_KD

    def chosen(self, logits_SV: Any, hidden: dict[int, Any], chosen: Sequence[int]) -> dict[str, Any]:
        """Families `hidden`, `logits` and `lens` of steps, of states [S, D] by layer and the tokens that were
        chosen; `logits.own` also where `rauq` alone needs it."""
        import torch

        needed = list(hidden)
        states_LSD = torch.stack([hidden[layer] for layer in needed]) if needed else None
        found = dict[str, Any]()
        if states_LSD is not None and self._hidden:
            unit_LSD = unit(states_LSD)
            found = {f"hidden.{layer}": unit_LSD[needed.index(layer)] for layer in self._hidden}
        if not self._told and not self._lens_too:
            return found
        chosen_S1 = torch.tensor(chosen, device=logits_SV.device)[:, None]
        chance_SV, at_S1 = logits_SV.softmax(1), logits_SV.gather(1, chosen_S1)
        most_SK, top_ids_SK = logits_SV.topk(_CANDIDATES, dim=1)
        total_S1 = most_SK[:, :1] - chance_SV.gather(1, top_ids_SK[:, :1]).log()
        own_S1, top_SK = at_S1 - total_S1, most_SK - total_S1
        weak, lens = "weak" in self._told, self._lens_too
        if states_LSD is not None and (weak or lens):
            wanted_LSD = states_LSD if lens else states_LSD[-1:]
            normed_LSD = self._norm(wanted_LSD.to(self.model.dtype)).float()
        each: dict[str, Callable[[], Any]] = {
            "own": lambda: own_S1,
            "likeliest": lambda: top_SK[:, :1],
            "entropy": lambda: total_S1 - _mean(logits_SV, chance_SV),
            "lead": lambda: top_SK[:, :1] - top_SK[:, 1:2],
            "rank": lambda: _rank(at_S1, most_SK, logits_SV).log(),
            "weak": lambda: self._weak(normed_LSD[-1])[:, None],
        }
        found |= {f"logits.{one}": each[one]() for one in self._told}
        if lens:
            candidates_SK = torch.cat([chosen_S1, top_ids_SK[:, :-1]], dim=1)
            end_SK = torch.cat([own_S1, top_SK[:, :-1]], dim=1)
            found["lens"] = self._lens(candidates_SK, end_SK, normed_LSD)
        return found

    @cached_property
    def _hidden(self) -> list[int]:
        return [one for one in self.layers if self.wants(f"hidden.{one}")]

    @cached_property
    def _told(self) -> list[str]:
        """Numbers of the logits, also what `rauq` needs of them."""
        return [one for one in LOGITS if self.wants(f"logits.{one}") or (one == "own" and self.wants("rauq"))]

    @cached_property
    def _lens_too(self) -> bool:
        return self.wants("lens")

    def _lens(self, candidates_SK: Any, end_SK: Any, normed_LSD: Any) -> Any:
        import torch

        rows_SKD = self.model.get_output_embeddings().weight[candidates_SK].float()
        at_SLK = (normed_LSD.transpose(0, 1) @ rows_SKD.transpose(1, 2)).log_softmax(2)
        apart_SLK = at_SLK - end_SK.log_softmax(1)[:, None]
        chance_SLK = at_SLK.exp()
        sums = (-(chance_SLK * at_SLK).sum(2), at_SLK[..., 0], (chance_SLK * apart_SLK).sum(2))
        return torch.stack(sums, dim=2).flatten(1)

    def _weak(self, normed_SD: Any) -> Any:
        return (normed_SD @ self._weak_KD.T).square().sum(1) / normed_SD.square().sum(1)

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


@dataclass(eq=False)
class _Looks:
    """What stays of each layer while an answer is read."""

    reader: Reader
    prompt: int
    seen: dict[str, list[Any]] = field(default_factory=dict)  # by family, of layers in their order [S, F]

    def __call__(self, kind: str, layer: int, value: Any) -> None:
        if kind == "mlp":
            self.seen.setdefault("mlp", []).append(mlp_of(value[0].float()))
            return
        map_HST = value[0].float()
        for name, found_SH in zip(LOOKS, attention_of(map_HST, self.prompt).unbind(-1), strict=True):
            self.seen.setdefault(name, []).append(found_SH)
        if self.reader.wants("laplacian"):
            found_SH = laplacian_of(map_HST, self.prompt, Memory())
            self.seen.setdefault("laplacian", []).append(found_SH)

    def families(self, own_S1: Any) -> dict[str, Any]:
        """Layers beside each other [S, F]."""
        import torch

        wanted = {name: torch.cat(parts, 1) for name, parts in self.seen.items() if self.reader.wants(name)}
        if not self.reader.wants("rauq"):
            return wanted
        chance_S = own_S1[:, 0].exp()
        newest_SLH = torch.stack(self.seen["newest"], 1)[:, self.reader.recurrent]
        kept = Memory(sure_L=chance_S[0].expand(newest_SLH.shape[1]))
        return wanted | {"rauq": rauq_of(newest_SLH, chance_S[1:], kept)}


def _states(_kind: str, _layer: int, value: Any) -> Any:
    return value[0].float()


def _mean(logits_SV: Any, chance_SV: Any) -> Any:
    """What is expected of them [S, 1]; of a token that is ruled out, nothing."""
    import torch

    finite_SV = logits_SV.clamp(min=torch.finfo(logits_SV.dtype).min)
    return torch.linalg.vecdot(chance_SV, finite_SV)[:, None]


def _rank(at_S1: Any, most_SK: Any, logits_SV: Any) -> Any:
    """How many are as large or larger [S, 1], found among the largest where the token is of these."""
    if bool((at_S1 < most_SK[:, -1:]).any()):
        most_SK = logits_SV
    return (most_SK > at_S1).sum(1, keepdim=True) + 1.0


def unit(state_SD: Any) -> Any:
    """Of length 1."""
    return state_SD / state_SD.norm(dim=-1, keepdim=True).clamp(min=_LEAST)
