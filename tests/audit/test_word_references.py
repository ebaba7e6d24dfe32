"""The published attacks on words, and averaging: they read what there is, and no more."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from transom.audit.attacks import averaging, bayes, mask_token, word_inversion
from transom.audit.attacks.mask_token import Masked, fill, load_masked, trained
from transom.audit.attacks.word_text import Token, drawn, sanitised
from transom.audit.attacks.words import WordData, WordKnowledge
from transom.checkpoint.source import packaged_minilm
from transom.errors import CheckpointError

HUGE = 30.0
GROUPS, SIZE = 4, 5  # of the world's words
PLACES = np.array([0.3, 0.25, 0.2, 0.15, 0.1])  # how often the words of a group are said
COMMONEST = 0.3  # the share of a group's likeliest word: what is named of outputs that say nothing


def again(attack, world, template, mechanism, *, runs=200, repeats=0):
    """Findings on `runs` fresh texts of 20 sentences, target and knowledge otherwise as in `template`."""
    target, knowledge, _ = template
    for seed in range(1000, 1000 + runs):
        plain = world.sentences(20, seed=seed)
        words_N = np.array([token.word for token in drawn(plain)])
        repeats_RN = np.array([mechanism.sample(words_N) for _ in range(repeats)], dtype=np.int64)
        seen = sanitised(plain, mechanism, world.words)
        yield attack(replace(target, seen=seen, repeats_RN=repeats_RN), knowledge, WordData(plain), 5.0)


def law_of(world, mechanism):
    """(how often each word is said [V], P(output | word) [V, V]), both exact."""
    size = len(world.words)
    p_VV = np.zeros((size, size))
    for word in range(size):
        outputs, weights = mechanism.row(word)
        p_VV[word, outputs] = weights / 2.0**64
    return np.tile(PLACES, GROUPS) / GROUPS, p_VV


def holds(found, truth, covers):
    """The intervals cover `truth`, and the values lie around it (four standard errors)."""
    values = np.array([one.value for one in found])
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / np.sqrt(len(values)))
    assert covers([(one.low, one.high) for one in found], truth)


@pytest.mark.parametrize("attack", [word_inversion.attack, word_inversion.LEARNED.attack])
def test_inversion_reads_what_is_hardly_noised(world, attack):
    found = attack(*world.attacked(world.mechanism("krr", HUGE), world.sentences(60, seed=2)), 5.0)
    assert found.low > 0.9
    assert found.above_chance


def without_context(world):
    """Words drawn one by one, and so much of the attacker's text that it ranks each group rightly."""
    return replace(world, own=world.sentences(2000, seed=1, context=False))


def test_inversion_is_at_chance_where_outputs_say_nothing(world):
    world = without_context(world)
    target, knowledge, data = world.attacked(
        world.mechanism("random-in-group", 0.0), world.sentences(400, seed=3, context=False)
    )
    kept = word_inversion.attack(target, knowledge, data, 5.0)
    assert kept.value == pytest.approx(0.2, abs=0.04)  # one word in five stays by chance
    learned = word_inversion.LEARNED.attack(target, knowledge, data, 5.0)
    assert learned.value == pytest.approx(COMMONEST, abs=0.04)  # over four standard errors
    assert learned.low <= learned.baseline <= learned.high


def test_inversions_interval_covers_how_often_words_are_kept(world, covers):
    mechanism = world.mechanism("rnm", 2.0)
    law_V, p_VV = law_of(world, mechanism)
    template = world.attacked(mechanism, world.sentences(60, seed=4))
    found = list(again(word_inversion.attack, world, template, mechanism))
    holds(found, float(law_V @ p_VV.diagonal()), covers)


def test_learned_inversions_interval_covers_what_its_table_reaches(world, covers):
    """The truth is exact for each table learned; it is learned anew in every run, and hardly moves."""
    mechanism = world.mechanism("rnm", 2.0)
    law_V, p_VV = law_of(world, mechanism)
    target, knowledge, data = world.attacked(mechanism, world.sentences(60, seed=4))
    few = replace(knowledge, text=knowledge.text[:60])  # a hundred sanitisations of more take long
    every = tuple(Token("drawn", word, number) for number, word in enumerate(world.words))
    reached = []
    for _ in range(10):
        guesses, _count = word_inversion.learned_guesses(replace(target, seen=(every,)), few)
        named_V = [world.words.index(guess) for guess in guesses]
        reached.append(law_V[named_V] @ p_VV[named_V, range(len(named_V))])
    assert np.ptp(reached) < 0.02
    found = list(again(word_inversion.LEARNED.attack, world, (target, few, data), mechanism))
    holds(found, float(np.mean(reached)), covers)


def test_learned_inversion_comes_near_bayes_and_not_above_it(world):
    target, knowledge, data = world.attacked(world.mechanism("rnm", 2.0), world.sentences(400, seed=4))
    learned = word_inversion.LEARNED.attack(target, knowledge, data, 5.0).value
    assert learned == pytest.approx(bayes.attack(target, knowledge, data, 1.0).value, abs=0.04)


def test_learned_inversion_needs_text(world):
    target, knowledge, data = world.attacked(world.mechanism("rnm", 2.0), world.sentences(3, seed=4))
    found = word_inversion.LEARNED.attack(target, replace(knowledge, text=()), data, 5.0)
    assert found.status == "not run"
    assert found.name == word_inversion.LEARNED.NAME


def test_averaging_reads_everything_in_the_end(world):
    target, knowledge, data = world.attacked(
        world.mechanism("rnm", 2.0), world.sentences(40, seed=5), repeats=49
    )
    found = averaging.attack(target, knowledge, data, 5.0)
    assert found.low > 0.87  # five standard deviations below what 25 runs of other draws gave
    shares = [float(share) for share in re.findall(r"0\.\d{3}|1\.000", found.note.split(" after ")[0])]
    assert shares[0] < shares[3] < shares[5] <= shares[6]
    assert shares[0] == pytest.approx(bayes.attack(target, knowledge, data, 1.0).value, abs=1e-3)
    assert "after 1, 2, 3, 5, 10, 20, 50 observations, each for epsilon 1: 50 in all" in found.note


def test_averaging_nothing_gives_nothing(world):
    world = without_context(world)
    target, knowledge, data = world.attacked(
        world.mechanism("random-in-group", 0.0), world.sentences(400, seed=6, context=False), repeats=20
    )
    found = averaging.attack(target, knowledge, data, 5.0)
    assert found.value == found.baseline
    assert found.value == pytest.approx(COMMONEST, abs=0.04)  # over four standard errors


def test_averaging_needs_repeats(world):
    once = world.attacked(world.mechanism("rnm", 2.0), world.sentences(3, seed=5))
    assert averaging.attack(*once, 5.0).status == "not run"


def test_averagings_interval_covers_what_four_outputs_tell(world, covers):
    """The truth sums over all outputs that a word can give in four draws, for the attacker's own prior."""
    mechanism = world.mechanism("rnm", 2.0)
    law_V, p_VV = law_of(world, mechanism)
    template = world.attacked(mechanism, world.sentences(60, seed=4))
    prior_V, truth = template[1].prior_V, 0.0
    for group in range(GROUPS):
        inside = slice(group * SIZE, (group + 1) * SIZE)
        for outputs in product(range(SIZE), repeat=4):
            all_K = p_VV[inside, inside][:, outputs].prod(axis=1)
            named = (prior_V[inside] * all_K).argmax()
            truth += law_V[inside][named] * all_K[named]
    found = list(again(averaging.attack, world, template, mechanism, repeats=3))
    holds(found, truth, covers)


# ------------------------------------------------------------------------------------------------ mask token


class NextPiece:
    """A masked model whose first choice is the piece after the gap."""

    def __init__(self, size: int) -> None:
        self.config = SimpleNamespace(vocab_size=size)
        self.lengths: list[int] = []

    def bert(self, input_ids, attention_mask):
        import torch

        self.lengths.append(int(attention_mask.sum(dim=1).max()))
        return SimpleNamespace(last_hidden_state=torch.roll(input_ids, -1, dims=1)[..., None])

    def cls(self, states):
        import torch

        return torch.zeros(len(states), self.config.vocab_size).scatter_(1, states, 1.0)


@pytest.fixture(scope="module")
def next_piece() -> Masked:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(packaged_minilm() / "tokenizer.json"))
    return Masked(NextPiece(tokenizer.get_vocab_size()), tokenizer, "the next piece")


def echoes(words, seed, told, count=100):
    """Sentences that tell each drawn word by the passed word after it; all but a share `told` tell none."""
    rng = np.random.default_rng(seed)
    plain = []
    for _ in range(count):
        said = rng.integers(0, len(words), 5).tolist()
        after = said if rng.random() < told else rng.integers(0, len(words), 5).tolist()
        pairs = [
            (Token("drawn", words[a], a), Token("passed", words[b])) for a, b in zip(said, after, strict=True)
        ]
        plain.append(tuple(token for pair in pairs for token in pair))
    return tuple(plain)


ANIMALS = ("cat", "dog", "cow", "horse", "bird", "fish", "mouse", "sheep", "goat", "duck")


def test_mask_token_reads_the_context(world, next_piece):
    plain = echoes(ANIMALS, 1, told=1.0)
    target, knowledge, _ = world.attacked(world.mechanism("krr", 1.0), world.sentences(5, seed=1))
    target = replace(target, seen=plain)  # what is released does not matter: it is masked
    found = mask_token.attack(target, replace(knowledge, language=next_piece), WordData(plain), 60.0)
    assert found.n == 500
    assert found.value == 1.0


@pytest.fixture(scope="module")
def reader():
    """`NextPiece` over the world's words alone, which is fast enough to be asked often."""
    from tokenizers import Tokenizer, models

    def made(words) -> Masked:
        pieces = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        known = models.WordLevel({piece: number for number, piece in enumerate(pieces)}, "[UNK]")
        return Masked(NextPiece(len(pieces)), Tokenizer(known), "the next word")

    return made


@pytest.mark.parametrize("told", [0.0, 0.6])
def test_mask_tokens_interval_covers_what_the_context_tells(world, reader, covers, told):
    """A sentence tells all its words or none, so its words count as one; none at all is a perfect defence."""
    size = len(world.words)
    template, knowledge, _ = world.attacked(
        world.mechanism("random-in-group", 0.0), world.sentences(60, seed=1)
    )
    knowledge, found = replace(knowledge, language=reader(world.words)), []
    for seed in range(200):
        plain = echoes(world.words, seed, told, count=40)
        target = replace(template, seen=sanitised(plain, knowledge.mechanism, world.words))
        found.append(mask_token.attack(target, knowledge, WordData(plain), 60.0))
    holds(found, told + (1 - told) / size, covers)
    assert np.mean([one.baseline for one in found]) == pytest.approx(1 / SIZE, abs=0.02)
    above = np.mean([one.above_chance for one in found])
    assert above > 0.95 if told else above == 0


def test_a_gap_is_filled_with_whole_words_alone(next_piece):
    """After the gap stands a word of several pieces, or nothing: what is no whole word is never chosen."""
    sentence = (Token("drawn", "cat", 0), Token("placeholder", "[TERM_1]"), Token("drawn", "dog", 1))
    for filled in fill(next_piece, (sentence, (Token("drawn", "cat", 0), Token("passed", "zyxwv")))):
        assert not filled.startswith(("##", "["))


def test_long_sentences_are_read_around_the_gap(next_piece):
    filler = tuple(Token("passed", "the") for _ in range(300))
    told = (Token("drawn", "cat", 0), Token("passed", "cat"))
    assert fill(next_piece, ((*filler, *told, *filler),)) == ["cat"]
    assert next_piece.model.lengths[-1] <= 131


def test_a_small_head_learns_to_fill_in(world):
    """Two sentences that say which word is missing."""
    told = [("red roses and green", "grass"), ("blue water in the deep", "sea")]
    text = tuple(
        tuple(Token("drawn" if last else "passed", word, 0 if last else -1) for word, last in words)
        for context, word in told * 32
        for words in [[*((w, False) for w in context.split()), (word, True)]]
    )
    model = trained(text, budget_s=math.inf, epochs=8)
    assert fill(model, text[:2]) == [word for _, word in told]


def test_without_a_model_or_with_another_kind_it_says_so(world):
    target, knowledge, data = world.attacked(world.mechanism("krr", 1.0), world.sentences(5, seed=1))
    assert mask_token.attack(target, knowledge, data, 60.0).status == "not run"
    with pytest.raises(CheckpointError, match="takes a BertForMaskedLM"):
        load_masked("minilm")


def test_knowledge_and_models_stay_out_of_the_repr(world, next_piece):
    knowledge = WordKnowledge(world.mechanism("krr", 1.0), np.ones(3), text=world.own, language=next_piece)
    assert "ba" not in {*re.findall(r"\w+", repr(knowledge))}
    assert len(list(drawn(world.own))) > 0
