"""A word policy: what happens to each kind of word, the public groups, and the file that holds them.

The file is one safetensors file. Tensors: `words` (uint8, UTF-8, one a line, in word-id order, contiguous
by group), `starts` (int32 [G + 1]), `scores` (uint8, the groups' K x K tables end to end), `prior`
(float32 [V], public frequency), `pass_words` (uint8, one a line), and, where there are lists, `listed`
(uint8, one a line) with `listed_kinds` (uint8, places in the metadata's `listed`), and `phrases` with
`phrase_fields` (`transom.privacy.packed`). Metadata: the key `policy` with a JSON object. The vocabulary
holds the words that can be drawn and no others, so that groups, prior and printed figures are those of drawn
words: a name of the policy's list or a closed form of the lexer in it is refused.
Kinds and rules are those of `transom.privacy.kinds`.
Threat model: a policy file may come from anybody. It is parsed as safetensors and JSON only, bounded in
size, checked completely before use, and can be pinned by SHA-256. Everything in it is public.
Does not protect: a policy that lets kinds pass, or whose words were taken from private text, protects
less; the rules are shown by `transom words explain`.
Source: partitions after Chen et al. 2023 (arXiv 2207.01193); format: safetensors.

Legend: G groups, V vocabulary, K words of one group, S flat scores.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from transom.config import Setting, attempt, listed, load_json, read_config
from transom.errors import MisconfiguredError, PolicyError
from transom.files import read_bounded, whole
from transom.privacy.closed import is_closed
from transom.privacy.data import ENGLISH_PATH, ENGLISH_SHA256
from transom.privacy.kinds import FIELDS, KINDS, Rule, rule_of, rule_problems, unknown
from transom.privacy.numbers import OPEN_CODES
from transom.privacy.packed import packed, read_listed, read_phrases, unpacked
from transom.privacy.partition import LARGEST_GROUP, Partition
from transom.privacy.text import is_plain_word

SIZE_LIMIT_BYTES = 64 * 2**20
COMMON_WORDS = 8_000  # the most frequent words of a vocabulary; the others are of kind `uncommon`
_TENSORS = {"words": "U8", "starts": "I32", "scores": "U8", "prior": "F32", "pass_words": "U8"}
_LISTS = {"listed": "U8", "listed_kinds": "U8"}  # both or none
_PHRASES = {"phrases": "U8", "phrase_fields": "U16"}  # the same
LISTED = (
    *("person", "place", "organisation", "namesake", "instruction", "dictionary", "ordinary", "part"),
    *FIELDS,
)
_Texts = Annotated[tuple[str, ...], Setting(wanted="be a list of text")]


@dataclass(frozen=True)
class _Record:
    """The metadata of a policy file."""

    format: Literal[1]
    name: str
    language: str
    mechanism: str
    kinds: Mapping[str, Rule]
    names: _Texts
    licence_notices: _Texts
    sources: _Texts
    polarity_coherent: bool
    pass_share: Annotated[float | None, Setting(least=0, most=1, wanted="lie in [0, 1] or be null")] = None
    listed: _Texts = ()

    def problems(self) -> Iterator[str]:
        """What is wrong with the rules."""
        yield from rule_problems(self.kinds)
        yield from (f"kind {kind!r} has no rule" for kind in KINDS if kind not in self.kinds)
        yield from (unknown("list", kind, LISTED) for kind in self.listed if kind not in LISTED)


@dataclass(frozen=True)
class _Overlay:
    preset: str | None = None
    kinds: Mapping[str, Rule] | None = None
    mechanism: str | None = None


@dataclass(frozen=True, eq=False)
class Policy:
    """A validated policy; make one with `load_policy` or `write_policy`.

    `sha256` is the file's, before overlays. `words` are drawn, as inputs and as outputs, and no others are.
    `names` are of kind name in any case and position. `listed` gives public words a kind of `LISTED`: names
    of a known type, words of sensitive fields, instruction words, `namesake` (a common word that is also
    somebody's name), `part` (a seldom word that phrases are made of), `dictionary`, and `ordinary` (a
    frequent word that is in no group, of kind word). `phrases`: phrases of fields and the halves they are
    made of, with the bits of their fields. `pass_share`: the public share of tokens that are pass words, or
    None when the file does not say. `preset` names where the rules come from.
    """

    name: str
    language: str
    rules: Mapping[str, Rule]
    mechanism: str
    words: tuple[str, ...]
    partition: Partition
    prior_V: NDArray[np.float32]
    pass_words: frozenset[str]
    sha256: str
    names: frozenset[str] = frozenset()
    listed: Mapping[str, str] = field(default_factory=dict, repr=False)
    phrases: Mapping[str, int] = field(default_factory=dict, repr=False)
    licence_notices: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    polarity_coherent: bool = False
    pass_share: float | None = None
    preset: str = "words"
    path: Path | None = field(default=None, compare=False)

    @property
    def epsilon(self) -> float | None:
        """Epsilon a word, or None when words are replaced by placeholders."""
        rule = self.rules["word"]
        return float(rule) if not isinstance(rule, str) else None

    @cached_property
    def words_pass(self) -> bool:
        """Whether ordinary words pass: then layout is kept as typed, and open words are read with values."""
        return self.rules["word"] == "pass"

    @property
    def draws(self) -> bool:
        """Whether any kind has an epsilon."""
        return any(not isinstance(rule, str) for rule in self.rules.values())

    def rule(self, kind: str) -> Rule:
        """What happens to a kind: its own rule or that of its base."""
        return rule_of(self.rules, kind)

    @cached_property
    def word_ids(self) -> dict[str, int]:
        """Word to id."""
        return {word: index for index, word in enumerate(self.words)}

    @cached_property
    def kind_of(self) -> Mapping[str, str]:
        """The kind of each word of the vocabulary and of each listed one; a namesake is a word here."""
        common = np.argsort(-self.prior_V, kind="stable")[:COMMON_WORDS]
        kinds = dict.fromkeys(self.words, "uncommon") | {self.words[i]: "word" for i in common}
        kinds |= {word: kind for word, kind in self.listed.items() if kind != "namesake"}
        kinds |= {word: "word" for word, kind in self.listed.items() if kind == "ordinary"}
        kinds |= {word: "dictionary" for word in self.namesakes if word not in kinds}
        # Words that steer the reading of values pass where words pass.
        kept = "instruction" if self.rule("instruction") == "pass" else None
        steering = (word for word in OPEN_CODES if word in self.word_ids)
        return kinds | {word: "word" for word in steering if kinds[word] != kept}

    @cached_property
    def namesakes(self) -> frozenset[str]:
        """Common words that are also names of people or places."""
        return frozenset(word for word, kind in self.listed.items() if kind == "namesake")

    def with_rules(self, rules: Mapping[str, Any], mechanism: str | None = None) -> Policy:
        """This policy under other rules for some kinds; PolicyError names every unknown kind or rule."""
        problems = list(rule_problems(rules))
        if problems:
            raise PolicyError(listed("the rules cannot be used", problems))
        parsed = {kind: rule if isinstance(rule, str) else float(rule) for kind, rule in rules.items()}
        return replace(self, rules={**self.rules, **parsed}, mechanism=mechanism or self.mechanism)


def load_policy(path: str | Path | None = None, expected_sha256: str | None = None) -> Policy:
    """Read and check a policy file; None is the English policy that ships, pinned by its hash.

    Raises PolicyError for a missing, too large, malformed or unexpected file, with all problems at once.
    """
    if path is None:
        path, expected_sha256 = ENGLISH_PATH, expected_sha256 or ENGLISH_SHA256
        if expected_sha256 is None or not ENGLISH_PATH.exists():
            raise PolicyError("this installation ships no English policy; name a policy file (--policy FILE)")
    path = Path(path)
    try:
        content = read_bounded(path, SIZE_LIMIT_BYTES)
    except OSError as error:
        raise PolicyError(f"the policy {path} cannot be read ({error.strerror}); check the path") from error
    except ValueError:
        message = f"the policy {path} is larger than {SIZE_LIMIT_BYTES} bytes; it is no policy file"
        raise PolicyError(message) from None
    sha256 = hashlib.sha256(content).hexdigest()
    if expected_sha256 is not None and sha256 != expected_sha256.lower():
        raise PolicyError(
            f"the policy {path} is not the expected one: SHA-256 {sha256}, expected {expected_sha256}"
        )
    return replace(_parse(content, sha256, str(path)), path=path)


def write_policy(
    path: str | Path,
    *,
    words: Sequence[str],
    starts_G1: NDArray[np.int32],
    scores_S: NDArray[np.uint8],
    prior_V: NDArray[np.float32],
    pass_words: Iterable[str],
    kinds: Mapping[str, Rule],
    name: str,
    language: str,
    mechanism: str,
    licence_notices: Sequence[str] = (),
    sources: Sequence[str] = (),
    polarity_coherent: bool = False,
    pass_share: float | None = None,
    names: Iterable[str] = (),
    listed: Mapping[str, str] | None = None,
    phrases: Mapping[str, int] | None = None,
) -> Policy:
    """Write a policy file atomically and return it as read back; PolicyError when it would be invalid."""
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {
        "words": packed(words),
        "starts": np.ascontiguousarray(starts_G1, dtype=np.int32),
        "scores": np.ascontiguousarray(scores_S, dtype=np.uint8),
        "prior": np.ascontiguousarray(prior_V, dtype=np.float32),
        "pass_words": packed(sorted(pass_words)),
    }
    kinds_of_lists = sorted(set((listed or {}).values()))
    if listed:
        tensors["listed"] = packed(sorted(listed))
        codes = [kinds_of_lists.index(kind) for _, kind in sorted(listed.items())]
        tensors["listed_kinds"] = np.array(codes, dtype=np.uint8)
    if phrases:
        tensors["phrases"] = packed(sorted(phrases))
        tensors["phrase_fields"] = np.array([bits for _, bits in sorted(phrases.items())], dtype=np.uint16)
    record = {
        "format": 1,
        "name": name,
        "language": language,
        "kinds": dict(kinds),
        "mechanism": mechanism,
        "names": sorted(names),
        "licence_notices": list(licence_notices),
        "sources": list(sources),
        "polarity_coherent": polarity_coherent,
        "pass_share": pass_share,
        "listed": kinds_of_lists,
    }
    content = save(tensors, {"policy": json.dumps(record, ensure_ascii=False, sort_keys=True)})
    policy = _parse(content, hashlib.sha256(content).hexdigest(), str(path))
    _write_atomically(Path(path), content)
    return replace(policy, path=Path(path))


def load_overlay(path: str | Path) -> dict[str, Any]:
    """Read a YAML overlay: `kinds:` (kind to rule) and `mechanism:`; unknown keys are errors."""
    read = read_config(_Overlay, path, what="the overlay", error=PolicyError)
    return {name: value for name, value in vars(read).items() if value is not None}


def parse_rule(option: str) -> tuple[str, Rule]:
    """A command-line rule `kind=pass`, `kind=placeholder` or `word=EPSILON`."""
    kind, separator, value = option.partition("=")
    if not separator:
        raise PolicyError(f"a rule reads kind=rule, got {option!r}")
    try:
        return kind.strip(), float(value)
    except ValueError:
        return kind.strip(), value.strip()


def _parse(content: bytes, sha256: str, where: str) -> Policy:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(content)
        record = load_json(_header(content)["__metadata__"]["policy"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PolicyError(f"{where} is not a policy file ({type(error).__name__})") from error
    read, problems = attempt(_Record, record)
    problems += _tensor_problems(tensors, _header(content))
    if read is None or problems:
        raise PolicyError(listed(f"the policy {where} is malformed", problems))
    words, words_ok = unpacked(tensors["words"])
    pass_words, pass_ok = unpacked(tensors["pass_words"])
    problems = [] if words_ok and pass_ok else ["word lists are not UTF-8"]
    problems += _word_problems(words, pass_words, read.names) + _number_problems(tensors, len(words))
    public, wrong = read_listed(tensors, read.listed, frozenset(words), frozenset(pass_words))
    phrases, odd = read_phrases(tensors)
    if problems := problems + wrong + odd:
        raise PolicyError(listed(f"the policy {where} is malformed", problems))
    return Policy(
        name=read.name,
        language=read.language,
        rules=read.kinds,
        mechanism=read.mechanism,
        words=tuple(words),
        partition=Partition(tensors["starts"], tensors["scores"]),
        prior_V=tensors["prior"],
        pass_words=frozenset(pass_words),
        sha256=sha256,
        names=frozenset(read.names),
        listed=public,
        phrases=phrases,
        licence_notices=read.licence_notices,
        sources=read.sources,
        polarity_coherent=read.polarity_coherent,
        pass_share=read.pass_share,
    )


def _header(content: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", content[:8])
    return cast("dict[str, Any]", load_json(content[8 : 8 + length]))


def _tensor_problems(tensors: Mapping[str, NDArray[Any]], header: Mapping[str, Any]) -> Iterable[str]:
    wanted = dict(_TENSORS)
    for pair in (_LISTS, _PHRASES):
        wanted |= pair if pair.keys() & tensors.keys() else {}
    for name, dtype in wanted.items():
        if name not in tensors:
            yield f"tensor {name!r} is missing"
        elif header[name]["dtype"] != dtype or tensors[name].ndim != 1:
            got = f"{header[name]['dtype']} {tensors[name].shape}"
            yield f"tensor {name!r} must be {dtype} with one axis, got {got}"
    yield from (unknown("tensor", name, wanted) for name in tensors if name not in wanted)


def _word_problems(words: Sequence[str], pass_words: Sequence[str], names: Sequence[str]) -> list[str]:
    problems = []
    if len(set(words)) != len(words):
        problems.append(f"{len(words) - len(set(words))} words occur twice")
    lists = {"pass words": set(pass_words), "names": set(names)}
    for (one, first), (other, second) in combinations(({"vocabulary": set(words)} | lists).items(), 2):
        if first & second:
            problems.append(f"{len(first & second)} words are both {other} and {one}")
    closed = set(filter(is_closed, words))
    if closed:
        problems.append(f"{len(closed)} words of the vocabulary are closed forms, such as {min(closed)!r}")
    if (set(words) & lists["names"]) or closed:
        problems.append(
            "names and closed forms are never drawn and may not stand in groups: build the policy anew "
            "(`transom words build` leaves them out)"
        )
    odd = [word for word in [*words, *pass_words, *names] if not is_plain_word(word)]
    if odd:
        problems.append(f"{len(odd)} words are not single lower-case words, the first is {odd[0][:40]!r}")
    return problems


def _number_problems(tensors: Mapping[str, NDArray[Any]], words: int) -> list[str]:
    starts, prior = tensors["starts"].astype(np.int64), tensors["prior"]
    problems = []
    if len(starts) < 2 or starts[0] != 0 or starts[-1] != words:
        problems.append(f"starts must run from 0 to the number of words, {words}")
    sizes = np.diff(starts)
    if len(sizes) and sizes.min() < 2:
        problems.append(
            f"starts must grow by 2 or more (a group needs two words), smallest step {sizes.min()}"
        )
    elif len(sizes) and sizes.max() > LARGEST_GROUP:
        problems.append(
            f"a group may hold {LARGEST_GROUP} words, the largest has {sizes.max()}; build smaller groups"
        )
    elif len(tensors["scores"]) != (sizes**2).sum():
        problems.append(f"scores must have {(sizes**2).sum()} entries, got {len(tensors['scores'])}")
    if len(prior) != words:
        problems.append(f"prior must have {words} entries, got {len(prior)}")
    if not (np.isfinite(prior).all() and (prior >= 0).all() and prior.sum() > 0):
        problems.append("prior must be finite, non-negative and not all zero")
    return problems


def _write_atomically(path: Path, content: bytes) -> None:
    try:
        with whole(path, mode=0o600) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise MisconfiguredError(f"the policy cannot be written to {path} ({error.strerror})") from error
