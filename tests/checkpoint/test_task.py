"""Loading for a task: the trunk is the files', a head that they lack is new, gradients are where asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_llama
from transom.errors import CheckpointError, MisconfiguredError, NotYetError

IDS = torch.tensor([[7, 9, 11, 13]])


def trunk_of(model: Any) -> dict[str, torch.Tensor]:
    trunk = getattr(model, model.base_model_prefix)
    return {name: tensor for name, tensor in trunk.state_dict().items() if "pooler" not in name}


def assert_same_trunk(model: Any, other: Any) -> None:
    ours, theirs = trunk_of(model), trunk_of(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize(
    ("task", "kind", "shape"),
    [
        ("causal-lm", "ForCausalLM", (1, 4, 400)),
        ("sequence-classification", "ForSequenceClassification", (1, 5)),
        ("token-classification", "ForTokenClassification", (1, 4, 5)),
    ],
)
def test_a_decoder_is_loaded_for_another_task(
    tmp_path: Path, architecture: str, task: Any, kind: str, shape: tuple[int, ...]
) -> None:
    folder = tiny_llama(tmp_path, architecture=architecture)
    labels = None if task == "causal-lm" else 5
    model: Any = load(folder, task=task, num_labels=labels).model
    plain: Any = load(folder).model
    assert type(model).__name__ == f"{architecture}{kind}"
    assert_same_trunk(model, plain)
    logits = model(IDS).logits
    assert logits.shape[:-1] == shape[:-1]
    assert logits.shape[-1] == (model.config.vocab_size if labels is None else 5)
    if labels is None:
        assert torch.equal(logits, plain(IDS).logits)


def test_a_head_in_the_files_is_kept_for_its_own_task(bert: Path) -> None:
    ours: Any = load(bert, task="sequence-classification").model
    assert torch.equal(ours(IDS).logits, load(bert).model(IDS).logits)  # type: ignore[operator]
    other: Any = load(bert, task="sequence-classification", num_labels=7).model
    assert_same_trunk(other, ours)
    assert other(IDS).logits.shape == (1, 7)


@pytest.mark.parametrize("task", ["masked-lm", "token-classification", "sequence-classification"])
@pytest.mark.parametrize("saved", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_a_bert_is_loaded_for_each_of_its_tasks(bert: Path, tmp_path: Path, saved: str, task: Any) -> None:
    getattr(transformers, saved).from_pretrained(bert).save_pretrained(tmp_path)
    model: Any = load(tmp_path, task=task).model
    assert_same_trunk(model, load(bert).model)
    assert model(IDS).logits.isfinite().all()


def test_what_is_saved_of_a_trunk_alone_gets_a_head(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "whole")
    transformers.LlamaModel.from_pretrained(folder).save_pretrained(tmp_path / "trunk")
    model: Any = load(tmp_path / "trunk", task="sequence-classification", num_labels=3).model
    assert_same_trunk(model, load(folder).model)


def test_a_trunk_that_is_not_whole_is_refused_for_every_task(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    for changed in (
        {key: one for key, one in tensors.items() if key != name},
        tensors | {"model.layers.1.extra.weight": torch.zeros(2)},
        tensors | {name: torch.zeros(63, 32)},
    ):
        save_file({key: one.clone() for key, one in changed.items()}, file, {"format": "pt"})
        for task in (None, "causal-lm", "sequence-classification"):
            labels = 3 if task and "class" in task else None
            with pytest.raises(CheckpointError, match=r"layers\.1"):
                load(folder, task=task, num_labels=labels)  # type: ignore[arg-type]


def test_without_a_task_a_head_of_another_kind_is_still_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, architecture="Llama")
    file = folder / "model.safetensors"
    save_file({n: t.clone() for n, t in load_file(file).items() if n != "lm_head.weight"}, file)
    with pytest.raises(CheckpointError, match="lm_head"):
        load(folder)


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification"])
def test_a_gguf_is_loaded_for_classes_as_its_directory_is(llama: Path, gguf_file: Path, task: Any) -> None:
    torch.manual_seed(0)
    ours: Any = load(gguf_file, task=task, num_labels=3).model
    torch.manual_seed(0)
    again: Any = load(gguf_file, task=task, num_labels=3).model
    theirs: Any = load(llama, task=task, num_labels=3).model
    assert type(ours) is type(theirs)
    assert_same_trunk(ours, theirs)
    assert ours.score.weight.shape == (3, ours.config.hidden_size)
    assert torch.equal(ours.score.weight, again.score.weight)  # new, and of the seed
    assert 0 < float(ours.score.weight.abs().max()) < 1
    ours.score.load_state_dict(theirs.score.state_dict())
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits)


def test_what_an_architecture_is_not_for_is_refused(llama: Path, bert: Path) -> None:
    for folder, task in ((llama, "masked-lm"), (bert, "causal-lm"), ("smollm2", "masked-lm")):
        with pytest.raises(NotYetError, match=task):
            load(folder, task=task)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "translation"}, "translation"),
        ({"num_labels": 3}, "num_labels"),
        ({"task": "causal-lm", "num_labels": 3}, "num_labels"),
        ({"task": "sequence-classification", "num_labels": 0}, "got 0"),
        ({"trainable": ["*.nothing.*"]}, "nothing"),
        ({"trainable": ["*", "score.*"]}, "score"),
    ],
)
def test_options_that_ask_for_nothing_that_exists_are_refused(
    llama: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        load(llama, **options)


PATTERNS = ["*", "model.layers.1.*", "*.mlp.*", "score.*", "*norm*", "model.embed_tokens.weight"]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from(PATTERNS)))
def test_gradients_are_left_on_what_is_asked_and_on_nothing_else(llama: Path, patterns: set[str]) -> None:
    from fnmatch import fnmatchcase

    model: Any = load(llama, task="sequence-classification", num_labels=2, trainable=patterns).model
    assert not model.training
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == any(fnmatchcase(name, one) for one in patterns)


def test_a_tied_head_is_trained_by_either_name(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, tie_word_embeddings=True)
    for name in ("lm_head.weight", "model.embed_tokens.*"):
        model: Any = load(folder, trainable=[name]).model
        model(IDS).logits.sum().backward()
        assert model.lm_head.weight.grad.abs().sum() > 0
        assert model.model.norm.weight.grad is None
    assert load(folder, trainable="lm_head.weight").model.lm_head.weight.requires_grad  # one, not its letters
