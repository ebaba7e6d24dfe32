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
from transom.link.tunnels import TunnelSettings
from transom.privacy.guarantee import price
from transom.vertical.messages import EVALUATE, TRAIN
from transom.vertical.party import make_party
from transom.vertical.report import noise_report

from .scene import Heard, make_jobs, make_parts

EPOCHS = 5
BATCHES = st.tuples(st.integers(0, EPOCHS - 1), st.integers(0, 3), st.integers(0, 3))  # epoch, batch, attempt
EVALUATIONS = st.tuples(st.integers(0, EPOCHS - 1), st.just(0), st.integers(0, 3))


Sent = set[tuple[int, int, int]]


def delta_of(mu: float, epsilon: float) -> float:
    """Dong, Roth and Su 2022, corollary 2.13."""
    other = math.exp(epsilon + norm.logcdf(-epsilon / mu - mu / 2))  # epsilon alone may be past e^709
    return float(norm.cdf(-epsilon / mu + mu / 2)) - other


@settings(max_examples=25)
@given(st.sets(BATCHES, max_size=40), st.sets(EVALUATIONS, max_size=8), st.floats(0.5, 20), st.floats(0.1, 5))
def test_releases_are_counted_row_by_row_and_priced_by_the_closed_form(
    tmp_path_factory: pytest.TempPathFactory, trained: Sent, evaluated: Sent, sigma: float, clip: float
) -> None:
    """Of random runs: epochs, batches given out again, evaluations that began again, predictions."""
    folder = tmp_path_factory.mktemp("run")
    job = make_jobs("binary", folder, epochs=EPOCHS)[1]
    job = replace(job, noise=TunnelSettings("gaussian", clip=clip, sigma=sigma))
    with closing(make_party(job, make_parts("binary")[1], Heard())) as party:
        with party.record.writing() as writing:
            for topic, sent in ((TRAIN, trained), (EVALUATE, evaluated)):
                for epoch, batch, attempt in sorted(sent):
                    step = Step(epoch, batch, "forward", attempt, topic)
                    writing.send(step, lambda number: b"%d" % number)
        party.side.charge(party.record.sent_steps())  # as a party does that is started again
        report = noise_report(party)
        slow = np.zeros(63, int)  # row by row
        for epoch, batch, _ in trained:
            for row in party.side.units.rows(epoch * 4 + batch):
                slow[row] += 1
    most = max(int(slow.max()), len(evaluated)) + 1  # a row is trained on or tested on; then it is predicted
    assert report["releases_of_a_row_at_most"] == most
    mu = math.sqrt(most) * 2 * clip / sigma
    assert report["mu"] == pytest.approx(mu)
    guarantee = job.mechanism.guarantee(most)
    assert report["guarantee"] == guarantee.to_dict()
    (event,) = guarantee.events  # as if one of two neighbours lacked the row: the distance is put in by us
    assert (event.noise, event.count) == (pytest.approx(sigma / (2 * clip)), most)
    epsilon = price(guarantee, 1e-5)
    assert delta_of(mu, epsilon) == pytest.approx(1e-5, rel=1e-3) or epsilon == 0


@given(st.integers(1, 500), st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_wanted_mu_is_that_of_the_whole_run(epochs: int, mu: float, clip: float) -> None:
    job = make_jobs("binary", Path(), epochs=epochs)[1]
    one = replace(job, noise=TunnelSettings("gaussian", clip=clip, mu=mu)).mechanism
    epsilon = price(one.guarantee(epochs + 1), 1e-5)
    assert epsilon == 0 or delta_of(mu, epsilon) == pytest.approx(1e-5, rel=1e-2)
