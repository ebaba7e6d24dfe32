"""Heads of GGUF files: what is whole is read, what is not is a project error, in bounded work and memory."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.checkpoint.ggufs import V, draft_of, model_of
from tests.checkpoint.test_gguf_models import IDS, assert_close, next_of
from tests.llamacpp import LlamaCppError, llamacpp

from transom.checkpoint import gguf
from transom.checkpoint.gguf import read_gguf_head
from transom.checkpoint.gguf_config import gguf_model
from transom.checkpoint.gguf_weights import gguf_weights
from transom.checkpoint.load import load
from transom.checkpoint.source import Source
from transom.errors import CheckpointError, NotYetError

Key = tuple[str, int, bytes]
U32, F32, STRING, ARRAY, U64, BOOL = 4, 6, 8, 9, 10, 7


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, raw: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + raw


def tensor(name: str, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    sides = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sides + struct.pack("<IQ", kind, offset)


def made(
    path: Path,
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    counts: tuple[int, int] | None = None,
    version: int = 3,
    magic: bytes = b"GGUF",
    data_bytes: int = 64,
) -> Path:
    """A file of these entries, its data aligned to 32 bytes."""
    tensor_count, key_count = counts or (len(tensors), len(keys))
    head = magic + struct.pack("<IQQ", version, tensor_count, key_count) + b"".join(keys + tensors)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + b"\1" * data_bytes)
    return path


def test_keys_of_every_type_are_read(tmp_path: Path) -> None:
    codes = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
    keys = [key(f"k{kind}", kind, struct.pack("<" + code, 7)) for kind, code in codes.items()]
    keys += [key("yes", BOOL, b"\1"), key("word", STRING, text("ü"))]
    keys += [key("words", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text(""))]
    keys += [key("numbers", ARRAY, struct.pack("<IQ3f", F32, 3, 1.0, 2.0, 3.0))]
    keys += [key("truths", ARRAY, struct.pack("<IQ2B", BOOL, 2, 0, 1))]
    head = read_gguf_head(made(tmp_path / "m.gguf", tuple(keys), (tensor("t", (2, 3)),)))
    assert [head.metadata[f"k{kind}"] for kind in codes] == [7] * len(codes)
    assert head.metadata["yes"] is True
    assert (head.metadata["word"], head.metadata["words"]) == ("ü", ["a", ""])
    assert (head.metadata["numbers"], head.metadata["truths"]) == ([1.0, 2.0, 3.0], [False, True])
    (only,) = head.tensors
    assert (only.name, only.shape, only.size_bytes, only.offset_bytes % 32) == ("t", (2, 3), 24, 0)


BROKEN: dict[str, tuple[Callable[[Path], Path], type[Exception], str]] = {
    "nothing": (lambda p: overwritten(p, b""), CheckpointError, "0 bytes"),
    "no gguf": (lambda p: made(p, magic=b"GGML"), CheckpointError, "does not begin as one"),
    "version 1": (lambda p: made(p, version=1), NotYetError, "version 1"),
    "version 4": (lambda p: made(p, version=4), CheckpointError, "version 4"),
    "big-endian": (lambda p: made(p, version=3 << 24), NotYetError, "big-endian"),
    "2^60 keys": (lambda p: made(p, counts=(0, 2**60)), CheckpointError, "counts 1152921504606846976 keys"),
    "2^60 tensors": (lambda p: made(p, counts=(2**60, 0)), CheckpointError, "1152921504606846976 tensors"),
    "keys that do not fit": (lambda p: made(p, counts=(0, 100)), CheckpointError, "counts 100 keys"),
    "a string of 2^63": (
        lambda p: made(p, (struct.pack("<Q", 2**63) + b"a" * 32,)), CheckpointError,
        "9223372036854775808 bytes",
    ),
    "a string of the whole file": (
        lambda p: made(p, (key("a", STRING, struct.pack("<Q", 500)),)), CheckpointError,
        "string of 500 bytes",
    ),
    "text that is none": (
        lambda p: made(p, (key("a", STRING, struct.pack("<Q", 2) + b"\xff\xfe"),)), CheckpointError, "whole",
    ),
    "an array of 2^60": (
        lambda p: made(p, (key("a", ARRAY, struct.pack("<IQ", U32, 2**60)),)), CheckpointError, "items",
    ),
    "an array of arrays": (
        lambda p: made(p, (key("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 40),)), CheckpointError, "arrays",
    ),
    "a type of no kind": (lambda p: made(p, (key("a", 99, b"\0" * 8),)), CheckpointError, "whole"),
    "a truth of two": (lambda p: made(p, (key("a", BOOL, b"\2"),)), CheckpointError, "neither 0 nor 1"),
    "a key twice": (
        lambda p: made(p, (key("a", BOOL, b"\1"), key("a", BOOL, b"\0"))), CheckpointError, "key 'a' twice",
    ),
    "a tensor twice": (
        lambda p: made(p, (), (tensor("a"), tensor("a", offset=32))), CheckpointError, "tensor 'a' twice",
    ),
    "overlapping tensors": (
        lambda p: made(p, (), (tensor("a"), tensor("b"))), CheckpointError, "'b' starts at byte",
    ),
    "a gap": (
        lambda p: made(p, (), (tensor("a"), tensor("b", offset=64))), CheckpointError, "'b' starts at byte",
    ),
    "unaligned": (lambda p: made(p, (), (tensor("a", offset=4),)), CheckpointError, "'a' starts at byte"),
    "past the end": (lambda p: made(p, (), (tensor("a", (40,)),)), CheckpointError, "truncated"),
    "far away": (lambda p: made(p, (), (tensor("a", offset=2**63),)), CheckpointError, "'a' starts at byte"),
    "no dimension": (lambda p: made(p, (), (tensor("a", ()),)), CheckpointError, "0 dimensions"),
    "five dimensions": (lambda p: made(p, (), (tensor("a", (1,) * 5),)), CheckpointError, "5 dimensions"),
    "2^32 dimensions": (
        lambda p: made(p, (), (text("a") + b"\xff" * 32,)), CheckpointError, "4294967295 dimensions",
    ),
    "an empty side": (lambda p: made(p, (), (tensor("a", (4, 0)),)), CheckpointError, "impossible shape"),
    "an endless side": (lambda p: made(p, (), (tensor("a", (2**63, 2)),)), CheckpointError, "shape"),
    "sides that overflow": (
        lambda p: made(p, (), (tensor("a", (2**33, 2**33)),)), CheckpointError, "truncated",
    ),
    "an unknown type": (lambda p: made(p, (), (tensor("a", kind=4),)), CheckpointError, "ggml type 4"),
    "half a block": (lambda p: made(p, (), (tensor("a", (16,), 2),)), CheckpointError, "Q4_0 blocks"),
    "alignment 0": (lambda p: aligned(p, U32, struct.pack("<I", 0)), CheckpointError, "alignment"),
    "alignment 48": (lambda p: aligned(p, U32, struct.pack("<I", 48)), CheckpointError, "alignment"),
    "alignment of 2^40": (lambda p: aligned(p, U64, struct.pack("<Q", 2**40)), CheckpointError, "alignment"),
    "alignment in words": (lambda p: aligned(p, STRING, text("32")), CheckpointError, "alignment"),
    "alignment of a truth": (lambda p: aligned(p, BOOL, b"\1"), CheckpointError, "alignment"),
    "alignment of many": (
        lambda p: aligned(p, ARRAY, struct.pack("<IQI", U32, 1, 32)), CheckpointError, "alignment",
    ),
    "split, and not how": (
        lambda p: made(p, (key("split.count", U32, struct.pack("<I", 2)),)), CheckpointError, "is split",
    ),
}  # fmt: skip


def overwritten(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def aligned(path: Path, kind: int, raw: bytes) -> Path:
    return made(path, (key("general.alignment", kind, raw),), (tensor("a"),))


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_whole_is_refused_and_says_why(name: str, tmp_path: Path) -> None:
    write, error, words = BROKEN[name]
    with pytest.raises(error, match=words):
        read_gguf_head(write(tmp_path / "m.gguf"))


def test_a_larger_alignment_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    keys = (key("general.alignment", U32, struct.pack("<I", 128)),)
    entries = (tensor("a"), tensor("b", offset=128))
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 1) + b"".join(keys + entries)
    path.write_bytes(head + b"\0" * (-len(head) % 128) + b"\1" * 256)
    assert [t.offset_bytes % 128 for t in read_gguf_head(path).tensors] == [0, 0]


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1))
def test_a_file_cut_anywhere_is_refused(cut: float, whole_file: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("cut") / "m.gguf"
    path.write_bytes(whole_file[: int(cut * (len(whole_file) - 40))])  # at least 40 bytes less
    with pytest.raises(CheckpointError, match="not a whole GGUF"):
        load(path)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    model = model_of("llama", num_hidden_layers=1, intermediate_size=32)
    draft = draft_of(model)
    draft.keys["rope.scaling.factor"] = 2.0
    return draft.write(tmp_path_factory.mktemp("whole") / "m.gguf").read_bytes()


KEYS_BYTES = 600  # of the head: keys about the model


def mutated(raw: bytes, head_bytes: int, rng: random.Random) -> bytes:
    """One change of the head: bits, truncation, a field replaced, bytes spliced in or out, two changes."""
    data = bytearray(raw)
    at = rng.randrange(rng.choice((KEYS_BYTES, head_bytes)))  # rather a model key
    how = rng.randrange(7)
    if how <= 1:
        data[at] ^= 1 << rng.randrange(8)
    elif how == 2:
        width = rng.choice((1, 2, 4, 8))
        data[at : at + width] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * width
    elif how == 3:
        data[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**32, 2**60, 2**63, len(raw))))
    elif how == 4:
        del data[at : at + rng.choice((1, 4, 8, 24))]
    elif how == 5:
        other = rng.randrange(head_bytes)
        data[at:at] = data[other : other + rng.choice((4, 8, 24))]
    else:
        return bytes(data[:at])
    return bytes(data) if how else mutated(bytes(data), head_bytes, rng)


def test_a_thousand_mutations_are_refused_or_llama_cpps(whole_file: bytes, tmp_path: Path) -> None:
    """A mutated head gives a project error, or the original's very weights, or what llama.cpp makes of it."""
    path = overwritten(tmp_path / "whole.gguf", whole_file)
    head, expected = read_gguf_head(path), next_of(load(path).model)
    head_bytes, rng = head.tensors[0].offset_bytes, random.Random(0)
    same, other = 0, 0
    with llamacpp() as oracle:
        for number in range(1000):
            path = overwritten(tmp_path / f"{number}.gguf", mutated(whole_file, head_bytes, rng))
            try:
                ours = next_of(model_at(path))
            except (CheckpointError, NotYetError):
                path.unlink()
                continue
            if np.array_equal(ours, expected):
                same += 1
            else:
                assert_close(ours, oracle.next_logprobs(path, IDS, V))
                other += 1
            path.unlink()
    assert 50 < same < 500  # texts, remarks, tokens
    assert 1 <= other < 100  # another base or epsilon


def model_at(path: Path) -> Any:
    """The model of a file whatever its tokenizer, whose reader has mutations of its own."""
    from transom.checkpoint.load import _read_gguf

    return _read_gguf(Source(str(path), "gguf", path), torch.float32, "causal-lm", None).eval()


CHILD = """
import resource, sys
from pathlib import Path
from transom.checkpoint.gguf import read_gguf_head
from transom.errors import TransomError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for path in map(Path, sys.argv[1:]):
    try:
        read_gguf_head(path)
    except TransomError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_hostile_files_take_little_memory(tmp_path: Path) -> None:
    """Files of 256 MB, sparse, whose counts fit in them: what is made of them is bounded all the same."""
    size_bytes = 256 * 2**20

    def sparse(name: str, head: bytes) -> Path:
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(head)
            file.truncate(size_bytes)
        return path

    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    many = b"GGUF" + struct.pack("<IQQ", 3, 0, size_bytes // 14)
    crowd = b"GGUF" + struct.pack("<IQQ", 3, size_bytes // 33, 0)
    files = [
        sparse("bytes.gguf", start + key("a", ARRAY, struct.pack("<IQ", 0, 200 * 2**20))),
        sparse("strings.gguf", start + key("a", ARRAY, struct.pack("<IQ", STRING, 30 * 2**20))),
        sparse("string.gguf", start + key("a", STRING, struct.pack("<Q", 300 * 2**20))),
        sparse("keys.gguf", many),
        sparse("tensors.gguf", crowd),
        sparse("words.gguf", start + key("a", ARRAY, struct.pack("<IQ", STRING, 2**22))),
    ]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, files)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 400 * 1024  # KiB; four million strings are the most that an array may have
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime < 60


def test_a_head_is_read_once_through(
    whole_file: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work, not time: no byte of the head is taken twice, and none of the weights."""
    path = overwritten(tmp_path / "m.gguf", whole_file)
    taken = 0
    strings = gguf._Cursor._strings
    scalar = gguf._Cursor.scalar

    def counted_strings(self: Any, length: int) -> list[str]:
        nonlocal taken
        before = self.at
        found = strings(self, length)
        taken += self.at - before
        return found

    def counted_scalar(self: Any, code: str) -> Any:
        nonlocal taken
        taken += struct.calcsize("<" + code)
        return scalar(self, code)

    monkeypatch.setattr(gguf._Cursor, "_strings", counted_strings)
    monkeypatch.setattr(gguf._Cursor, "scalar", counted_scalar)
    head = read_gguf_head(path)
    assert taken < head.tensors[0].offset_bytes


def test_what_is_refused_is_refused_before_a_tensor_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transom.checkpoint.gguf_weights as reader
    from transom.obfuscation.plain import open_source

    def never(*_args: Any) -> Any:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(reader, "_dequantized", never)
    bad = draft_of(model_of("llama"))
    bad.keys["attention.scale"] = 2.0
    with pytest.raises(NotYetError, match=r"attention\.scale"):
        load(bad.write(tmp_path / "bad.gguf"))
    with pytest.raises(NotYetError, match="gemma2"):  # a model that loads, and has no plan
        open_source(draft_of(model_of("gemma2")).write(tmp_path / "gemma2.gguf"))


def split(draft: Any, folder: Path, count: int = 3) -> list[Path]:
    """As llama.cpp's splitter does: keys in the first part, tensors in turn."""
    import gguf as reference

    folder.mkdir(exist_ok=True)
    names, paths = list(draft.tensors), []
    for i in range(count):
        path = folder / f"m-{i + 1:05}-of-{count:05}.gguf"
        writer = reference.GGUFWriter(path, draft.name)
        if i == 0:
            draft.describe(writer)
        else:
            writer.kv_data[0].pop("general.architecture")
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(names))
        for name in names[i * len(names) // count : (i + 1) * len(names) // count]:
            writer.add_tensor(name, np.ascontiguousarray(draft.tensors[name], np.float32))
        draft.finish(writer, path)
        paths.append(path)
    return paths


def test_a_split_file_is_read_with_all_its_parts(tmp_path: Path) -> None:
    draft = draft_of(source := model_of("llama"))
    first, *_ = split(draft, tmp_path / "parts")
    head = read_gguf_head(first)
    assert len(head.paths) == 3
    weights = dict(gguf_weights(head))
    assert all(torch.equal(weights[name], weight) for name, weight in source.state_dict().items())
    assert np.array_equal(next_of(load(first).model), next_of(source))
    with llamacpp() as oracle:
        assert_close(next_of(source), oracle.next_logprobs(first, IDS, V))


def test_parts_that_are_missing_or_mixed_are_refused_by_name(tmp_path: Path) -> None:
    draft = draft_of(model_of("llama"))
    first, second, third = split(draft, tmp_path / "parts")
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf is not the first.* give .*m-00001-of"):
        load(second)
    third.rename(tmp_path / "third")
    with pytest.raises(CheckpointError, match=r"lacks 1 of its parts, first m-00003-of-00003\.gguf"):
        load(first)
    third.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match="does not belong to the parts beside it"):
        load(first)
    (tmp_path / "third").replace(third)
    lonely = overwritten(tmp_path / "renamed.gguf", first.read_bytes())
    with pytest.raises(CheckpointError, match="one of 3 parts"):
        load(lonely)
    draft.tensors.pop("blk.2.ffn_down.weight")
    changed = split(draft, tmp_path / "other")
    third.write_bytes(changed[2].read_bytes())
    with pytest.raises(CheckpointError, match="does not belong"):
        load(first)


def test_every_part_is_in_the_fingerprint(tmp_path: Path) -> None:
    from transom.obfuscation.plain import open_source

    draft = draft_of(model_of("llama"))
    first, _, third = split(draft, tmp_path / "parts")
    before = open_source(first).fingerprint
    data = bytearray(third.read_bytes())
    data[-40] ^= 1
    third.write_bytes(data)
    assert open_source(first).fingerprint != before
    one = draft.write(tmp_path / "one.gguf")
    assert open_source(one).fingerprint == hashlib.sha256(one.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["llama", "mixtral", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3"])
def test_a_gguf_of_each_family_is_obfuscated_as_its_source_folder(kind: str, tmp_path: Path) -> None:
    from transom.obfuscation.keyfile import new_key
    from transom.obfuscation.keys import Settings
    from transom.obfuscation.plain import open_source
    from transom.obfuscation.writer import obfuscate

    model = model_of(kind)
    model.save_pretrained(tmp_path / "folder")
    sources = {"gguf": draft_of(model).write(tmp_path / "m.gguf"), "plain": tmp_path / "folder"}
    files = load(sources["gguf"]).tokenizer
    assert files is not None
    files.tokenizer.save(str(tmp_path / "folder" / "tokenizer.json"))
    secret, made_by = None, {}
    for name, path in sources.items():
        plain = open_source(path)
        secret = dataclasses.replace(
            secret or new_key(plain.fingerprint, V, Settings(h=4)), source=plain.fingerprint
        )
        obfuscate(plain, tmp_path / name, secret)
        made_by[name] = load_file(tmp_path / name / "model-00001-of-00001.safetensors")
    assert made_by["gguf"].keys() == made_by["plain"].keys()
    assert all(torch.equal(weight, made_by["plain"][name]) for name, weight in made_by["gguf"].items())


def test_llama_cpp_refuses_gaps_too(tmp_path: Path) -> None:
    """What is refused here for its places is no model that others could load."""
    draft = draft_of(model_of("llama", num_hidden_layers=1))
    data = bytearray(draft.write(tmp_path / "m.gguf").read_bytes())
    at = data.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 16 + 4
    data[at : at + 8] = struct.pack("<Q", struct.unpack_from("<Q", data, at)[0] + 32)
    path = overwritten(tmp_path / "gap.gguf", bytes(data))
    with pytest.raises(CheckpointError, match="starts at byte"):
        gguf_model(read_gguf_head(path))
    with llamacpp() as oracle, pytest.raises(LlamaCppError):
        oracle.next_logprobs(path, IDS, V)
