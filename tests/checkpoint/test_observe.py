"""Observing against what transformers itself returns, and against what the blocks' own parts compute."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.checkpoint.observe import observing
from transom.checkpoint.rows import ready
from transom.errors import MisconfiguredError, NotYetError

SIZES = {"vocab_size": 60, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
GROUPED = SIZES | {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64}
MODELS: dict[str, Any] = {
    "llama": ("Llama", GROUPED),
    "qwen3": ("Qwen3", GROUPED | {"head_dim": 8}),
    "mistral": ("Mistral", GROUPED | {"sliding_window": 4}),
    "mixtral": ("Mixtral", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "bert": ("Bert", SIZES | {"num_attention_heads": 6}),
}
IDS = torch.randint(2, 60, (2, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[0, 6:] = 0


def model_of(kind: str) -> Any:
    name, options = MODELS[kind]
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**options, pad_token_id=0)
    model = getattr(transformers, f"{name}Model")(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def whole(_kind: str, _layer: int, value: torch.Tensor) -> torch.Tensor:
    return value


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def last_norm(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return model.norm(hidden) if hasattr(model, "norm") else hidden


@pytest.mark.parametrize("kind", MODELS)
def test_attention_and_states_are_those_that_the_model_returns(kind: str) -> None:
    model = model_of(kind)
    before = hooks(model)
    assert model.config._attn_implementation == "sdpa"  # under which attentions come out empty
    with observing(model, range(3), ["attention", "hidden"], whole) as seen:
        model(IDS, attention_mask=MASK)
    with observing(model, [-1], ["hidden"], whole) as first:
        model(IDS, attention_mask=MASK)
    assert (model.config._attn_implementation, hooks(model)) == ("sdpa", before)
    model.set_attn_implementation("eager")
    asked = model(IDS, attention_mask=MASK, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(first["hidden", -1][0], asked.hidden_states[0], rtol=0, atol=0)
    for layer in range(3):
        (probabilities,), (hidden,) = seen["attention", layer], seen["hidden", layer]
        assert probabilities.shape == (2, 6, 9, 9)
        assert torch.equal(probabilities, asked.attentions[layer])
        hidden = last_norm(model, hidden) if layer == 2 else hidden
        torch.testing.assert_close(hidden, asked.hidden_states[layer + 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_rows_beside_sdpa_are_those_of_eager_attention(kind: str) -> None:
    model = model_of(kind)
    with observing(model, [0, 2], ["attention", "heads"], whole) as eagerly:
        model(IDS, attention_mask=MASK)
    with observing(model, [0, 2], ["rows", "heads"], whole) as seen:
        assert model.config._attn_implementation == "transom_rows"
        out = model(IDS, attention_mask=MASK)
    assert (model.config._attn_implementation, hooks(model)) == ("sdpa", 0)
    assert torch.equal(out[0], model(IDS, attention_mask=MASK)[0])  # what the model says stays sdpa's
    for layer in (0, 2):
        real = MASK[:, None, :, None].bool()  # rows of what pads are nobody's
        for found, name in ((seen["rows", layer], "attention"), (seen["heads", layer], "heads")):
            wanted = eagerly[name, layer]
            there = real if name == "attention" else MASK[:, :, None, None].bool()
            torch.testing.assert_close(found[0] * there, wanted[0] * there, rtol=1e-4, atol=1e-5)
    assert ready(model)
    with observing(model, [0], ["rows"], whole) as again:
        model(IDS, attention_mask=MASK)
    assert model.config._attn_implementation == "transom_rows"  # as it was
    assert torch.equal(again["rows", 0][0], seen["rows", 0][0])
    with (
        observing(model, [1], ["rows"], whole) as outer,
        observing(model, [1, 1], ["rows"], whole) as inner,
    ):
        model(IDS, attention_mask=MASK)
    assert len(outer["rows", 1]) == 1
    assert len(inner["rows", 1]) == 2
    model.set_attn_implementation("eager")
    assert not ready(model)
    with observing(model, [1], ["rows"], whole) as seen:  # which gives them anyway
        model(IDS, attention_mask=MASK)
    assert seen["rows", 1][0].shape == (2, 6, 9, 9)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_rows_of_a_few_tokens_after_others(kind: str) -> None:
    model = model_of(kind)
    with observing(model, range(3), ["attention"], whole) as eagerly:
        model(IDS, use_cache=False)
    cache = transformers.DynamicCache()
    with observing(model, range(3), ["rows"], whole) as seen:
        model(IDS[:, :4], past_key_values=cache, use_cache=True)
        model(IDS[:, 4:8], past_key_values=cache, use_cache=True)
        model(IDS[:, 8:], past_key_values=cache, use_cache=True)
    for layer in range(3):
        first, some, last = seen["rows", layer]
        whole_BHTS = eagerly["attention", layer][0]
        for found, begin in ((first, 0), (some, 4), (last, 8)):
            wanted = whole_BHTS[:, :, begin : begin + found.shape[2], : found.shape[3]]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_head_outputs_make_what_attention_adds(kind: str) -> None:
    model = model_of(kind)
    with observing(model, [1], ["heads", "attention_out", "mlp_out", "hidden"], whole) as seen:
        model(IDS)
    with observing(model, [0], ["hidden"], whole) as before:
        model(IDS)
    heads_BTHK, out = seen["heads", 1][0], seen["attention_out", 1][0]
    assert heads_BTHK.shape[:3] == (2, 9, 6)
    projection = next(
        m
        for name, m in model.named_modules()
        if name.endswith(("1.self_attn.o_proj", "1.attention.output.dense"))
    )
    torch.testing.assert_close(projection(heads_BTHK.flatten(2)), out)
    if kind != "bert":  # whose norms stand behind each sum
        total = before["hidden", 0][0] + out + seen["mlp_out", 1][0]
        torch.testing.assert_close(seen["hidden", 1][0], total)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_one_head_is_its_probabilities_times_the_values(kind: str) -> None:
    model = model_of(kind)
    with observing(model, [0], ["attention", "heads"], whole) as seen:
        model(IDS)
    block = model.layers[0]
    values = block.self_attn.v_proj(block.input_layernorm(model.embed_tokens(IDS))).unflatten(-1, (2, -1))
    for head in range(6):
        expected = seen["attention", 0][0][:, head] @ values[:, :, head // 3]
        torch.testing.assert_close(seen["heads", 0][0][:, :, head], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "bert"])
def test_activations_are_those_of_the_inner_neurons(kind: str) -> None:
    model = model_of(kind)
    with observing(model, [2], ["mlp_in", "mlp", "mlp_out"], whole) as seen:
        model(IDS)
    if kind == "bert":
        layer = model.encoder.layer[2]
        inner, down = layer.intermediate(seen["mlp_in", 2][0]), layer.output.dense
    else:
        mlp = model.layers[2].mlp
        inner, down = (
            mlp.act_fn(mlp.gate_proj(seen["mlp_in", 2][0])) * mlp.up_proj(seen["mlp_in", 2][0]),
            mlp.down_proj,
        )
    assert inner.shape == (2, 9, 40)
    torch.testing.assert_close(seen["mlp", 2][0], inner)
    torch.testing.assert_close(seen["mlp_out", 2][0], down(inner))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "mixtral"])
def test_step_by_step_with_a_cache_equals_one_pass(kind: str) -> None:
    model, want = model_of(kind), ("attention", "hidden", "heads")
    with observing(model, range(3), want, whole) as seen:
        model(IDS, use_cache=False)
    with observing(model, range(3), want, whole) as stepped:
        cache = transformers.DynamicCache()
        model(IDS[:, :4], past_key_values=cache, use_cache=True)
        for place in range(4, 9):
            model(IDS[:, place : place + 1], past_key_values=cache, use_cache=True)
    for layer in range(3):
        for name in ("hidden", "heads"):
            assert len(stepped[name, layer]) == 6
            torch.testing.assert_close(
                torch.cat(stepped[name, layer], 1), seen[name, layer][0], rtol=1e-4, atol=1e-5
            )
        prompt, *rows = stepped["attention", layer]
        full = seen["attention", layer][0]
        torch.testing.assert_close(prompt, full[:, :, :4, :4], rtol=1e-4, atol=1e-5)
        for place, row in enumerate(rows, 4):
            assert row.shape == (2, 6, 1, place + 1)
            torch.testing.assert_close(row[:, :, 0], full[:, :, place, : place + 1], rtol=1e-4, atol=1e-5)


def test_generation_shows_all_but_the_last_token() -> None:
    _name, options = MODELS["llama"]
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)).eval()
    with observing(model, [1], ["hidden"], lambda _k, _l, x: x.shape[1]) as seen:
        ids = model.generate(IDS[:1], max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert ids.shape[1] == 14
    assert seen["hidden", 1] == [9, 1, 1, 1, 1]


@settings(max_examples=20, deadline=None)
@given(
    st.sets(st.integers(0, 2), min_size=1),
    st.sets(st.sampled_from(["attention", "hidden", "heads", "mlp", "mlp_in", "mlp_out"]), min_size=1),
)
def test_only_what_is_wanted_is_reduced(layers: set[int], want: set[Any]) -> None:
    model, calls = model_of("llama"), []
    with observing(model, layers, want, lambda kind, layer, _: calls.append((kind, layer))) as seen:
        model(IDS)
    assert sorted(calls) == sorted((kind, layer) for kind in want for layer in layers)
    assert seen == {}  # nothing was returned


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_stays_but_what_reduce_returns(kind: str) -> None:
    model, alive, most = model_of(kind), [], [0]

    def reduce(what: str, _layer: int, value: torch.Tensor) -> float | None:
        if what == "attention":
            alive.append(weakref.ref(value))
            most[0] = max(most[0], sum(one() is not None for one in alive))
        return float(value.amax())

    with torch.no_grad(), observing(model, range(3), ["attention", "hidden", "heads"], reduce) as seen:
        model(IDS)
        assert sum(one() is not None for one in alive) == 0
    assert most[0] == 1
    assert all(isinstance(value, float) for values in seen.values() for value in values)


def test_gradients_flow_through_what_is_seen() -> None:
    model = model_of("llama").requires_grad_(True)
    with observing(model, [1], ["attention"], lambda _k, _l, p: p[:, :, -1].square().sum()) as seen:
        model(IDS)
    seen["attention", 1][0].backward()
    assert model.layers[1].self_attn.q_proj.weight.grad.abs().sum() > 0
    assert model.layers[2].self_attn.q_proj.weight.grad is None


class StopError(Exception):
    """Raised to end a pass."""


def test_hooks_are_gone_and_later_layers_do_not_run_after_an_exception() -> None:
    model, ran = model_of("qwen3"), []
    before = hooks(model)

    def stop(_kind: str, layer: int, _value: torch.Tensor) -> None:
        ran.append(layer)
        if layer == 1:
            raise StopError

    with pytest.raises(StopError), observing(model, range(3), ["attention"], stop):
        model(IDS)
    assert ran == [0, 1]
    assert (hooks(model), model.config._attn_implementation) == (before, "sdpa")


def test_what_is_not_there_is_refused_and_leaves_no_hook() -> None:
    model = model_of("mixtral")
    before = hooks(model)
    refused: list[tuple[Any, Any, type[Exception], str]] = [
        ([3], ["hidden"], MisconfiguredError, "got 3"),
        ([-2], ["hidden"], MisconfiguredError, "got -2"),
        ([-1], ["attention"], MisconfiguredError, "first block"),
        ([0, 1], ["attention", "mlp"], NotYetError, "mlp.down_proj"),  # its experts are one tensor
    ]
    for layers, want, error, message in refused:
        with pytest.raises(error, match=message), observing(model, layers, want, whole):
            pass
        assert (hooks(model), model.config._attn_implementation) == (before, "sdpa")
    gpt2 = transformers.GPT2Model(transformers.GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1))
    with pytest.raises(NotYetError, match="gpt2"), observing(gpt2, [0], ["hidden"], whole):
        pass


def test_attention_without_probabilities_is_refused() -> None:
    model = model_of("llama")
    with observing(model, [0], ["attention"], whole):
        model.set_attn_implementation("sdpa")  # somebody else's hand
        with pytest.raises(NotYetError, match="no probabilities"):
            model(IDS)
