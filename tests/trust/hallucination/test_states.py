"""States of answers against passes over the whole text, and each family against its definition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.errors import CheckpointError, MisconfiguredError
from transom.trust.hallucination.looks import Memory, attention_of, laplacian_of, mlp_of, rauq_of
from transom.trust.hallucination.states import (
    ATTENTION,
    LOGITS,
    Encoded,
    Example,
    Reader,
    encode,
)
from transom.trust.prompt import Frame, require_tokenizer

FRAME = Frame("Q: ", " A:")
EXAMPLE = Example(" the dog sat on the mat", "where did the dog sit", "the cat saw the dog and the fox")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load(str(tiny_llama(tmp_path_factory.mktemp("llama") / "model")))


def encoded(found: Checkpoint, example: Example = EXAMPLE, frame: Frame = FRAME) -> Encoded:
    return encode(require_tokenizer(found), example, frame, most_tokens=400)


def whole(found: Checkpoint, one: Encoded) -> Any:
    """One pass over all, with all that the library tells."""
    model: Any = found.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        ids = torch.tensor([[*one.prompt, *one.answer[:-1]]])
        return model(input_ids=ids, output_hidden_states=True, output_attentions=True)
    finally:
        model.set_attn_implementation(before)


def test_hidden_states_are_those_of_the_whole_pass_from_the_prompts_last_token(found: Checkpoint) -> None:
    one, reader = encoded(found), Reader(found.model)
    seen = reader.read(one)
    with torch.no_grad():
        out = whole(found, one)
    first = len(one.prompt) - 1
    for layer in reader.layers:
        state = out.hidden_states[layer + 1][0, first:]
        np.testing.assert_allclose(
            seen.families[f"hidden.{layer}"], state / state.norm(dim=1, keepdim=True), atol=1e-5
        )
        assert len(seen.families[f"hidden.{layer}"]) == len(one.answer)


def test_attention_is_that_of_the_whole_pass_from_the_answers_first_token(found: Checkpoint) -> None:
    one = encoded(found)
    seen = Reader(found.model).read(one)
    with torch.no_grad():
        maps = torch.stack([part[0] for part in whole(found, one).attentions]).numpy()  # [L, H, T, T]
    prompt, steps = len(one.prompt), len(one.answer) - 1
    for name in ATTENTION:
        assert len(seen.families[name]) == steps
    for step in range(steps):
        own = prompt + step
        row = maps[:, :, own, : own + 1]
        square = maps[:, :, prompt : own + 1, prompt : own + 1]
        degree = np.diag(1 / np.arange(step + 1, 0, -1))
        eigenvalues = np.linalg.eigvals(degree * square.sum(2)[:, :, None] - square)
        before, after = row[..., 1:prompt].mean(-1), row[..., prompt:].mean(-1)
        entropy = -(row * np.log(row + 1e-9)).sum(-1) / np.log(own + 1)
        for name, wanted in {
            "lookback": before / (before + after), "sink": row[..., 0], "entropy": entropy,
            "newest": row[..., own - 1], "laplacian": eigenvalues.real.mean(-1),
        }.items():  # fmt: skip
            np.testing.assert_allclose(seen.families[name][step], wanted.ravel(), atol=1e-4, err_msg=name)


def test_logits_are_of_the_tokens_as_they_were_chosen(found: Checkpoint) -> None:
    one = encoded(found)
    families = Reader(found.model).read(one).families
    seen = np.concatenate([families[f"logits.{name}"] for name in LOGITS], axis=1)
    with torch.no_grad():
        log = whole(found, one).logits[0, len(one.prompt) - 1 :].log_softmax(-1)
    for step, token in enumerate(one.answer):
        ordered = log[step].sort(descending=True).values
        entropy = float(-(log[step].exp() * log[step]).sum())
        rank = float((log[step] > log[step, token]).sum())
        wanted = [log[step, token], ordered[0], entropy, ordered[0] - ordered[1], np.log1p(rank)]
        np.testing.assert_allclose(seen[step, :5], np.array(wanted, float), atol=1e-3)
        assert 0 <= seen[step, 5] <= 1


def test_logits_of_tokens_that_are_ruled_out_count_nothing(found: Checkpoint) -> None:
    """For chosen tokens among the likeliest and far from them, alone and together."""
    reader = Reader(found.model, attention=False, only=frozenset(f"logits.{name}" for name in LOGITS))
    draw = torch.Generator().manual_seed(0)
    logits_SV = torch.randn(6, found.model.config.vocab_size, generator=draw) * 3
    logits_SV[:, ::5] = -torch.inf
    order_SV = logits_SV.argsort(dim=1, descending=True)
    chosen = [int(order_SV[row, place]) for row, place in enumerate((0, 3, 31, 32, 33, 200))]
    hidden = {layer: torch.randn(6, found.model.config.hidden_size) for layer in reader.needed}
    log = logits_SV.double().log_softmax(1)
    entropy = torch.special.entr(log.exp()).sum(1)
    for rows in (slice(0, 6), *(slice(row, row + 1) for row in range(6))):
        states = {layer: x_SD[rows] for layer, x_SD in hidden.items()}
        families = reader.chosen(logits_SV[rows], states, chosen[rows])
        for row in range(6)[rows]:
            seen = [families[f"logits.{name}"][row - rows.start, 0].item() for name in LOGITS[:5]]
            top = log[row].topk(2).values
            rank = math.log((0, 3, 31, 32, 33, 200)[row] + 1)
            wanted = [log[row, chosen[row]], top[0], entropy[row], top[0] - top[1], rank]
            assert seen == pytest.approx([float(one) for one in wanted], abs=1e-5)


def test_the_lens_at_the_end_is_the_end(found: Checkpoint) -> None:
    """Where the layer is the last one, nothing lies between it and the end."""
    one, reader = encoded(found), Reader(found.model)
    reader.__dict__["layers"] = [found.model.config.num_hidden_layers - 1]
    lens = reader.read(one).families["lens"]
    assert lens.shape[1] == 3
    np.testing.assert_allclose(lens[:, 2], 0, atol=1e-4)


def test_stages_are_means_over_the_tokens_of_context_and_question(found: Checkpoint) -> None:
    one, reader = encoded(found), Reader(found.model)
    seen, spelled = reader.read(one), require_tokenizer(found).tokenizer.decode
    for number, text in ((1, EXAMPLE.context), (2, EXAMPLE.question)):
        ids = [token for token, stage in zip(one.prompt, one.stage_P, strict=True) if stage == number]
        assert spelled(ids).strip() == text
    with torch.no_grad():
        state = whole(found, one).hidden_states[reader.layers[0] + 1][0, : len(one.prompt)]
    unit = state / state.norm(dim=1, keepdim=True)
    width = state.shape[1]
    for number, name in ((1, "understanding"), (2, "query")):
        own = unit[torch.tensor(one.stage_P) == number].mean(0)
        np.testing.assert_allclose(seen.stages[name][:width], own, atol=1e-5)
    assert Reader(found.model).read(encoded(found, Example(" the cat"))).stages == {}


def test_without_attention_no_map_is_computed(found: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("attention was computed eagerly")

    one = encoded(found)
    all_of_it = Reader(found.model).read(one).families
    monkeypatch.setattr("transom.checkpoint.rows._probabilities", refuse)
    monkeypatch.setattr("transom.checkpoint.observe.eager", refuse)
    cheap = Reader(found.model, attention=False).read(one).families
    assert cheap.keys() == all_of_it.keys() - ATTENTION
    for name, value in cheap.items():
        np.testing.assert_allclose(value, all_of_it[name], atol=1e-4)


def test_rows_of_attention_have_their_bounds() -> None:
    map_HST = torch.rand(3, 4, 9, generator=torch.Generator().manual_seed(0)).tril(5)
    map_HST = map_HST / map_HST.sum(-1, keepdim=True)
    found = attention_of(map_HST, 5)
    assert found.shape == (4, 3, 4)
    assert ((found >= 0) & (found <= 1 + 1e-6)).all()
    even = torch.full((1, 1, 6), 1 / 6)
    lookback, sink, entropy, newest = attention_of(even, 5)[0, 0].tolist()
    assert (lookback, entropy) == (pytest.approx(0.5), pytest.approx(1.0, abs=1e-5))
    assert sink == newest == pytest.approx(1 / 6)


def test_step_by_step_with_a_memory_equals_all_at_once() -> None:
    draw, prompt, steps = torch.Generator().manual_seed(3), 4, 7
    map_MST = torch.rand(6, steps, prompt + steps, generator=draw).tril(prompt)
    whole, kept = laplacian_of(map_MST.clone(), prompt, Memory()), Memory()
    parts = [
        laplacian_of(map_MST[:, start:end, : prompt + end], prompt, kept)
        for start, end in ((0, 1), (1, 4), (4, 5), (5, 7))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    newest_SLH, chance_S = torch.rand(5, 3, 4, generator=draw), torch.rand(5, generator=draw)
    whole = rauq_of(newest_SLH, chance_S, Memory(sure_L=torch.full((3,), 0.5)))
    kept = Memory(sure_L=torch.full((3,), 0.5))
    parts = [rauq_of(newest_SLH[one : one + 1], chance_S[one : one + 1], kept) for one in range(5)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_sureness_goes_on_through_the_head_that_looks_back_most() -> None:
    newest_SLH = torch.tensor([[[0.1, 0.6]], [[0.9, 0.3]], [[0.5, 0.2]]])
    found = rauq_of(newest_SLH, torch.tensor([0.5, 0.4, 0.3]), Memory(sure_L=torch.tensor([1.0])))
    first = 0.2 * 0.5 + 0.8 * 0.6 * 1.0  # the second head has 0.6
    second = 0.2 * 0.4 + 0.8 * 0.9 * first  # the first one now has 1.0 to 0.9
    third = 0.2 * 0.3 + 0.8 * 0.5 * second
    assert found[:, 0].exp().tolist() == pytest.approx([first, second, third])


def test_only_what_is_asked_for_is_read(found: Checkpoint) -> None:
    one = encoded(found)
    everything = Reader(found.model).read(one).families
    for names in (["logits.own"], ["logits.weak", "rauq"], ["lens", "mlp"], ["hidden.0"], ["laplacian"]):
        seen = Reader(found.model, only=frozenset(names)).read(one).families
        assert set(names) <= seen.keys() <= {*names, "logits.own"}
        for name, value in seen.items():
            np.testing.assert_allclose(value, everything[name], atol=1e-5, err_msg=name)


def test_inner_neurons_are_unequal_where_one_does_all() -> None:
    one, even = torch.zeros(1, 400), torch.ones(1, 400)
    one[0, 7] = -3.0
    assert mlp_of(one)[0].tolist() == pytest.approx([3 / 20, 1.0, 1.0])
    assert mlp_of(even)[0].tolist() == pytest.approx([1.0, 0.0, 0.01], abs=1e-6)


def test_what_cannot_be_read_is_refused(found: Checkpoint, tmp_path: Path) -> None:
    tokenizer = require_tokenizer(found)
    with pytest.raises(MisconfiguredError, match="the answer is empty"):
        encode(tokenizer, Example("", "a question"), FRAME, most_tokens=99)
    with pytest.raises(MisconfiguredError, match="placeholders alone"):
        encode(tokenizer, Example("[PERSON_1], [PLACE_2]", "who"), FRAME, most_tokens=99)
    with pytest.raises(MisconfiguredError, match="more than 9 tokens"):
        encode(tokenizer, EXAMPLE, FRAME, most_tokens=9)
    bert = load(str(tiny_bert(tmp_path / "bert")), task="sequence-classification", num_labels=2)
    with pytest.raises(MisconfiguredError, match="generates no text"):
        Reader(bert.model)
    model = load(str(tiny_llama(tmp_path / "model")))
    with torch.no_grad():
        model.model.get_output_embeddings().weight[:] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        Reader(model.model).read(encoded(model))


def test_an_answer_to_nothing_begins_somewhere(found: Checkpoint) -> None:
    one = encode(require_tokenizer(found), Example("the cat sat"), most_tokens=99)
    assert len(one.prompt) >= 1
    assert len(Reader(found.model).read(one).families["logits.own"]) == len(one.answer)
