"""Adapters of peft on a model of ours: as in peft where that is right, an error where it is silent."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from transom.checkpoint.adapter import Adapter, applied, attach, detach, merge, read_adapter
from transom.checkpoint.cut import cut
from transom.errors import CheckpointError, NotYetError

SIZES = {"vocab_size": 60, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64}
IDS = torch.randint(2, 60, (2, 7), generator=torch.Generator().manual_seed(0))
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled by the root": {"use_rslora": True},
    "dora": {"use_dora": True},
    "ranks of their own": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5}},
    "some layers": {"layers_to_transform": [1, 2]},
    "a pattern": {"target_modules": r".*\.(up|down)_proj"},
}


def llama(layers: int = 4, name: str = "Llama") -> Any:
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**SIZES | HEADS | {"num_hidden_layers": layers})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def saved(folder: Path, model: Any, **options: Any) -> torch.Tensor:
    """Write an adapter of `model` as peft does; the logits under it, as peft computes them."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]} | options
    config = peft.LoraConfig(**settings, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its constructor asks transformers for a deprecated name
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(folder)
    with torch.no_grad():
        logits: torch.Tensor = adapted.eval()(IDS).logits
    return logits


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(IDS).logits
    return output


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.clone() for name, tensor in change(load_file(file)).items()}, file)


def configure(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("kind", KINDS)
def test_an_attached_adapter_answers_as_in_peft_and_comes_off_again(tmp_path: Path, kind: str) -> None:
    expected, model = saved(tmp_path, llama(), **KINDS[kind]), llama()
    plain, names = logits_of(model), list(model.state_dict())
    draws = torch.random.get_rng_state()
    attach(model, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert torch.equal(logits_of(model), expected)
    assert not torch.equal(plain, expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    detach(model)
    assert torch.equal(logits_of(model), plain)
    assert list(model.state_dict()) == names


def test_reading_the_factors_gives_what_peft_computes(tmp_path: Path) -> None:
    expected, model = saved(tmp_path, llama(), use_rslora=True), llama()
    plain, weights = logits_of(model), dict(model.state_dict())
    with applied(model, read_adapter(tmp_path)):
        torch.testing.assert_close(logits_of(model), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits_of(model), plain)
    merge(model, tmp_path)
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-4, atol=1e-4)
    model.load_state_dict(weights)  # which share no memory with what was merged
    assert torch.equal(logits_of(model), plain)


def test_only_the_adapter_is_trained_and_what_was_trainable_stays_so(tmp_path: Path) -> None:
    saved(tmp_path, llama())
    model = llama()
    model.lm_head.weight.requires_grad_(True)
    attach(model, tmp_path, trainable=True)
    model(IDS).logits.sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name} | {"lm_head.weight"}
    assert len(trained) == 2 * 3 * 4 + 1


@pytest.mark.parametrize("first", [0, 1, 2])
def test_an_adapter_of_the_whole_model_fits_a_part_of_it(tmp_path: Path, first: int) -> None:
    whole, part = llama(), llama(2)
    hidden = cut(whole, first)[0](IDS)
    for own, other in zip(part.model.layers, list(whole.model.layers)[first : first + 2], strict=True):
        own.load_state_dict(other.state_dict())
    saved(tmp_path, llama())
    attach(part, tmp_path, first_layer=first)
    attach(whole, tmp_path)
    _front, back = cut(whole, first)
    _front_of_all, rest = cut(whole, first + 2)
    with torch.no_grad():
        expected = back(hidden)
        part.lm_head, part.model.norm = torch.nn.Identity(), torch.nn.Identity()
        torch.testing.assert_close(rest(cut(part, 0)[1](hidden)), expected)


def test_an_adapter_of_the_whole_model_is_refused_on_a_part_that_does_not_say_so(tmp_path: Path) -> None:
    saved(tmp_path, llama())
    part = llama(2)
    plain = logits_of(part)
    with pytest.raises(CheckpointError, match=r"layers\.2\..*which layer comes first"):
        attach(part, tmp_path)
    assert torch.equal(logits_of(part), plain)
    with pytest.raises(CheckpointError, match="lacks"):
        attach(part, tmp_path, first_layer=3)  # which has a layer more than the adapter
    with pytest.raises(CheckpointError):
        attach(part, tmp_path, first_layer=4)


def first_of(tensors: dict[str, torch.Tensor]) -> str:
    return min(tensors)


BROKEN: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "another prefix": (lambda t: {f"x.{name}": one for name, one in t.items()}, "not named as peft"),
    "one spelt otherwise": (
        lambda t: {name.replace("layers.0", "layer.0"): one for name, one in t.items()}, "file alone has",
    ),
    "one missing": (lambda t: {n: one for n, one in t.items() if n != first_of(t)}, "the file lacks"),
    "one spare": (lambda t: t | {first_of(t).replace("0", "9"): torch.zeros(4, 24)}, "file alone has"),
    "another shape": (lambda t: t | {first_of(t): torch.zeros(4, 25)}, r"\(4, 25\)"),
    "another rank": (lambda t: t | {first_of(t): torch.zeros(3, 24)}, r"\(3, 24\)"),
    "not finite": (lambda t: t | {first_of(t): torch.full_like(t[first_of(t)], torch.nan)}, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_tensors_that_peft_would_pass_over_are_refused(tmp_path: Path, how: str) -> None:
    change, message = BROKEN[how]
    saved(tmp_path, llama())
    edit(tmp_path, change)
    model = llama()
    plain, names = logits_of(model), list(model.state_dict())
    with pytest.raises(CheckpointError, match=message):
        attach(model, tmp_path)
    assert torch.equal(logits_of(model), plain)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "'all'"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"init_lora_weights": "olora"}, "changes the base"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"use_new_thing": True}, "use_new_thing"),
    ],
)
def test_settings_beyond_the_factors_are_refused_by_name(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    saved(tmp_path, llama())
    configure(tmp_path, **values)
    model = llama()
    with pytest.raises(NotYetError, match=message):
        attach(model, tmp_path)
    assert not hasattr(model, "peft_config")


def test_an_unknown_setting_that_is_off_changes_nothing(tmp_path: Path) -> None:
    expected = saved(tmp_path, llama())
    configure(tmp_path, use_new_thing=False)
    model = llama()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft tells of the name
        attach(model, tmp_path)
    assert torch.equal(logits_of(model), expected)


def test_another_base_a_second_adapter_and_a_pickle_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, llama())
    model = llama()
    attach(model, tmp_path)
    with pytest.raises(NotYetError, match="detach"):
        attach(model, tmp_path)
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1))
    with pytest.raises(CheckpointError, match="base"):
        attach(gpt2, tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        attach(llama(), tmp_path)


def test_a_merge_refuses_what_the_factors_alone_do_not_tell(tmp_path: Path) -> None:
    """As attaching does: other starts change the base, and a tied head is the embedding."""
    saved(tmp_path / "one", llama())
    configure(tmp_path / "one", init_lora_weights="pissa")
    model = llama()
    before = logits_of(model)
    with pytest.raises(NotYetError):
        merge(model, tmp_path / "one")
    tied = llama()
    tied.get_output_embeddings().weight = tied.get_input_embeddings().weight
    factors = {"lm_head": (torch.ones(2, 24), torch.ones(60, 2))}
    with pytest.raises(NotYetError, match="the embedding's too"), applied(tied, Adapter(factors, 1.0)):
        pass
    assert torch.equal(logits_of(model), before)
