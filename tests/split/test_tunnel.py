"""Rows and gradients of a split tuning pass a tunnel: its law, its price, its unit, and what is refused."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from transom.audit.attacks import split_labels
from transom.audit.attacks.split_view import Law, Private, Public, Seen
from transom.audit.split_case import law_of
from transom.config import to_plain
from transom.errors import CheckpointError, LinkRefusedError, MisconfiguredError, NotYetError
from transom.link.message import Step
from transom.link.tunnels import TunnelSettings
from transom.privacy.guarantee import price
from transom.privacy.stream import Stream
from transom.split import run
from transom.split.gradients import Gradients
from transom.split.job import Noise, Train, read_job
from transom.split.party import customer
from transom.split.privatise import Privatiser, guarantee
from transom.split.settled import Settled

from .runs import Heard, run_job, states_of
from .splits import fresh_model, make_batch, make_job
from .test_privatise import TEXTS, sent
from .test_run import StoppedError, stop_at
from .test_settle import RUN, SECRET, front_of

NARROW = {"pool": True, "narrow": True, "directions": 2, "directions_of": "task"}
ALL = [
    TunnelSettings("clipping", 1.0),
    TunnelSettings("gaussian", 1.0, 8.0),
    TunnelSettings("laplace", 1.0, 8.0),
    TunnelSettings("d_chi", 1.0, 8.0),
    TunnelSettings("r3elu", 1.0, 8.0),
    TunnelSettings("r3elu-dp", 1.0, 8.0, keep=3),
]
BACK = Step(0, 0, "backward", topic="gradient")


def settled(tunnel: TunnelSettings, after_block: int = 0, **noise: Any) -> Settled:
    return Settled(Noise(**noise), after_block, False, 1, 16, 0.5, tunnel=tunnel)


@pytest.mark.parametrize("tunnel", ALL, ids=lambda one: one.kind)
def test_rows_pass_the_mechanism_and_an_attacker_draws_from_it(bert: Path, tunnel: TunnelSettings) -> None:
    found = settled(tunnel)
    rows_ND = torch.randn(5, 32, generator=torch.Generator().manual_seed(1)).numpy()
    passed_ND = found.noisy(rows_ND, torch.arange(5).numpy(), Stream(SECRET, "a"))
    wanted_ND = found.mechanism.privatise(torch.from_numpy(rows_ND).double(), Stream(SECRET, "a"))
    assert torch.equal(torch.from_numpy(passed_ND), wanted_ND.float())
    law, draw = (
        law_of(found, front_of(make_job(bert, "classification"))),
        torch.Generator().manual_seed(0),
    )  # what the attacker draws
    drawn = torch.stack([law.add(torch.from_numpy(rows_ND), draw) for _ in range(400)])
    own = torch.stack([
        found.mechanism.privatise(torch.from_numpy(rows_ND).double(), Stream(SECRET, f"{view}")).float()
        for view in range(400)
    ])  # fmt: skip
    spread = own.std(0).clamp(min=1e-6) / math.sqrt(200)
    assert ((drawn.mean(0) - own.mean(0)).abs() < 5.5 * spread + 1e-6).all()


@pytest.mark.parametrize("tunnel", ALL, ids=lambda one: one.kind)
def test_a_text_leaves_once_and_its_last_tokens_not_with_its_padding(tunnel: TunnelSettings) -> None:
    found = settled(tunnel)
    alone = [sent(found, [TEXTS[number]], [number])[0] for number in range(3)]
    together = sent(found, TEXTS, [0, 1, 2], step=9, wide=7)
    for row, text in enumerate(TEXTS):
        assert torch.equal(together[row, : len(text)], alone[row])
        assert not together[row, len(text) :].any()


@pytest.mark.parametrize(
    ("after_block", "noise", "unit", "rows"),
    [(0, {}, "one token's vector", 1), (2, {}, "all tokens of one text", 16),
     (2, {"pool": True}, "one text's row", 1)],
)  # fmt: skip
def test_the_price_is_of_what_a_row_holds(
    after_block: int, noise: dict[str, Any], unit: str, rows: int
) -> None:
    for tunnel in ALL[1:3] + ALL[5:]:
        found = settled(tunnel, after_block, **noise)
        promise = guarantee(found)
        assert promise.unit == unit
        assert promise == replace(found.mechanism.guarantee(rows), unit=unit, assumptions=promise.assumptions,
                                  discloses=promise.discloses)  # fmt: skip
        assert 7.5 < price(promise, tunnel.delta) <= 8.0
        assert ("the number of tokens" in promise.discloses) == (not noise)
        told = Privatiser(found, SECRET, RUN).report()["tunnel"]
        assert (told["releases"], told["epsilon"], told["kind"]) == (rows, 8.0, tunnel.kind)
        assert told["spent"] == price(promise, tunnel.delta)
        json.dumps(told)


@pytest.mark.parametrize("tunnel", [ALL[0], ALL[4]], ids=lambda one: one.kind)
def test_what_is_not_proved_says_so(tunnel: TunnelSettings) -> None:
    assert guarantee(settled(tunnel)).kind == "empirical"
    assert "spent" not in Privatiser(settled(tunnel), SECRET, RUN).report()["tunnel"]


def grads(seed: int, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A gradient at real tokens, of a classifier only where its head reads."""
    batch = make_batch("classification", seed)
    drawn = torch.randn(*batch.mask_BT.shape, 8, generator=torch.Generator().manual_seed(seed)) / 5
    last_B = batch.mask_BT.sum(1) - 1 if causal else torch.zeros(len(drawn), dtype=torch.long)
    read_BT = torch.nn.functional.one_hot(last_B, drawn.shape[1])
    return drawn * read_BT[..., None], batch.mask_BT


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tunnel", ALL, ids=lambda one: one.kind)
def test_a_classifiers_gradients_pass_where_the_head_reads(
    bert: Path, tunnel: TunnelSettings, causal: bool
) -> None:
    job = make_job(bert, "classification", layout="customer", gradient_tunnel=tunnel)
    gradient_BTD, mask_BT = grads(3, causal)
    released_ND = Gradients(job, SECRET, RUN, causal=causal)(gradient_BTD, mask_BT, 5, BACK)
    read_N = (gradient_BTD != 0).any(2)[mask_BT != 0]
    assert not released_ND[~read_N].any()
    mechanism = replace(tunnel, spare=0).mechanism(job.train.epochs, signed=True)
    label = f"noise/{RUN}/0/0/backward/gradient/0"
    wanted_BD = mechanism.privatise(gradient_BTD.sum(1).double() * 5, Stream(SECRET, label)) / 5
    torch.testing.assert_close(released_ND[read_N], wanted_BD.float(), rtol=1e-5, atol=1e-6)


def test_a_language_models_gradients_all_pass(llama: Path) -> None:
    job = make_job(llama, "causal", layout="customer", gradient_tunnel=ALL[1])
    gradient_BTD, mask_BT = torch.zeros(2, 4, 8), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    released_ND = Gradients(job, SECRET, RUN, causal=True)(gradient_BTD, mask_BT, 5, BACK)
    assert released_ND.shape == (7, 8)
    assert (released_ND != 0).all()


def test_without_a_tunnel_gradients_go_as_they_are(bert: Path) -> None:
    gradient_BTD, mask_BT = grads(3, False)
    bare = Gradients(make_job(bert, "classification", layout="customer"), SECRET, RUN, causal=False)
    assert torch.equal(bare(gradient_BTD, mask_BT, 5, BACK), gradient_BTD[mask_BT != 0])
    assert bare.report() is None


def test_gradients_are_priced_for_all_epochs_and_a_step_leaves_once(bert: Path) -> None:
    job = make_job(bert, "classification", layout="customer", gradient_tunnel=ALL[5], train=Train(epochs=7))
    passed = Gradients(job, SECRET, RUN, causal=False)
    told = passed.report()
    assert told is not None
    assert (told["releases"], told["guarantee"]["unit"]) == (7, "one text's label, in all epochs")
    assert 7.5 < told["spent"] <= 8.0
    gradient_BTD, mask_BT = grads(3, False)
    first, again = (passed(gradient_BTD, mask_BT, 5, BACK) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, passed(gradient_BTD, mask_BT, 5, replace(BACK, epoch=1)))
    with pytest.raises(LinkRefusedError, match="was released already, of another input"):
        passed(2 * gradient_BTD, mask_BT, 5, BACK)
    with pytest.raises(LinkRefusedError, match="are not finite; nothing left"):
        passed(gradient_BTD * math.nan, mask_BT, 5, replace(BACK, batch=9))


def test_a_head_that_reads_other_tokens_is_refused(bert: Path) -> None:
    job = make_job(bert, "classification", layout="customer", gradient_tunnel=ALL[1])
    gradient_BTD, mask_BT = grads(3, False)
    with pytest.raises(NotYetError, match="reads other tokens of a text than its first or last"):
        Gradients(job, SECRET, RUN, causal=False)(gradient_BTD + 1, mask_BT, 5, BACK)


@pytest.mark.parametrize(("model", "task"), [("bert", "classification"), ("llama", "causal")])
def test_a_run_through_tunnels_goes_on_and_not_with_another_budget(
    request: Any, tmp_path: Path, model: str, task: str
) -> None:
    path = request.getfixturevalue(model)
    tunnel = TunnelSettings("r3elu-dp", 2.0, 500.0, keep=8, signed=True)
    back = TunnelSettings("gaussian", 0.5, 30.0)
    job = run_job(path, task, tmp_path, layout="customer", tunnel=tunnel, gradient_tunnel=back)
    calm, heard = replace(job, out=tmp_path / "calm"), Heard()
    run.simulate(calm, heard)
    with pytest.raises(StoppedError):
        run.simulate(job, stop_at(4))
    other = replace(job, gradient_tunnel=replace(back, epsilon=31.0))
    with pytest.raises(CheckpointError), closing(customer(other, lambda told: None)):
        pass
    other = replace(job, tunnel=replace(tunnel, epsilon=501.0))
    with (
        pytest.raises(CheckpointError, match="is not this job's"),
        closing(customer(other, lambda told: None)),
    ):
        pass
    run.simulate(job, Heard())
    assert json.loads((job.out / "customer/noise.json").read_text())["settled"]["tunnel"]["epsilon"] == 500.0
    report = json.loads((job.out / "customer/report.json").read_text())
    assert report["noise"]["tunnel"]["spent"] <= 500.0
    assert report["gradient_tunnel"]["spent"] <= 30.0
    assert report["gradient_tunnel"]["releases"] == job.train.epochs
    assert states_of(job).keys() == states_of(calm).keys()
    assert run.predict_here(calm, None).metrics() == pytest.approx(heard.evaluations[-1], rel=1e-6)


def test_labels_are_read_from_bare_gradients_and_not_through_a_tunnel(bert: Path) -> None:
    drawn = torch.Generator().manual_seed(0)
    labels_B = torch.randint(0, 2, (300,), generator=drawn)
    way_D = torch.randn(8, generator=drawn)
    sign_B11 = (2.0 * labels_B - 1)[:, None, None]
    gradient_BTD = (sign_B11 * way_D + torch.randn(300, 1, 8, generator=drawn) / 4) / 300
    mask_B1 = torch.ones(300, 1, dtype=torch.long)
    found = {}
    for tunnel in (TunnelSettings(), TunnelSettings("gaussian", 1.0, 0.5, delta=1e-5)):
        job = make_job(bert, "classification", layout="customer", gradient_tunnel=tunnel)
        rows_BD = Gradients(job, SECRET, RUN, causal=False)(gradient_BTD, mask_B1, 300, BACK)
        seen = Seen(tuple(torch.zeros(1, 1, 8) for _ in rows_BD), Law(), (), tuple(rows_BD[:, None]))
        texts = ((5,),) * 300
        known = {place: int(labels_B[place]) for place in range(8)}
        data = Private(texts, tuple(labels_B.tolist()), ((True,),) * 300, lambda ids: "")
        attack = next(one for one in split_labels.attacks() if one.NAME == "labels/gradient")
        finding = attack.attack(seen, Public(fresh_model(job), 0, texts, known=known), data, 9.0)
        assert finding.value is not None
        found[tunnel.kind] = finding.value
    assert found["none"] > 0.98
    assert found["gaussian"] < 0.65


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tunnel": ALL[1], "noise": Noise("d_chi", eta=9.0)}, r"rows pass a tunnel \(gaussian\) or noise"),
        ({"gradient_tunnel": ALL[1]}, "gradient_tunnel is of layout customer"),
        ({"tunnel": TunnelSettings("r3elu-dp", 1.0, 9.0, learns=True)}, "learns is of vertical training"),
        ({"tunnel": ALL[1], "noise": Noise(**{**NARROW, "directions_of": "own"})}, "would not cover"),
    ],
)
def test_jobs_that_contradict_themselves_are_refused(bert: Path, changes: dict[str, Any], why: str) -> None:
    job = make_job(bert, "classification", **changes)
    assert any(why.replace("\\", "") in problem for problem in job.problems())


def test_a_tunnel_is_read_from_a_job(bert: Path, tmp_path: Path) -> None:
    job = make_job(bert, "classification", tunnel=ALL[5], gradient_tunnel=ALL[1], layout="customer")
    (tmp_path / "job.yaml").write_text(json.dumps(to_plain(job)), "utf-8")
    assert read_job(tmp_path / "job.yaml") == replace(job, out=tmp_path / "split")
    (tmp_path / "job.yaml").write_text(
        json.dumps(to_plain(replace(job, tunnel=replace(ALL[5], epsilon=-1.0)))), "utf-8"
    )
    with pytest.raises(MisconfiguredError, match="tunnel"):
        read_job(tmp_path / "job.yaml")


def test_no_strength_for_too_little_epsilon_is_said_before_a_model_is_read() -> None:
    with pytest.raises(MisconfiguredError, match="no strength has 16 releases"):
        guarantee(settled(TunnelSettings("laplace", 1.0, 1e-9), 1))
