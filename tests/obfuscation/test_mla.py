"""Latent attention: the exact algebra in float64, and whole tiny DeepSeek checkpoints under transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transom.obfuscation.keys import Settings, Space, preset
from transom.obfuscation.mla import latent_tasks
from transom.obfuscation.plan import run
from transom.obfuscation.task import attention_label

from .mixtures import SECRET, VARIANTS, obfuscated_pair

D, T, LAYER = 16, 12, 1
OWN = f"model.layers.{LAYER}.self_attn"
BEFORE = f"model.layers.{LAYER}.input_layernorm.weight"
CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": D,
    "num_attention_heads": 4,
    "kv_lora_rank": 10,
    "q_lora_rank": 14,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 8,
    "v_head_dim": 5,
    "rope_theta": 100.0,
}
VARIATIONS: dict[str, dict[str, Any]] = {
    "V3": {},
    "V3 with biases": {"attention_bias": True},
    "V3 in halves": {"rope_interleave": False},
    "V2": {"model_type": "deepseek_v2"},
    "V2 without a latent query": {"model_type": "deepseek_v2", "q_lora_rank": None},
}


def random_layer(config: dict[str, Any]) -> dict[str, Tensor]:
    """Weights of one layer under the names on disk, float64."""
    generator = torch.Generator().manual_seed(1)
    heads, nope, rotary = (
        config["num_attention_heads"],
        config["qk_nope_head_dim"],
        config["qk_rope_head_dim"],
    )
    kv_rank, q_rank, value = config["kv_lora_rank"], config["q_lora_rank"], config["v_head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj.weight": (heads * (nope + rotary), D),
        "q_a_proj.weight": (q_rank or 0, D),
        "q_a_proj.bias": (q_rank or 0,),
        "q_a_layernorm.weight": (q_rank or 0,),
        "q_b_proj.weight": (heads * (nope + rotary), q_rank or 0),
        "kv_a_proj_with_mqa.weight": (kv_rank + rotary, D),
        "kv_a_proj_with_mqa.bias": (kv_rank + rotary,),
        "kv_a_layernorm.weight": (kv_rank,),
        "kv_b_proj.weight": (heads * (nope + value), kv_rank),
        "o_proj.weight": (D, heads * value),
        "o_proj.bias": (D,),
    }
    wanted = {name for task in latent_tasks(config, LAYER) for name in task.sources}
    named = {BEFORE: (D,)} | {f"{OWN}.{name}": shape for name, shape in shapes.items()}
    assert wanted <= set(named)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in named.items()
        if name in wanted
    }


def transform(config: dict[str, Any], tensors: dict[str, Tensor], space: Space) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for task in latent_tasks(config, LAYER):
        made |= run(task, tensors, space, config, {})
    return made


def inner_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def rotate(x: Tensor, config: dict[str, Any]) -> Tensor:
    """The rotary embedding over the second last axis, by complex numbers."""
    m = x.shape[-1] // 2
    if config.get("rope_interleave", True):
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        first, second = x[..., :m], x[..., m:]
    frequency_m = config["rope_theta"] ** (-torch.arange(m, dtype=torch.float64) / m)
    angle_Tm = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequency_m
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle_Tm), angle_Tm)
    return torch.cat([turned.real, turned.imag], -1)


def attention(x_Td: Tensor, tensors: dict[str, Tensor], config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Output [T, d] and probabilities [A, T, T] of latent attention, written from its definition."""
    heads, nope, rank = config["num_attention_heads"], config["qk_nope_head_dim"], config["kv_lora_rank"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ tensors[f"{OWN}.{name}.weight"].T + tensors.get(f"{OWN}.{name}.bias", torch.zeros(()))

    def split(x: Tensor) -> Tensor:
        return x.reshape(len(x), heads, -1).transpose(0, 1)

    if config["q_lora_rank"] is None:
        query_ATk = split(linear("q_proj", x_Td))
    else:
        weight = tensors[f"{OWN}.q_a_layernorm.weight"]
        query_ATk = split(linear("q_b_proj", inner_norm(linear("q_a_proj", x_Td), weight)))
    both = linear("kv_a_proj_with_mqa", x_Td)
    latent = inner_norm(both[:, :rank], tensors[f"{OWN}.kv_a_layernorm.weight"])
    expanded = split(linear("kv_b_proj", latent))
    scores_ATT = query_ATk[..., :nope] @ expanded[..., :nope].transpose(1, 2)
    scores_ATT = scores_ATT + rotate(query_ATk[..., nope:], config) @ rotate(both[:, rank:], config).T
    hidden = torch.triu(torch.ones(len(x_Td), len(x_Td), dtype=torch.bool), 1)
    weights_ATT = scores_ATT.masked_fill(hidden, -torch.inf).div(4).softmax(-1)
    mixed = (weights_ATT @ expanded[..., nope:]).transpose(0, 1).flatten(1)
    return linear("o_proj", mixed), weights_ATT


def check_algebra(config: dict[str, Any], settings: Settings) -> None:
    space, tensors = Space(SECRET, D, settings), random_layer(config)
    made = transform(config, tensors, space)
    x_Td = torch.randn((T, D), dtype=torch.float64, generator=torch.Generator().manual_seed(2)) / 4
    plain_Td, plain_ATT = attention(x_Td * tensors[BEFORE], tensors, config)
    wide_Tw, wide_ATT = attention(x_Td @ space.key("another layer"), made, config)
    expected_Tw = plain_Td @ space.key(attention_label(LAYER))
    torch.testing.assert_close(wide_Tw, expected_Tw, atol=1e-9 * float(expected_Tw.abs().max()), rtol=0)
    order = space.stream(f"{attention_label(LAYER)}/head order").permutation(4)
    assert not np.array_equal(order, np.arange(4))
    torch.testing.assert_close(wide_ATT, plain_ATT[order], atol=1e-9, rtol=0)


@pytest.mark.parametrize("variation", VARIATIONS)
def test_latent_attention_is_its_exact_algebra(variation: str) -> None:
    check_algebra(CONFIG | VARIATIONS[variation], Settings(h=4, block_permutation=False))


@pytest.mark.parametrize("variation", VARIATIONS)
def test_block_permutation_is_exact_where_frequencies_are_equal(variation: str) -> None:
    """Queries and the shared key change their pairs alike; only unequal frequencies make the step inexact."""
    check_algebra(CONFIG | VARIATIONS[variation] | {"rope_theta": 1.0}, Settings(h=4))


def test_every_part_is_keyed() -> None:
    """Undoing Q alone (what a host with P and Q would do) must leave no block of the plain weights."""
    space, tensors = Space(SECRET, D, Settings(h=4)), random_layer(CONFIG)
    made = transform(CONFIG, tensors, space)
    key_dw = space.key("any")
    for name in ("q_a_proj", "kv_a_proj_with_mqa"):
        plain = tensors[f"{OWN}.{name}.weight"] * tensors[BEFORE]
        opened = made[f"{OWN}.{name}.weight"] @ key_dw.T
        assert float((opened - plain).square().mean(1).min()) > 1e-3
    for name in ("q_b_proj", "kv_b_proj"):
        plain, wide = tensors[f"{OWN}.{name}.weight"], made[f"{OWN}.{name}.weight"]
        assert float((plain[:, None] - wide).square().mean(-1).min()) > 1e-3
    for name in ("q_a_layernorm", "kv_a_layernorm"):
        assert torch.equal(made[f"{OWN}.{name}.weight"], torch.ones_like(tensors[f"{OWN}.{name}.weight"]))


def test_layers_do_not_share_their_keys() -> None:
    space = Space(SECRET, D, Settings(h=4))
    tensors = random_layer(CONFIG)
    other = {name.replace(".1.", ".2."): tensor for name, tensor in tensors.items()}
    made, made_other = transform(CONFIG, tensors, space), {}
    for task in latent_tasks(CONFIG, 2):
        made_other |= run(task, other, space, CONFIG, {})
    for name, tensor in made.items():
        if "layernorm" not in name:
            assert not torch.allclose(tensor, made_other[name.replace(".1.", ".2.")], atol=1e-3)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name.startswith("DeepSeek")])
def test_whole_checkpoints(variant: str, tmp_path: Path) -> None:
    orthogonal = obfuscated_pair(variant, preset("exact", h=0, lam=0.0), tmp_path / "orthogonal")
    assert orthogonal.error < 1e-4
    assert orthogonal.same_experts == 1.0
    default = obfuscated_pair(variant, preset("exact", h=8), tmp_path / "default")
    assert default.error < 4 * default.spread
    assert default.same_experts > 0.8  # a near tie may fall the other way
