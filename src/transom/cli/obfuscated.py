"""What the modes obfuscated and words+obfuscated read before they serve, and `transom obfuscate-gguf`.

The key file gives the token map, the client folder the tokenizer, the card what attacks on the checkpoint
recovered; `transom obfuscate` leaves a copy of the card in the client folder. All three must belong to one
checkpoint; every failure stops the start.
Threat model: key and client folder lie on the user's machine; the card may have been with the host, so it
must carry the key's signature.
Does not protect: whether the engine serves the key's checkpoint shows in its answers alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer

from transom.cli.audit_keys import read_key
from transom.errors import MisconfiguredError
from transom.obfuscation.card import CARD_FILE, read_card, verify_card
from transom.obfuscation.client import load_client
from transom.obfuscation.gguf_writer import shortened, write_gguf
from transom.obfuscation.keys import token_map
from transom.serving.gateway.obfuscated import Substitution
from transom.serving.tokenizer import ChatTokenizer, load_tokenizer

MODES = ("obfuscated", "words+obfuscated")
VERDICTS = {
    None: "not audited: assume that it is not private against a host that has the base model",
    False: "not private against a host that has the base model",
    True: "no attack tried on it recovered it, with the base model at hand",
}


@dataclass(frozen=True)
class ObfuscatedOptions:
    """What `transom obfuscate` left for the client."""

    PANEL: ClassVar[str] = "Modes obfuscated, words+obfuscated"
    key: Annotated[Path | None, "Key file from transom obfuscate."] = None
    client: Annotated[Path | None, "The client's folder; KEY.client by default."] = None
    card: Annotated[Path | None, "The checkpoint's card, or its folder; the client folder's by default."] = (
        None
    )
    passphrase_file: Annotated[Path | None, "File whose first line opens the key file."] = None

    def check(self, mode: str) -> None:
        """Raises MisconfiguredError if one is given in vain."""
        if mode not in MODES and any(vars(self).values()):
            raise MisconfiguredError(
                f"--key, --client, --card and --passphrase-file are for {' and '.join(MODES)}, "
                f"not for mode {mode}"
            )


def open_key(options: ObfuscatedOptions) -> tuple[Substitution, ChatTokenizer]:
    """The token map and the real tokenizer, with all of the checkpoint's stop ids.

    Without a card given, the client folder's counts, if it has one. Raises MisconfiguredError when key,
    client folder and card are not one checkpoint's, or the card was edited; CheckpointError,
    MissingExtraError.
    """
    if options.key is None:
        raise MisconfiguredError(
            f"modes {' and '.join(MODES)} need --key FILE, which transom obfuscate wrote"
        )
    key = read_key(options.key, options.passphrase_file)
    folder = options.client or client_folder(options.key)
    client = load_client(folder)
    client.require_key(key)
    card = options.card or folder / CARD_FILE
    private = None
    if options.card or os.path.lexists(card):
        private = read_card(card, key).private_against_base_model
    tokenizer = load_tokenizer(folder)
    tokenizer.eos_ids = tuple(sorted({*tokenizer.eos_ids, *client.stop_ids}))
    typer.echo(f"checkpoint {key.source[:12]}, {VERDICTS[private]}", err=True)
    return Substitution(token_map(key.secret, key.vocabulary), private), tokenizer


def client_folder(key: Path) -> Path:
    """The client's folder of a key file, where none is named."""
    return key.with_name(f"{key.name}.client")


def obfuscate_gguf(
    folder: Annotated[Path, typer.Argument(help="An obfuscated folder, from transom obfuscate.")],
    out: Annotated[Path, "The GGUF file; it must not exist."],
    kind: Annotated[
        Literal["f16", "q8_0", "f32"], typer.Option("--type", help="q8_0 needs a hidden size of 32s.")
    ] = "f16",
) -> None:
    """Write an obfuscated folder as a GGUF file for llama.cpp; a vocabulary of placeholders goes with it."""
    verify_card(folder)
    write_gguf(folder, out, kind)
    if told := shortened(folder):
        typer.echo(told, err=True)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:,.1f} MB, for the host", err=True)
