"""Building policies: every class is respected, groups partition the vocabulary, bad files are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from transom.errors import PolicyError
from transom.privacy.build import build_groups, build_policy
from transom.privacy.lexicon import (
    FUNCTION_WORDS,
    Vectors,
    read_polarity,
    read_vectors,
    read_wordnet,
    spread_by_synonyms,
)
from transom.privacy.policy import load_policy
from transom.privacy.text import CLOSED_FORMS

NOUNS = [f"noun{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]
NOUNS = [word.replace("noun", "thing") for word in NOUNS]


def synset(offset: int, pos: str, words: list[str], similar: tuple[int, ...] = ()) -> str:
    spelled = " ".join(f"{word} 0" for word in words)
    pointers = "".join(f" & {other:08d} {pos} 0000" for other in similar)
    return f"{offset:08d} 00 {pos} {len(words):02x} {spelled} {len(similar):03d}{pointers} | a gloss  "


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    folder = tmp_path / "wordnet"
    folder.mkdir()
    nouns = [synset(i + 1, "n", [word]) for i, word in enumerate([*NOUNS, "Paris", "city", "goose", "box"])]
    adjectives = [
        synset(1, "a", ["good", "fine"], (2,)),
        synset(2, "s", ["splendid(a)"], (1,)),
        synset(3, "a", ["bad", "awful"]),
        synset(4, "a", ["bad", "rotten"]),
        synset(5, "a", ["awful", "rotten"]),
    ]
    files = {
        "noun": nouns, "adj": adjectives, "verb": [synset(1, "v", ["walk"]), synset(2, "v", ["box"])],
        "adv": [synset(1, "r", ["slowly"])],
    }  # fmt: skip
    for pos, lines in files.items():
        text = "  1 the licence stands here, indented\n" + "\n".join(lines) + "\n"
        (folder / f"data.{pos}").write_text(text, encoding="utf-8")
        (folder / f"{pos}.exc").write_text("geese goose\n" if pos == "noun" else "", encoding="utf-8")
    counts = "box%1:06:00:: 1 9\nbox%2:35:00:: 1 2\ngood%3:00:00:: 1 5\n"
    (folder / "cntlist.rev").write_text(counts, encoding="utf-8")
    return folder


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """Function words first, then the nouns, then adjectives; the order is the frequency."""
    words = ["the", "of", ",", "Paris", "paris", *NOUNS, "good", "fine", "splendid", "bad", "awful", "rotten"]
    words += ["walked", "geese", "boxes", "unheardof", "the"]
    rng = np.random.default_rng(0)
    path = tmp_path / "vectors.txt"
    lines = [f"{word} " + " ".join(f"{x:.4f}" for x in rng.normal(size=8)) for word in words]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_word_classes_follow_frequency_and_inflection(wordnet: Path) -> None:
    lexicon = read_wordnet(wordnet)
    assert lexicon.word_class("box") == ("noun", "box")  # 9 against 2 in the counts
    assert lexicon.word_class("boxes") == ("noun.plural", "box")
    assert lexicon.word_class("boxed") == ("verb.ed", "box")
    assert lexicon.word_class("walked") == ("verb.ed", "walk")
    assert lexicon.word_class("geese") == ("noun.plural", "goose")
    assert lexicon.word_class("slowly") == ("adv", "slowly")
    assert lexicon.word_class("paris") is None  # a proper noun
    assert lexicon.word_class("zzzz") is None


def test_synonyms_spread_a_clear_vote_and_nothing_else(wordnet: Path) -> None:
    spread = spread_by_synonyms({"good": 1, "fine": 1, "bad": -1, "awful": -1}, read_wordnet(wordnet))
    assert spread["splendid"] == 1
    assert spread["rotten"] == -1
    assert "walk" not in spread
    assert spread["good"] == 1


def test_policy_partitions_the_vocabulary(tmp_path: Path, embeddings: Path, wordnet: Path) -> None:
    polarity = tmp_path / "polarity.tsv"
    polarity.write_text("good\t2.0\t0\nfine\t1.5\nbad\t-2.5\nawful\t-2\nthinga\t0.1\n", encoding="utf-8")
    shares: list[float] = []
    policy = build_policy(
        embeddings, tmp_path / "p.safetensors", wordnet=wordnet, polarity=polarity, group_size=5,
        epsilon=2.0, progress=shares.append,
    )  # fmt: skip
    words = list(policy.words)
    assert len(set(words)) == len(words)
    assert set(words) >= {*NOUNS, "good", "bad", "walked", "geese"}
    assert not set(words) & (FUNCTION_WORDS | {"paris", "Paris", ",", "unheardof"})
    assert set(policy.pass_words) == set(FUNCTION_WORDS)
    sizes = np.diff(policy.partition.starts_G1)
    assert sizes.min() >= 2
    assert sizes.max() <= 5 + 6  # a class that is too small for a group of its own is folded in
    assert shares == sorted(shares)
    assert load_policy(tmp_path / "p.safetensors", policy.sha256).words == policy.words
    assert 0 < (policy.pass_share or 0) < 1


def test_polarity_never_mixes_within_a_group() -> None:
    rng = np.random.default_rng(1)
    words = tuple(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(120))
    signs = {word: (1, -1, 0)[i % 3] for i, word in enumerate(words)}
    vectors = Vectors(words, rng.normal(size=(120, 6)).astype(np.float32))
    groups = build_groups(vectors, None, {w: s for w, s in signs.items() if s}, 120, 8)
    for start, end in zip(groups.starts_G1[:-1], groups.starts_G1[1:], strict=True):
        found = {signs[word] for word in groups.words[start:end]} - {0}
        assert len(found) <= 1  # the ridge may add neutral words to a side, never swap sides


def test_groups_gather_similar_words() -> None:
    """Two well separated clouds of words of equal frequency never share a group."""
    rng = np.random.default_rng(2)
    clouds_VE = np.concatenate([rng.normal(size=(40, 5)) * 0.05 + 3, rng.normal(size=(40, 5)) * 0.05 - 3])
    words = tuple(f"v{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(80))
    groups = build_groups(Vectors(words, clouds_VE.astype(np.float32)), None, {}, 80, 10)
    side = {word: i < 40 for i, word in enumerate(words)}
    for start, end in zip(groups.starts_G1[:-1], groups.starts_G1[1:], strict=True):
        assert len({side[word] for word in groups.words[start:end]}) == 1


@pytest.mark.parametrize(
    "text", ["", "the 0.1 nan\n", "the 0.1 0.2\nof 0.1\n", "the\n", "the one two\n", "\x00\ud800"]
)
def test_unusable_vectors_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(PolicyError, match=r"v\.txt"):
        read_vectors(path, 10)


def test_word2vec_header_gzip_and_limit(tmp_path: Path) -> None:
    path = tmp_path / "v.txt.gz"
    path.write_bytes(gzip.compress(b"2 3\na 1 2 3\nb 4 5 6\n"))
    read = read_vectors(path, 1)
    assert read.words == ("a",)
    np.testing.assert_array_equal(read.vectors_VE, [[1, 2, 3]])


def test_missing_resources_are_named(tmp_path: Path, embeddings: Path) -> None:
    with pytest.raises(PolicyError, match="WordNet"):
        read_wordnet(tmp_path)
    with pytest.raises(PolicyError, match="valence"):
        read_polarity(embeddings)
    for size in (1, 129):
        with pytest.raises(PolicyError, match="group_size must lie between 2 and 128"):
            build_policy(embeddings, tmp_path / "p.safetensors", group_size=size)
    with pytest.raises(PolicyError, match="usable"):
        build_groups(Vectors(("the",), np.zeros((1, 2), np.float32)), None, {}, 10, 5)


def test_names_become_a_list_unless_they_are_common_words(
    tmp_path: Path, embeddings: Path, wordnet: Path
) -> None:
    census = tmp_path / "names"
    census.write_text("THINGAA 3.3 3.3 1\nGOOD 1.0 4.3 2\nUNHEARDOF 0.1 4.4 3\n\n", encoding="utf-8")
    built = build_policy(
        embeddings, tmp_path / "p.safetensors", wordnet=wordnet, names=[census], group_size=5
    )
    assert built.names == {
        "thingaa"
    }  # `good` was met five times as a word, `unheardof` is no vocabulary word
    assert "thingaa" not in built.words
    assert {"good", "thingab"} <= set(built.words)
    with pytest.raises(PolicyError, match="list of names"):
        build_policy(embeddings, tmp_path / "q.safetensors", names=[tmp_path / "absent"])


def test_what_is_never_drawn_leaves_no_hole_in_a_group(tmp_path: Path) -> None:
    """Names, closed forms and function words, most frequent of all, change neither sizes nor the prior."""
    left_out = [*sorted(CLOSED_FORMS)[::3], *NOUNS[:7], "the", "will"]
    rng = np.random.default_rng(3)
    rows = {word: rng.normal(size=6) for word in [*left_out, *NOUNS[7:]]}
    (tmp_path / "v").write_text(
        "".join(f"{word} {' '.join(f'{x:.4f}' for x in row)}\n" for word, row in rows.items())
    )
    (tmp_path / "names").write_text("\n".join([*NOUNS[:7], "will", "mr"]).upper())
    built = build_policy(
        tmp_path / "v", tmp_path / "p", vocabulary_size=40, group_size=8, names=[tmp_path / "names"]
    )
    assert sorted(built.words) == sorted(NOUNS[7:47])  # the most frequent ones, as many as asked for
    assert np.diff(built.partition.starts_G1).tolist() == [8] * 5
    assert built.names == {*NOUNS[:7], "mr"}
    assert built.prior_V.sum() == pytest.approx(1.0)
