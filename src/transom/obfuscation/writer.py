"""Obfuscate a checkpoint: read each tensor once, transform it, write it once; whole or absent at the end.

    OUT.partial/            while it runs: shards as they are finished, and progress/ with a record of each
    OUT/                    config.json, model-*.safetensors, the placeholder tokenizer, transom-card.json

A run that was killed leaves OUT.partial, and `resume` goes on with it: same source, key and settings give the
same bytes as a run that was not killed, because every matrix is drawn again from the secret and a label.
Threat model: everything in OUT goes to the host, so neither the key nor the plain vocabulary may lie there.
Does not protect: memory of the client's machine, or a swap device; a host that has the base model (see the
card); what the token ids of the requests show.
Source: Lin et al., arXiv 2603.01499, the offline phase.

Memory: about three times the largest tensor in float32, summed over workers, plus keys: what all keys share,
once for all workers, and one key in each. A GGUF is an exception: it is dequantised in memory first.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transom.checkpoint.load import check_device
from transom.checkpoint.source import INDEX_FILE, read_json
from transom.errors import MisconfiguredError
from transom.files import file_sha256, sync, whole
from transom.obfuscation.card import CARD_FILE, Card, verify_card, write_card
from transom.obfuscation.client import host_files
from transom.obfuscation.keyfile import KeyFile
from transom.obfuscation.keys import Space, token_map
from transom.obfuscation.measure import measure_kappas
from transom.obfuscation.plain import Plain, open_source
from transom.obfuscation.plan import check_names, plan, target_config
from transom.obfuscation.pool import PROGRESS, Work, give_back_memory, make_space, write_all, write_all_ray
from transom.obfuscation.shards import Entry, Shard, locate, plan_shards

_SHARD_BYTES, _MOST_SHARDS = 64 * 2**20, 400
_STATE_FILE = "state.json"
Kappas = Mapping[str, float]


@dataclass(frozen=True)
class _Run:
    """A source under a key, and the folder that is worked in."""

    plain: Plain
    key: KeyFile
    partial: Path


def obfuscate(
    source: str | Path | Plain,
    out: str | Path,
    key: KeyFile,
    *,
    kappas: Mapping[str, float] | None = None,
    workers: int = 1,
    device: str = "cpu",
    resume: bool = False,
    cluster: str | None = None,
    shard_bytes: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Card:
    """Write the obfuscated checkpoint `out` under the key's settings, and its card without findings.

    `kappas` are the norms' weights; without them they are measured, which a resumed run does not repeat.
    `workers` share the CPU; on another `device`, and on a Ray `cluster` (its address), they do not count.
    `shard_bytes` of source go to a file, which is what a killed run loses at most per worker; by default
    64 MiB, or a 400th of the whole. `progress` gets the share of shards done.
    Raises MisconfiguredError (another checkpoint's key, an existing `out`, the rest of a killed run without
    `resume`, a full disk), what `open_source` raises, and MissingExtraError. Then `out` is absent, and
    OUT.partial, once it has a shard, waits for `resume`.
    """
    plain = source if isinstance(source, Plain) else open_source(source)
    out = Path(out)
    key.require_source(plain.fingerprint)
    refuse_taken(out, resume)
    if workers < 1:
        raise MisconfiguredError(f"workers must be at least 1, got {workers}")
    check_device(device)
    try:
        with _partial_folder(out) as partial:
            run = _Run(plain, key, partial)
            card = _finished(run)
            if card is None:
                rest = _rest(run)
                entries, shards = _planned_shards(run, shard_bytes)
                work, space = _work(run, entries, shards, kappas, device)
                left = [shard for shard in shards if not _is_done(partial, shard)]
                if cluster is None:
                    names = write_all(work, left, workers if device == "cpu" else 1, space)
                else:
                    names = write_all_ray(work, left, cluster)
                for number, _ in enumerate(names, len(shards) - len(left) + 1):
                    if progress:
                        progress(number / len(shards))
                card = _write_rest(run, shards, rest)
            _publish(partial, out)
            return card
    except OSError as error:
        raise _cannot_write(out, error) from None


def _planned_shards(run: _Run, shard_bytes: int | None) -> tuple[dict[str, Entry], tuple[Shard, ...]]:
    entries = locate(_directory_of(run))
    tasks = plan(run.plain.config, run.key.settings, run.key.secret)
    check_names(tasks, entries, run.plain.config)
    size_bytes = sum(entry.size_bytes for entry in entries.values())
    return entries, plan_shards(tasks, entries, shard_bytes or max(_SHARD_BYTES, size_bytes // _MOST_SHARDS))


def _work(
    run: _Run, entries: Mapping[str, Entry], shards: tuple[Shard, ...], kappas: Kappas | None, device: str
) -> tuple[Work, Space]:
    """What workers need. The norms' weights are those of the run that is resumed, given, or measured now."""
    measured, config, key = _resumed(run, shards), run.plain.config, run.key
    space = make_space(key.secret, config, key.settings, entries)
    if measured is None:
        measured = measure_kappas(run.plain, space, entries) if kappas is None else kappas
        state = _state(run, shards) | {"kappas": dict(measured)}
        _put(run.partial / PROGRESS / _STATE_FILE, json.dumps(state).encode())
    give_back_memory()
    return Work(run.partial, entries, config, key.settings, measured, device, key.secret), space


def _put(path: Path, data: bytes) -> None:
    """Write a file of the working folder, which may be gone when the error is told. Raises OSError."""
    with whole(path, mode=0o644) as draft:
        draft.write_bytes(data)


def _cannot_write(out: Path, error: OSError) -> MisconfiguredError:
    kept = partial_path(out).exists()
    done = f". What is done lies in {partial_path(out)}; --resume goes on with it" if kept else ""
    return MisconfiguredError(
        f"cannot write {out} ({error.strerror}); free the disk or choose another folder{done}"
    )


def partial_path(out: Path) -> Path:
    """The folder that a run for `out` works in."""
    return out.with_name(f"{out.name}.partial")


def refuse_taken(out: Path, resume: bool) -> None:
    """Raises MisconfiguredError when `out` exists, or its working folder does and is not to be resumed."""
    if os.path.lexists(out):
        raise MisconfiguredError(f"{out} exists; give a new folder, or delete it first")
    if not resume and os.path.lexists(partial_path(out)):
        raise MisconfiguredError(
            f"{partial_path(out)} is left of a run that was killed, or still runs; go on with --resume, "
            "or delete it"
        )


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """The working folder, for this process alone. It is removed when a run fails before its first shard."""
    partial = partial_path(out)
    (partial / PROGRESS).mkdir(parents=True, exist_ok=True)
    lock = os.open(partial / PROGRESS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for rest in partial.glob("*.tmp"):
            rest.unlink()
        yield partial
    except BlockingIOError:
        raise MisconfiguredError(f"another run is writing {partial}; wait for it") from None
    except BaseException:
        if not any(partial.glob("model-*.safetensors")):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _directory_of(run: _Run) -> Path:
    """A folder of safetensors: the source itself, or a GGUF's dequantised weights, until the end."""
    if run.plain.loaded is None:
        return run.plain.found.path
    folder, draft = run.partial / PROGRESS / "plain", run.partial / PROGRESS / "plain.draft"
    if not folder.exists():
        from safetensors import SafetensorError

        shutil.rmtree(draft, ignore_errors=True)
        try:
            run.plain.loaded.model.save_pretrained(draft)
        except SafetensorError as error:
            raise OSError(0, f"the dequantised weights could not be written: {error}") from None
        draft.rename(folder)
    return folder


def _resumed(run: _Run, shards: tuple[Shard, ...]) -> Kappas | None:
    """The norms' weights of the run that is resumed, which must be this very one; None for a new run."""
    path = run.partial / PROGRESS / _STATE_FILE
    if not path.exists():  # nor may there be records, then
        for record in path.parent.glob("model-*"):
            record.unlink()
        return None
    before = read_json(path)
    measured: Kappas = before.pop("kappas", {})
    if before != _state(run, shards):
        raise MisconfiguredError(
            f"{run.partial} belongs to a run with another source, key or settings; delete it and start anew"
        )
    return measured


def _state(run: _Run, shards: tuple[Shard, ...]) -> dict[str, Any]:
    return {
        "source": run.plain.fingerprint,
        "public_key": run.key.public_key,
        "settings": dataclasses.asdict(run.key.settings),
        "shards": [shard.file for shard in shards],
    }


def _is_done(partial: Path, shard: Shard) -> bool:
    path, record = partial / shard.file, _record(partial, shard)
    return record.is_file() and path.is_file() and read_json(record)["sha256"] == file_sha256(path)


def _record(partial: Path, shard: Shard) -> Path:
    return partial / PROGRESS / f"{shard.file}.json"


def _rest(run: _Run) -> dict[str, bytes]:
    """The files beside the weights and their index, made before a tensor is read: they may be refused."""
    tau_V = token_map(run.key.secret, run.plain.vocabulary)
    config = target_config(run.plain.config, run.key.settings, tau_V)
    files = host_files(run.plain.found, run.plain.config, tau_V)
    return files | {"config.json": json.dumps(config, indent=2).encode()}


def _write_rest(run: _Run, shards: tuple[Shard, ...], rest: Mapping[str, bytes]) -> Card:
    """Everything beside the weights, none of which takes long enough to be resumed; at last the card."""
    plain, key, partial = run.plain, run.key, run.partial
    records = {shard.file: read_json(_record(partial, shard)) for shard in shards}
    weight_map = {name: file for file, record in records.items() for name in record["tensors"]}
    total_bytes = sum((partial / shard.file).stat().st_size for shard in shards)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    files = {**rest, INDEX_FILE: json.dumps(index, indent=2).encode()}
    for left in partial.iterdir():  # of a run that was killed in the midst of this
        if left.is_file() and left.name not in records:
            left.unlink()
    for name, data in files.items():
        _put(partial / name, data)
    outputs = {file: str(record["sha256"]) for file, record in records.items()}
    outputs |= {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    card = Card(
        model_type=str(plain.config["model_type"]),
        settings=dataclasses.asdict(key.settings),
        source=plain.fingerprint,
        vocabulary=plain.vocabulary,
        outputs=dict(sorted(outputs.items())),
    )
    write_card(partial, card, key)
    return card


def _finished(run: _Run) -> Card | None:
    """The card of a run that was killed between signing it, which is its last step, and moving the folder."""
    if not (run.partial / CARD_FILE).exists():
        return None
    try:
        card = verify_card(run.partial, run.key, beside=(PROGRESS,))
    except MisconfiguredError:
        return None
    wanted = (run.plain.fingerprint, dataclasses.asdict(run.key.settings))
    return card if (card.source, card.settings) == wanted else None


def _publish(partial: Path, out: Path) -> None:
    shutil.rmtree(partial / PROGRESS)
    sync(partial)
    partial.rename(out)
    sync(out.parent)
