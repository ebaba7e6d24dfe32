"""NN, IMA and ISA read unprotected states and rows, and read nothing where these are random."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from transom.audit.attacks import checkpoint_states, ima, isa, nearest
from transom.audit.attacks.states import States, recovered, recovery
from transom.audit.attacks.weights import Knowledge, Sample, Target, Weights, from_state, sample
from transom.checkpoint import load
from transom.checkpoint.tiny import tiny_llama
from transom.errors import MisconfiguredError
from transom.report.finding import Finding
from transom.report.statistics import clustered_interval

TOKENS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As in trained models, a token still shows in its own state after the first blocks."""
    made = load(tiny_llama(tmp_path_factory.mktemp("tiny") / "model", num_attention_heads=8)).model
    made.model.embed_tokens.weight.data *= 5
    return made


def ids_of(model: Any, texts: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, (texts, TOKENS))


def noise_like(states: States, seed: int = 9) -> States:
    """A perfect defence: states of the same shape that hold nothing of the tokens."""
    draw = torch.Generator().manual_seed(seed)
    assert states.hidden is not None
    assert states.attention is not None
    return States(
        states.layer,
        hidden=torch.randn(states.hidden.shape, generator=draw),
        attention=torch.randn(states.attention.shape, generator=draw).softmax(-1),
    )


def rows(embedding_VD: np.ndarray[Any, Any]) -> Weights:
    return Weights(embedding_VD, embedding_VD.T, (), 1, 1)


@pytest.mark.parametrize("distance", ["cosine", "euclid"])
def test_nearest_rows_undo_a_bare_permutation(distance: nearest.Distance) -> None:
    draw = np.random.default_rng(0)
    base_VD = draw.normal(size=(1500, 24)).astype(np.float32)
    tau = draw.permutation(1500)
    hidden_VD = (base_VD + 0.05 * draw.normal(size=base_VD.shape).astype(np.float32))[np.argsort(tau)]
    found = nearest.attack(
        Target(rows(hidden_VD)), Knowledge(rows(base_VD)), sample(tau, 500), 1.0, distance=distance
    )
    assert found.value > 0.99
    assert found.n == 500


@pytest.mark.parametrize("width", [24, 32])
def test_nearest_rows_read_nothing_in_another_basis(width: int) -> None:
    draw = np.random.default_rng(1)
    base_VD = draw.normal(size=(1500, 24)).astype(np.float32)
    basis = np.linalg.qr(draw.normal(size=(width, width)))[0][:24].astype(np.float32)
    tau = draw.permutation(1500)
    target = Target(rows((base_VD @ basis)[np.argsort(tau)]))
    found = nearest.attack(target, Knowledge(rows(base_VD)), sample(tau, 1500), 1.0)
    assert found.low <= found.baseline <= found.high


def test_another_vocabulary_is_not_run() -> None:
    small, large = rows(np.eye(4, dtype=np.float32)), rows(np.eye(5, 4, dtype=np.float32))
    nobody = Sample(np.zeros(1, np.int64), np.zeros(1, np.int64))
    assert nearest.attack(Target(small), Knowledge(large), nobody, 1.0).status == "not run"


def simulator(model: Any) -> ima.Simulator:
    return ima.Simulator(
        public_ids=ids_of(model, 6000, seed=3), states_of=lambda ids: isa.observe(model, ids, 0).hidden
    )


def test_the_inverter_reads_unprotected_states(model: Any) -> None:
    plain = ids_of(model, 40, seed=4)
    found = ima.attack(isa.observe(model, plain, 0), simulator(model), plain, 60.0, steps=300)
    assert found.low > 0.9
    assert found.n == plain.size


def test_the_inverter_reads_nothing_in_noise(model: Any) -> None:
    plain = ids_of(model, 40, seed=5)
    target = noise_like(isa.observe(model, plain, 1))
    found = ima.attack(target, simulator(model), plain, 60.0, steps=20)
    assert found.low <= found.baseline <= found.high


def test_the_inverter_does_not_generalise_to_another_basis(model: Any) -> None:
    """Keys of the attacker's own say nothing about the client's: a fresh orthogonal basis for each batch."""
    draw = torch.Generator().manual_seed(6)

    def states_of(ids: np.ndarray[Any, Any]) -> torch.Tensor:
        hidden = isa.observe(model, ids, 1).hidden
        assert hidden is not None
        width = hidden.shape[-1]
        return hidden @ torch.linalg.qr(torch.randn(width, width, generator=draw))[0]

    plain = ids_of(model, 40, seed=7)
    target = States(1, hidden=states_of(plain))
    found = ima.attack(target, ima.Simulator(ids_of(model, 500, seed=8), states_of), plain, 60.0, steps=100)
    assert found.value < 0.1


def test_simulated_states_of_another_width_are_not_run(model: Any) -> None:
    plain = ids_of(model, 2, seed=4)
    found = ima.attack(States(1, hidden=torch.zeros(2, TOKENS, 7)), simulator(model), plain, 1.0)
    assert found.status == "not run"


def test_a_spent_budget_still_gives_a_finding(model: Any) -> None:
    plain = ids_of(model, 4, seed=4)
    target = isa.observe(model, plain, 1)
    assert ima.attack(target, simulator(model), plain, 0.0).note.startswith("1 steps")
    assert isa.attack(target, model, plain, 0.0).note.startswith("1 steps")


def test_descent_through_the_model_reads_unprotected_states(model: Any) -> None:
    plain = ids_of(model, 20, seed=10)
    found = isa.attack(isa.observe(model, plain, 0), model, plain, 60.0, steps=800, nearest_tokens=128)
    assert found.value > 0.9, found


def test_attention_probabilities_are_read_from_a_known_start(model: Any) -> None:
    """Every token is a candidate, and the template's first token is known."""
    plain = ids_of(model, 20, seed=10)
    every = model.config.vocab_size
    seen = isa.observe(model, plain, 0)
    found = isa.attack(seen, model, plain, 60.0, kind="attention", steps=20, nearest_tokens=every, prefix=1)
    assert found.value > 0.9, found
    assert found.n == plain[:, 1:].size


def test_a_turned_stream_is_read_by_its_cosines(model: Any) -> None:
    """A wider orthonormal basis keeps every cosine between tokens: keys alone hide no residual stream."""
    plain = ids_of(model, 20, seed=14)
    seen = isa.observe(model, plain, 0)
    assert seen.hidden is not None
    basis = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(15)))[0][:32]
    target = States(0, hidden=seen.hidden @ basis)
    every = model.config.vocab_size
    found = isa.attack(target, model, plain, 60.0, steps=20, nearest_tokens=every, prefix=2)
    assert found.above_chance, found


@pytest.mark.parametrize("kind", ["hidden", "attention"])
def test_descent_reads_nothing_in_noise(model: Any, kind: isa.Kind) -> None:
    plain = ids_of(model, 60, seed=11)
    target = noise_like(isa.observe(model, plain, 0))
    found = isa.attack(target, model, plain, 60.0, kind=kind, steps=40)
    assert found.low <= found.baseline <= found.high


def test_observed_states_are_the_models_own(model: Any) -> None:
    plain = ids_of(model, 3, seed=12)
    seen = isa.observe(model, plain, 1)
    before = model.config._attn_implementation
    with torch.no_grad():
        out = model(torch.from_numpy(plain), output_hidden_states=True)
    assert model.config._attn_implementation == before
    torch.testing.assert_close(seen.hidden, out.hidden_states[2], atol=1e-4, rtol=1e-4)
    assert seen.attention is not None
    torch.testing.assert_close(seen.attention.sum(-1), torch.ones(seen.attention.shape[:3]))


def test_layers_and_states_that_are_not_there_are_refused(model: Any) -> None:
    plain = ids_of(model, 2, seed=12)
    with pytest.raises(MisconfiguredError):
        isa.observe(model, plain, 3)
    with pytest.raises(MisconfiguredError):
        ima.attack(States(0), simulator(model), plain, 1.0)
    assert isa.attack(States(0), model, plain, 1.0).status == "not run"


def test_chance_is_what_the_same_guesses_get_when_dealt_at_random() -> None:
    """A skewed guess on skewed tokens: 0.8 * 0.7 + 0.2 * 0.3; the interval covers it in 95 of 100 runs."""
    draw = np.random.default_rng(13)
    inside = []
    for _ in range(200):
        guess, plain = draw.random((50, 20)) < 0.2, draw.random((50, 20)) < 0.3
        found = recovery("x", guess.astype(int), plain.astype(int), note="")
        assert found.baseline == pytest.approx(0.62, abs=0.08)
        inside.append(found.low <= 0.62 <= found.high)
    assert np.mean(inside) > 0.91


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_the_interval_of_states_covers_what_is_recovered(covers: Any, rate: float) -> None:
    """Texts of unlike length, of which some are read much better than others; a wrong name is never right."""
    draw, found = np.random.default_rng(30), []
    for _ in range(300):
        plain = [draw.integers(0, 50, size) for size in draw.integers(2, 12, 40)]
        rates = draw.beta(4 * rate, 4 * (1 - rate), len(plain))
        guesses = [
            np.where(draw.random(len(text)) < share, text, 99)
            for text, share in zip(plain, rates, strict=True)
        ]
        texts = [tuple(tuple(text.tolist()) for text in some) for some in (guesses, plain)]
        found.append(recovered("x", *texts, note=""))
    assert covers([(one.low, one.high) for one in found], rate)
    assert np.mean([one.value for one in found]) == pytest.approx(rate, abs=0.02)


def by_ima(model: Any, plain: Any) -> Finding:
    return ima.attack(isa.observe(model, plain, 0), simulator(model), plain, 60.0, steps=40)


def by_isa(model: Any, plain: Any, kind: isa.Kind) -> Finding:
    return isa.attack(isa.observe(model, plain, 0), model, plain, 60.0, kind=kind, steps=3, prefix=1)


@pytest.mark.parametrize(
    ("module", "attack"),
    [(ima, by_ima), (isa, partial(by_isa, kind="hidden")), (isa, partial(by_isa, kind="attention"))],
    ids=["ima", "isa/hidden", "isa/attention"],
)
def test_findings_on_states_carry_that_interval(
    model: Any, module: Any, attack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is computed here again, from what the attack named."""
    named: list[Any] = []

    def spy(name: str, guess_BT: Any, data_BT: Any, **more: Any) -> Finding:
        named.append((guess_BT, data_BT))
        return recovery(name, guess_BT, data_BT, **more)

    monkeypatch.setattr(module, "recovery", spy)
    found = attack(model, ids_of(model, 30, seed=31))
    ((guess_BT, data_BT),) = named
    hit_BT = guess_BT == data_BT
    assert 0 < hit_BT.mean() < 1
    assert found.value == hit_BT.mean()
    sizes_B = np.full(len(hit_BT), hit_BT.shape[1])
    assert (found.low, found.high) == clustered_interval(hit_BT.sum(axis=1), sizes_B)


def mounted(model: Any, host: Any) -> tuple[Target, Knowledge]:
    sides = [from_state(side.state_dict(), side.config.to_dict()) for side in (host, model)]
    return Target(sides[0], host), Knowledge(sides[1], model)


ON_CHECKPOINT = [
    checkpoint_states.invert,
    partial(checkpoint_states.descend, kind="hidden"),
    partial(checkpoint_states.descend, kind="attention"),
]


def test_an_unprotected_checkpoint_gives_its_tokens_away(model: Any) -> None:
    data = sample(np.arange(model.config.vocab_size), 160)
    found = checkpoint_states.descend(*mounted(model, model), data, 60.0)
    assert found.value > 0.9, found


@pytest.fixture
def effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in place of seconds, and every token as a candidate: the same effort for success and chance."""
    monkeypatch.setattr(ima, "attack", partial(ima.attack, steps=80))
    monkeypatch.setattr(isa, "attack", partial(isa.attack, steps=20, nearest_tokens=1000))


def permuted(model: Any) -> tuple[Any, np.ndarray[Any, Any]]:
    """The model with its tokens permuted and nothing else done, and tau."""
    tau = np.random.default_rng(20).permutation(model.config.vocab_size)
    host = copy.deepcopy(model)
    rows_VD = model.get_input_embeddings().weight.data
    host.get_input_embeddings().weight.data = rows_VD[torch.from_numpy(np.argsort(tau))]
    return host, tau


@pytest.mark.parametrize("attack", ON_CHECKPOINT)
def test_a_checkpoint_of_permuted_tokens_gives_them_away(model: Any, effort: None, attack: Any) -> None:
    host, tau = permuted(model)
    found = attack(*mounted(model, host), sample(tau, 160), 120.0)
    assert found.value > 0.9, found
    assert found.above_chance


@pytest.mark.parametrize("attack", ON_CHECKPOINT)
def test_redrawn_weights_leave_only_chance(model: Any, effort: None, attack: Any) -> None:
    found = []
    for seed in (21, 22):
        host, tau = permuted(model)
        draw = torch.Generator().manual_seed(seed)
        for weight in host.parameters():
            weight.data = weight.data.std() * torch.randn(weight.shape, generator=draw)
        found.append(attack(*mounted(model, host), sample(tau, 160, seed=seed), 120.0))
    assert not any(one.above_chance for one in found), found
    assert all(one.low <= one.baseline <= one.high for one in found), found
    assert np.mean([one.value for one in found]) < 0.03  # of 160 or more candidates


def test_a_checkpoint_needs_models_and_eight_tokens(model: Any) -> None:
    target, knowledge = mounted(model, model)
    few = sample(np.arange(model.config.vocab_size), 7)
    assert checkpoint_states.descend(Target(target.weights), knowledge, few, 1.0).status == "not run"
    with pytest.raises(MisconfiguredError, match="got 7"):
        checkpoint_states.invert(target, knowledge, few, 1.0)
