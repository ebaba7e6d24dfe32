"""What a run's noise promises: counted from what was sent, retries included; epsilon is the closed form's."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from transom.link.message import Step
from transom.privacy.guarantee import price
from transom.vertical.job import Noise
from transom.vertical.messages import EVALUATE, TRAIN
from transom.vertical.party import make_party, mechanism
from transom.vertical.report import noise_report

from .scene import Heard, make_jobs, make_parts

SENT = st.sets(
    st.builds(
        Step, st.integers(0, 2), st.integers(0, 3), st.just("forward"), st.integers(0, 3),
        st.just(TRAIN),
    ),
    min_size=1, max_size=30,
)  # fmt: skip


def delta_of(mu: float, epsilon: float) -> float:
    """Dong, Roth and Su 2022, corollary 2.13."""
    return float(norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2))


@settings(max_examples=25)
@given(SENT, st.integers(0, 4), st.floats(0.5, 20), st.floats(0.1, 5))
def test_releases_are_counted_row_by_row_and_priced_by_the_closed_form(
    tmp_path_factory: pytest.TempPathFactory, sent: set[Step], evaluated: int, sigma: float, clip: float
) -> None:
    jobs = make_jobs("binary", tmp_path_factory.mktemp("run"), epochs=3)
    job = replace(jobs[1], noise=Noise("gaussian", clip=clip, sigma=sigma))
    with closing(make_party(job, make_parts("binary")[1], Heard())) as party:
        also = {Step(epoch, 0, "forward", topic=EVALUATE) for epoch in range(evaluated)}
        with party.record.writing() as writing:
            for step in sorted(sent | also):
                writing.send(step, lambda number: b"%d" % number)
        report = noise_report(party)
        slow = np.zeros(63, int)  # row by row
        for step in sent:
            for row in party.side.units.rows(step.epoch * 4 + step.batch):
                slow[row] += 1
    most = max(int(slow.max()), evaluated)
    assert report["releases_of_a_row_at_most"] == most
    mu = math.sqrt(most) * 2 * clip / sigma
    assert report["mu"] == pytest.approx(mu)
    epsilon = price(mechanism(job).guarantee(most), 1e-5)
    assert delta_of(mu, epsilon) == pytest.approx(1e-5, rel=1e-3) or epsilon == 0


@given(st.integers(1, 500), st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_wanted_mu_is_that_of_the_whole_run(epochs: int, mu: float, clip: float) -> None:
    job = make_jobs("binary", Path(), epochs=epochs)[1]
    one = mechanism(replace(job, noise=Noise("gaussian", clip=clip, mu=mu)))
    epsilon = price(one.guarantee(epochs), 1e-5)
    assert epsilon == 0 or delta_of(mu, epsilon) == pytest.approx(1e-5, rel=1e-2)
