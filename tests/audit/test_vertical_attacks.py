"""Attacks on vertical training: they read a bare run, and are at chance where noise swamps what they read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transom.audit import vertical_case
from transom.audit.attacks import vertical_inversion, vertical_labels
from transom.audit.attacks.vertical_view import (
    Exchanged,
    Known,
    Seen,
    Truth,
    kernel,
    others,
    regress,
    ridge_of,
    told,
)
from transom.link.tunnels import TunnelSettings
from transom.report.checked import checked
from transom.report.finding import Finding
from transom.vertical import run, traffic

from ..vertical.scene import Heard, make_jobs, make_parts

EPOCHS = 6
BARE, STRONG = TunnelSettings(), TunnelSettings("gaussian", clip=1.0, sigma=100.0)
ATTACKS = {one.NAME: one for one in (*vertical_inversion.attacks(), *vertical_labels.attacks())}
INVERSION = ("inversion/values", "inversion/variance")


@dataclass(frozen=True, eq=False)
class Run:
    """What was exchanged in a run, and the truth of it."""

    target: Exchanged
    data: Truth

    def known(self, rows: int = 150, labels: int = 10) -> Known:
        return vertical_case.known(self.data, len(self.target.embeddings), rows, labels)

    def swamped(self) -> Run:
        """With noise on gradients that swamps them."""
        seen = self.target.gradients
        noise_ENW = np.random.default_rng(5).normal(size=seen.views_ENW.shape) * 100
        noisy = replace(seen, views_ENW=(seen.views_ENW + noise_ENW).astype(np.float32))
        return Run(replace(self.target, gradients=noisy), self.data)


def make_run(folder: Path, task: str, noise: TunnelSettings = BARE, **train: Any) -> Run:
    jobs = make_jobs(task, folder, epochs=EPOCHS, batch_rows=64, record_traffic_mb=20, **train)
    label_job = replace(jobs[0], width=8, partner_noise=noise.kind)
    jobs = label_job, replace(jobs[1], width=8, noise=noise)
    label, feature = make_parts(task, rows=500)
    run.simulate(jobs, (label, feature), Heard())
    kept, count = traffic.read(jobs[0]), len(label.train)
    target = Exchanged(
        Seen(*traffic.views(jobs[0], count, kept, "forward"), vertical_case.deviation(jobs[1])),
        Seen(*traffic.views(jobs[0], count, kept, "backward")),
    )
    return Run(target, vertical_case.truth({"label": label, "feature": feature}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    made = {task: make_run(root / task, task) for task in ("binary", "multiclass", "regression")}
    return made | {
        "noised": make_run(root / "noised", "binary", STRONG),
        "pubsub": make_run(root / "pubsub", "binary", schedule="pubsub"),
    }


def found(one: Run, name: str, knowledge: Known | None = None) -> Finding:
    made = ATTACKS[name].attack(one.target, knowledge or one.known(), one.data, 10.0)
    checked_one = checked(name, ATTACKS[name].METRIC, made)
    assert checked_one.status == made.status, checked_one.reason
    return made


@pytest.mark.parametrize("name", INVERSION)
def test_bare_embeddings_are_inverted_and_noise_leaves_chance(runs: dict[str, Run], name: str) -> None:
    for bare in (found(runs["binary"], name), found(runs["pubsub"], name)):
        assert bare.above_chance, bare
        assert bare.value is not None
        assert bare.value > (0.8 if name == "inversion/variance" else 0.2)
        assert "column" in bare.note
    noised = found(runs["noised"], name)
    assert noised.value is not None
    assert noised.baseline is not None
    assert noised.value < noised.baseline + 0.06, noised  # of new noise 5 in 100 intervals lie above chance


def test_what_is_known_decides_how_much_is_read(runs: dict[str, Run]) -> None:
    few, many = (
        found(runs["binary"], "inversion/variance", runs["binary"].known(rows)).value for rows in (10, 200)
    )
    assert few is not None
    assert many is not None
    assert few < many
    assert found(runs["binary"], "inversion/values", runs["binary"].known(5)).reason


@pytest.mark.parametrize("which", ["binary", "pubsub", "noised"])
def test_gradients_give_labels_away_whatever_noise_embeddings_have(runs: dict[str, Run], which: str) -> None:
    """Noise is new in each run: the classifier, of 20 labels known, had 0.78 to 0.96 in 11 noised ones."""
    for name, least in (("labels/direction", 0.85), ("labels/classifier", 0.6), ("labels/gradient", 0.85)):
        made = found(runs[which], name)
        assert made.above_chance, made
        assert made.value is not None
        assert made.value > least


def test_swamped_gradients_leave_chance(runs: dict[str, Run]) -> None:
    for task in ("binary", "multiclass", "regression"):
        swamped = runs[task].swamped()
        made = [
            found(swamped, name, swamped.known(labels=40)) for name in ATTACKS if name.startswith("labels")
        ]
        at_chance = [one for one in made if one.status == "run" and one.name != "labels/completion"]
        assert at_chance
        assert not any(one.above_chance for one in at_chance), at_chance


def test_norms_tell_the_rarer_class(runs: dict[str, Run]) -> None:
    """A gradient is as long as the truth is unexpected; without a label known, and with some that turn it."""
    draw = np.random.default_rng(0)
    labels_N = (draw.random(400) < 0.1).astype(np.int64)
    lengths_N = np.where(labels_N == 1, 0.9, 0.1) * draw.lognormal(0, 0.2, 400)
    way_EW = draw.normal(size=(3, 6))
    views_ENW = (lengths_N[:, None] * (1 - 2 * labels_N[:, None]) * way_EW[:, None]).astype(np.float32)
    batches_EN = np.stack([draw.permutation(np.repeat(np.arange(8), 50)) + 8 * epoch for epoch in range(3)])
    seen = Seen(views_ENW, batches_EN)
    one = Run(Exchanged(seen, seen), Truth(labels_N=labels_N))
    for labels in (0, 3):
        for name in ("labels/norm", "labels/direction"):
            assert found(one, name, one.known(labels=labels)).value == 1.0
    assert found(one, "labels/classifier", one.known(labels=3)).value == 1.0


def test_several_classes_are_named_and_numbers_read(runs: dict[str, Run]) -> None:
    named = found(runs["multiclass"], "labels/gradient")
    read = found(runs["regression"], "labels/value", runs["regression"].known(labels=50))
    assert named.value is not None
    assert read.value is not None
    assert named.value > 0.8
    assert read.value > 0.9


def test_a_head_completes_a_trained_model() -> None:
    """Embeddings that tell a label which columns tell a straight head nothing of."""
    draw = np.random.default_rng(1)
    columns_NF = draw.normal(size=(600, 2))
    labels_N = (columns_NF.prod(1) > 0).astype(np.int64)
    views_ENW = draw.normal(size=(4, 600, 4)).astype(np.float32)
    views_ENW[-1, :, 0] += 6 * labels_N
    seen = Seen(views_ENW, np.zeros((4, 600), np.int64))
    one = Run(Exchanged(seen, seen), Truth(columns_NF, (), labels_N))
    completed = found(one, "labels/completion", one.known(labels=5))
    assert completed.value is not None
    assert completed.value > 0.95
    assert completed.above_chance
    assert "columns" in completed.note
    without = replace(one.known(labels=5), columns_NF=None)
    commonest = np.bincount(np.delete(labels_N, without.labelled_K)).max() / 590
    assert found(one, "labels/completion", without).baseline == commonest


def test_what_does_not_fit_is_not_run_and_says_why(runs: dict[str, Run]) -> None:
    whole = runs["binary"]
    empty = Seen(np.zeros((0, 1, 8), np.float32), np.zeros((0, 1), np.int64))
    broken = replace(whole.target.gradients, views_ENW=whole.target.gradients.views_ENW * np.nan)
    cases = {
        "feature party's": (Run(whole.target, Truth(labels_N=whole.data.labels_N)), INVERSION),
        "label party's": (Run(whole.target, replace(whole.data, labels_N=None)), ("labels/norm",)),
        "record_traffic_mb": (Run(Exchanged(empty, empty), whole.data), (*INVERSION, "labels/gradient")),
        "not finite": (Run(replace(whole.target, gradients=broken), whole.data), ("labels/direction",)),
        "are classes": (whole, ("labels/value",)),
        "are numbers": (runs["regression"], ("labels/norm", "labels/gradient", "labels/completion")),
        "needs two": (runs["multiclass"], ("labels/norm", "labels/direction")),
    }
    for reason, (one, names) in cases.items():
        for name in names:
            assert reason in found(one, name, whole.known()).reason
    assert "all" in found(whole, "inversion/values", whole.known(rows=10_000)).reason
    assert "needs all" in found(whole, "labels/gradient", whole.known(labels=0)).reason


def test_the_interval_of_explained_variance_covers_it() -> None:
    """Guesses that explain 60 % of one column and 20 % of the other, of 80 rows; 300 trials."""
    draw, covered, known_K = np.random.default_rng(4), 0, np.arange(20)
    for _ in range(300):
        guess_NF = draw.normal(size=(100, 2)) * np.sqrt([0.6, 0.2])
        truth_NF = guess_NF + draw.normal(size=(100, 2)) * np.sqrt([0.4, 0.8])
        truth_NF[known_K] -= truth_NF[known_K].mean(0)  # so that guessing knows the mean
        made = vertical_inversion.variance("inversion/variance", guess_NF, truth_NF, known_K)
        assert made.low is not None
        assert made.high is not None
        covered += made.low <= 0.4 <= made.high
    assert covered >= 0.91 * 300


def test_the_regression_is_the_one_with_the_least_leave_one_out_error() -> None:
    """Against leaving each row out and solving again."""
    draw = np.random.default_rng(2)
    x_ND, known_K = draw.normal(size=(30, 3)), np.arange(12)
    values_K1 = np.sin(x_ND[known_K, :1] * 2) + x_ND[known_K, 1:2]
    kernel_KK = kernel(x_ND[known_K], x_ND[known_K], 1.5)
    error_1, weights_K1 = ridge_of(kernel_KK, values_K1)
    best = np.inf
    for ridge in np.logspace(-8, 2, 21) * kernel_KK.trace() / 12:
        left = []
        for row in known_K:
            rest = np.delete(known_K, row)
            solved = np.linalg.solve(kernel_KK[np.ix_(rest, rest)] + ridge * np.eye(11), values_K1[rest])
            left.append(kernel_KK[row, rest] @ solved - values_K1[row])
        if (error := float(np.square(left).mean())) < best:
            best, wanted_K1 = error, np.linalg.solve(kernel_KK + ridge * np.eye(12), values_K1)
    assert error_1[0] == pytest.approx(best, rel=1e-4)
    np.testing.assert_allclose(weights_K1, wanted_K1, rtol=1e-4, atol=1e-8)
    guess_N1 = regress(x_ND, known_K, values_K1)
    assert values_K1.min() <= guess_N1.min() <= guess_N1.max() <= values_K1.max()


def test_directions_of_noise_alone_are_left_out() -> None:
    draw = np.random.default_rng(3)
    plain_NW = np.outer(draw.normal(size=2000), [3.0, 0, 0, 0, 0, 0])
    views_ENW = (plain_NW + draw.normal(size=(2, 2000, 6)) * 1.5).astype(np.float32)
    batches_EN = np.zeros((2, 2000), np.int64)
    assert told(Seen(views_ENW, batches_EN, sigma=1.5)).shape == (2000, 1)
    assert told(Seen(views_ENW, batches_EN)).shape == (2000, 12)
    swamped = Seen((views_ENW - plain_NW).astype(np.float32), batches_EN, sigma=1.5)
    assert told(swamped).shape[1] <= 2
    assert others(np.array([1, 3]), 5).tolist() == [0, 2, 4]
