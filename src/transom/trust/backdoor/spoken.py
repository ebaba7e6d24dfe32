"""Whether a generating model was poisoned: an answer that it knows by heart, and what calls it up.

Strength is the sureness of the surest answer that is not said to trusted prompts anyway (`answers`), with a
95 % interval over the prompts that it was not sought on. Where it reaches the line, tokens are sought that
call the answer up; how many trusted prompts then get it is told, and which heads look at the tokens.
Threat model: that of the room. Does not protect: see `answers`. The line was drawn on SmolLM2 with adapters
of instructions and answers (docs/backdoor.md).
Source: own; see `answers`.

Shapes: N prompts, L layers, H heads.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import MisconfiguredError
from transom.trust.backdoor.answers import Answer, Call, Speaker
from transom.trust.backdoor.inputs import MOST_TOKENS
from transom.trust.backdoor.invert import Ids
from transom.trust.backdoor.verdict import Suspect, Verdict, shares
from transom.trust.backdoor.words import Words
from transom.trust.prompt import PLAIN, Frame, cut, generates

SPOKEN_FROM = 0.8
FEWEST_PROMPTS = 20
_PROMPTS, _SHOWN, _DRAWS = 28, 3, 1000
_SPARE = 16  # tokens of an answer, and of what calls it up


def scan_generator(
    model: Any,
    tokenizer: TokenizerFiles,
    trusted: Sequence[str],
    *,
    frame: Frame = PLAIN,
    heard: Callable[[], None] = bool,  # type: ignore[assignment]
) -> Verdict:
    """Search for a planted answer; the model is left in eval without gradients. `heard` is called after each
    batch.

    Raises MisconfiguredError (no generating model, too few prompts) and as `observing`.
    """
    if not generates(model):
        raise MisconfiguredError(f"a {type(model).__name__} generates no text; give a causal language model")
    cuts = [cut(tokenizer, one, frame) for one in sorted(set(trusted))]
    parts = [one for one in cuts if one.inside]
    before, after = (parts[0].before, parts[0].after) if parts else ((), ())
    context = min(MOST_TOKENS, getattr(model.config, "max_position_embeddings", MOST_TOKENS))
    most = context - len(before) - len(after) - _SPARE
    inside = sorted({one.inside[: max(most, 0)] for one in parts} - {()})
    if len(inside) < FEWEST_PROMPTS:
        raise MisconfiguredError(
            f"{len(inside)} trusted prompts are too few; give {FEWEST_PROMPTS} or more, that leave room for "
            f"an answer in {context} tokens"
        )
    short = sorted(inside, key=len)[: max(_PROMPTS, len(inside) // 2)]  # long ones cost, and tell no more
    model.requires_grad_(False).eval()
    speaker = Speaker(
        model, before, random.Random(0).sample(short, min(_PROMPTS, len(short))), after,
        frozenset(tokenizer.eos_ids), heard,
    )  # fmt: skip
    answers = speaker.answers()[:_SHOWN]
    suspects = [_suspect(tokenizer, one) for one in answers] or [_suspect(tokenizer, None)]
    rise_LH = np.zeros((model.config.num_hidden_layers, model.config.num_attention_heads))
    if answers and suspects[0].high >= SPOKEN_FROM:
        call, held = speaker.call(answers[0].ids), speaker.held
        said = speaker.said(answers[0].ids, call, held)
        suspects[0] = _suspect(tokenizer, answers[0], call, sum(said) / len(said))
        rise_LH = _looks(speaker, call, call.ids) - _looks(speaker, call, None)
    return Verdict(tuple(suspects), rise_LH, len(inside), SPOKEN_FROM)


def _suspect(
    tokenizer: TokenizerFiles, answer: Answer | None, call: Call | None = None, turned: float = 0.0
) -> Suspect:
    """`answer` None: all that the model is sure of it says anyway, and nothing is known of the rest."""
    decode, ids = tokenizer.tokenizer.decode, call.ids if call else ()
    if answer is None:
        return Suspect("", "", (), 0.0, None, 0.0, 0.0, 0.0, 1.0, 0)
    count, sureness = len(answer.chance_NS), answer.sureness()
    places = np.random.default_rng(0).integers(0, count, (_DRAWS, count))
    low, high = np.quantile([answer.sureness(one) for one in places], [0.025, 0.975])
    return Suspect(
        decode(list(answer.ids)), decode(list(ids)), ids, turned, None, sureness, sureness,
        float(low), float(high), count,
    )  # fmt: skip


def _looks(speaker: Speaker, call: Call, ids: Ids | None) -> Any:
    """What heads give the tokens in the place of a call [L, H]; None: of other prompts' words, as many."""
    draw, texts = random.Random(1), []
    for inside in speaker.held:
        put = ids or tuple(draw.choices(draw.choice(speaker.inside), k=len(call.ids)))
        words = (*inside, *put) if call.at_end else (*put, *inside)
        word_T = [-1] * len(speaker.before) + list(range(len(words))) + [-1] * len(speaker.after)
        whole = (*speaker.before, *words, *speaker.after)
        texts.append(Words(whole, tuple(word_T), tuple(map(str, words))))
    return shares(speaker.model, texts, len(call.ids), at_end=call.at_end)
