"""Attacks on a tunnel: they succeed without one, on digits and numbers, and read nothing where nothing is."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from transom.audit import tunnel_case
from transom.audit.attacks import tunnel_hijack, tunnel_read
from transom.audit.attacks.tunnel_view import SSIM, Aux, Hidden, likeness, ssim
from transom.audit.attacks.vertical_inversion import VARIANCE
from transom.audit.tunnel_case import Case
from transom.errors import CheckpointError, MisconfiguredError
from transom.link.tunnels import TunnelSettings
from transom.report.finding import Finding
from transom.vertical import run
from transom.vertical.job import Data, Net, Train, VerticalJob
from transom.vertical.part import Part

BUDGET_S = 60.0
NOTHING = TunnelSettings()
NARROW = TunnelSettings("r3elu-dp", 1.0, 2.0)
PARTS, JOBS = tuple[Part, Part], tuple[VerticalJob, VerticalJob]


@cache
def digits() -> PARTS:
    """Is it odd? Both parties' parts; the feature party has the images."""
    images, labels = load_digits(return_X_y=True)
    count = len(images)
    order = np.random.default_rng(0).permutation(count)
    train, test = np.sort(order[:1500]), np.sort(order[1500:])
    ids = tuple(map(str, range(count)))

    def part(table_NF: Any, labels_N: Any) -> Part:
        names = tuple(f"pixel {number}" for number in range(table_NF.shape[1]))
        table_NF = np.ascontiguousarray(table_NF, np.float32)
        return Part(ids, table_NF, np.arange(count), labels_N, train, test, names, "order", "digest")

    return part(np.zeros((count, 0)), (labels % 2).astype(np.int64)), part(images / 16, None)


def jobs(noise: TunnelSettings, folder: Path, **fields: Any) -> JOBS:
    train = Train(schedule="vfl", epochs=40, batch_rows=64, learning_rate=3e-3, record_traffic_mb=256)
    base: dict[str, Any] = {"name": "digits", "task": "binary", "width": 32, "train": train, "out": folder}
    data = Data(Path("labels.csv"), label_column="odd")
    return (
        VerticalJob(**base, data=data, classes=("even", "odd"), partner_noise=noise.kind),
        VerticalJob(**base, data=Data(Path("images.csv")), bottom=Net((128,)), noise=noise, **fields),
    )


@cache
def case(noise: TunnelSettings = NOTHING, *, images: bool = True, watch: bool = False) -> Case:
    """Both parties have trained; the attacker knows 600 of 1,500 rows."""
    both = jobs(noise, Path(mkdtemp()), watch=watch)
    run.simulate(both, digits(), lambda told: None)
    seen = tunnel_case.seen_of(both[1], digits()[1])
    return tunnel_case.made(both[1], digits()[1], *seen, 600, "", (8, 8) if images else None)


def found(made: Case, name: str) -> Finding:
    metric = made.data.metric
    attacks = {one.NAME: one for one in (*tunnel_read.attacks(metric), *tunnel_hijack.attacks(metric))}
    return attacks[name].attack(made.target, made.knowledge, made.data, BUDGET_S)


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize(
    ("name", "least"), [("reconstruction", 0.3), ("hijack", 0.3), ("hijack/space", 0.05)]
)
def test_without_a_tunnel_rows_are_read(name: str, least: float, images: bool) -> None:
    finding = found(case(images=images), name)
    assert finding.metric == (SSIM if images else VARIANCE)
    assert finding.value is not None
    assert finding.low is not None
    reached = finding.low if images else finding.value  # pixels that hardly change make wide intervals
    assert reached > (finding.baseline or 0.0) + least
    assert len(finding.pictures) == (8 if images else 0)


def test_without_a_tunnel_a_property_is_inferred() -> None:
    finding = found(case(), "property")
    assert finding.value is not None
    assert finding.value > 0.8
    assert finding.note.startswith("sum of all columns above its median")


@pytest.mark.parametrize("name", ["property", "reconstruction", "hijack", "hijack/space"])
def test_where_nothing_leaves_nothing_is_read(name: str) -> None:
    """A tunnel that is nearly noise alone: at most what guessing reaches, and a little of the sample."""
    finding = found(case(replace(NARROW, epsilon=0.02)), name)
    assert finding.value is not None
    assert finding.baseline is not None
    assert finding.low is not None
    assert finding.low < finding.baseline + 0.02
    assert finding.value < finding.baseline + 0.06


@pytest.mark.parametrize("name", ["property", "reconstruction", "hijack"])
def test_a_tunnel_helps(name: str) -> None:
    bare, narrow = found(case(), name), found(case(replace(NARROW, epsilon=60.0)), name)
    excess = [(one.value or 0.0) - (one.baseline or 0.0) for one in (bare, narrow)]
    assert excess[1] < 0.6 * excess[0]


def test_a_watch_ends_a_hijack_early() -> None:
    finding = found(case(watch=True), "hijack")
    assert "200 steps, until the watch ended the training" in finding.note
    assert (finding.value or 0) < (found(case(), "hijack").value or 0)


def test_what_is_missing_is_said() -> None:
    made = case()
    few = replace(made, knowledge=Aux(made.knowledge.rows_K[:20]))
    for name in ("property", "reconstruction", "hijack"):
        assert "20 rows are known" in found(few, name).reason
    whole = replace(made, knowledge=Aux(np.arange(1500)), target=replace(made.target, steps=2))
    assert "no row was released that is not known" in found(whole, "hijack").reason
    alone = replace(made, target=replace(made.target, make=None))
    assert "give the feature party's job" in found(alone, "hijack").reason
    bare = replace(made, data=replace(made.data, property_N=None))
    assert "give --property" in found(bare, "property").reason
    alike = replace(made, data=replace(made.data, property_N=np.ones(1500, dtype=bool)))
    assert "are alike in the property" in found(alike, "property").reason


def test_likeness_is_one_of_itself_and_little_of_noise() -> None:
    images = np.random.default_rng(0).random((4, 64))
    assert ssim(images, images, (8, 8)) == pytest.approx(np.ones(4))
    assert ssim(images, images[::-1], (8, 8)).max() < 0.4
    assert ssim(images[:, :9], images[:, :9], (3, 3)) == pytest.approx(np.ones(4))


def test_a_column_that_never_changes_hides_no_reading() -> None:
    """Rare values and borders: one column without variance in what is scored swamped all others."""
    draw = np.random.default_rng(0)
    truth_NF = draw.normal(size=(1000, 5))
    truth_NF[:, 4] = 0.0
    data = Hidden(truth_NF)
    mean_F = np.array([0.0, 0.0, 0.0, 0.0, 0.01])
    guess_NF = truth_NF.copy()
    guess_NF[:, 4] = 0.01
    finding = likeness("one", data, np.arange(1000), guess_NF, mean_F, "")
    assert finding.value == pytest.approx(1.0)
    nothing = likeness("one", data, np.arange(1000), np.tile(mean_F, (1000, 1)), mean_F, "")
    assert nothing.value == pytest.approx(0.0)  # nor does it count as read
    blank = likeness("one", Hidden(truth_NF * 0), np.arange(1000), guess_NF, mean_F, "")
    assert "constant in the rows that are scored" in blank.reason


def test_an_audit_does_not_train_with_the_records_of_a_real_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that have a link keep their record where it says; the audit's parties have neither."""
    used: list[VerticalJob] = []

    def simulate(both: JOBS, parts: Any, tell: Any) -> None:
        used.extend(both)
        raise KeyboardInterrupt

    monkeypatch.setattr(tunnel_case.run, "simulate", simulate)
    monkeypatch.setattr(tunnel_case.parts, "load_here", lambda both: digits())
    label, feature = (replace(job, link=object()) for job in jobs(NOTHING, tmp_path))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        tunnel_case.case(feature, label, 100, "", None)
    assert [job.link for job in used] == [None, None]
    assert all(job.out != tmp_path for job in used)


def test_recorded_traffic_of_another_tunnel_is_refused(tmp_path: Path) -> None:
    label, feature = jobs(NARROW, tmp_path)
    short = replace(feature.train, epochs=1)
    label, feature = replace(label, train=short), replace(feature, train=short)
    run.simulate((label, feature), digits(), lambda told: None)
    tunnel_case.seen_of(feature, digits()[1])
    with pytest.raises(CheckpointError, match="had another tunnel than this job's none"):
        tunnel_case.seen_of(replace(feature, noise=NOTHING), digits()[1])


def test_a_case_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    label, feature = jobs(TunnelSettings(), tmp_path)
    with pytest.raises(MisconfiguredError, match="audited by the feature party"):
        tunnel_case.case(label, None, 100, "", None)
    with pytest.raises(MisconfiguredError, match="has no traffic"):
        tunnel_case.case(feature, None, 100, "", None)
    made = case()
    part = digits()[1]
    with pytest.raises(MisconfiguredError, match="images of 28 x 28 have 784 columns, and the file 64"):
        tunnel_case.made(feature, part, made.target.seen, (), 100, "", (28, 28))
    with pytest.raises(MisconfiguredError, match="'height' is none of the 64 columns"):
        tunnel_case.made(feature, part, made.target.seen, (), 100, "height", None)
