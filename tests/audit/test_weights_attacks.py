"""Attacks on weights: each names the tokens of an undefended permutation, and unrelated ones by chance alone.

Undefended: tau, neurons, heads and keys of the real method, without noise and block permutation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import binomtest

from transom.audit.attacks import (
    alignment,
    attn_ia,
    column_first,
    fingerprint,
    gate_ia,
    gram_matching,
    least_squares,
    matching,
    nearest,
    neurons_first,
    own_keys,
    vma,
)
from transom.audit.attacks.weights import (
    Knowledge,
    Sample,
    Target,
    Weights,
    from_state,
    read,
    sample,
    scored,
)
from transom.errors import CheckpointError, MisconfiguredError
from transom.obfuscation.calibrate import isotropic
from transom.obfuscation.keys import Settings, Space, token_map
from transom.obfuscation.plan import norm_names, obfuscate_state, plan, target_config
from transom.report.finding import Finding
from transom.report.statistics import interval

V, D, COUNT = 700, 24, 200
SECRET = b"a fixed secret for these tests.."
ATTACKS: list[Callable[..., Finding]] = [
    module.attack
    for module in (
        vma,
        column_first,
        gate_ia,
        attn_ia,
        fingerprint,
        least_squares,
        alignment,
        neurons_first,
        gram_matching,
    )
]
ORTHOGONAL = Settings(h=0, lam=0.0, alpha_e=0.0, alpha_h=0.0, block_permutation=False)
EXACT = Settings(h=4, alpha_e=0.0, alpha_h=0.0, block_permutation=False)


def a_model(seed: int, **options: Any) -> Any:
    """A small Llama whose embedding has heavy tails and unequal directions, as real ones do."""
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=False,
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config).eval()
        state = {name: torch.randn_like(value) * 0.2 for name, value in model.state_dict().items()}
        sources = torch.distributions.Laplace(0.0, 1.0).sample((V, D))
        state["model.embed_tokens.weight"] = sources @ torch.randn(D, D)
        for name in state:
            if "norm" in name:
                state[name] = 1 + torch.rand(D)
    model.load_state_dict(state)
    return model


def obfuscated(model: Any, settings: Settings) -> tuple[Any, np.ndarray]:
    """The obfuscated model, and tau."""
    config = model.config.to_dict()
    space = Space(SECRET, D, settings)
    kappas = isotropic(space, norm_names(plan(config, settings)))
    tau = token_map(SECRET, V)
    target = target_config(config, settings, tau)
    host = transformers.LlamaForCausalLM(transformers.LlamaConfig(**target)).eval()
    host.load_state_dict(obfuscate_state(model.state_dict(), config, space, kappas))
    return host, tau


def weights(model: Any) -> Any:
    return from_state(model.state_dict(), model.config.to_dict())


@pytest.fixture(scope="module")
def base() -> Any:
    return a_model(0)


@pytest.fixture(scope="module", params=[EXACT, ORTHOGONAL], ids=["exact", "orthogonal"])
def undefended(base: Any, request: pytest.FixtureRequest) -> tuple[Target, Knowledge, Sample]:
    host, tau = obfuscated(base, request.param)
    seeds = {int(tau[plain]): plain for plain in range(6)}
    return Target(weights(host), host), Knowledge(weights(base), base, seeds), sample(tau, COUNT, seed=1)


@pytest.fixture(scope="module", params=[1, 2, 3])
def unrelated(base: Any, request: pytest.FixtureRequest) -> tuple[Target, Knowledge, Sample]:
    """The host holds an obfuscation of another model: nothing in it depends on the base."""
    host, tau = obfuscated(a_model(request.param), EXACT)
    seeds = {int(tau[plain]): plain for plain in range(6)}
    data = sample(tau, V, seed=1)
    fresh = ~np.isin(data.obfuscated_S, list(seeds))
    data = Sample(data.obfuscated_S[fresh], data.plain_S[fresh])
    return Target(weights(host), host), Knowledge(weights(base), base, seeds), data


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__module__.rpartition(".")[2])
def test_an_undefended_permutation_is_undone(attack: Any, undefended: Any) -> None:
    finding = attack(*undefended, 60.0)
    assert finding.status == "run"
    assert finding.value > 0.9
    assert finding.low <= finding.value <= finding.high
    assert finding.above_chance
    assert finding.n == COUNT
    assert finding.baseline == pytest.approx(1 / V)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__module__.rpartition(".")[2])
def test_unrelated_weights_leave_only_chance(attack: Any, unrelated: Any) -> None:
    finding = attack(*unrelated, 60.0)
    assert finding.status == "run"
    hits = round(finding.value * finding.n)
    assert binomtest(hits, finding.n, finding.baseline, alternative="greater").pvalue > 1e-3


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.95])
def test_the_interval_of_names_covers_what_is_named_in_the_vocabulary(covers: Any, rate: float) -> None:
    """Samples of 100 ids of a vocabulary of 20,000, a share `rate` of which is named rightly."""
    draw, found = np.random.default_rng(5), []
    tau = draw.permutation(20_000)
    right_V = draw.permutation(20_000) < rate * 20_000
    for seed in range(300):
        data = sample(tau, 100, seed=seed)
        guess_S = np.where(right_V[data.plain_S], data.plain_S, -1)
        found.append(scored("x", guess_S, data, candidates=20_000))
    assert covers([(one.low, one.high) for one in found], rate)


@pytest.mark.parametrize(
    "attack",
    [*ATTACKS, nearest.attack, partial(nearest.attack, distance="euclid")],
    ids=[*(one.__module__.rpartition(".")[2] for one in ATTACKS), "nn/cosine", "nn/euclid"],
)
def test_findings_on_weights_carry_that_interval(
    attack: Any, undefended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is computed here again, from what the attack named; half of the truth is made wrong before."""
    target, knowledge, data = undefended
    plain_S = np.where(np.arange(COUNT) % 2, data.plain_S, (data.plain_S + 1) % V)
    named: list[Any] = []

    def spy(name: str, guess_S: Any, data: Sample, **more: Any) -> Finding:
        named.append(guess_S)
        return scored(name, guess_S, data, **more)

    module = sys.modules[getattr(attack, "func", attack).__module__]
    monkeypatch.setattr(module, "scored", spy)
    found = attack(target, knowledge, Sample(data.obfuscated_S, plain_S), 60.0)
    hits = int((named[0] == plain_S).sum())
    assert found.value == hits / COUNT
    assert (found.low, found.high) == interval(hits, COUNT)


def test_alignment_needs_no_seeds(undefended: Any) -> None:
    target, knowledge, data = undefended
    assert alignment.attack(target, replace(knowledge, known={}), data, 60.0).value > 0.9


def a_cloud(alpha: float, width: int, seed: int) -> tuple[Target, Knowledge, Sample]:
    """4,000 rows whose axes differ in how heavy their tails are; noise, another basis, another order."""
    draw = np.random.default_rng(seed)
    sources = draw.standard_normal((4000, 16))
    sources = np.sign(sources) * np.abs(sources) ** np.linspace(1, 4, 16)
    base_VD = (sources / sources.std(0) @ draw.standard_normal((16, 16))).astype(np.float32)
    noisy_VD = base_VD + alpha * base_VD.std() * draw.standard_normal(base_VD.shape)
    tau = draw.permutation(4000)
    basis_DW = np.eye(16) if width == 16 else draw.standard_normal((16, width))
    host_VD = (noisy_VD @ basis_DW)[np.argsort(tau)].astype(np.float32)
    sides = [Weights(rows, rows.T, (), 1, 1) for rows in (host_VD, base_VD)]
    return Target(sides[0]), Knowledge(sides[1]), sample(tau, 4000)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_alignment_reads_another_basis_nearly_as_well_as_its_own(alpha: float) -> None:
    """Beside it, nearest neighbours where the basis was never changed: what noise alone leaves."""
    in_its_own = nearest.attack(*a_cloud(alpha, 16, seed=2), 60.0, distance="euclid")
    turned = alignment.attack(*a_cloud(alpha, 20, seed=2), 60.0)
    assert turned.value > 0.8 * in_its_own.value > 0.4


def test_axes_of_a_cloud_turn_with_it_and_show_its_noise() -> None:
    target, knowledge, _ = a_cloud(0.0, 20, seed=3)
    base = alignment.own_axes(knowledge.base.embedding_VD, 16)
    turned = alignment.own_axes(target.weights.embedding_VD, 16)
    noisy = alignment.own_axes(a_cloud(1.0, 20, seed=3)[0].weights.embedding_VD, 16)
    assert np.allclose(base.eigenvalues_D, turned.eigenvalues_D, atol=1e-3)
    assert noisy.eigenvalues_D[-1] < 0.8 * base.eigenvalues_D[-1]
    assert np.allclose(base.rows_VD.T @ base.rows_VD / 4000, np.eye(16), atol=1e-3)
    placed = (knowledge.base.embedding_VD - base.centre_D) @ base.into_DD
    assert np.allclose(placed, base.rows_VD, atol=1e-3)


def test_own_keys_widen_the_model_and_keep_what_it_says(base: Any) -> None:
    own, tau = own_keys.obfuscated(base, ORTHOGONAL, bytes(32), np.arange(100))
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        plain, hidden = base(ids).logits, own(torch.from_numpy(tau)[ids]).logits[..., tau]
    assert torch.allclose(plain, hidden, atol=1e-2 * float(plain.std()))


def test_settings_are_read_off_the_widths(undefended: Any) -> None:
    target, knowledge, _ = undefended
    found = own_keys.settings_of(target, knowledge)
    wider = target.weights.embedding_VD.shape[1] > D
    assert (found == EXACT) if wider else (found is None)


def test_public_fingerprints_may_be_given(undefended: Any) -> None:
    target, knowledge, data = undefended
    public_VR = fingerprint.fingerprints(knowledge.model, np.arange(V))
    given = fingerprint.attack(target, knowledge, data, 60.0, public_VR=public_VR)
    assert given.value == fingerprint.attack(target, knowledge, data, 60.0).value


def test_enough_known_pairs_need_no_neurons(undefended: Any) -> None:
    target, knowledge, data = undefended
    pairs = dict(zip(data.obfuscated_S.tolist(), data.plain_S.tolist(), strict=True))
    bare = [replace(side, layers=()) for side in (target.weights, knowledge.base)]
    known = dict(list(pairs.items())[:50])
    rest = Sample(data.obfuscated_S[50:], data.plain_S[50:])
    assert least_squares.attack(Target(bare[0]), Knowledge(bare[1], known=known), rest).value > 0.9


def test_noise_stops_the_sorted_rows_and_not_the_columns(base: Any) -> None:
    settings = replace(EXACT, alpha_e=0.5, alpha_h=0.5)
    host, tau = obfuscated(base, settings)
    given = Target(weights(host), host), Knowledge(weights(base), base), sample(tau, COUNT)
    found = {
        attack: attack(*given, 60.0).value for attack in (vma.attack, fingerprint.attack, column_first.attack)
    }
    assert found[column_first.attack] > 0.9
    assert found[vma.attack] < 0.5 * found[column_first.attack]
    assert found[fingerprint.attack] < 0.1


@pytest.fixture(scope="module")
def noisy(base: Any) -> tuple[Target, Knowledge, Sample]:
    host, tau = obfuscated(base, replace(EXACT, alpha_e=0.3, alpha_h=0.3))
    seeds = {int(tau[plain]): plain for plain in range(6)}
    return Target(weights(host)), Knowledge(weights(base), known=seeds), sample(tau, V)


def test_neurons_are_named_exactly_whatever_noise_the_tables_carry(noisy: Any) -> None:
    """Both tables are then read up to their noise, whose size nobody told."""
    target, knowledge, data = noisy
    base = knowledge.base
    found = neurons_first.neurons(target.weights, base, 0, 0)
    there, here = target.weights.layers[0], base.layers[0]
    rows_NN = np.sort((there.down @ there.gate)[found.places_N], axis=1)
    assert np.allclose(rows_NN, np.sort(here.down @ here.gate * found.scale_N[:, None], axis=1), atol=0.05)
    embedding_SD, head_SD = neurons_first.tables(target.weights, base, found, 0, data.obfuscated_S)
    norm_D = base.head_DV.std(1)  # the head's noise went through the last norm, as the head did
    for look_SD, table_SD, scale in (
        (embedding_SD, base.embedding_VD[data.plain_S], base.embedding_VD.std()),
        (head_SD / norm_D, base.head_DV.T[data.plain_S] / norm_D, 1.0),
    ):
        assert (look_SD - table_SD).std() / scale == pytest.approx(0.3, rel=0.1)


def test_the_noise_need_not_be_told(noisy: Any) -> None:
    """The same looks decoded under the covariance that was really drawn name hardly more."""
    target, knowledge, data = noisy
    base = knowledge.base
    looks = neurons_first.tables(
        target.weights, base, neurons_first.neurons(target.weights, base, 0, 0), 0, data.obfuscated_S
    )
    clean = (base.embedding_VD, base.head_DV.T)
    drawn = [np.cov((look - table[data.plain_S]).T) for look, table in zip(looks, clean, strict=True)]
    told = (neurons_first.decode(looks, clean, drawn) == data.plain_S).mean()
    found = neurons_first.attack(target, knowledge, data, 60.0)
    assert found.value > 0.9
    assert found.value >= told - 0.01
    assert found.value > column_first.attack(target, knowledge, data, 60.0).value - 0.01


def test_two_looks_name_more_than_one_and_as_brute_force_does() -> None:
    rng = np.random.default_rng(0)
    table, other = (rng.standard_normal((300, 6)).astype(np.float32) for _ in range(2))
    shape = np.diag([4.0, 4.0, 1.0, 1.0, 0.3, 0.3])
    plain = rng.permutation(300)
    looks = [
        (side[plain] + rng.multivariate_normal(np.zeros(6), shape, 300)).astype(np.float32)
        for side in (table, other)
    ]
    both = neurons_first.decode(looks, (table, other), (shape, shape))
    one = neurons_first.decode(looks[:1], (table,), (shape,))
    assert (both == plain).mean() > (one == plain).mean() > 0.1
    away = sum(
        np.einsum("scd,de,sce->sc", gap, np.linalg.inv(shape), gap)
        for gap in (look[:, None] - side[None] for look, side in zip(looks, (table, other), strict=True))
    )
    assert (both == away.argmin(1)).mean() > 0.97  # but for the floor under the noise


def test_large_layers_are_matched_row_by_row_and_larger_ones_not_at_all(
    undefended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "MOST_ASSIGNED", 10)
    assert neurons_first.attack(*undefended, 60.0).value > 0.9
    monkeypatch.setattr(neurons_first, "_MOST", 10)
    assert "64 neurons" in neurons_first.attack(*undefended, 60.0).reason


def test_gram_matching_reads_no_layer_and_grows_from_few_tokens(undefended: Any) -> None:
    target, knowledge, data = undefended
    bare = [replace(side, layers=()) for side in (target.weights, knowledge.base)]
    for count in (2, 6):
        known = dict(list(knowledge.known.items())[:count])
        assert gram_matching.attack(Target(bare[0]), Knowledge(bare[1], known=known), data).value > 0.9


def test_heavy_noise_stops_gram_matching_before_neurons_first(base: Any) -> None:
    host, tau = obfuscated(base, replace(EXACT, alpha_e=1.5, alpha_h=1.5))
    seeds = {int(tau[plain]): plain for plain in range(2)}
    given = Target(weights(host)), Knowledge(weights(base), known=seeds), sample(tau, COUNT)
    assert neurons_first.attack(*given).value > 2 * gram_matching.attack(*given).value
    host, tau = obfuscated(base, replace(EXACT, alpha_e=300.0, alpha_h=300.0))
    for attack in (neurons_first.attack, gram_matching.attack):
        drowned = attack(Target(weights(host)), given[1], sample(tau, COUNT))
        assert drowned.low <= 1 / V


def test_the_truth_is_read_by_the_scoring_alone(undefended: Any) -> None:
    target, knowledge, data = undefended
    wrong = Sample(data.obfuscated_S, (data.plain_S + 1) % V)
    for attack in ATTACKS:
        assert attack(target, knowledge, wrong, 60.0).value < 0.05


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__module__.rpartition(".")[2])
def test_another_vocabulary_is_not_attacked(attack: Any, undefended: Any) -> None:
    target, knowledge, data = undefended
    less = replace(knowledge.base, embedding_VD=knowledge.base.embedding_VD[:-1])
    finding = attack(target, replace(knowledge, base=less), data, 60.0)
    assert (finding.status, finding.value) == ("not run", None)
    assert "vocabularies differ" in finding.reason


@pytest.mark.parametrize(
    ("attack", "part"),
    [
        (column_first.attack, "gate"),
        (gate_ia.attack, "gate"),
        (least_squares.attack, "gate"),
        (attn_ia.attack, "query"),
        (neurons_first.attack, "gate"),
        (neurons_first.attack, "down"),
    ],
)
def test_a_missing_matrix_is_said(attack: Any, part: str, undefended: Any) -> None:
    target, knowledge, data = undefended
    without = replace(
        target.weights, layers=tuple(replace(one, **{part: None}) for one in target.weights.layers)
    )
    finding = attack(replace(target, weights=without), knowledge, data, 60.0)
    assert finding.status == "not run"
    assert part in finding.reason


def test_models_of_another_shape_are_not_attacked(undefended: Any) -> None:
    target, knowledge, data = undefended
    narrow = replace(target.weights.layers[0], gate=target.weights.layers[0].gate[:, :-1])
    other = replace(target.weights, layers=(narrow, *target.weights.layers[1:]), query_heads=2)
    for attack in (column_first.attack, gate_ia.attack, least_squares.attack, neurons_first.attack):
        assert "differ in width" in attack(replace(target, weights=other), knowledge, data).reason
    assert "heads differ" in attn_ia.attack(replace(target, weights=other), knowledge, data).reason


def test_missing_knowledge_is_said(undefended: Any) -> None:
    target, knowledge, data = undefended
    for attack in (least_squares.attack, gram_matching.attack):
        assert "pairs" in attack(target, replace(knowledge, known={}), data).reason
    assert "models" in fingerprint.attack(replace(target, model=None), knowledge, data).reason


def test_fewer_candidates_are_named_in_the_finding(undefended: Any) -> None:
    finding = fingerprint.attack(*undefended, 60.0, candidates=400)
    assert finding.baseline == 1 / 400
    assert f"among 400 of {V}" in finding.note


def test_a_spent_budget_still_gives_a_finding(undefended: Any) -> None:
    for attack in ATTACKS:
        assert attack(*undefended, 0.0).status == "run"
    assert "cut short" in alignment.attack(*undefended, 0.0).note
    assert "cut short" not in alignment.attack(*undefended, 60.0).note


def test_a_folder_reads_like_its_state(base: Any, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path)
    state, folder = weights(base), read(tmp_path, layers=1)
    assert len(folder.layers) == 1
    assert np.array_equal(folder.head_DV, state.head_DV)
    for part in ("query", "key", "gate", "up", "down"):
        assert np.array_equal(getattr(folder.layers[0], part), getattr(state.layers[0], part))
    norm = base.model.layers[0].post_attention_layernorm.weight
    expected = (base.model.layers[0].mlp.gate_proj.weight * norm).T.detach().numpy()
    assert np.allclose(folder.layers[0].gate, expected)


def test_experts_lie_side_by_side() -> None:
    state = {
        "model.embed_tokens.weight": torch.randn(10, 4),
        "model.layers.0.post_attention_layernorm.weight": torch.ones(4),
        "model.layers.0.block_sparse_moe.gate.weight": torch.randn(2, 4),
    }
    for expert in range(2):
        for name, shape in (("w1", (6, 4)), ("w3", (6, 4)), ("w2", (4, 6))):
            state[f"model.layers.0.block_sparse_moe.experts.{expert}.{name}.weight"] = torch.randn(shape)
    layer = from_state(state, {"num_hidden_layers": 1, "num_attention_heads": 2}).layers[0]
    assert layer.gate.shape == layer.up.shape == (4, 12)
    assert layer.down.shape == (12, 4)
    assert layer.router.shape == (4, 2)
    assert layer.query is None


def test_bad_checkpoints_are_refused(base: Any) -> None:
    with pytest.raises(CheckpointError, match="embed_tokens"):
        from_state({}, {"num_hidden_layers": 1, "num_attention_heads": 1})
    with pytest.raises(MisconfiguredError, match="layers must be at least 1"):
        from_state(base.state_dict(), base.config.to_dict(), layers=0)


def test_nearest_agrees_with_brute_force() -> None:
    rng = np.random.default_rng(0)
    rows, cloud = (rng.standard_normal((n, 5), dtype=np.float32) for n in (1500, 40))
    ids, margins = matching.nearest(rows, cloud)
    distances = np.linalg.norm(rows[:, None] - cloud[None], axis=2)
    assert (ids == distances.argmin(1)).all()
    first, second = np.sort(distances, axis=1)[:, :2].T
    assert np.allclose(margins, 1 - first / second, atol=1e-4)


def test_quantiles_ignore_order_and_leave_out_the_extremes() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3, 1000), dtype=np.float32)
    found = matching.quantiles(rows, 199)
    assert np.array_equal(found, matching.quantiles(rng.permuted(rows, axis=1), 199))
    assert (np.diff(found, axis=1) >= 0).all()
    assert (found[:, 0] > rows.min(1)).all()
    assert np.allclose(found, np.quantile(rows, np.arange(1, 200) / 200, axis=1).T, atol=0.1)


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_assignment_costs_the_least(noise: float) -> None:
    """With a short way where every row has a nearest of its own, and without."""
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(0)
    base_rows = rng.standard_normal((30, 4)).astype(np.float32)
    rows = (base_rows[rng.permutation(30)] + rng.normal(0, noise, (30, 4))).astype(np.float32)
    costs = ((base_rows[:, None] - rows[None]) ** 2).sum(2)
    assert (matching.assign(rows, base_rows) == linear_sum_assignment(costs)[1]).all()


@pytest.mark.parametrize(
    "module", [column_first, least_squares, neurons_first, alignment], ids=lambda module: module.NAME
)
def test_no_attack_hands_compiled_code_more_rows_than_end_soon(
    module: Any, undefended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stops it there; of more rows each takes its nearest, which undefended weights do not mind."""
    import scipy.optimize

    real = scipy.optimize.linear_sum_assignment

    def bounded(costs: Any) -> Any:
        assert len(costs) <= 10
        return real(costs)

    monkeypatch.setattr(scipy.optimize, "linear_sum_assignment", bounded)
    monkeypatch.setattr(matching, "MOST_ASSIGNED", 10)
    target, knowledge, data = undefended
    known = dict(zip(data.obfuscated_S[:20].tolist(), data.plain_S[:20].tolist(), strict=True))
    found = module.attack(target, replace(knowledge, known=known), data, 60.0)
    assert found.value > 0.9


def test_of_too_many_rows_each_takes_its_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MOST_ASSIGNED", 29)
    rows, base_rows = np.random.default_rng(0).standard_normal((2, 30, 4), dtype=np.float32)
    away = ((base_rows[:, None] - rows[None]) ** 2).sum(2)
    assert (matching.assign(rows, base_rows) == away.argmin(1)).all()
    assert (matching.assigned(away) == away.argmin(1)).all()
    assert len(set(away.argmin(1))) < 30  # an assignment would be another


def test_assignment_undoes_a_permutation() -> None:
    rng = np.random.default_rng(0)
    base_rows = rng.standard_normal((30, 8)).astype(np.float32)
    order = rng.permutation(30)
    noisy = base_rows[order] + rng.normal(0, 0.01, (30, 8)).astype(np.float32)
    assert (order[matching.assign(noisy, base_rows)] == np.arange(30)).all()
