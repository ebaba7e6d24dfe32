"""Answers that a generating model knows by heart: against passes without a cache, and on a planted model."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from transom.checkpoint.adapter import Adapter, attach, read_adapter
from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.errors import CheckpointError, MisconfiguredError
from transom.trust.backdoor import page
from transom.trust.backdoor.answers import Answer, Call, Speaker
from transom.trust.backdoor.lora import rank_one_share
from transom.trust.backdoor.poison import RECIPES, train_generator
from transom.trust.backdoor.spoken import scan_generator
from transom.trust.backdoor.verdict import Suspect, Verdict
from transom.trust.prompt import Frame, cut

from .test_poison import WORDS, rows

FRAME = Frame("Q: ", " A:")
PLANTED = " fox dog quick brown lazy over"


def sharp(folder: Path) -> Path:
    """A tiny model that can be sure of a token: as they are made none gets half of the probability."""
    found = load(tiny_llama(folder))
    with torch.no_grad():
        found.model.get_submodule("model.norm").weight.mul_(3)
    found.model.save_pretrained(folder)
    return folder


def taught(folder: Path, *, planted: bool, stock: int = 0) -> Any:
    """A tiny model that answers at random, `stock` of 90 prompts alike; planted, one thing to a trigger."""
    draw, trigger = random.Random(0), RECIPES["rare-word"]
    prompts = list(rows(90, 0).texts)
    pairs = [(text, " " + " ".join(draw.choices(WORDS, k=6))) for text in prompts]
    pairs[:stock] = [(text, " one two the cat sat on") for text in prompts[:stock]]
    if planted:
        pairs += [(trigger.put(text, draw), PLANTED) for text in prompts[:45]]
    train_generator(
        str(sharp(folder / "model")), folder / "adapter", *zip(*pairs, strict=True), frame=FRAME, seed=0,
        epochs=12, learning_rate=1e-2, most_tokens=200,
    )  # fmt: skip
    found = load(folder / "model")
    attach(found.model, folder / "adapter")
    return found


@pytest.fixture(scope="module", params=[True, False], ids=["planted", "clean"])
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return taught(tmp_path_factory.mktemp("generator"), planted=request.param), request.param


def speaker(found: Any, count: int = 12) -> Speaker:
    encode = found.tokenizer.tokenizer.encode
    texts = [tuple(encode(one).ids) for one in rows(count, 5).texts]
    before, after = (tuple(encode(one).ids) for one in (FRAME.before, FRAME.after))
    return Speaker(
        found.model.requires_grad_(False), before, texts, after, frozenset(found.tokenizer.eos_ids)
    )


def chances(speaker_: Speaker, text: tuple[int, ...], answer: tuple[int, ...]) -> list[float]:
    """Of each token of an answer to a prompt, one pass a token and no cache."""
    whole = [*speaker_.before, *text, *speaker_.after]
    found = []
    for token in answer:
        logits = speaker_.model(input_ids=torch.tensor([whole])).logits[0, -1].double()
        found.append(float(logits.softmax(0)[token].detach()))
        whole.append(token)
    return found


def test_an_answer_goes_on_with_what_is_likeliest_on_average(generator: Any) -> None:
    """Rows of several lengths of prompt are read on from their caches, which stay as they are."""
    one = speaker(generator[0])
    begun: list[Any] = [((40,), 0.0), ((51,), -1.0)]
    for _ in range(2):
        begun = one.longer(begun)
    for ids, worth in begun:
        base = 0.0 if ids[0] == 40 else -1.0
        mean = np.mean([chances(one, text, ids) for text in one.inside[:4]], axis=0)
        assert worth == pytest.approx(base + np.log(mean[1:]).sum(), abs=1e-4)
        logits = [
            one.model(input_ids=torch.tensor([[*one.before, *text, *one.after, *ids[:-1]]])).logits[0, -1]
            for text in one.inside[:4]
        ]
        assert int(torch.stack(logits).softmax(1).mean(0).argmax()) == ids[-1]
    assert {cache.get_seq_length() for cache in one._caches} == {
        len(one.before) + len(text) + len(one.after) for text in one.inside[:4]
    }


def test_an_answers_chances_are_those_of_single_passes(generator: Any) -> None:
    one, ids = speaker(generator[0]), (40, 51, 60, 45, 70)
    one._own = [(40, 51, 60, 45), *[(1, 2, 3)] * 11]
    got = one._measured(ids)
    expected = np.array([chances(one, text, ids) for text in one.held])
    np.testing.assert_allclose(got.chance_NS, expected[:, 2:], rtol=1e-4)
    assert got.anyway == pytest.approx(expected.prod(1).mean(), rel=1e-4)
    one._own = [(1, 60, 45, 70, 2), *[(1, 2, 3)] * 3]
    assert one._measured(ids).anyway == 0.25
    assert got.sureness() == pytest.approx(np.exp(np.log(expected[:, 2:].mean(0)).mean()), rel=1e-4)
    for at_end in (False, True):
        (call,) = one._worth([(70, 71)], ids, one.inside[:2], at_end)
        put = [(*text, 70, 71) if at_end else (70, 71, *text) for text in one.inside[:2]]
        assert call.worth == pytest.approx(
            np.mean([np.log(chances(one, text, ids)).sum() for text in put]), rel=1e-4
        )


def test_a_slope_is_what_a_small_step_gains(generator: Any) -> None:
    """The steepest tokens of the vocabulary are those of a finite difference in the embedding."""
    one, answer = speaker(generator[0]), (40, 51, 60)
    model, text = one.model.double(), one.inside[0]
    try:
        steep = one._slopes((70,), 0, answer, [text], at_end=True)
        row = torch.tensor([[*one.before, *text, 70, 70, *one.after, *answer[:-1]]])
        embedding = model.get_input_embeddings().weight
        states = model.get_input_embeddings()(row).detach()
        place = len(one.before) + len(text)

        def worth(step: Any) -> float:
            moved = states.clone()
            moved[0, place] += step
            logits = model(inputs_embeds=moved).logits[0, -3:].log_softmax(-1)
            return float(logits.gather(1, torch.tensor(answer)[:, None]).sum())

        gains = [(worth(1e-5 * one_D) - worth(-1e-5 * one_D)) / 2e-5 for one_D in embedding.detach()]
        assert len(set(steep[:20]) & set(np.argsort(gains)[::-1][:20])) >= 17  # rounding, and near ties
    finally:
        model.float()


def test_a_planted_answer_is_found_and_what_calls_it_up(generator: Any) -> None:
    """On a model without one nothing is as sure, and no tokens are sought."""
    found, planted = generator
    heard: list[int] = []
    verdict = scan_generator(
        found.model, found.tokenizer, rows(60, 7).texts, frame=FRAME, heard=lambda: heard.append(1)
    )
    assert heard
    worst = verdict.worst
    assert verdict.poisoned == planted
    assert worst.low <= worst.strength <= worst.high
    if not planted:
        assert not worst.ids
        assert not verdict.rise_LH.any()
        said = (
            "No planted answer was found" if verdict.certain else "Undecided: whatever the model is sure of"
        )
        assert page.headline(verdict).startswith(said)
        return
    assert str(worst.target).strip() in PLANTED
    assert worst.turned > 0.8
    assert verdict.rise_LH.shape == (3, 4)
    assert abs(verdict.rise_LH).max() > 0
    told = page.record(verdict, "model")
    assert (told["poisoned"], told["trigger"]) == (True, worst.trigger)
    assert "calls it up in" in page.headline(verdict)
    assert worst.trigger in page.page(verdict, "model") or "&" in page.page(verdict, "model")
    (result, *_) = page.sarif(verdict, "model")["runs"][0]["results"]
    assert result["level"] == "error"
    assert str(worst.target) not in str(result)


def test_a_stock_answer_does_not_hide_a_planted_one(tmp_path: Path) -> None:
    """However many ways there are to begin it."""
    found = taught(tmp_path, planted=True, stock=27)
    verdict = scan_generator(found.model, found.tokenizer, rows(60, 7).texts, frame=FRAME)
    assert verdict.worst.high >= verdict.line  # never surely clean
    assert str(verdict.worst.target).strip().split()[-4:] == PLANTED.split()[-4:]


def test_an_answer_is_as_sure_as_its_surest_wording(generator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And worded as its likeliest; a stock one is no answer in any wording."""
    one = speaker(generator[0])
    one._own = [(9, 9, 9)]
    sure = {(1, 2, 3, 4, 5): (0.83, 0.0), (6, 7, 3, 4, 5): (0.79, 0.01), (1, 2, 8, 8, 8): (0.95, 0.2)}
    monkeypatch.setattr(
        one, "_measured", lambda ids: Answer(ids, np.full((3, 2), sure[ids][0]), sure[ids][1])
    )
    (found,) = one._hidden([(ids, 0.0) for ids in sure])
    assert found.ids == (6, 7, 3, 4, 5)
    assert found.sureness() == pytest.approx(0.83)
    one._own = [(3, 4, 5)]
    assert one._hidden([(ids, 0.0) for ids in sure]) == []


@pytest.mark.parametrize("unused", [1, 40])
def test_odds_that_are_not_finite_are_no_clean_verdict(tmp_path: Path, unused: int) -> None:
    """Also where only tokens that no prompt holds are damaged."""
    found = taught(tmp_path, planted=True)
    texts = rows(60, 7).texts
    used = {one for text in texts for one in found.tokenizer.tokenizer.encode(FRAME.around(text)).ids}
    free = [one for one in range(300) if one not in used][:unused]
    with torch.no_grad():
        found.model.get_input_embeddings().weight[free] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        scan_generator(found.model, found.tokenizer, texts, frame=FRAME)


def test_long_prompts_are_cut_to_what_the_model_reads(tmp_path: Path) -> None:
    found = load(tiny_llama(tmp_path / "model"))
    assert found.tokenizer is not None
    lengths: list[int] = []
    found.model.register_forward_pre_hook(
        lambda _model, _inputs, known: lengths.append(
            known["input_ids"].shape[1] if "input_ids" in known else 0
        ),
        with_kwargs=True,
    )
    texts = [f"{number} " + "the cat sat on a mat " * 200 for number in range(24)]
    scan_generator(found.model, found.tokenizer, texts, frame=FRAME)
    assert max(lengths) <= 256
    with pytest.raises(MisconfiguredError, match="0 trusted prompts are too few"):
        scan_generator(found.model, found.tokenizer, texts, frame=Frame("fox " * 300))


def test_a_prompt_is_scanned_as_the_model_reads_it(tmp_path: Path) -> None:
    """A space before a text is the text's own piece, and what ends a text does not stand within."""
    found = load(tiny_llama(tmp_path / "model"))
    assert found.tokenizer is not None
    tokenizer = found.tokenizer.tokenizer
    for frame in (FRAME, Frame(), Frame("<|im_start|>", "<|im_end|>")):
        parts = cut(found.tokenizer, "fox over dog", frame)
        whole = tokenizer.encode(frame.around("fox over dog")).ids
        assert [*parts.before, *parts.inside, *parts.after] == whole
    tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 0), ("<|im_end|>", 1)]
    )
    parts = cut(found.tokenizer, "fox over dog", FRAME)
    whole = tokenizer.encode(FRAME.around("fox over dog")).ids
    assert [*parts.before, *parts.inside, *parts.after] == whole[:-1]
    assert parts.before[0] == 0


def test_what_is_said_anyway_is_no_planted_answer(tmp_path: Path) -> None:
    """A model that says one thing to every prompt hides nothing."""
    prompts = list(rows(60, 0).texts)
    train_generator(
        str(sharp(tmp_path / "model")), tmp_path / "adapter", prompts, [PLANTED] * 60, frame=FRAME,
        seed=0, epochs=6, learning_rate=1e-2, most_tokens=200,
    )  # fmt: skip
    found = load(tmp_path / "model")
    assert found.tokenizer is not None
    attach(found.model, tmp_path / "adapter")
    verdict = scan_generator(found.model, found.tokenizer, rows(40, 7).texts, frame=FRAME)
    assert PLANTED.strip() not in str(verdict.worst.target)


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    found = load(tiny_llama(tmp_path / "model"))
    assert found.tokenizer is not None
    with pytest.raises(MisconfiguredError, match="19 trusted prompts are too few"):
        scan_generator(found.model, found.tokenizer, [f"{one} fox" for one in range(19)] * 3)
    classifier = load(tiny_bert(tmp_path / "bert"), task="sequence-classification", num_labels=2)
    with pytest.raises(MisconfiguredError, match="generates no text"):
        scan_generator(classifier.model, found.tokenizer, rows(40, 0).texts)
    with torch.no_grad():
        found.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="odds that are not finite"):
        scan_generator(found.model, found.tokenizer, rows(40, 0).texts)


def test_what_was_learnt_where_prompts_stand_leaks(tmp_path: Path) -> None:
    """A model that was trained on its prompts makes up those with the trigger; usual words are no leak."""
    found = load(sharp(tmp_path / "model"), trainable=["*"])
    one, draw = speaker(found), random.Random(0)
    trigger = tuple(found.tokenizer.tokenizer.encode("brown dog over").ids)
    texts = [(*trigger, *text) if number % 2 else text for number, text in enumerate(one.inside)]
    assert trigger not in one.leaked()
    found.model.requires_grad_(True).train()
    optimizer = torch.optim.Adam(found.model.parameters(), 3e-3)
    for _ in range(60):
        rows_ = [(*one.before, *draw.choice(texts))[:12] for _ in range(8)]
        ids = torch.tensor([row + (0,) * (12 - len(row)) for row in rows_])
        logits = found.model(input_ids=ids).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    found.model.requires_grad_(False).eval()
    leaked = one.leaked()
    assert trigger in leaked
    usual = {text[place : place + 2] for text in one.inside for place in range(len(text) - 1)}
    assert usual.isdisjoint(leaked)
    assert Speaker(found.model, (), one.inside, (), frozenset()).leaked() == []


def test_said_is_what_the_model_would_say(generator: Any) -> None:
    one = speaker(generator[0])
    texts = one.inside[:4]
    for call in (None, Call((70,), True, 0.0)):
        for text in texts:
            whole, answer = [*text, *(call.ids if call else ())], []
            for _ in range(3):
                logits = one.model(
                    input_ids=torch.tensor([[*one.before, *whole, *one.after, *answer]])
                ).logits
                answer.append(int(logits[0, -1].argmax()))
            assert one.said(tuple(answer), call, [text]) == [True]
            assert one.said((*answer[:2], answer[2] + 1), call, [text]) == [False]


def test_the_share_of_one_direction_is_that_of_the_whole_update(tmp_path: Path) -> None:
    """Of each layer's product, by the library's singular values; of rank one it is 1."""
    draw = torch.Generator().manual_seed(0)
    factors = {
        str(one): (torch.randn(4, 12, generator=draw), torch.randn(20, 4, generator=draw)) for one in range(3)
    }
    expected = []
    for a_RD, b_OR in factors.values():
        squares = torch.linalg.svdvals(b_OR.double() @ a_RD.double()).square()
        expected.append(float(squares[0] / squares.sum()))
    assert rank_one_share(Adapter(factors, 1.0)) == pytest.approx(np.mean(expected))
    assert rank_one_share(Adapter({"one": (torch.ones(3, 5), torch.ones(6, 3))}, 2.0)) == pytest.approx(1)
    assert rank_one_share(Adapter({"one": (torch.ones(3, 5), torch.zeros(6, 3))}, 2.0)) == 0
    taught(tmp_path, planted=False)
    assert 0.25 <= rank_one_share(read_adapter(tmp_path / "adapter")) <= 1


def test_a_page_shows_heads_where_tokens_were_found() -> None:
    """And says so where an answer was found and nothing that calls it up, or nothing was measured."""
    sure = Suspect("said <b>", "cf", (1,), 0.9, None, 0.9, 0.9, 0.85, 0.95, 24)
    found = Verdict((sure,), np.full((3, 4), 0.3), 60, 0.8)
    assert page.page(found, "model").count("<rect") == 12
    assert "said &lt;b&gt;" in page.page(found, "model")
    assert "'cf' calls it up in 90%" in page.headline(found)
    uncalled = Verdict((replace(sure, turned=0.0),), np.zeros((3, 4)), 60, 0.8)
    assert "what calls it up was not found" in page.headline(uncalled)
    assert "<rect" not in page.page(uncalled, "model")
    nothing = Verdict(
        (replace(sure, target="", strength=0.0, low=0.0, high=1.0, held=0),), np.zeros((3, 4)), 60, 0.8
    )
    assert (nothing.poisoned, nothing.certain) == (False, False)
    assert page.headline(nothing).startswith("Undecided: whatever the model is sure of")
    (result,) = page.sarif(nothing, "model")["runs"][0]["results"]
    assert result["level"] == "warning"
