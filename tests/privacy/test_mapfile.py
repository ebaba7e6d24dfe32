"""The map brings a text back to the byte, for the holder of the key, and only whole and unaltered."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import MisconfiguredError
from transom.privacy.mapfile import CHUNK_BYTES, MapWriter, make_key, open_map, read_key
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import Policy
from transom.privacy.recordmap import RecordMap
from transom.privacy.sanitize import Sanitizer

KEY, HASH = bytes(range(32)), sha256(b"Dear [PERSON_1]\n").hexdigest()


def text_map(i: int = 0, size: int = 1) -> RecordMap:
    return RecordMap.of(
        [[("Dear ", "Dear "), ("[PERSON_1]", f"Quentin {i}" * size)]], {"[PERSON_1]": f"Quentin {i}" * size}
    )


def written(path: Path, count: int = 3, size: int = 1) -> Path:
    writer = MapWriter(path, KEY)
    for i in range(count):
        writer.add(text_map(i, size))
    writer.close(HASH)
    return path


PIECES = st.lists(
    st.tuples(
        st.sampled_from(["pass", "draw", "person", "identifier"]), st.text("ab[PERSON_1]\ud800", max_size=10)
    )
)


@given(PIECES)
def test_an_unmodified_text_comes_back_to_the_byte(parts: list[tuple[str, str]]) -> None:
    placeholders, pieces = Placeholders(), []
    for action, source in parts:
        output = {"pass": source, "draw": "cat"}.get(action) or placeholders.hide("person", source or "x")
        pieces.append((output, source if action != "person" else source or "x"))
    made = RecordMap.from_line(RecordMap.of([pieces], placeholders.values).to_line())
    assert made.restore("".join(output for output, _ in pieces)) == "".join(source for _, source in pieces)


def test_in_another_text_the_placeholders_come_back() -> None:
    made = RecordMap.of(
        [[("[PERSON_1]", "Ada"), (" ", " "), ("cat", "dog")]], {"[PERSON_1]": "Ada", "[PERSON_2]": "Bob"}
    )
    assert made.restore("[PERSON_1] cat") == "Ada dog"
    assert made.restore("[Person_1]'s cat, [PERSON_2]") == "Ada's cat, Bob"


def test_texts_that_left_alike_come_back_in_their_places() -> None:
    made = RecordMap.of([[("cat", "dog")], [("cat", "cow")]], {})
    assert [made.restore("cat", place) for place in (0, 1, 2)] == ["dog", "cow", "dog"]


@given(st.lists(st.sampled_from(["cat ", "Ada", "[NAME_1]", " 4 711", "the red", "\n", "é"])).map("".join))
def test_what_a_sanitiser_makes_comes_back(tiny_policy: Policy, text: str) -> None:
    placeholders = Placeholders()
    made = Sanitizer(tiny_policy).sanitize(text, placeholders=placeholders)
    pieces = [(piece.output, piece.source) for piece in made.pieces]
    restored = RecordMap.of([pieces], placeholders.values).restore(made.text)
    assert restored == "".join(source for _, source in pieces)


@pytest.mark.parametrize(("count", "size"), [(0, 1), (3, 1), (5000, 1), (2, CHUNK_BYTES)])
def test_a_map_holds_its_texts_in_order(tmp_path: Path, count: int, size: int) -> None:
    found = open_map(written(tmp_path / "map", count, size), KEY)
    assert (found.records, found.sha256) == (count, HASH)
    assert list(found) == [text_map(i, size) for i in range(count)]


def test_nothing_private_is_in_the_file_or_open_to_others(tmp_path: Path) -> None:
    path = written(tmp_path / "map")
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"Quentin" not in path.read_bytes()
    assert "Quentin" not in repr(text_map()) + repr(open_map(path, KEY))
    assert written(tmp_path / "other").read_bytes()[100:] != path.read_bytes()[100:]
    with pytest.raises(MisconfiguredError, match="exists"):
        MapWriter(path, KEY)


def test_a_map_of_another_file_is_refused_by_both_hashes(tmp_path: Path) -> None:
    path, one, other = written(tmp_path / "map"), tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"Dear [PERSON_1]\n")
    other.write_bytes(b"Dear [PERSON_2]\n")
    assert open_map(path, KEY, one).records == 3
    with pytest.raises(MisconfiguredError, match=HASH) as error:
        open_map(path, KEY, other)
    assert sha256(other.read_bytes()).hexdigest() in str(error.value)


def test_another_key_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match=r"made with the key [0-9a-f]{16}.*the key [0-9a-f]{16}"):
        open_map(written(tmp_path / "map"), bytes(32))


@pytest.mark.parametrize("place", [0, 19, 40, 60, 61, 64, 70, 100, -1, -20, -80])
def test_no_byte_can_be_altered(tmp_path: Path, place: int) -> None:
    path = written(tmp_path / "map")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(MisconfiguredError):
        open_map(path, KEY)


def chunks(data: bytes) -> list[bytes]:
    found, position = [], 60
    while position < len(data):
        size = 5 + int.from_bytes(data[position + 1 : position + 5], "big")
        found.append(data[position : position + size])
        position += size
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts[:-1], lambda parts: parts[1:], lambda parts: [parts[1], parts[0], *parts[2:]],
        lambda parts: [parts[0], *parts], lambda parts: [*parts, parts[-1]],
        lambda parts: [*parts[:1], parts[-1]],
        lambda parts: [*parts[:-1], b"\0" + parts[-1][1:]], lambda parts: [b"\1" + parts[0][1:], *parts[1:]],
        lambda parts: [*parts, b"x"], lambda parts: [], lambda parts: [*parts[:-1], parts[-1][:-1]],
        lambda parts: [parts[0][:1] + b"\xff" * 4 + parts[0][5:], *parts[1:]],
    ],
)  # fmt: skip
def test_no_chunk_can_be_cut_moved_repeated_or_renamed(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    path = written(tmp_path / "map", 5000)
    data = path.read_bytes()
    parts = chunks(data)
    assert len(parts) > 3
    path.write_bytes(data[:60] + b"".join(change(parts)))
    with pytest.raises(MisconfiguredError, match=r"altered|cut short"):
        open_map(path, KEY)


def test_chunks_of_another_file_do_not_fit(tmp_path: Path) -> None:
    one, other = (written(tmp_path / name).read_bytes() for name in ("one", "other"))
    (tmp_path / "mixed").write_bytes(one[:60] + other[60:])
    with pytest.raises(MisconfiguredError, match="altered"):
        open_map(tmp_path / "mixed", KEY)


def test_a_broken_off_map_is_gone_on_with_where_it_was_flushed(tmp_path: Path) -> None:
    path = tmp_path / "map"
    with MapWriter(path, KEY) as writer:
        for i in range(2000):
            writer.add(text_map(i))
        writer.flush()
        for i in range(3000):
            writer.add(text_map(-i))
    with pytest.raises(MisconfiguredError, match="cut short"):
        open_map(path, KEY)
    for texts in (1999, 2001, 10_000):
        with pytest.raises(MisconfiguredError, match=r"not left after|cut short"):
            MapWriter.resume(path, KEY, texts)
    with pytest.raises(MisconfiguredError, match="made with the key"):
        MapWriter.resume(path, bytes(32), 2000)
    for end in (2500, 3000):  # the second time it was finished already, and then is not
        writer = MapWriter.resume(path, KEY, 2000)
        for i in range(2000, end):
            writer.add(text_map(i))
        writer.close(HASH)
        assert list(open_map(path, KEY)) == [text_map(i) for i in range(end)]
    with pytest.raises(MisconfiguredError, match="not left after 0 records"):  # a finished map is kept
        MapWriter.resume(path, KEY, 0)


def test_memory_stays_flat(tmp_path: Path) -> None:
    def peak_bytes(count: int) -> int:
        tracemalloc.start()
        path = written(tmp_path / str(count), count)
        assert sum(1 for _ in open_map(path, KEY)) == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    few = peak_bytes(2000)
    assert peak_bytes(12_000) < few * 1.5


def test_a_key_is_private_and_new(tmp_path: Path) -> None:
    path = tmp_path / "key"
    make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(read_key(path)) == 32
    with pytest.raises(MisconfiguredError, match="exists"):
        make_key(path)
    make_key(tmp_path / "other")
    assert read_key(tmp_path / "other") != read_key(path)
    path.chmod(0o644)
    with pytest.raises(MisconfiguredError, match="others may read"):
        read_key(path)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff", b'{"format": "transom-words-key", "version": 1}']
)
def test_what_is_no_key_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(data)
    with pytest.raises(MisconfiguredError, match="not a key file"):
        read_key(path)


@pytest.mark.parametrize("data", [b"", b"transom-words-map/1\n", b"x" * 100])
def test_what_is_no_map_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "map").write_bytes(data)
    with pytest.raises(MisconfiguredError, match="not a map"):
        open_map(tmp_path / "map", KEY)
    with pytest.raises(MisconfiguredError, match="cannot read"):
        open_map(tmp_path / "absent", KEY)
    with pytest.raises(MisconfiguredError, match="cannot write"):
        MapWriter(tmp_path / "absent" / "map", KEY)
