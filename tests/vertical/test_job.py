"""A job is read whole or refused with all that is wrong; its terms are what both parties must have alike."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from transom.config import from_plain, to_plain
from transom.errors import MisconfiguredError
from transom.link.tunnels import TunnelSettings
from transom.vertical.job import Data, Net, VerticalJob, read_job, terms

LABEL: dict[str, Any] = {
    "name": "credit",
    "task": "binary",
    "classes": ["no", "yes"],
    "data": {"path": "bank.csv", "label_column": "default"},
}
FEATURE: dict[str, Any] = {"name": "credit", "task": "binary", "data": {"path": "shop.csv"}}
LINK = {"job": "credit", "run": "r1", "listen": "127.0.0.1:1"}
BANK, SHOP = {"party": "bank", "partner": "shop"}, {"party": "shop", "partner": "bank"}


def written(folder: Path, good: dict[str, Any], **changes: Any) -> Path:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in (good | changes).items() if v is not None}), "utf-8")
    return file


def made(good: dict[str, Any], **changes: Any) -> VerticalJob:
    return from_plain(VerticalJob, good | changes, "a job")


def test_a_short_job_has_its_role_by_its_label_column(tmp_path: Path) -> None:
    label, feature = (
        read_job(written(tmp_path, LABEL, out="o")),
        read_job(written(tmp_path, FEATURE, out="o")),
    )
    assert (label.role, label.folder) == ("label", tmp_path / "o" / "label")
    assert (feature.role, feature.folder) == ("feature", tmp_path / "o" / "feature")
    assert feature.data == Data(tmp_path / "shop.csv")
    assert (feature.train.schedule, feature.noise, feature.link) == ("pubsub", TunnelSettings(), None)
    assert not feature.insecure_hashed_join


def test_a_long_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    changes = {
        "data": {"path": "rows/shop.parquet", "id_column": "person", "features": ["a", "b"]},
        "bottom": {"hidden": [128] * 10},
        "top": {"module": "own.models:Top"},
        "noise": {"kind": "gaussian", "clip": 2, "mu": 1},
        "train": {"schedule": "vfl-ps", "workers": 4, "patience": 2},
        "wire": "bf16",
        "link": LINK | SHOP,
    }  # fmt: skip
    job = read_job(written(tmp_path, FEATURE, **changes))
    assert job.data.path == tmp_path / "rows/shop.parquet"
    assert job.bottom == Net((128,) * 10)
    assert from_plain(VerticalJob, to_plain(job), "again") == job


@pytest.mark.parametrize(
    ("good", "changes", "message"),
    [
        (LABEL, {"classes": None}, "binary wants 2, got 0"),
        (LABEL, {"classes": ["a", "b", "c"]}, "binary wants 2, got 3"),
        (LABEL, {"task": "multiclass", "classes": ["a"]}, "at least 2, got 1"),
        (LABEL, {"classes": ["a", "a"]}, "twice"),
        (LABEL, {"task": "regression"}, "leave them out for the label party of a regression task"),
        (FEATURE, {"classes": ["no", "yes"]}, "leave them out for the feature party"),
        (LABEL, {"noise": {"kind": "r3elu-dp", "clip": 1, "epsilon": 1, "response": 1}}, "tells its sign"),
        (FEATURE, {"noise": {"kind": "r3elu-dp", "clip": 1, "epsilon": 1, "keep": 99}}, "noise.keep is 99"),
        (FEATURE, {"noise": {"kind": "d_chi", "clip": 1, "epsilon": 1}, "width": 1}, "two values and more"),
        (LABEL, {"watch": True}, "watch is the feature party's"),
        (FEATURE, {"noise": {"kind": "gaussian", "clip": 1}}, "one of epsilon, sigma and mu"),
        (FEATURE, {"noise": {"kind": "gaussian", "clip": 1, "mu": 1, "sigma": 1}}, "one of epsilon, sigma"),
        (FEATURE, {"noise": {"clip": 1}}, "none has no clip"),
        (FEATURE, {"noise": {"kind": "gaussian", "clip": 1, "mu": math.nan}}, "mu must be a number"),
        (FEATURE, {"data": {"path": "s.csv", "features": ["a", "a"]}}, "stands there twice"),
        (FEATURE, {"data": {"path": "s.csv", "features": ["id"]}}, "'id' is the id_column"),
        (LABEL, {"data": {"path": "s.csv", "label_column": "y", "features": ["y"]}}, "is the label_column"),
        (LABEL, {"data": {"path": "s.csv", "label_column": "id"}}, "are one, 'id'"),
        (FEATURE, {"data": {"path": "s.csv", "test_share": 0}}, "test_share must be .*above 0"),
        (FEATURE, {"train": {"schedule": "sync"}}, "schedule must be one of vfl, vfl-ps"),
        (FEATURE, {"train": {"batch_rows": 0}}, "batch_rows must be a whole number of rows, at least 1"),
        (FEATURE, {"bottom": {"hidden": [64, 0]}}, r"bottom\.hidden\[1\] must be .*got 0"),
        (FEATURE, {"bottom": {"module": "os.system"}}, r"bottom\.module must be"),
        (FEATURE, {"name": "../up"}, "name must be text of the form"),
        (FEATURE, {"epochs": 1}, "does not know epochs"),
        (FEATURE, {"link": LINK | SHOP | {"wire": "bf16"}}, "say it once"),
        (FEATURE, {"data": None}, "data must be a mapping, got nothing"),
    ],
)
def test_what_is_wrong_is_told(
    tmp_path: Path, good: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        read_job(written(tmp_path, good, **changes))


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, FEATURE, width=0, train={"epochs": 0, "seed": -1}, noise={"mu": 1}, wire=1)
    with pytest.raises(MisconfiguredError) as told:
        read_job(file)
    for part in ("width", "train.epochs", "train.seed", "noise: sigma", "wire"):
        assert part in str(told.value)


def test_sigma_gives_the_mu_that_was_asked_for_the_whole_run() -> None:
    noise = TunnelSettings("gaussian", clip=3.0, mu=0.5)
    made = noise.mechanism(7 + 1, signed=False)  # predictions are one more
    assert math.sqrt(7 + 1) * 2 * 3.0 / made.sigma == pytest.approx(0.5)  # type: ignore[attr-defined]
    made = TunnelSettings("gaussian", clip=3.0, sigma=1.5).mechanism(8, signed=False)
    assert made.sigma == 1.5  # type: ignore[attr-defined]


def test_parties_of_one_job_have_one_set_of_terms() -> None:
    facts = {"rows": "30"}
    label = terms(made(LABEL, link=LINK | BANK), facts)
    own = {
        "link": LINK | SHOP,
        "device": "cuda",
        "out": "there",
        "bottom": {"hidden": []},
        "train": {"workers": 9, "learning_rate": 0.5, "checkpoint_every_steps": 3},
    }
    assert terms(made(FEATURE, **own), facts) == label
    assert terms(made(FEATURE), facts) == terms(made(LABEL), facts)
    noise, kind = {"kind": "gaussian", "clip": 1, "mu": 1}, {"partner_noise": "gaussian"}
    assert terms(made(FEATURE, noise=noise), facts) == terms(made(LABEL, **kind), facts)
    assert terms(made(FEATURE, **kind), facts) == terms(made(LABEL, noise=noise), facts)
    assert terms(made(FEATURE, noise=noise), facts) != terms(made(LABEL, noise=noise), facts)
    assert all(isinstance(value, str) for value in label.values())


def test_terms_differ_where_the_parties_must_not() -> None:
    job, facts = made(FEATURE), {"rows": "30", "order": "abc"}
    alike = terms(job, facts)
    for other in (
        replace(job, width=31),
        replace(job, task="counts"),
        replace(job, wire="bf16"),
        replace(job, insecure_hashed_join=True),
        replace(job, data=replace(job.data, test_share=0.4)),
        replace(job, train=replace(job.train, schedule="vfl")),
        replace(job, train=replace(job.train, deadline_s=11.0)),
    ):
        assert terms(other, facts) != alike
    assert terms(job, facts | {"order": "xyz"}) != alike


@pytest.mark.parametrize("good", [LABEL, FEATURE])
def test_two_parties_of_one_role_find_that_in_their_terms(good: dict[str, Any]) -> None:
    one, other = (terms(made(good, link=link), {})["label party"] for link in (LINK | BANK, LINK | SHOP))
    assert {one, other} == {"bank", "shop"}
