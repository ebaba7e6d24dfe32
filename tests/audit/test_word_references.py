"""The published attacks on words, and averaging: they read what there is, and no more."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from transom.audit.attacks import averaging, bayes, mask_token, word_inversion
from transom.audit.attacks.mask_token import Masked, fill, load_masked, trained
from transom.audit.attacks.word_text import Token, drawn
from transom.audit.attacks.words import WordData, WordKnowledge
from transom.checkpoint.source import packaged_minilm
from transom.errors import CheckpointError

HUGE = 30.0


@pytest.mark.parametrize("attack", [word_inversion.attack, word_inversion.LEARNED.attack])
def test_inversion_reads_what_is_hardly_noised(world, attack):
    found = attack(*world.attacked(world.mechanism("krr", HUGE), world.sentences(60, seed=2)), 5.0)
    assert found.low > 0.9
    assert found.above_chance


def test_inversion_is_at_chance_where_outputs_say_nothing(world):
    target, knowledge, data = world.attacked(
        world.mechanism("random-in-group", 0.0), world.sentences(200, seed=3)
    )
    kept = word_inversion.attack(target, knowledge, data, 5.0)
    assert kept.value == pytest.approx(0.2, abs=0.04)  # one word in five stays by chance
    learned = word_inversion.LEARNED.attack(target, knowledge, data, 5.0)
    assert learned.value <= learned.baseline + 0.03


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
    assert found.low > 0.9
    shares = [float(share) for share in re.findall(r"0\.\d{3}|1\.000", found.note.split(" after ")[0])]
    assert shares[0] < shares[3] < shares[5] <= shares[6]
    assert shares[0] == pytest.approx(bayes.attack(target, knowledge, data, 1.0).value, abs=1e-3)
    assert "after 1, 2, 3, 5, 10, 20, 50 observations, each for epsilon 1: 50 in all" in found.note


def test_averaging_nothing_gives_nothing(world):
    target, knowledge, data = world.attacked(
        world.mechanism("random-in-group", 0.0), world.sentences(200, seed=6), repeats=20
    )
    found = averaging.attack(target, knowledge, data, 5.0)
    assert found.value == found.baseline


def test_averaging_needs_repeats(world):
    once = world.attacked(world.mechanism("rnm", 2.0), world.sentences(3, seed=5))
    assert averaging.attack(*once, 5.0).status == "not run"


def test_averaging_interval_covers(world, covers):
    mechanism, found = world.mechanism("rnm", 2.0), []
    for seed in range(30):
        case = world.attacked(mechanism, world.sentences(25, seed=seed), repeats=3)
        found.append(averaging.attack(*case, 5.0))
    assert covers([(one.low, one.high) for one in found], float(np.mean([one.value for one in found])))


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


def echoes(words, seed, told):
    """Sentences in which each drawn word is told by the passed word after it, or by none (`told` False)."""
    rng = np.random.default_rng(seed)
    plain = []
    for _ in range(100):
        said = rng.integers(0, len(words), 5).tolist()
        after = said if told else rng.integers(0, len(words), 5).tolist()
        pairs = [
            (Token("drawn", words[a], a), Token("passed", words[b])) for a, b in zip(said, after, strict=True)
        ]
        plain.append(tuple(token for pair in pairs for token in pair))
    return tuple(plain)


ANIMALS = ("cat", "dog", "cow", "horse", "bird", "fish", "mouse", "sheep", "goat", "duck")


@pytest.mark.parametrize("told", [True, False])
def test_mask_token_reads_the_context_and_nothing_else(world, next_piece, told):
    plain = echoes(ANIMALS, 1, told)
    target, knowledge, _ = world.attacked(world.mechanism("krr", 1.0), world.sentences(5, seed=1))
    target = replace(target, seen=plain)  # what is released does not matter: it is masked
    found = mask_token.attack(target, replace(knowledge, language=next_piece), WordData(plain), 60.0)
    assert found.n == 500
    assert found.value == 1.0 if told else found.low <= 1 / len(ANIMALS) <= found.high


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
    model = trained(text, budget_s=60.0, epochs=8)
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
