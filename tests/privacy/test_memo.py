"""The memo returns a place's release only for the same word at the same place, and forgets the oldest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from transom.privacy.memo import PlaceMemo


def release(
    memo: PlaceMemo, position: int, word: str, released: str, session: str = "s", message: int = 0
) -> None:
    memo.keep([memo.draw(session, message, position, word, released)])


def test_same_word_at_same_place_is_recalled() -> None:
    memo = PlaceMemo()
    release(memo, 3, "cat", "dog")
    assert memo.recall("s", 0, 3, "cat") == "dog"


@pytest.mark.parametrize(
    ("session", "message", "position", "word"),
    [("t", 0, 3, "cat"), ("s", 1, 3, "cat"), ("s", 0, 4, "cat"), ("s", 0, 3, "cats"), ("", 0, 3, "cat")],
)
def test_anything_different_is_not_recalled(session: str, message: int, position: int, word: str) -> None:
    memo = PlaceMemo()
    release(memo, 3, "cat", "dog")
    assert memo.recall(session, message, position, word) is None


def test_place_parts_cannot_be_shifted_into_each_other() -> None:
    memo = PlaceMemo()
    release(memo, 23, "cat", "dog", session="s", message=1)
    assert memo.recall("s", 12, 3, "cat") is None
    assert memo.recall("s1", 2, 3, "cat") is None


def test_edited_place_forgets_its_earlier_word() -> None:
    memo = PlaceMemo()
    release(memo, 0, "cat", "dog")
    release(memo, 0, "red", "blue")
    assert memo.recall("s", 0, 0, "red") == "blue"
    assert memo.recall("s", 0, 0, "cat") is None


def test_a_draw_is_not_recalled_before_it_is_kept() -> None:
    memo = PlaceMemo()
    draw = memo.draw("s", 0, 0, "cat", "dog")
    assert memo.recall("s", 0, 0, "cat") is None
    memo.keep([draw])
    assert memo.recall("s", 0, 0, "cat") == "dog"


def test_oldest_place_goes_first_and_use_counts() -> None:
    memo = PlaceMemo(capacity=2)
    release(memo, 0, "a", "x")
    release(memo, 1, "b", "y")
    assert memo.recall("s", 0, 0, "a") == "x"
    release(memo, 2, "c", "z")
    assert [memo.recall("s", 0, i, word) for i, word in enumerate("abc")] == ["x", None, "z"]
    assert len(memo) == 2


def test_answers_come_back_only_when_resent_unchanged() -> None:
    memo = PlaceMemo(capacity=2)
    here = memo.link(memo.link(b"", "account", "a"), "user", "hello")
    memo.remember_answer(here, "Dear Ada", "Dear [NAME_1]")
    assert memo.recall_answer(here, "Dear Ada") == "Dear [NAME_1]"
    assert memo.recall_answer(here, "Dear Ada!") is None
    elsewhere = [
        memo.link(memo.link(b"", "account", "b"), "user", "hello"),
        memo.link(memo.link(b"", "account", "a"), "user", "hello!"),
        memo.link(memo.link(b"", "account", "a"), "system", "hello"),
    ]
    assert [memo.recall_answer(before, "Dear Ada") for before in elsewhere] == [None, None, None]
    for before in elsewhere[:2]:
        memo.remember_answer(before, "x", "y")
    assert memo.recall_answer(here, "Dear Ada") is None


def test_private_words_are_not_in_memory() -> None:
    memo = PlaceMemo()
    release(memo, 0, "zyzzyva", "dog")
    memo.remember_answer(memo.link(b"", "user", "quetzal"), "Dear quetzal", "Dear [TERM_1]")
    held = repr(memo.__dict__)
    assert "dog" in held
    assert "zyzzyva" not in held
    assert "quetzal" not in held


def test_keys_differ_between_memos() -> None:
    first, second = (PlaceMemo().draw("s", 0, 0, "cat", "dog") for _ in range(2))
    assert first.place != second.place
    assert first.word != second.word


def test_equal_words_have_unequal_digests_at_different_places() -> None:
    memo = PlaceMemo()
    assert memo.draw("s", 0, 0, "cat", "x").word != memo.draw("s", 0, 1, "cat", "x").word


def test_threads_may_share_a_memo() -> None:
    memo = PlaceMemo(capacity=500)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: release(memo, i, "cat", str(i)), range(2000)))
    assert len(memo) == 500


def test_capacity_must_be_positive() -> None:
    with pytest.raises(ValueError, match="got 0"):
        PlaceMemo(0)
