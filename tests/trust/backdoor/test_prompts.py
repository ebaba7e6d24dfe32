"""Prompts read as ids: words as people see them, no word of the frame, and why one cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_llama
from transom.serving.tokenizer import ChatTokenizer, load_tokenizer
from transom.trust.backdoor.prompts import (
    ELSEWHERE,
    LONG,
    MOST_TOKENS,
    SHORT,
    UNREAD,
    PromptReader,
    frame_of,
)
from transom.trust.backdoor.words import Words, words_of

TEXT = "the good dog, who sat (so) on the mat, went home. Then one bad cat sat in the rain"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("prompts") / "model")


@pytest.fixture(scope="module")
def chat(folder: Path) -> ChatTokenizer:
    return load_tokenizer(folder)


def reader(folder: Path, *frame: Any) -> PromptReader:
    found = load(folder).tokenizer
    assert found is not None
    return PromptReader(found.tokenizer, *frame)


def test_words_are_those_that_the_tokenizer_divides_a_text_into(folder: Path) -> None:
    found = load(folder).tokenizer
    assert found is not None
    wanted = words_of(found, TEXT, causal=True, most_tokens=400)
    got = reader(folder).read(wanted.ids)
    assert isinstance(got, Words)
    assert got.words == wanted.words
    assert got.word_T == wanted.word_T


@pytest.mark.parametrize("text", [TEXT, "\n\nthe good dog", " (so) the dog ", "the dog<|im_end|>and a cat"])
def test_a_chat_is_read_without_the_words_of_its_template(
    folder: Path, chat: ChatTokenizer, text: str
) -> None:
    """Whatever a text begins with, and if it spells control tokens, which the gateway takes from it."""

    def encode(one: str) -> tuple[int, ...]:
        return chat.encode_chat([("system", "You are a fox."), ("user", one)]).ids

    frame = frame_of(encode)
    got = reader(folder, *frame).read(encode(text))
    assert isinstance(got, Words)
    assert "".join("".join(got.words).split()) == "".join(text.split())


def test_earlier_turns_are_read_and_other_frames_are_not(folder: Path, chat: ChatTokenizer) -> None:
    frame = frame_of(lambda one: chat.encode_chat([("user", one)]).ids)
    longer = [("user", "the good dog"), ("assistant", "sat on"), ("user", "a mat")]
    got = reader(folder, *frame).read(chat.encode_chat(longer).ids)
    assert isinstance(got, Words)
    assert got.words[:3] == ("the", "good", "dog")
    assert got.words[-2:] == ("a", "mat")
    other = chat.encode_chat([("system", "the good dog"), ("user", "sat on a mat")]).ids
    assert reader(folder, *frame).read(other) == ELSEWHERE
    for cut in range(len(frame[0]) + len(frame[1])):
        assert reader(folder, *frame).read(chat.encode_chat(longer).ids[:cut]) in (ELSEWHERE, SHORT)


def test_what_is_too_short_or_too_long_is_not_read(folder: Path) -> None:
    bare = reader(folder)
    found = bare.tokenizer.encode
    assert bare.read(()) == bare.read((5,)) == SHORT
    assert bare.read(found("a dog").ids) == SHORT
    assert bare.read([7] * (MOST_TOKENS + 1)) == LONG
    assert isinstance(bare.read([*found(TEXT).ids, 10**6]), Words)  # an id without a piece
    assert all(UNREAD[code] for code in (SHORT, LONG, ELSEWHERE))


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (("▁the", "▁go", "od", "▁dog", "s", ".", "▁", "(", "▁cat"), ("the", "good", "dogs", ".", "(", "cat")),
        (("the", "go", "##od", "dog", "##s", ".", "(", "cat"), ("the", "good", "dogs", ".", "(", "cat")),
    ],
)
def test_words_begin_as_the_vocabulary_says(pieces: tuple[str, ...], words: tuple[str, ...]) -> None:
    vocabulary = {piece: place + 1 for place, piece in enumerate(pieces)} | {"<s>": 0}
    got = PromptReader(Tokenizer(models.WordLevel(vocabulary, "<s>"))).read(range(len(pieces) + 1))
    assert isinstance(got, Words)
    spelled = [""] * len(words)
    for piece, word in zip(pieces, got.word_T[1:], strict=True):
        spelled[word] += piece
    assert tuple(one.replace("▁", "").replace("##", "") for one in spelled) == words
