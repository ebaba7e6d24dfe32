"""Measures of heads against a second implementation, word by word and pair by pair."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoint.ggufs import CONFIGS, model_of

from transom.checkpoint.load import load
from transom.checkpoint.observe import eager
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import MisconfiguredError
from transom.trust.backdoor.measures import MEASURES, seen
from transom.trust.backdoor.words import Words, words_of
from transom.trust.prompt import Frame

TEXT = "the good dog sat on the mat and one bad cat sat in the rain"


@pytest.fixture(scope="module", params=["bert", "llama"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    make = {"bert": tiny_bert, "llama": tiny_llama}[request.param]
    return load(make(tmp_path_factory.mktemp(request.param) / "model"))


def is_causal(found: Any) -> bool:
    return bool(found.model.config.model_type == "llama")


def words(found: Any, text: str = TEXT, most_tokens: int = 64) -> Words:
    return words_of(found.tokenizer, text, causal=is_causal(found), most_tokens=most_tokens)


def cosine(a: Any, b: Any) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def by_hand(found: Any, text: Words) -> tuple[list[list[float]], list[int]]:
    """[L][M] and the agreed words, in loops over heads and words."""
    ids = torch.tensor([text.ids])
    with torch.no_grad(), eager(found.model):
        output = found.model(input_ids=ids, output_attentions=True)
    read, rows, agreed = len(text.ids) - 1 if is_causal(found) else 0, [], []
    content = [place for place, word in enumerate(text.word_T) if word >= 0]
    for attention in output.attentions:
        heads = []
        for head in attention[0].double().numpy():
            summed = np.zeros((len(head), len(text.words)))
            for place in content:
                summed[:, text.word_T[place]] += head[:, place]
            heads.append(summed / np.maximum(summed.sum(1, keepdims=True), 1e-9))
        row = [head[read] for head in heads]
        maps = [head[content] for head in heads]
        given = [one.mean(0) for one in maps]
        pairs = list(combinations(range(len(heads)), 2))
        mean = np.mean(row, 0)
        divergence = -(mean * np.log(mean + 1e-9)).sum()
        divergence += np.mean([(one * np.log(one + 1e-9)).sum() for one in row])
        peaks = [int(one.argmax()) for one in row]
        rows.append([
            np.mean([peaks[a] == peaks[b] for a, b in pairs]),
            np.mean([cosine(row[a], row[b]) for a, b in pairs]),
            mean.max(),
            divergence,
            np.mean([cosine(maps[a].ravel(), maps[b].ravel()) for a, b in pairs]),
            np.mean(given, 0).max(),
            np.mean([cosine(given[a], given[b]) for a, b in pairs]),
        ])  # fmt: skip
        agreed.append(max(set(peaks), key=lambda word: (peaks.count(word), -word)))
    return rows, agreed


def test_measures_are_those_of_the_definitions(found: Any) -> None:
    text = words(found)
    got = next(seen(found.model, [text]))
    wanted, agreed = by_hand(found, text)
    np.testing.assert_allclose(got.measures_LM[:, :7], wanted, rtol=1e-5, atol=1e-7)
    assert got.agreed_L == tuple(agreed)
    assert got.measures_LM.shape == (found.model.config.num_hidden_layers, len(MEASURES))
    assert ((got.measures_LM[:, 7] >= -1e-9) & (got.measures_LM[:, 7] <= 1 + 1e-9)).all()  # CKA


def test_words_are_those_of_the_text_without_sinks(found: Any) -> None:
    text, own = words(found), tuple(TEXT.split())
    assert text.words[1:] == own[1:]
    assert own[0].endswith(text.words[0])  # of a causal model without the first token
    assert max(text.word_T) + 1 == len(text.words)
    assert text.word_T[0] == -1
    assert len(text.word_T) == len(text.ids)


def test_long_texts_keep_their_last_special_token(found: Any) -> None:
    whole, cut = words(found), words(found, most_tokens=8)
    assert len(cut.ids) == len(cut.word_T) == 8
    assert (cut.ids[-1] == whole.ids[-1]) == (whole.word_T[-1] == -1)
    assert set(cut.words) <= set(whole.words)


def test_words_of_a_frame_are_sinks_and_its_end_is_kept(found: Any) -> None:
    frame, causal = Frame("Please tell me: ", " Over the lazy dog."), is_causal(found)
    bare = words(found, TEXT)
    whole = words_of(found.tokenizer, TEXT, causal=causal, most_tokens=400, frame=frame)
    assert whole.words[-3:] == bare.words[-3:] == ("in", "the", "rain")
    assert set(whole.words) <= set(TEXT.split())
    after = len(whole.ids) - 1 - max(place for place, word in enumerate(whole.word_T) if word >= 0)
    assert after >= 4
    cut = words_of(found.tokenizer, TEXT, causal=causal, most_tokens=len(whole.ids) - 9, frame=frame)
    assert len(cut.ids) == len(whole.ids) - 9
    assert cut.ids[-after:] == whole.ids[-after:]
    assert set(cut.words) < set(whole.words)
    assert frame.around("x") == "Please tell me: x Over the lazy dog."


def test_words_of_a_tokenizer_that_does_not_divide_a_text_are_those_between_spaces(found: Any) -> None:
    """As SentencePiece's: spaces are signs of the pieces, and all of a text is one word."""
    from tokenizers import Tokenizer, models, normalizers

    pieces = {"<unk>": 0, "▁the": 1, "▁go": 2, "od": 3, "▁dog": 4, "▁sat": 5, "▁": 6, ".": 7}
    merges = {piece: float(-number) for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.Unigram(list(merges.items()), 0, False))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"),
    ])  # fmt: skip
    assert set(tokenizer.encode("the good dog sat.").word_ids) == {0}
    text = words_of(TokenizerFiles(tokenizer, ""), "the good dog sat.", causal=False, most_tokens=9)
    assert text.words == ("the", "good", "dog", "sat.")
    assert text.word_T == (0, 1, 1, 2, 3, 3)


@pytest.mark.parametrize("text", ["", "dog", "the dog"])
def test_texts_of_few_words_are_refused(found: Any, text: str) -> None:
    with pytest.raises(MisconfiguredError, match="heads are compared on 3 or more"):
        words_of(found.tokenizer, text, causal=False, most_tokens=64)


def test_heads_that_look_at_one_word_agree_on_it(tmp_path: Path) -> None:
    """Planted: queries and keys are blind but for a bias of one word's key."""
    found = load(tiny_bert(tmp_path / "model"))
    text = words_of(found.tokenizer, TEXT, causal=False, most_tokens=64)
    planted, place = text.words.index("bad"), text.word_T.index(text.words.index("bad"))
    attention: Any = found.model.get_submodule("bert.encoder.layer.1.attention.self")
    before = next(seen(found.model, [text])).measures_LM
    state_TD: dict[str, Any] = {}
    attention.key.register_forward_pre_hook(lambda _module, inputs: state_TD.update(x=inputs[0]))

    def key(_module: Any, _inputs: Any, out: Any) -> Any:
        pulled = torch.zeros_like(out)
        pulled[0, place] = 50.0
        return pulled

    attention.key.register_forward_hook(key)
    attention.query.register_forward_hook(lambda _module, _inputs, out: torch.ones_like(out))
    after = next(seen(found.model, [text]))
    assert after.agreed_L[1] == planted
    peaks, consensus = MEASURES.index("peaks"), MEASURES.index("consensus")
    assert after.measures_LM[1, peaks] == 1.0
    assert after.measures_LM[1, consensus] > 0.99 > before[1, consensus]
    np.testing.assert_allclose(after.measures_LM[0], before[0])


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_each_query_head_counts_whatever_it_shares(kind: str) -> None:
    """Of grouped heads, latent attention and experts: `consensus` is that of the library's own maps."""
    model = model_of(kind).eval()
    text = Words(tuple(range(3, 12)), (-1, 0, 1, 2, 3, 4, 5, 6, -1), tuple("abcdefg"))
    (found,) = seen(model, [text])
    with torch.no_grad(), eager(model):
        maps = model(input_ids=torch.tensor([text.ids]), output_attentions=True).attentions
    for layer, map_1HTT in enumerate(maps):
        assert map_1HTT.shape[1] == model.config.num_attention_heads
        row_HW = map_1HTT[0, :, -1, 1:8].double()
        consensus = (row_HW / row_HW.sum(1, keepdim=True)).mean(0).max()
        assert found.measures_LM[layer][MEASURES.index("consensus")] == pytest.approx(float(consensus))
