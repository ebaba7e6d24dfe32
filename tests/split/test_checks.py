"""What would train nothing, or part of it, is refused before the first step, or told after the first ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from transom.errors import MisconfiguredError, NotYetError
from transom.link.learner import Schedule
from transom.split.checks import copies, covered, require_changed, require_moved, require_trainable
from transom.split.job import Adapter
from transom.split.lora import add_adapter, weighing
from transom.split.parts import load_model, make_vendor

from .splits import Split, make_batch, make_job

SMALL = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


def mixture(kind: str, **options: Any) -> Any:
    sizes = SMALL | {"intermediate_size": 8, "num_key_value_heads": 2, "pad_token_id": 0}
    return getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**sizes | options)
    )


def test_what_is_covered_is_told_by_name(llama: Path) -> None:
    model = load_model(make_job(llama, "causal")).model
    assert covered(model, ("q_proj", "mlp.up_proj"), range(1, 3)) == (
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.2.mlp.up_proj",
        "model.layers.2.self_attn.q_proj",
    )


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("query",), "'query' is no linear layer of any of the blocks.*cover nothing"),
        (("q_proj", "querry"), r"'querry' is no.*cover model\.layers\.1\.self_attn\.q_proj"),
        (("_proj",), "no linear layer"),
        (("lm_head",), "no linear layer"),
        (("input_layernorm",), "no linear layer"),
        (("all-linear",), "no linear layer"),
    ],
)
def test_a_name_that_matches_nothing_is_refused_before_the_first_step(
    llama: Path, targets: tuple[str, ...], message: str
) -> None:
    job = make_job(llama, "causal", after_block=1, adapter=Adapter(targets=targets))
    model = load_model(job).model
    with pytest.raises(MisconfiguredError, match=message):
        make_vendor(model, job, Schedule(1e-3, 1, 10))
    assert not hasattr(model, "peft_config")


def test_a_cut_after_the_last_block_leaves_nothing_to_train(llama: Path) -> None:
    for changes in ({"after_block": 3}, {"return_gradient": True}):
        with pytest.raises(MisconfiguredError, match="0 blocks"):
            Split(make_job(llama, "classification", **changes))


def test_a_layer_that_only_some_blocks_have_is_refused() -> None:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    model = mixture("Qwen3Moe", **sizes, mlp_only_layers=[0], head_dim=4)
    with pytest.raises(MisconfiguredError, match=r"'up_proj' is no linear layer of some.*layers\.0\.mlp"):
        covered(model, ("up_proj",), range(2))


def test_fused_experts_that_peft_would_pass_over_are_refused() -> None:
    mixtral = mixture("Mixtral", num_local_experts=4)
    named = ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
    with pytest.raises(MisconfiguredError, match=r"'gate_proj' is no linear layer.*q_proj"):
        covered(mixtral, named, range(2))
    assert len(covered(mixtral, ("q_proj", "v_proj"), range(2))) == 4
    qwen = mixture("Qwen2Moe", num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8)
    with pytest.raises(MisconfiguredError, match=r"leave out the fused experts.*experts\.gate_up_proj"):
        covered(qwen, ("q_proj", "gate_proj"), range(2))


def test_an_unknown_architecture_is_refused() -> None:
    config = transformers.GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1)
    with pytest.raises(NotYetError, match="GPT2LMHeadModel"):
        covered(transformers.GPT2LMHeadModel(config), ("c_attn",), range(1))


def test_what_is_trained_must_be_what_was_named(bert: Path) -> None:
    model: Any = load_model(make_job(bert, "classification")).model
    add_adapter(model, Adapter(r=2, alpha=4), range(2, 3), 0)
    found = [name for name, one in model.named_parameters() if one.requires_grad]
    require_trainable(model, found)
    assert len(found) == 4
    with pytest.raises(MisconfiguredError, match=r"not classifier\.weight"):
        require_trainable(model, [*found, "classifier.weight"])
    with pytest.raises(MisconfiguredError, match=r"beside it .*value\.lora_B"):
        require_trainable(model, found[:-1])


def test_a_name_that_lies_outside_of_the_blocks_too_is_adapted_in_them_alone(bert: Path) -> None:
    job = make_job(bert, "classification", after_block=2, adapter=Adapter(2, 4, ("dense",)))
    names = Split(job).weights.keys()
    assert sum(".lora_" in name for name in names) == 6  # A and B of three layers; the pooler's is the head's
    assert {name for name in names if ".lora_" not in name} == {
        f"{module}.{kind}" for module in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(("model", "task"), [("bert", "classification"), ("llama", "causal")])
def test_after_the_first_steps_everything_has_moved(request: Any, model: str, task: str) -> None:
    split = Split(make_job(request.getfixturevalue(model), task, after_block=1))
    probe = make_batch(task, 0)
    scores = split.scores(probe)
    for step in (1, 2):
        before = copies(split.vendor.learner.parameters)
        split.train([make_batch(task, step)])
        require_moved(split.vendor.learner, before, first=step == 1)
    require_changed(scores, split.scores(probe))
    with pytest.raises(MisconfiguredError, match="no part in them"):
        require_changed(scores, scores.clone())


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_queries_and_keys_have_nothing_to_weigh_in_a_text_of_one_row(request: Any, model: str) -> None:
    """So a run of such texts goes on without them, and is refused where anything else stands still."""
    split = Split(make_job(request.getfixturevalue(model), "classification"))
    learner, states_BTD = split.vendor.learner, torch.randn(4, 1, 32)
    idle = weighing(split.vendor.middle.parts.model, learner.parameters)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in idle} == (
        {"query"} if model == "bert" else {"q_proj"}
    )
    before, top_BTD = copies(learner.parameters), split.vendor.rise(states_BTD, torch.ones(4, 1).long())
    split.vendor.sink(top_BTD, torch.randn_like(top_BTD.top_BTD))
    for name in idle:
        assert learner.parameters[name].grad is None or learner.parameters[name].grad.abs().max() < 1e-6
    others = [name for name in learner.parameters if name not in idle and ".lora_B" in name]
    assert others
    assert all(learner.parameters[name].grad.abs().max() > 1e-6 for name in others)
    learner.step()
    still = {**before, others[0]: learner.parameters[others[0]].detach().clone()}
    with pytest.raises(MisconfiguredError, match="have not moved") as told:
        require_moved(learner, still, idle, first=True)
    assert others[0] in str(told.value)
    assert not any(name in str(told.value) for name in idle)


def test_a_still_parameter_is_named_though_decay_moves_it(llama: Path) -> None:
    job = make_job(llama, "classification", after_block=1)
    split = Split(replace(job, train=replace(job.train, weight_decay=0.1)))
    learner = split.vendor.learner
    dead = "model.layers.1.self_attn.v_proj.lora_B.weight"
    for step in (1, 2):
        before = copies(learner.parameters)
        split.backward(make_batch("classification", step))
        gradient = learner.parameters[dead].grad
        assert gradient is not None
        gradient.zero_()
        split.step()
        with pytest.raises(MisconfiguredError, match=f"after {step} steps these have not moved") as told:
            require_moved(learner, before, first=step == 1)
        assert dead in str(told.value)
        assert ("lora_A" in str(told.value)) == (step == 2)  # of that layer: its B is zero still
        assert "q_proj" not in str(told.value)


def test_a_rate_of_nothing_moves_nothing(llama: Path) -> None:
    split = Split(make_job(llama, "classification"), Schedule(1e-30, 0, 8))
    before = copies(split.vendor.learner.parameters)
    split.train([make_batch("classification", 1)])
    still = {name for name, value in before.items() if torch.equal(value, split.weights[name])}
    assert still
    with pytest.raises(MisconfiguredError, match="learning rate"):
        require_moved(split.vendor.learner, before, first=True)
