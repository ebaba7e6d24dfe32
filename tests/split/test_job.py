"""A job is read whole or refused with all that is wrong; its terms are what both parties must have alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from transom.config import from_plain, to_plain
from transom.errors import MisconfiguredError
from transom.link.config import LinkConfig
from transom.split.job import Adapter, SplitJob, read_job, terms

GOOD: dict[str, Any] = {
    "name": "reviews",
    "model": "minilm",
    "task": "classification",
    "labels": ["bad", "good"],
}

LINK = {"job": "reviews", "run": "r1", "party": "clinic", "partner": "lab"}


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in (GOOD | changes).items() if v is not None}), "utf-8")
    return file


def test_a_short_job_gets_the_careful_defaults(tmp_path: Path) -> None:
    job = read_job(written(tmp_path))
    assert (job.layout, job.return_gradient, job.labels_in_the_clear, job.after_block) == (
        "vendor", False, False, 0,
    )  # fmt: skip
    assert (job.model, job.adapter, job.link) == ("minilm", Adapter(), None)


def test_a_long_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    changes = {
        "layout": "customer",
        "after_block": 2,
        "return_gradient": True,
        "adapter": {"r": 4, "alpha": 8, "targets": ["query"]},
        "noise": {
            "kind": "d_chi",
            "target_privacy": 0.8,
            "contributing": 0.1,
            "spare": 3,
            "inside": 0.5,
            "public": "p.txt",
        },
        "data": {"train": "rows/train.tsv", "text_column": "sentence"},
        "train": {"epochs": 2, "batch_rows": 8, "micro_batches": 4, "patience": 2},
        "wire": "bf16",
        "link": LINK | {"listen": "0.0.0.0:4433", "identity": "me", "partner_certificate": "you.pem"},
    }
    job = read_job(written(tmp_path, **changes))
    assert job.data is not None
    assert job.data.train == tmp_path / "rows/train.tsv"
    assert job.link is not None
    assert job.link.identity == tmp_path / "me"
    assert from_plain(SplitJob, to_plain(job), "again") == job


def test_a_model_beside_the_file_is_meant_before_a_name(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert read_job(written(tmp_path, model="mine")).model == str(tmp_path / "mine")
    assert read_job(written(tmp_path, model="org/name")).model == "org/name"


NARROW = {"pool": True, "narrow": True, "directions_of": "task", "public": "p"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["good"]}, "at least 2, got 1"),
        ({"labels": ["good", "bad", "good"]}, "twice"),
        ({"labels": [True, False]}, "labels must be a list of strings"),
        ({"task": "causal", "layout": "customer"}, "leave them out"),
        ({"task": "causal", "labels": None}, "labels_in_the_clear: true"),
        ({"task": "regression"}, "task must be one of classification, causal"),
        ({"return_gradient": True}, "after_block 0 leaves none"),
        (
            {"after_block": 1, "noise": {"kind": "d_chi", "eta": 1, "denoise": True}},
            "not states after block 1",
        ),
        ({"noise": {"kind": "d_chi", "eta": 1, "directions_of": "task"}}, "set inside below 1"),
        ({"noise": {"kind": "gaussian", "clip": 1, "sigma": 1, "denoise": True}}, "denoise are of d_chi"),
        ({"after_block": -1}, "after_block must be a whole number, at least 0, got -1"),
        ({"name": "../up"}, "name must be text of the form"),
        ({"learning_rate": 1e-3}, "does not know learning_rate"),
        ({"adapter": {"r": 0}}, r"adapter\.r must be .*got 0"),
        ({"adapter": {"dropout": 0.1}}, "adapter does not know dropout"),
        ({"train": {"micro_batches": 17}}, r"micro_batches \(17\) is more than batch_rows \(16\)"),
        ({"train": {"learning_rate": float("nan")}}, "learning_rate"),
        ({"noise": {"kind": "d_chi"}}, "one of eta and target_privacy"),
        ({"noise": {"kind": "d_chi", "eta": 5, "target_privacy": 0.5}}, "one of eta and target_privacy"),
        ({"noise": {"kind": "d_chi", "eta": 5, "clip": 1}}, "clip and sigma are of gaussian"),
        ({"noise": {"kind": "d_chi", "eta": 5, "contributing": 0.1}}, "go together"),
        ({"noise": {"kind": "d_chi", "eta": 5, "inside": 0.5}}, "inside and narrow want public texts"),
        ({"noise": {"kind": "d_chi", "eta": 5, "inside": 0}}, r"noise\.inside must be .*above 0"),
        ({"noise": {"kind": "gaussian", "clip": 1}}, "clip and sigma"),
        ({"noise": {"eta": 5}}, "not of none"),
        ({"noise": {"kind": "gaussian", "clip": 1, "sigma": 1, "inside": 0.5}}, "not of gaussian"),
        ({"noise": {"pool": True, "kind": "d_chi", "target_privacy": 0.5}}, "do not go with pool"),
        (
            {"noise": {"pool": True, "kind": "d_chi", "eta": 1, "inside": 0.5, "public": "p"}},
            "task's directions",
        ),
        ({"noise": NARROW | {"pool": False}}, "narrow is of pool"),
        ({"noise": NARROW | {"public": None}}, "inside and narrow want public texts"),
        ({"noise": NARROW | {"directions_of": "model"}}, "task's directions"),
        ({"noise": NARROW | {"directions_of": "own", "narrow": False}}, "of narrow rows without noise"),
        ({"noise": NARROW | {"directions_of": "own", "kind": "d_chi", "eta": 1}}, "would not cover"),
        ({"noise": NARROW | {"kind": "d_chi", "eta": 1, "inside": 0.5}}, "nothing outside to be shaped"),
        ({"noise": NARROW | {"kind": "d_chi", "eta": 1, "directions": 1}}, "two directions or more"),
        ({"noise": {"pool": True}, "after_block": 1, "return_gradient": True}, "brings no gradient"),
        (
            {"noise": {"pool": True}, "task": "causal", "labels": None, "layout": "customer"},
            "needs its tokens",
        ),
        ({"link": LINK}, "one of listen, connect and nats"),
        ({"link": LINK | {"listen": "0.0.0.0:1"}}, "beyond this machine"),
        ({"link": LINK | {"listen": "127.0.0.1:1", "wire": "bf16"}}, "say it once"),
        ({"wire": "fp4"}, "wire must"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        read_job(written(tmp_path, **changes))


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    file = written(
        tmp_path, adapter={"r": 0}, train={"epochs": 0, "seed": -1}, noise={"kind": "d_chi"}, wire=1
    )
    with pytest.raises(MisconfiguredError) as told:
        read_job(file)
    for part in ("adapter.r", "train.epochs", "train.seed", "noise: d_chi", "wire"):
        assert part in str(told.value)


def test_terms_differ_where_the_parties_must_not() -> None:
    job = from_plain(SplitJob, GOOD, "a job")
    facts = {"model": "abc", "width": "384"}
    alike = terms(job, facts)
    for other in (
        replace(job, labels=("good", "bad")),
        replace(job, after_block=1),
        replace(job, layout="customer"),
        replace(job, wire="bf16"),
        replace(job, adapter=Adapter(r=9)),
        replace(job, train=replace(job.train, batch_rows=9)),
    ):
        assert terms(other, facts) != alike
    assert terms(job, facts | {"model": "xyz"}) != alike
    own = replace(
        job,
        model="/elsewhere",
        device="cuda",
        out=Path("there"),
        link=LinkConfig(**LINK, connect="localhost:1"),
    )
    assert terms(own, facts) == alike
    assert all(isinstance(value, str) for value in alike.values())
