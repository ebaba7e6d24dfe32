"""The beam finds the best reading there is, and a language model adds what it knows, and no more."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from transom.audit.attacks import bayes, causal, contextual
from transom.audit.attacks.causal_beam import Causal, Gap, Gapped, read
from transom.audit.attacks.word_text import Token, sanitised
from transom.audit.attacks.words import WordData, scored
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.errors import CheckpointError

HUGE = 30.0
WORDS = tuple(f"{'bdfg'[g]}{'aeiou'[k]}" for g in range(4) for k in range(5))
POWER = 0.7


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def random_model(llama):
    """A random model in float32, where sums are exact enough to be compared."""
    model = causal.load_causal(str(llama))
    return replace(model, model=model.model.float())


# --------------------------------------------------------------------------------------------------- the beam


def random_sentence(rng, gaps):
    def ids(least, most):
        return tuple(rng.integers(3, 300, rng.integers(least, most + 1)).tolist())

    def gap():
        words = tuple(ids(1, 3) for _ in range(rng.integers(1, 4)))
        return Gap(words, np.log(rng.dirichlet(np.ones(len(words)))), ids(0, 3))

    return Gapped(ids(0, 3), tuple(gap() for _ in range(gaps)))


def worth(model, sentence, chosen):
    """A reading's worth, from one forward pass over its whole text."""
    ids = [model.start_id, *sentence.lead]
    for gap, k in zip(sentence.gaps, chosen, strict=True):
        ids += [*gap.words[k], *gap.behind]
    with torch.inference_mode():
        logs_TV = model.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    fluent = sum(float(logs_TV[place, after]) for place, after in enumerate(ids[1:]))
    return POWER * fluent + sum(float(gap.log_K[k]) for gap, k in zip(sentence.gaps, chosen, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_every_reading_in_the_order_of_their_worth(random_model, seed):
    rng = np.random.default_rng(seed)
    sentences = [random_sentence(rng, gaps) for gaps in (2, 0, 4, 1, 3)]
    for sentence, found in zip(sentences, read(random_model, sentences, POWER, 81), strict=True):
        every = product(*(range(len(gap.words)) for gap in sentence.gaps))
        expected = sorted(((worth(random_model, sentence, one), one) for one in every), reverse=True)
        assert [reading.score for reading in found] == pytest.approx([score for score, _ in expected])
        assert found[0].chosen == expected[0][1]


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_narrow_beam_knows_what_its_readings_are_worth(random_model, width):
    rng = np.random.default_rng(9)
    sentences = [random_sentence(rng, gaps) for gaps in (5, 3, 4)]
    best = [found[0].score for found in read(random_model, sentences, POWER, 300)]
    for sentence, found, most in zip(
        sentences, read(random_model, sentences, POWER, width), best, strict=True
    ):
        assert 1 <= len(found) <= width
        assert found[0].score <= most + 1e-3
        for reading in found:
            assert reading.score == pytest.approx(worth(random_model, sentence, reading.chosen))


def test_a_beam_stops_at_its_deadline(random_model):
    with pytest.raises(TimeoutError):
        read(random_model, [random_sentence(np.random.default_rng(0), 2)], POWER, 2, time.monotonic() - 1)


# ------------------------------------------------------------------------------------------------- the attack


TOPICS = tuple(f"t{number}" for number in range(200))
FAITHFUL, PAIRS = 0.6, 5  # how often a topic is followed by its own word; pairs of a sentence


def topical(count, seed):
    """Sentences of a topic, which passes, and a word, which is mostly that topic's own."""
    rng = np.random.default_rng(seed)

    def pair():
        topic = int(rng.integers(len(TOPICS)))
        word = topic % 20 if rng.random() < FAITHFUL else int(rng.integers(20))
        return Token("passed", TOPICS[topic]), Token("drawn", WORDS[word], word)

    return tuple(tuple(token for _ in range(PAIRS) for token in pair()) for _ in range(count))


@pytest.fixture(scope="module")
def fluent():
    """A Llama that is the very law of these sentences.

    Its one layer adds nothing; embeddings are unit vectors, and the head holds the log-probabilities.
    """
    size = len(WORDS) + len(TOPICS) + 1
    follow = np.full((size, size), 1e-9)
    follow[20:-1, :20] = (1 - FAITHFUL) / 20
    follow[np.arange(20, size - 1), np.arange(len(TOPICS)) % 20] += FAITHFUL
    follow[[*range(20), size - 1], 20:-1] = 1 / len(TOPICS)
    shape = {"vocab_size": size, "hidden_size": size, "intermediate_size": 1, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=1, head_dim=2))
    state = model.requires_grad_(False).eval().state_dict()
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        state[f"model.layers.0.{name}.weight"].zero_()
    state["model.embed_tokens.weight"].copy_(torch.eye(size))
    state["lm_head.weight"].copy_(torch.tensor(np.log(follow).T / np.sqrt(size)))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*WORDS, *TOPICS))}))
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizers.Whitespace(), normalizers.Lowercase()
    return Causal(model, tokenizer, size - 1, "the law itself")


@pytest.fixture
def attacked(world, fluent):
    def make(name, epsilon, plain, own=200):
        world_of_topics = replace(world, own=topical(own, seed=1))
        target, knowledge, data = world_of_topics.attacked(world.mechanism(name, epsilon), plain)
        return target, replace(knowledge, causal=fluent), data

    return make


def test_it_reads_what_is_hardly_noised(attacked):
    found = causal.attack(*attacked("krr", HUGE, topical(40, seed=2)), 60.0)
    assert found.low > 0.9
    assert found.above_chance
    assert found.n == 200


def test_a_model_adds_what_the_attackers_text_does_not_say(attacked):
    target, knowledge, data = attacked("rnm", 4.0, topical(120, seed=5), own=400)
    given = target, replace(knowledge, text=knowledge.text[:50]), data
    without, found = contextual.attack(*given, 60.0), causal.attack(*given, 60.0)
    assert found.value > without.value + 0.05
    assert found.low > found.baseline
    assert f"{without.value:.3f} without the model" in found.note
    assert "the law itself counts with power" in found.note


def test_outputs_that_say_nothing_add_nothing_to_what_the_model_knows(attacked):
    given = attacked("random-in-group", 0.0, topical(60, seed=3))
    found = causal.attack(*given, 60.0)
    assert found.value == found.baseline
    assert not found.above_chance


def test_a_model_that_misleads_is_left_out(attacked, fluent):
    """It expects of each word what the law makes rare."""
    target, knowledge, data = attacked("rnm", 2.0, topical(60, seed=8))
    wrong = LlamaForCausalLM(fluent.model.config)
    wrong.load_state_dict(fluent.model.state_dict())
    wrong.lm_head.weight.data.mul_(-1)
    knowledge = replace(knowledge, causal=replace(fluent, model=wrong.requires_grad_(False).eval()))
    found, without = (one.attack(target, knowledge, data, 60.0) for one in (causal, contextual))
    assert found.value == without.value
    assert "power 0" in found.note


def test_its_interval_covers_what_a_population_of_sentences_gives(attacked, covers):
    """A population of 300 sentences is read once, so the truth is exact; samples are drawn from it."""
    target, knowledge, _ = attacked("rnm", 2.0, topical(30, seed=6))
    reader = causal.learned(target.channel, knowledge, np.inf)
    plain = topical(300, seed=100)
    seen = sanitised(plain, knowledge.mechanism, WORDS)
    named = np.array(causal.guesses(reader, seen)).reshape(len(plain), -1)
    said = np.array([[token.text for token in one if token.kind == "drawn"] for one in plain])
    truth = float((named == said).mean())
    draw, found = np.random.default_rng(0), []
    for _ in range(300):
        some = draw.integers(0, len(plain), 25)
        part = replace(target, seen=tuple(seen[i] for i in some))
        data = WordData(tuple(plain[i] for i in some))
        found.append(scored("language model", part, data, named[some].ravel().tolist()))
    assert 0.4 < truth < 0.95
    assert covers([(one.low, one.high) for one in found], truth)
    whole = causal.attack(part, knowledge, data, np.inf)
    assert (whole.value, whole.low, whole.high) == (found[-1].value, found[-1].low, found[-1].high)


def test_what_the_budget_allows_is_read_and_said(attacked, monkeypatch):
    given = attacked("rnm", 2.0, topical(60, seed=7))
    whole, calls = causal.guesses, []

    def until(reader, seen, deadline=np.inf):
        calls.append(len(seen))
        if len(calls) > len(causal.POWERS) + 13:  # four batches in three ways, and a part of the fifth
            raise TimeoutError
        return whole(reader, seen, deadline)

    monkeypatch.setattr(causal, "guesses", until)
    found = causal.attack(*given, 60.0)
    assert found.n == 160
    assert "on the first 32 of 60 sentences" in found.note
    del calls[3:]
    monkeypatch.setattr(causal, "FEWEST_READ", 33)
    late = causal.attack(*given, 60.0)
    assert (late.status, late.value) == ("not run", None)
    assert "after" in late.reason
    assert "--budget" in late.reason


def test_without_text_of_its_own_the_model_is_the_only_context(attacked):
    target, knowledge, data = attacked("rnm", 4.0, topical(120, seed=5), own=400)
    knowledge = replace(knowledge, text=(), trial=(), trial_seen=())
    found, alone = (one.attack(target, knowledge, data, 60.0) for one in (causal, bayes))
    assert found.value > alone.value + 0.05
    assert f"{alone.value:.3f} without the model" in found.note
    assert "power 0.7" in found.note


def test_no_model_or_no_time_is_not_run(attacked):
    target, knowledge, data = attacked("rnm", 2.0, topical(5, seed=7))
    without = causal.attack(target, replace(knowledge, causal=None), data, 60.0)
    assert "needs a causal language model" in without.reason
    late = causal.attack(target, knowledge, data, 0.0)
    assert "--budget" in late.reason
    assert {without.status, late.status} == {"not run"}


# --------------------------------------------------------------------------------------------- what it reads


def plain_text(kinds):
    """Tokens from `word` (passed), `+word` (drawn) and `[LABEL_1]`."""
    ids = {"b" + "aeiou"[k]: k for k in range(5)}
    made = []
    for one in kinds.split():
        if one.startswith("+"):
            made.append(Token("drawn", one[1:], ids[one[1:]]))
        else:
            made.append(Token("placeholder" if one.startswith("[") else "passed", one))
    return tuple(made)


def test_a_sentence_is_written_as_text(attacked, random_model, monkeypatch):
    target, knowledge, _ = attacked("krr", HUGE, (plain_text("+ba +be +bi"),))
    mind = contextual.learned(target.channel, knowledge, np.inf)
    parts = []
    monkeypatch.setattr(
        causal, "read", lambda _model, some, *_: parts.extend(some) or read(random_model, some, 0.5, 1)
    )
    sentence = plain_text("+ba is n't ( +be ) . [NAME_2] said , \" +bi to [NUMBER_1] % \" ! it 's [ID_7]")
    assert causal.guesses(causal.Reader(mind, random_model, 0.5), (sentence,)) == ["ba", "be", "bi"]
    ids = list(parts[0].lead)
    for gap in parts[0].gaps:
        ids += [*gap.words[0], *gap.behind]
    said = random_model.tokenizer.decode(ids)
    assert said == "Ba isn't (be). Smith said, \"bi to 10%\"! It's it"


def test_a_long_text_is_read_in_parts_behind_what_was_read_before(attacked, fluent, monkeypatch):
    long = tuple(token for one in topical(10, seed=4) for token in one)
    target, knowledge, data = attacked("krr", HUGE, (long, long[:34]))
    mind = contextual.learned(target.channel, knowledge, np.inf)
    parts = []
    monkeypatch.setattr(causal, "_CONTEXT", 6)
    monkeypatch.setattr(
        causal, "read", lambda model, some, *_: parts.append(some) or read(model, some, 0.5, 2)
    )
    named = causal.guesses(causal.Reader(mind, fluent, 0.5), target.seen)
    assert named == [token.text for one in data.plain for token in one if token.kind == "drawn"]
    assert [[len(one.gaps) for one in some] for some in parts] == [[16, 16], [16, 1], [16], [2]]
    ids = fluent.tokenizer.encode(" ".join(token.text for token in long)).ids
    assert [list(some[0].lead) for some in parts] == [ids[:1], ids[27:33], ids[59:65], ids[91:97]]


def test_of_a_long_run_of_known_words_both_ends_are_read(attacked, fluent, monkeypatch):
    """All of it at once would take memory without bound."""
    run = [f"t{number}" for number in range(90)]
    sentence = plain_text(" ".join(["+ba", *run, "+be"]))
    target, knowledge, _ = attacked("krr", HUGE, (sentence,))
    mind, parts = contextual.learned(target.channel, knowledge, np.inf), []
    monkeypatch.setattr(
        causal, "read", lambda model, some, *_: parts.append(some) or read(model, some, 0.5, 2)
    )
    assert causal.guesses(causal.Reader(mind, fluent, 0.5), target.seen) == ["ba", "be"]
    ids = tuple(fluent.tokenizer.encode(" ".join(run)).ids)
    assert parts[0][0].gaps[0].behind == ids[:12] + ids[-12:]


def test_only_a_causal_model_with_a_tokenizer_is_taken(tmp_path, llama):
    assert causal.load_causal(str(llama)).start_id == 0
    with pytest.raises(CheckpointError, match="causal"):
        causal.load_causal(str(tiny_bert(tmp_path)))
