"""A job whose batches do not fit the link is refused before a step; one that just fits runs to its end."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import MisconfiguredError
from transom.link import memory
from transom.link.codec import HEADER_BYTES, encode
from transom.link.config import LinkConfig
from transom.link.exchange import Agreement
from transom.link.memory import memory_pair
from transom.link.message import LARGEST, Header, Step
from transom.link.window import Window
from transom.split import run
from transom.split.job import SplitJob, Train
from transom.split.messages import reply, request
from transom.split.metrics import Tally
from transom.split.party import customer
from transom.split.room import needs, require_room
from transom.split.rows import Rows

from .runs import Heard, run_job
from .splits import make_job

WIDTH = 32
NAME = "n" * 64
WIRES = st.sampled_from(["fp32", "bf16", "fp8", "int8"])


def texts(*lengths: int) -> Rows:
    return Rows(tuple((1,) * length for length in lengths), ())


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=9),
    st.integers(2, 70),
    WIRES,
    st.sampled_from(["classification", "causal"]),
    st.sampled_from(["vendor", "customer"]),
)
def test_a_message_has_no_more_bytes_than_foreseen_and_hardly_less(
    lengths: list[int], width: int, wire: Any, task: str, layout: Any
) -> None:
    job = make_job(Path("m"), task, layout=layout, wire=wire)
    rows_ND, lengths_B = torch.ones(sum(lengths), width), torch.tensor(lengths)
    labels = torch.ones(sum(lengths) if task == "causal" else len(lengths), dtype=torch.int64)
    possible = (
        request(rows_ND, lengths_B, labels if layout == "vendor" else labels[:0], (LARGEST, LARGEST)),
        reply(width, rows_ND, [Tally()]),
        reply(width, tallies=[Tally()] * len(lengths)),
    )
    header = Header(NAME, NAME, NAME, LARGEST, Step(LARGEST, LARGEST, "backward", topic=NAME), "0" * 16)
    sizes = [len(encode(header, one, wire)) for one in possible]
    foreseen = needs(job, width, texts(*lengths)).message_bytes
    assert max(sizes) <= foreseen <= sizes[0] + HEADER_BYTES + 3 * 8 * len(lengths)


def test_the_longest_texts_of_a_batch_count_whatever_their_order() -> None:
    job = make_job(Path("m"), "classification", train=Train(batch_rows=4))
    found = needs(job, WIDTH, texts(1, 9, 2, 8, 3, 7, 4), parts=2)
    assert (found.texts, found.tokens) == (4, 9)
    assert found.message_bytes == (9 + 8) * WIDTH * 4 + 2 * 3 * 8 + HEADER_BYTES
    assert found.window_bytes == 4 * ((9 + 8 + 7 + 4) * WIDTH * 4 + 4 * 3 * 8 + 2 * HEADER_BYTES)
    assert needs(job, WIDTH, texts(5), parts=3).texts == 1


def at_a_link(monkeypatch: pytest.MonkeyPatch, message_bytes: int, window_bytes: int) -> None:
    monkeypatch.setattr(run, "WINDOW_BYTES", window_bytes)
    monkeypatch.setattr(memory, "memory_pair", partial(memory_pair, max_bytes=message_bytes))
    monkeypatch.setattr(run, "_HERE_S", 20.0)  # a run that stands still would be told


def needed(job: SplitJob) -> tuple[int, int]:
    """Bytes of a message and of the window, of the rows to train on and those to evaluate."""
    with closing(customer(replace(job, out=job.out / "read"), Heard())) as made:
        side = made.side
        assert side.evaluation is not None
        both = (
            needs(job, WIDTH, side.rows, job.train.micro_batches),
            needs(job, WIDTH, side.evaluation),
        )
    return max(one.message_bytes for one in both), max(one.window_bytes for one in both)


@pytest.mark.parametrize(
    ("model", "task", "parts", "changes"),
    [
        ("bert", "classification", 1, {"layout": "vendor"}),
        ("bert", "classification", 1, {"layout": "customer"}),
        ("llama", "causal", 3, {"layout": "vendor", "wire": "int8"}),
        ("llama", "causal", 3, {"layout": "customer", "after_block": 1, "return_gradient": True}),
    ],
)
def test_what_just_fits_runs_to_its_end_and_less_is_refused_before_a_step(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, task: str, parts: int,
    changes: dict[str, Any],
) -> None:  # fmt: skip
    train = {"micro_batches": parts, "checkpoint_every_steps": 1000}
    job, heard = run_job(request.getfixturevalue(model), task, tmp_path, train=train, **changes), Heard()
    message, window = needed(job)
    for size, less in ((message, (message - 1, window)), (window, (message, window - 1))):
        at_a_link(monkeypatch, *less)
        with pytest.raises(MisconfiguredError, match=f" may have {size} bytes, and {size - 1} fit"):
            run.simulate(replace(job, out=tmp_path / "less"), heard)
    assert not heard.losses
    at_a_link(monkeypatch, message, window)
    run.simulate(job, heard)
    assert (len(heard.losses), len(heard.evaluations)) == (10, 2)


def test_what_is_asked_must_fit_too(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = run_job(bert, "classification", tmp_path, layout="customer")
    run.simulate(job, Heard())
    at_a_link(monkeypatch, *needed(job))
    assert len(run.predict_here(job, None).rows()) == 13
    with pytest.raises(MisconfiguredError, match="5 texts a batch, of up to 64 tokens of 32 numbers"):
        run.predict_here(job, ["a dog " * 40] * 5)


def test_what_would_do_is_named() -> None:
    job = make_job(Path("m"), "causal", layout="customer", train=Train(batch_rows=8, micro_batches=2))
    agreement = Agreement("p", 1, Window(64, 3 * 2**20), 2**20, 0.0)
    rows = texts(*[512] * 9)
    with pytest.raises(MisconfiguredError) as told:
        require_room(job, 1024, agreement, rows, 2)
    assert str(told.value).endswith("and 3145728 fit. Lower train.batch_rows or data.max_tokens")
    link = LinkConfig(job="j", run="r", party="a", partner="b", connect="127.0.0.1:1")
    with pytest.raises(
        MisconfiguredError, match=r"or raise link\.message_mb to 9 and link\.window_mb to 65 for"
    ):
        require_room(replace(job, link=link), 1024, agreement, rows, 2)
    enough = Agreement("p", 1, Window(64, 65 * 2**20), 9 * 2**20, 0.0)
    require_room(job, 1024, enough, rows, 2)
    require_room(job, 1024, enough, texts())  # nothing is asked
