"""More than 100,000 messages that nobody should send: each is refused, or read as safetensors reads it."""

from __future__ import annotations

import json
import math
import re
import struct
import tracemalloc
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from transom.errors import LinkRefusedError
from transom.link.codec import MAX_HEADER_BYTES, Limits, decode, encode, peek
from transom.link.message import Header, Step

EACH = 12_000
HEADER = Header("job", "run", "a", 7, Step(2, 30, "backward", 1, "test"))
TENSORS = {"x": torch.arange(6.0).reshape(2, 3), "ids": torch.tensor([3, -4]), "ok": torch.tensor([True])}
FLOATS = ("fp32", "bf16", "fp8", "int8")
GOOD = tuple(encode(HEADER, TENSORS, wire) for wire in FLOATS)
JUNK: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 8, 1.0, 1.5, 2**31, 2**53, 2**60, 2**63, 2**64, -(2**63), 10**40),
    *(
        "",
        "F32",
        "I8",
        "BOOL",
        "F64",
        "1",
        "-1",
        "01",
        "1e3",
        "\u0661",
        "\ud800",
        "\0",
        "a/b",
        "a\n",
        "x" * 300,
    ),
    *([], {}, [[]], [0], [0, 0], [0, 8], [8, 0], [2**60] * 8, [0, 2**60], [1] * 9, ["0", "4"], [True, True]),
    *({"dtype": "F32"}, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, float("nan"), float("inf")),
)
JSON_LETTERS = b'{}[]",:0123456789-+.eEaFIBx\\ \n\0\xff'
Mutation = Callable[[Random, bytes], bytes]


def split(data: bytes) -> tuple[bytes, bytes]:
    """The JSON and what follows it."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], data[end:]


def joined(text: bytes, body: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + body


def flipped(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(random: Random, data: bytes) -> bytes:
    start = random.randrange(len(data))
    return data[:start] + (data[random.randrange(start, len(data)) :] if random.random() < 0.5 else b"")


def grown(random: Random, data: bytes) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + random.randbytes(random.randint(1, 9)) + data[place:]


def edited(random: Random, data: bytes) -> bytes:
    """Other characters in the JSON, of which the length is right again."""
    text, body = split(data)
    changed = bytearray(text)
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(changed))
        changed[place : place + random.randint(0, 2)] = random.choices(JSON_LETTERS, k=random.randint(0, 2))
    return joined(bytes(changed), body)


def confused(random: Random, data: bytes) -> bytes:
    """A value of the JSON, at any depth, is another one."""
    text, body = split(data)
    parts = json.loads(text)
    for _ in range(random.randint(1, 2)):
        node = parts
        while True:
            key = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if isinstance(node[key], dict | list) and node[key] and random.random() < 0.8:
                node = node[key]
            else:
                break
        node[key] = deepcopy(random.choice(JUNK))
    return joined(json.dumps(parts).encode(), body)


def moved(random: Random, data: bytes) -> bytes:
    """Places that overlap, leave gaps, run backwards or beyond the end; shapes that claim to fit them."""
    text, body = split(data)
    parts = json.loads(text)
    part = parts[random.choice([name for name in parts if name != "__metadata__"])]
    places = [0, 1, 2, 4, 8, 16, len(body), len(body) + 8, 2**32, 2**60, -4, -8]
    part["data_offsets"] = [random.choice(places), random.choice(places)]
    if random.random() < 0.5:
        part["shape"] = [abs(part["data_offsets"][1] - part["data_offsets"][0])]
    if random.random() < 0.5:
        part["dtype"] = random.choice(["U8", "BOOL", "F32", "F8_E4M3", "I8"])
    return joined(json.dumps(parts).encode(), body)


def doubled(random: Random, data: bytes) -> bytes:
    """A member of an object stands twice, as it is or with another value."""
    text, body = split(data)
    member = random.choice(list(re.finditer(rb'"[a-z_.]+":("[^"]*"|\[[^]]*\]|\{[^{}]*\})', text)))
    again = member[0] if random.random() < 0.5 else member[0].replace(b"0", b"1").replace(b"a", b"b", 1)
    return joined(text[: member.end()] + b"," + again + text[member.end() :], body)


def nested(random: Random, data: bytes) -> bytes:
    """Brackets in brackets in the place of a value, closed or not."""
    text, body = split(data)
    depth = random.choice([1, 2, 10, 100, 1_500])
    opening, closing = random.choice([(b"[", b"]"), (b'{"a":', b"}")])
    value = random.choice(list(re.finditer(rb'(?<=:)("[^"]*"|\[[^]]*\]|\{)', text)))
    deep = opening * depth + b"1" + closing * (depth if random.random() < 0.7 else 0)
    return joined(text[: value.start()] + deep + text[value.end() :], body)


def crossed(random: Random, data: bytes) -> bytes:
    """The JSON of one message, the tensors of another, a length of neither."""
    text, _ = split(data)
    _, body = split(random.choice(GOOD))
    length = random.choice(
        [0, 1, len(text) - 1, len(text), len(text) + 1, 2**16, 2**16 + 1, 2**63, 2**64 - 1]
    )
    return length.to_bytes(8, "little") + text + body[random.randrange(3) :]


MUTATIONS: tuple[Mutation, ...] = (*(flipped, cut, grown, edited, confused, moved, doubled, nested, crossed),)


def is_taken(data: bytes) -> bool:
    """Whether a message is read. If it is, then as safetensors reads it; if not, by the one error."""
    try:
        header, tensors = decode(data)
    except LinkRefusedError:
        return False
    assert peek(data) == header
    theirs = load(data)
    assert tensors.keys() == {name for name in theirs if not name.endswith(".scale")}
    for name, got in tensors.items():
        assert got.shape == theirs[name].shape
        if got.dtype == theirs[name].dtype:
            assert got.numpy().tobytes() == theirs[name].numpy().tobytes()
        assert bool(got.isfinite().all())
    return True


def test_there_are_enough_of_them() -> None:
    assert EACH * len(MUTATIONS) >= 100_000
    assert all(map(is_taken, GOOD))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_malformed_message_is_refused_or_read_the_same(mutation: Mutation) -> None:
    random = Random(mutation.__name__)
    taken = sum(is_taken(mutation(random, GOOD[number % len(GOOD)])) for number in range(EACH))
    assert taken < EACH  # many flips hit values, which then are other values
    if mutation in (cut, doubled, nested):
        assert taken <= EACH // 100  # only what cuts nothing


def described(size: int = 4, **changed: Any) -> dict[str, Any]:
    """What a header says of the one tensor in a message of `size` bytes."""
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, size]} | changed


def made(body: bytes, **parts: Any) -> bytes:
    """A message with a true header."""
    known = {"__metadata__": json.loads(split(GOOD[0])[0])["__metadata__"]}
    return joined(json.dumps(known | parts).encode(), body)


ONE = struct.pack("<f", 1.0)
EIGHT_BITS = {"x": described(2, dtype="I8", shape=[1, 2]), "x.scale": described(data_offsets=[2, 6])}


def test_hand_made_messages_are_read() -> None:
    """Those from which the next test departs."""
    assert is_taken(made(ONE, x=described()))
    assert is_taken(made(b"\1\2" + ONE, **EIGHT_BITS))
    assert is_taken(made(b"\0\1", x=described(2, dtype="BOOL", shape=[2])))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        *((made(struct.pack("<f", bad), x=described()), "not finite") for bad in (math.nan, math.inf)),
        (made(b"\1\2" + struct.pack("<f", math.nan), **EIGHT_BITS), "not finite"),
        (made(b"\1\x7f" + struct.pack("<f", 3e38), **EIGHT_BITS), "not finite"),
        (made(b"\x7f\x7f" + ONE, **EIGHT_BITS | {"x": described(2, dtype="F8_E4M3", shape=[2])}), "scales"),
        (made(b"\1\2" + ONE, **EIGHT_BITS | {"x": described(2, dtype="I8", shape=[2])}), "scales"),
        (made(b"\1\2", x=described(2, dtype="I8", shape=[2])), "scales"),
        (made(ONE * 2, **{"x": described(), "x.scale": described(data_offsets=[4, 8])}), "scales"),
        (made(ONE, **{"x.scale": described()}), "scales"),
        (
            made(b"\1\2" + ONE, **EIGHT_BITS | {"x.scale": described(dtype="I32", data_offsets=[2, 6])}),
            "scales",
        ),
        (made(b"\0\2\1", x=described(3, dtype="BOOL", shape=[3])), "truth value"),
        (made(ONE, x=described(shape=[2])), "those of its shape"),
        (made(ONE, x=described(shape=[-1])), "whole numbers"),
        (made(ONE, x=described(shape=[True])), "whole numbers"),
        (made(ONE, x=described(shape=[1.0])), "whole numbers"),
        (made(ONE, x=described(shape=[1] * 9)), "dimensions"),
        (made(ONE, x=described(dtype="F64")), "type is none"),
        (made(ONE, x=described(dtype=["F32"])), "type is none"),
        (made(ONE, x=described(more=1)), "not described"),
        (made(ONE, x=described(), y=described()), "overlap"),
        (made(ONE * 3, x=described(), y=described(data_offsets=[8, 12])), "gap"),
        (made(ONE * 2, x=described()), "8 are there"),
        (made(b"", x=described()), "0 are there"),
        (made(ONE, **{"a b": described()}), "name"),
        (made(b"", **{f"x{n}": described(0, shape=[0]) for n in range(65)}), "65 tensors"),
        (made(b"", **{f"x{n}": described(0, shape=[0]) for n in range(129)}), "129 tensors"),
        (made(ONE, x=described(), __metadata__={}), "its job"),
        (made(ONE, x=described(), __metadata__=None), "its job"),
        (joined(split(made(b""))[0] + b" " * MAX_HEADER_BYTES, b""), "65536 are the most"),
        (joined(b"[1]", b""), "no object"),
        (b"\1", "ends after 1 bytes"),
    ],
)
def test_one_thing_wrong_is_one_too_many(data: bytes, why: str) -> None:
    with pytest.raises(LinkRefusedError, match=why):
        decode(data)


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    assert not is_taken(data)
    assert not is_taken(joined(data, b""))
    with pytest.raises(LinkRefusedError):
        peek(data)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(JUNK).map(deepcopy),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
part = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "I8", "I64", "BOOL"]) | plain,
        "shape": st.lists(st.integers(0, 4) | st.sampled_from([2**31, 2**60]), max_size=9) | plain,
        "data_offsets": st.lists(st.integers(0, 32), min_size=2, max_size=2) | plain,
    }
)


@settings(max_examples=250)
@given(
    st.dictionaries(st.sampled_from(["x", "x.scale", "y", "__metadata__", ""]), part | plain, max_size=3),
    st.binary(max_size=40),
    st.booleans(),
)
def test_any_json_is_refused_or_read_the_same(parts: dict[str, Any], body: bytes, own: bool) -> None:
    parts = {name: part for name, part in parts.items() if name != "__metadata__" or not own}
    is_taken(made(body, **parts))


def test_every_single_bit_of_a_header_counts() -> None:
    """A flipped bit before the tensors is refused, or changes a name or a number that is then another one."""
    data = GOOD[3]
    start = len(data) - len(split(data)[1])
    original = decode(data)
    for bit in range(8 * start):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        if is_taken(bytes(changed)):
            header, tensors = decode(bytes(changed))
            kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
            before = {name: (tensor.dtype, tensor.shape) for name, tensor in original[1].items()}
            assert (header, kinds) != (original[0], before) or changed[bit // 8] in b"\t\n\r \0"


def of_process(what: str) -> int:
    """Bytes of this process. VmPeak: the most it ever asked for, also what it never touched; VmRSS: what it
    holds; VmHWM: the most of that since the last reset."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{what}:\s+(\d+)", status)[1])  # type: ignore[index]


def claims() -> list[bytes]:
    """Small messages that speak of terabytes, and headers that grow most when they are read."""
    text, body = split(GOOD[0])
    huge = [
        joined(text.replace(b"[2,3]", shape).replace(b"[16,40]", place), body)
        for shape in (b"[2,1099511627776]", b"[1152921504606846976]", b"[0,1152921504606846976]")
        for place in (b"[16,40]", b"[16,8796093022224]", b"[0,4611686018427387904]", b"[16,16]")
    ] + [joined(text.replace(b"[16,40]", b"[16,8796093022224]"), body)]
    fill = [b"[],", b"{},", b"0,", b'"",', b"[[[]]],", b"9" * 4000 + b",", b'{"a":1},', b"1.5,"]
    bombs = [b'{"a":[' + one * (65_000 // len(one)) + b"0]}" for one in fill]
    names = b'{"__metadata__":{' + b",".join(b'"%x":{}' % number for number in range(7_000)) + b"}}"
    return [*huge, *(joined(bomb, b"") for bomb in (*bombs, names))]


def most_memory(data: bytes) -> int:
    """Bytes that Python held at most while a message was read or refused."""
    tracemalloc.start()
    try:
        is_taken(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_a_message_claims_costs_no_memory() -> None:
    before = of_process("VmPeak")
    for data in claims():
        assert most_memory(data) <= 64 * min(len(data), MAX_HEADER_BYTES) + 2**14
        with pytest.raises(LinkRefusedError):
            decode(data)
    for number, mutation in enumerate(MUTATIONS * 50):
        data = mutation(Random(number), GOOD[number % len(GOOD)])
        assert most_memory(data) <= 64 * len(data) + 2**14
    assert of_process("VmPeak") - before < 2**26


@pytest.mark.parametrize("wire", FLOATS)
def test_a_true_message_costs_a_few_times_its_size(wire: Any) -> None:
    data = encode(HEADER, {"x": torch.ones(2048, 2048)}, wire)
    decode(data)
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what is held now
    before = of_process("VmRSS")
    decode(data)
    assert of_process("VmHWM") - before < 10 * len(data)


def test_a_message_that_is_too_large_is_not_even_read() -> None:
    with pytest.raises(LinkRefusedError, match="100000000 bytes, and 1000 are the most"):
        decode(bytes(10**8), Limits(max_bytes=1_000))
