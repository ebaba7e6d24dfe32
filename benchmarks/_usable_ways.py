"""The settings of `words_usable.py`: every way to sanitise a text, seen alike by tasks and attacker.

A text becomes units, one a token: passed, drawn, or hidden behind a placeholder. Transom's settings run as
they are; today's build runs from its own source in a process of its own; CUSTEXT+ and SANTEXT+ work as in
`words_sst2.py`, one `[UNK]` for every word outside the vocabulary, which nobody can restore.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from safetensors.numpy import load_file

from transom.privacy.drawn_back import drawn_words, restore_words
from transom.privacy.kinds import FIELDS, base_of
from transom.privacy.mechanisms import build
from transom.privacy.partition import Partition, WordMechanism
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import load_policy
from transom.privacy.presets import with_preset
from transom.privacy.relaxed import DistanceMechanism
from transom.privacy.sanitize import Sanitizer
from words_sst2 import UNKNOWN, Materials, Method, Setting, Task, method_for, tokens_of

NEW_DEFAULT = "entities"
CUSTEXT, SANTEXT = (39.0, 10.0, 6.0), (6.0, 4.0, 3.0)  # their parameters, the weakest protection first
COMPARED = ("today", "placeholders alone", "custext+", "santext+")


class Unit(NamedTuple):
    """A token on its way: what it was (lower case), and what is seen of it: a word's or a label's number."""

    state: str  # passed, drawn or hidden
    source: str
    word: int = -1  # id of the source, where it is drawn
    seen: tuple[int, int] | str = ""  # (mechanism, word id) drawn, or the label of the placeholder


class Sent(NamedTuple):
    """A text as it leaves, its units, and the way back for an answer."""

    text: str
    units: tuple[Unit, ...]
    restore: Callable[[str], str]


@dataclass(frozen=True)
class Way:
    """A method at one parameter. `words` are its vocabulary, `mechanisms` what draws from it."""

    name: str
    method: str
    parameter: float | None = None
    epsilon: float = 0.0  # of one drawn word
    words: tuple[str, ...] = field(default=(), repr=False)
    mechanisms: tuple[WordMechanism, ...] = field(default=(), repr=False)
    drawable: tuple[Any, ...] = field(default=(), repr=False)  # which words [V] each mechanism draws
    send: Callable[[Sequence[str]], list[Sent]] = field(default=lambda texts: [], repr=False)

    @property
    def deterministic(self) -> bool:
        """Whether a text is always sent alike."""
        return not self.mechanisms


Ways = dict[str, Callable[[], Way]]


# ------------------------------------------------------------------------------------------ Transom's own


class _Untyped(Placeholders):
    """Placeholders that tell only the base kind."""

    def hide(self, kind: str, value: str) -> str:
        return super().hide(base_of(kind), value)


def transom(
    name: str,
    method: str,
    rules: Mapping[str, Any],
    *,
    preset: str,
    parameter: float | None = None,
    typed: bool = True,
    common: int | None = None,
) -> Way:
    """A preset of this build under further rules; `common` overrides how many words count as frequent."""
    policy = with_preset(load_policy(), preset).with_rules(rules)
    if common is not None:
        with patch("transom.privacy.policy.COMMON_WORDS", common):
            assert policy.kind_of  # cached from here on
    sanitizer = Sanitizer(policy)
    rules = {kind: policy.rule(kind) for kind in ("word", "instruction", "uncommon", *FIELDS)}
    drawn = {kind: rule for kind, rule in rules.items() if not isinstance(rule, str)}
    epsilons = sorted(set(drawn.values()))
    number = {kind: epsilons.index(epsilon) for kind, epsilon in drawn.items()}

    def send(texts: Sequence[str]) -> list[Sent]:
        return [_sent(sanitizer, text, number, typed) for text in texts]

    mechanisms = tuple(build(policy.mechanism, policy.partition, float(e)) for e in epsilons)
    kinds = [policy.kind_of[word] for word in policy.words]
    drawable = tuple(np.array([number.get(kind) == one for kind in kinds]) for one in range(len(mechanisms)))
    most = max(map(float, epsilons), default=0.0)
    return Way(name, method, parameter, most, tuple(policy.words), mechanisms, drawable, send)


def _sent(sanitizer: Sanitizer, text: str, number: Mapping[str, int], typed: bool) -> Sent:
    holder = Placeholders() if typed else _Untyped()
    made = sanitizer.sanitize(text, placeholders=holder)
    words = sanitizer.policy.words
    pieces = [piece for piece in made.pieces if piece.kind != "space"]
    units = tuple(
        _unit(words, p.action, p.output, p.source, p.source_id, p.output_id, number.get(p.kind, 0))
        for p in pieces
    )
    drawn = drawn_words((p.action, p.output, p.source) for p in pieces)
    return Sent(made.text, units, lambda answer: holder.restore(restore_words(answer, drawn)))


def _unit(
    words: Sequence[str], action: str, output: str, source: str, word: int, released: int, number: int
) -> Unit:
    if action == "draw":
        return Unit("drawn", words[word], word, (number, released))
    if action == "placeholder":
        return Unit("hidden", source.lower(), -1, output.strip("[]").split("_")[0])
    return Unit("passed", source.lower())


# --------------------------------------------------------------------------------------- today's build

_TODAY = """
import json, sys
from dataclasses import replace
from transom.privacy.policy import load_policy
from transom.privacy.placeholders import Placeholders
from transom.privacy.sanitize import Sanitizer
ask = json.load(sys.stdin)
policy = load_policy()
rule = ask["rule"]
sanitizer = Sanitizer(replace(policy, rules={**policy.rules, "word": rule}))
for text in ask["texts"]:
    made = sanitizer.sanitize(text, placeholders=Placeholders())
    print(json.dumps([made.text, [[p.kind, p.action, p.output, p.source, p.source_id, p.output_id]
                                  for p in made.pieces]]))
"""


def todays(source: Path, name: str, method: str, rule: float | str) -> Way:
    """Today's build with one rule for words. Its own command line lets no words pass; its code can."""
    tensors = load_file(next((source / "transom" / "privacy" / "data").glob("*.safetensors")))
    words = tuple(bytes(tensors["words"]).decode().splitlines())
    drawn = not isinstance(rule, str)
    partition = Partition(tensors["starts"], tensors["scores"])
    mechanisms = (build("rnm", partition, float(rule)),) if drawn else ()

    def send(texts: Sequence[str]) -> list[Sent]:
        run = subprocess.run(
            [sys.executable, "-c", _TODAY],
            input=json.dumps({"rule": rule, "texts": list(texts)}),
            env={**os.environ, "PYTHONPATH": str(source)},
            capture_output=True,
            text=True,
            check=True,
        )
        return [_sent_today(words, *json.loads(line)) for line in run.stdout.splitlines()]

    epsilon = float(rule) if drawn else 0.0
    every = tuple(np.ones(len(words), dtype=bool) for _ in mechanisms)
    return Way(name, method, epsilon or None, epsilon, words, mechanisms, every, send)


def _sent_today(words: Sequence[str], text: str, pieces: list[list[Any]]) -> Sent:
    units = tuple(_unit(words, *piece[1:], 0) for piece in pieces if piece[0] != "space")
    values = {output: source for _, action, output, source, *_ in pieces if action == "placeholder"}
    restore = lambda answer: re.sub(r"\[[A-Z]+_\d+\]", lambda m: values.get(m[0], m[0]), answer)  # noqa: E731
    return Sent(text, units, restore)


# ------------------------------------------------------------------------------------ published methods


def published(materials: Materials, counts: Counter[str], method: str, parameter: float) -> Way:
    """CUSTEXT+ or SANTEXT+; `counts` set how many words SANTEXT+ may let pass."""
    made: Method = method_for(Setting("", method), materials, Task("", [], [], counts))
    mechanism = made.make(parameter)
    ids = made.ids()
    kept_V = ~mechanism.sensitive_V if isinstance(mechanism, DistanceMechanism) else None

    def send(texts: Sequence[str]) -> list[Sent]:
        rows = [tokens_of(text) for text in texts]
        flat = [ids[t] for row in rows for t in row if t in ids and t not in made.passing]
        outputs = iter(mechanism.sample(np.array(flat, dtype=np.int64)).tolist() if flat else [])
        return [_sent_published(row, outputs) for row in rows]

    def _sent_published(row: Sequence[str], outputs: Any) -> Sent:
        words, units = [], []
        for token in row:
            if token in made.passing or not any(c.isalnum() for c in token):
                units.append(Unit("passed", token))
                words.append(token)
            elif token in ids:
                output = next(outputs)
                # An output that only a kept word can have is read, not guessed.
                kept = kept_V is not None and bool(kept_V[output])
                units.append(Unit("passed", token) if kept else Unit("drawn", token, ids[token], (0, output)))
                words.append(made.words[output])
            else:
                units.append(Unit("hidden", token, -1, "UNK"))
                words.append(UNKNOWN)
        return Sent(" ".join(words), tuple(units), str)

    epsilon = float(mechanism.exact_epsilon())
    every = (np.ones(len(made.words), dtype=bool),)
    return Way(f"{method} {parameter:g}", method, parameter, epsilon, made.words, (mechanism,), every, send)


# ------------------------------------------------------------------------------------------------- the list


def plain() -> Way:
    """No protection."""

    def send(texts: Sequence[str]) -> list[Sent]:
        return [Sent(text, tuple(Unit("passed", t) for t in tokens_of(text)), str) for text in texts]

    return Way("plain", "plain", send=send)


def own_ways() -> Ways:
    """This build's settings by name: the presets, then what was tried beside them."""

    def ours(name: str, method: str, preset: str, rules: Mapping[str, Any], **more: Any) -> None:
        ways[name] = lambda: transom(name, method, rules, preset=preset, **more)

    ways: Ways = {}
    ours("entities", "entities", "entities", {})
    ours("sensitive 4", "sensitive", "sensitive", {}, parameter=4.0)
    ours("words 4", "words", "words", {}, parameter=4.0)
    ours("entities untyped", "tries", "entities", {}, typed=False)
    ours("words 4 untyped", "tries", "words", {}, typed=False)
    ours("fields hidden", "tries", "sensitive", {"uncommon": "pass"})
    ours("sensitive hidden", "tries", "sensitive", {"uncommon": "placeholder"})
    for epsilon in (8.0, 2.0):
        ours(f"sensitive {epsilon:g}", "sensitive", "sensitive", {"uncommon": epsilon}, parameter=epsilon)
        ours(f"words {epsilon:g}", "words", "words", {"word": epsilon}, parameter=epsilon)
    ours("fields drawn 4", "tries", "sensitive", {"uncommon": "pass", **dict.fromkeys(FIELDS, 4.0)})
    ours("sensitive 4, 3,000 common", "tries", "sensitive", {}, common=3_000)
    return ways


def compared_ways(source: Path | None, materials: Materials | None, counts: Counter[str]) -> Ways:
    """What the presets are held against, by name, each along its parameter."""
    ways: Ways = {}

    def today(name: str, method: str, rule: float | str) -> None:
        if source is not None:
            ways[name] = lambda: todays(source, name, method, rule)

    def paper(method: str, parameter: float) -> None:
        if materials is not None:
            ways[f"{method} {parameter:g}"] = lambda: published(materials, counts, method, parameter)

    today("today 4", "today", 4.0)
    today("placeholders alone", "placeholders alone", "pass")
    for epsilon in (8.0, 30.0):
        today(f"today {epsilon:g}", "today", epsilon)
    for level in range(3):
        paper("custext+", CUSTEXT[level])
        paper("santext+", SANTEXT[level])
    today("words are placeholders", "words are placeholders", "placeholder")
    return ways
