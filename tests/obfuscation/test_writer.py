"""The writer: what it writes is what the transforms give, however it is cut, interrupted or spread."""

from __future__ import annotations

import base64
import dataclasses
import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_llama
from transom.errors import MisconfiguredError, MissingExtraError
from transom.obfuscation import pool
from transom.obfuscation.card import verify_card
from transom.obfuscation.keyfile import KeyFile, load_key, new_key, save_key
from transom.obfuscation.keys import Settings, Space, preset, token_map
from transom.obfuscation.measure import measure_kappas, tokens_beside
from transom.obfuscation.plain import open_source
from transom.obfuscation.plan import norm_names, obfuscate_state, plan
from transom.obfuscation.pool import make_space
from transom.obfuscation.shards import Shard, locate
from transom.obfuscation.writer import obfuscate, partial_path

EXACT = preset("exact", h=8)
SMALL_SHARDS_BYTES = 8_000
CHILD = """
import os, signal, sys, torch
from pathlib import Path
from transom.obfuscation.keyfile import load_key
from transom.obfuscation.plain import open_source
from transom.obfuscation.writer import obfuscate
from transom.errors import TransomError
if __name__ == "__main__":
    source, out, key, workers, kill_at, resume = sys.argv[1:]
    def progress(share):
        if share >= float(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
    try:
        options = {"workers": int(workers), "resume": bool(int(resume)), "shard_bytes": 8000}
        obfuscate(source, out, load_key(key), progress=progress, **options)
    except TransomError as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def key(source: Path) -> KeyFile:
    return key_for(source)


@pytest.fixture(scope="module")
def kappas(source: Path, key: KeyFile) -> Mapping[str, float]:
    plain, entries = open_source(source), locate(source)
    return measure_kappas(plain, make_space(key.secret, plain.config, key.settings, entries), entries)


@pytest.fixture(scope="module")
def out(
    source: Path, key: KeyFile, kappas: Mapping[str, float], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The source in several shards by one worker, uninterrupted."""
    folder = tmp_path_factory.mktemp("made") / "out"
    obfuscate(source, folder, key, kappas=kappas, shard_bytes=SMALL_SHARDS_BYTES)
    return folder


def key_for(source: Path, settings: Settings = EXACT) -> KeyFile:
    plain = open_source(source)
    return new_key(plain.fingerprint, plain.vocabulary, settings)


def stored(key: KeyFile, folder: Path) -> Path:
    save_key(folder / "key", key)
    return folder / "key"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def logits(folder: Path, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(ids_BT).logits
    return result


def run_child(*arguments: object, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Returns when the child and all its workers have closed their ends of the pipe."""

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, preexec_fn=limit)


@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_with_orthogonal_keys_the_folder_answers_as_the_source(architecture: str, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source", architecture=architecture)
    key = key_for(source, preset("exact", h=0, lam=0.0))
    obfuscate(source, tmp_path / "out", key)
    tau_V = torch.from_numpy(token_map(key.secret, key.vocabulary))
    ids_BT = torch.randint(key.vocabulary, (2, 24), generator=torch.Generator().manual_seed(0))
    plain_BTV, hidden_BTV = logits(source, ids_BT), logits(tmp_path / "out", tau_V[ids_BT])
    torch.testing.assert_close(hidden_BTV[..., tau_V], plain_BTV, atol=1e-4, rtol=1e-4)
    assert (hidden_BTV - plain_BTV).abs().max() > 1  # without the map it is another answer


def test_the_folder_holds_what_the_transforms_give(
    source: Path, key: KeyFile, kappas: Mapping[str, float], out: Path
) -> None:
    config = json.loads((source / "config.json").read_text())
    space = Space(key.secret, config["hidden_size"], key.settings)
    state = dict(load(source).model.state_dict())
    expected = obfuscate_state(state, config, space, kappas)
    made = tensors(out)
    assert made.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(made[name], tensor, atol=1e-6, rtol=1e-5)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] >= sum(4 * tensor.numel() for tensor in expected.values())


def test_measured_kappas_are_those_of_the_whole_model(source: Path, key: KeyFile, kappas: Any) -> None:
    """They were measured a layer at a time; the model loaded whole gives the same."""
    from transom.checkpoint.tokenizer import export_tokenizer
    from transom.obfuscation.calibrate import TEXT, calibrate

    ids_BT = torch.tensor([export_tokenizer(source).tokenizer.encode(TEXT).ids[: tokens_beside(32)]])
    whole = calibrate(load(source).model, ids_BT, Space(key.secret, 32, key.settings))
    assert kappas == pytest.approx(whole, rel=1e-5)
    assert set(kappas) == set(norm_names(plan(json.loads((source / "config.json").read_text()), EXACT)))


def test_several_shards_in_and_several_out(
    source: Path, key: KeyFile, kappas: Mapping[str, float], out: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(source, cut)
    (cut / "model.safetensors").unlink()
    load(source).model.save_pretrained(cut, max_shard_size="20KB")
    assert len(list(cut.glob("*.safetensors"))) > 2
    same_secret = dataclasses.replace(key, source=open_source(cut).fingerprint)
    obfuscate(cut, tmp_path / "one", same_secret, kappas=kappas)
    assert len(list((tmp_path / "one").glob("*.safetensors"))) == 1
    assert len(list(out.glob("*.safetensors"))) > 5
    several, one = tensors(out), tensors(tmp_path / "one")
    assert several.keys() == one.keys()
    assert all(torch.equal(several[name], one[name]) for name in one)


def test_two_workers_write_the_bytes_of_one(
    source: Path, key: KeyFile, kappas: Mapping[str, float], out: Path, tmp_path: Path
) -> None:
    shares = list[float]()
    obfuscate(
        source, tmp_path / "out", key, kappas=kappas, workers=2, shard_bytes=SMALL_SHARDS_BYTES,
        progress=shares.append,
    )  # fmt: skip
    assert contents(tmp_path / "out") == contents(out)
    assert shares == sorted(shares)
    assert (shares[-1], len(shares)) == (1.0, len(list(out.glob("*.safetensors"))))


@pytest.fixture(scope="module", params=[1, 2])
def killed(
    source: Path, key: KeyFile, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """What a run of one or two workers leaves that was killed two fifths of its way."""
    folder = tmp_path_factory.mktemp("killed")
    died = run_child(source, folder / "out", stored(key, folder), request.param, 0.4, 0)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (folder / "out").exists()
    return partial_path(folder / "out")


def test_a_killed_run_is_resumed_to_the_same_bytes(
    source: Path, key: KeyFile, killed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    partial = shutil.copytree(killed, partial_path(out))
    # A worker killed between a shard and its record leaves one that counts as not done.
    records = [partial / file.stem for file in (partial / "progress").glob("*.safetensors.json")]
    done = {file.name: file.stat().st_ino for file in records}
    assert done
    with pytest.raises(MisconfiguredError, match="--resume"):
        obfuscate(source, out, key)
    kappas = json.loads((partial / "progress" / "state.json").read_text())["kappas"]
    (victim, *_) = sorted(done)
    (partial / victim).write_bytes(b"damaged since")
    obfuscate(source, out, key, resume=True, shard_bytes=SMALL_SHARDS_BYTES)
    kept = {name: inode for name, inode in done.items() if (out / name).stat().st_ino == inode}
    assert kept.keys() == done.keys() - {victim}
    assert not partial.exists()
    obfuscate(source, tmp_path / "straight", key, kappas=kappas, shard_bytes=SMALL_SHARDS_BYTES)
    assert contents(out) == contents(tmp_path / "straight")
    verify_card(out, key)


def test_resuming_another_run_is_refused(source: Path, key: KeyFile, killed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(killed, partial_path(out))
    before = contents(partial_path(out) / "progress")
    others = (
        new_key(key.source, key.vocabulary, key.settings),
        dataclasses.replace(key, settings=preset("balanced", h=8)),
    )
    for other in others:
        with pytest.raises(MisconfiguredError, match="another source, key or settings"):
            obfuscate(source, out, other, resume=True, shard_bytes=SMALL_SHARDS_BYTES)
    with pytest.raises(MisconfiguredError, match="another source, key or settings"):
        obfuscate(source, out, key, resume=True, shard_bytes=2 * SMALL_SHARDS_BYTES)
    assert contents(partial_path(out) / "progress") == before


def test_two_runs_do_not_write_one_folder(source: Path, key: KeyFile, kappas: Any, tmp_path: Path) -> None:
    def again(_: float) -> None:
        with pytest.raises(MisconfiguredError, match="another run is writing"):
            obfuscate(source, tmp_path / "out", key, kappas=kappas, resume=True)

    obfuscate(source, tmp_path / "out", key, kappas=kappas, progress=again)
    verify_card(tmp_path / "out", key)


def test_a_full_disk_is_a_clean_error_and_can_be_resumed(source: Path, key: KeyFile, tmp_path: Path) -> None:
    path, out = stored(key, tmp_path), tmp_path / "out"
    failed = run_child(source, out, path, 1, 2, 0, limit_bytes=40_000)  # the embedding alone is larger
    assert failed.returncode == 1
    assert "MisconfiguredError: cannot write" in failed.stderr
    assert "File too large" in failed.stderr
    assert not out.exists()
    assert not list(partial_path(out).glob("*.tmp"))
    obfuscate(source, out, key, resume=True, shard_bytes=SMALL_SHARDS_BYTES)
    verify_card(out, key)


def test_an_existing_output_is_left_alone(source: Path, key: KeyFile, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(MisconfiguredError, match="exists"):
        obfuscate(source, tmp_path / "out", key, resume=True)
    with pytest.raises(MisconfiguredError, match="workers"):
        obfuscate(source, tmp_path / "other", key, workers=0)
    with pytest.raises(MisconfiguredError, match="use cpu"):
        obfuscate(source, tmp_path / "other", key, device="abacus")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_key_for_another_checkpoint_writes_nothing(source: Path, key: KeyFile, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", seed=1)
    with pytest.raises(MisconfiguredError, match="belongs to the checkpoint"):
        obfuscate(other, tmp_path / "out", key)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_tied_weights_are_untied(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(source / "model.safetensors")
    obfuscate(source, tmp_path / "wide", key_for(source))
    made = tensors(tmp_path / "wide")
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["tie_word_embeddings"] is False
    assert not torch.allclose(made["lm_head.weight"], made["model.embed_tokens.weight"], atol=0.1)
    key = key_for(source, preset("exact", h=0, lam=0.0))
    obfuscate(source, tmp_path / "out", key)
    tau_V = torch.from_numpy(token_map(key.secret, key.vocabulary))
    ids_BT = torch.arange(20)[None]
    hidden_BTV = logits(tmp_path / "out", tau_V[ids_BT])[..., tau_V]
    torch.testing.assert_close(hidden_BTV, logits(source, ids_BT), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sources_dtype_is_kept(source: Path, dtype: torch.dtype, kappas: Any, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    shutil.copytree(source, narrow)
    state = load_file(source / "model.safetensors")
    save_file({name: t.to(dtype) for name, t in state.items()}, narrow / "model.safetensors")
    obfuscate(narrow, tmp_path / "out", key_for(narrow), kappas=kappas)
    assert {tensor.dtype for tensor in tensors(tmp_path / "out").values()} == {dtype}


def test_the_output_holds_no_secret(source: Path, key: KeyFile, out: Path) -> None:
    tau_V = token_map(key.secret, key.vocabulary)
    some = tau_V[:16]
    forbidden = [json.dumps(some.tolist()).strip("[]").encode(), ",".join(map(str, some)).encode()]
    forbidden += [np.argsort(tau_V)[:16].astype(kind).tobytes() for kind in ("<i8", "<i4", "<u2")]
    forbidden += [some.astype(kind).tobytes() for kind in ("<i8", "<i4", "<u2")]
    for secret in (key.secret, key.signing):
        forbidden += [secret, secret.hex().encode(), base64.b64encode(secret)]
    vocabulary = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    words = [json.dumps(word).encode() for word in vocabulary if len(word) > 3]
    assert len(words) > 20
    template = b"<|im_start|>"
    for name, data in contents(out).items():
        assert not any(value in data for value in [*forbidden, template, str(source).encode()]), name
        if name.endswith(".json"):
            assert not any(word in data for word in words), name
    assert not {"chat_template.jinja", "special_tokens_map.json"} & set(contents(out))


def test_the_hosts_tokenizer_spells_ids(source: Path, key: KeyFile, out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = [17, 4, key.vocabulary - 1]
    assert tokenizer.decode(ids) == f"<17><4><{key.vocabulary - 1}>"
    assert tokenizer("<17><4>").input_ids == [17, 4]
    assert len(tokenizer) == key.vocabulary
    plain_eos = json.loads((source / "config.json").read_text())["eos_token_id"]
    hidden_eos = int(token_map(key.secret, key.vocabulary)[plain_eos])
    assert tokenizer.eos_token_id == hidden_eos
    for file in ("config.json", "generation_config.json"):
        assert json.loads((out / file).read_text())["eos_token_id"] == hidden_eos


def test_a_cluster_needs_ray(
    source: Path, key: KeyFile, kappas: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"'\.\[cluster\]'"):
        obfuscate(source, tmp_path / "out", key, kappas=kappas, cluster="auto")
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_writes_the_bytes_of_one_worker(
    source: Path, key: KeyFile, kappas: Any, out: Path, tmp_path: Path
) -> None:
    """A cluster of this machine alone, joined by its address as one of several machines would be."""
    cluster_utils = pytest.importorskip(
        "ray.cluster_utils", reason="Ray is absent; run: pip install '.[cluster]'"
    )
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        options = {"kappas": kappas, "cluster": cluster.address, "shard_bytes": SMALL_SHARDS_BYTES}
        obfuscate(source, tmp_path / "out", key, **options)
    finally:
        cluster.shutdown()
    assert contents(tmp_path / "out") == contents(out)


MEMORY = """
import json, os, sys, threading, time
from pathlib import Path
from transom.obfuscation.keyfile import load_key, new_key
from transom.obfuscation.plain import open_source
from transom.obfuscation.keys import preset
from transom.obfuscation.writer import obfuscate

def resident_bytes():
    pids, total = [os.getpid()], 0
    for task in os.listdir("/proc/self/task"):
        pids += Path(f"/proc/self/task/{task}/children").read_text().split()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += 1024 * int(next(line.split()[1] for line in lines if line.startswith("Pss:")))
        except (OSError, StopIteration):
            pass
    return total

def peak_of(source, out, workers):
    peak, done = 0, threading.Event()
    def watch():
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, resident_bytes())
    watcher = threading.Thread(target=watch)
    watcher.start()
    plain = open_source(source)
    key = new_key(plain.fingerprint, plain.vocabulary, preset("paper", h=8))
    shard_bytes = 2**15 if source.name == "tiny" else None  # so that there, too, every worker starts
    obfuscate(plain, out, key, workers=workers, shard_bytes=shard_bytes)
    done.set()
    watcher.join()
    return peak

if __name__ == "__main__":
    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    peaks = [peak_of(folder / name, folder / f"{name}.out", workers) for name in ("tiny", "large")]
    print(json.dumps(peaks))
"""


def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path) -> None:
    """Calibration and products of large layers, less what imports take and a dozen key matrices."""
    tiny_llama(tmp_path / "tiny")
    tiny_llama(tmp_path / "large", intermediate_size=20_000, hidden_size=512, num_hidden_layers=1)
    largest_bytes = 4 * 20_000 * 512
    keys_bytes = 12 * 8 * (512 + 2 * 8) ** 2
    command = [sys.executable, "-c", MEMORY, str(tmp_path), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    imports_bytes, peak_bytes = json.loads(done.stdout)
    assert peak_bytes > imports_bytes
    assert (peak_bytes - imports_bytes - keys_bytes) / largest_bytes <= 3


@pytest.mark.parametrize(("budget_bytes", "at_once"), [(10, 1), (40, 2), (70, 3), (1000, 3)])
def test_a_pool_starts_what_fits_beside_the_running(
    monkeypatch: pytest.MonkeyPatch, budget_bytes: int, at_once: int
) -> None:
    running, sums, lock = list[int](), list[tuple[int, int]](), threading.Lock()

    def write(shard: Shard) -> str:
        with lock:
            running.append(shard.peak_bytes)
            sums.append((len(running), sum(running)))
        time.sleep(0.05)
        with lock:
            running.remove(shard.peak_bytes)
        return shard.file

    monkeypatch.setattr(pool, "_write", write)
    shards = [Shard(str(i), (), 20) for i in range(9)]
    with ThreadPoolExecutor(3) as threads:
        done = list(pool._schedule(threads, shards, 3, budget_bytes))  # type: ignore[arg-type]
    assert sorted(done) == [shard.file for shard in shards]
    assert max(count for count, _ in sums) == at_once
    assert max(total for _, total in sums) <= max(budget_bytes, 20)


def test_a_key_opens_nothing_it_was_not_made_for(
    source: Path, key: KeyFile, out: Path, tmp_path: Path
) -> None:
    """The output under another token map is noise: the wrong key decodes nothing."""
    stored(key, tmp_path)
    right, wrong = load_key(tmp_path / "key"), new_key(key.source, key.vocabulary, key.settings)
    ids_BT = torch.arange(24)[None]
    plain_BT = logits(source, ids_BT).argmax(-1)
    agreements = []
    for one in (right, wrong):
        tau_V = torch.from_numpy(token_map(one.secret, one.vocabulary))
        hidden_BT = logits(out, tau_V[ids_BT])[..., tau_V].argmax(-1)
        agreements.append(float((hidden_BT == plain_BT).float().mean()))
    assert agreements[0] > 0.25  # of 399 ids; a tiny model feels the norms' constants
    assert agreements[1] < 0.2
