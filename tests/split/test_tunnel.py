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
from transom.audit.attacks.split_nearest import reader
from transom.audit.attacks.split_responses import Responses
from transom.audit.attacks.split_view import Law, Private, Public, Seen
from transom.audit.split_case import law_of
from transom.config import to_plain
from transom.errors import CheckpointError, LinkRefusedError, MisconfiguredError, NotYetError
from transom.link.message import Step
from transom.link.r3elu import R3eluDp
from transom.link.tunnels import TunnelSettings
from transom.privacy.guarantee import price
from transom.privacy.stream import Stream
from transom.split import run
from transom.split.gradients import Gradients
from transom.split.job import Noise, SplitJob, Train, read_job
from transom.split.messages import Asked
from transom.split.parts import Vendor
from transom.split.party import customer
from transom.split.privatise import Privatiser, guarantee
from transom.split.settle import paid
from transom.split.settled import Settled
from transom.split.vendor import _Watched

from .runs import Heard, run_job, states_of
from .splits import Split, fresh_model, make_batch, make_job
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
    bare = Settled(Noise(**noise), after_block, False, 1, 16, 0.5, tunnel=tunnel)
    return replace(bare, strength=paid(tunnel).strength(bare.together, signed=True))


def gradients(job: SplitJob, *, causal: bool = False) -> Gradients:
    strength = paid(job.gradient_tunnel).strength(job.train.epochs, signed=True)
    return Gradients(job, strength, SECRET, RUN, causal=causal)


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


@pytest.mark.parametrize("tunnel", [*ALL[1:4], ALL[5]], ids=lambda one: one.kind)
def test_longer_texts_and_more_releases_cost_what_the_noise_in_use_does(tunnel: TunnelSettings) -> None:
    """As where a tuned model is served: the noise is not made anew for them."""
    found = settled(tunnel, 1)
    longer = guarantee(replace(found, longest=64))
    assert longer.assumptions[0] == "a text has at most 64 tokens, all of whose rows are covered together"
    assert price(longer, 1e-6) > 1.5 * price(guarantee(found), 1e-6)
    assert price(longer, 1e-6) == price(found.mechanism.guarantee(64), 1e-6)


def test_the_noise_of_a_run_is_that_of_its_strength_whatever_is_found_later(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two strengths under one label would let the noise cancel out."""
    job = run_job(bert, "classification", tmp_path, layout="customer", tunnel=ALL[2], gradient_tunnel=ALL[1])
    with pytest.raises(StoppedError):
        run.simulate(job, stop_at(3))
    kept = json.loads(_checkpoint(job))
    monkeypatch.setattr(TunnelSettings, "strength", lambda *_, **__: 99.0)
    with closing(customer(job, lambda told: None)) as again:
        assert again.side.privatise.settled.strength == kept["strength"] != 99.0
        assert again.side.gradients.mechanism == ALL[1].made(kept["gradient_strength"], signed=True)
    run.simulate(job, Heard())
    assert run.predict_here(job, None).metrics()["loss"] > 0
    left = json.loads((job.out / "customer/noise.json").read_text())["settled"]
    assert (left["strength"], left["gradient_strength"]) == (kept["strength"], kept["gradient_strength"])


def _checkpoint(job: SplitJob) -> str:
    """What the customer's checkpoint holds of its noise."""
    with closing(customer(job, lambda told: None)) as party:
        return party.side.privatise.settled.to_bytes().decode()


def test_a_width_that_the_mechanism_does_not_take_is_refused_before_a_step(
    bert: Path, tmp_path: Path
) -> None:
    wide = TunnelSettings("r3elu-dp", 1.0, 9.0, keep=33)
    job = run_job(bert, "classification", tmp_path, tunnel=wide)
    with pytest.raises(MisconfiguredError, match="33 of them may leave"):
        run.simulate(job, Heard())
    job = replace(job, tunnel=TunnelSettings(), layout="customer", gradient_tunnel=wide)
    with pytest.raises(MisconfiguredError, match="33 of them may leave"):
        run.simulate(job, Heard())


def stepped(part: Vendor, watched: _Watched, scale: float) -> None:
    """One step of a vendor whose gradient is so large."""
    hidden_BTD, mask_BT = torch.randn(3, 4, 32), torch.ones(3, 4, dtype=torch.long)
    watched.before(Asked(hidden_BTD, mask_BT, torch.zeros(3, dtype=torch.long), 3, 1))
    risen = part.rise(hidden_BTD, mask_BT)
    part.sink(risen, torch.randn_like(risen.top_BTD) * scale)
    part.learner.step()
    watched.after()


@pytest.mark.parametrize("zeros", [0, 1, 3])
def test_first_gradients_that_a_tunnel_dropped_are_no_mistake(bert: Path, zeros: int) -> None:
    """Of values far below the clip most are dropped, and of whole batches at times all."""
    part = Split(make_job(bert, "classification", layout="customer", after_block=1)).vendor
    watched = _Watched(part)
    for step in range(zeros + 2):
        stepped(part, watched, float(step >= zeros))  # LoRA's A moves at the second gradient, not step
    assert watched._checked == 2


def test_a_vendor_that_no_gradient_reaches_says_so(bert: Path) -> None:
    part = Split(make_job(bert, "classification", layout="customer", after_block=1)).vendor
    watched = _Watched(part)
    for _ in range(19):
        stepped(part, watched, 0.0)
    with pytest.raises(MisconfiguredError, match="after 20 steps these have not moved"):
        stepped(part, watched, 0.0)


@pytest.mark.parametrize("tunnel", [*ALL[:4], ALL[5]], ids=lambda one: one.kind)
def test_an_attacker_who_knows_the_law_reads_what_weak_tunnels_leave(
    bert: Path, tunnel: TunnelSettings
) -> None:
    weak = replace(tunnel, clip=0.3, epsilon=None if tunnel.epsilon is None else 3e4)
    weak = replace(weak, keep=16) if tunnel.kind == "r3elu-dp" else weak
    found, front = settled(weak), front_of(make_job(bert, "classification"))
    table_VD, ids = front.parts.embedding.weight.detach(), torch.arange(10, 90)
    seen_ND = torch.from_numpy(found.noisy(table_VD[ids].numpy(), ids.numpy(), Stream(SECRET, "x")))
    by_law = reader(law_of(found, front), 1, Public(fresh_model(make_job(bert, "classification")), 0, ()))
    named = by_law.log_posterior(seen_ND[None]).argmax(1)
    assert (named == ids).float().mean() > 0.9


def test_the_likelihood_of_responses_is_that_of_their_law() -> None:
    """Against counts of 200,000 releases of two values, and it sums to 1 over what may be seen."""
    mechanism = R3eluDp(3.0, 1.0, keep=1, response=0.5, signed=True)
    for value in (-0.7, 0.2):
        rows = torch.full((200_000, 1), value, dtype=torch.float64)
        seen_N = mechanism.privatise(rows, Stream(SECRET, f"{value}"))[:, 0]
        likely = Responses(mechanism, torch.tensor([[value]]))
        dropped = likely.log_likelihood(torch.zeros(1, 1, 1), torch.tensor([0])).exp()
        assert abs(float((seen_N == 0).double().mean()) - float(dropped)) < 0.005
        told_G, expected_G = mechanism.expectation(1, 0)
        ends = torch.from_numpy(expected_G[[0, -1]])
        at_ends = likely.log_likelihood(ends.view(1, 2, 1), torch.tensor([0])).exp()[:, 0]
        for end, chance in zip(ends, at_ends, strict=True):
            assert abs(float((seen_N - end).abs().lt(1e-9).double().mean()) - float(chance)) < 0.005
        inner = torch.from_numpy(expected_G[1:-1])
        inner = inner[inner != 0]
        density = likely.log_likelihood(inner.view(1, -1, 1), torch.tensor([0])).exp()[:, 0]
        whole = float(density.double().sum()) * float(told_G[1] - told_G[0])
        assert abs(whole + float(dropped) + float(at_ends.sum()) - 1) < 0.01


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
    released_ND = gradients(job, causal=causal)(gradient_BTD, mask_BT, 5, BACK)
    read_N = (gradient_BTD != 0).any(2)[mask_BT != 0]
    assert not released_ND[~read_N].any()
    mechanism = replace(tunnel, spare=0).mechanism(job.train.epochs, signed=True)
    label = f"noise/{RUN}/0/0/backward/gradient/0"
    wanted_BD = mechanism.privatise(gradient_BTD.sum(1).double() * 5, Stream(SECRET, label)) / 5
    torch.testing.assert_close(released_ND[read_N], wanted_BD.float(), rtol=1e-5, atol=1e-6)


def test_a_language_models_gradients_all_pass(llama: Path) -> None:
    job = make_job(llama, "causal", layout="customer", gradient_tunnel=ALL[1])
    gradient_BTD, mask_BT = torch.zeros(2, 4, 8), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    released_ND = gradients(job, causal=True)(gradient_BTD, mask_BT, 5, BACK)
    assert released_ND.shape == (7, 8)
    assert (released_ND != 0).all()


def test_without_a_tunnel_gradients_go_as_they_are(bert: Path) -> None:
    gradient_BTD, mask_BT = grads(3, False)
    bare = gradients(make_job(bert, "classification", layout="customer"))
    assert torch.equal(bare(gradient_BTD, mask_BT, 5, BACK), gradient_BTD[mask_BT != 0])
    assert bare.report() is None


def test_gradients_are_priced_for_all_epochs_and_a_step_leaves_once(bert: Path) -> None:
    job = make_job(bert, "classification", layout="customer", gradient_tunnel=ALL[5], train=Train(epochs=7))
    passed = gradients(job)
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
        gradients(job)(gradient_BTD + 1, mask_BT, 5, BACK)


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
        rows_BD = gradients(job)(gradient_BTD, mask_B1, 300, BACK)
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
