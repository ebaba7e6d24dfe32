"""What is recorded is what was sent: at both parties, through stops, within its bound, only where asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.errors import CheckpointError, MisconfiguredError
from transom.link.message import Step
from transom.link.told import Told
from transom.link.tunnels import TunnelSettings
from transom.privacy.stream import Direction
from transom.vertical import run, traffic
from transom.vertical.half import make_half
from transom.vertical.model import standardise
from transom.vertical.schedule import Units

from .scene import Heard, Jobs, make_jobs, make_parts

WAYS: tuple[Direction, ...] = ("forward", "backward")


def recording(tmp_path: Path, *, most_mb: int = 10, **train: Any) -> Jobs:
    return make_jobs("binary", tmp_path, record_traffic_mb=most_mb, **train)


@pytest.mark.parametrize("schedule", ["vfl", "vfl-ps", "avfl", "pubsub"])
def test_both_parties_record_the_same_of_every_row_in_every_epoch(tmp_path: Path, schedule: str) -> None:
    jobs, parts = recording(tmp_path, schedule=schedule, workers=2), make_parts("binary")
    run.simulate(jobs, parts, Heard())
    label, feature = (traffic.read(job) for job in jobs)
    assert label.keys() == feature.keys()
    assert all(np.array_equal(label[step], feature[step]) for step in label)
    assert {step.topic for step in label} == {"train"}
    for way in WAYS:
        views_ERW, batch_ER = traffic.views(jobs[0], len(parts[0].train), label, way)
        assert views_ERW.shape == (2, len(parts[0].train), 5)
        assert sorted(np.bincount(batch_ER.ravel())) == sorted([16, 16, 16, 15] * 2)
    assert all(path.stat().st_mode & 0o077 == 0 for path in traffic.files(traffic.folder_of(jobs[0])))


def test_rows_stand_where_their_embeddings_were_made(tmp_path: Path) -> None:
    """The first batch's embeddings are those of the bottom as it began; a rounding away."""
    jobs, parts = recording(tmp_path), make_parts("binary")
    run.simulate(jobs, parts, Heard())
    half = make_half(jobs[1], parts[1].width, local=True)
    assert half.bottom is not None
    standardise(half.bottom, parts[1])
    rows = Units.of(jobs[1], len(parts[1].train)).rows(0)
    wanted_BW = half.embed(torch.from_numpy(parts[1].rows(parts[1].train[rows])))
    kept = traffic.read(jobs[0])
    found_ERW, _ = traffic.views(jobs[0], len(parts[0].train), kept, "forward")
    np.testing.assert_allclose(found_ERW[0, rows], wanted_BW.numpy(), rtol=1e-5, atol=1e-6)


def test_embeddings_are_recorded_with_their_noise(tmp_path: Path) -> None:
    jobs = recording(tmp_path)
    jobs = (
        replace(jobs[0], partner_noise="gaussian"),
        replace(jobs[1], noise=TunnelSettings("gaussian", clip=1.0, sigma=1000.0)),
    )
    run.simulate(jobs, make_parts("binary"), Heard())
    for job in jobs:
        sent = np.concatenate([one for step, one in traffic.read(job).items() if step.direction == "forward"])
        assert 800 < sent.std() < 1200


class StoppedError(Exception):
    """A run that is stopped from outside."""


def test_nothing_is_missing_of_a_run_that_was_stopped(tmp_path: Path) -> None:
    parts, whole = make_parts("binary"), recording(tmp_path / "whole")
    run.simulate(whole, parts, Heard())
    jobs = recording(tmp_path / "stopped")
    for step in (2, 4, 7):

        def tell(told: Told, step: int = step) -> None:
            if told.kind == "step" and told.step == step:
                raise StoppedError

        with pytest.raises(StoppedError):
            run.simulate(jobs, parts, tell)
    run.simulate(jobs, parts, Heard())
    for job, other in zip(jobs, whole, strict=True):
        found, wanted = traffic.read(job), traffic.read(other)
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[step], wanted[step]) for step in wanted)


def test_only_who_asks_records_and_a_prediction_leaves_it_alone(tmp_path: Path) -> None:
    jobs, parts = recording(tmp_path), make_parts("binary")
    jobs = replace(jobs[0], train=replace(jobs[0].train, record_traffic_mb=0)), jobs[1]
    run.simulate(jobs, parts, Heard())
    before = traffic.read(jobs[1])
    run.predict_here(jobs, parts)
    assert not traffic.folder_of(jobs[0]).exists()
    after = traffic.read(jobs[1])
    assert before.keys() == after.keys()
    assert len(after) == 16


def rows(count: int, width: int = 5) -> dict[str, Any]:
    return {"rows": torch.ones(count, width)}


def steps(count: int) -> list[Step]:
    return [Step(0, number, "forward") for number in range(count)]


def test_more_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    keeper = traffic.Keeper(tmp_path, 1, anew=True)
    for step in steps(4):
        keeper.add(step, rows(400_000 // 4 // 5))
    keeper.flush()
    job = recording(tmp_path)[0]
    (tmp_path / "label").mkdir()
    tmp_path.joinpath("000000.safetensors").rename(tmp_path / "label" / "moved")
    assert (tmp_path / "label" / "moved").stat().st_size < 2**20
    traffic.folder_of(job).mkdir()
    (tmp_path / "label" / "moved").rename(traffic.folder_of(job) / "000000.safetensors")
    assert sorted(traffic.read(job)) == steps(2)
    again = traffic.Keeper(traffic.folder_of(job), 1, anew=False)
    again.add(Step(1, 0, "forward"), rows(400_000 // 4 // 5))
    again.flush()
    assert sorted(traffic.read(job)) == steps(2)


def test_a_run_that_begins_removes_what_was_kept(tmp_path: Path) -> None:
    for anew, count in ((False, 1), (False, 2), (True, 1)):
        keeper = traffic.Keeper(tmp_path, 1, anew=anew)
        keeper.add(Step(0, count, "forward"), rows(3))
        keeper.flush()
        assert len(traffic.files(tmp_path)) == count


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    job = recording(tmp_path)[0]
    folder = traffic.folder_of(job)
    assert traffic.read(job) == {}
    keeper = traffic.Keeper(folder, 1, anew=True)
    keeper.add(Step(0, 0, "forward"), rows(3))
    keeper.flush()
    with pytest.raises(CheckpointError, match="another run"):
        traffic.views(job, 63, traffic.read(job), "forward")
    keeper.add(Step(0, 0, "forward"), rows(3, width=6))
    keeper.flush()
    with pytest.raises(CheckpointError, match="damaged"):
        traffic.read(job)
    whole = traffic.files(folder)[0].read_bytes()
    traffic.files(folder)[1].unlink()
    traffic.files(folder)[0].write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match="damaged"):
        traffic.read(job)
    traffic.files(folder)[0].chmod(0o644)
    with pytest.raises(MisconfiguredError, match="others may read"):
        traffic.read(job)


def test_an_epoch_that_is_not_whole_is_left_out(tmp_path: Path) -> None:
    job = recording(tmp_path)[0]
    units = Units.of(job, 63)
    kept = {
        units.step(unit, "train"): np.full((len(units.rows(unit)), 5), unit, np.float32) for unit in range(7)
    }
    kept[units.step(2, "train", attempt=1)] = np.full((16, 5), 99, np.float32)
    views_ERW, batch_ER = traffic.views(job, 63, kept, "forward")
    assert views_ERW.shape == (1, 63, 5)
    assert (views_ERW[0, units.rows(2)] == 99).all()
    assert (batch_ER[0, units.rows(3)] == 3).all()
    assert traffic.views(job, 63, kept, "backward")[0].shape == (0, 63, 5)
