"""Tensors and their header as bytes: one safetensors file a message, of which nothing is believed.

The header's fields stand as text in `__metadata__`; the tensors follow without gaps, the wider types first.
Float tensors go in the run's wire type: `fp32` as they are; `bf16`; `fp8` (e4m3fn) and `int8` (symmetric)
with one fp32 scale for each row, which is the last dimension, in a tensor NAME.scale. They come back as
float32. Integers (int64, int32, uint8, bool) go and come as they are. What it costs: `error_bound`.
Both directions are written here: safetensors' own writer takes 2 ms for a megabyte, and its reader makes
tensors before anybody has looked at names and sizes.
Threat model: the partner, or whoever damages a message, writes any bytes. Names, types, shapes, sizes and
places are checked, as Python integers, before anything of their size is allocated; what is returned owns its
memory, and is finite.
Does not protect: that the values mean something, and nothing is secret here; see `seal` and `tunnel`.
Source: the safetensors format; Micikevicius et al. 2022 (e4m3).

Legend: R any dimensions before the last, D the last (a row); x before and y on the wire.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NoReturn, get_args

from transom.checkpoint.finite import is_finite
from transom.config import load_json
from transom.errors import LinkRefusedError, MisconfiguredError, extra
from transom.link.broker import MAX_MESSAGE_BYTES
from transom.link.message import HEADER_FIELDS, LARGEST, Header, Step, require_name

with extra("link", "torch"):
    import torch
    from torch import Tensor

Wire = Literal["fp32", "bf16", "fp8", "int8"]
Shape = tuple[int | None, ...]

VERSION = "1"
MAX_HEADER_BYTES = 2**16
HEADER_BYTES = 2**11  # more than a message of a handful of tensors has beside their values
MAX_TENSORS, MAX_DIMS = 64, 8
_PREFIX_BYTES = 8  # the length of the header, little-endian
_SCALE = ".scale"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")
_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ON_WIRE: dict[Wire, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
_LARGEST_CODE = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}  # what a row's largest value becomes
_LEAST_SCALE = 2.0**-126  # the least normal float32: a row of zeros has it
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.uint8, torch.bool)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a receiver takes. `tensors` has the name and shape of each tensor that must be there (None fits
    any size) and no others; those in `integers` have that type, all others are float32. None takes any
    tensors. `wire` is the type that floats must have come in."""

    max_bytes: int = MAX_MESSAGE_BYTES
    tensors: Mapping[str, Shape] | None = None
    integers: Mapping[str, torch.dtype] = field(default_factory=dict)
    wire: Wire | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor of a message: its type, its shape, and where its bytes lie behind the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def encode(header: Header, tensors: Mapping[str, Tensor], wire: Wire = "fp32") -> bytes:
    """The message. Tensors may require gradients, lie on any device and in any order of memory; float64,
    float16 and bfloat16 become float32 on the way to the wire type.

    Raises LinkRefusedError for more than 64 tensors or 8 dimensions, a name that `require_name` refuses or
    that ends in `.scale`, another type, and values that are not finite or too large for the wire type;
    MisconfiguredError for a wire type that is none.
    """
    if wire not in get_args(Wire):
        raise MisconfiguredError(f"a wire type is one of {', '.join(get_args(Wire))}, got {wire!r:.20}")
    if len(tensors) > MAX_TENSORS:
        _refuse(f"it has {len(tensors)} tensors, and {MAX_TENSORS} are the most")
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        _require_tensor_name(name)
        stored |= _stored(name, tensor, wire)
    return _written(header, dict(sorted(stored.items(), key=lambda item: -item[1].itemsize)))


def peek(data: bytes) -> Header:
    """Whose message it is and which, without its tensors. Raises LinkRefusedError."""
    return _message_header(_json(data)[0].get("__metadata__"))


def decode(data: bytes, limits: Limits | None = None) -> tuple[Header, dict[str, Tensor]]:
    """The header and the tensors, float32 or the integer types, in memory of their own.

    Takes at most 10 times the memory of the message and 64 times that of its header. Raises
    LinkRefusedError, and nothing else, for what is no such message or what `limits` (default: `Limits()`)
    do not take.
    """
    limits = limits or Limits()
    if len(data) > limits.max_bytes:
        _refuse(f"it has {len(data)} bytes, and {limits.max_bytes} are the most")
    parts, start = _json(data)
    header = _message_header(parts.pop("__metadata__", None))
    entries = _entries(parts, len(data) - start)
    scales = {name: entries.pop(name) for name in list(entries) if name.endswith(_SCALE)}
    _require_scales(entries, scales)
    _require_expected(entries, limits)
    body = memoryview(data)[start:]
    return header, {name: _values(entry, scales.get(name + _SCALE), body) for name, entry in entries.items()}


def row_bytes(width: int, wire: Wire) -> int:
    """What a row of so many floats takes in a message, with its scale if it has one."""
    dtype = _ON_WIRE[wire]
    return width * dtype.itemsize + (torch.float32.itemsize if dtype in _LARGEST_CODE else 0)


def error_bound(wire: Wire, x_RD: Tensor) -> Tensor:
    """How far each value may be from `x_RD` when it comes back: float64 of its shape.

    bf16: 2^-8 of the value. int8: half a step, and a step is the row's largest magnitude / 127. fp8: 2^-4 of
    the value, or half its least step, the row's largest magnitude / 448 * 2^-10. Of values below 2^-126,
    and of rows whose scale would be below it, the bounds are those of 2^-126. A millionth of the value or of
    the row's largest is added for float32's rounding; fp32 has no error.
    """
    x_RD = x_RD.detach().double().abs()
    if wire == "fp32" or not x_RD.numel():
        return torch.zeros_like(x_RD)
    if wire == "bf16":
        return (x_RD * (1 + 1e-6)).clamp_min(_LEAST_SCALE) * 2**-8
    most_R1 = x_RD.amax(-1, keepdim=True) if x_RD.ndim else x_RD
    step_R1 = (most_R1 / _LARGEST_CODE[_ON_WIRE[wire]]).clamp_min(_LEAST_SCALE)
    coarse_RD = (
        torch.maximum(x_RD * 2**-4, step_R1 * 2**-10) if wire == "fp8" else (step_R1 / 2).expand_as(x_RD)
    )
    return coarse_RD + 1e-6 * torch.maximum(most_R1, step_R1)


# Writing


def _require_tensor_name(name: object) -> None:
    if require_name(name, "a tensor's name").endswith(_SCALE):
        _refuse(f"a tensor's name ends in {_SCALE}, which is kept for scales")


def _stored(name: str, x: Tensor, wire: Wire) -> dict[str, Tensor]:
    """A tensor as it lies in the message, with its scales if it has some."""
    if x.dtype not in _FLOATS + _INTEGERS or x.layout != torch.strided:
        _refuse(f"a tensor is of type {x.dtype} ({x.layout}); floats, int64, int32, uint8 and bool can go")
    _require_shape(tuple(x.shape))
    x = x.detach().cpu()
    if x.dtype in _INTEGERS:
        return {name: x}
    x, dtype = x.float(), _ON_WIRE[wire]
    if dtype not in _LARGEST_CODE:
        return {name: _finite(x.to(dtype))}
    most_R1 = x.abs().amax(-1, keepdim=True) if x.numel() else x.abs().sum(-1, keepdim=True)
    scale_R1 = most_R1.div(_LARGEST_CODE[dtype]).clamp_min(_LEAST_SCALE)
    _finite(scale_R1 * _LARGEST_CODE[dtype])
    y = x / scale_R1
    return {
        name: y.round_().to(dtype) if dtype == torch.int8 else y.to(dtype),
        name + _SCALE: scale_R1.squeeze(-1),
    }


def _written(header: Header, stored: Mapping[str, Tensor]) -> bytes:
    texts = {
        name: str(getattr(header if hasattr(header, name) else header.step, name)) for name in HEADER_FIELDS
    }
    parts: dict[str, Any] = {"__metadata__": {"transom": VERSION, **texts}}
    pieces, end = [], 0
    for name, tensor in stored.items():
        piece = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        start, end = end, end + len(piece)
        parts[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        pieces.append(piece)
    text = json.dumps(parts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _PREFIX_BYTES)
    return b"".join([len(text).to_bytes(_PREFIX_BYTES, "little"), text, *pieces])


# Reading


def _refuse(why: str) -> NoReturn:
    raise LinkRefusedError(f"a message cannot be used: {why}")


def _json(data: bytes) -> tuple[dict[str, Any], int]:
    """The parts that a message names, and where what they describe begins."""
    length = int.from_bytes(data[:_PREFIX_BYTES], "little")
    start = _PREFIX_BYTES + length
    if length > MAX_HEADER_BYTES:
        _refuse(f"its header would have {length} bytes, and {MAX_HEADER_BYTES} are the most")
    if len(data) < start:
        _refuse(f"it ends after {len(data)} bytes, and its header after {start}")
    try:
        parts = load_json(str(data[_PREFIX_BYTES:start], "utf-8"), parse_constant=_refuse)
    except ValueError:
        _refuse(f"its header of {length} bytes is not JSON, or names something twice")
    if not isinstance(parts, dict):
        _refuse("its header is no object")
    return parts, start


def _message_header(texts: object) -> Header:
    """The header from its texts; each must be as `encode` writes it."""
    if not isinstance(texts, dict) or texts.keys() != {"transom", *HEADER_FIELDS}:
        _refuse("it does not name its job, run, sender, number and step, and those alone")
    if texts["transom"] != VERSION:
        _refuse(f"it is not of version {VERSION}; both parties need the same version of Transom")
    job, run, sender, topic, direction = (
        texts[key] for key in ("job", "run", "sender", "topic", "direction")
    )
    number, epoch, batch, attempt = (_number(texts[key]) for key in ("number", "epoch", "batch", "attempt"))
    return Header(job, run, sender, number, Step(epoch, batch, direction, attempt, topic), texts["record"])


def _number(text: object) -> int:
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        _refuse("a number of its header is none")
    return int(text)


def _entries(parts: Mapping[str, Any], size: int) -> dict[str, _Entry]:
    """What a header says of its tensors: one behind the other, from the first byte to the last."""
    if len(parts) > 2 * MAX_TENSORS:
        _refuse(f"it has {len(parts)} tensors with their scales, and {2 * MAX_TENSORS} are the most")
    entries = {name: _entry(part) for name, part in parts.items()}
    position = 0
    for start, end in sorted((entry.start, entry.end) for entry in entries.values()):
        if start != position:
            _refuse("its tensors overlap, or leave a gap")
        position = end
    if position != size:
        _refuse(f"its tensors would end at byte {position}, and {size} are there")
    return entries


def _entry(part: object) -> _Entry:
    if not isinstance(part, dict) or part.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse("a tensor is not described by type, shape and place")
    dtype = _DTYPES.get(part["dtype"]) if isinstance(part["dtype"], str) else None
    if dtype is None:
        _refuse(f"a tensor's type is none of {', '.join(_DTYPES)}")
    shape, (start, end) = _naturals(part["shape"]), _naturals(part["data_offsets"], 2)
    _require_shape(shape)
    if end - start != math.prod(shape) * dtype.itemsize:
        _refuse(f"a tensor's bytes are {end - start}, not those of its shape")
    return _Entry(dtype, shape, start, end)


def _naturals(values: object, count: int | None = None) -> tuple[int, ...]:
    if not isinstance(values, list) or count not in (None, len(values)):
        _refuse("a tensor's shape or place is no list of whole numbers")
    if not all(type(value) is int and 0 <= value <= LARGEST for value in values):
        _refuse("a tensor's shape or place is no list of whole numbers")
    return tuple(values)


def _require_shape(shape: tuple[int, ...]) -> None:
    """Also of an empty tensor the strides must be numbers that torch can hold."""
    if len(shape) > MAX_DIMS or math.prod(size or 1 for size in shape) > LARGEST:
        _refuse(f"a tensor has {len(shape)} dimensions, of {MAX_DIMS}, or too large ones")


def _require_scales(entries: Mapping[str, _Entry], scales: Mapping[str, _Entry]) -> None:
    """Names are those that `encode` takes; who needs scales has them, one float32 a row, and nobody else."""
    for name in entries:
        _require_tensor_name(name)
    if len(entries) > MAX_TENSORS:
        _refuse(f"it has {len(entries)} tensors, and {MAX_TENSORS} are the most")
    needed = {
        name + _SCALE: (torch.float32, entry.shape[:-1])
        for name, entry in entries.items()
        if entry.dtype in _LARGEST_CODE
    }
    if needed != {name: (entry.dtype, entry.shape) for name, entry in scales.items()}:
        _refuse("its scales are not those of its tensors")


def _require_expected(entries: Mapping[str, _Entry], limits: Limits) -> None:
    if limits.wire is not None:
        allowed = (_ON_WIRE[limits.wire], *_INTEGERS)
        if not all(entry.dtype in allowed for entry in entries.values()):
            _refuse(f"a tensor did not come as {limits.wire}, which was agreed")
    if limits.tensors is None:
        return
    if entries.keys() != limits.tensors.keys():
        _refuse(f"it has {len(entries)} tensors, not the {len(limits.tensors)} that are expected by name")
    for name, wanted in limits.tensors.items():
        entry = entries[name]
        if (entry.dtype if entry.dtype in _INTEGERS else None) != limits.integers.get(name):
            _refuse(f"the tensor {name} is of another type than expected")
        fits = [size in (None, got) for size, got in zip(wanted, entry.shape, strict=False)]
        if len(wanted) != len(entry.shape) or not all(fits):
            _refuse(f"the tensor {name} has the shape {list(entry.shape)}, not {list(wanted)}")


def _values(entry: _Entry, scale: _Entry | None, body: memoryview) -> Tensor:
    """A checked tensor, as float32 if it is no integer."""
    y = _raw(entry, body)
    if entry.dtype in _INTEGERS:
        return y
    if scale is None:
        return _finite(y.float())
    x, scale_R = _e4m3(y) if entry.dtype == torch.float8_e4m3fn else y.float(), _raw(scale, body)
    return _finite(x.mul_(scale_R.unsqueeze(-1) if x.ndim else scale_R))


def _raw(entry: _Entry, body: memoryview) -> Tensor:
    """The bytes as a tensor, copied: they are aligned, and the message stays as it is."""
    if entry.start == entry.end:
        return torch.empty(entry.shape, dtype=entry.dtype)
    own = bytearray(body[entry.start : entry.end])
    if entry.dtype == torch.bool and own.strip(b"\0\1"):
        _refuse("a truth value is neither 0 nor 1")
    return torch.frombuffer(own, dtype=entry.dtype).reshape(entry.shape)


def _e4m3(y: Tensor) -> Tensor:
    """float32 of e4m3fn by a table, in a third of the time of torch's own conversion."""
    return _e4m3_table().index_select(0, y.reshape(-1).view(torch.uint8).int()).reshape(y.shape)


@cache
def _e4m3_table() -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def _finite(x: Tensor) -> Tensor:
    """The tensor; its least and largest value say whether all are finite. Raises LinkRefusedError."""
    if not is_finite(x):
        _refuse("values of a tensor are not finite, or too large for their type on the wire")
    return x
