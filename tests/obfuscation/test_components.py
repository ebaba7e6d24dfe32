"""Each component against its exact algebra, in float64 and with the norms' division left out.

The obfuscated component reads x P of one label and writes with its own; undone with Q of a third label it
must give what the plain component gives.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transom.errors import CheckpointError, MisconfiguredError
from transom.obfuscation import attention
from transom.obfuscation.attention import attention_tasks
from transom.obfuscation.embedding import table_tasks
from transom.obfuscation.feedforward import feedforward_tasks
from transom.obfuscation.keys import Settings, Space, preset, token_map
from transom.obfuscation.norms import norm
from transom.obfuscation.plan import run
from transom.obfuscation.task import Task

SECRET = bytes(range(32))
D, K, HEADS, GROUPS, INNER, VOCABULARY = 48, 8, 6, 3, 40, 53
CONFIG: dict[str, Any] = {
    "hidden_size": D,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": K,
    "intermediate_size": INNER,
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 1,
    "rope_theta": 10000.0,
}
EXACT = preset("exact", h=16)
OWN = "model.layers.0.self_attn"


def _space(settings: Settings = EXACT) -> Space:
    return Space(SECRET, D, settings)


def _state(tasks: tuple[Task, ...]) -> dict[str, Tensor]:
    """Random float64 tensors for every source."""
    rows = {"q_proj": HEADS * K, "k_proj": GROUPS * K, "v_proj": GROUPS * K, "o_proj": D, "down_proj": D}
    rows |= {"gate_proj": INNER, "up_proj": INNER, "embed_tokens": VOCABULARY, "lm_head": VOCABULARY}
    columns = {"o_proj": HEADS * K, "down_proj": INNER}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name in sorted({name for task in tasks for name in task.sources}):
        module, kind = name.split(".")[-2:]
        if module in ("q_norm", "k_norm"):
            shape: tuple[int, ...] = (K,)
        elif "norm" in module:
            shape = (D,)
        else:
            shape = (rows[module],) if kind == "bias" else (rows[module], columns.get(module, D))
        state[name] = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3 + ("norm" in module)
    return state


def _run(tasks: tuple[Task, ...], state: dict[str, Tensor], space: Space, config: Any) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for task in tasks:
        made |= run(task, state, space, config, dict.fromkeys(task.outputs, 1.0))
    return made


def _inputs(rows: int = 9) -> Tensor:
    return torch.randn((rows, D), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def _apply(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    product = x @ state[f"{name}.weight"].T
    return product + state[f"{name}.bias"] if f"{name}.bias" in state else product


def _attend(state: dict[str, Tensor], x_Td: Tensor) -> tuple[Tensor, Tensor]:
    """(scores [A, T, T] before the softmax, output [T, width]) of causal attention with RoPE."""
    q_TAk, k_TGk, v_TGk = (
        _apply(state, f"{OWN}.{letter}_proj", x_Td).reshape(len(x_Td), -1, K) for letter in "qkv"
    )
    if f"{OWN}.q_norm.weight" in state:
        q_TAk, k_TGk = (
            x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * state[f"{OWN}.{letter}_norm.weight"]
            for letter, x in (("q", q_TAk), ("k", k_TGk))
        )
    q_TAk, k_TGk = _rotate(q_TAk), _rotate(k_TGk)
    k_TAk, v_TAk = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (k_TGk, v_TGk))
    scores_ATT = torch.einsum("tak,sak->ats", q_TAk, k_TAk)
    weights_ATT = scores_ATT.masked_fill(torch.ones(len(x_Td), len(x_Td)).triu(1).bool(), -torch.inf).softmax(
        -1
    )
    mixed_TAk = torch.einsum("ats,sak->tak", weights_ATT, v_TAk)
    return scores_ATT, _apply(state, f"{OWN}.o_proj", mixed_TAk.reshape(len(x_Td), -1))


def _rotate(x_THk: Tensor) -> Tensor:
    half = K // 2
    frequency = CONFIG["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
    angle_T1m = (torch.arange(len(x_THk))[:, None] * frequency)[:, None]
    first, second = x_THk[..., :half], x_THk[..., half:]
    cos, sin = angle_T1m.cos(), angle_T1m.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@pytest.mark.parametrize(
    ("kind", "bias"),
    [("llama", False), ("llama", True), ("mistral", False), ("qwen2", False), ("qwen3", False)],
)
def test_attention(kind: str, bias: bool) -> None:
    config = CONFIG | {"model_type": kind, "attention_bias": bias}
    space, tasks = _space(), attention_tasks(config, 0)
    state, x_Td = _state(tasks), _inputs()
    made = _run(tasks, state, space, config)
    scores, plain = _attend(state, x_Td * state["model.layers.0.input_layernorm.weight"])
    hidden, output = _attend(made, x_Td @ space.key("embedding"))
    order = attention.head_keys(space, config, 0, head_norms=kind == "qwen3").head_order_A
    assert sorted(order.tolist()) == list(range(HEADS))
    assert order.tolist() != list(range(HEADS))
    _close(hidden, scores[torch.from_numpy(order)])
    _close(output @ space.inverse("head"), plain)


def test_attention_projections_differ_from_the_plain_ones() -> None:
    """Undoing Q alone does not give a plain head back: R, H and U stand between."""
    config = CONFIG | {"model_type": "llama"}
    space, tasks = _space(), attention_tasks(config, 0)
    state = _state(tasks)
    made = _run(tasks, state, space, config)
    for letter in "qkv":
        name = f"{OWN}.{letter}_proj.weight"
        plain = state[name] * state["model.layers.0.input_layernorm.weight"]
        undone = made[name] @ space.key("embedding").T
        assert torch.cdist(plain, undone).min() > 0.1


def test_block_permutation_stays_in_windows_of_like_frequency() -> None:
    m = 32
    wide, narrow = (Space(SECRET, D, Settings(h=16, beta=8.0, gamma=gamma)) for gamma in (0.0, 1e3))
    config = CONFIG | {"model_type": "llama"}
    order_Gm = attention.pair_orders(wide, config, "a", 200, m)
    assert (np.sort(order_Gm, axis=1) == np.arange(m)).all()
    assert np.abs(order_Gm - np.arange(m)).max() == 7
    frequency_m = 10000.0 ** (-np.arange(m) / m)
    moved = frequency_m[attention.pair_orders(narrow, config, "a", 200, m)] - frequency_m
    assert 0 < np.abs(moved).max() < 0.02
    off = attention.pair_orders(_space(), config, "a", 2, m)
    assert (off == np.arange(m)).all()


def test_block_permutation_is_exact_where_frequencies_do_not_matter() -> None:
    """At position 0 nothing is rotated, so a permutation common to queries and keys changes no score."""
    config = CONFIG | {"model_type": "qwen3"}
    space = _space(preset("exact", h=16, block_permutation=True, gamma=0.0))
    tasks = attention_tasks(config, 0)
    state, x_Td = _state(tasks), _inputs(1)
    made = _run(tasks, state, space, config)
    plain = _attend(state, x_Td * state["model.layers.0.input_layernorm.weight"])[0]
    keys = attention.head_keys(space, config, 0, head_norms=True)
    assert sorted(keys.norm_order_k.tolist()) == list(range(K))
    _close(_attend(made, x_Td @ space.key("head"))[0], plain[torch.from_numpy(keys.head_order_A)])


def test_matrices_of_heads() -> None:
    """Scales stay within [0.5, 2], and U is mild: both matter to 16 bits and below."""
    keys = attention.head_keys(_space(), CONFIG | {"model_type": "llama"}, 0)
    singular = np.linalg.svd(keys.query_Gkk, compute_uv=False)
    assert singular.min() >= 0.5
    assert singular.max() <= 2
    mild_Gkk = attention.value_matrices(_space(), CONFIG | {"model_type": "llama"}, 0)
    assert (np.linalg.cond(mild_Gkk) <= attention.WORST_CONDITION).all()
    np.testing.assert_allclose(
        keys.query_Gkk @ keys.key_Gkk.transpose(0, 2, 1), np.stack([np.eye(K)] * GROUPS), atol=1e-12
    )


@pytest.mark.parametrize("bias", [False, True])
def test_feedforward(bias: bool) -> None:
    config = CONFIG | {"model_type": "llama", "mlp_bias": bias}
    space, tasks = _space(), feedforward_tasks(config, 0)
    state, x_Td = _state(tasks), _inputs()
    made = _run(tasks, state, space, config)

    def forward(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        gate, up = (_apply(tensors, f"model.layers.0.mlp.{name}_proj", x) for name in ("gate", "up"))
        return _apply(tensors, "model.layers.0.mlp.down_proj", torch.nn.functional.silu(gate) * up)

    plain = forward(state, x_Td * state["model.layers.0.post_attention_layernorm.weight"])
    _close(forward(made, x_Td @ space.key("embedding")) @ space.inverse("head"), plain)


@pytest.mark.parametrize("tied", [False, True])
def test_tables(tied: bool) -> None:
    """The product of embedding and head is the plain one with rows and columns permuted by tau."""
    config = CONFIG | {"model_type": "llama", "tie_word_embeddings": tied}
    space, tasks = _space(), table_tasks(config)
    state = _state(tasks)
    made = _run(tasks, state, space, config)
    embedding, norm = state["model.embed_tokens.weight"], state["model.norm.weight"]
    plain_VV = (embedding * norm) @ (embedding if tied else state["lm_head.weight"]).T
    tau_V = torch.from_numpy(token_map(SECRET, VOCABULARY))
    hidden_VV = made["model.embed_tokens.weight"] @ made["lm_head.weight"].T
    _close(hidden_VV[tau_V][:, tau_V], plain_VV)


def test_noise_has_the_tables_own_unit() -> None:
    config = CONFIG | {"model_type": "llama"}
    space = _space(preset("exact", h=16, alpha_e=0.5))
    state = _state(table_tasks(config))
    table = state["model.embed_tokens.weight"]
    made = _run(table_tasks(config)[:1], state, space, config)["model.embed_tokens.weight"]
    tau_V = torch.from_numpy(token_map(SECRET, VOCABULARY))
    noise = made[tau_V] @ space.inverse("a") - table
    assert float(noise.std() / table.std()) == pytest.approx(0.5, rel=0.05)


def test_dtype_is_the_sources() -> None:
    config = CONFIG | {"model_type": "llama"}
    tasks = attention_tasks(config, 0) + feedforward_tasks(config, 0) + table_tasks(config)
    state = {name: tensor.bfloat16() for name, tensor in _state(tasks).items()}
    assert {tensor.dtype for tensor in _run(tasks, state, _space(), config).values()} == {torch.bfloat16}


def test_a_vocabulary_that_is_not_the_configured_one_is_refused() -> None:
    config = CONFIG | {"model_type": "llama", "vocab_size": 50}
    with pytest.raises(CheckpointError, match="53 rows"):
        _run(table_tasks(config)[:1], _state(table_tasks(config)), _space(), config)


@pytest.mark.parametrize("kappas", [{}, {"model.norm.weight": float("nan")}, {"model.norm.weight": 0.0}])
def test_a_norm_without_a_usable_kappa_is_refused(kappas: dict[str, float]) -> None:
    config = CONFIG | {"model_type": "llama"}
    (task,) = (task for task in table_tasks(config) if task.transform is norm)
    state = _state((task,))
    with pytest.raises(MisconfiguredError, match=r"model\.norm\.weight"):
        run(task, state, _space(), config, kappas)
    made = run(task, state, _space(), config, {"model.norm.weight": 0.9})["model.norm.weight"]
    assert torch.equal(made, torch.full((_space().width,), 0.9, dtype=torch.float64))
