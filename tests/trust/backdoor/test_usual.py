"""What is usual of texts beyond heads: distances against a second implementation, rates, and each part."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.errors import CheckpointError, MisconfiguredError
from transom.trust.backdoor.inputs import Scanner
from transom.trust.backdoor.measures import MEASURES
from transom.trust.backdoor.usual import Look, Usual, _Cloud, held_of, usual
from transom.trust.backdoor.words import with_run, words_of
from transom.trust.prompt import Frame

from .test_poison import rows

LAYERS, STATES, WIDTH = 3, 4, 12


def drawn(count: int, seed: int, answers: int = 1) -> Look:
    draw = np.random.default_rng(seed)
    mix = np.random.default_rng(0).normal(size=(WIDTH, WIDTH))
    return Look(
        draw.normal(size=(count, LAYERS, len(MEASURES))), draw.normal(size=(count, STATES, WIDTH)) @ mix,
        draw.normal(size=(count, answers)), [int(one) for one in draw.integers(8, 40, count)],
    )  # fmt: skip


def usual_of(look: Look) -> Usual:
    """Of texts that words of others do nothing to."""
    return usual(look, look.part(held_of(len(look.tokens))))


@pytest.mark.parametrize("count", [8, 200])
def test_a_distance_is_that_of_the_whole_covariance(count: int) -> None:
    """Also of fewer texts than dimensions, where the covariance alone cannot be inverted."""
    states, others = drawn(count, 1).states_NKD[:, 0], drawn(50, 2).states_NKD[:, 0]
    centre, deviation = states.mean(0), states.std(0)
    covariance = 0.8 * np.cov(((states - centre) / deviation).T) + 0.22 * np.eye(WIDTH)
    z = (others - centre) / deviation
    expected = np.sqrt(np.einsum("nd,de,ne->n", z, np.linalg.inv(covariance), z))
    np.testing.assert_allclose(_Cloud.of(states).distances(others), expected, rtol=1e-8)


@pytest.mark.parametrize("answers", [1, 2])
def test_one_in_twenty_innocent_texts_is_flagged(answers: int) -> None:
    """Over many sets of trusted texts, whatever was fitted."""
    shares = []
    for seed in range(40):
        known = usual_of(drawn(160, seed, answers))
        p_values = known.p_values(known.statistics(drawn(100, 1000 + seed, answers)))
        shares.append(np.mean(p_values <= 0.05))
    assert 0.02 < np.mean(shares) < 0.06


@pytest.mark.parametrize("part", ["agreement", "read", "words", "sure", "heart"])
def test_each_part_alone_tells(part: str) -> None:
    known, look = usual_of(drawn(400, 0, 2)), drawn(100, 1, 2)
    before = known.statistics(look)
    measures, states, answers = look.measures_NLM.copy(), look.states_NKD.copy(), look.answers_NQ.copy()
    if part == "agreement":
        measures[:, -1, MEASURES.index("consensus")] += 8
    elif part in ("read", "words"):
        states[:, slice(0, 2) if part == "read" else slice(2, 4)] *= 6
    else:
        answers[:, int(part == "heart")] += 8
    moved = replace(look, measures_NLM=measures, states_NKD=states, answers_NQ=answers)
    after = known.statistics(moved)
    assert (known.p_values(after) <= 0.05).mean() > 0.9
    assert (after > before).mean() > 0.9


def test_what_words_of_others_do_raises_no_flag() -> None:
    """Texts that are as far as trusted ones with a stranger's words are not flagged, farther ones are; the
    statistics are the same."""
    look, disturbed, others = drawn(400, 0), drawn(100, 1), drawn(300, 2)
    disturbed.measures_NLM[:, -1, MEASURES.index("consensus")] += 4
    others.measures_NLM[:, -1, MEASURES.index("consensus")] += 4
    known, bare = usual(look, disturbed), usual_of(look)
    statistics = known.statistics(others)
    np.testing.assert_array_equal(statistics, bare.statistics(others))
    assert (bare.p_values(statistics) <= 0.05).mean() > 0.8
    assert (known.p_values(statistics) <= 0.05).mean() < 0.08
    others.measures_NLM[:, -1, MEASURES.index("consensus")] += 8
    assert (known.p_values(known.statistics(others)) <= 0.05).mean() > 0.95


@pytest.mark.parametrize("causal", [True, False])
def test_words_of_another_text_are_put_in_whole(tmp_path: Path, causal: bool) -> None:
    """What is left without them is the text, and they stand in a row in the other one."""
    make = tiny_llama if causal else tiny_bert
    found, draw, frame = load(make(tmp_path / "model")), random.Random(0), Frame("ask: ", " answer:")
    assert found.tokenizer is not None
    text, other = (
        words_of(found.tokenizer, one, causal=causal, most_tokens=64, frame=frame)
        for one in ("the cat sat on the mat", "every green bird saw one old fox again")
    )
    places = set()
    for _ in range(200):
        made = with_run(text, other, draw)
        new = [place for place, word in enumerate(made.words) if word in other.words]
        assert 1 <= len(new) <= 4
        assert new == list(range(new[0], new[0] + len(new)))
        places.add(new[0])
        run = tuple(made.words[place] for place in new)
        assert run in {other.words[one : one + len(run)] for one in range(len(other.words))}
        assert (*made.words[: new[0]], *made.words[new[0] + len(new) :]) == text.words
        rest = [one for one, word in zip(made.ids, made.word_T, strict=True) if word not in new]
        assert tuple(rest) == text.ids
        own = [word for word in made.word_T if word >= 0]
        assert sorted(set(own)) == list(range(len(made.words)))
        assert own == sorted(own)
        kept = [one for one, word in zip(made.ids, made.word_T, strict=True) if word in new]
        at = other.words.index(run[0])
        assert kept == [
            one for one, word in zip(other.ids, other.word_T, strict=True) if at <= word < at + len(run)
        ]
    assert places == set(range(len(text.words) + 1))


def test_held_out_texts_are_those_that_nothing_was_fitted_on() -> None:
    """Else what was put into them would be held against what they were fitted for."""
    look = drawn(200, 0)
    held = held_of(200)
    changed = replace(look, states_NKD=look.states_NKD.copy())
    changed.states_NKD[held] *= 9
    one, other = usual_of(look), usual_of(changed)
    np.testing.assert_array_equal(one.units_2Q, other.units_2Q)
    assert np.median(other.held[0]) > np.median(one.held[0])


def test_less_than_usual_is_not_suspicious() -> None:
    """Heads that agree less, states in the middle and an answer that is not sure, that is."""
    known, look = usual_of(drawn(400, 0)), drawn(100, 1)
    measures, states = look.measures_NLM.copy(), look.states_NKD * 0.01
    measures[:, -1, MEASURES.index("consensus")] -= 8
    moved = replace(look, measures_NLM=measures, states_NKD=states, answers_NQ=look.answers_NQ - 8)
    assert not known.statistics(moved).any()


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(MisconfiguredError, match="79 trusted texts are too few"):
        usual_of(drawn(79, 0))


@pytest.mark.parametrize("kind", ["classifier", "generator", "encoder"])
def test_what_is_looked_at_is_what_the_model_has(tmp_path: Path, kind: str) -> None:
    """States of the token that is read and of the words, and log-odds, against the library's own output."""
    make = tiny_llama if kind == "generator" else tiny_bert
    task: Any = {"task": "sequence-classification", "num_labels": 3} if kind == "classifier" else {}
    found = load(make(tmp_path / "model"), **task)
    assert found.tokenizer is not None
    frame = Frame("ask: ", " answer:") if kind == "generator" else Frame()
    scanner = Scanner(found.model, found.tokenizer, frame)
    for text in scanner.distinct(rows(5, 0).texts):
        _, states, sureness = scanner._look_at(text)
        with torch.no_grad():
            out: Any = found.model(input_ids=torch.tensor([text.ids]), output_hidden_states=True)
        read = -1 if kind == "generator" else 0
        inside = [place for place, word in enumerate(text.word_T) if word >= 0]
        hidden = out.hidden_states[2][0]  # of three layers two thirds, and the last but one
        np.testing.assert_allclose(states[0], hidden[read], atol=1e-5)
        np.testing.assert_allclose(states[1], hidden[inside].mean(0), atol=1e-5)
        if kind == "encoder" and not hasattr(out, "logits"):
            assert sureness == 0
            continue
        row = out.logits[0] if kind != "generator" else out.logits[0, -1]
        most = row.double().softmax(0).max()
        assert sureness == pytest.approx(float((most / (1 - most)).log()), rel=1e-4)


def test_a_generators_own_prompts_are_not_among_the_held_ones(tmp_path: Path) -> None:
    found = load(tiny_llama(tmp_path / "model"))
    assert found.tokenizer is not None
    scanner = Scanner(found.model, found.tokenizer)
    known = scanner.trust(rows(100, 0).texts)
    distinct = scanner.distinct(rows(100, 0).texts)
    assert known.texts == len(distinct)
    assert known.usual.normal.texts == len(distinct) - 4
    assert known.speaker is not None
    assert {len(one) for one in known.speaker.inside} <= set(sorted(len(one.ids) for one in distinct)[:4])


def test_a_part_that_hardly_moves_on_trusted_texts_masks_no_other() -> None:
    """Answers of which few are long enough to be known by heart, and those hardly."""
    flagged = []
    for seed in range(20):
        look, draw = drawn(400, seed, 2), np.random.default_rng(seed)
        answers = np.stack([look.answers_NQ[:, 0], np.where(draw.random(400) < 0.06, 0.01, 0.0)], axis=1)
        known, bad = usual_of(replace(look, answers_NQ=answers)), drawn(20, 99, 2)
        measures = bad.measures_NLM.copy()
        measures[:, -1, MEASURES.index("consensus")] += 50
        heart = np.stack([bad.answers_NQ[:, 0], np.zeros(20)], axis=1)
        found = known.statistics(replace(bad, measures_NLM=measures, answers_NQ=heart))
        flagged.append((known.p_values(found) <= 0.05).mean())
    assert min(flagged) > 0.9


def test_a_model_of_one_number_has_no_sureness(tmp_path: Path) -> None:
    found = load(tiny_bert(tmp_path / "model"), task="sequence-classification", num_labels=1)
    assert found.tokenizer is not None
    scanner = Scanner(found.model, found.tokenizer)
    scanned = scanner.scan(scanner.trust(rows(200, 0).texts), rows(60, 1).texts, 0.1)
    assert all(np.isfinite([one.statistic or 0, one.p_value or 0]).all() for one in scanned)
    assert sum(one.flagged for one in scanned) < 30


def test_an_input_whose_numbers_are_not_finite_says_so(tmp_path: Path) -> None:
    """And a model of which trusted texts have none is refused."""
    found = load(tiny_bert(tmp_path / "model"), task="sequence-classification", num_labels=2)
    assert found.tokenizer is not None
    scanner, texts = Scanner(found.model, found.tokenizer), rows(120, 0).texts
    known = scanner.trust(texts)
    (fox,) = found.tokenizer.tokenizer.encode("fox", add_special_tokens=False).ids
    with torch.no_grad():
        found.model.get_input_embeddings().weight[fox] = float("nan")
    broken, whole = scanner.scan(known, ["the cat fox sat", texts[0]], 0.1)
    assert (broken.statistic, broken.flagged) == (None, False)
    assert "not finite" in broken.reason
    assert whole.statistic is not None
    with pytest.raises(CheckpointError, match="not finite"):
        scanner.trust([*texts, "the cat fox sat"])


def test_a_generator_needs_prompts_to_hold_answers_against(tmp_path: Path) -> None:
    found = load(tiny_llama(tmp_path / "model"))
    assert found.tokenizer is not None
    texts = list(dict.fromkeys(rows(200, 0).texts))[:83]
    with pytest.raises(MisconfiguredError, match=r"83 trusted texts are too few .* give 84 or more"):
        Scanner(found.model, found.tokenizer).trust(texts)


def test_an_answer_is_begun_within_the_context(tmp_path: Path) -> None:
    """Of a prompt that is as long as the model reads so much is left out."""
    found = load(tiny_llama(tmp_path / "model", max_position_embeddings=64))
    assert found.tokenizer is not None
    lengths: list[int] = []
    scanner = Scanner(found.model, found.tokenizer)
    known = scanner.trust(rows(200, 0).texts)

    def hear(_model: Any, _inputs: Any, given: Any) -> None:
        cache = given.get("past_key_values")
        lengths.append(given["input_ids"].shape[1] + (cache.get_seq_length() if cache is not None else 0))

    found.model.register_forward_pre_hook(hear, with_kwargs=True)
    (long,) = scanner.scan(known, ["the cat sat on a mat " * 60], 0.1)
    assert long.statistic is not None
    assert max(lengths) <= 64
