"""A split run without noise is the centralised one: losses, gradients, weights and scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transom.checkpoint.tiny import tiny_llama
from transom.errors import LinkRefusedError, MisconfiguredError, NotYetError
from transom.split.job import SplitJob
from transom.split.metrics import Tally, count_targets, targets, text_labels
from transom.split.parts import load_model, make_customer, make_vendor

from .splits import RATES, Batch, Central, Split, fresh_model, make_batch, make_job

KINDS = [("bert", "classification"), ("llama", "classification"), ("llama", "causal")]
CUTS = [(0, False), (2, False), (2, True)]


def assert_close(found: dict[str, Any], expected: dict[str, Any], bound: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=bound, msg=lambda told, n=name: n + told)


def job_of(request: Any, model: str, task: str, **changes: Any) -> SplitJob:
    return make_job(request.getfixturevalue(model), task, **changes)


@pytest.mark.parametrize("layout", ["vendor", "customer"])
@pytest.mark.parametrize(("after_block", "return_gradient"), CUTS)
@pytest.mark.parametrize(("model", "task"), KINDS)
def test_a_split_run_equals_the_centralised_one(
    request: Any, model: str, task: str, after_block: int, return_gradient: bool, layout: str
) -> None:
    job = job_of(
        request, model, task, after_block=after_block, return_gradient=return_gradient, layout=layout
    )
    split = Split(job)
    central = Central(job, split.weights)
    batch, other = make_batch(task, 1), make_batch(task, 2)
    torch.testing.assert_close(split.scores(batch), central.scores(batch), rtol=0, atol=1e-5)
    for number in range(3):
        step = make_batch(task, 10 + number)
        assert abs(split.backward(step) - central.backward(step)) < 1e-5
        gradients = split.gradients
        assert gradients.keys() == split.weights.keys()
        assert_close(gradients, central.gradients(gradients), 1e-5)
        split.step()
        central.step()
        assert_close(split.weights, central.weights(split.weights), 1e-5)
    torch.testing.assert_close(split.scores(other), central.scores(other), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["Qwen2", "Qwen3", "Mistral"])
def test_so_it_does_for_other_decoders(tmp_path: Path, architecture: str) -> None:
    job = make_job(tiny_llama(tmp_path, architecture=architecture), "causal", after_block=1)
    assert_one_step_is_central(job, make_batch("causal", 1))


def test_so_it_does_for_a_real_model() -> None:
    job = make_job(Path("minilm"), "classification", after_block=3, layout="customer")
    assert_one_step_is_central(job, make_batch("classification", 1, rows=4, tokens=12))


def assert_one_step_is_central(job: SplitJob, batch: Batch) -> None:
    split = Split(job)
    central = Central(job, split.weights)
    assert abs(split.backward(batch) - central.backward(batch)) < 1e-5
    gradients = split.gradients
    assert_close(gradients, central.gradients(gradients), 1e-5)
    split.step()
    central.step()
    assert_close(split.weights, central.weights(split.weights), 1e-5)


@pytest.mark.parametrize(("model", "task"), KINDS)
def test_each_party_trains_its_own_and_nothing_else(request: Any, model: str, task: str) -> None:
    job = job_of(request, model, task, after_block=2, return_gradient=True, layout="customer")
    split = Split(job)
    assert split.customer.learner is not None
    ours, theirs = split.customer.learner.parameters, split.vendor.learner.parameters
    assert all(".2." in name and ".lora_" in name for name in theirs)
    heads = {name for name in ours if ".lora_" not in name}
    assert bool(heads) == (task == "classification")
    assert all(".0." in name or ".1." in name for name in ours.keys() - heads)
    kept = job_of(request, model, task, after_block=2, layout="vendor")
    assert Split(kept).customer.learner is None
    assert Split(kept).weights.keys() == heads | theirs.keys()


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from(KINDS), st.integers(0, 99))
def test_micro_batches_give_the_gradients_of_the_whole(
    request: Any, rows: list[int], kind: tuple[str, str], seed: int
) -> None:
    job = job_of(request, *kind, after_block=1, return_gradient=True, layout="customer")
    whole, parts = Split(job), Split(job)
    batch = make_batch(kind[1], seed, rows=sum(rows))
    loss = whole.backward(batch)
    assert abs(parts.backward(*batch.cut(rows)) - loss) < 1e-5
    assert_close(parts.gradients, whole.gradients, 1e-6)


def test_the_count_is_of_the_whole_batch_and_of_tokens_that_follow_one(llama: Path) -> None:
    batch = make_batch("causal", 3)
    assert count_targets("causal", batch.labels) == int((batch.mask_BT.sum(1) - 1).sum())
    left = batch.mask_BT.flip(1)
    assert count_targets("causal", text_labels(batch.ids_BT, left)) == int((left.sum(1) - 1).sum())
    assert count_targets("classification", make_batch("classification", 3).labels) == 5


@pytest.mark.parametrize(
    ("model", "task", "padding"),  # a BERT's pooler reads the first place: it is padded on the right
    [(*KINDS[0], "right"), *((*kind, side) for kind in KINDS[1:] for side in ("left", "right"))],
)
def test_what_stands_at_padding_changes_nothing(request: Any, model: str, task: str, padding: str) -> None:
    split = Split(job_of(request, model, task, after_block=1))
    batch = make_batch(task, 4)
    mask_BT = batch.mask_BT if padding == "right" else batch.mask_BT.flip(1)
    hidden_BTD = split.customer.bottom(batch.ids_BT, mask_BT)
    noisy_BTD = hidden_BTD + 5 * (mask_BT == 0)[..., None]
    tops = [split.vendor.top(one, mask_BT) for one in (hidden_BTD, noisy_BTD)]
    head = split.vendor.head
    assert head is not None
    scores = [head.scores(top, mask_BT) for top in tops]
    if task == "causal":
        scores = [one[mask_BT == 1] for one in scores]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-6)
    assert torch.isfinite(scores[0]).all()


def test_rows_without_a_token_where_the_head_looks_are_refused(bert: Path, llama: Path) -> None:
    batch = make_batch("classification", 4)
    empty = batch.mask_BT.clone()
    empty[1] = 0
    for folder in (bert, llama):
        with pytest.raises(MisconfiguredError, match="has no token"):
            Split(make_job(folder, "classification")).customer.bottom(batch.ids_BT, empty)
    with pytest.raises(MisconfiguredError, match="on the right"):
        Split(make_job(bert, "classification")).customer.bottom(batch.ids_BT, batch.mask_BT.flip(1))


@pytest.mark.parametrize(("model", "task"), KINDS)
def test_the_gradient_comes_back_through_the_noise(request: Any, model: str, task: str) -> None:
    job = job_of(request, model, task, after_block=1, return_gradient=True)
    batch = make_batch(task, 8)
    count = count_targets(task, batch.labels)  # type: ignore[arg-type]
    one, other = Split(job), Split(job)
    noise_BTD = torch.randn(*batch.ids_BT.shape, 32, generator=torch.Generator().manual_seed(0))
    assert one.vendor.head is not None
    assert other.vendor.head is not None
    sent = one.customer.bottom(batch.ids_BT, batch.mask_BT) + noise_BTD
    risen = one.vendor.rise(sent, batch.mask_BT)
    graded = one.vendor.head.grade(risen.top_BTD, batch.mask_BT, batch.labels, count)
    back = one.vendor.sink(risen, graded.gradient_BTD)
    assert back is not None
    one.customer.take_back(sent, back)
    top_BTD = other.vendor.middle(
        other.customer.bottom(batch.ids_BT, batch.mask_BT) + noise_BTD, batch.mask_BT
    )
    logits, wanted = targets(job.task, other.vendor.head.tail(top_BTD, batch.mask_BT), batch.labels)
    torch.nn.functional.cross_entropy(logits, wanted).backward()
    assert_close(one.gradients, other.gradients, 1e-6)


@pytest.mark.parametrize(
    ("task", "label"), [("classification", 3), ("classification", -1), ("causal", 10**6)]
)
def test_labels_that_are_none_are_refused(llama: Path, task: str, label: int) -> None:
    split = Split(make_job(llama, task))
    batch = make_batch(task, 1)
    top = split.vendor.top(split.customer.bottom(batch.ids_BT, batch.mask_BT), batch.mask_BT)
    labels = batch.labels.clone()
    labels.view(-1)[1] = label
    assert split.vendor.head is not None
    for wrong in (labels, batch.labels[:2]):
        with pytest.raises(LinkRefusedError, match="labels of shape"):
            split.vendor.head.grade(top, batch.mask_BT, wrong, 5)
    assert not split.gradients


def test_a_language_model_needs_a_head_that_knows_something(llama: Path, bert: Path, tmp_path: Path) -> None:
    load_model(make_job(llama, "causal")).model.model.save_pretrained(tmp_path)  # type: ignore[operator,union-attr]
    for folder in (tmp_path, bert):
        with pytest.raises(NotYetError, match="causal language model"):
            load_model(make_job(folder, "causal"))


def test_nothing_that_needs_no_graph_keeps_one(llama: Path) -> None:
    split = Split(make_job(llama, "classification", after_block=1))
    batch = make_batch("classification", 5)
    sent = split.customer.bottom(batch.ids_BT, batch.mask_BT)
    assert not sent.requires_grad
    assert not split.scores(batch).requires_grad
    head = split.vendor.head
    assert head is not None
    risen = split.vendor.rise(sent, batch.mask_BT)
    tally = head.evaluate(risen.top_BTD, batch.mask_BT, batch.labels)
    assert split.gradients == {}
    graded = head.grade(risen.top_BTD, batch.mask_BT, batch.labels, 5)
    assert graded.tally == tally
    assert split.vendor.sink(risen, graded.gradient_BTD) is None
    with pytest.raises(MisconfiguredError, match="no adapter"):
        split.customer.take_back(sent, graded.gradient_BTD)


def test_a_customer_does_with_its_blocks_alone(llama: Path) -> None:
    job = make_job(llama, "classification", after_block=1, return_gradient=True, layout="customer")
    whole = Split(job)
    model = fresh_model(job)
    config = type(model.config).from_dict(model.config.to_dict() | {"num_hidden_layers": 1})
    config.layer_types = None
    small = type(model)(config).eval()
    small.load_state_dict({name: model.state_dict()[name] for name in small.state_dict()})
    part = Split(job)
    part.customer = make_customer(small, job, RATES)
    batch = make_batch("classification", 6)
    assert torch.equal(part.scores(batch), whole.scores(batch))
    for one in (part, whole):
        one.backward(batch)
    assert_close(part.gradients, whole.gradients, 0)


def test_dropout_is_off_whatever_the_model_was_in(bert: Path) -> None:
    job = make_job(bert, "classification", after_block=1)
    split, batch = Split(job), make_batch("classification", 6)
    split.vendor = make_vendor(fresh_model(job).train(), job, RATES)
    split.customer = make_customer(fresh_model(job).train(), job, RATES)
    assert torch.equal(split.scores(batch), Split(job).scores(batch))


def test_the_same_seed_gives_the_same_start_whatever_was_drawn_before(llama: Path) -> None:
    job = make_job(llama, "classification", after_block=1)
    before = torch.random.get_rng_state()
    first = make_vendor(load_model(job).model, job, RATES).learner.parameters
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    again = make_vendor(load_model(job).model, job, RATES).learner.parameters
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    other = replace(job, train=replace(job.train, seed=6))
    elsewhere = make_vendor(load_model(other).model, other, RATES).learner.parameters
    same = {name for name, value in first.items() if torch.equal(value, elsewhere[name])}
    assert same == {name for name in first if ".lora_B." in name}  # which is zero


def test_tallies_add_up() -> None:
    tally = Tally(2.0, 1, 2) + Tally(4.0, 2, 4)
    assert tally.metrics("classification") == {"loss": 1.0, "accuracy": 0.5}
