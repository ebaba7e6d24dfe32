"""Walking and cutting: the parts are the model's own, and the two halves make the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from transom.checkpoint import load
from transom.checkpoint.cut import cut, new_cache, three
from transom.checkpoint.tiny import tiny_llama
from transom.checkpoint.walk import walk
from transom.errors import MisconfiguredError, NotYetError

DECODERS = [
    ("Llama", {}),
    ("Mistral", {"sliding_window": 3}),
    ("Mistral", {"sliding_window": None}),
    ("Qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    ("Qwen3", {"tie_word_embeddings": True}),
]
IDS = torch.randint(10, 90, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[0, :3] = 0  # padded on the left
MASK[1, 6:] = 0  # and on the right


def whole(model: Any, mask: torch.Tensor | None) -> torch.Tensor:
    output = model(input_ids=IDS, attention_mask=mask)
    return output.logits if "logits" in output else output.last_hidden_state


def assert_halves_make_the_whole(model: Any, cuts: range) -> None:
    for mask in (None, MASK):
        expected = whole(model, mask)
        for after_block in cuts:
            front, back = cut(model, after_block)
            torch.testing.assert_close(back(front(IDS, mask), mask), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("architecture", "options"), DECODERS)
def test_the_halves_of_a_decoder_make_the_whole(
    tmp_path: Path, architecture: str, options: dict[str, Any]
) -> None:
    model = load(tiny_llama(tmp_path, architecture=architecture, **options)).model
    assert_halves_make_the_whole(model, range(4))
    assert_halves_make_the_whole(model.model, range(4))  # the trunk alone, without its head


@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2", "Qwen3", "Bert"])
def test_three_parts_of_a_classifier_make_the_whole(tmp_path: Path, bert: Path, architecture: str) -> None:
    folder = bert if architecture == "Bert" else tiny_llama(tmp_path, architecture=architecture)
    model: Any = load(folder, task="sequence-classification", num_labels=3).model
    pad = model.config.pad_token_id
    ids = IDS.masked_fill(MASK == 0, pad)  # a decoder's class looks for the last token from the ids
    expected = model(input_ids=ids, attention_mask=MASK).logits
    assert expected.shape == (3, 3)
    for after_block in range(4):
        front, middle, tail = three(model, after_block)
        logits = tail(middle(front(ids, MASK), MASK), MASK)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    front, middle, tail = three(model, 0)
    torch.testing.assert_close(tail(middle(front(IDS))), model(input_ids=IDS).logits, rtol=0, atol=1e-6)


def test_front_and_tail_do_without_the_blocks_between(llama: Path, tmp_path: Path) -> None:
    model: Any = load(llama).model
    config = type(model.config).from_dict(model.config.to_dict() | {"num_hidden_layers": 1})
    config.layer_types = None
    small = type(model)(config).eval()
    small.load_state_dict({name: model.state_dict()[name] for name in small.state_dict()})
    front, middle, _tail = three(model, 1)
    front_alone, middle_alone, tail_alone = three(small, 1)
    assert torch.equal(front_alone(IDS, MASK), front(IDS, MASK))
    top = middle(front(IDS, MASK), MASK)
    assert torch.equal(middle_alone(top, MASK), top)
    torch.testing.assert_close(tail_alone(top, MASK), whole(model, MASK), rtol=0, atol=1e-6)


def test_the_halves_of_a_bert_make_the_whole(bert: Path) -> None:
    model = load(bert).model
    assert_halves_make_the_whole(model, range(4))
    assert_halves_make_the_whole(model.bert, range(4))


@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_the_halves_of_a_real_model_make_the_whole(name: str, smollm2: Path) -> None:
    model = load(smollm2 if name == "smollm2" else name).model
    expected = whole(model, MASK)
    for after_block in (0, 4):
        front, back = cut(model, after_block)
        torch.testing.assert_close(back(front(IDS, MASK), MASK), expected, rtol=1e-5, atol=1e-4)


def test_the_front_sees_only_its_blocks_and_the_back_only_its_own(llama: Path) -> None:
    model = load(llama).model
    front, back = cut(model, 2)
    hidden = front(IDS)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight.zero_()
    assert torch.equal(front(IDS), hidden)
    changed = back(hidden)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_()
    assert torch.equal(back(hidden), changed)


def test_gradients_reach_the_front_through_the_cut(llama: Path) -> None:
    model = load(llama).model.requires_grad_(True)
    front, back = cut(model, 1)
    hidden = front(IDS)
    crossed = hidden.detach().requires_grad_(True)
    back(crossed).sum().backward()
    hidden.backward(crossed.grad)
    split = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    model(input_ids=IDS).logits.sum().backward()
    torch.testing.assert_close(split, model.model.embed_tokens.weight.grad, rtol=1e-4, atol=1e-5)


def continued(model: Any, after_block: int, steps: list[int], mask: torch.Tensor | None) -> torch.Tensor:
    """The logits of all tokens, given to the halves so many at a time, each half with a cache of its own."""
    front, back = cut(model, after_block)
    caches, place, parts = (new_cache(), new_cache()), 0, []
    for step in steps:
        seen = None if mask is None else mask[:, : place + step]
        hidden = front(IDS[:, place : place + step], seen, caches[0])
        parts.append(back(hidden, seen, caches[1]))
        place += step
    assert place == IDS.shape[1]
    assert caches[1].get_seq_length() == (place if after_block < 3 else 0)
    return torch.cat(parts, 1)


@pytest.mark.parametrize(("architecture", "options"), DECODERS)
@pytest.mark.parametrize("after_block", range(4))
def test_token_by_token_with_a_cache_the_halves_answer_as_the_whole(
    tmp_path: Path, architecture: str, options: dict[str, Any], after_block: int
) -> None:
    model = load(tiny_llama(tmp_path, architecture=architecture, **options)).model
    left = torch.ones_like(IDS)
    left[0, :3] = 0
    for mask in (None, left):
        expected = whole(model, mask)
        for steps in ([1] * 9, [5, 1, 1, 1, 1], [2, 4, 3], [9]):
            got = continued(model, after_block, steps, mask)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_the_back_with_a_cache_generates_what_the_model_generates(llama: Path) -> None:
    model = load(llama).model
    expected = model.generate(IDS[:1], max_new_tokens=8, do_sample=False, eos_token_id=None)
    front, back = cut(model, 1)
    cache, ids, sent = new_cache(), IDS[:1], 0
    for _ in range(8):
        hidden = front(ids)[:, sent:]  # a front without a cache runs anew, and the states before stay
        sent = ids.shape[1]
        ids = torch.cat([ids, back(hidden, cache=cache)[:, -1:].argmax(-1)], 1)
    assert torch.equal(ids, expected)


def test_gradients_reach_the_keys_of_tokens_before(llama: Path) -> None:
    model = load(llama).model.requires_grad_(True)
    _front, back = cut(model, 2)
    hidden = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    cache = new_cache()
    back(hidden[:, :3], cache=cache)
    back(hidden[:, 3:], cache=cache).sum().backward()
    assert hidden.grad is not None
    stepped = hidden.grad.clone()
    hidden.grad = None
    back(hidden)[:, 3:].sum().backward()
    torch.testing.assert_close(stepped, hidden.grad, rtol=1e-4, atol=1e-5)


def test_a_model_that_is_not_causal_takes_no_cache(bert: Path) -> None:
    front, back = cut(load(bert).model, 1)
    with pytest.raises(MisconfiguredError, match="causal"):
        front(IDS, None, new_cache())
    with pytest.raises(MisconfiguredError, match="causal"):
        back(front(IDS), None, new_cache())


@pytest.mark.parametrize("after_block", [-1, 4])
def test_a_cut_beyond_the_model_is_refused(llama: Path, after_block: int) -> None:
    with pytest.raises(MisconfiguredError, match=str(after_block)):
        cut(load(llama).model, after_block)


@pytest.mark.parametrize(("architecture", "options"), DECODERS)
def test_the_walk_finds_every_weight_of_a_decoder_once(
    tmp_path: Path, architecture: str, options: dict[str, Any]
) -> None:
    model = load(tiny_llama(tmp_path, architecture=architecture, **options)).model
    parts = walk(model)
    assert parts.tied == options.get("tie_word_embeddings", False)
    assert (parts.query_heads, parts.key_value_heads, parts.head_width, parts.width) == (4, 2, 8, 32)
    for block in parts.blocks:
        assert block.query.weight.shape == (parts.query_heads * parts.head_width, parts.width)
        assert block.key.weight.shape == block.value.weight.shape == (2 * 8, 32)
        assert block.attention_out.weight.shape == (parts.width, parts.query_heads * parts.head_width)
    assert_all_reached(model, parts, ("q_norm", "k_norm"))


def test_the_walk_finds_every_weight_of_a_bert_once(bert: Path) -> None:
    model = load(bert).model
    parts = walk(model)
    assert all(block.mlp_gate is None for block in parts.blocks)
    assert (parts.final_norm, parts.tied) == (None, False)
    assert_all_reached(
        model, parts, ("embeddings.position", "embeddings.token_type", "embeddings.Layer", "pooler")
    )


def assert_all_reached(model: Any, parts: Any, elsewhere: tuple[str, ...]) -> None:
    modules = [parts.embedding, parts.final_norm, parts.head]
    for block in parts.blocks:
        modules += [value for name, value in vars(block).items() if name != "module"]
    found = [id(p) for module in modules if module is not None for p in module.parameters()]
    expected = {id(p) for name, p in model.named_parameters() if not any(part in name for part in elsewhere)}
    assert set(found) == expected
    assert len(found) == len(expected) + parts.tied


def test_unknown_architectures_and_heads_are_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForTokenClassification

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1))
    sizes = {"vocab_size": 9, "hidden_size": 4, "intermediate_size": 4, "pad_token_id": 0}
    small = LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=1)
    for model in (gpt2, LlamaForTokenClassification(small)):
        with pytest.raises(NotYetError, match=type(model).__name__):
            walk(model)
