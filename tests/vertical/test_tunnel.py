"""Tunnels in a vertical training: each kind in both directions, what is priced and refused, budgets that end
a run, runs that go on, and the watch for hijackers."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from transom.errors import CheckpointError, LinkRefusedError
from transom.link import hijack
from transom.link.hijack import Watch, coherence, directions
from transom.link.message import Step
from transom.link.tunnels import Budget, TunnelSettings
from transom.privacy.guarantee import price
from transom.vertical import run
from transom.vertical.job import VerticalJob
from transom.vertical.label import LabelSide
from transom.vertical.messages import DROPPED
from transom.vertical.party import make_party

from .scene import Heard, Jobs, make_jobs, make_parts, states_of
from .test_run import StoppedError, stop_at

KINDS = ("clipping", "gaussian", "laplace", "d_chi", "r3elu", "r3elu-dp")


def settings(kind: str, clip: float = 1.0, **fields: Any) -> TunnelSettings:
    epsilon = None if kind in ("none", "clipping") else 40.0
    return TunnelSettings(kind, clip, epsilon, **fields)  # type: ignore[arg-type]


def jobs_with(
    folder: Path, feature: TunnelSettings | None = None, label: TunnelSettings | None = None, **train: Any
) -> Jobs:
    mine, partners = make_jobs("binary", folder, **train)
    feature, label = feature or TunnelSettings(), label or TunnelSettings()
    return (
        replace(mine, noise=label, partner_noise=feature.kind),
        replace(partners, noise=feature, partner_noise=label.kind),
    )


def told(job: VerticalJob) -> Any:
    return json.loads((job.folder / "report.json").read_text())["noise"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_each_tunnel_goes_each_way_and_says_what_it_costs(kind: str, way: str, tmp_path: Path) -> None:
    chosen = settings(kind, 0.2 if way == "forward" else 0.001)
    jobs = jobs_with(tmp_path, **{"feature" if way == "forward" else "label": chosen})
    plain = jobs_with(tmp_path / "plain")
    parts = make_parts("binary")
    for each in (jobs, plain):
        run.simulate(each, parts, Heard())
    assert states_of(jobs) != states_of(plain)
    job = jobs[1] if way == "forward" else jobs[0]
    report = told(job)
    assert report["kind"] == kind
    assert report["releases_of_a_row_at_most"] == (3 if way == "forward" else 2)
    guarantee = job.mechanism.guarantee(report["releases_of_a_row_at_most"])
    assert report["guarantee"] == json.loads(json.dumps(guarantee.to_dict()))
    if kind in ("clipping", "r3elu"):
        assert guarantee.kind == "empirical"
        assert "budget" not in report
    else:
        spent = price(guarantee, job.noise.delta)
        assert report["budget"]["spent"] == spent <= 40.0
        assert not report["budget"]["ended_the_run"]
    scores = run.predict_here(jobs, parts)
    np.testing.assert_array_equal(run.predict_here(jobs, parts), scores)


@pytest.mark.parametrize("schedule", ["vfl", "pubsub"])
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_a_run_ends_before_a_row_is_released_too_often(
    way: str, schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paid for are fewer releases than epochs: the run ends in good order, and says why."""
    monkeypatch.setattr(
        TunnelSettings,
        "budget",
        lambda self, mechanism, rows, kept=0: Budget(np.zeros(rows, np.int64), 3 if self.epsilon else np.inf),
    )
    chosen = {"feature" if way == "forward" else "label": settings("laplace")}
    jobs = jobs_with(tmp_path, epochs=6, schedule=schedule, **chosen)
    side = run.simulate(jobs, make_parts("binary"), Heard())
    assert side.now.over
    report = told(jobs[1] if way == "forward" else jobs[0])
    assert report["budget"]["ended_the_run"]
    assert report["releases_of_a_row_at_most"] <= 3 + (way == "forward")
    assert 1 <= side.now.evaluated <= 3


@pytest.mark.parametrize("at", [2, 5, 7])
def test_what_left_before_a_kill_is_not_paid_for_twice(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed and goes on has the same bits and releases, with what its tunnels learnt."""
    monkeypatch.setattr("transom.link.record.secrets.token_bytes", bytes)  # one noise for both runs
    both = {
        "feature": settings("r3elu-dp", keep=2, learns=True, spare=0),
        "label": settings("r3elu-dp", 0.01, keep=2, learns=True, spare=0),
    }
    calm, jobs = jobs_with(tmp_path / "calm", **both), jobs_with(tmp_path / "killed", **both)
    parts = make_parts("binary")
    run.simulate(calm, parts, Heard())
    with pytest.raises(StoppedError):
        run.simulate(jobs, parts, stop_at(at))
    run.simulate(jobs, parts, Heard())
    assert states_of(jobs) == states_of(calm)
    for one, other in zip(jobs, calm, strict=True):
        assert told(one) == told(other)
        heads = [json.loads((job.folder / "job.json").read_text())["importance"] for job in (one, other)]
        assert heads[0] == heads[1]
        assert len(heads[0]) == one.width
    np.testing.assert_array_equal(run.predict_here(jobs, parts), run.predict_here(calm, parts))


def test_replies_without_rows_cost_nothing_after_a_restart(tmp_path: Path) -> None:
    """Such as that an embedding was dropped, of which the record has the step alone."""
    job = jobs_with(tmp_path, label=settings("laplace", 0.01))[0]
    with closing(make_party(job, make_parts("binary")[0], Heard())) as party:
        side = party.side
        assert isinstance(side, LabelSide)
        sent = [Step(0, 0, "backward", attempt) for attempt in range(3)]
        talk = SimpleNamespace(send=lambda step, tensors: None)
        for step in sent[:2]:
            side._reply(talk, step, None, DROPPED)  # type: ignore[arg-type]
        side.restore(side.saved())
        side.charge(sent)
        assert side.budget.spent_R.max() == 1


def test_a_run_does_not_go_on_with_another_budget(tmp_path: Path) -> None:
    jobs, parts = jobs_with(tmp_path, settings("laplace")), make_parts("binary")
    with pytest.raises(StoppedError):
        run.simulate(jobs, parts, stop_at(5))
    other = jobs[0], replace(jobs[1], noise=replace(jobs[1].noise, epsilon=80.0))
    with pytest.raises(CheckpointError, match="noise"):
        run.simulate(other, parts, Heard())
    run.simulate(jobs, parts, Heard())


def test_a_prediction_has_the_strength_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other versions may find another one for the same epsilon; two of one noise would tell a row."""
    jobs, parts = jobs_with(tmp_path, settings("gaussian")), make_parts("binary")
    run.simulate(jobs, parts, Heard())
    monkeypatch.setattr("transom.link.tunnels._DIGITS", 0.5)
    TunnelSettings.strength.cache_clear()
    with pytest.raises(CheckpointError, match="noise was"):
        run.predict_here(jobs, parts)
    TunnelSettings.strength.cache_clear()


def test_what_a_watch_saw_survives_a_kill(tmp_path: Path) -> None:
    watch, again = Watch(one_output=True), Watch(one_output=True)
    gradients = hijacked(hijack.FIRST + hijack.WINDOW)
    for gradient_BW in gradients[:-1]:
        watch.see(gradient_BW)
    again.restore(watch.saved())
    with pytest.raises(LinkRefusedError, match="train your model to read"):
        again.see(gradients[-1])
    fresh = Watch(one_output=True)
    fresh.restore(())
    assert fresh == Watch(one_output=True)


@pytest.mark.parametrize("own", ["none", "gaussian"])
def test_parties_with_other_tunnels_do_not_train(own: str, tmp_path: Path) -> None:
    label, feature = jobs_with(tmp_path, settings("laplace"))
    jobs = replace(label, partner_noise=own), feature  # type: ignore[arg-type]
    with pytest.raises(LinkRefusedError, match=r"(?s)noise of embeddings.*(laplace.*|none.*|gaussian.*){2}"):
        run.simulate(jobs, make_parts("binary"), Heard())


# The watch


def hijacked(batches: int, rows: int = 32, width: int = 8, spread: float = 0.3) -> list[torch.Tensor]:
    """Gradients of one discriminator: one direction, of other lengths."""
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(width, generator=draw)
    return [
        one * torch.rand(rows, 1, generator=draw) + spread * torch.randn(rows, width, generator=draw)
        for _ in range(batches)
    ]


def test_the_watch_stops_a_hijacker_and_only_after_the_first_batches() -> None:
    watch, last = Watch(one_output=True), hijack.FIRST + hijack.WINDOW
    *before, gradient_BW = hijacked(last)
    for one_BW in before:
        watch.see(one_BW)
    with pytest.raises(LinkRefusedError, match="train your model to read"):
        watch.see(gradient_BW)


def test_coherence_is_one_of_one_direction_and_little_of_many() -> None:
    assert coherence(torch.ones(20, 3)) == pytest.approx(1.0)
    assert coherence(torch.zeros(20, 3)) == 0.0
    assert coherence(torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))) < 0.01
    assert coherence(torch.tensor([[1.0], [-1.0]])) == 0.0


def test_directions_are_the_rank_of_equal_ones() -> None:
    assert directions(torch.eye(6)) == pytest.approx(6.0)
    assert directions(torch.eye(6).repeat(4, 1)) == pytest.approx(6.0)
    assert directions(torch.ones(9, 4)) == pytest.approx(1.0)
    assert directions(torch.zeros(9, 4)) == 0.0


def highest(seen: list[float]) -> float:
    """The highest mean of a window."""
    return float(max(np.convolve(seen, np.ones(hijack.WINDOW) / hijack.WINDOW, "valid")))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "counts"])
def test_honest_runs_raise_no_alarm(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[float]] = {"coherence": [], "directions": []}

    def looked(name: str, found: Any) -> Any:
        return lambda gradient_BW: seen[name].append(found(gradient_BW)) or seen[name][-1]

    monkeypatch.setattr(hijack, "coherence", looked("coherence", coherence))
    monkeypatch.setattr(hijack, "directions", looked("directions", directions))
    jobs = make_jobs(task, tmp_path, epochs=60)
    jobs = jobs[0], replace(jobs[1], watch=True)
    run.simulate(jobs, make_parts(task), Heard())
    assert len(seen["coherence"]) > 100
    assert highest(seen["coherence"]) < 0.6 * hijack.MOST_COHERENCE
    assert highest(seen["directions"] or [0.0] * 100) < 0.8 * hijack.MOST_DIRECTIONS
    assert bool(seen["directions"]) == (task != "multiclass")


def test_a_hijacked_training_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label party whose gradients push all rows one way is stopped, and told nothing more."""
    from transom.vertical.label import LabelSide

    def made_up(self: LabelSide, talk: Any, step: Any, rows_BW: Any, said: int) -> None:
        reply(self, talk, step, rows_BW if rows_BW is None else torch.ones_like(rows_BW) * 1e-3, said)

    reply = LabelSide._reply
    monkeypatch.setattr(LabelSide, "_reply", made_up)
    jobs = make_jobs("binary", tmp_path, epochs=100)
    jobs = jobs[0], replace(jobs[1], watch=True)
    with pytest.raises(LinkRefusedError, match="train your model to read"):
        run.simulate(jobs, make_parts("binary"), Heard())
