"""What is settled before the first step: eta by its measure, spared tokens, directions; how it is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.checkpoint.cut import Front, three
from transom.errors import CheckpointError, MisconfiguredError
from transom.privacy.noise import d_chi, task_directions
from transom.privacy.stream import Stream
from transom.split.job import Data, Noise, SplitJob
from transom.split.rows import Rows, padded
from transom.split.settle import _gradients, _received, hidden, settle
from transom.split.settled import Settled, settled_from

from .splits import fresh_model, make_job

SECRET, RUN = bytes(range(32)), "run"
CLS, SEP = 2, 3


def rows_of(seed: int, count: int = 40, low: int = 10, high: int = 90, classes: int = 2) -> Rows:
    """Texts of random tokens; those of a class hold tokens that the others do not."""
    drawn = np.random.default_rng(seed)
    texts = []
    for number in range(count):
        words = drawn.integers(low, high - 5, drawn.integers(3, 9)).tolist()
        texts.append((CLS, *words, high - 1 - number % classes, SEP))
    labels = tuple(number % classes for number in range(count))
    return Rows(tuple(texts), labels, frozenset({CLS, SEP}), frame=(1, 1))


def job_of(model: Path, task: str = "classification", after_block: int = 0, **noise: Any) -> SplitJob:
    data = Data(train=Path("train.tsv"), max_tokens=16)
    return make_job(model, task, after_block=after_block, noise=Noise(**noise), data=data)


def front_of(job: SplitJob) -> Front:
    return three(fresh_model(job), job.after_block)[0]


def table_of(front: Front) -> Any:
    return front.parts.embedding.weight.detach().numpy()


def settled(job: SplitJob, rows: Rows, **more: Any) -> Settled:
    return settle(job, front_of(job), rows, SECRET, RUN, **more)


@pytest.mark.parametrize("spare", [1.0, 4.0])
@pytest.mark.parametrize("target", [0.25, 0.8])
def test_the_eta_found_gives_the_wanted_privacy_to_fresh_noise(
    bert: Path, target: float, spare: float
) -> None:
    job = job_of(bert, kind="d_chi", target_privacy=target, spare=spare, contributing=0.1 if spare > 1 else 0)
    found, rows = settled(job, rows_of(0, 400)), rows_of(0, 400)
    ids_N = np.array([one for text in rows.ids for one in text if one not in rows.specials])
    fresh = hidden(found, table_of(front_of(job)), ids_N, Stream(SECRET, "fresh")).mean()
    assert abs(fresh - target) < 0.06
    assert abs(found.measured["all"] - target) < 0.06
    assert found.eta_from == "the customer's texts"
    assert found == settled(job, rows)
    other = settle(job, front_of(job), rows, bytes(32), RUN)  # another secret, other noise
    assert found.measured != other.measured


def test_eta_is_found_on_public_texts_where_there_are_some(bert: Path) -> None:
    job = job_of(bert, kind="d_chi", target_privacy=0.5, public=Path("public.txt"))
    public = rows_of(1, low=10, high=40)
    one, other = (settled(job, rows_of(seed, low=40), public=public) for seed in (2, 3))
    assert (one.eta, one.eta_from) == (other.eta, "public texts")
    assert one.measured != other.measured
    assert settled(job, rows_of(2, low=40)).eta != one.eta


def test_what_is_spared_is_measured_apart(bert: Path) -> None:
    job = job_of(bert, kind="d_chi", target_privacy=0.7, contributing=0.05, spare=8)
    found = settled(job, rows_of(0, 200))
    assert {88, 89} < set(found.spared)  # and what chance made a class's
    assert "labels" in found.spared_told
    assert found.measured["contributing"] < found.measured["all"] < found.measured["others"]
    etas = found.etas(np.array([88, 20]))
    assert etas.tolist() == [8 * found.eta, found.eta]


def test_attention_tells_what_contributes_to_a_language_model(llama: Path) -> None:
    job = job_of(llama, "causal", kind="d_chi", eta=100, contributing=0.2, spare=2)
    rows, model = replace(rows_of(0), labels=()), fresh_model(job)
    before = model.config._attn_implementation
    front = three(model, 0)[0]
    found = settle(job, front, rows, SECRET, RUN)
    assert found.spared
    assert "attention" in found.spared_told
    assert model.config._attn_implementation == before
    assert not {CLS, SEP} & set(found.spared)
    kept = replace(front, parts=replace(front.parts, blocks=()))  # a customer that has the embedding alone
    with pytest.raises(MisconfiguredError, match="has no blocks whose attention"):
        settle(job, kept, rows, SECRET, RUN)


def test_the_attention_received_is_that_of_the_model(llama: Path) -> None:
    job = job_of(llama, "causal")
    front, text = front_of(job), rows_of(0).ids[0]
    model = front.parts.model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        seen = model(input_ids=torch.tensor([text]), output_attentions=True).attentions
    expected = torch.stack([layer[0].mean(0) for layer in seen]).mean(0).tril()
    seers = (expected > 0).sum(0)
    np.testing.assert_allclose(_received(front, text), (expected.sum(0) / seers).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "task"), [("bert", "classification"), ("llama", "classification"), ("llama", "causal")]
)
@pytest.mark.parametrize("after_block", [0, 1])
def test_a_shape_comes_of_public_texts_alone(request: Any, model: str, task: str, after_block: int) -> None:
    folder = request.getfixturevalue(model)
    job = job_of(folder, task, after_block, kind="d_chi", eta=50, inside=0.2, directions=5, public=Path("p"))
    with pytest.raises(MisconfiguredError, match="needs public texts"):
        settled(job, rows_of(0))
    public = rows_of(9, 50)
    one, other = (settled(job, rows_of(seed), public=public) for seed in (0, 1))
    assert one.basis == other.basis
    assert one.basis != settled(job, rows_of(0), public=rows_of(8, 50)).basis
    shape = one.shape
    assert shape is not None
    assert shape.basis_DR.shape == (32, 5)
    ids_N = np.arange(20, 60)
    drawn_ND = one.draw(Stream(SECRET, "x"), ids_N, 32)
    plain_ND = d_chi(Stream(SECRET, "x"), 40, 32, 50.0)
    np.testing.assert_allclose(drawn_ND @ shape.basis_DR, 0.2 * plain_ND @ shape.basis_DR, atol=1e-9)
    outside_DD = np.eye(32) - shape.basis_DR @ shape.basis_DR.T
    np.testing.assert_allclose(drawn_ND @ outside_DD, plain_ND @ outside_DD, atol=1e-9)


@pytest.mark.parametrize("after_block", [0, 1])
def test_a_shape_of_the_task_tells_the_labels_of_public_texts(bert: Path, after_block: int) -> None:
    more: dict[str, Any] = {"inside": 0.2, "directions": 3, "directions_of": "task", "public": Path("p")}
    job = job_of(bert, "classification", after_block, kind="d_chi", eta=50, **more)
    public, front = rows_of(9, 60), front_of(job)
    one, other = (settled(job, rows_of(seed), public=public) for seed in (0, 1))
    assert one.basis == other.basis
    ids_BT, mask_BT, labels_B = padded(public, range(60), 0)
    own_BT = mask_BT * (ids_BT != CLS) * (ids_BT != SEP)
    states_BTD = front(ids_BT, mask_BT).detach() * own_BT[..., None]
    means_BD = (states_BTD.sum(1) / own_BT.sum(1, keepdim=True)).numpy()
    expected_DR = task_directions(means_BD, labels_B.numpy(), 3)
    np.testing.assert_allclose(np.abs(np.diag(expected_DR.T @ np.array(one.basis))), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "task"), [("bert", "classification"), ("llama", "classification"), ("llama", "causal")]
)
def test_gradients_are_of_what_the_head_reads(request: Any, model: str, task: str) -> None:
    """Against differences: of top states at the first token, at the last, or at all of them."""
    job, rows = job_of(request.getfixturevalue(model), task, after_block=1), rows_of(9, 5)
    front, middle, _tail = three(fresh_model(job), 1)
    found = torch.from_numpy(_gradients(job, front, rows))
    ids_BT, mask_BT, _labels = padded(rows, range(5), 0)
    ends_B = mask_BT.sum(1)
    read = {"bert": [slice(0, 1)] * 5, "llama": [slice(end - 1, end) for end in ends_B]}[model]
    read = [slice(0, end) for end in ends_B] if task == "causal" else read
    with torch.no_grad():
        states_BTD = front(ids_BT, mask_BT).double()
        along_BTD = torch.randn(states_BTD.shape, generator=torch.Generator().manual_seed(0)).double()
        away_BTD = torch.randn(states_BTD.shape, generator=torch.Generator().manual_seed(1)).double()
        front.parts.model.double()
        tops = [middle(states_BTD + sign * 1e-3 * away_BTD, mask_BT) * along_BTD for sign in (1, -1)]
    sums = [sum(float(top[row, places].sum()) for row, places in enumerate(read)) for top in tops]
    told = float((found.double() * away_BTD[mask_BT != 0]).sum())
    assert (sums[0] - sums[1]) / 2e-3 == pytest.approx(told, rel=1e-2, abs=1e-2)


def test_after_a_block_no_eta_is_found_and_nothing_is_claimed_to_be_measured(bert: Path) -> None:
    with pytest.raises(MisconfiguredError, match="says nothing of states after block 1"):
        settled(job_of(bert, after_block=1, kind="d_chi", target_privacy=0.5), rows_of(0))
    found = settled(job_of(bert, after_block=1, kind="d_chi", eta=3), rows_of(0))
    assert found.measured == {}
    assert found.nearest > 0


def test_a_target_that_no_noise_reaches_is_refused(bert: Path) -> None:
    job = job_of(bert, kind="d_chi", target_privacy=0.1)
    front = front_of(job)
    weight = front.parts.embedding.weight.detach()
    weight[45:90] = weight[:45]  # of two copies one is never named, whatever the noise
    with pytest.raises(MisconfiguredError, match=r"a privacy of 0\.1 is not between"):
        settle(job, front, rows_of(0), SECRET, RUN)


@pytest.mark.parametrize(
    ("changes", "releases"),
    [
        ({}, 1),
        ({"return_gradient": True, "after_block": 1}, 4),  # three epochs, and four evaluations
        ({"return_gradient": True, "after_block": 1, "evaluate_every_steps": 1}, 10),  # nine steps
        ({"return_gradient": True, "after_block": 1, "evaluate_every_steps": 100}, 3),
    ],
)
def test_releases_are_counted(bert: Path, changes: dict[str, Any], releases: int) -> None:
    job = job_of(bert, kind="d_chi", eta=3)
    every = changes.pop("evaluate_every_steps", None)
    job = replace(
        job, train=replace(job.train, epochs=3, batch_rows=16, evaluate_every_steps=every), **changes
    )
    assert settled(job, rows_of(0)).releases == releases


def test_what_is_kept_is_what_was_found_or_is_refused(bert: Path) -> None:
    job = job_of(
        bert, kind="d_chi", target_privacy=0.5, contributing=0.1, spare=2, inside=0.5, public=Path("p")
    )
    found = settled(job, rows_of(0, 100), public=rows_of(1, 100))
    kept = found.to_bytes()
    assert settled_from(kept, job) == found
    moved = replace(job, noise=replace(job.noise, public=Path("elsewhere")))
    assert settled_from(kept, moved) == found
    for other in (replace(job, noise=replace(job.noise, spare=3)), replace(job, after_block=1)):
        with pytest.raises(CheckpointError, match="not this job's"):
            settled_from(kept, other)
    for broken in (kept[:-9], b"", b"\xff", b"{}", kept.replace(b'"eta"', b'"beta"')):
        with pytest.raises(CheckpointError, match="noise kept of the run"):
            settled_from(broken, job)
