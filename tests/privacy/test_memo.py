"""The memo returns a place's release only for the same word at the same place, and forgets the oldest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.privacy.memo import Message, PlaceMemo, may_collide


def release(
    memo: PlaceMemo, position: int, word: str, released: str, session: str = "s", message: int = 0
) -> None:
    """One request whose only drawn word is this one."""
    digest = memo.digester(session, message)(position, word)
    memo.keep(Message(session, message, {position: (digest, released)}))


def recall(memo: PlaceMemo, session: str, message: int, position: int, word: str) -> str | None:
    digest, released = memo.recall(session, message).get(position, (b"", ""))
    return released if digest == memo.digester(session, message)(position, word) else None


def test_same_word_at_same_place_is_recalled() -> None:
    memo = PlaceMemo()
    release(memo, 3, "cat", "dog")
    assert recall(memo, "s", 0, 3, "cat") == "dog"
    assert memo.knows("s")
    assert not memo.knows("t")


@pytest.mark.parametrize(
    ("session", "message", "position", "word"),
    [("t", 0, 3, "cat"), ("s", 1, 3, "cat"), ("s", 0, 4, "cat"), ("s", 0, 3, "cats"), ("", 0, 3, "cat")],
)
def test_anything_different_is_not_recalled(session: str, message: int, position: int, word: str) -> None:
    memo = PlaceMemo()
    release(memo, 3, "cat", "dog")
    assert recall(memo, session, message, position, word) is None


def test_place_parts_cannot_be_shifted_into_each_other() -> None:
    memo = PlaceMemo()
    release(memo, 23, "cat", "dog", session="s", message=1)
    assert recall(memo, "s", 12, 3, "cat") is None
    assert recall(memo, "s1", 2, 3, "cat") is None
    digests = {memo.digester("s", m)(p, w) for m, p, w in ((1, 1, "1 a"), (1, 11, "a"), (11, 1, "a"))}
    assert len(digests) == 3


def test_edited_place_forgets_its_earlier_word() -> None:
    memo = PlaceMemo()
    release(memo, 0, "cat", "dog")
    release(memo, 0, "red", "blue")
    assert recall(memo, "s", 0, 0, "red") == "blue"
    assert recall(memo, "s", 0, 0, "cat") is None


def test_a_session_holds_its_latest_request_and_nothing_else() -> None:
    """A place that held no drawn word in the latest request, in whatever message, has forgotten its draw."""
    memo = PlaceMemo()
    digests = [memo.digester("s", m) for m in range(3)]
    memo.keep(
        *(
            Message("s", m, {i: (digest(i, "cat"), "dog") for i in range(3)})
            for m, digest in enumerate(digests)
        )
    )
    memo.keep(Message("s", 0, {1: (digests[0](1, "cat"), "dog")}), None, Message("s", 1, {}))
    assert [sorted(memo.recall("s", m)) for m in range(3)] == [[1], [], []]
    assert memo.knows("s")


def test_a_request_is_not_recalled_before_it_is_kept() -> None:
    memo = PlaceMemo()
    message = Message("s", 0, {0: (memo.digester("s", 0)(0, "cat"), "dog")})
    assert recall(memo, "s", 0, 0, "cat") is None
    memo.keep(message)
    assert recall(memo, "s", 0, 0, "cat") == "dog"


def test_oldest_session_goes_first_and_use_counts() -> None:
    memo = PlaceMemo(capacity=6)
    release(memo, 0, "a", "x", session="a")
    release(memo, 0, "b", "y", session="b")
    assert recall(memo, "a", 0, 0, "a") == "x"
    release(memo, 0, "c", "z", session="c")
    assert [recall(memo, name, 0, 0, name) for name in "abc"] == ["x", None, "z"]
    assert "2 sessions, 6 of 6" in repr(memo)


def test_a_session_is_forgotten_after_its_lifetime() -> None:
    now_s = [0.0]
    memo = PlaceMemo(lifetime_s=10.0, clock=lambda: now_s[0])
    release(memo, 0, "cat", "dog")
    now_s[0] = 9.9
    assert recall(memo, "s", 0, 0, "cat") == "dog"
    now_s[0] = 10.0
    assert recall(memo, "s", 0, 0, "cat") is None
    assert not memo.knows("s")
    release(memo, 0, "cat", "dog", session="t")
    assert "1 sessions" in repr(memo)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 30)), max_size=30), st.integers(1, 40))
def test_places_never_pass_the_capacity(requests: list[tuple[str, int]], capacity: int) -> None:
    memo = PlaceMemo(capacity)
    for session, places in requests:
        memo.keep(Message(session, 0, dict.fromkeys(range(places), (b"", "x"))))
        kept = sum(1 + len(memo.recall(name, 0)) for name in "abcdef" if memo.knows(name))
        assert kept <= capacity
        assert memo.knows(session) == (places + 2 <= capacity if places else True)


def test_answers_are_weighed_and_the_oldest_make_room() -> None:
    memo = PlaceMemo(answer_bytes=40_000)
    points = {name: memo.link(b"", "user", name) for name in "abcdef"}

    def known(names: str) -> list[bool]:
        return [memo.recall_answer(points[name], name) is not None for name in names]

    for name in "abc":
        memo.remember_answer(points[name], name, name * 10_000)
    assert known("abc") == [True, True, True]
    memo.remember_answer(points["d"], "d", "d" * 25_000)
    assert known("abcd") == [False, False, True, True]
    memo.remember_answer(points["e"], "e", "e" * 50_000)  # no room for it, and it takes none from the others
    assert known("abcde") == [False, False, True, True, False]
    for _ in range(10_000):
        memo.remember_answer(points["f"], "f", "f")  # the same one weighs once
    assert known("cdf") == [True, True, True]


def test_answers_come_back_only_when_resent_unchanged() -> None:
    memo = PlaceMemo()
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


def test_private_words_are_not_in_memory() -> None:
    memo = PlaceMemo()
    release(memo, 0, "zyzzyva", "dog")
    memo.remember_answer(memo.link(b"", "user", "quetzal"), "Dear quetzal", "Dear [TERM_1]")
    held = repr(memo.__dict__)
    assert "dog" in held
    assert "zyzzyva" not in held
    assert "quetzal" not in held


def test_keys_differ_between_memos() -> None:
    first, second = (PlaceMemo().digester("s", 0)(0, "cat") for _ in range(2))
    assert first != second


def test_equal_words_have_unequal_digests_at_different_places() -> None:
    digest = PlaceMemo().digester("s", 0)
    assert digest(0, "cat") != digest(1, "cat")


def test_threads_may_share_a_memo() -> None:
    memo = PlaceMemo(capacity=500)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: release(memo, 0, "cat", str(i), session=str(i)), range(2000)))
    assert "166 sessions, 498 of 500" in repr(memo)


def test_capacity_must_be_positive() -> None:
    with pytest.raises(ValueError, match="got 0"):
        PlaceMemo(0)


def test_a_request_without_words_empties_its_session() -> None:
    memo = PlaceMemo()
    release(memo, 0, "cat", "dog")
    memo.keep(session="s")
    assert recall(memo, "s", 0, 0, "cat") is None
    assert memo.knows("s")


def test_messages_without_words_take_no_room() -> None:
    memo = PlaceMemo(capacity=10)
    memo.keep(*(Message("s", index, {}) for index in range(4096)))
    assert "1 sessions, 1 of 10" in repr(memo)


HIDDEN = st.dictionaries(st.sampled_from(["[NAME_1]", "[NAME_2]", "[ID_1]"]), st.text("ab[", max_size=3))
HOST = st.lists(st.sampled_from(["a", "b", "[NAME_1]", "[NAME_2]", "[ID_1]", "[", "]"]), max_size=6).map(
    "".join
)


@given(HOST, HOST, HIDDEN, st.integers(0, 12))
def test_whatever_is_delivered_alike_was_seen_to_be_able_to(
    one: str, other: str, values: dict[str, str], cut: int
) -> None:
    def delivered(text: str) -> str:
        for placeholder in values:
            text = text.replace(placeholder, f"\0{placeholder[1:-1]}\0")
        for placeholder, value in values.items():
            text = text.replace(f"\0{placeholder[1:-1]}\0", value)
        return text

    alike = delivered(one) == delivered(other) or delivered(one)[:cut] == delivered(other)
    assert may_collide(one, other) or not alike


def test_of_colliding_answers_none_comes_back_whatever_the_value_is() -> None:
    """A host that names a candidate beside a placeholder gets the same history, right or wrong."""
    for delivered in ("Marguerite", "Eleanor"):
        memo = PlaceMemo()
        here = memo.link(b"", "user", "hello")
        memo.remember_answer(here, delivered, "[NAME_1]")
        assert memo.recall_answer(here, delivered) == "[NAME_1]"
        memo.remember_answer(here, "Marguerite", "Marguerite")
        assert memo.recall_answer(here, delivered) is None
        assert memo.recall_answer(here, "Marguerite") is None


def test_answers_that_differ_in_their_own_words_come_back() -> None:
    memo = PlaceMemo()
    here = memo.link(b"", "user", "hello")
    memo.remember_answer(here, "Dear Ada, yes.", "Dear [NAME_1], yes.")
    memo.remember_answer(here, "Dear Ada, no.", "Dear [NAME_1], no.")
    assert memo.recall_answer(here, "Dear Ada, yes.") == "Dear [NAME_1], yes."
    assert memo.recall_answer(here, "Dear Ada, no.") == "Dear [NAME_1], no."
