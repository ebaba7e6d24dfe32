"""What a model says to prompts, several at once: each time the likeliest token, or one drawn of such.

Threat model: none here. Does not protect anything.
Source: transformers' own generation, which fills what a given configuration leaves open from the model's,
such as a penalty of repetition; so the model's is another one for the while.

Shapes: B prompts, T tokens, S tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Ids = tuple[int, ...]
_DRAWN = 50


def answers_of(
    model: Any,
    prompts: Sequence[Ids],
    ends: Iterable[int],
    *,
    most_tokens: int,
    at_once: int = 24,
    temperature: float = 0.0,
    heard: Callable[[], None] = bool,  # type: ignore[assignment]
) -> Iterator[Ids]:
    """The answer to each in turn, `most_tokens` at most, with the first of `ends`, if any, that it says.
    Above a `temperature` of 0 tokens are drawn of the `_DRAWN` likeliest, by torch's generator. `heard` is
    called after each batch."""
    import torch
    from transformers import GenerationConfig

    ends = frozenset(ends)
    plain: Any = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=temperature > 0,
        max_new_tokens=most_tokens,
        pad_token_id=0,
        eos_token_id=sorted(ends) or None,
        **({"temperature": temperature, "top_k": _DRAWN} if temperature > 0 else {}),
    )
    for start in range(0, len(prompts), at_once):
        part = prompts[start : start + at_once]
        longest = max(map(len, part))
        short = [longest - len(one) for one in part]
        ids = [[0] * less + list(one) for less, one in zip(short, part, strict=True)]
        mask = [[0] * less + [1] * (longest - less) for less in short]
        ids_BT, mask_BT = (torch.tensor(one, device=model.device) for one in (ids, mask))
        with torch.no_grad(), _settings(model, plain):
            said_BS = model.generate(input_ids=ids_BT, attention_mask=mask_BT)
        for row in said_BS[:, longest:].tolist():
            end = next((place for place, one in enumerate(row) if one in ends), len(row))
            yield tuple(row[: end + 1])
        heard()


@contextmanager
def _settings(model: Any, other: Any) -> Iterator[None]:
    before, model.generation_config = model.generation_config, other
    try:
        yield
    finally:
        model.generation_config = before
