"""The user's own lists: what is private, what may be seen, and what is public text, in one YAML file.

    people: clients.txt                   # one a line; or a list here: [Jane Miller, Okafor]
    terms: [Project Heron, "KD-7"]        # so too names, places, organisations and allow
    patterns: [{pattern: '\\\\bKD-\\\\d{4,}\\\\b', kind: document}]
    allow: [Transom, Berlin Airlift]      # always pass, but within a longer entry or an address
    public: ["Summarise this letter in three sentences: {letter}"]
    public_files: [system_prompt.txt]     # one text or template a file

How entries match is said in `phrases`, `patterns` and `templates`, who wins in `claims`. A text file holds
one entry a line; lines that begin with `# ` are comments. Entries that are empty or stand twice are named in
the log and do no harm; what contradicts itself, or could not work, is refused, with everything at once.
Threat model: the file is its owner's; the entries are private, so messages tell their places alone. Does not
protect: other forms of an entry. What `allow` and `public` let pass is disclosed.
Source: own.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Annotated

from transom.config import Setting, listed, read_config
from transom.errors import MisconfiguredError
from transom.files import Reread, read_bounded
from transom.privacy import patterns, templates
from transom.privacy.claims import ALLOWED, CLAIMABLE
from transom.privacy.kinds import Span, unknown
from transom.privacy.patterns import Patterns
from transom.privacy.phrases import MOST_WORDS, WORD, Key, Phrases, key_of
from transom.privacy.templates import Templates

_MAX_FILE_BYTES = 2**26
_SHOWN = 5  # places that a message names
_KIND_OF_KEY = {
    "people": "person",
    "names": "name",
    "places": "place",
    "organisations": "organisation",
    "terms": "rare",
    "allow": ALLOWED,
}
_KIND_OF_NAME = {"term": "rare"}  # as its placeholder calls it
_log = logging.getLogger("transom.lists")
_Words = Annotated[
    tuple[str, ...] | Path,
    Setting(
        wanted="be a list of text (quote what YAML takes for a number, date or truth) or a text file's path"
    ),
]
_Texts = Annotated[tuple[str, ...], Setting(wanted="be a list of text")]
Entry = tuple[str, str]  # its place and itself


@dataclass(frozen=True)
class _Pattern:
    pattern: Annotated[str, Setting(filled=True)]
    kind: str


@dataclass(frozen=True)
class _ListFile:
    people: _Words = ()
    names: _Words = ()
    places: _Words = ()
    organisations: _Words = ()
    terms: _Words = ()
    allow: _Words = ()
    patterns: tuple[_Pattern, ...] = ()
    public: _Texts = ()
    public_files: tuple[Path, ...] = ()


@dataclass(frozen=True, eq=False)
class Lists:
    """A list file as a recogniser; `files` are those that it names, `notes` what its owner should look at."""

    phrases: Phrases = field(repr=False)
    patterns: Patterns = field(repr=False)
    templates: Templates = field(repr=False)
    counts: dict[str, int]
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = field(default=(), repr=False)
    public_sha256: str = ""  # of the public texts, sorted, with a zero byte between them

    def find(self, text: str) -> Iterator[Span]:
        """Every claim on a whole message; they may overlap. Raises RefusedError: patterns take too long."""
        return chain(self.templates.find(text), self.phrases.find(text), self.patterns.find(text))

    def disclosed(self) -> Iterator[str]:
        """What the lists disclose, for a guarantee."""
        counts = dict(self.counts)
        allowed, public = counts.pop("allow"), counts.pop("public")
        if told := ", ".join(f"{key}: {count}" for key, count in counts.items() if count):
            yield f"the stretches that the caller's lists claim ({told}), and their kinds"
        if allowed:
            yield f"the words and phrases that the caller allows ({allowed}), unchanged"
        if public:
            told = f"{public}, sha256 {self.public_sha256}"
            yield f"the caller's public texts and templates ({told}), unchanged, and where each stands"


def load_lists(path: str | Path) -> Lists:
    """Read and check a list file. Raises MisconfiguredError with every problem at once."""
    read = read_config(_ListFile, path, what="the list file")
    problems: list[str] = []
    notes: list[str] = []
    kind_of = _phrases(_entries(read, problems, notes), problems, notes)
    kinds = _patterns(read, problems)
    public = _public(read, problems, notes)
    if problems:
        raise MisconfiguredError(listed(f"the list file {path} cannot be used", problems))
    for note in notes:
        _log.warning("the list file %s: %s", path, note)
    counts = Counter(kind_of.values())
    return Lists(
        Phrases(kind_of),
        Patterns(kinds),
        Templates(public),
        {key: counts[kind] for key, kind in _KIND_OF_KEY.items()}
        | {"patterns": len(kinds), "public": len(public)},
        (*(one for key in _KIND_OF_KEY if isinstance(one := getattr(read, key), Path)), *read.public_files),
        tuple(notes),
        sha256("\0".join(sorted(public)).encode()).hexdigest(),
    )


def watch_lists(path: str | Path) -> Reread[Lists]:
    """A list file that is read again when it or a file that it names changes. Raises MisconfiguredError."""
    return Reread(Path(path), load_lists, also=lambda read: read.files)


def _entries(read: _ListFile, problems: list[str], notes: list[str]) -> Iterator[tuple[str, list[Entry]]]:
    """The entries of each key that are not empty."""
    for key in _KIND_OF_KEY:
        given = getattr(read, key)
        if isinstance(given, Path):
            lines = enumerate(_text(given, problems).removesuffix("\n").split("\n"), 1)
            entries = [(f"{given.name} line {number}", line.strip()) for number, line in lines]
            entries = [one for one in entries if not (one[1] + " ").startswith("# ")]
        else:
            entries = [(f"{key}[{index}]", entry.strip()) for index, entry in enumerate(given)]
        if empty := [place for place, entry in entries if not entry]:
            notes.append(f"{_places(empty)} empty and left out")
        yield key, [entry for entry in entries if entry[1]]


def _phrases(
    entries: Iterable[tuple[str, list[Entry]]], problems: list[str], notes: list[str]
) -> dict[Key, str]:
    """The kind of each entry by its key; the first list that has one decides."""
    kind_of: dict[Key, str] = {}
    place_of: dict[Key, str] = {}
    for list_key, found in entries:
        kind = _KIND_OF_KEY[list_key]
        twice, other, mute, long = [], [], [], []
        for place, entry in found:
            key = key_of(entry)
            if not any(map(WORD.match, key)):
                mute.append(place)
            elif kind == ALLOWED and templates.looks_replaced(f"[{entry}]"):
                problems.append(
                    f"{place} reads like a placeholder, which an answer is restored by; take it out"
                )
            elif len(key) > MOST_WORDS:
                long.append(place)
            elif kind_of.setdefault(key, kind) == kind:
                if place_of.setdefault(key, place) != place:
                    twice.append(f"{place} (as {place_of[key]})")
            elif kind == ALLOWED:
                problems.append(f"{place} is allowed and stands in {place_of[key]} as well; take one out")
            else:
                other.append(f"{place} (as {place_of[key]})")
        if twice:
            notes.append(f"{_places(twice)} there already")
        if other:
            notes.append(f"{_places(other)} in an earlier list, whose kind counts")
        if mute:
            problems.append(f"{_places(mute)} without a letter or digit; take it out")
        if long:
            problems.append(f"{_places(long)} longer than {MOST_WORDS} words and signs; give a part of it")
    return kind_of


def _patterns(read: _ListFile, problems: list[str]) -> list[tuple[str, str]]:
    """The patterns, each with its kind."""
    for index, one in enumerate(read.patterns):
        if one.kind not in CLAIMABLE and one.kind not in _KIND_OF_NAME:
            problems.append(f"patterns[{index}]: {unknown('kind', one.kind, CLAIMABLE)}")
        if wrong := patterns.problem_of(one.pattern):
            problems.append(f"patterns[{index}]: {wrong}")
    return [(one.pattern, _KIND_OF_NAME.get(one.kind, one.kind)) for one in read.patterns]


def _public(read: _ListFile, problems: list[str], notes: list[str]) -> list[str]:
    """The public texts, each once."""
    entries = [(f"public[{index}]", text) for index, text in enumerate(read.public)]
    entries += [(path.name, _text(path, problems)) for path in read.public_files]
    place_of: dict[str, str] = {}
    for place, text in entries:
        template = text.strip()
        if template in place_of:
            notes.append(f"{place} is {place_of[template]} again")
        elif wrong := templates.problem_of(template):
            problems.append(f"{place}: {wrong}")
        elif said := templates.warning_of(template):
            notes.append(f"{place}: {said}")
        place_of.setdefault(template, place)
    return list(place_of)


def _text(path: Path, problems: list[str]) -> str:
    """A text file's content; nothing after a problem."""
    try:
        return read_bounded(path, _MAX_FILE_BYTES).decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        problems.append(f"{path} cannot be read ({error.strerror}); check the path")
    except UnicodeDecodeError as error:
        problems.append(f"{path} is not UTF-8 (byte {error.start}); convert it")
    except ValueError as error:
        problems.append(f"{path} cannot be used: {error}")
    return ""


def _places(places: list[str]) -> str:
    """Some places, as the subject of a sentence."""
    rest = len(places) - _SHOWN
    return ", ".join(places[:_SHOWN]) + (
        f" and {rest} more are" if rest > 0 else " are" if len(places) > 1 else " is"
    )
