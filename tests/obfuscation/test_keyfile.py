"""Key files: what is written is what is read, by its owner alone, and never anything else."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from transom.errors import MisconfiguredError
from transom.files import write_file
from transom.obfuscation.keyfile import (
    KeyFile,
    load_key,
    new_key,
    read_passphrase,
    require_outside,
    save_key,
)
from transom.obfuscation.keys import Settings, preset

SOURCE = "ab" * 32
PASSPHRASE = b"correct horse"


@pytest.fixture
def key() -> KeyFile:
    return new_key(SOURCE, 400, preset("balanced", h=16))


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KeyFile]:
    path, key = tmp_path_factory.mktemp("sealed") / "key", new_key(SOURCE, 400, Settings())
    save_key(path, key, PASSPHRASE)
    return path, key


def edit(path: Path, **changes: Any) -> Path:
    """The key file with entries changed, or removed where None is given; mode 0600."""
    record = json.loads(path.read_text()) | changes
    other = path.with_name("edited")
    other.unlink(missing_ok=True)
    kept = {name: value for name, value in record.items() if value is not None}
    write_file(other, json.dumps(kept).encode(), mode=0o600)
    return other


def test_a_key_comes_back_and_only_its_owner_may_read_it(key: KeyFile, tmp_path: Path) -> None:
    save_key(tmp_path / "key", key)
    assert load_key(tmp_path / "key") == key
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_keys_differ_and_are_not_shown(key: KeyFile) -> None:
    other = new_key(SOURCE, 400, key.settings)
    assert len({key.secret, other.secret, key.signing, other.signing}) == 4
    assert key.public_key != other.public_key
    for secret in (key.secret, key.signing):
        assert secret.hex() not in repr(key)
        assert repr(secret) not in repr(key)


def test_a_sealed_key_opens_with_its_passphrase_only(sealed: tuple[Path, KeyFile]) -> None:
    path, key = sealed
    assert load_key(path, PASSPHRASE) == key
    for wrong in (b"correct horsf", b"correct horse "):
        with pytest.raises(MisconfiguredError, match="passphrase is wrong"):
            load_key(path, wrong)
    with pytest.raises(MisconfiguredError, match="passphrase is empty"):
        load_key(path, b"")
    with pytest.raises(MisconfiguredError, match="--passphrase-file"):
        load_key(path)


def test_a_sealed_file_holds_no_secret(sealed: tuple[Path, KeyFile]) -> None:
    path, key = sealed
    import base64

    data = path.read_bytes()
    for secret in (key.secret, key.signing):
        assert secret not in data
        assert base64.b64encode(secret) not in data
        assert secret.hex().encode() not in data


@pytest.mark.parametrize(
    "changes",
    [{"source": "cd" * 32}, {"vocabulary": 401}, {"settings": dataclasses.asdict(Settings(alpha_e=0.0))}],
)
def test_what_stands_beside_the_sealed_part_cannot_be_edited(
    sealed: tuple[Path, KeyFile], changes: dict[str, Any]
) -> None:
    with pytest.raises(MisconfiguredError, match="was altered"):
        load_key(edit(sealed[0], **changes), PASSPHRASE)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o644])
def test_a_key_that_others_may_read_is_refused(key: KeyFile, tmp_path: Path, mode: int) -> None:
    save_key(tmp_path / "key", key)
    (tmp_path / "key").chmod(mode)
    with pytest.raises(MisconfiguredError, match="chmod 600"):
        load_key(tmp_path / "key")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
        ({"format": "something"}, "not an obfuscation key file"),
        ({"secret": None}, "damaged"),
        ({"secret": "AAAA"}, "damaged"),
        ({"secret": "not base64!"}, "damaged"),
        ({"secret": 7}, "damaged"),
        ({"signing": "A" * 43 + "="}, "damaged"),
        ({"source": "ab"}, "damaged"),
        ({"source": 5}, "damaged"),
        ({"vocabulary": "400"}, "damaged"),
        ({"vocabulary": 0}, "damaged"),
        ({"settings": {"strength": 3}}, "damaged"),
        ({"settings": {"alpha_e": "much"}}, "damaged"),
        ({"settings": {"h": 7}}, "must be even"),
        ({"extra": 1}, "damaged"),
        ({"public_key": "00" * 32}, "damaged"),
    ],
)
def test_a_damaged_key_is_refused(key: KeyFile, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    save_key(tmp_path / "key", key)
    with pytest.raises(MisconfiguredError, match=words) as refused:
        load_key(edit(tmp_path / "key", **changes))
    assert key.secret.hex() not in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_key_file_is_refused(tmp_path: Path, data: bytes) -> None:
    write_file(tmp_path / "key", data, mode=0o600)
    with pytest.raises(MisconfiguredError, match="not an obfuscation key file"):
        load_key(tmp_path / "key")
    with pytest.raises(MisconfiguredError, match="No such file"):
        load_key(tmp_path / "absent")


def test_a_key_is_never_overwritten(key: KeyFile, tmp_path: Path) -> None:
    save_key(tmp_path / "key", key)
    with pytest.raises(MisconfiguredError, match="exists"):
        save_key(tmp_path / "key", new_key(SOURCE, 400, key.settings))
    assert load_key(tmp_path / "key") == key
    (tmp_path / "folder").mkdir()
    with pytest.raises(MisconfiguredError, match="exists"):
        save_key(tmp_path / "folder", key)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "key"]


def test_a_key_belongs_to_one_checkpoint(key: KeyFile) -> None:
    key.require_source(SOURCE)
    with pytest.raises(MisconfiguredError, match=r"belongs to the checkpoint abababababab, not to cdcd"):
        key.require_source("cd" * 32)


def test_nothing_of_the_client_may_lie_in_the_hosts_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "way").symlink_to(out)
    for inside in (
        out / "key",
        out / "deep" / "key",
        out,
        tmp_path / "x" / ".." / "out" / "k",
        tmp_path / "way" / "k",
    ):
        with pytest.raises(MisconfiguredError, match="goes to the host"):
            require_outside(inside, out)
    require_outside(tmp_path / "out.key", out)


def test_a_passphrase_is_the_first_line_of_a_private_file(tmp_path: Path) -> None:
    write_file(tmp_path / "p", b"correct horse\r\nsecond line\n", mode=0o600)
    assert read_passphrase(tmp_path / "p") == PASSPHRASE
    write_file(tmp_path / "empty", b"\nx", mode=0o600)
    with pytest.raises(MisconfiguredError, match="no passphrase"):
        read_passphrase(tmp_path / "empty")
    write_file(tmp_path / "shared", b"x", mode=0o644)
    with pytest.raises(MisconfiguredError, match="chmod 600"):
        read_passphrase(tmp_path / "shared")
