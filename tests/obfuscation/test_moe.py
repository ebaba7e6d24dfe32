"""Mixtures: the exact algebra of routers and experts, and whole tiny checkpoints under transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transom.errors import CheckpointError
from transom.obfuscation.keys import Settings, Space, preset
from transom.obfuscation.moe import expert_order, is_sparse, mixture_tasks, place_experts
from transom.obfuscation.plan import plan, run
from transom.obfuscation.task import feedforward_label

from .mixtures import SECRET, VARIANTS, obfuscated_pair

D, N, X, LAYER = 16, 12, 12, 2
KEYS = Settings(h=4, block_permutation=False)
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": X},
    "qwen3_moe": {"num_experts": X},
    "deepseek_v2": {"n_routed_experts": X, "n_shared_experts": 1, "n_group": 4},
    "deepseek_v3": {"n_routed_experts": X, "n_shared_experts": 1, "n_group": 4},
}


def config_of(kind: str) -> dict[str, Any]:
    return {"model_type": kind, "num_hidden_layers": 3, "hidden_size": D} | CONFIGS[kind]


def random_layer(kind: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Weights of one mixture under the names on disk; rows of the router differ in length."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for task in mixture_tasks(config_of(kind), LAYER):
        for name in task.sources:
            shape: tuple[int, ...] = (N, D)
            if name.endswith(("w2.weight", "down_proj.weight")):
                shape = (D, N)
            elif name.endswith("gate.weight"):
                shape = (X, D)
            elif "norm" in name or "bias" in name:
                shape = (X if "bias" in name else D,)
            tensors[name] = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return tensors


def transform(kind: str, tensors: dict[str, Tensor], space: Space) -> dict[str, Tensor]:
    config, made = config_of(kind), {}
    for task in place_experts(mixture_tasks(config, LAYER), config, space.secret):
        made |= run(task, tensors, space, config, {})
    return made


def route(kind: str, logits_TX: Tensor, bias_X: Tensor | None) -> Tensor:
    """Weights [T, X] of the experts, zero where not chosen, as each architecture defines them."""
    scores_TX = logits_TX.sigmoid() if kind == "deepseek_v3" else logits_TX.softmax(-1)
    wanted_TX = scores_TX if bias_X is None else scores_TX + bias_X
    if kind.startswith("deepseek"):
        members = wanted_TX.reshape(len(wanted_TX), 4, X // 4)
        group = members.topk(2).values.sum(-1) if kind == "deepseek_v3" else members.amax(-1)
        kept = torch.zeros_like(group).scatter(1, group.topk(2).indices, 1.0)
        wanted_TX = wanted_TX.masked_fill(kept.repeat_interleave(X // 4, 1) == 0, -torch.inf)
    chosen_TX = torch.zeros_like(scores_TX).scatter(1, wanted_TX.topk(3).indices, 1.0)
    weights_TX = scores_TX * chosen_TX
    return weights_TX if kind == "deepseek_v2" else weights_TX / weights_TX.sum(-1, keepdim=True)


def mixture(kind: str, x_Td: Tensor, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Output [T, d], router logits [T, X] and routing weights [T, X] of a mixture without its norm."""
    own = f"model.layers.{LAYER}.{'block_sparse_moe' if kind == 'mixtral' else 'mlp'}"
    parts = ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")

    def expert(name: str) -> Tensor:
        gate, up, down = (tensors[f"{own}.{name}.{part}.weight"] for part in parts)
        return (torch.nn.functional.silu(x_Td @ gate.T) * (x_Td @ up.T)) @ down.T

    logits_TX = x_Td @ tensors[f"{own}.gate.weight"].T
    weights_TX = route(kind, logits_TX, tensors.get(f"{own}.gate.e_score_correction_bias"))
    y_Td = sum((weights_TX[:, i, None] * expert(f"experts.{i}") for i in range(X)), torch.zeros(()))
    if f"{own}.shared_experts.{parts[0]}.weight" in tensors:
        y_Td = y_Td + expert("shared_experts")
    return y_Td, logits_TX, weights_TX


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_mixture_is_its_exact_algebra(kind: str) -> None:
    space, tensors = Space(SECRET, D, KEYS), random_layer(kind)
    made = transform(kind, tensors, space)
    x_Td = torch.randn((40, D), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    norm_d = tensors[f"model.layers.{LAYER}.post_attention_layernorm.weight"]
    plain_Td, plain_TX, plain_weights_TX = mixture(kind, x_Td * norm_d, tensors)
    wide_Tw, wide_TX, wide_weights_TX = mixture(kind, x_Td @ space.key("another layer"), made)
    order = expert_order(SECRET, config_of(kind), LAYER)
    torch.testing.assert_close(wide_TX, plain_TX[:, order], atol=1e-9, rtol=0)
    torch.testing.assert_close(wide_weights_TX, plain_weights_TX[:, order], atol=1e-9, rtol=0)
    expected_Tw = plain_Td @ space.key(feedforward_label(LAYER))
    torch.testing.assert_close(wide_Tw, expected_Tw, atol=1e-9 * float(expected_Tw.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_experts_do_not_share_their_inner_keys(kind: str) -> None:
    """Equal experts come out different, so one recovered order does not open the others."""
    tensors = random_layer(kind)
    gates = [
        name for name in tensors if ".experts." in name and name.endswith(("gate_proj.weight", "w1.weight"))
    ]
    for name in gates:
        tensors[name] = tensors[gates[0]]
    made = transform(kind, tensors, Space(SECRET, D, KEYS))
    assert len(gates) == X
    assert len({made[name].numpy().tobytes() for name in gates}) == X


def test_dtypes_stay_apart() -> None:
    """A bf16 checkpoint keeps DeepSeek's correction of scores in float32, bit for bit."""
    tensors = random_layer("deepseek_v3", torch.bfloat16)
    name = f"model.layers.{LAYER}.mlp.gate.e_score_correction_bias"
    tensors[name] = tensors[name].float()
    made = transform("deepseek_v3", tensors, Space(SECRET, D, KEYS))
    order = expert_order(SECRET, config_of("deepseek_v3"), LAYER)
    assert torch.equal(made.pop(name), tensors[name][order])
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}


def test_groups_stay_groups() -> None:
    config = {"n_routed_experts": 32, "n_group": 4}
    order = expert_order(SECRET, config, 0)
    groups = [set(range(start, start + 8)) for start in range(0, 32, 8)]
    placed = [set(order[start : start + 8].tolist()) for start in range(0, 32, 8)]
    assert sorted(map(min, placed)) == [0, 8, 16, 24]
    assert all(members in groups for members in placed)
    assert placed != groups
    assert not np.array_equal(order, expert_order(SECRET, config, 1))
    assert not np.array_equal(order, expert_order(bytes(32), config, 0))


def test_the_layout_of_files_does_not_tell_the_order() -> None:
    config = config_of("deepseek_v3")
    plain = mixture_tasks(config, LAYER)
    placed = place_experts(plain, config, SECRET)
    assert [task.outputs for task in placed] == [task.outputs for task in plain]
    assert {name for task in placed for name in task.sources} == {n for task in plain for n in task.sources}
    assert [task.sources for task in placed] != [task.sources for task in plain]


def test_a_task_that_the_secret_did_not_place_is_refused() -> None:
    space, tensors = Space(SECRET, D, KEYS), random_layer("mixtral")
    config = config_of("mixtral")
    order = expert_order(SECRET, config, LAYER)
    moved = next(place for place in range(X) if order[place] != place)
    task = next(task for task in mixture_tasks(config, LAYER) if f".experts.{moved}." in task.outputs[0])
    with pytest.raises(CheckpointError, match="plan with the secret"):
        run(task, tensors, space, config, {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_routed_experts": 10, "n_group": 4}, "10 experts into 4 equal groups"),
        ({}, "no number of experts"),
    ],
)
def test_a_broken_configuration_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        expert_order(SECRET, config, 0)


def test_which_layers_have_experts() -> None:
    def sparse(config: dict[str, Any]) -> list[int]:
        return [layer for layer in range(6) if is_sparse(config, layer)]

    assert sparse({"model_type": "mixtral"}) == [0, 1, 2, 3, 4, 5]
    assert sparse({"model_type": "qwen3_moe"}) == [0, 1, 2, 3, 4, 5]
    assert sparse({"model_type": "qwen3_moe", "decoder_sparse_step": 2, "mlp_only_layers": [3]}) == [1, 5]
    assert sparse({"model_type": "deepseek_v3", "first_k_dense_replace": 3}) == [3, 4, 5]


def test_no_task_holds_more_than_one_weight() -> None:
    """The writer's memory is bounded by its largest tasks."""
    config = config_of("deepseek_v3") | {
        "num_attention_heads": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "first_k_dense_replace": 1,
    }
    for task in plan(config, KEYS):
        vectors = [name for name in task.sources if "norm" in name or name.endswith("bias")]
        assert len(task.sources) - len(vectors) <= 1


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("DeepSeek")])
def test_whole_checkpoints(variant: str, tmp_path: Path) -> None:
    orthogonal = obfuscated_pair(variant, preset("exact", h=0, lam=0.0), tmp_path / "orthogonal")
    assert orthogonal.error < 1e-4
    assert orthogonal.same_experts == 1.0
    default = obfuscated_pair(variant, preset("exact", h=8), tmp_path / "default")
    assert default.error < 4 * default.spread
    assert default.same_experts > 0.8  # a near tie may fall the other way
