"""Plans, names, configurations, and whole tiny checkpoints in memory, run by transformers as they are."""

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from transom.errors import CheckpointError, MisconfiguredError, NotYetError
from transom.obfuscation.calibrate import isotropic, measure
from transom.obfuscation.keys import Settings, Space, preset, token_map
from transom.obfuscation.plan import check_names, loadable_h, norm_names, obfuscate_state, plan, target_config

SECRET = bytes(range(32))
DENSE = ("Llama", "Mistral", "Qwen2", "Qwen3")
SMALL = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "attn_implementation": "eager",
}


def _model(architecture: str, **changes: Any) -> Any:
    """A random model whose biases and norms are not trivial."""
    config = getattr(transformers, f"{architecture}Config")(**(SMALL | changes))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data = 1 + 0.2 * noise if name.endswith("norm.weight") else 0.12 * noise
    return model.requires_grad_(False)


def _obfuscated(model: Any, space: Space, kappas: dict[str, float]) -> Any:
    """The obfuscated model as an engine would build it: from its own configuration and tensors only."""
    config = model.config.to_dict()
    target = target_config(config, space.settings, token_map(SECRET, config["vocab_size"]))
    hidden = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(target.pop("model_type"), **target), attn_implementation="eager"
    )
    hidden.load_state_dict(obfuscate_state(model.state_dict(), config, space, kappas), strict=True)
    return hidden.eval().requires_grad_(False)


def _logits(model: Any, hidden: Any) -> tuple[torch.Tensor, torch.Tensor]:
    tau_V = torch.from_numpy(token_map(SECRET, SMALL["vocab_size"]))
    ids_BT = torch.randint(0, 97, (4, 24), generator=torch.Generator().manual_seed(1))
    return model(ids_BT).logits, hidden(tau_V[ids_BT]).logits[..., tau_V]


def _text() -> torch.Tensor:
    return torch.randint(0, 97, (4, 48), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("architecture", DENSE)
@pytest.mark.parametrize("tied", [False, True])
def test_orthogonal_keys_change_nothing(architecture: str, tied: bool) -> None:
    model = _model(architecture, tie_word_embeddings=tied)
    space = Space(SECRET, 64, preset("exact", h=0, lam=0.0))
    names = norm_names(plan(model.config.to_dict(), space.settings))
    plain, hidden = _logits(model, _obfuscated(model, space, isotropic(space, names)))
    assert plain.std() > 0.5
    torch.testing.assert_close(hidden, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", DENSE)
def test_default_keys_stay_within_the_spread_of_kappa(architecture: str) -> None:
    model = _model(architecture)
    space = Space(SECRET, 64, preset("exact", h=32))
    ratios = measure(model, _text(), space)
    plain, hidden = _logits(
        model, _obfuscated(model, space, {name: ratio.mean for name, ratio in ratios.items()})
    )
    error = float((hidden - plain).norm() / plain.norm())
    assert error < 4 * max(ratio.spread for ratio in ratios.values())


def test_biases_everywhere() -> None:
    model = _model("Llama", attention_bias=True, mlp_bias=True)
    space = Space(SECRET, 64, preset("exact", h=0, lam=0.0))
    names = norm_names(plan(model.config.to_dict(), space.settings))
    plain, hidden = _logits(model, _obfuscated(model, space, isotropic(space, names)))
    torch.testing.assert_close(hidden, plain, atol=1e-4, rtol=0)


def test_another_secret_reads_nothing() -> None:
    model = _model("Llama")
    space = Space(bytes(32), 64, preset("exact", h=0, lam=0.0))
    names = norm_names(plan(model.config.to_dict(), space.settings))
    plain, hidden = _logits(model, _obfuscated(model, space, isotropic(space, names)))
    assert (plain.argmax(-1) == hidden.argmax(-1)).float().mean() < 0.2


@pytest.mark.parametrize("architecture", DENSE)
def test_every_tensor_has_one_task_and_few_sources(architecture: str) -> None:
    model = _model(architecture)
    tasks = plan(model.config.to_dict(), Settings(h=32))
    check_names(tasks, model.state_dict(), model.config.to_dict())
    assert max(Counter(name for task in tasks for name in task.outputs).values()) == 1
    matrices = [[name for name in task.sources if model.state_dict()[name].dim() > 1] for task in tasks]
    assert max(map(len, matrices)) == 1
    assert pickle.loads(pickle.dumps(tasks)) == tasks  # noqa: S301 - to a worker and back


def test_qwen2_becomes_a_llama_with_biases() -> None:
    target = target_config(_model("Qwen2").config.to_dict(), Settings(h=32), token_map(SECRET, 97))
    assert (target["model_type"], target["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert target["attention_bias"] is True
    assert not {"sliding_window", "use_sliding_window", "layer_types"} & set(target)


def test_configuration_is_wide_untied_and_permuted() -> None:
    config = _model("Llama", tie_word_embeddings=True).config.to_dict() | {"auto_map": {"a": "b"}}
    tau_V = token_map(SECRET, 97)
    target = target_config(config, Settings(h=32), tau_V)
    assert (target["hidden_size"], target["head_dim"], target["tie_word_embeddings"]) == (128, 16, False)
    assert (target["bos_token_id"], target["eos_token_id"]) == (tau_V[1], [tau_V[2], tau_V[3]])
    assert target["pad_token_id"] is None
    assert "auto_map" not in target
    assert type(target["bos_token_id"]) is int
    without = {name: value for name, value in config.items() if name != "head_dim"}
    assert target_config(without, Settings(h=32), tau_V)["head_dim"] == 16
    assert target_config(without | {"model_type": "qwen3"}, Settings(h=32), tau_V)["head_dim"] == 128


@pytest.mark.parametrize("wrong", [97, -1, "2", [2, 200]])
def test_special_ids_outside_the_vocabulary_are_refused(wrong: Any) -> None:
    config = _model("Llama").config.to_dict() | {"eos_token_id": wrong}
    with pytest.raises(MisconfiguredError, match="eos_token_id"):
        target_config(config, Settings(h=32), np.arange(97))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "llama"),
        ({"model_type": None}, "None"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
        ({"partial_rotary_factor": 0.5}, "0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "0.25"),
    ],
)
def test_unknown_architectures_are_not_guessed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NotYetError, match=message):
        plan(_model("Llama").config.to_dict() | changes, Settings(h=32))


def test_missing_and_unknown_tensors_are_refused_together() -> None:
    model = _model("Llama")
    config, names = model.config.to_dict(), set(model.state_dict())
    tasks = plan(config, Settings(h=32))
    with pytest.raises(CheckpointError, match=r"1 tensors are missing.*norm.*1 tensors are unknown.*lora"):
        check_names(tasks, names - {"model.norm.weight"} | {"model.lora"}, config)
    check_names(tasks, names | {"model.layers.0.self_attn.rotary_emb.inv_freq"}, config)
    with pytest.raises(CheckpointError, match="missing"):
        obfuscate_state({}, config, Space(SECRET, 64, Settings(h=32)), {})


@pytest.mark.parametrize(
    ("wanted", "engine", "expected"),
    [
        (18, "transformers", 18),
        (128, "transformers", 126),
        (128, "llama.cpp", 144),
        (128, "group-128", 288),
        (300, "group-128", 288),
        (128, "llama.cpp-k", 864),
        (0, "transformers", 0),
    ],
)
def test_loadable_h_of_smollm2(wanted: int, engine: str, expected: int) -> None:
    config = {"hidden_size": 576, "num_attention_heads": 9}
    h = loadable_h(config, wanted, engine)
    assert h == expected
    assert h % 2 == 0
    assert (576 + 2 * h) % 9 == 0


def test_loadable_h_refuses() -> None:
    with pytest.raises(MisconfiguredError, match=r"llama\.cpp"):
        loadable_h({"hidden_size": 64, "num_attention_heads": 4}, 16, "ollama")
    with pytest.raises(MisconfiguredError, match="divisible"):
        loadable_h({"hidden_size": 65, "num_attention_heads": 4}, 16, "transformers")
