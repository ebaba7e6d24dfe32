"""Attacks on split tuning: they read what is bare, and noise that swamps all leaves chance."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from transom.audit.attacks import (
    split_attribute,
    split_gradient,
    split_inverter,
    split_labels,
    split_nearest,
    split_next,
    split_pooled,
)
from transom.audit.attacks.rows import NO_NOISE, Noise
from transom.audit.attacks.split_view import Law, Private, Public, Seen, but, cut_up, observe, read
from transom.checkpoint import load
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.privacy.empirical import likeliest

WIDTH = 32
Texts = tuple[tuple[int, ...], ...]


@pytest.fixture(scope="module", params=["bert", "llama"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Random, with an embedding as wide as its blocks' output, as in trained models."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    made = load(tiny_bert(folder) if request.param == "bert" else tiny_llama(folder)).model
    made.get_input_embeddings().weight.data *= 5
    return made


def language(count: int, seed: int) -> tuple[Texts, tuple[int, ...]]:
    """Texts of 4 to 8 ids, each followed by one of its own two favourites, and of which kind the text is:
    the kinds share no ids."""
    follow = np.random.default_rng(0).integers(0, 25, (25, 2))
    draw = np.random.default_rng(seed)
    texts, kinds = [], []
    for _ in range(count):
        kind, ids = int(draw.integers(2)), [int(draw.integers(25))]
        while len(ids) < draw.integers(4, 9):
            ids.append(int(follow[ids[-1], draw.integers(2)]))
        texts.append(tuple(10 + 25 * kind + token for token in ids))
        kinds.append(kind)
    return tuple(texts), tuple(kinds)


PLAIN, KINDS = language(40, seed=1)
OWN, OWN_KINDS = language(400, seed=2)
DATA = Private(PLAIN, KINDS, decode=lambda ids: " ".join(map(str, ids)))
SWAMPED = Law(Noise("norm", 1e4))


def public(model: Any, after_block: int) -> Public:
    return Public(model, after_block, OWN, OWN_KINDS)


def seen(knowledge: Public, law: Law, texts: Texts = PLAIN, views: int = 1) -> Seen:
    return observe(knowledge.front, texts, law, torch.Generator().manual_seed(3), views)


def inverted(target: Seen, knowledge: Public, data: Private, budget_s: float) -> Any:
    return split_inverter.attack(target, knowledge, data, budget_s, steps=60)


def rebuilt(target: Seen, knowledge: Public, data: Private, budget_s: float) -> Any:
    return split_gradient.attack(target, knowledge, data, budget_s, learn=60, steps=20)


NO_HURRY_S = 1e6  # steps end an attack here, not the speed of the machine
ON_TOKENS = [split_nearest.attack, inverted, rebuilt]


@pytest.mark.parametrize("attack", ON_TOKENS)
@pytest.mark.parametrize("after_block", [0, 1])
def test_bare_states_are_read_and_swamped_ones_at_chance(model: Any, attack: Any, after_block: int) -> None:
    knowledge = public(model, after_block)
    bare = attack(seen(knowledge, Law()), knowledge, DATA, NO_HURRY_S)
    assert bare.value > 0.8, bare
    assert bare.above_chance
    assert len(bare.examples) == 10
    swamped = attack(seen(knowledge, SWAMPED), knowledge, DATA, NO_HURRY_S)
    assert not swamped.above_chance, swamped
    assert swamped.value < 0.15


def shared(noise: Noise, seed: int) -> Law:
    """Noise with a quarter of its strength in half of the directions."""
    draw = torch.Generator().manual_seed(seed)
    basis_DD = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw))[0]
    return Law(noise, basis_DD * torch.tensor([0.25, 1.0]).repeat(WIDTH // 2) @ basis_DD.T)


def test_the_shape_of_the_noise_is_used(model: Any) -> None:
    """The same states are read better by who knows in which directions the noise is weak."""
    knowledge = public(model, 0)
    target = seen(knowledge, shared(Noise("norm", 0.5), seed=4))
    aware = split_nearest.attack(target, knowledge, DATA, NO_HURRY_S)
    blind = split_nearest.attack(replace(target, law=Law(target.law.noise)), knowledge, DATA, NO_HURRY_S)
    assert aware.value > blind.value + 0.05


@pytest.mark.parametrize("after_block", [0, 1])
def test_who_knows_which_tokens_are_spared_reads_more(model: Any, after_block: int) -> None:
    knowledge = public(model, after_block)
    spare_V = torch.ones(len(knowledge.table_VD))
    spare_V[10:30] = 8.0
    target = seen(knowledge, Law(Noise("norm", 0.5), spare_V=spare_V))
    blind = replace(target, law=Law(Noise("norm", 0.5)))
    apart = replace(DATA, counted=tuple(tuple(10 <= token < 30 for token in text) for text in PLAIN))
    for attack in ON_TOKENS[:2]:
        aware = attack(target, knowledge, DATA, NO_HURRY_S)
        assert aware.value > attack(blind, knowledge, DATA, NO_HURRY_S).value + 0.03
        assert attack(target, knowledge, apart, NO_HURRY_S).value > aware.value + 0.05


@pytest.mark.parametrize("scale", [0.1, 0.3])
def test_without_a_prior_it_names_what_the_room_of_noise_names(model: Any, scale: float) -> None:
    """The same as `privacy.empirical.likeliest`, where every id is met equally often."""
    even = replace(public(model, 0), texts=(tuple(range(len(public(model, 0).table_VD))),))
    spare_V = torch.ones(len(even.table_VD))
    spare_V[10:30] = 3.0
    target = seen(even, Law(Noise("norm", scale), spare_V=spare_V))
    found = split_nearest.reader(target.law, 1, even).log_posterior(torch.cat(target.states, 1)).argmax(1)
    table_VD, rows_ND = even.table_VD.numpy(), torch.cat(target.means).numpy()
    assert (found.numpy() == likeliest(table_VD, rows_ND, eta_V=spare_V.numpy() / scale)).all()


@pytest.mark.parametrize("after_block", [0, 1])
def test_views_of_one_text_add_up(model: Any, after_block: int) -> None:
    knowledge = public(model, after_block)
    once, often = (
        split_nearest.attack(
            seen(knowledge, Law(Noise("norm", 0.5)), views=views), knowledge, DATA, NO_HURRY_S
        )
        for views in (1, 16)
    )
    assert often.low > once.value


def test_the_public_prior_reads_more_than_distance_alone(model: Any) -> None:
    """Half the vocabulary is never met: even odds for all would name it."""
    knowledge = public(model, 0)
    target = seen(knowledge, Law(Noise("norm", 0.3)))
    told = split_nearest.attack(target, knowledge, DATA, NO_HURRY_S)
    even = replace(knowledge, texts=(tuple(range(len(knowledge.table_VD))),))
    assert told.value > split_nearest.attack(target, even, DATA, NO_HURRY_S).value


def test_levelled_noise_has_no_directions() -> None:
    law = shared(Noise("gaussian", 0.5), seed=5)
    added_ND = law.add(torch.zeros(20_000, WIDTH), torch.Generator().manual_seed(6))
    covariance_DD = law.level(added_ND).T.cov()
    torch.testing.assert_close(covariance_DD, 0.25 * torch.eye(WIDTH), atol=0.02, rtol=0.0)
    four_ND = law.add(torch.zeros(20_000, WIDTH), torch.Generator().manual_seed(6), views=4)
    assert float(four_ND.var()) == pytest.approx(float(added_ND.var()) / 4, rel=0.05)


def test_every_id_has_a_state_and_public_ones_their_mean(model: Any) -> None:
    knowledge = public(model, 1)
    rows_VD, around_DD = knowledge.around
    ids_N = np.concatenate(OWN)
    for token in np.unique(ids_N)[:3].tolist():
        mean_D = torch.cat(knowledge.clean)[torch.from_numpy(ids_N == token)].mean(0)
        torch.testing.assert_close(rows_VD[token], mean_D, atol=1e-4, rtol=1e-4)
    assert bool((rows_VD.norm(dim=1) > 0).all())
    assert float(torch.linalg.eigvalsh(around_DD).min()) > -1e-4


def test_only_counted_tokens_are_scored() -> None:
    data = Private(((1, 5, 2), (1, 2)), counted=but(((1, 5, 2), (1, 2)), {1, 2}))
    found = read("x", ((1, 6, 2), (1, 2)), data, note="")
    assert (found.value, found.n) == (0.0, 1)
    assert read("x", ((1, 2),), replace(data, texts=((1, 2),), counted=((False,) * 2,)), note="").reason


def test_ids_are_cut_up_as_the_texts_are() -> None:
    assert cut_up(np.concatenate(PLAIN), PLAIN) == PLAIN


@pytest.mark.parametrize("after_block", [0, 1])
def test_attributes_are_named_of_bare_states_alone(model: Any, after_block: int) -> None:
    knowledge = public(model, after_block)
    for kind in ("pooled", "tokens", "read"):
        bare, swamped = (
            split_attribute.attack(seen(knowledge, law), knowledge, DATA, NO_HURRY_S, kind=kind, steps=100)
            for law in (Law(), SWAMPED)
        )
        assert bare.value > 0.9, bare
        assert bare.above_chance
        assert not swamped.above_chance, swamped
    assert [one.NAME for one in split_attribute.attacks()] == ["aia/pooled", "aia/tokens", "aia/read"]


def gradients_of(labels: np.ndarray[Any, Any], classes: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Of a linear head under cross entropy at a state a text, which is a row of its own among zeros."""
    draw = torch.Generator().manual_seed(seed)
    states_BD = torch.randn(len(labels), WIDTH, generator=draw).requires_grad_(True)
    head_DA = torch.randn(WIDTH, classes, generator=draw)
    loss = torch.nn.functional.cross_entropy(states_BD @ head_DA / 8, torch.from_numpy(labels))
    (pooled_BD,) = torch.autograd.grad(loss, states_BD)
    return tuple(torch.stack([row_D, torch.zeros(WIDTH)]) for row_D in pooled_BD)


@pytest.mark.parametrize("classes", [2, 4])
def test_gradients_give_labels_away_and_noise_hides_them(classes: int, covers: Any) -> None:
    labels = np.random.default_rng(7).integers(0, classes, 300)
    known = {int(np.flatnonzero(labels == one)[0]): one for one in range(classes)}
    knowledge = Public(None, 0, (), known=known)
    data = Private(((1, 2),) * 300, tuple(labels.tolist()))
    target = Seen((), top_gradients=gradients_of(labels, classes, seed=8))
    bare = split_labels.attacks()[0].attack(target, knowledge, data, 1.0)
    assert bare.value > 0.95, bare
    found = []
    for seed in range(100):
        noise = torch.randn(300, 2, WIDTH, generator=torch.Generator().manual_seed(seed))
        noised = replace(target, top_gradients=tuple(noise))
        found.append(split_labels.attacks()[0].attack(noised, knowledge, data, 1.0))
    assert np.mean([one.above_chance for one in found]) < 0.06
    assert np.mean([one.value for one in found]) == pytest.approx(1 / classes, abs=0.03)


@pytest.mark.parametrize("of_labels", [True, False])
def test_states_in_directions_of_labels_give_them_away(of_labels: bool) -> None:
    """Without a gradient; where they have nothing to do with labels they leave chance."""
    draw = np.random.default_rng(7)
    labels, numbers_BR = draw.integers(0, 2, 300), draw.normal(size=(300, 2))
    if of_labels:
        numbers_BR[:, 0] += 4 * labels
    known = {int(place): one for one in range(2) for place in np.flatnonzero(labels == one)[:2]}
    target = Seen(tuple(torch.from_numpy(numbers_BR).float()[:, None, None]))
    data, knowledge = Private(((1,),) * 300, tuple(labels.tolist())), Public(None, 0, (), known=known)
    attack = split_labels.attacks()[1]
    found = attack.attack(target, knowledge, data, 1.0)
    assert found.n == 296
    assert found.value > 0.9 if of_labels else found.value < 0.65
    assert "known labels" in attack.attack(target, replace(knowledge, known={}), data, 1.0).reason
    assert attack.attack(Seen(()), knowledge, data, 1.0).reason


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_llama(tmp_path_factory.mktemp("next") / "model")).model


def at_the_top(model: Any, target: Seen, noise: float = 0.0) -> Seen:
    """The target with what crosses at the top: states of its noised rows, gradients of the mean loss."""
    from transom.checkpoint.observe import observing

    states, gradients, draw = [], [], torch.Generator().manual_seed(9)
    for rows_TD, text in zip(target.means, PLAIN, strict=True):
        kept: list[torch.Tensor] = []
        with observing(model, [2], ["hidden"], lambda _kind, _layer, value, kept=kept: kept.append(value)):
            logits = model(inputs_embeds=rows_TD[None].requires_grad_(True)).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(text[1:]))
        (gradient_BTD,) = torch.autograd.grad(loss, kept[0])
        states.append(kept[0][0].detach())
        gradients.append(gradient_BTD[0] + noise * torch.randn(gradient_BTD[0].shape, generator=draw))
    return replace(target, top_states=tuple(states), top_gradients=tuple(gradients), gradient_noise=noise)


def test_gradients_at_the_top_give_next_tokens_away_and_noise_hides_them(llama: Any) -> None:
    knowledge = public(llama, 0)
    target = seen(knowledge, SWAMPED)  # the states say nothing: all comes from the gradient
    bare = split_next.attack(at_the_top(llama, target), knowledge, DATA, NO_HURRY_S)
    assert bare.value > 0.95, bare
    noised = split_next.attack(at_the_top(llama, target, noise=100.0), knowledge, DATA, NO_HURRY_S)
    assert noised.low <= noised.baseline <= noised.high, noised
    assert not split_next.attack(
        at_the_top(llama, target, noise=100.0), knowledge, DATA, NO_HURRY_S
    ).above_chance


@pytest.mark.parametrize("after_block", [0, 1])
def test_both_directions_together_read_more_than_states(llama: Any, after_block: int) -> None:
    """All but the first token of a text are in the gradients."""
    knowledge = public(llama, after_block)
    target = seen(knowledge, SWAMPED)
    with_gradients = at_the_top(llama, seen(public(llama, 0), SWAMPED))
    both = replace(target, top_states=with_gradients.top_states, top_gradients=with_gradients.top_gradients)
    assert rebuilt(target, knowledge, DATA, NO_HURRY_S).value < 0.15
    assert rebuilt(both, knowledge, DATA, NO_HURRY_S).value > 0.75


def test_what_does_not_fit_is_not_run(llama: Any) -> None:
    knowledge = public(llama, 0)
    target, few = seen(knowledge, Law()), replace(knowledge, texts=OWN[:5])
    for attack in (split_inverter.attack, split_gradient.attack):
        assert "training needs" in attack(target, few, DATA, 1.0).reason
    assert (
        "each with its attribute"
        in split_attribute.attack(target, replace(few, attributes=()), DATA, 1.0).reason
    )
    assert "customer" in split_labels.attacks()[0].attack(target, knowledge, DATA, 1.0).reason
    assert "customer" in split_next.attack(target, knowledge, DATA, 1.0).reason
    for attack in (*ON_TOKENS, split_attribute.attacks()[0].attack):
        assert "same text" in attack(replace(target, states=target.states[1:]), knowledge, DATA, 1.0).reason
        assert "no public text" in attack(target, replace(knowledge, texts=()), DATA, 1.0).reason
        broken = replace(target, states=(target.states[0] * float("nan"), *target.states[1:]))
        assert "finite" in attack(broken, knowledge, DATA, 1.0).reason


def test_neighbours_read_more_than_each_token_alone_and_a_descent_no_less(model: Any) -> None:
    knowledge = public(model, 1)
    scale = 0.35 if model.config.model_type == "bert" else 0.5  # at which a third to a half is read alone
    target = seen(knowledge, Law(Noise("norm", scale)))
    alone = split_nearest.attack(target, knowledge, DATA, NO_HURRY_S)
    learnt = split_inverter.attack(target, knowledge, DATA, NO_HURRY_S, steps=300)
    assert 0.2 < alone.value < 0.8
    assert learnt.value > alone.value + 0.03
    descended = split_gradient.attack(target, knowledge, DATA, NO_HURRY_S, learn=1, steps=30)
    assert descended.value > alone.value - 0.03  # a chance error of 220 tokens


def test_training_that_makes_it_worse_is_undone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_inverter, "_RATE", 3.0)
    knowledge = public(model, 0)
    target = seen(knowledge, Law(Noise("norm", 0.3)))
    spoilt = split_inverter.attack(target, knowledge, DATA, NO_HURRY_S, steps=5)
    alone = split_nearest.attack(target, knowledge, DATA, NO_HURRY_S)
    assert spoilt.value == pytest.approx(alone.value, abs=0.02)  # distances are added up in another order
    assert spoilt.note.startswith("0 steps")


def pooled(model: Any, law: Law) -> tuple[Seen, Public]:
    knowledge = replace(public(model, 1), frame=(1, 0))
    draw = torch.Generator().manual_seed(3)
    return Seen(tuple(law.add(row, draw)[None] for row in knowledge.crossing(PLAIN)), law), knowledge


@pytest.mark.parametrize("law", [Law(), shared(Noise("norm", 0.003), seed=4)])
def test_the_row_of_a_text_tells_its_words(model: Any, law: Law) -> None:
    learnt, searched = split_pooled.attacks()
    target, knowledge = pooled(model, law)
    words = learnt.attack(target, knowledge, DATA, NO_HURRY_S)
    assert words.value > words.baseline + 0.2, words
    few = replace(target, states=target.states[:3]), replace(DATA, texts=PLAIN[:3], labels=KINDS[:3])
    found = searched.attack(few[0], knowledge, few[1], NO_HURRY_S)
    assert found.value > found.baseline + 0.2, found
    assert found.n == sum(len(text) - 1 for text in PLAIN[:3])
    kinds = split_attribute.attack(target, knowledge, DATA, NO_HURRY_S, kind="pooled", steps=60)
    assert kinds.value > 0.8


def test_a_swamped_row_of_a_text_tells_what_all_texts_hold(model: Any) -> None:
    target, knowledge = pooled(model, SWAMPED)
    found = split_pooled.attacks()[0].attack(target, knowledge, DATA, NO_HURRY_S)
    assert found.value < found.baseline + 0.05


def test_a_search_leaves_time_to_end_what_it_began(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    left_s: list[float] = []

    def invert(*given: Any) -> Any:
        left_s.append(given[-1] - time.monotonic())
        return given[-2], 1.0

    monkeypatch.setattr(split_pooled.sentence_inversion, "invert", invert)
    split_pooled.attacks()[1].attack(*pooled(model, Law()), DATA, 1e6)
    assert 0.8e6 < left_s[0] < 0.95e6


def test_a_descent_ends_when_its_time_does(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    left_s: list[float] = []

    def stays(_optimiser: Any, _loss: Any, _steps: int, stop: float) -> int:
        left_s.append(stop - time.monotonic())
        return 1

    monkeypatch.setattr(split_gradient, "descend", stays)
    knowledge = public(model, 1)
    assert split_gradient.attack(seen(knowledge, Law()), knowledge, DATA, 1e6, learn=1).value is not None
    assert left_s
    assert all(0.8e6 < one_s < 0.95e6 for one_s in left_s)


def narrowed(directions: int, noise: Noise) -> Law:
    basis_DD, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5)))
    return Law(noise, narrow=(torch.full((WIDTH,), 0.1), basis_DD[:, :directions]))


def test_a_narrow_row_tells_as_much_as_its_directions(model: Any) -> None:
    """All of them tell what the row tells; one tells next to nothing; the search works with what there is."""
    bag, search = split_pooled.attacks()
    whole = bag.attack(*pooled(model, Law()), DATA, NO_HURRY_S)
    every = bag.attack(*pooled(model, narrowed(WIDTH, NO_NOISE)), DATA, NO_HURRY_S)
    assert every.value == pytest.approx(whole.value, abs=0.03)  # the same rows, turned
    target, knowledge = pooled(model, narrowed(1, NO_NOISE))
    assert {tuple(states.shape) for states in target.states} == {(1, 1, 1)}
    one = bag.attack(target, knowledge, DATA, NO_HURRY_S)
    assert one.value < whole.value - 0.1
    few = replace(target, states=target.states[:2]), replace(DATA, texts=PLAIN[:2], labels=KINDS[:2])
    assert search.attack(few[0], knowledge, few[1], 5.0).n == sum(len(text) - 1 for text in PLAIN[:2])


def test_a_narrow_rows_clip_and_noise_are_of_its_coordinates() -> None:
    law = narrowed(3, Noise("gaussian", 0.5, clip=2.0))
    rows_ND = 9 * torch.randn(4000, WIDTH, generator=torch.Generator().manual_seed(1))
    away_NR = law.add(rows_ND, torch.Generator().manual_seed(2)) - law.clean(rows_ND)
    assert away_NR.shape == (4000, 3)
    assert float(away_NR.std()) == pytest.approx(0.5, rel=0.05)
    assert float(law.clean(rows_ND).norm(dim=1).max()) < 2.0 + 1e-4


def test_rows_of_texts_and_rows_of_tokens_have_attacks_of_their_own(model: Any) -> None:
    target, knowledge = pooled(model, Law())
    for attack in (split_nearest, split_inverter, split_gradient, *split_attribute.attacks()[2:]):
        assert "left as one row" in attack.attack(target, knowledge, DATA, 1.0).reason
    for attack in split_pooled.attacks():
        apart = attack.attack(seen(public(model, 1), Law()), public(model, 1), DATA, 1.0)
        assert "left as a row of its own" in apart.reason
        broken = replace(target, states=(torch.full((1, 1, WIDTH), float("nan")), *target.states[1:]))
        assert "not finite" in attack.attack(broken, knowledge, DATA, 1.0).reason
        assert "needs 32" in attack.attack(target, replace(knowledge, texts=OWN[:9]), DATA, 1.0).reason
