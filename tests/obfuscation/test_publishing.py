"""What a run leaves that is killed or finds the disk full, and what it refuses before it reads a tensor."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from transom.checkpoint.tiny import tiny_llama
from transom.errors import CheckpointError, MisconfiguredError, TransomError
from transom.obfuscation import plan as planning
from transom.obfuscation import pool
from transom.obfuscation.calibrate import isotropic
from transom.obfuscation.card import CARD_FILE, verify_card
from transom.obfuscation.keyfile import KeyFile, new_key
from transom.obfuscation.keys import Space, preset
from transom.obfuscation.plain import Plain, open_source
from transom.obfuscation.plan import norm_names, plan
from transom.obfuscation.writer import obfuscate, partial_path

from .configurations import FAMILIES, answers, build, exactly, our_answers, rewrite, singles

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"}
KILLED = 9


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def plain(source: Path) -> Plain:
    return open_source(source)


@pytest.fixture(scope="module")
def key(plain: Plain) -> KeyFile:
    return new_key(plain.fingerprint, plain.vocabulary, preset("exact", h=8))


@pytest.fixture(scope="module")
def kappas(plain: Plain, key: KeyFile) -> Mapping[str, float]:
    space = Space(key.secret, int(plain.config["hidden_size"]), key.settings)
    return isotropic(space, norm_names(plan(plain.config, key.settings)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_at(step: int, plain: Plain, out: Path, key: KeyFile, kappas: Mapping[str, float]) -> bool:
    """Obfuscate in a child that dies before its n-th change of a file; whether it came that far."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            writes = event != "open" or bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
            if event in CHANGES and writes:
                left -= 1
                if left == 0:
                    os._exit(KILLED)

        sys.addaudithook(count)
        try:
            obfuscate(plain, out, key, kappas=kappas, shard_bytes=60_000)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def test_a_run_killed_at_any_step_is_resumed_to_the_same_folder(
    plain: Plain, key: KeyFile, kappas: Mapping[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    obfuscate(plain, tmp_path / "straight", key, kappas=kappas, shard_bytes=60_000)
    expected, step, resumed = contents(tmp_path / "straight"), 1, 0
    while killed_at(step, plain, out := tmp_path / str(step), key, kappas):
        if not out.exists():
            obfuscate(plain, out, key, kappas=kappas, resume=True, shard_bytes=60_000)
            resumed += 1
        assert contents(out) == expected, step
        verify_card(out, key)
        assert not partial_path(out).exists()
        step += 1
    assert step > resumed > 30


@pytest.fixture
def few_bytes() -> Any:
    """A limit on the size of files, as a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size_bytes", [0, 100, 4_000, 40_000])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_full_disk_names_what_is_there(
    plain: Plain, key: KeyFile, kappas: Any, tmp_path: Path, few_bytes: Any, size_bytes: int, share: float
) -> None:
    """Full before the first file, between shards, and after the last."""
    out = tmp_path / "new" / "out"
    if share == 0.0:
        few_bytes(size_bytes)

    def fill(done: float) -> None:
        if done >= share:
            few_bytes(min(size_bytes, 100))

    with pytest.raises(MisconfiguredError, match=r"cannot write .*/out \(File too large\)") as caught:
        obfuscate(plain, out, key, kappas=kappas, shard_bytes=8_000, progress=fill)
    assert partial_path(out).exists() == (share > 0)
    assert (str(partial_path(out)) in str(caught.value)) == (share > 0)
    assert not out.exists()


def test_a_place_that_cannot_be_written_is_named(
    plain: Plain, key: KeyFile, kappas: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    out = tmp_path / "file" / "out"
    with pytest.raises(MisconfiguredError, match="cannot write") as caught:
        obfuscate(plain, out, key, kappas=kappas)
    assert "--resume" not in str(caught.value)


def _no_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_entry: Any) -> torch.Tensor:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(pool, "read_tensor", read)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        *(("config.json", {"eos_token_id": value}) for value in (399, -1, [1, 399], "1", True, 1.0)),
        *(("config.json", {"bos_token_id": value}) for value in (399, -1)),
        *(("generation_config.json", {"eos_token_id": value}) for value in (399, -1, [1, 399], "1", [True])),
        *(("generation_config.json", {"pad_token_id": value}) for value in ("399", -2)),
        *(("generation_config.json", {name: "x"}) for name in ("temperature", "top_k")),
        *(("generation_config.json", {"top_p": value}) for value in ([1], {}, float("nan"))),
    ],
    ids=str,
)
def test_ids_and_settings_are_checked_before_a_tensor_is_read(
    file: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_tensors(monkeypatch)
    folder = tiny_llama(tmp_path / "source")
    record = json.loads(path.read_text()) if (path := folder / file).exists() else {}
    path.write_text(json.dumps(record | changes))
    with pytest.raises(MisconfiguredError, match=next(iter(changes))):
        open_source(folder)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_padding_id_of_minus_one_is_none(file: str, tmp_path: Path) -> None:
    folder = build("Llama", FAMILIES["Llama"][0], tmp_path / "source") and tmp_path / "source"
    record = json.loads(path.read_text()) if (path := folder / file).exists() else {}
    path.write_text(json.dumps(record | {"pad_token_id": -1}))
    exactly(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] is None
    assert "pad_token_id" not in json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert "pad_token" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())


def test_a_head_of_its_own_is_obfuscated_though_the_configuration_ties_it(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    build("Llama", FAMILIES["Llama"][0], source)
    rewrite(source, tie_word_embeddings=True)
    _plain, key = exactly(source, out)
    tau_V = torch.from_numpy(planning_map(key))
    ids_BT = torch.arange(20)[None]
    torch.testing.assert_close(our_answers(out, tau_V[ids_BT])[..., tau_V], answers(source, ids_BT))


def planning_map(key: KeyFile) -> Any:
    from transom.obfuscation.keys import token_map

    return token_map(key.secret, key.vocabulary)


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3Moe", "DeepseekV3"])
@pytest.mark.parametrize("settings", ["exact", "paper"])
def test_one_number_that_is_not_finite(
    family: str, settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a row that is not used nothing else may change; anywhere else it is named. Every tensor is tried."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    sizes, flags = FAMILIES[family]
    source = tmp_path / "source"
    build(family, sizes | next(singles(flags)), source)
    plain = open_source(source)
    state = load_file(source / "model.safetensors")
    space = Space(bytes(32), int(plain.config["hidden_size"]), preset(settings, h=4))
    tasks = plan(plain.config, space.settings, space.secret)
    kappas = isotropic(space, norm_names(tasks))
    clean = {task: planning.run(task, state, space, plain.config, kappas) for task in tasks}
    for name in sorted({name for task in tasks for name in task.sources}):
        for odd in (float("nan"), float("inf")):
            spoilt = state | {name: state[name].clone()}
            spoilt[name].view(-1)[-1] = odd
            readers = [task for task in tasks if name in task.sources]
            if "embed_tokens" in name or "lm_head" in name or ".experts." in name or "correction" in name:
                for task in readers:
                    made = planning.run(task, spoilt, space, plain.config, kappas)
                    _spoils_little(clean[task], made)
                continue
            with pytest.raises(CheckpointError, match=rf"{name} holds .* at \[{state[name].shape[0] - 1}"):
                planning.run(readers[0], spoilt, space, plain.config, kappas)


def _spoils_little(clean: dict[str, torch.Tensor], made: dict[str, torch.Tensor]) -> None:
    """All but one row or column is finite, and that one alone is another (noise: by its deviation)."""
    for name, tensor in made.items():
        bad = ~torch.isfinite(tensor)
        assert 0 < bad.sum() <= max(tensor.shape)
        torch.testing.assert_close(tensor[~bad], clean[name][~bad], rtol=0.02, atol=0.02)


def test_a_number_too_large_for_its_dtype_is_named(plain: Plain, source: Path) -> None:
    state = {name: t.half() for name, t in load_file(source / "model.safetensors").items()}
    state["model.embed_tokens.weight"][3] = 60_000
    space = Space(bytes(32), int(plain.config["hidden_size"]), preset("exact", h=8))
    (task, *_) = plan(plain.config, space.settings)
    with pytest.raises(CheckpointError, match="too large for float16"):
        planning.run(task, state, space, plain.config, {})


def test_an_unused_row_that_is_no_number_spoils_nothing(tmp_path: Path) -> None:
    """With noise, whose size is that of the whole table."""
    source = tiny_llama(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    unused = weights["model.embed_tokens.weight"].shape[0] - 1
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name][unused] = float("nan")
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    plain = open_source(source)
    key = new_key(plain.fingerprint, plain.vocabulary, preset("paper", h=8))
    obfuscate(plain, tmp_path / "out", key)
    tau_V = torch.from_numpy(planning_map(key))
    logits_V = our_answers(tmp_path / "out", tau_V[torch.arange(20)[None]])[0, -1][tau_V]
    assert torch.isnan(logits_V).nonzero().flatten().tolist() == [unused]


def test_used_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("inf")
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    plain = open_source(source)
    key = new_key(plain.fingerprint, plain.vocabulary, preset("exact", h=8))
    with pytest.raises(TransomError, match=r"model.layers.1.mlp.up_proj.weight holds .* at \[3, 4\]"):
        obfuscate(plain, tmp_path / "out", key)
    assert not (tmp_path / "out").exists()
    assert CARD_FILE not in {path.name for path in tmp_path.rglob("*")}
