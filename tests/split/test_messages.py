"""What is packed comes back, whatever its lengths; what does not fit is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import LinkRefusedError
from transom.link import codec
from transom.link.message import Header, Step
from transom.split import messages
from transom.split.messages import Bounds, asked, packed, reply, request, tallies, unpacked
from transom.split.metrics import Tally, text_labels

HEADER = Header("j", "r", "customer", 0, Step(0, 0, "forward"))
BOUNDS = Bounds(rows=4, tokens=6, parts=2)
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def mask_of(lengths: list[int]) -> torch.Tensor:
    return (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()


def sent(lengths: list[int], task: str, /, **changes: Any) -> dict[str, torch.Tensor]:
    """A batch as it comes out of the link."""
    mask_BT = mask_of(lengths)
    ids_BT = torch.randint(1, 9, mask_BT.shape)
    labels = packed(ids_BT, mask_BT) if task == "causal" else torch.zeros(len(lengths), dtype=torch.int64)
    states_BTD = torch.randn(*mask_BT.shape, 3)
    message = dict(request(packed(states_BTD, mask_BT), mask_BT.sum(1), labels, (7, 2))) | changes
    limits = messages.vendor_limits(3, "fp32", 2**20)
    return codec.decode(codec.encode(HEADER, message), limits)[1]


@given(LENGTHS, st.sampled_from(["classification", "causal"]))
def test_a_batch_comes_as_it_went_without_its_padding(lengths: list[int], task: Any) -> None:
    message = sent(lengths, task)
    assert len(message["rows"]) == sum(lengths)
    got = asked(message, BOUNDS, task, "cpu")
    assert torch.equal(got.mask_BT, mask_of(lengths))
    assert torch.equal(packed(got.hidden_BTD, got.mask_BT), message["rows"])
    assert not got.hidden_BTD[got.mask_BT == 0].any()
    assert (got.targets, got.parts) == (7, 2)
    wanted = message["labels"]
    if task == "causal":
        wanted = text_labels(unpacked(wanted, got.mask_BT), got.mask_BT)
    assert torch.equal(got.labels, wanted)


@pytest.mark.parametrize(
    "changes",
    [
        {"lengths": torch.tensor([2, 3, 0])},
        {"lengths": torch.tensor([5])},
        {"lengths": torch.tensor([7, -2])},
        {"lengths": torch.tensor([1, 1, 1, 1, 1])},
        {"rows": torch.zeros(4, 3)},
        {"rows": torch.zeros(0, 3), "lengths": torch.zeros(0, dtype=torch.int64)},
        {"labels": torch.zeros(3, dtype=torch.int64)},
        {"counts": torch.tensor([7, 0])},
        {"counts": torch.tensor([7, 3])},
        {"counts": torch.tensor([-1, 1])},
        {"lengths": torch.tensor([2**62, 2**62])},
    ],
)
def test_a_batch_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LinkRefusedError):
        asked(sent([2, 3], "classification", **changes), Bounds(2, 6, 2), "classification", "cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": torch.zeros(5, 4)},
        {"rows": torch.zeros(5, 3, dtype=torch.int64)},
        {"labels": torch.zeros(2)},
        {"counts": torch.tensor([1, 1, 1])},
        {"further": torch.zeros(1)},
        {"rows": torch.full((5, 3), math.nan)},
    ],
)
def test_the_link_refuses_what_has_other_names_types_and_widths(changes: dict[str, Any]) -> None:
    with pytest.raises(LinkRefusedError):
        sent([2, 3], "classification", **changes)


@given(st.lists(st.tuples(st.floats(0, 1e300), st.integers(0, 99), st.integers(0, 99)), max_size=4))
def test_tallies_come_exactly_over_every_wire(found: list[tuple[float, int, int]]) -> None:
    wanted = [Tally(*one) for one in found]
    limits = messages.customer_limits(3, "int8", 2**20)
    data = codec.encode(HEADER, reply(3, tallies=wanted), "int8")
    assert tallies(codec.decode(data, limits)[1], len(wanted)) == wanted


@pytest.mark.parametrize(
    "found", [[[0, 0, 0], [0, 0, 0]], [], [[2047 << 52, 0, 0]], [[0, -1, 0]], [[0, 0, -1]]]
)
def test_tallies_that_cannot_be_are_refused(found: list[list[int]]) -> None:
    with pytest.raises(LinkRefusedError, match="tallies"):
        tallies({"tallies": torch.tensor(found, dtype=torch.int64).reshape(-1, 3)}, 1)
