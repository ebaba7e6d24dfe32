"""The owner's keys and the manifest: what is signed, who may read it, and every way it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from transom.enclave.manifest import (
    MANIFEST_FILE,
    SIGNATURE_DOMAIN,
    SIGNATURE_FILE,
    Manifest,
    Shard,
    client_folder,
    load_manifest,
    tokenizer_digest,
)
from transom.enclave.owner import Owner, load_owner_key
from transom.enclave.policy import Rule
from transom.errors import BundleError, MisconfiguredError
from transom.net.pin import format_pin

BUNDLE = "0123456789abcdef" * 2
FILES = {"tokenizer.json": "11" * 32, "tokenizer_config.json": "22" * 32}
SNP = Rule("snp", {"measurement": "ab" * 48}, min_svn=7, advisories=("A-1",))
MANIFEST = Manifest(
    bundle=BUNDLE,
    model="a model",
    production=True,
    rows=5,
    width=4,
    dtype="BF16",
    shards=(Shard("e-1", 0, 3, "33" * 32, 12 + 24 + 16), Shard("e-2", 3, 5, "44" * 32, 12 + 16 + 16)),
    files=FILES,
    tokenizer_sha256=tokenizer_digest(FILES),
    policy_sha256="55" * 32,
    rules=(SNP,),
    server_pins=(format_pin(bytes(32)),),
    extraction_share=0.25,
    created="2026-01-02T03:04:05+00:00",
)


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Owner:
    return Owner(tmp_path_factory.mktemp("keys") / "owner")


def write(folder: Path, owner: Owner, raw: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST_FILE).write_bytes(raw)
    (folder / SIGNATURE_FILE).write_bytes(owner.sign(SIGNATURE_DOMAIN + raw))
    return folder


def test_a_signed_manifest_comes_back_equal(tmp_path: Path, owner: Owner) -> None:
    write(tmp_path / "client", owner, MANIFEST.to_bytes())
    for folder in (tmp_path, tmp_path / "client"):
        assert load_manifest(folder, owner.public_key) == MANIFEST
    assert client_folder(tmp_path) == client_folder(tmp_path / "client") == tmp_path / "client"
    public = load_owner_key(owner.folder / "owner.pub")
    assert load_manifest(tmp_path, public).sha256 == MANIFEST.sha256


def test_a_development_manifest_may_have_no_rules(tmp_path: Path, owner: Owner) -> None:
    plain = replace(MANIFEST, production=False, rules=(), server_pins=())
    assert load_manifest(write(tmp_path, owner, plain.to_bytes()), owner.public_key) == plain


def test_every_flipped_bit_is_refused(tmp_path: Path, owner: Owner) -> None:
    write(tmp_path, owner, MANIFEST.to_bytes())
    for name in (MANIFEST_FILE, SIGNATURE_FILE):
        path, raw = tmp_path / name, (tmp_path / name).read_bytes()
        for at in range(len(raw)):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
            with pytest.raises(BundleError, match="not signed by this owner's key"):
                load_manifest(tmp_path, owner.public_key)
        path.write_bytes(raw)
    assert load_manifest(tmp_path, owner.public_key) == MANIFEST


@pytest.mark.parametrize("name", [MANIFEST_FILE, SIGNATURE_FILE])
@pytest.mark.parametrize("change", [lambda raw: b"", lambda raw: raw[:-1], lambda raw: raw + b"\n", None])
def test_a_cut_grown_or_missing_file_is_refused(
    tmp_path: Path, owner: Owner, name: str, change: Callable[[bytes], bytes] | None
) -> None:
    path = write(tmp_path, owner, MANIFEST.to_bytes()) / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BundleError):
        load_manifest(tmp_path, owner.public_key)


def test_another_owners_signature_is_refused(tmp_path: Path, owner: Owner) -> None:
    write(tmp_path / "bundle", Owner(tmp_path / "other"), MANIFEST.to_bytes())
    with pytest.raises(BundleError, match="not signed by this owner's key"):
        load_manifest(tmp_path / "bundle", owner.public_key)


def test_a_signature_without_the_domain_is_refused(tmp_path: Path, owner: Owner) -> None:
    write(tmp_path, owner, MANIFEST.to_bytes())
    (tmp_path / SIGNATURE_FILE).write_bytes(owner.sign(MANIFEST.to_bytes()))
    with pytest.raises(BundleError):
        load_manifest(tmp_path, owner.public_key)


def test_an_oversized_manifest_is_not_read(tmp_path: Path, owner: Owner) -> None:
    write(tmp_path, owner, b" " * (4 * 2**20 + 1))
    with pytest.raises(BundleError, match="more than"):
        load_manifest(tmp_path, owner.public_key)


FIRST, SECOND = MANIFEST.shards
INCONSISTENT: dict[str, dict[str, Any]] = {
    "bundle is a path": {"bundle": "../../../../etc/passwd/aaaaaaaaa"},
    "empty model": {"model": ""},
    "control characters": {"model": "a\x1b[2Jb"},
    "hash": {"policy_sha256": "5" * 63},
    "shard hash": {"shards": (replace(FIRST, sha256="Z" * 64), SECOND)},
    "shards out of order": {"shards": (SECOND, FIRST)},
    "a shard twice": {"shards": (FIRST, FIRST)},
    "a gap": {"shards": (replace(FIRST, stop=2, size_bytes=12 + 16 + 16), SECOND)},
    "rows are missing": {"shards": (FIRST,)},
    "no shard": {"shards": ()},
    "wrong size": {"shards": (replace(FIRST, size_bytes=12), SECOND)},
    "an empty shard": {"shards": (replace(FIRST, stop=0, size_bytes=28), SECOND)},
    "a path": {"shards": (replace(FIRST, file="../e-1"), SECOND)},
    "an absolute path": {"shards": (replace(FIRST, file="/e-1"), SECOND)},
    "the manifest itself": {"shards": (replace(FIRST, file=MANIFEST_FILE), SECOND)},
    "dtype": {"dtype": "F64"},
    "no rows": {"rows": 0},
    "no width": {"width": -4},
    "tokenizer": {"files": FILES | {"tokenizer.json": "99" * 32}},
    "another tokenizer file": {"files": FILES | {"chat_template.jinja": "99" * 32}},
    "a file is a folder": {
        "files": {"..": "99" * 32},
        "tokenizer_sha256": tokenizer_digest({"..": "99" * 32}),
    },
    "a pin": {"server_pins": ("sha256//AAAA",)},
    "production without rules": {"rules": ()},
    "production for a TPM": {
        "rules": (SNP, Rule("tpm2", {"pcrs": "sha256:0", "pcr_digest": "aa", "attestation_key": "bb"}))
    },
    "production for development evidence": {"rules": (SNP, Rule("insecure-dev"))},
    "production for a debug enclave": {"rules": (replace(SNP, debug=True),)},
    "a rule in capitals": {"rules": (replace(SNP, registers={"measurement": "AB" * 48}),)},
    "a rule without a measurement": {"rules": (replace(SNP, registers={}),)},
}


@pytest.mark.parametrize("change", INCONSISTENT.values(), ids=INCONSISTENT)
def test_inconsistent_values_are_refused_even_when_signed(
    tmp_path: Path, owner: Owner, change: dict[str, Any]
) -> None:
    write(tmp_path, owner, replace(MANIFEST, **change).to_bytes())
    with pytest.raises(BundleError, match="signed but unusable"):
        load_manifest(tmp_path, owner.public_key)


def test_every_inconsistency_is_told_at_once(tmp_path: Path, owner: Owner) -> None:
    wrong: dict[str, Any] = {"rows": 0, "dtype": "F64", "shards": (replace(FIRST, sha256=""),)}
    raw = replace(MANIFEST, **wrong).to_bytes()
    with pytest.raises(BundleError, match=r"rows must .*dtype must .*shards\[0\]\.sha256 must"):
        load_manifest(write(tmp_path, owner, raw), owner.public_key)


def edited(**changes: Any) -> bytes:
    value = json.loads(MANIFEST.to_bytes())
    value = {key: entry for key, entry in (value | changes).items() if entry is not ...}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


MALFORMED = {
    "not JSON": b"{",
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b"\xff",
    "deep": b"[" * 100_000,
    "spaces": json.dumps(json.loads(MANIFEST.to_bytes()), sort_keys=True).encode(),
    "unsorted": json.dumps(dict(reversed(json.loads(MANIFEST.to_bytes()).items()))).encode(),
    "another format": edited(format="transom-bundle/2"),
    "no format": edited(format=...),
    "an unknown key": edited(extra=1),
    "a missing key": edited(created=...),
    "rows is text": edited(rows="5"),
    "rows is a fraction": edited(rows=5.0),
    "production is a number": edited(production=1),
    "created is null": edited(created=None),
    "a shard's row is a fraction": edited(shards=[*(vars(FIRST) | {"start": 0.0}, vars(SECOND))]),
    "shards is null": edited(shards=None),
    "a shard has an unknown key": edited(shards=[{"file": "e-1", "x": 1}]),
    "rules is an object": edited(rules={}, production=False),
    "rules is text": edited(rules="snp"),
    "pins is text": edited(server_pins="sha256//"),
    "files is a list": edited(files=["tokenizer.json"]),
    "a hash is a number": edited(policy_sha256=5),
    "bundle is a number": edited(bundle=5),
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED)
def test_malformed_bytes_are_refused_even_when_signed(tmp_path: Path, owner: Owner, raw: bytes) -> None:
    with pytest.raises(BundleError, match="signed but unusable"):
        load_manifest(write(tmp_path, owner, raw), owner.public_key)


def test_the_unedited_bytes_are_canonical() -> None:
    assert edited() == MANIFEST.to_bytes()


def test_tokenizer_hashes_depend_on_names_and_contents() -> None:
    other = {
        "tokenizer.json": FILES["tokenizer_config.json"],
        "tokenizer_config.json": FILES["tokenizer.json"],
    }
    variants = [FILES, other, {}, {"tokenizer.json": "11" * 32}, {"tokenizer.jso": "11" * 32}]
    assert len({tokenizer_digest(files) for files in variants}) == len(variants)
    assert tokenizer_digest(FILES) == tokenizer_digest(dict(reversed(FILES.items())))


def test_keys_are_made_once_and_are_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "owner"
    first = Owner(folder)
    first.keep_data_key(BUNDLE, b"k" * 32)
    again = Owner(folder, create=False)
    assert again.sign(b"text") == first.sign(b"text")
    assert again.data_key(BUNDLE) == b"k" * 32
    secret = (folder / "signing.key", folder / "keys" / f"{BUNDLE}.key")
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "keys")} == {0o700}
    assert sorted(path.name for path in folder.iterdir()) == ["keys", "owner.pub", "signing.key"]


def test_two_first_uses_at_once_agree_on_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        owners = list(pool.map(lambda _: Owner(tmp_path / "owner"), range(16)))
    assert len({owner.sign(b"text") for owner in owners}) == 1
    load_owner_key(tmp_path / "owner" / "owner.pub").verify(owners[0].sign(b"text"), b"text")
    assert sorted(path.name for path in (tmp_path / "owner").iterdir()) == ["owner.pub", "signing.key"]


def test_owner_pub_is_restored_but_a_lost_signing_key_is_not_replaced(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    (tmp_path / "owner.pub").unlink()
    Owner(tmp_path)
    load_owner_key(tmp_path / "owner.pub").verify(owner.sign(b"text"), b"text")
    (tmp_path / "signing.key").unlink()
    with pytest.raises(MisconfiguredError, match=r"but no signing\.key"):
        Owner(tmp_path)


def test_a_folder_without_keys_is_an_error_where_none_are_made(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="cannot read"):
        Owner(tmp_path / "typo", create=False)
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("name", ["signing.key", f"keys/{BUNDLE}.key"])
def test_keys_that_others_may_read_are_refused(tmp_path: Path, name: str) -> None:
    Owner(tmp_path).keep_data_key(BUNDLE, b"k" * 32)
    (tmp_path / name).chmod(0o640)
    with pytest.raises(MisconfiguredError, match="chmod 600"):
        Owner(tmp_path).data_key(BUNDLE)


@pytest.mark.parametrize("name", ["", "../signing", BUNDLE[:-1], BUNDLE.upper(), BUNDLE + "\n", "ff" * 16])
def test_unknown_and_impossible_bundles_have_no_key(tmp_path: Path, name: str) -> None:
    owner = Owner(tmp_path)
    owner.keep_data_key(BUNDLE, b"k" * 32)
    with pytest.raises(BundleError):
        owner.data_key(name)


def test_a_data_key_is_never_overwritten_and_a_cut_one_is_refused(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    owner.keep_data_key(BUNDLE, b"k" * 32)
    with pytest.raises(MisconfiguredError, match="cannot write"):
        owner.keep_data_key(BUNDLE, b"j" * 32)
    assert owner.data_key(BUNDLE) == b"k" * 32
    (tmp_path / "keys" / f"{BUNDLE}.key").write_bytes(b"k" * 31)
    with pytest.raises(MisconfiguredError, match="31 bytes"):
        owner.data_key(BUNDLE)


def other_keys() -> dict[str, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    return {
        "private": key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none),
        "public": key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
        "rubbish": b"rubbish",
        "empty": b"",
    }


@pytest.mark.parametrize("kind", ["private", "public", "rubbish", "empty"])
def test_other_keys_are_refused_as_an_owners(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(other_keys()[kind])
    path.chmod(0o600)
    with pytest.raises(MisconfiguredError):
        load_owner_key(path)
    with pytest.raises(MisconfiguredError):
        Owner(tmp_path, create=False)


def test_an_absent_public_key_and_an_impossible_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match=r"owner\.pub"):
        load_owner_key(tmp_path / "absent.pub")
    (tmp_path / "file").write_text("")
    with pytest.raises(MisconfiguredError, match="cannot make the folder"):
        Owner(tmp_path / "file" / "owner")
