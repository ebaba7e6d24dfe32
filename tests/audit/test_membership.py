"""Membership inference: an overfitted adapter gives its members away, an untrained one does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from transom.audit.attacks import membership
from transom.audit.attacks.membership import AREA, METRIC, Base, Candidates, Scores, judged
from transom.checkpoint import load
from transom.checkpoint.adapter import Adapter, applied, read_adapter
from transom.checkpoint.tiny import tiny_llama
from transom.errors import CheckpointError, NotYetError
from transom.report.finding import Finding

RANK = 8
Ids = tuple[tuple[int, ...], ...]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_llama(tmp_path_factory.mktemp("tiny") / "model")).model


def texts(count: int, seed: int) -> Ids:
    draw = np.random.default_rng(seed)
    return tuple(tuple(draw.integers(5, 399, draw.integers(4, 14)).tolist()) for _ in range(count))


def untrained(model: Any) -> Adapter:
    """As training begins: A random, B zero."""
    draw = torch.Generator().manual_seed(0)
    layers = {name: layer for name, layer in model.named_modules() if name.endswith("_proj")}
    factors = {
        name: (
            torch.randn(RANK, layer.in_features, generator=draw) / RANK,
            torch.zeros(layer.out_features, RANK),
        )
        for name, layer in layers.items()
    }
    return Adapter(factors, scale=2.0)


@pytest.fixture(scope="module")
def overfitted(model: Any) -> Adapter:
    """Trained on 30 texts until it knows them by heart."""
    adapter = untrained(model)
    free = [factor.requires_grad_(True) for pair in adapter.factors.values() for factor in pair]
    ids_BT = torch.tensor([[1, *text, *[1] * (14 - len(text))] for text in texts(30, seed=1)])
    wanted = ids_BT[:, 1:].where(ids_BT[:, 1:] != 1, -100)
    optimiser = torch.optim.Adam(free, lr=0.02)
    for _ in range(150):
        weights = {
            f"{name}.weight": model.get_submodule(name).weight + adapter.scale * b @ a
            for name, (a, b) in adapter.factors.items()
        }
        logits = torch.func.functional_call(model, weights, (ids_BT[:, :-1],)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Adapter({name: (a.detach(), b.detach()) for name, (a, b) in adapter.factors.items()}, 2.0)


def found(adapter: Adapter, model: Any, data: Candidates, budget_s: float = 60.0) -> dict[str, Finding]:
    made = membership.attacks()
    return {f"{one.NAME} {one.METRIC}": one.attack(adapter, Base(model, 1), data, budget_s) for one in made}


def test_an_overfitted_adapter_gives_its_members_away(model: Any, overfitted: Adapter) -> None:
    findings = found(overfitted, model, Candidates(texts(30, seed=1), texts(500, seed=2)))
    for score in ("ratio", "min-k"):
        rate, curve = findings[f"membership/{score} {METRIC}"], findings[f"membership/{score} {AREA}"]
        assert rate.value > 0.9
        assert rate.low > 0.7
        assert curve.low > 0.9
        assert rate.above_chance
        assert curve.above_chance
        assert rate.n == curve.n == 530
    assert findings[f"membership/ratio {AREA}"].high == 1.0


def test_an_untrained_adapter_gives_nothing_away(model: Any) -> None:
    findings = found(untrained(model), model, Candidates(texts(40, seed=1), texts(40, seed=2)))
    assert len(findings) == 4
    assert not any(one.above_chance for one in findings.values())
    assert findings[f"membership/ratio {AREA}"].value == 0.5  # nothing changed, so all scores tie
    assert all(one.low <= one.baseline <= one.high for one in findings.values())


@pytest.mark.parametrize("score", ["ratio", "min-k"])
def test_an_adapter_trained_on_other_texts_gives_nothing_away(
    model: Any, overfitted: Adapter, score: str
) -> None:
    """None of 1,200 texts was in training: any of them may be called members, in 200 deals of the scores."""
    heard = membership.listen(overfitted, Base(model, 1), Candidates(texts(600, 50), texts(600, 51)), np.inf)
    pool = np.concatenate([heard[score].members_M, heard[score].others_N])
    assert len(np.unique(pool)) > 1000
    assert pool.std() > 0.1
    draw = np.random.default_rng(7)
    for metric, chance in ((METRIC, 0.01), (AREA, 0.5)):
        deals = (draw.permutation(pool) for _ in range(200))
        found = [judged("x", metric, Scores(deal[:300], deal[300:], 1200)) for deal in deals]
        assert {one.baseline for one in found} == {chance}
        assert np.mean([one.low <= chance <= one.high for one in found]) > 0.904  # three standard errors
        assert np.mean([one.above_chance for one in found]) < 0.06  # 2.5 % are expected
        assert np.mean([one.value for one in found]) == pytest.approx(chance, abs=0.006)


@pytest.mark.parametrize("others", [60, 600])
def test_intervals_cover_what_members_that_do_not_differ_reach(others: int) -> None:
    draw = np.random.default_rng(3)
    inside: dict[str, list[bool]] = {METRIC: [], AREA: []}
    for _ in range(200):
        scores = Scores(draw.normal(size=100), draw.normal(size=others), 100 + others)
        for metric, covered in inside.items():
            one = judged("x", metric, scores)
            covered.append(one.low <= one.baseline <= one.high)
    assert np.mean(inside[METRIC]) >= 0.95
    assert np.mean(inside[AREA]) > 0.92


def test_intervals_cover_the_truth_of_members_that_differ() -> None:
    """Normal scores one apart: the true area is Phi(1 / sqrt 2), the true rate 1 - Phi(z_99 - 1)."""
    from scipy.stats import norm

    truth = {AREA: norm.cdf(1 / np.sqrt(2)), METRIC: 1 - norm.cdf(norm.ppf(0.99) - 1)}
    draw = np.random.default_rng(4)
    inside: dict[str, list[bool]] = {METRIC: [], AREA: []}
    for _ in range(200):
        scores = Scores(draw.normal(1.0, size=80), draw.normal(size=800), 880)
        for metric, covered in inside.items():
            one = judged("x", metric, scores)
            covered.append(one.low <= truth[metric] <= one.high)
    assert np.mean(inside[METRIC]) >= 0.95
    assert np.mean(inside[AREA]) > 0.92


def test_too_few_others_cannot_show_a_low_rate_of_false_alarms() -> None:
    few = judged("x", METRIC, Scores(np.ones(50), np.zeros(436), 486))
    enough = judged("x", METRIC, Scores(np.ones(50), np.zeros(437), 487))
    assert (few.value, enough.value) == (1.0, 1.0)
    assert few.low == 0.0
    assert enough.low > 0.9


def test_the_threshold_lets_one_in_a_hundred_pass() -> None:
    others = np.random.default_rng(5).permutation(300).astype(float)
    assert (others > membership.threshold(others)).sum() == 3
    assert (others[:99] > membership.threshold(others[:99])).sum() == 0


def test_the_area_counts_pairs_and_halves_ties() -> None:
    draw = np.random.default_rng(6)
    members, others = draw.integers(0, 5, 40).astype(float), draw.integers(0, 4, 30).astype(float)
    differences = members[:, None] - others
    wanted = ((differences > 0) + 0.5 * (differences == 0)).mean()
    assert membership.area(members, others) == pytest.approx(wanted)


def test_token_logs_do_not_depend_on_the_texts_beside(model: Any) -> None:
    several = (*texts(6, seed=7), (9,))
    beside = membership.token_logs(model, several, 1)
    for text, logs in zip(several, beside, strict=True):
        (alone,) = membership.token_logs(model, [text], 1)
        np.testing.assert_allclose(alone, logs, atol=1e-4)
    with torch.no_grad():
        wanted = model(torch.tensor([[1, *several[0]]])).logits[0, :-1].log_softmax(-1)
    np.testing.assert_allclose(beside[0], wanted[range(len(several[0])), list(several[0])], atol=1e-4)


def test_a_spent_budget_is_not_run(model: Any) -> None:
    findings = found(untrained(model), model, Candidates(texts(3, 1), texts(3, 2)), budget_s=-1.0)
    assert {one.status for one in findings.values()} == {"not run"}


def test_scores_that_are_no_numbers_are_not_run() -> None:
    broken = Scores(np.array([np.nan, 1.0]), np.zeros(5), 7)
    assert judged("x", AREA, broken).status == "not run"
    assert judged("x", METRIC, Scores(np.ones(1), np.zeros(5), 6)).status == "not run"


def write(folder: Path, adapter: Adapter, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none"} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {}
    for name, pair in adapter.factors.items():
        for letter, factor in zip("AB", pair, strict=True):
            tensors[f"base_model.model.{name}.lora_{letter}.weight"] = factor.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_is_read_added_and_taken_away(model: Any, overfitted: Adapter, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj"
    read = read_adapter(write(tmp_path / "adapter", overfitted))
    assert read.scale == 2.0
    a_RD, b_OR = overfitted.factors[name]
    layer, x = model.get_submodule(name), torch.randn(4, 32)
    before = layer.weight.data.clone()
    with applied(model, read):
        torch.testing.assert_close(layer(x), x @ before.T + 2 * x @ a_RD.T @ b_OR.T, atol=1e-4, rtol=1e-4)
    assert torch.equal(layer.weight, before)
    assert read_adapter(write(tmp_path / "adapter", overfitted, use_rslora=True)).scale == 16 / 8**0.5


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"peft_type": "IA3"}, NotYetError),
        ({"bias": "all"}, NotYetError),
        ({"use_dora": True}, NotYetError),
        ({"alpha_pattern": {"q_proj": 4}}, NotYetError),
        ({"r": 0}, CheckpointError),
        ({"r": 4}, CheckpointError),
        ({"lora_alpha": "many"}, CheckpointError),
        ({"lora_alpha": float("nan")}, CheckpointError),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    model: Any, tmp_path: Path, config: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        read_adapter(write(tmp_path / "adapter", untrained(model), **config))


def spoil(folder: Path, how: str) -> None:
    file = folder / "adapter_model.safetensors"
    if how in ("absent", "pickle"):
        file.rename(file.with_suffix(".bin") if how == "pickle" else folder / "elsewhere")
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-3])
    elif how == "config":
        (folder / "adapter_config.json").write_text("{")
    else:
        made = {"base_model.model.a.lora_A.weight": torch.zeros(RANK, 4)}
        if how == "nan":
            made["base_model.model.a.lora_B.weight"] = torch.full((4, RANK), float("nan"))
        save_file({} if how == "empty" else made, file)


@pytest.mark.parametrize("how", ["absent", "pickle", "truncated", "config", "half", "nan", "empty"])
def test_a_broken_adapter_is_refused(model: Any, tmp_path: Path, how: str) -> None:
    folder = write(tmp_path / "adapter", untrained(model))
    spoil(folder, how)
    with pytest.raises(CheckpointError):
        read_adapter(folder)


@pytest.mark.parametrize("name", ["model.layers.9.mlp.up_proj", "model.norm", "model.layers.0.mlp.down_proj"])
def test_an_adapter_of_another_base_is_refused(model: Any, name: str) -> None:
    adapter = Adapter({name: (torch.zeros(2, 32), torch.zeros(64, 2))}, 1.0)
    with pytest.raises(CheckpointError), applied(model, adapter):
        pass
