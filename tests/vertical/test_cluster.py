"""Workers as actors of a Ray cluster: they do what a worker here does, and one that is killed is replaced."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from transom.errors import MisconfiguredError, MissingExtraError
from transom.link.memory import together
from transom.link.told import Told
from transom.vertical import run
from transom.vertical.half import make_half
from transom.vertical.job import Net
from transom.vertical.party import make_party
from transom.vertical.pool import Pool

from .scene import Heard, at, make_jobs, make_parts, states_of


def test_workers_in_a_cluster_need_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs("binary", tmp_path, schedule="vfl-ps", workers=2, cluster="auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "transom.vertical.cluster", raising=False)
    with pytest.raises(MissingExtraError, match=r"'\.\[cluster\]'"):
        run.simulate(jobs, make_parts("binary"), Heard(), workers="processes")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of this machine alone, joined as one of several machines would be."""
    import ray
    from ray import cluster_utils

    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    yield made.address
    ray.shutdown()
    made.shutdown()


def test_a_run_on_a_cluster_ends_with_the_bits_of_one_here_whoever_is_killed(
    tmp_path: Path, cluster: str
) -> None:
    """The label party's workers are actors, one of which is killed; the feature party does all itself."""
    import ray

    jobs = make_jobs("binary", tmp_path / "a", schedule="vfl-ps", workers=2)
    parts, heard = make_parts("binary"), Heard()

    def tell(told: Told) -> None:
        heard(told)
        if told.kind == "step" and told.step == 2 and not label.side.pool.restarts:
            worker: Any = label.side.pool._workers[0]
            ray.kill(worker._actor)

    hired = replace(jobs[0], train=replace(jobs[0].train, cluster=cluster))
    with (
        closing(make_party(hired, parts[0], tell, workers="processes")) as label,
        closing(make_party(jobs[1], parts[1], Heard())) as feature,
    ):
        together(lambda broker: run.train(feature, broker), lambda broker: run.train(label, broker))
        assert label.side.pool.restarts == 1
    calm = at(jobs, tmp_path / "calm")
    run.simulate(calm, parts, Heard())
    assert len(heard.losses) == label.side.steps
    assert states_of(jobs) == states_of(calm)


def test_what_an_actor_cannot_do_is_told(tmp_path: Path, cluster: str) -> None:
    from transom.vertical.cluster import Actor

    job = make_jobs("binary", tmp_path, cluster=cluster)[1]
    wrong = replace(job, bottom=Net(module="transom.vertical.model:no_such_net"))
    pool = Pool(make_half(job, 4, local=True), 1, lambda number, tell: Actor(wrong, 4, tell, local=True))
    pool.start()
    with closing(pool), pytest.raises(MisconfiguredError, match="no_such_net"):
        pool.average()
