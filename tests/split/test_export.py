"""What is exported, peft reads over the uncut model, and it gives the scores of the split."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from transom.errors import CheckpointError
from transom.link import state
from transom.split.export import export_adapter
from transom.split.job import Adapter
from transom.split.parts import load_model

from .splits import Split, make_batch, make_job

KINDS = [("bert", "classification"), ("llama", "classification"), ("llama", "causal")]


def base(job: Any, seed: int = 9) -> Any:
    """The uncut model as another person loads it: with another random head."""
    from transom.checkpoint.load import load

    torch.manual_seed(seed)
    if job.task == "causal":
        return load(job.model, task="causal-lm").model
    return load(job.model, task="sequence-classification", num_labels=len(job.labels)).model


def read_by_peft(job: Any, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a wrong prefix is a warning and a fresh adapter
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return peft.PeftModel.from_pretrained(base(job), str(folder)).eval()


def read_weights(split: Split) -> list[Any]:
    """Each party's trained tensors, as its state gives them back."""
    return [state.read(state.save(one, {}), {}).weights for one in split.learners]


@pytest.mark.parametrize("layout", ["vendor", "customer"])
@pytest.mark.parametrize(("after_block", "return_gradient"), [(0, False), (2, False), (2, True)])
@pytest.mark.parametrize(("model", "task"), KINDS)
def test_peft_gives_the_scores_of_the_split(
    request: Any, tmp_path: Path, model: str, task: str, after_block: int, return_gradient: bool, layout: str
) -> None:
    job = make_job(
        request.getfixturevalue(model),
        task,
        after_block=after_block,
        return_gradient=return_gradient,
        layout=layout,
    )
    split = Split(job)
    split.train([make_batch(task, number) for number in range(3)])
    export_adapter(tmp_path, job, base(job), *read_weights(split))
    batch = make_batch(task, 7)
    with torch.no_grad():
        found = read_by_peft(job, tmp_path)(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits
        plain = base(job)(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits
    torch.testing.assert_close(found, split.scores(batch), rtol=0, atol=1e-5)
    assert (plain - found).abs().max() > 1e-2
    assert_transom_reads_it(job, tmp_path, batch, found)


def assert_transom_reads_it(job: Any, folder: Path, batch: Any, expected: torch.Tensor) -> None:
    """Our own reader takes it, too, where it has no head."""
    from transom.checkpoint.adapter import attach

    if job.task == "causal":
        model = base(job)
        attach(model, folder)
        with torch.no_grad():
            found = model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_layers_that_are_named_like_the_pooler_are_exported(bert: Path, tmp_path: Path) -> None:
    job = make_job(bert, "classification", after_block=1, adapter=Adapter(4, 8, ("dense", "query")))
    split = Split(job)
    split.train([make_batch("classification", number) for number in range(2)])
    export_adapter(tmp_path, job, base(job), *read_weights(split))
    batch = make_batch("classification", 7)
    with torch.no_grad():
        found = read_by_peft(job, tmp_path)(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits
    torch.testing.assert_close(found, split.scores(batch), rtol=0, atol=1e-5)


def test_a_fresh_process_predicts_what_the_end_of_training_did(llama: Path) -> None:
    job = make_job(llama, "classification", after_block=1, return_gradient=True, layout="customer")
    split = Split(job)
    split.train([make_batch("classification", number) for number in range(3)])
    stored = [state.save(one, {}) for one in split.learners]
    fresh = Split(job)
    for one, data in zip(fresh.learners, stored, strict=True):
        state.put_weights(one, state.read(data, {}))
    batch = make_batch("classification", 7)
    assert torch.equal(fresh.scores(batch), split.scores(batch))


def test_half_of_what_was_trained_is_not_exported(llama: Path, tmp_path: Path) -> None:
    job = make_job(llama, "classification", after_block=1, return_gradient=True, layout="customer")
    ours, theirs = read_weights(Split(job))
    for weights, message in (
        ((theirs,), "no state has"),
        ((ours,), "no state has"),
        ((ours, theirs, ours), "both parties"),
        ((ours, theirs, {"lm_head.weight": torch.zeros(1)}), "does not train 'lm_head.weight'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            export_adapter(tmp_path, job, base(job), *weights)
    assert not list(tmp_path.iterdir())


def test_the_file_names_its_task_its_head_and_no_path_of_this_machine(llama: Path, tmp_path: Path) -> None:
    job = make_job(llama, "classification", after_block=2, adapter=Adapter(2, 4, ("up_proj", "q_proj")))
    export_adapter(tmp_path, job, base(job), *read_weights(Split(job)), base="a/name")
    config = peft.LoraConfig.from_pretrained(str(tmp_path))
    assert (config.task_type, config.modules_to_save) == ("SEQ_CLS", ["score"])
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (2, 4, "a/name")
    assert str(llama) not in (tmp_path / "adapter_config.json").read_text()
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert names.keys() == {
        "base_model.model.score.weight",
        *(
            f"base_model.model.model.layers.2.{layer}.{part}.weight"
            for layer in ("mlp.up_proj", "self_attn.q_proj")
            for part in ("lora_A", "lora_B")
        ),
    }
    assert load_model(job).model is not None
