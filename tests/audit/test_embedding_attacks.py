"""Nearest rows and beam search on noised rows; inversion of sentence embeddings."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from transom.audit.attacks import beam, blocks, ima, isa
from transom.audit.attacks.rows import Law, Noise, Rows, Truth, estimated, score
from transom.checkpoint import load
from transom.checkpoint.tiny import tiny_llama
from transom.errors import MisconfiguredError
from transom.report.finding import Finding

VOCABULARY, WIDTH = 120, 24


def table(seed: int = 0) -> torch.Tensor:
    return torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(seed))


def language(texts: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Texts of 12 ids in which each id has its own few favourites to follow."""
    shares = 0.5 ** np.arange(VOCABULARY)
    follow = np.random.default_rng(0).permuted(np.tile(shares / shares.sum(), (VOCABULARY, 1)), axis=1)
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(texts):
        ids = [int(draw.integers(VOCABULARY))]
        while len(ids) < 12:
            ids.append(int(draw.choice(VOCABULARY, p=follow[ids[-1]])))
        made.append(tuple(ids))
    return tuple(made)


def shown(texts: tuple[tuple[int, ...], ...], noise: Noise, seed: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(noise.protect(table()[torch.tensor(text)], generator) for text in texts)


PLAIN = language(60, seed=1)
TRUTH = Truth(PLAIN, decode=lambda ids: " ".join(map(str, ids)))
PUBLIC = beam.Public(table(), beam.bigrams(language(2000, seed=2), VOCABULARY))


def test_rows_as_they_are_are_read() -> None:
    target = Rows(shown(PLAIN, Noise()))
    for found in (beam.nearest(target, PUBLIC, TRUTH, 9.0), beam.attack(target, PUBLIC, TRUTH, 9.0)):
        assert found.value == 1.0
        assert found.n == 720


@pytest.mark.parametrize("noise", [Noise("gaussian", 1.6), Noise("laplace", 1.1), Noise("norm", 0.32)])
@pytest.mark.parametrize("known", [True, False])
def test_a_language_reads_more_than_rows_alone(noise: Noise, known: bool) -> None:
    """Where single rows give about half, the search gives more, and the interval of the gain is above 0."""
    target = Rows(shown(PLAIN, noise), noise if known else Noise(noise.law))
    alone, found = beam.nearest(target, PUBLIC, TRUTH, 9.0), beam.attack(target, PUBLIC, TRUTH, 9.0)
    assert 0.35 < alone.value < 0.75
    assert found.low > alone.high
    assert len(found.examples) == 10
    assert "60 of 60 texts" in found.note


def search(target: Rows, knowledge: beam.Public, data: Truth, budget_s: float) -> Finding:
    return beam.attack(target, knowledge, data, budget_s, width=2, candidates=8)


@pytest.mark.parametrize("attack", [beam.nearest, search])
def test_rows_that_hold_nothing_are_read_at_chance(attack: Any, covers: Any) -> None:
    """A perfect defence of ids that are drawn evenly: any guess is right one time in VOCABULARY."""
    found = []
    for seed in range(150):
        draw = torch.Generator().manual_seed(seed)
        plain = torch.randint(VOCABULARY, (10, 12), generator=draw).tolist()
        target = Rows(tuple(torch.randn(12, WIDTH, generator=draw) for _ in plain), Noise("gaussian", 5.0))
        found.append(attack(target, PUBLIC, Truth(tuple(map(tuple, plain))), np.inf))
    intervals = [(one.low, one.high) for one in found]
    assert covers(intervals, 1 / VOCABULARY)
    assert np.mean([one.low <= one.baseline <= one.high for one in found]) > 0.93
    error = np.sqrt(1 / VOCABULARY / (150 * 120))
    for mean in (np.mean([one.value for one in found]), np.mean([one.baseline for one in found])):
        assert mean == pytest.approx(1 / VOCABULARY, abs=4 * error)


@pytest.mark.parametrize("attack", [beam.nearest, search])
def test_intervals_cover_what_noised_rows_give(
    attack: Any, covers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away from chance: a population of 600 texts is read once, so the truth is exact; samples have 15."""
    many, noise, read = language(600, seed=77), Noise("gaussian", 1.6), []

    def spy(name: str, guesses: Any, *rest: Any, **more: Any) -> Finding:
        read.append(guesses)
        return score(name, guesses, *rest, **more)

    monkeypatch.setattr(beam, "score", spy)
    seen = shown(many, noise, seed=5)
    truth = attack(Rows(seen, noise), PUBLIC, Truth(many), np.inf).value
    assert 0.4 < truth < 0.95
    draw, found = np.random.default_rng(6), []
    for _ in range(300):
        some = draw.integers(0, len(many), 15)
        data = Truth(tuple(many[i] for i in some))
        found.append(score("x", tuple(read[0][i] for i in some), data, note=""))
    assert covers([(one.low, one.high) for one in found], truth)
    again = attack(Rows(tuple(seen[i] for i in some), noise), PUBLIC, data, np.inf)
    assert (again.value, again.low, again.high) == (found[-1].value, found[-1].low, found[-1].high)


@pytest.mark.parametrize("law", ["gaussian", "laplace", "norm"])
def test_the_noise_added_has_its_law_and_its_scale_is_found(law: Law) -> None:
    noise = Noise(law, 0.3)
    zero_ND = noise.protect(torch.zeros(4000, WIDTH), torch.Generator().manual_seed(3))
    spread = {"gaussian": 0.09, "laplace": 2 * 0.09, "norm": 0.09 * (WIDTH + 1)}[law]
    assert float(zero_ND.square().mean()) == pytest.approx(spread, rel=0.05)
    assert float(zero_ND.mean()) == pytest.approx(0.0, abs=0.02)
    found = estimated(Rows(shown(PLAIN, noise), Noise(law)), table())
    assert found.noise.scale == pytest.approx(0.3, rel=0.1)


def test_clipped_rows_are_read_in_the_clipped_table() -> None:
    noise = Noise("gaussian", 0.02, clip=1.0)
    seen = shown(PLAIN, noise)
    assert max(float(rows.norm(dim=1).max()) for rows in seen) < 1.5
    assert beam.nearest(Rows(seen, noise), PUBLIC, TRUTH, 1.0).value > 0.99
    without = beam.nearest(Rows(seen), PUBLIC, TRUTH, 1.0).value
    assert without is not None
    assert without < 0.99


def test_the_search_finds_the_best_sentence_of_all() -> None:
    """Wide enough, it equals the maximum over all sentences of likelihood and prior."""
    draw = torch.Generator().manual_seed(4)
    small_VD = torch.randn(5, 3, generator=draw)
    prior = beam.bigrams(((0, 1, 2), (2, 2, 4), (3, 1, 0)), 5)
    rows_TD, noise = torch.randn(3, 3, generator=draw), Noise("gaussian", 0.9)
    read = beam.decode(Rows((rows_TD,), noise), small_VD, prior, 125, 5, stop=float("inf"))
    log_TV = noise.log_likelihood(noise.distance(rows_TD, small_VD))

    def value(text: tuple[int, ...]) -> float:
        logs, step = 0.0, prior.begin()
        for place, (before, token) in enumerate(zip((prior.start_id, *text), text, strict=False)):
            logs += float(step(torch.tensor([0]), torch.tensor([before]))[0, token] + log_TV[place, token])
        return logs

    every = [tuple(map(int, text)) for text in np.ndindex(5, 5, 5)]
    assert read[0] == max(every, key=value)


def test_the_models_cache_follows_the_hypotheses(tmp_path: Any) -> None:
    """Reordered, dropped and doubled hypotheses get what the model says of them without a cache."""
    model = load(tiny_llama(tmp_path / "model")).model
    step = beam.causal(model, start_id=1).begin()
    step(torch.tensor([0, 1]), torch.tensor([1, 1]))
    step(torch.tensor([0, 0, 1]), torch.tensor([5, 6, 7]))
    last = step(torch.tensor([2, 0]), torch.tensor([8, 9]))
    with torch.no_grad():
        whole = model(torch.tensor([[1, 7, 8], [1, 5, 9]])).logits[:, -1].log_softmax(-1)
    torch.testing.assert_close(last, whole, atol=1e-4, rtol=1e-4)


def test_a_language_of_pairs_is_a_distribution() -> None:
    prior = beam.bigrams(language(50, seed=3), VOCABULARY)
    rows = prior.begin()(torch.zeros(3, dtype=torch.long), torch.tensor([prior.start_id, 0, 7]))
    torch.testing.assert_close(rows.exp().sum(1), torch.ones(3))


def test_a_budget_reads_the_texts_that_it_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Noise("gaussian", 1.6)
    target = Rows(shown(PLAIN, noise), noise)
    assert "too few" in beam.attack(target, PUBLIC, TRUTH, -1.0).reason
    clock = iter(np.arange(1000.0))
    monkeypatch.setattr(beam.time, "monotonic", lambda: float(next(clock)))
    found = beam.attack(target, PUBLIC, TRUTH, 3.0)
    assert "12 of 60 texts" in found.note
    assert found.n == 12 * 12


def without_prior() -> beam.Public:
    return beam.Public(table())


@pytest.mark.parametrize(
    ("target", "knowledge", "data", "reason"),
    [
        (Rows(()), PUBLIC, Truth(()), "no rows"),
        (Rows((torch.zeros(0, WIDTH),)), PUBLIC, Truth(((),)), "no rows"),
        (Rows((torch.zeros(2, WIDTH),)), PUBLIC, Truth(((1,),)), "same text"),
        (Rows((torch.zeros(1, 7),)), PUBLIC, Truth(((1,),)), "wide"),
        (Rows((torch.full((1, WIDTH), float("nan")),)), PUBLIC, Truth(((1,),)), "finite"),
        (Rows((torch.zeros(1, WIDTH),)), without_prior(), Truth(((1,),)), "language"),
    ],
)
def test_what_does_not_fit_is_not_run(target: Rows, knowledge: beam.Public, data: Truth, reason: str) -> None:
    found = beam.attack(target, knowledge, data, 1.0)
    assert found.status == "not run"
    assert reason in found.reason


def test_one_token_still_has_an_interval() -> None:
    target = Rows(shown(((3,),), Noise()))
    found = beam.nearest(target, PUBLIC, Truth(((3,),)), 1.0)
    assert found.value == 1.0
    assert found.low < 0.5


@pytest.mark.parametrize("bad", [{"law": "uniform"}, {"scale": 0.0}, {"clip": float("inf")}])
def test_an_unusable_noise_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(MisconfiguredError):
        Noise(**bad)


def test_blocks_hold_the_most_tokens() -> None:
    assert blocks.block_length(((1,) * 3, (1,) * 4, (1,) * 9)) == 3
    assert blocks.block_length(((1,) * 2, (1,) * 14)) == 14
    assert blocks.block_length(((1,) * 40,)) == 16


def test_the_inverter_reads_noised_rows_of_unlike_lengths(tmp_path: Any) -> None:
    model = load(tiny_llama(tmp_path / "model")).model
    place, noise = blocks.Observed(model, None), Noise("gaussian", 0.1)
    draw = np.random.default_rng(9)
    own = tuple(tuple(draw.integers(0, 60, draw.integers(4, 9)).tolist()) for _ in range(800))
    plain, few = own[:30], own[:9]
    generator = torch.Generator().manual_seed(0)
    bare = [place.states_of(np.array([text]))[0] for text in plain]
    target = Rows(tuple(noise.protect(rows, generator) for rows in bare), Noise("gaussian"))
    knowledge = beam.Public(model.get_input_embeddings().weight)
    (inverter,) = blocks.attacks(place, own[30:])
    found = inverter.attack(target, knowledge, Truth(plain), 3.0)
    assert found.value is not None
    assert found.value > 0.9
    (inverter,) = blocks.attacks(place, few)
    assert "public texts" in inverter.attack(target, knowledge, Truth(plain), 3.0).reason


@pytest.mark.parametrize("layer", [None, 0])
def test_attacks_on_rows_read_bare_ones_and_nothing_else(
    tmp_path: Any, layer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same attackers with the same effort; rows of other texts are a perfect defence."""
    monkeypatch.setattr(ima, "attack", partial(ima.attack, steps=60))
    monkeypatch.setattr(isa, "attack", partial(isa.attack, steps=300))
    model = load(tiny_llama(tmp_path / "model")).model
    model.model.embed_tokens.weight.data *= 5  # as in trained models, tokens show in their own states
    place, draw = blocks.Observed(model, layer), np.random.default_rng(10)
    own = tuple(tuple(draw.integers(0, 60, 6).tolist()) for _ in range(1000))
    plain, others, knowledge = own[:24], own[24:48], beam.Public(model.get_input_embeddings().weight)
    shown = [Rows(tuple(place.states_of(np.array([text]))[0] for text in some)) for some in (plain, others)]
    attackers = blocks.attacks(place, own[48:])
    assert [one.NAME for one in attackers] == ["ima", "isa/hidden"][: 1 + (layer is not None)]
    for one in attackers:
        bare, perfect = (one.attack(target, knowledge, Truth(plain), 60.0) for target in shown)
        assert bare.value > 0.9, one.NAME
        assert bare.above_chance, one.NAME
        assert perfect.low <= perfect.baseline <= perfect.high, one.NAME
        assert perfect.value == pytest.approx(1 / 60, abs=0.043), one.NAME  # four standard errors of 144
