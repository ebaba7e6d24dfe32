"""What is sent is what comes back: exactly, or within the stated bound; and safetensors' reader agrees."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from transom.errors import LinkRefusedError, MisconfiguredError
from transom.link.codec import (
    MAX_TENSORS,
    Limits,
    Wire,
    decode,
    encode,
    error_bound,
    peek,
)
from transom.link.message import HEADER_FIELDS, LARGEST, Header, Step

HEADER = Header("job", "run.1", "a", 7, Step(2, 30, "backward", 1, "evaluate"))
WIRES = get_args(Wire)
LOSSY: tuple[Wire, ...] = ("bf16", "fp8", "int8")
SHAPES = [(), (1,), (0,), (5,), (3, 0), (0, 3), (4, 5), (2, 3, 4), (1,) * 8]
INTEGERS = {
    "int64": torch.tensor([[-(2**63), 0, 2**63 - 1]]),
    "int32": torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32),
    "uint8": torch.arange(256, dtype=torch.uint8).reshape(4, 64),
    "bool": torch.tensor([[True], [False]]),
    "one": torch.tensor(5),
    "none": torch.zeros(0, 2, dtype=torch.int64),
}
LARGEST_FLOAT = torch.finfo(torch.float32).max


def there_and_back(x: torch.Tensor, wire: Wire = "fp32") -> torch.Tensor:
    """What the partner has of one tensor."""
    return decode(encode(HEADER, {"x": x}, wire))[1]["x"]


def floats(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Bit for bit: 0 is not -0."""
    return x.dtype == y.dtype and x.shape == y.shape and bool((as_bytes(x) == as_bytes(y)).all())


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_comes_back_bit_for_bit(shape: tuple[int, ...]) -> None:
    assert same(there_and_back(floats(1, *shape)), floats(1, *shape))


def test_the_ends_of_float32_come_back_bit_for_bit() -> None:
    ends = torch.tensor([0.0, -0.0, 2.0**-149, -(2.0**-126), LARGEST_FLOAT, -LARGEST_FLOAT])
    assert same(there_and_back(ends), ends)


@pytest.mark.parametrize("wire", WIRES)
def test_integers_come_back_exactly_whatever_the_wire_type(wire: Wire) -> None:
    header, got = decode(encode(HEADER, INTEGERS, wire), Limits(wire=wire))
    assert header == HEADER
    assert got.keys() == INTEGERS.keys()
    assert all(same(got[name], INTEGERS[name]) for name in got)


@pytest.mark.parametrize("wire", LOSSY)
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-20, 1e-36, 1e-40, 1e30, 2e37])
def test_the_error_is_within_its_bound(wire: Wire, size: float) -> None:
    """Ordinary rows, tiny gradients, huge ones, mixed with outliers and rows of zeros."""
    for seed, shape in enumerate([(64, 33), (1, 1000), (1000, 1), (), (7,), (2, 3, 4)]):
        x = floats(seed, *shape) * size
        if x.ndim == 2:
            x[0] *= 1e-3
            x[-1, 0] = 0.0
        error = (there_and_back(x, wire).double() - x.double()).abs()
        assert (error <= error_bound(wire, x)).all()


def test_the_bounds_are_those_that_are_documented() -> None:
    """Beside float32's rounding of a millionth: relative, half a step of 254, the coarser of two."""
    x = torch.tensor([[448.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(error_bound("bf16", x)[0], x[0].abs().double() * 2**-8, atol=1e-30)
    assert error_bound("int8", x)[0].tolist() == pytest.approx([448 / 254] * 3, rel=1e-3)
    assert error_bound("fp8", x)[0].tolist() == pytest.approx([28, 1 / 16, 2**-10], abs=1e-3)
    assert (error_bound("fp32", x) == 0).all()
    assert (error_bound("int8", x)[1] < 1e-37).all()
    # The bounds are tight: a value half way between two steps is that far off.
    x = torch.tensor([[127.0, 0.5, 2.0, 3.4999]])
    assert (there_and_back(x, "int8") - x).abs().max() > 0.999 * 127 / 254
    assert (there_and_back(torch.tensor([1 + 2**-8]), "bf16") - 1 - 2**-8).abs() == 2**-8
    assert (there_and_back(torch.tensor([448.0, 17.0]), "fp8")[1] - 17) == -1


@pytest.mark.parametrize("wire", WIRES)
def test_rows_of_zeros_stay_zeros_and_rows_do_not_share_a_scale(wire: Wire) -> None:
    x = torch.tensor([[0.0, 0.0], [1e-6, -1e-6], [1e6, 1e6]])
    assert torch.allclose(there_and_back(x, wire), x, rtol=2**-4, atol=0)


@given(
    st.sampled_from(WIRES),
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=True), min_size=4, max_size=4),
    st.sampled_from([(4,), (2, 2), (4, 1), (1, 4)]),
)
def test_any_finite_values_come_back_within_the_bound(
    wire: Wire, values: list[float], shape: tuple[int, ...]
) -> None:
    x = torch.tensor(values).reshape(shape)
    back = there_and_back(x, wire)
    assert back.dtype == torch.float32
    assert ((back.double() - x.double()).abs() <= error_bound(wire, x)).all()


@pytest.mark.parametrize("wire", LOSSY)
def test_what_encode_takes_decode_takes_also_at_the_upper_end(wire: Wire) -> None:
    """Rounding up may leave float32: then it does not go at all."""
    went = 0
    x = torch.tensor(LARGEST_FLOAT)
    for _ in range(200):
        try:
            data = encode(HEADER, {"x": x}, wire)
        except LinkRefusedError:
            pass
        else:
            went += bool(decode(data)[1]["x"].isfinite())
        x = torch.nextafter(x, torch.tensor(0.0))
    assert went or wire == "bf16"
    assert there_and_back(torch.tensor(3.38e38), wire) > 3e38


def test_fp8_is_torch_s_own() -> None:
    """The table and the conversion agree on every code; without scaling, since the row's largest is 448."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    codes = codes[codes.isfinite()]
    assert same(there_and_back(codes, "fp8"), codes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_become_float32(dtype: torch.dtype) -> None:
    x = floats(3, 4, 5).to(dtype)
    assert same(there_and_back(x), x.float())


def test_order_of_memory_and_gradients_do_not_matter() -> None:
    x = floats(4, 6, 5)
    for view in (x.T, x[::2, 1:], x[:, 0], x.expand(3, 6, 5), x.requires_grad_()):
        for wire in WIRES:
            plain = view.detach().clone(memory_format=torch.contiguous_format)
            assert encode(HEADER, {"x": view}, wire) == encode(HEADER, {"x": plain}, wire)
    assert not there_and_back(x).requires_grad


def test_what_comes_back_is_its_own() -> None:
    """Who writes into it changes neither the message nor a second reading of it."""
    data = encode(HEADER, {"x": torch.ones(4), "n": torch.ones(4, dtype=torch.uint8)})
    kept = bytes(bytearray(data))
    for tensor in decode(data)[1].values():
        tensor.zero_()
    assert data == kept
    assert all((tensor == 1).all() for tensor in decode(data)[1].values())


@pytest.mark.parametrize("wire", WIRES)
def test_safetensors_reads_what_is_written(wire: Wire) -> None:
    tensors = {f"t{number}": floats(number, *shape) for number, shape in enumerate(SHAPES)} | INTEGERS
    data = encode(HEADER, tensors, wire)
    ours, theirs = decode(data)[1], load(data)
    assert ours.keys() == tensors.keys()
    for name, got in ours.items():
        read = theirs[name]
        if read.is_floating_point() or read.dtype == torch.int8:
            scale = theirs.get(f"{name}.scale", torch.tensor(1.0))
            read = read.float() * (scale.unsqueeze(-1) if got.ndim and scale.ndim == got.ndim - 1 else scale)
        assert same(got, read)
    assert len(theirs) - len(ours) == (len(SHAPES) if wire in ("fp8", "int8") else 0)


def metadata(header: Header = HEADER) -> dict[str, str]:
    """A header's texts, as another writer would make them."""
    step = header.step
    values = [header.job, header.run, header.sender, header.number, header.record]
    values += [step.epoch, step.batch, step.direction, step.attempt, step.topic]
    return {"transom": "1"} | dict(zip(HEADER_FIELDS, map(str, values), strict=True))


def test_what_safetensors_wrote_is_read_the_same() -> None:
    tensors = {f"t{number}": floats(number, *shape) for number, shape in enumerate(SHAPES)} | INTEGERS
    header, got = decode(save(tensors, metadata()))
    assert header == HEADER
    assert got.keys() == tensors.keys()
    assert all(same(got[name], tensors[name]) for name in got)
    narrow = {"x": floats(1, 3, 2).bfloat16()}
    assert same(decode(save(narrow, metadata()))[1]["x"], narrow["x"].float())
    scaled = {"x": torch.tensor([[1, -2]], dtype=torch.int8), "x.scale": torch.tensor([0.5])}
    assert decode(save(scaled, metadata()))[1]["x"].tolist() == [[0.5, -1.0]]


@given(
    st.builds(
        Step,
        st.integers(0, LARGEST),
        st.integers(0, LARGEST),
        st.sampled_from(["forward", "backward"]),
        st.integers(0, LARGEST),
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    ),
    st.integers(0, LARGEST),
)
def test_a_header_comes_back(step: Step, number: int) -> None:
    header = Header("j", "r", "s", number, step)
    data = encode(header, {})
    assert peek(data) == decode(data)[0] == header


def test_the_same_tensors_are_the_same_bytes() -> None:
    tensors = {"b": floats(1, 3), "a": torch.arange(3)}
    assert encode(HEADER, tensors, "int8") == encode(HEADER, dict(tensors), "int8")


@pytest.mark.parametrize(
    ("tensors", "wire"),
    [
        ({"x": torch.tensor([1.0, math.nan])}, "fp32"),
        ({"x": torch.tensor([1.0, math.inf])}, "fp32"),
        ({"x": torch.tensor(-math.inf)}, "bf16"),
        ({"x": torch.tensor([[1.0], [math.nan]])}, "fp8"),
        ({"x": torch.tensor([[1.0], [math.inf]])}, "int8"),
        ({"x": torch.tensor(1e300, dtype=torch.float64)}, "fp32"),
        ({"x": torch.tensor(LARGEST_FLOAT)}, "bf16"),
        ({"": torch.ones(1)}, "fp32"),
        ({"x.scale": torch.ones(1)}, "fp32"),
        ({"__metadata__": torch.ones(1)}, "fp32"),
        ({"x" * 65: torch.ones(1)}, "fp32"),
        ({"a b": torch.ones(1)}, "fp32"),
        ({f"x{number}": torch.ones(1) for number in range(MAX_TENSORS + 1)}, "fp32"),
        ({"x": torch.ones((1,) * 9)}, "fp32"),
        ({"x": torch.empty(0, 2**60)}, "fp32"),
        ({"x": torch.ones(1, dtype=torch.complex64)}, "fp32"),
        ({"x": torch.ones(1, dtype=torch.int16)}, "fp32"),
        ({"x": torch.ones(1, dtype=torch.int8)}, "int8"),
        ({"x": torch.eye(2).to_sparse()}, "fp32"),
    ],
)
def test_what_cannot_go_is_refused(tensors: dict[str, torch.Tensor], wire: Wire) -> None:
    with pytest.raises(LinkRefusedError):
        encode(HEADER, tensors, wire)


def test_a_wire_type_that_is_none_is_refused() -> None:
    unknown: Any = "fp4"
    with pytest.raises(MisconfiguredError, match="fp32, bf16, fp8, int8, got 'fp4'"):
        encode(HEADER, {}, unknown)


def test_the_largest_message_by_names_and_shapes_fits_its_header() -> None:
    tensors = {f"{number:064d}": torch.empty(0, 2**17, 1, 1, 1, 2**17, 1, 2**17) for number in range(64)}
    assert decode(encode(HEADER, tensors, "int8"))[1].keys() == tensors.keys()


EXPECTED = {"x": (None, 3), "y": (2,)}


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        ({"tensors": EXPECTED, "integers": {"y": torch.int64}, "wire": "bf16"}, True),
        ({"tensors": EXPECTED, "integers": {"y": torch.int64}}, True),
        ({"wire": "bf16"}, True),
        ({}, True),
        ({"wire": "fp32"}, False),
        ({"wire": "int8"}, False),
        ({"tensors": EXPECTED}, False),
        ({"tensors": EXPECTED, "integers": {"y": torch.uint8}}, False),
        ({"tensors": EXPECTED, "integers": {"x": torch.int64, "y": torch.int64}}, False),
        ({"tensors": {"x": (None, 3)}}, False),
        ({"tensors": {}}, False),
        ({"tensors": EXPECTED | {"z": ()}, "integers": {"y": torch.int64}}, False),
        ({"tensors": {"x": (None, 4), "y": (2,)}, "integers": {"y": torch.int64}}, False),
        ({"tensors": {"x": (None,), "y": (2,)}, "integers": {"y": torch.int64}}, False),
        ({"tensors": {"x": (None, 3, None), "y": (2,)}, "integers": {"y": torch.int64}}, False),
        ({"max_bytes": 300}, False),
    ],
)
def test_a_receiver_takes_what_it_expects(limits: dict[str, Any], fits: bool) -> None:
    data = encode(HEADER, {"x": floats(1, 5, 3), "y": torch.arange(2)}, "bf16")
    if fits:
        assert decode(data, Limits(**limits))[1].keys() == {"x", "y"}
    else:
        with pytest.raises(LinkRefusedError):
            decode(data, Limits(**limits))
