"""The tokenizer of a GGUF file cuts text as llama.cpp does, and ends answers where it does."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import llamacpp as harness
from tests.checkpoint.vocabularies import (
    ALPHABET,
    SNIPPETS,
    byte_level,
    sentence_piece,
    texts_of,
    words_vocabulary,
    write_vocabulary,
)
from tests.llamacpp import LlamaCpp, LlamaCppError, llamacpp
from tokenizers import Tokenizer

from transom.checkpoint import export_tokenizer, load, packaged_smollm2
from transom.checkpoint.gguf_ends import _ENDS, _FILL_TEXTS
from transom.checkpoint.gguf_splits import SPLIT_RULES
from transom.checkpoint.gguf_tokenizer import gguf_tokenizer
from transom.errors import CheckpointError, NotYetError
from transom.serving.tokenizer import load_tokenizer

CUTS = [*texts_of(1, 45, longest=6), " zq", "zq jj", "'Twas", "x\n\n  y", "　漢字　", "12 345\t6", "x\n\n\ny"]
ALONE = ["Ġzq", "jj"]  # whole words that no merge makes
CONTROLS = ["<|im_end|>", "<unk>", "[user]", "[unused]", "<a", "<ab>", "</s>", "<|fim_prefix|>", "ab\n"]
TYPES = [1, 2, 4, 5, 3, 3, 1, 1, 4]
MARKED = st.lists(st.sampled_from([*CONTROLS, *SNIPPETS, "\x04", "\x13"]), max_size=10).map("".join)
LETTERS = list(ALPHABET.values())
COUNTER = itertools.count()


@pytest.fixture(scope="module")
def oracle() -> Iterator[LlamaCpp]:
    with llamacpp() as found:
        yield found


@pytest.fixture(scope="module")
def words() -> tuple[list[str], list[str]]:
    tokens, merges = words_vocabulary(CUTS)
    return tokens, [merge for merge in merges if merge.replace(" ", "") not in ALONE]


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("special"), marked())


def written(folder: Path, keys: dict[str, Any], rows: int | None = None) -> Path:
    return write_vocabulary(folder / f"{next(COUNTER)}.gguf", keys, rows)


def marked(**keys: Any) -> dict[str, Any]:
    """The bytes, one merge, and pieces of every type."""
    types = np.array([1] * 257 + TYPES, np.int32)
    return byte_level([*ALPHABET.values(), "ab", *CONTROLS], **({"token_type": types} | keys))


def agree(oracle: LlamaCpp, file: Path, texts: list[str]) -> Tokenizer:
    """Our tokenizer of a file, after comparing it on these texts."""
    tokenizer = gguf_tokenizer(file).tokenizer
    for text in texts:
        assert tokenizer.encode(text).ids == oracle.tokenize(file, text, bos=True), text
    return tokenizer


@pytest.mark.parametrize("name", [None, *SPLIT_RULES])
def test_words_are_cut_as_llamacpp_cuts_them(
    oracle: LlamaCpp, tmp_path: Path, words: tuple[list[str], list[str]], name: str | None
) -> None:
    agree(oracle, written(tmp_path, byte_level(*words, pre=name)), CUTS)


def test_the_texts_tell_all_rules_apart(words: tuple[list[str], list[str]], tmp_path: Path) -> None:
    """Otherwise a name with a neighbour's rule would pass."""
    seen: dict[Any, Any] = {}
    for name, rule in SPLIT_RULES.items():
        if rule in seen:
            continue
        tokenizer = gguf_tokenizer(written(tmp_path, byte_level(*words, pre=name))).tokenizer
        seen[rule] = tuple(tuple(tokenizer.encode(text).ids) for text in CUTS)
    pairs = [(a, b) for a, b in itertools.combinations(seen, 2) if a.splits != b.splits]
    assert not [(a, b) for a, b in pairs if seen[a] == seen[b]]


@settings(deadline=None, max_examples=60)
@given(text=MARKED)
def test_pieces_of_every_type(oracle: LlamaCpp, special: Path, text: str) -> None:
    agree(oracle, special, [text])


@settings(deadline=None, max_examples=120)
@given(text=st.one_of(st.text(max_size=30), MARKED))
def test_the_packaged_model(oracle: LlamaCpp, text: str) -> None:
    """SmolLM2 has no piece for some control characters: they are dropped, without gluing what was around."""
    path = packaged_smollm2()
    ids = SMOLLM2.encode(text, add_special_tokens=False).ids
    assert ids == oracle.tokenize(path, text)
    kept = "".join(char for char in text if not MISSING & set(char.encode()))
    if kept == text:
        assert SMOLLM2.decode(ids, skip_special_tokens=False) == text


SMOLLM2 = export_tokenizer("smollm2").tokenizer
MISSING = {byte for byte, char in ALPHABET.items() if SMOLLM2.token_to_id(char) is None}


@pytest.mark.parametrize("name", ["llama-bpe", "tekken", "minicpm5", "gpt-2", "qwen2"])
def test_a_whole_word_is_looked_up_before_merging(oracle: LlamaCpp, tmp_path: Path, name: str) -> None:
    tokens = [*ALPHABET.values(), "Ġg", "Ġgr", "ee", "Ġgreen"]
    file = written(tmp_path, byte_level(tokens, ["Ġ g", "Ġg r", "e e"], pre=name))
    ids = gguf_tokenizer(file).tokenizer.encode(" green", add_special_tokens=False).ids
    assert ids == oracle.tokenize(file, " green")
    assert (ids == [259]) is (name in ("llama-bpe", "tekken", "minicpm5"))


FLAGS = [
    dict(zip(("add_bos_token", "add_eos_token", "bos_token_id", "eos_token_id"), choice, strict=True))
    for choice in itertools.product((None, True, False), (None, True), (None, 66), (None, 67))
]


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "glm4"])
def test_what_stands_before_and_after_a_text(oracle: LlamaCpp, tmp_path: Path, pre: str) -> None:
    for flags in FLAGS if pre != "glm4" else FLAGS[:12:5]:
        file = written(tmp_path, marked(pre=pre, **flags))
        try:
            expected = oracle.tokenize(file, "ab", bos=True)
        except LlamaCppError:
            with pytest.raises(CheckpointError, match="add_bos_token is set"):
                gguf_tokenizer(file)
        else:
            assert gguf_tokenizer(file).tokenizer.encode("ab").ids == expected
            defaults = {"bos": None if pre == "glm4" else 11, "eos": 11}
            wanted = {f"{role}_token": flags[f"{role}_token_id"] or one for role, one in defaults.items()}
            expected = {role: LETTERS[one] for role, one in wanted.items() if one is not None}
            assert gguf_tokenizer(file).specials == expected


@pytest.mark.parametrize("flags", [*FLAGS, {"add_space_prefix": False}, {"scores": None}])
def test_what_stands_around_a_sentencepiece_text(
    oracle: LlamaCpp, tmp_path: Path, flags: dict[str, Any]
) -> None:
    pieces = [*"▁ab", "ab"]
    agree(
        oracle,
        written(tmp_path, sentence_piece(pieces, [-9, -9, -9, -1], **flags)),
        ["", " ", "ab", "a<s> b"],
    )


@pytest.mark.parametrize("seed", range(10))
def test_random_pieces_merge_by_their_scores(oracle: LlamaCpp, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    pieces = [*"▁ab\n", *("é漢" if seed % 2 else "")]
    while len(pieces) < 60:
        made = draw.choice(pieces) + draw.choice(pieces)
        if made not in pieces and len(made) < 12:
            pieces.append(made)
    scores = draw.sample(range(len(pieces)), len(pieces))
    file = written(tmp_path, sentence_piece(pieces, scores, add_space_prefix=bool(seed % 3)))
    texts = texts_of(seed, 60, [*"aabb  \n", "é", "漢", "x", "🏽", "</s>", "<0x41>", "<unk>", "\0"], 30)
    tokenizer = agree(oracle, file, texts)
    chat = load_tokenizer(file)
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if seed % 3 == 0 or not any(
            control in text for control in ("</s>", "<unk>")
        ):  # else a space comes after
            assert tokenizer.decode(ids, skip_special_tokens=False) == text
        detokenizer = chat.detokenizer()
        assert "".join(detokenizer.feed([one]) for one in ids) + detokenizer.close() == tokenizer.decode(ids)


def test_spaces_as_user_defined_pieces(oracle: LlamaCpp, tmp_path: Path) -> None:
    """As Gemma has them: stored with plain spaces, cut out before anything else, longest first."""
    pieces, types = [*"▁ab", "  ", "   ", "▁▁", "\n\n", "▁a", "<b>"], [1, 1, 1, 4, 4, 4, 4, 1, 4]
    for prefix in (True, False):
        keys = sentence_piece(pieces, [-9.0] * 3 + [-1000.0] * 4 + [-1.0, 0.0], add_space_prefix=prefix)
        keys["token_type"] = np.array([2, 3, 3] + [6] * 256 + types, np.int32)
        texts = texts_of(4, 60, [" ", "  ", "a", "b", "\n", "<b>", "▁", "é"], 14)
        tokenizer = agree(oracle, written(tmp_path, keys), texts)
        plain = [text for text in texts if "▁" not in text]
        assert prefix or all(tokenizer.decode(tokenizer.encode(t).ids) == t for t in plain)


def test_text_never_merges_into_a_control_or_byte_piece(tmp_path: Path) -> None:
    """A departure from llama.cpp, whose <0x41> comes back as A."""
    pieces = [*"▁<0x41>s", "<0", "<0x", "<0x4", "<0x41", "<s"]
    tokenizer = gguf_tokenizer(written(tmp_path, sentence_piece(pieces, list(range(len(pieces)))))).tokenizer
    for text in ("<0x41>", "a<0x00>"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    record = json.loads(tokenizer.to_str()) | {"added_tokens": [], "post_processor": None}
    assert not {0, 1, 2} & set(Tokenizer.from_str(json.dumps(record)).encode("<s></s><unk>").ids)


@pytest.mark.parametrize("name", ["Phi-3 mini", "my PHI3", "Phi 4", None])
def test_white_space_after_a_control_token_goes_by_the_models_name(
    oracle: LlamaCpp, tmp_path: Path, name: str | None
) -> None:
    keys = sentence_piece([*"▁ab\n", "<|end|>"], [-9, -9, -9, -9, 0], **{"general.name": name})
    keys["token_type"] = np.array([2, 3, 3] + [6] * 256 + [1] * 4 + [3], np.int32)
    texts = ["a<|end|>  \n b", "<s> a", "<unk> \n", "</s>\n\nb", "<|end|>\n<|end|>"]
    if name and "3" in name:  # the oracle wants these to exist
        keys["tokens"][3] = "<|endoftext|>"
        keys["token_type"][3] = 3
        with pytest.raises(CheckpointError, match="lacks 1 of the pieces"):
            gguf_tokenizer(written(tmp_path, keys))
        keys["tokens"][3] = "<0x00>"
        keys["token_type"][3] = 6
        keys["tokens"].append("<|endoftext|>")
        keys["scores"] = np.append(keys["scores"], np.float32(0))
        keys["token_type"] = np.append(keys["token_type"], np.int32(3))
        texts.append("<|endoftext|>  a")
    agree(oracle, written(tmp_path, keys), texts)


def ends_of(oracle: LlamaCpp, file: Path, count: int) -> set[int]:
    """The ids that end an answer when the model is made to say them."""
    body = {"prompt": [1], "n_predict": 2, "temperature": 0, "cache_prompt": False}
    kinds = [
        oracle.ask(file, "/completion", body | {"logit_bias": [[i, 1000]]})["stop_type"] for i in range(count)
    ]
    return {i for i, kind in enumerate(kinds) if kind == "eos"}


TEXTS = [*_ENDS, *(text for texts in _FILL_TEXTS.values() for text in texts[:1]), "plain", "<|assistant|>"]


@pytest.mark.parametrize(
    ("texts", "keys"),
    [
        ([], {}),
        ([], {"eos_token_id": 9, "eot_token_id": 5, "eom_token_id": 6}),
        ([text for text in TEXTS if text not in ("<|end|>", "</s>")], {}),
        (["<|end|>", "<|return|>", "<|call|>"], {"eos_token_id": 3}),
        (["<|end|>", "<|calls|>", "<|flush|>"], {}),
        (["<|end|>", "<|return|>", "<|flush|>"], {}),
        (["<|end|>", "<|return|>"], {}),
        (["</s>", "<|tool_response>"], {}),
        (["</s>", "<|fim_pad|>", "<|file_sep|>"], {"fim_pad_token_id": 7, "fim_rep_token_id": 8}),
        (["<|fim_pad|>"], {"fim_sep_token_id": 7, "fim_pre_token_id": 8, "middle_token_id": 4}),
        (["<|im_end|>"], {"eos_token_ids": np.array([0, 13], np.int32)}),
    ],
)
def test_an_answer_ends_where_llamacpp_ends_it(
    oracle: LlamaCpp, tmp_path: Path, texts: list[str], keys: dict[str, Any]
) -> None:
    """The file calls all of them ordinary text. The ids are checked one by one."""
    letters = list("abcdefghijkl")
    tokens = [*letters, "ab", *texts]
    file = written(tmp_path, byte_level(tokens, ["a b"], **({"eos_token_id": 0} | keys)))
    found = gguf_tokenizer(file)
    assert set(found.eos_ids) == ends_of(oracle, file, len(tokens))
    assert load_tokenizer(file).eos_ids == found.eos_ids


def test_each_text_that_ends_an_answer(oracle: LlamaCpp, tmp_path: Path) -> None:
    """Also the rarer spellings, one file each."""
    for text in [*_ENDS, *(text for texts in _FILL_TEXTS.values() for text in texts)]:
        file = written(tmp_path, byte_level([*"abc", "ab", text], ["a b"], eos_token_id=0))
        assert set(gguf_tokenizer(file).eos_ids) == ends_of(oracle, file, 5), text
        agree(oracle, file, [f"a{text}b"])


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"tokens": ["a", "b", "b"]}, "repeats 1 pieces"),
    ({"tokens": None}, "missing or empty"),
    ({"tokens": np.array([1, 2, 3], np.int32)}, "no list of str"),
    ({"tokens": "abc"}, "no list of str"),
    ({"token_type": np.array([1, 1], np.int32)}, "2 entries for 4 tokens"),
    ({"token_type": np.array([1, 1, 1, 9], np.int32)}, "unknown types"),
    ({"token_type": np.array([1, 1, 1, -1], np.int32)}, "unknown types"),
    ({"token_type": np.array([1, 1, 1, 1], np.float32)}, "no list of int"),
    ({"token_type": np.array([1, 1, 1, 6], np.int32)}, "marks byte pieces"),
    ({"merges": None}, "merges is missing"),
    ({"merges": ["a z"]}, "not in the vocabulary"),
    ({"merges": ["a b"]}, "not in the vocabulary"),
    ({"merges": ["ab"]}, "not in the vocabulary"),
    ({"merges": ["b  c"]}, "not in the vocabulary"),
    ({"merges": np.array([1], np.int32)}, "no list of str"),
    ({"model": 3}, "is a int, not a str"),
    ({"pre": True}, "is a bool, not a str"),
    ({"eos_token_id": 4}, "is 4, and there are 4 tokens"),
    ({"eos_token_id": True}, "is a bool, not a int"),
    ({"eot_token_id": 4_000_000_000}, "there are 4 tokens"),
    ({"padding_token_id": "0"}, "is a str, not a int"),
    ({"add_bos_token": 1}, "is a int, not a bool"),
    ({"eos_token_ids": ["<s>"]}, "is no list of int"),
    ({"eos_token_ids": 1}, "is no list of int"),
    ({"add_bos_token": True}, "no bos_token_id is"),
    ({"add_eos_token": True}, "no eos_token_id is"),
    ({"tokenizer.chat_template": ["a"]}, "is a list, not a str"),
]
SPM_BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"scores": np.zeros(5, np.float32)}, "5 entries for 263 tokens"),
    ({"scores": np.full(263, np.nan, np.float32)}, "not finite"),
    ({"scores": ["a"] * 263}, "no list of float"),
    ({"add_space_prefix": "yes"}, "is a str, not a bool"),
]


@pytest.mark.parametrize(("keys", "match"), BROKEN)
def test_a_broken_byte_level_tokenizer_is_an_error(tmp_path: Path, keys: dict[str, Any], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        gguf_tokenizer(written(tmp_path, byte_level(["a", "b", "c", "bc"], ["b c"], **keys)))


@pytest.mark.parametrize(("keys", "match"), SPM_BROKEN)
def test_a_broken_sentencepiece_tokenizer_is_an_error(
    tmp_path: Path, keys: dict[str, Any], match: str
) -> None:
    with pytest.raises(CheckpointError, match=match):
        gguf_tokenizer(written(tmp_path, sentence_piece([*"▁ab", "ab"], [-1.0] * 4, **keys)))


NOT_YET: list[tuple[dict[str, Any], str]] = [
    *(({"model": kind}, f"{kind!r} is not read yet") for kind in ("bert", "t5", "rwkv", "plamo2", "none")),
    ({"model": None}, "None is not read yet"),
    *(({"pre": name}, "is not known") for name in ("kimi-k2", "gemma4", "jina-v2-de", "roberta-bpe", "x")),
    ({"add_sep_token": True}, r"tokenizer\.ggml\.add_sep_token"),
    ({"eos_token_id": 0, "eos_token_ids": np.array([0, 1], np.int32)}, "names the id 1, at which"),
    ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
    ({"suppress_tokens": np.array([1], np.int32)}, "suppress_tokens"),
    ({"precompiled_charsmap": np.array([1], np.int32)}, "precompiled_charsmap"),
    ({"normalizer.lowercase": True, "tokenizer.new": 1}, r"\.normalizer\.lowercase, tokenizer\.new would"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "match"), NOT_YET)
def test_what_is_not_known_is_refused_by_name(tmp_path: Path, keys: dict[str, Any], match: str) -> None:
    renamed = {name.replace("normalizer", "tokenizer.ggml.normalizer"): value for name, value in keys.items()}
    with pytest.raises(NotYetError, match=match):
        gguf_tokenizer(written(tmp_path, byte_level(["a", "b", "ab"], ["a b"], **renamed)))


def test_sentencepiece_vocabularies_that_no_list_of_merges_can_express(
    oracle: LlamaCpp, tmp_path: Path
) -> None:
    tied = written(tmp_path, sentence_piece([*"▁abc", "ab", "bc"], [-9] * 4 + [-1, -1]))
    with pytest.raises(NotYetError, match="share a score"):
        gguf_tokenizer(tied)
    assert [len(oracle.tokenize(tied, text)) for text in ("abc", "bca")] == [3, 3]
    with pytest.raises(NotYetError, match="no pieces themselves"):
        gguf_tokenizer(written(tmp_path, sentence_piece(["▁", "ab"], [-1, -2])))
    bytes_gone = sentence_piece([*"▁ab"], [-1, -2, -3])
    bytes_gone["tokens"][100] = "x"
    with pytest.raises(CheckpointError, match="lacks 1 of the pieces"):
        gguf_tokenizer(written(tmp_path, bytes_gone))


def test_keys_without_influence_change_nothing(oracle: LlamaCpp, tmp_path: Path) -> None:
    extra = {
        "token_type_count": 1, "mask_token_id": 3, "seperator_token_id": 3, "separator_token_id": 3,
        "scores": np.ones(266, np.float32),
        "add_sep_token": False, "remove_extra_whitespaces": False, "add_space_prefix": True,
        "tokenizer.huggingface.json": "{}", "tokenizer.chat_templates": ["tool"],
        "tokenizer.chat_template.tool": "x", "tokenizer.chat_template": "T",
    }  # fmt: skip
    file = written(tmp_path, marked(**extra))
    agree(oracle, file, texts_of(7, 40, [*CONTROLS, *SNIPPETS]))
    assert gguf_tokenizer(file).chat_template == "T"


def test_merges_named_twice_and_empty_pieces(oracle: LlamaCpp, tmp_path: Path) -> None:
    tokens = [*ALPHABET.values(), "ab", "bc", ""]
    agree(
        oracle,
        written(tmp_path, byte_level(tokens, ["a b", "b c", "a b"])),
        ["abc", "bca", "aab", "[EMPTY_258]"],
    )


@pytest.mark.parametrize("rows", [265, 267])
def test_a_vocabulary_of_another_size_than_the_embedding_is_an_error(
    oracle: LlamaCpp, tmp_path: Path, rows: int
) -> None:
    file = written(tmp_path, marked(), rows)
    with pytest.raises(LlamaCppError):
        oracle.tokenize(file, "a")
    with pytest.raises(CheckpointError, match=f"has 266 tokens, the embedding {rows} rows"):
        gguf_tokenizer(file)


def test_a_tokenizer_is_refused_before_a_weight_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = sys.modules["transom.checkpoint.load"]
    monkeypatch.setattr(module, "gguf_weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(NotYetError, match="kimi-k2"):
        load(written(tmp_path, marked(pre="kimi-k2")))


def test_a_child_that_gives_no_answer_is_asked_anew_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one sleeps, as llama.cpp rarely does; of two that sleep it is told."""
    monkeypatch.setattr(harness, "ANSWER_S", 0.5)
    monkeypatch.setattr(harness, "CHILD", "import time; time.sleep(60)")
    oracle = LlamaCpp()
    with pytest.raises(LlamaCppError, match=r"no answer about .*, twice"):
        oracle.ask(tmp_path / "file", "/tokenize")
    once = f"""
import os, time
if not os.path.exists({str(tmp_path / "asked")!r}):
    open({str(tmp_path / "asked")!r}, "w").close()
    time.sleep(60)
input()
print('{{"status": 200, "answer": 7}}', file=open(3, "w"))
"""
    monkeypatch.setattr(harness, "CHILD", once)
    monkeypatch.setattr(harness, "ANSWER_S", 5)
    assert oracle.ask(tmp_path / "file", "/tokenize") == 7
    oracle.close()
