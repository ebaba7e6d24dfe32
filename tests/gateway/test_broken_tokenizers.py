"""Tokenizers that fail: at the start, on a text, on an answer. A panic of the library is no Exception."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from transom.checkpoint import tokenizer as files_module
from transom.checkpoint.source import find
from transom.checkpoint.tokenizer import guarded, tokenizer_of
from transom.errors import CheckpointError, EngineError, RefusedError
from transom.serving import tokenizer as tokenizer_module
from transom.serving.detokenizer import Detokenizer, TokenBytes
from transom.serving.tokenizer import ChatTokenizer

from .conftest import CHATML, byte_tokenizer

PanicException = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
FAILURES = [PanicException("secret"), Exception("secret"), MemoryError("secret")]


class Failing:
    """A tokenizer of which some methods fail when `broken`."""

    def __init__(self, plain: Any, methods: tuple[str, ...], failure: BaseException) -> None:
        self._plain, self._methods, self._failure, self.broken = plain, methods, failure, True

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._plain, name)
        if name not in self._methods or not self.broken:
            return found

        def fail(*_args: Any, **_named: Any) -> Any:
            raise self._failure

        return fail


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("method", ["encode", "decode", "get_added_tokens_decoder", "get_vocab"])
def test_what_fails_at_the_start_is_a_broken_checkpoint(method: str, failure: BaseException) -> None:
    with pytest.raises(CheckpointError) as caught:
        ChatTokenizer(Failing(byte_tokenizer(), (method,), failure), CHATML)  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("failure", FAILURES)
def test_reading_guards_too(failure: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def fail(*_args: Any) -> Any:
        raise failure

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(files_module, "_from_directory", fail)
    with pytest.raises(CheckpointError):
        tokenizer_of(find(tmp_path))


@pytest.mark.parametrize("failure", FAILURES)
def test_a_text_that_the_tokenizer_fails_on_is_refused(failure: BaseException) -> None:
    chat = ChatTokenizer(byte_tokenizer(), CHATML)
    chat._content = Failing(chat._content, ("encode",), failure)  # type: ignore[assignment]
    for ask in (lambda: chat.encode_chat([("user", "x")]), lambda: chat.encode_text("x")):
        with pytest.raises(RefusedError) as caught:
            ask()
        assert caught.value.error_code == "tokenizer_fails"
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("failure", FAILURES)
def test_an_answer_that_the_tokenizer_fails_on_is_an_error_of_the_engine(failure: BaseException) -> None:
    plain = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    failing: Any = Failing(plain, ("decode",), failure)
    with pytest.raises(EngineError):
        Detokenizer(failing, TokenBytes(plain)).feed([0, 1])


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(), RefusedError("x")])
def test_what_ends_a_process_and_what_is_ours_passes(end: BaseException) -> None:
    def run() -> Iterator[None]:
        with guarded(lambda: CheckpointError("x")):
            raise end
        yield

    with pytest.raises(type(end)):
        next(run())


def test_a_vocabulary_without_a_piece_for_the_unknown_is_found_at_the_start() -> None:
    with pytest.raises(CheckpointError, match="ordinary text"):
        ChatTokenizer(Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>")))
    with pytest.raises(CheckpointError, match="no ids"):
        ChatTokenizer(Tokenizer(models.BPE({"zz": 0}, [])))


def test_added_tokens_are_each_looked_at_once() -> None:
    """Twenty thousand of them, in work that grows with their number and not with its square."""
    plain = byte_tokenizer()
    compared = 0

    class Text(str):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    class Token:
        def __init__(self, token: AddedToken) -> None:
            self.content, self.special, self.single_word = Text(token.content), token.special, False
            self.lstrip, self.rstrip = token.lstrip, token.rstrip

    plain.add_special_tokens([AddedToken(f"<|{i}|>") for i in range(2000)])
    added = plain.get_added_tokens_decoder()
    tokens: Any = {token_id: Token(token) for token_id, token in added.items()}
    _made, names, ids = tokenizer_module._without(plain, tokens, tokens)
    assert len(names) == len(ids) == len(added)
    assert compared < 10 * len(added)
    assert sorted(ids.values()) == sorted(added)


def test_the_vocabulary_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the whole tokenizer nor its model goes through JSON, unless it pads or truncates."""
    plain = byte_tokenizer()
    passes: list[int] = []
    monkeypatch.setattr(tokenizer_module, "_unbounded", lambda given: passes.append(1) or given)
    assert ChatTokenizer(plain, CHATML)._whole is plain
    assert not passes
    plain.enable_truncation(3)
    ChatTokenizer(plain, CHATML)
    assert passes
    monkeypatch.undo()
    plain.enable_padding(length=9)
    assert len(ChatTokenizer(plain, CHATML).encode_text("abcde").ids) == 5
    assert plain.truncation  # the given one is left as it was


def test_a_tokenizer_that_is_given_is_not_changed() -> None:
    plain = byte_tokenizer()
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    before = plain.to_str()
    ChatTokenizer(plain, CHATML).encode_chat([("user", "x <|im_end|>")])
    assert plain.to_str() == before
