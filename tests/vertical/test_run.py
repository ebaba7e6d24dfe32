"""A synchronous run equals the joint model's, goes on from where it was stopped, and can be used."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.errors import CheckpointError, LinkRefusedError, MisconfiguredError
from transom.link.broker import Broker
from transom.link.memory import together
from transom.link.message import Step
from transom.link.session import Received
from transom.link.talk import Talk
from transom.link.told import Told
from transom.link.tunnels import TunnelSettings
from transom.vertical import run, schedule
from transom.vertical.feature import FeatureSide
from transom.vertical.job import Net
from transom.vertical.messages import PREDICT, message
from transom.vertical.part import load_here
from transom.vertical.party import Workers, make_party, met

from .scene import TASKS, Heard, Joint, at, make_jobs, make_parts, states_of, weights_of


@pytest.mark.parametrize("schedule", ["vfl", "vfl-ps"])
@pytest.mark.parametrize("own", [0, 3])
@pytest.mark.parametrize("task", TASKS)
def test_a_run_equals_the_joint_one_and_predicts_as_it_ended(
    tmp_path: Path, task: str, own: int, schedule: str
) -> None:
    jobs, parts = make_jobs(task, tmp_path, schedule=schedule, workers=3), make_parts(task, own=own)
    heard, joint = Heard(), Joint(jobs, parts)
    run.simulate(jobs, parts, heard)
    wanted = joint.run()
    assert heard.losses == pytest.approx(wanted.losses, abs=1e-6)
    for found, one in zip(heard.evaluations, wanted.evaluations, strict=True):
        assert found == pytest.approx(one, rel=1e-5)
    weights = weights_of(jobs)
    assert weights.keys() == joint.weights().keys()
    for name, value in joint.weights().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)
    scores = run.predict_here(jobs, parts)
    np.testing.assert_allclose(scores, joint.scores(np.arange(90)), rtol=1e-5)
    np.testing.assert_allclose(run.predict_here(jobs, parts, [7, 3, 7]), scores[[7, 3, 7]], rtol=1e-6)


class StoppedError(Exception):
    """A run that is stopped from outside."""


def stop_at(step: int, kind: str = "step") -> Any:
    def tell(told: Told) -> None:
        if told.kind == kind and told.step == step:
            raise StoppedError

    return tell


@pytest.mark.parametrize("workers", ["here", "threads"])
@pytest.mark.parametrize("schedule", ["vfl", "vfl-ps"])
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bits(
    tmp_path: Path, schedule: str, workers: Workers
) -> None:
    """Where workers take their time, all that came since the checkpoint waits for them at a restart."""
    net = Net(module="tests.vertical.scene:Dropping") if schedule == "vfl" else None
    jobs = make_jobs("binary", tmp_path / "a", bottom=net, schedule=schedule, workers=2)
    parts, heard = make_parts("binary"), Heard()
    calm = at(jobs, tmp_path / "calm")
    run.simulate(calm, parts, heard)
    for step, kind in ((1, "step"), (4, "evaluated"), (7, "step"), (8, "done")):
        with pytest.raises(StoppedError):
            run.simulate(jobs, parts, stop_at(step, kind), workers=workers)
    again = Heard()
    end = run.simulate(jobs, parts, again, workers=workers)
    assert states_of(jobs) == states_of(calm)
    assert [dict(point.metrics) for point in end.now.history] == heard.evaluations
    assert not again.losses  # nothing was left to do but to take leave
    marks = {json.loads((job.folder / "job.json").read_text())["run"] for job in jobs}
    assert len(marks) == 1


def test_an_evaluation_of_more_messages_than_the_window_holds_ends_also_where_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was received has to be applied in its midst, or the window of 64 messages stays full."""
    monkeypatch.setattr(schedule, "EVALUATED_ROWS", 1)
    settings: dict[str, Any] = {"batch_rows": 1, "epochs": 1, "checkpoint_every_steps": 1000}
    jobs, parts = make_jobs("binary", tmp_path / "a", **settings), make_parts("binary", rows=250)
    assert len(schedule.chunks(len(parts[0].test), 1)) > 64
    kept, graded = FeatureSide._evaluated, []

    def stopped(side: FeatureSide, talk: Talk, received: Received) -> None:
        graded.append(received)
        if len(graded) == 40:
            raise StoppedError
        kept(side, talk, received)

    monkeypatch.setattr(FeatureSide, "_evaluated", stopped)
    with pytest.raises(StoppedError):
        run.simulate(jobs, parts, Heard())
    end = run.simulate(jobs, parts, Heard())
    monkeypatch.undo()
    calm = at(jobs, tmp_path / "calm")
    wanted = run.simulate(calm, parts, Heard())
    assert states_of(jobs) == states_of(calm)
    assert end.now.history[-1].metrics == pytest.approx(wanted.now.history[-1].metrics)


def test_a_feature_party_that_is_stopped_after_an_evaluation_is_told_its_verdict_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps nothing of its own then; what it sent for it goes no second time."""
    jobs = make_jobs("binary", tmp_path / "a", epochs=2, schedule="vfl", checkpoint_every_steps=1000)
    parts, calm, heard = make_parts("binary"), at(jobs, tmp_path / "calm"), Heard()
    run.simulate(calm, parts, heard)
    kept = FeatureSide._evaluated

    def stopped(side: FeatureSide, talk: Talk, received: Received) -> None:
        kept(side, talk, received)
        if side.now.evaluated == 1:
            raise StoppedError

    monkeypatch.setattr(FeatureSide, "_evaluated", stopped)
    with pytest.raises(StoppedError):
        run.simulate(jobs, parts, Heard())
    monkeypatch.undo()
    end = run.simulate(jobs, parts, Heard())
    assert states_of(jobs) == states_of(calm)
    assert [dict(point.metrics) for point in end.now.history] == heard.evaluations
    reports = [json.loads((one[1].folder / "report.json").read_text()) for one in (jobs, calm)]
    released = [one["noise"]["releases_of_a_row_at_most"] for one in reports]
    assert released[0] == released[1]


def test_noise_is_that_of_the_first_time_and_its_price_is_told(tmp_path: Path) -> None:
    noise = TunnelSettings("gaussian", clip=1.0, mu=2.0)
    label, feature = make_jobs("binary", tmp_path / "a")
    jobs = replace(label, partner_noise="gaussian"), replace(feature, noise=noise)
    parts = make_parts("binary")
    with pytest.raises(StoppedError):
        run.simulate(jobs, parts, stop_at(2))
    run.simulate(jobs, parts, Heard())
    report = json.loads((jobs[1].folder / "report.json").read_text())
    assert report["noise"]["releases_of_a_row_at_most"] == 2 + 1  # all predictions together are one
    assert report["noise"]["mu"] == pytest.approx(2.0)
    assert report["noise"]["guarantee"]["kind"] == "approximate-dp"


def noisy_run(folder: Path) -> tuple[Any, Any]:
    label, feature = make_jobs("binary", folder)
    jobs, parts = (
        (
            replace(label, partner_noise="gaussian"),
            replace(feature, noise=TunnelSettings("gaussian", clip=1.0, mu=2.0)),
        ),
        make_parts("binary"),
    )
    run.simulate(jobs, parts, Heard())
    return jobs, parts


def test_a_row_has_one_noise_in_all_predictions(tmp_path: Path) -> None:
    jobs, parts = noisy_run(tmp_path / "a")
    scores = run.predict_here(jobs, parts)
    np.testing.assert_array_equal(run.predict_here(jobs, parts), scores)
    some = np.array([7, 3])
    np.testing.assert_allclose(run.predict_here(jobs, parts, some), scores[some], rtol=1e-5)
    plain = replace(jobs[0], partner_noise="none"), replace(jobs[1], noise=TunnelSettings())
    with pytest.raises(
        CheckpointError, match="noise of embeddings was 'gaussian'"
    ):  # as it trained, or not at all
        run.predict_here(plain, parts)
    changed = parts[1].features_NF.copy()
    changed[parts[1].places_M[3]] += 1e-4
    again = run.predict_here(jobs, (parts[0], replace(parts[1], features_NF=changed)))
    assert again[3] != pytest.approx(scores[3], rel=1e-3)  # other values are another row
    np.testing.assert_array_equal(np.delete(again, 3), np.delete(scores, 3))


def test_without_the_runs_secret_no_noisy_row_is_given(tmp_path: Path) -> None:
    jobs, parts = noisy_run(tmp_path / "a")
    (jobs[1].folder / "record" / "run-feature.sqlite").unlink()
    with pytest.raises(CheckpointError, match="is gone, the record of the run that trained"):
        run.predict_here(jobs, parts)


def test_a_run_ends_early_when_nothing_is_gained(tmp_path: Path) -> None:
    label, feature = make_jobs("binary", tmp_path, epochs=9, learning_rate=1.0)
    parts = make_parts("binary")
    end = run.simulate((replace(label, train=replace(label.train, patience=1)), feature), parts, Heard())
    assert 1 < len(end.now.history) < 9


def test_what_differs_is_refused_with_both_values(tmp_path: Path) -> None:
    jobs, parts = make_jobs("binary", tmp_path), make_parts("binary")
    other = replace(parts[1], order_hash="other")
    with pytest.raises(LinkRefusedError, match=r"order of the IDs.*(hash.*other|other.*hash)"):
        run.simulate(jobs, (parts[0], other), Heard())
    few = replace(jobs[1], train=replace(jobs[1].train, batch_rows=8))
    with pytest.raises(LinkRefusedError, match="batch_rows"):
        run.simulate((at(jobs, tmp_path / "b")[0], replace(few, out=tmp_path / "b")), parts, Heard())


def test_a_file_that_changed_is_told_at_resume_and_at_prediction(tmp_path: Path) -> None:
    jobs, parts = make_jobs("binary", tmp_path), make_parts("binary")
    with pytest.raises(StoppedError):
        run.simulate(jobs, parts, stop_at(5))
    changed = replace(parts[1], digest="of another file")
    with pytest.raises(CheckpointError, match="file was 'digest', and is 'of another file'"):
        run.simulate(jobs, (parts[0], changed), Heard())
    run.simulate(jobs, parts, Heard())
    with pytest.raises(CheckpointError, match="file was 'digest', and is 'of another file'"):
        run.predict_here(jobs, (parts[0], changed))


def test_halves_of_two_runs_do_not_predict_together(tmp_path: Path) -> None:
    parts, jobs, others = make_parts("binary"), *(make_jobs("binary", tmp_path / name) for name in "ab")
    run.simulate(jobs, parts, Heard())
    run.simulate(others, parts, Heard())
    with pytest.raises(LinkRefusedError, match="trained"):
        run.predict_here((jobs[0], others[1]), parts)


def test_a_model_that_diverges_is_told(tmp_path: Path) -> None:
    jobs, parts = make_jobs("counts", tmp_path), make_parts("counts")
    parts[0].labels_M[:] = 3e38  # type: ignore[index]
    with pytest.raises((MisconfiguredError, LinkRefusedError), match=r"finite|diverges"):
        run.simulate(jobs, parts, Heard())


def write_csv(path: Path, part: Any, *, labels: bool) -> Path:
    """The rows of a part in the order of its table, and some that the partner does not have."""
    order = np.argsort(part.places_M)
    head = ["id", *part.names, *(["y"] if labels else [])]
    lines = []
    for row in order:
        cells = [part.ids[row], *map(str, part.rows(row)), *([str(part.labels_M[row])] if labels else [])]
        lines.append(",".join(cells))
    more = ",".join([f"nobody of {path.stem}", *(["1.5"] * len(part.names)), *(["0"] if labels else [])])
    path.write_text("\n".join([",".join(head), *lines, more]) + "\n", "utf-8")
    return path


def test_a_run_from_files_predicts_rows_of_other_files(tmp_path: Path) -> None:
    parts, jobs = make_parts("regression"), make_jobs("regression", tmp_path / "out")
    paths = tuple(
        write_csv(tmp_path / f"{job.role}.csv", part, labels=job.role == "label")
        for job, part in zip(jobs, parts, strict=True)
    )
    named = tuple(
        replace(job, data=replace(job.data, path=path)) for job, path in zip(jobs, paths, strict=True)
    )
    files: Any = load_here(named)  # type: ignore[arg-type]
    assert set(files[0].ids) == set(parts[0].ids)
    run.simulate(named, files, Heard())  # type: ignore[arg-type]
    scores = run.predict_here(named, files)  # type: ignore[arg-type]
    np.testing.assert_allclose(scores, Joint(named, files).scores_after(weights_of(named)), rtol=1e-5)  # type: ignore[arg-type]
    fewer = [tmp_path / f"fewer-{path.name}" for path in paths]
    for path, short in zip(paths, fewer, strict=True):
        short.write_text("\n".join(path.read_text("utf-8").splitlines()[:31]) + "\n", "utf-8")
    new: Any = load_here(named, tuple(fewer))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="rows was '90'"):
        run.predict_here(named, new)  # type: ignore[arg-type]
    found = run.predict_here(named, new, new_rows=True)  # type: ignore[arg-type]
    places = [files[0].ids.index(one) for one in new[0].ids]
    np.testing.assert_allclose(found, scores[places], rtol=1e-5)


def test_modules_that_share_weights_learn_as_the_joint_model_does(tmp_path: Path) -> None:
    net = Net(module="tests.vertical.scene:Tied")
    jobs, parts = make_jobs("regression", tmp_path, bottom=net), make_parts("regression")
    joint, heard = Joint(jobs, parts), Heard()
    run.simulate(jobs, parts, heard)
    assert heard.losses == pytest.approx(joint.run().losses, abs=1e-6)
    for name, value in joint.weights().items():
        torch.testing.assert_close(weights_of(jobs)[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("asked", [[[3, 5, 3]], [[3, 5], [1, 3]]])
def test_a_row_is_given_once_to_who_asks_again(tmp_path: Path, asked: list[list[int]]) -> None:
    jobs, parts = make_jobs("binary", tmp_path), make_parts("binary")
    run.simulate(jobs, parts, Heard())
    label, feature = (
        make_party(job, part, Heard(), purpose="predict") for job, part in zip(jobs, parts, strict=True)
    )

    def ask(broker: Broker) -> None:
        with met(label, broker) as (_session, talk):
            for count, numbers in enumerate(asked):
                step = Step(0, count, "forward", topic=PREDICT)
                talk.send(step, message(jobs[0].width, None, numbers))
                talk.answer(step)
                talk.commit(None)

    with closing(label), closing(feature), pytest.raises(LinkRefusedError, match="each is given once"):
        together(lambda end: run.answer(feature, end), ask)
