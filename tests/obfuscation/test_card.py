"""Cards: signed with the key file, and every edit to them or to what they name is noticed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from transom.errors import MisconfiguredError
from transom.files import file_sha256
from transom.obfuscation.card import CARD_FILE, Card, read_card, verify_card, write_card
from transom.obfuscation.keyfile import KeyFile, new_key
from transom.obfuscation.keys import Settings

SOURCE = "ab" * 32


@pytest.fixture
def key() -> KeyFile:
    return new_key(SOURCE, 400, Settings())


@pytest.fixture
def folder(key: KeyFile, tmp_path: Path) -> Path:
    """Two files and their card."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(200)))
    outputs = {path.name: file_sha256(path) for path in tmp_path.iterdir()}
    write_card(tmp_path, Card("llama", dataclasses.asdict(key.settings), SOURCE, 400, outputs), key)
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / CARD_FILE).read_text()) | changes
    (folder / CARD_FILE).write_text(json.dumps({k: v for k, v in record.items() if v != "remove"}))


def test_a_card_says_what_was_written(folder: Path, key: KeyFile) -> None:
    card = verify_card(folder, key)
    assert card == verify_card(folder) == read_card(folder / CARD_FILE)
    assert (card.source, card.vocabulary, card.findings, card.private_against_base_model) == (
        SOURCE,
        400,
        (),
        None,
    )
    assert card.settings == dataclasses.asdict(key.settings)
    assert set(card.outputs) == {"config.json", "model.safetensors"}


def test_findings_are_added_by_signing_again(folder: Path, key: KeyFile) -> None:
    found = dataclasses.replace(
        verify_card(folder, key), findings=({"name": "vma", "value": 0.5},), private_against_base_model=False
    )
    write_card(folder, found, key)
    assert verify_card(folder, key) == found


def test_a_card_holds_no_secret(folder: Path, key: KeyFile) -> None:
    data = (folder / CARD_FILE).read_text()
    assert key.secret.hex() not in data
    assert key.signing.hex() not in data


@pytest.mark.parametrize(
    "changes",
    [
        {"private_against_base_model": True},
        {"findings": [{"name": "all clear"}]},
        {"vocabulary": 401},
        {"source": "cd" * 32},
        {"settings": {}},
        {"outputs": {}},
        {"signature": "00" * 64},
        {"signature": "zz"},
        {"signature": 5},
        {"signature": "remove"},
        {"added": 1},
    ],
)
def test_an_edited_card_is_refused(folder: Path, key: KeyFile, changes: dict[str, Any]) -> None:
    edit(folder, **changes)
    for which in (key, None):
        with pytest.raises(MisconfiguredError, match="edited after it was signed"):
            read_card(folder, which)


def test_a_card_signed_by_somebody_else_is_refused(folder: Path, key: KeyFile) -> None:
    card, other = read_card(folder), new_key(SOURCE, 400, Settings())
    write_card(folder, dataclasses.replace(card, private_against_base_model=True), other)
    assert read_card(folder).private_against_base_model is True  # it agrees with itself
    with pytest.raises(MisconfiguredError, match="not signed with this key file"):
        read_card(folder, key)


def test_a_card_of_another_checkpoint_is_refused(folder: Path, key: KeyFile) -> None:
    write_card(folder, dataclasses.replace(read_card(folder), source="cd" * 32), key)
    with pytest.raises(MisconfiguredError, match="belongs to the checkpoint"):
        read_card(folder, key)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', "[" * 100_000])
def test_what_is_no_card_is_refused(folder: Path, text: str) -> None:
    (folder / CARD_FILE).write_text(text)
    with pytest.raises(MisconfiguredError, match="card"):
        read_card(folder)


def test_a_well_signed_record_with_other_fields_is_refused(folder: Path, key: KeyFile) -> None:
    from transom.obfuscation.card import _signed_bytes

    record = {"version": 1, "public_key": key.public_key, "findings": [], "surprise": 1}
    record["signature"] = key.sign(_signed_bytes(record)).hex()
    (folder / CARD_FILE).write_text(json.dumps(record))
    with pytest.raises(MisconfiguredError, match="not a card of version 1"):
        read_card(folder, key)


def test_changed_missing_and_added_files_are_noticed(folder: Path, key: KeyFile) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(MisconfiguredError, match=r"model\.safetensors is not the file"):
        verify_card(folder, key)
    weights.unlink()
    with pytest.raises(MisconfiguredError, match=r"misses model\.safetensors"):
        verify_card(folder, key)
    weights.write_bytes(bytes(range(200)))
    (folder / "extra.json").write_text("{}")
    with pytest.raises(MisconfiguredError, match=r"has extra\.json"):
        verify_card(folder, key)
