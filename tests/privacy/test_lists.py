"""The user's own lists: what a file may hold, what is said of one that contradicts itself, and reloading."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from transom.errors import MisconfiguredError
from transom.files import Reread
from transom.privacy.claims import Claims
from transom.privacy.lists import Lists, load_lists

WHOLE = r"""
people: clients.txt
places: [Upper Ness]
terms: [Project Heron, "KD-7"]
patterns:
  - {pattern: '\bKD-\d{4,}\b', kind: document}
  - {pattern: '(?<=codename )\w+', kind: term}
allow: [Transom, Berlin Airlift]
public:
  - "Summarise this letter in three sentences: {letter}"
public_files: [prompt.txt]
"""
PROMPT = "You are a careful assistant who writes plain answers."


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "clients.txt").write_bytes(b"\xef\xbb\xbf# those of 2026\r\nJane Miller\r\nOkafor\r\n")
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n")
    path = tmp_path / "lists.yaml"
    path.write_text(WHOLE)
    return path


def claimed(lists: Path, text: str) -> list[tuple[str, str]]:
    return [(text[start:end], kind) for start, end, kind in Claims(Reread(lists, load_lists)).find(text)]


def test_a_whole_file(path: Path) -> None:
    text = f"{PROMPT} JANE miller of Upper Ness (KD-7, KD-12345) on project heron, codename swan. Transom."
    assert claimed(path, text) == [
        (PROMPT, "public"),
        ("JANE miller", "person"),
        ("Upper Ness", "place"),
        ("KD-7", "rare"),
        ("KD-12345", "document"),
        ("project heron", "rare"),
        ("swan", "rare"),
        ("Transom", "allowed"),
    ]
    letter = "Summarise this letter in three sentences: Okafor wrote."
    assert claimed(path, letter) == [(letter[:-13], "public"), ("Okafor", "person")]


def test_what_is_disclosed_is_counted_and_not_told(path: Path) -> None:
    lists = load_lists(path)
    told = " ".join(lists.disclosed())
    assert "people: 2, places: 1, terms: 2, patterns: 2" in told
    assert "allows (2)" in told
    assert "templates (2, sha256 " in told
    assert "Miller" not in told + repr(lists)
    path.write_text("{}")
    assert list(load_lists(path).disclosed()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("people: [Anna, anna]\nallow: [ANNA]", r"allow\[0\] is allowed and stands in people\[0\] as well"),
        ("allow: [name_1]", r"allow\[0\] reads like a placeholder"),
        ("terms: ['-']", r"terms\[0\] is without a letter"),
        (f"terms: ['{'a ' * 33}']", r"terms\[0\] is longer than 32"),
        (
            "patterns: [{pattern: '(a', kind: persn}]",
            r"patterns\[0\].*unknown kind 'persn'; did you mean 'person'",
        ),
        ("patterns: [{pattern: '(a', kind: person}]", r"patterns\[0\]: missing \)"),
        ("patterns: [{pattern: 'a*', kind: person}]", r"patterns\[0\]: 'a\*' matches an empty text"),
        ("patterns: [{pattern: 'a', kind: public}]", r"unknown kind 'public'"),
        ("patterns: [{pattern: 'a', kind: word}]", r"unknown kind 'word'"),
        ("patterns: [{pattern: '', kind: person}]", r"patterns\[0\].pattern must be text, not empty"),
        ("public: ['{text}']", r"public\[0\]: its fixed part has 0 letters"),
        ("public: ['Tell {']", r"public\[0\].*write {{"),
        ("names: [1984, yes]", "names must be a list of text"),
        ("names: missing.txt", r"missing.txt cannot be read \(No such file"),
        ("names: latin.txt", r"latin.txt is not UTF-8 \(byte 4\)"),
        ("public_files: [missing.txt]", "missing.txt cannot be read"),
        ("name: [Anna]", "does not know name; did you mean 'names'"),
        ("", "must be a mapping"),
        (
            "terms: ['-']\npublic: ['{a}']\nnames: missing.txt\npatterns: [{pattern: '(', kind: person}]",
            r"missing.txt.*terms\[0\].*patterns\[0\].*public\[0\]",
        ),
    ],
)
def test_what_contradicts_itself_or_cannot_work_is_refused(path: Path, text: str, said: str) -> None:
    path.with_name("latin.txt").write_bytes(b"Rene\xe9")
    path.write_text(text)
    with pytest.raises(MisconfiguredError, match=f"(?s){said}") as caught:
        load_lists(path)
    assert "lists.yaml" in str(caught.value)
    assert "Anna" not in str(caught.value)


def test_what_stands_twice_or_is_empty_is_named_and_does_no_harm(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.with_name("clients.txt").write_text("Miller\n\nmiller\nOkafor\n \n")
    path.write_text(
        "people: clients.txt\nplaces: [Okafor, '']\n"
        "public: ['Write a haiku', 'Write a haiku ', 'Hello there {x}']"
    )
    notes = load_lists(path).notes
    short = "its fixed part is shorter than 4 words and 20 letters"
    assert notes == (
        "clients.txt line 2, clients.txt line 5 are empty and left out",
        "clients.txt line 3 (as clients.txt line 1) is there already",
        "places[1] is empty and left out",
        "places[0] (as clients.txt line 4) is in an earlier list, whose kind counts",
        f"public[0]: {short}: it passes as a whole message only, not within one",
        "public[1] is public[0] again",
        f"public[2]: {short}: private text may match it by chance, and these words of it pass",
    )
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * len(notes)
    assert "Miller" not in caplog.text
    assert claimed(path, "Okafor") == [("Okafor", "person")]


def test_many_of_these_are_counted(path: Path) -> None:
    path.with_name("clients.txt").write_text("Miller\n" * 10)
    path.write_text("people: clients.txt")
    (note,) = load_lists(path).notes
    assert note.endswith("(as clients.txt line 1) and 4 more are there already")


def test_a_changed_file_is_read_again_also_one_that_it_names(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lists: Reread[Lists] = Reread(path, load_lists, every_s=0, also=lambda lists: lists.files)
    claims = Claims(lists)

    def people() -> list[str]:
        text = "Okafor Smith Jones"
        return [text[start:end] for start, end, _ in claims.find(text)]

    assert people() == ["Okafor"]
    path.with_name("clients.txt").write_text("Smith\n")
    assert people() == ["Smith"]
    path.write_text("people: [Smith]\nallow: [smith]")
    assert people() == people() == ["Smith"]
    (error,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert "read before stays in use" in error.getMessage()
    path.write_text("people: others.txt")  # which comes a moment later
    assert people() == ["Smith"]
    path.with_name("others.txt").write_text("Jones\n")
    assert people() == ["Jones"]


def test_a_hundred_thousand_names_are_found(path: Path) -> None:
    names = [f"Name{number} Of{number % 7}" for number in range(100_000)]
    path.with_name("clients.txt").write_text("\n".join(names))
    path.write_text("people: clients.txt")
    text = "\n".join(names[::500]) + " Name1 Of2"
    assert [part for part, _ in claimed(path, text)] == names[::500]
