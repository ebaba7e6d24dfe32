"""Word lists from small public resources: each source decides what it should, and bad files are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from transom.errors import PolicyError
from transom.privacy import fieldphrases, fields, halves, listed, seeds
from transom.privacy.build import build_policy
from transom.privacy.closed import is_closed
from transom.privacy.kinds import FIELDS
from transom.privacy.lexicon import FUNCTION_WORDS
from transom.privacy.listed import LIST_FILES, read_lists, read_name_lists
from transom.privacy.packed import BIT_OF_FIELD, MODIFIER
from transom.privacy.policy import load_policy
from transom.privacy.senses import read_senses
from transom.privacy.text import is_plain_word

DRAWN = ["garden", "stone", "cold", "asthma", "write", "walk", "most", "rain", "bread"]
PEOPLE = ["anna", "peter", "murphy", "okafor", "garcia", "nguyen"]
TOWNS = ["leeds", "lagos", "angeles", "lyon", "cork", "tokyo"]
FIRMS = ["microsoft", "ibm", "toyota", "pfizer"]


def synset(offset: int, pos: str, words: list[str], pointers: str = "") -> str:
    spelled = " ".join(f"{word} 0" for word in words)
    count = len(pointers.split()) // 4
    end = f"{count:03d} {pointers} | gloss" if count else "000 | gloss"
    return f"{offset:08d} 00 {pos} {len(words):02x} {spelled} {end}"


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    """Illness above asthma and a rare sense of cold; asthmatic derives; Paris is a single place."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    nouns = [
        synset(1, "n", ["illness"], "~ 00000002 n 0000 ~ 00000003 n 0000"),
        synset(2, "n", ["asthma", "bread-asthma"], "+ 00000001 a 0101"),
        synset(3, "n", ["cold"]),
        synset(4, "n", ["garden"]), synset(5, "n", ["stone"]), synset(6, "n", ["rain"]),
        synset(7, "n", ["bread"]), synset(8, "n", ["person"]),
        synset(9, "n", ["location"], "~i 00000010 n 0000"), synset(10, "n", ["Paris"]),
        synset(11, "n", ["organization"]), synset(12, "n", ["teapot"]), synset(13, "n", ["cork"]),
    ]  # fmt: skip
    rows = {
        "noun": nouns,
        "verb": [synset(1, "v", ["write"]), synset(2, "v", ["walk"])],
        "adj": [synset(1, "a", ["asthmatic"]), synset(2, "a", ["cold"]), synset(3, "a", ["most"])],
        "adv": [synset(1, "r", ["slowly"])],
    }
    for pos, lines in rows.items():
        licence = "  1 the licence stands here\n"
        (folder / f"data.{pos}").write_text(licence + "\n".join(lines) + "\n", encoding="utf-8")
        index: dict[str, list[str]] = {}
        for line in lines:
            for word in line.split()[4::2][: int(line.split()[3], 16)]:
                index.setdefault(word.lower(), []).append(line[:8])
        lines = [f"{w} {pos[0]} {len(o)} 0 {len(o)} 0 {' '.join(o)}  " for w, o in sorted(index.items())]
        (folder / f"index.{pos}").write_text(licence + "\n".join(lines) + "\n", encoding="utf-8")
        (folder / f"{pos}.exc").write_text("", encoding="utf-8")
    counts = "cold%1:26:00:: 1 2\ncold%3:00:00:: 1 9\nasthma%1:26:00:: 1 3\n"
    (folder / "cntlist.rev").write_text(counts, encoding="utf-8")
    return folder


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    roots: dict[str, tuple[str, ...]] = dict.fromkeys(FIELDS, ()) | {"health": ("illness.n.1",)}
    monkeypatch.setattr(fields, "ROOTS", roots)
    monkeypatch.setattr(fields, "OUTSIDE", {})
    monkeypatch.setattr(fieldphrases, "PHRASE_ROOTS", {})
    monkeypatch.setattr(listed, "COMMON_WORDS", 7)
    single = {"person": ("person.n.1",), "place": ("location.n.1",), "organisation": ("organization.n.1",)}
    monkeypatch.setattr(listed, "_SINGLE", single)
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "dist.male.first").write_text("PETER 1 1 1\nCORK 1 1 2\n")
    (folder / "dist.female.first").write_text("ANNA 1 1 1\n")
    family = "\n".join(f"{name.upper()} 0.1 0.1 1" for name in ["murphy", "stone", "garcia", "nguyen"])
    (folder / "dist.all.last").write_text(family)
    (folder / "countries.json").write_text("{}")
    (folder / "us_states.json").write_text('{"TX": {"name": "Texas"}}')
    towns = [("Leeds", 500_000), ("Lagos", 9_000_000), ("Los Angeles", 4_000_000), ("Lyon", 500_000),
             ("Cork", 190_000), ("Tokyo", 9_000_000), ("Small Hamlet", 20), ("Most", 60_000)]  # fmt: skip
    cities = {str(i): {"name": name, "population": size} for i, (name, size) in enumerate(towns)}
    (folder / "cities15000.json").write_text(json.dumps(cities))
    rng = np.random.default_rng(0)
    centres = np.eye(4) * 5
    groups = [
        [*DRAWN, "asthmatic", "walked", "teapot"],
        [*PEOPLE, "yevgeny"],
        [*TOWNS, "texas", "paris"],
        FIRMS,
    ]
    rows = [(word, centres[i] + rng.normal(size=4) * 0.3) for i, words in enumerate(groups) for word in words]
    rows.append(("zzyzx", centres[0]))  # among common words by its vector
    text = "".join(f"{word} {' '.join(f'{x:.4f}' for x in row)}\n" for word, row in rows)
    (folder / "glove.6B.50d.txt").write_text(text)
    return folder


def test_every_source_decides_what_it_is_meant_to(wordnet: Path, lists: Path) -> None:
    found, _ = read_lists(lists, wordnet, DRAWN)
    expected = {
        "asthma": "health", "asthmatic": "health",  # its main sense, and what derives from it
        "cold": None,  # mostly no illness
        "write": "instruction", "stone": "namesake", "garden": None,
        "most": None,  # a town, too, but far too frequent a word
        "teapot": "ordinary", "walked": "ordinary",
        "anna": "person", "peter": "person", "murphy": "person", "yevgeny": "person",
        "leeds": "place", "texas": "place", "angeles": "place", "paris": "place",
        "ibm": "organisation", "zzyzx": None,
        "hamlet": None,  # the part of a small place's name
        "monday": None, "the": None, "may": None, "else": "dictionary", "bread": "part",
    }  # fmt: skip
    assert {word: found.get(word) for word in expected} == expected


def test_every_listed_word_is_one_lower_case_word_that_neither_passes_nor_is_closed(
    wordnet: Path, lists: Path
) -> None:
    found, _ = read_lists(lists, wordnet, DRAWN)
    assert list(found) == sorted(found)
    assert all(is_plain_word(word) and not is_closed(word) for word in found)
    assert not found.keys() & FUNCTION_WORDS
    assert {found[word] for word in DRAWN if word in found} <= {"namesake", "instruction", "part", *FIELDS}


def test_phrases_come_with_their_plurals_and_halves_with_their_bits(wordnet: Path, lists: Path) -> None:
    _, phrases = read_lists(lists, wordnet, DRAWN)
    health = BIT_OF_FIELD["health"]
    assert phrases["bread asthma"] == phrases["bread asthmas"] == phrases["sick leave"] == health
    assert phrases["cold"] == health + MODIFIER  # by the project's own list
    assert phrases["garden"] == MODIFIER
    assert "walk" not in phrases
    assert "bread" not in phrases  # seldom: hidden, and so in need of no bit


@pytest.mark.parametrize("name", LIST_FILES)
def test_a_missing_list_is_named(wordnet: Path, lists: Path, name: str) -> None:
    (lists / name).unlink()
    with pytest.raises(PolicyError, match=rf"lacks {name}.*docs/words\.md"):
        read_lists(lists, wordnet, DRAWN)


@pytest.mark.parametrize("content", ["[", "[]", '{"a": 1}', '{"a": {"population": 3}}', "\xff"])
def test_malformed_lists_of_places_are_named(lists: Path, content: str) -> None:
    (lists / "cities15000.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(PolicyError, match=r"cities15000\.json"):
        read_name_lists(lists)


def test_wordnet_without_a_concept_or_a_file_is_refused(wordnet: Path) -> None:
    with pytest.raises(PolicyError, match=r"no sense disease\.n\.1"):
        read_senses(wordnet).subtree(["disease.n.1"])
    (wordnet / "index.noun").unlink()
    with pytest.raises(PolicyError, match="not a WordNet"):
        read_senses(wordnet)


def test_a_built_policy_carries_its_lists(tmp_path: Path, wordnet: Path, lists: Path) -> None:
    out = tmp_path / "p.safetensors"
    vectors = lists / "glove.6B.50d.txt"
    built = build_policy(vectors, out, wordnet=wordnet, lists=lists, vocabulary_size=8, group_size=4)
    assert built.listed["leeds"] == "place"
    assert set(LIST_FILES) <= set(built.sources)
    assert load_policy(out).listed == built.listed
    assert load_policy(out).phrases == built.phrases
    assert built.phrases["sick leave"]
    plain = build_policy(vectors, out, wordnet=wordnet, vocabulary_size=8, group_size=4)
    assert (plain.words, plain.listed) == (built.words, {})
    with pytest.raises(PolicyError, match="--wordnet"):
        build_policy(vectors, out, lists=lists)


def test_seeds_agree_with_each_other() -> None:
    added = [word for lists in (seeds.ADDED, halves.MORE) for words in lists.values() for word in words]
    assert set(halves.HALVES) == set(halves.WHOLE) == set(halves.MORE) == set(FIELDS)
    assert not set().union(*halves.MORE.values()) & seeds.HARMLESS
    assert not set(added) & seeds.INSTRUCTIONS
    assert not seeds.ORDINARY & seeds.NO_NAMES
    assert set(seeds.FIELDS) == set(FIELDS) == set(seeds.ROOTS) == set(seeds.ADDED)
    every = seeds.HARMLESS | seeds.INSTRUCTIONS | seeds.ORGANISATIONS | seeds.EVERYDAY | set(added)
    assert all(word.isalpha() and word.islower() for word in every | seeds.ORDINARY)
