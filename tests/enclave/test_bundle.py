"""Bundles: nothing readable in client/, every change to it refused, and packing that fails leaves nothing."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_llama
from transom.enclave.bundle import copy_files, leftovers, pack, verify_bundle
from transom.enclave.manifest import MANIFEST_FILE, SIGNATURE_FILE, Manifest
from transom.enclave.owner import Owner, load_owner_key
from transom.enclave.policy import Rule
from transom.enclave.table import associated_data, open_table, seal
from transom.errors import BundleError, CheckpointError, MisconfiguredError, NotYetError
from transom.net.pin import format_pin
from transom.serving.tokenizer import ChatTokenizer, load_tokenizer

HASH = "5e" * 32
SHARD_BYTES = 8_000
SNP = Rule("snp", {"measurement": "ab" * 48})
TPM = Rule("tpm2", {"pcrs": "sha256:0", "pcr_digest": "aa", "attestation_key": "bb"})
MESSAGES = [("system", "Be brief."), ("user", "Où est la gare? <|im_end|> 4711\n\n😀"), ("assistant", "No")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Owner:
    return Owner(tmp_path_factory.mktemp("keys") / "owner")


def make(source: Path | str, out: Path, owner: Owner, **options: Any) -> Manifest:
    defaults = {"production": False, "rules": (), "policy_sha256": HASH, "shard_bytes": SHARD_BYTES}
    return pack(source, out, owner, **(defaults | options))


@pytest.fixture(scope="module")
def packed(source: Path, owner: Owner, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    out = tmp_path_factory.mktemp("packed") / "bundle"
    return out, make(source, out, owner)


@pytest.fixture
def bundle(packed: tuple[Path, Manifest], tmp_path: Path) -> tuple[Path, Manifest]:
    """A copy to break."""
    shutil.copytree(packed[0] / "client", tmp_path / "bundle" / "client")
    return tmp_path / "bundle", packed[1]


def weights(model: Any) -> np.ndarray:
    found: np.ndarray = model.get_input_embeddings().weight.numpy()
    return found


def same_tokenizer(first: ChatTokenizer, second: ChatTokenizer) -> bool:
    texts = ["", "Hello, world 123", "  two  spaces\n", "Ünï <|im_start|> 😀"]
    return (
        all(first.encode_text(text) == second.encode_text(text) for text in texts)
        and first.encode_chat(MESSAGES) == second.encode_chat(MESSAGES)
        and (first.eos_ids, first.vocab_size) == (second.eos_ids, second.vocab_size)
    )


# What a bundle is


def test_a_bundle_verifies_and_opens_to_the_models_rows(
    packed: tuple[Path, Manifest], source: Path, owner: Owner
) -> None:
    out, manifest = packed
    assert verify_bundle(out, load_owner_key(owner.folder / "owner.pub")) == manifest
    assert verify_bundle(out / "client", owner.public_key) == manifest
    assert len(manifest.shards) > 3
    table = open_table(out, manifest, owner.data_key(manifest.bundle))
    assert np.array_equal(table.rows(range(manifest.rows)), weights(load(source).model))


def test_the_client_half_has_the_sources_tokenizer_and_the_server_half_its_model(
    packed: tuple[Path, Manifest], source: Path
) -> None:
    out, manifest = packed
    assert same_tokenizer(load_tokenizer(out / "client"), load_tokenizer(source))
    server, original = load(out / "server").model.state_dict(), load(source).model.state_dict()
    assert all((server[name] == value).all() for name, value in original.items())
    assert same_tokenizer(load_tokenizer(out / "server"), load_tokenizer(source))
    assert manifest.model == source.name


def test_neither_key_nor_rows_are_in_the_client_half(packed: tuple[Path, Manifest], owner: Owner) -> None:
    out, manifest = packed
    key = owner.data_key(manifest.bundle)
    client, server = (
        b"\0".join(path.read_bytes() for path in sorted((out / half).iterdir()))
        for half in ("client", "server")
    )
    table = open_table(out, manifest, key)
    rows = table.rows(np.random.default_rng(0).choice(manifest.rows, 200, replace=False))
    assert all(row.tobytes() in server for row in rows)  # the search finds what is there
    assert not any(row.tobytes()[:16] in client for row in rows)
    for secret in (key, key.hex().encode(), (owner.folder / "signing.key").read_bytes()):
        assert secret not in client
        assert secret not in server


def test_each_packing_has_its_own_name_key_and_nonces(source: Path, owner: Owner, tmp_path: Path) -> None:
    first, second = make(source, tmp_path / "a", owner), make(source, tmp_path / "b", owner)
    assert first.bundle != second.bundle
    assert owner.data_key(first.bundle) != owner.data_key(second.bundle)
    files = [path for out in ("a", "b") for path in (tmp_path / out / "client").glob("*.enc")]
    assert len({path.read_bytes()[:12] for path in files}) == len(files)
    assert not {shard.sha256 for shard in first.shards} & {shard.sha256 for shard in second.shards}


def test_options_are_in_the_manifest(source: Path, owner: Owner, tmp_path: Path) -> None:
    pin, shares = format_pin(bytes(range(32))), list[float]()
    options = {"production": True, "rules": [SNP], "name": "published", "server_pins": [pin]}
    made = make(source, tmp_path / "out", owner, progress=shares.append, **options)
    assert (made.production, made.rules, made.server_pins) == (True, (SNP,), (pin,))
    assert (made.model, made.policy_sha256) == ("published", HASH)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) == len(made.shards)


def test_smollm2_from_gguf(tmp_path: Path, owner: Owner, smollm2: Path) -> None:
    made = pack("smollm2", tmp_path / "out", owner, production=False, rules=(), policy_sha256=HASH)
    assert (made.model, made.rows, made.width, made.dtype) == ("smollm2", 49152, 576, "F32")
    assert verify_bundle(tmp_path / "out", owner.public_key) == made
    original = load(smollm2).model
    table = open_table(tmp_path / "out", made, owner.data_key(made.bundle))
    assert table.rows(range(made.rows)).tobytes() == weights(original).tobytes()
    table.close()
    server, expected = load(tmp_path / "out" / "server").model.state_dict(), original.state_dict()
    assert server.keys() == expected.keys()
    assert all((server[name] == value).all() for name, value in expected.items())
    for half in ("client", "server"):
        assert same_tokenizer(load_tokenizer(tmp_path / "out" / half), load_tokenizer("smollm2"))


def test_packing_holds_a_few_shards_in_memory(tmp_path: Path, owner: Owner) -> None:
    wide = tiny_llama(tmp_path / "wide", hidden_size=2048, intermediate_size=8, num_hidden_layers=1)
    make(wide, tmp_path / "warm", owner)
    tracemalloc.start()
    try:
        made = make(wide, tmp_path / "out", owner, shard_bytes=100_000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    table_bytes = made.rows * made.width * 4
    assert peak_bytes < 4 * 100_000 < table_bytes / 8


# Changes to client/, each refused


def flips(size: int, shard: bool) -> list[int]:
    """Byte positions in every region: of a shard nonce, ciphertext and tag, else beginning, middle, end."""
    regions = [0, 11, 12, size // 2, size - 17, size - 16, size - 1] if shard else [0, size // 2, size - 1]
    return sorted(set(regions))


def test_a_flipped_bit_anywhere_is_refused(bundle: tuple[Path, Manifest], owner: Owner) -> None:
    folder, manifest = bundle
    names = sorted(path.name for path in (folder / "client").iterdir())
    assert {MANIFEST_FILE, SIGNATURE_FILE, "tokenizer.json", "tokenizer_config.json"} < set(names)
    for name in names:
        path = folder / "client" / name
        raw = path.read_bytes()
        for at in flips(len(raw), shard=name.endswith(".enc")):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
            with pytest.raises(BundleError):
                verify_bundle(folder, owner.public_key)
            if name.endswith(".enc"):
                with pytest.raises(BundleError, match=name):
                    open_table(folder, manifest, owner.data_key(manifest.bundle))
        path.write_bytes(raw)
    assert verify_bundle(folder, owner.public_key) == manifest


def swap(client: Path) -> None:
    first, second = client / "embedding-00001.enc", client / "embedding-00002.enc"
    first_bytes = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(first_bytes)


def cut(client: Path, name: str, size: int) -> None:
    os.truncate(client / name, (client / name).stat().st_size + size)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a shard loses a byte": lambda client: cut(client, "embedding-00002.enc", -1),
    "a shard gains a byte": lambda client: cut(client, "embedding-00002.enc", 1),
    "a shard is empty": lambda client: (client / "embedding-00002.enc").write_bytes(b""),
    "shards are reordered": swap,
    "a shard is missing": lambda client: (client / "embedding-00001.enc").unlink(),
    "a shard is a folder": lambda client: (
        (client / "embedding-00001.enc").unlink(),
        (client / "embedding-00001.enc").mkdir(),
    ),
}
STRANGERS: dict[str, Callable[[Path], object]] = {
    "a shard too many": lambda client: shutil.copy(
        client / "embedding-00001.enc", client / "embedding-00099.enc"
    ),
    "a planted chat template": lambda client: (client / "chat_template.jinja").write_text("{{ 1 }}"),
    "a folder": lambda client: (client / "folder").mkdir(),
    "the tokenizer is missing": lambda client: (client / "tokenizer.json").unlink(),
    "the tokenizer is cut": lambda client: cut(client, "tokenizer.json", -1),
    "the tokenizer grew": lambda client: cut(client, "tokenizer.json", 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_shards_are_refused(
    bundle: tuple[Path, Manifest], owner: Owner, damage: Callable[[Path], object]
) -> None:
    folder, manifest = bundle
    damage(folder / "client")
    with pytest.raises(BundleError):
        verify_bundle(folder, owner.public_key)
    with pytest.raises(BundleError):
        open_table(folder, manifest, owner.data_key(manifest.bundle))


@pytest.mark.parametrize("damage", STRANGERS.values(), ids=STRANGERS)
def test_other_and_missing_files_are_refused(
    bundle: tuple[Path, Manifest], owner: Owner, damage: Callable[[Path], object]
) -> None:
    damage(bundle[0] / "client")
    with pytest.raises(BundleError):
        verify_bundle(bundle[0], owner.public_key)


@pytest.mark.parametrize("name", [MANIFEST_FILE, SIGNATURE_FILE, "embedding-00002.enc"])
def test_files_of_another_bundle_of_the_same_owner_are_refused(
    bundle: tuple[Path, Manifest], source: Path, owner: Owner, tmp_path: Path, name: str
) -> None:
    make(source, tmp_path / "other", owner)
    shutil.copy(tmp_path / "other" / "client" / name, bundle[0] / "client" / name)
    with pytest.raises(BundleError):
        verify_bundle(bundle[0], owner.public_key)
    if name == MANIFEST_FILE:
        shutil.copy(tmp_path / "other" / "client" / SIGNATURE_FILE, bundle[0] / "client" / SIGNATURE_FILE)
        with pytest.raises(BundleError, match="is not the file the owner signed"):
            verify_bundle(bundle[0], owner.public_key)


def test_another_owners_key_is_refused(bundle: tuple[Path, Manifest], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not signed by this owner's key"):
        verify_bundle(bundle[0], Owner(tmp_path / "other").public_key)


@pytest.mark.parametrize("key", [b"", b"k" * 16, b"k" * 31, b"k" * 32, b"k" * 33], ids=len)
def test_a_wrong_data_key_opens_nothing_and_is_not_shown(packed: tuple[Path, Manifest], key: bytes) -> None:
    with pytest.raises(BundleError) as caught:
        open_table(*packed, key)
    assert "kkk" not in str(caught.value)


# The tag by itself: what a shard is bound to even where its hash is right

Change = Callable[[Path, Manifest], Manifest]


def rehashed(folder: Path, manifest: Manifest, *names: str) -> Manifest:
    """The manifest with the true hashes of changed files, as if the owner had signed them."""
    shards = tuple(
        replace(shard, sha256=hashlib.sha256((folder / "client" / shard.file).read_bytes()).hexdigest())
        if shard.file in names
        else shard
        for shard in manifest.shards
    )
    return replace(manifest, shards=shards)


def flipped(at: int) -> Change:
    def change(folder: Path, manifest: Manifest) -> Manifest:
        path = folder / "client" / manifest.shards[1].file
        raw = bytearray(path.read_bytes())
        raw[at] ^= 1
        path.write_bytes(raw)
        return rehashed(folder, manifest, path.name)

    return change


def reordered(folder: Path, manifest: Manifest) -> Manifest:
    swap(folder / "client")
    return rehashed(folder, manifest, "embedding-00001.enc", "embedding-00002.enc")


def shortened(folder: Path, manifest: Manifest) -> Manifest:
    last = manifest.shards[-1]
    return replace(manifest, shards=manifest.shards[:-1], rows=last.start)


BOUND: dict[str, Change] = {
    "nonce": flipped(0),
    "ciphertext": flipped(100),
    "tag": flipped(-1),
    "order": reordered,
    "count": shortened,
    "bundle": lambda _, manifest: replace(manifest, bundle="ab" * 16),
    "model": lambda _, manifest: replace(manifest, model="another"),
    "dtype": lambda _, manifest: replace(manifest, dtype="F16", width=manifest.width * 2),
    "tokenizer": lambda _, manifest: replace(manifest, tokenizer_sha256="00" * 32),
    "width": lambda _, manifest: replace(
        manifest,
        width=manifest.width // 2,
        rows=manifest.rows * 2,
        shards=tuple(replace(s, start=s.start * 2, stop=s.stop * 2) for s in manifest.shards),
    ),
}


@pytest.mark.parametrize("change", BOUND.values(), ids=BOUND)
def test_the_tag_binds_a_shard_to_its_place(
    bundle: tuple[Path, Manifest], owner: Owner, change: Change
) -> None:
    folder, manifest = bundle
    with pytest.raises(BundleError, match="does not open"):
        open_table(folder, change(folder, manifest), owner.data_key(manifest.bundle))


def test_each_field_of_a_place_is_in_the_associated_data(packed: tuple[Path, Manifest]) -> None:
    manifest = packed[1]
    first = manifest.shards[0]
    others = [
        replace(manifest, bundle="ab" * 16),
        replace(manifest, model="another"),
        replace(manifest, width=manifest.width + 1),
        replace(manifest, dtype="BF16"),
        replace(manifest, tokenizer_sha256="00" * 32),
        replace(manifest, shards=manifest.shards[:-1]),
        replace(manifest, shards=(replace(first, start=1), *manifest.shards[1:])),
        replace(manifest, shards=(replace(first, stop=1), *manifest.shards[1:])),
    ]
    again = replace(manifest, shards=(first, first, *manifest.shards[2:]))  # differs in the index alone
    places = [associated_data(one, 0) for one in (manifest, *others)] + [associated_data(again, 1)]
    assert len(set(places)) == len(places)
    assert associated_data(replace(manifest, created="", rules=(SNP,)), 0) == places[0]


def test_sealing_is_what_opening_undoes(bundle: tuple[Path, Manifest], owner: Owner) -> None:
    """A shard sealed anew, with other rows, opens to those rows: the tests above fail by the tag alone."""
    folder, manifest = bundle
    shard, key = manifest.shards[1], owner.data_key(manifest.bundle)
    rows = bytes((shard.stop - shard.start) * manifest.width * 4)
    path = folder / "client" / shard.file
    path.write_bytes(b"".join(seal(rows, key, associated_data(manifest, 1))))
    with pytest.raises(BundleError, match="is not the file the owner signed"):
        open_table(folder, manifest, key)
    table = open_table(folder, rehashed(folder, manifest, shard.file), key)
    assert not table.rows(range(shard.start, shard.stop)).any()


def test_tokenizer_files_are_checked_as_they_are_copied(source: Path, owner: Owner, tmp_path: Path) -> None:
    manifest = make(source, tmp_path / "out", owner)
    folder, into = tmp_path / "out" / "client", tmp_path / "own"
    into.mkdir()
    copy_files(tmp_path / "out", manifest, into)
    assert {path.name: path.read_bytes() for path in into.iterdir()} == {
        name: (folder / name).read_bytes() for name in manifest.files
    }
    swapped = folder / "tokenizer.json"
    swapped.write_bytes(swapped.read_bytes() + b" ")
    with pytest.raises(BundleError, match="not the file the owner signed"):
        copy_files(tmp_path / "out", manifest, into)
    swapped.unlink()
    with pytest.raises(BundleError, match="fetch it again"):
        copy_files(tmp_path / "out", manifest, into)


def test_production_names_the_engines_key(source: Path, owner: Owner, tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="engine's TLS key"):
        make(source, tmp_path / "out", owner, production=True, rules=(SNP,))
    pins = ["sha256//" + "A" * 43 + "="]
    assert make(source, tmp_path / "out", owner, production=True, rules=(SNP,), server_pins=pins).production


# What is not packed


@pytest.mark.parametrize(
    "rules", [(), (TPM,), (Rule("insecure-dev"),), (SNP, TPM), (replace(SNP, debug=True),)], ids=len
)
def test_production_refuses_weak_rules(
    source: Path, owner: Owner, tmp_path: Path, rules: tuple[Rule, ...]
) -> None:
    with pytest.raises(MisconfiguredError, match="production"):
        make(source, tmp_path / "out", owner, production=True, rules=rules)
    assert list(tmp_path.iterdir()) == []
    made = make(source, tmp_path / "out", owner, rules=rules)
    assert made.rules == rules
    assert not made.production


@pytest.mark.parametrize(
    "options",
    [
        {"policy_sha256": "5e"},
        {"policy_sha256": "G" * 64},
        {"name": ""},
        {"name": "a\nb"},
        {"server_pins": ["sha256//AA=="]},
        {"extraction_share": 0.0},
        {"extraction_share": 1.5},
        {"shard_bytes": 0},
        {"shard_bytes": 2**31},
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_anything_is_written(
    source: Path, owner: Owner, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(MisconfiguredError):
        make(source, tmp_path / "out", owner, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def broken(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "broken"))


def test_an_unknown_architecture_is_not_guessed(broken: Path, owner: Owner, tmp_path: Path) -> None:
    config = broken / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llama"', '"model_type": "gemma"'))
    with pytest.raises(NotYetError, match="gemma"):
        make(broken, tmp_path / "out", owner)
    assert list(tmp_path.iterdir()) == [broken]


def test_an_unknown_dtype_is_not_guessed(broken: Path, owner: Owner, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(broken / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].astype(np.int8)
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(NotYetError, match="I8"):
        make(broken, tmp_path / "out", owner)
    assert list(tmp_path.iterdir()) == [broken]


def another_tokenizer(folder: Path) -> None:
    """A word more than the embedding has rows."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["oneword"])
    tokenizer.save(str(folder / "tokenizer.json"))


BREAK: dict[str, Callable[[Path], object]] = {
    "tokenizer": another_tokenizer,
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "cut weights": lambda folder: cut(folder, "model.safetensors", -1),
    "no embedding": lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
}


@pytest.mark.parametrize("damage", BREAK.values(), ids=BREAK)
def test_a_broken_source_is_refused_and_leaves_nothing(
    broken: Path, owner: Owner, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    damage(broken)
    with pytest.raises(CheckpointError):
        make(broken, tmp_path / "out", owner)
    assert list(tmp_path.iterdir()) == [broken]


# Disks and interruptions


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_out_is_left_alone(source: Path, owner: Owner, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    {"folder": out.mkdir, "file": out.touch, "dangling link": lambda: out.symlink_to("nowhere")}[kind]()
    with pytest.raises(MisconfiguredError, match="exists"):
        make(source, out, owner)
    assert list(tmp_path.iterdir()) == [out]


def test_an_impossible_folder_is_an_error(source: Path, owner: Owner, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MisconfiguredError, match="cannot write the bundle"):
        make(source, tmp_path / "file" / "out", owner)


def test_an_interrupted_packing_leaves_nothing(source: Path, owner: Owner, tmp_path: Path) -> None:
    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    keys = sorted((owner.folder / "keys").glob("*"))
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "out", owner, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    assert sorted((owner.folder / "keys").glob("*")) == keys


CHILD = """
import sys, time
from pathlib import Path
from transom.enclave.bundle import pack
from transom.enclave.owner import Owner
from transom.errors import TransomError
source, out, owner, wait, shard_bytes = sys.argv[1:]
def progress(share):
    print(share, flush=True)
    if wait == "wait":
        time.sleep(300)
try:
    pack(source, out, Owner(owner), production=False, rules=(), policy_sha256="5e" * 32,
         shard_bytes=int(shard_bytes), progress=progress)
except TransomError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def child(source: Path, out: Path, owner: Owner, wait: str = "", shard_bytes: int = SHARD_BYTES) -> list[str]:
    arguments = [source, out, owner.folder, wait, shard_bytes]
    return [sys.executable, "-c", CHILD, *map(str, arguments)]


def test_a_killed_packing_leaves_no_bundle_and_the_next_one_works(
    source: Path, owner: Owner, tmp_path: Path
) -> None:
    out, keys = tmp_path / "out", sorted((owner.folder / "keys").glob("*"))
    with subprocess.Popen(child(source, out, owner, "wait"), stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline()  # it is in the middle of its shards
        running.send_signal(signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    assert not out.exists()
    (left,) = leftovers(out)
    assert list(tmp_path.iterdir()) == [left]
    assert sorted((owner.folder / "keys").glob("*")) == keys
    with pytest.raises(BundleError):
        verify_bundle(left, owner.public_key)
    made = make(source, out, owner)
    assert verify_bundle(out, owner.public_key) == made
    assert leftovers(out) == [left]


def test_a_file_size_limit_is_a_clean_error(source: Path, owner: Owner, tmp_path: Path) -> None:
    most_bytes = (source / "tokenizer.json").stat().st_size  # the shard of all rows is larger

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    command = child(source, tmp_path / "out", owner, shard_bytes=10**6)
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert (done.returncode, "File too large" in done.stderr) == (MisconfiguredError.exit_code, True)
    assert list(tmp_path.iterdir()) == []
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert (tmp_path / "out" / "client" / "embedding-00001.enc").stat().st_size > most_bytes


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small memory file system with the given options. Skips where that is not allowed."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mounted = False

    def do(options: str) -> Path:
        nonlocal mounted
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, check=False) if shutil.which("mount") else None
        if done is None or done.returncode:
            pytest.skip("mounting a tmpfs is not allowed here (it needs root)")
        mounted = True
        return folder

    yield do
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def on_disk_bytes(*paths: Path) -> int:
    """In pages, as a tmpfs counts."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in paths)


@pytest.mark.parametrize("room", ["for half of the model", "for some shards"])
def test_a_full_disk_is_a_clean_error(
    source: Path, owner: Owner, mount: Callable[[str], Path], room: str
) -> None:
    """The server half is copied here: another file system takes no hard links."""
    server_bytes = on_disk_bytes(*source.iterdir())
    tokenizer_bytes = on_disk_bytes(*source.glob("tokenizer*"), source / "generation_config.json")
    enough = room == "for some shards"
    folder = mount(f"size={server_bytes + tokenizer_bytes + 5 * 4096 if enough else server_bytes // 2}")
    shares = list[float]()
    with pytest.raises(MisconfiguredError, match="No space left"):
        make(source, folder / "out", owner, progress=shares.append)
    assert bool(shares) == enough
    assert list(folder.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=10m", str(folder)], check=True)
    made = make(source, folder / "out", owner)
    assert verify_bundle(folder / "out", owner.public_key) == made


def test_a_full_disk_while_a_gguf_is_converted_is_a_clean_error(
    owner: Owner, mount: Callable[[str], Path]
) -> None:
    folder = mount("size=8m")
    with pytest.raises(MisconfiguredError, match="No space left"):
        make("smollm2", folder / "out", owner)
    assert list(folder.iterdir()) == []


def test_an_unwritable_folder_is_a_clean_error(
    source: Path, owner: Owner, mount: Callable[[str], Path]
) -> None:
    with pytest.raises(MisconfiguredError, match="Read-only file system"):
        make(source, mount("ro,size=64k") / "out", owner)


def test_prompts_are_the_sources_wherever_it_keeps_their_parts(
    source: Path, owner: Owner, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "source"))
    template = "{{ bos_token }}[{{ messages[0].role }}]{{ messages[0].content }}{{ eos_token }}"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text(
        '{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}'
    )
    out = tmp_path / "out"
    manifest = make(folder, out, owner)
    copied = tmp_path / "copied"
    copied.mkdir()
    copy_files(out, manifest, copied)
    for place in (copied, out / "client", out / "server"):
        encoded = load_tokenizer(place).encode_chat([("user", "hi")])
        assert encoded.text == "<|im_start|>[user]hi<|im_end|>"
        assert encoded == load_tokenizer(folder).encode_chat([("user", "hi")])
