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
from typing import TYPE_CHECKING, Annotated

import typer

from transom.errors import MisconfiguredError

if TYPE_CHECKING:
    from transom.serving.gateway.obfuscated import Substitution
    from transom.serving.tokenizer import ChatTokenizer

MODES = ("obfuscated", "words+obfuscated")
_VERDICTS = {
    None: "not audited: assume that it is not private against a host that has the base model",
    False: "not private against a host that has the base model",
    True: "no attack tried on it recovered it, with the base model at hand",
}


@dataclass(frozen=True)
class ObfuscatedOptions:
    """The command line of the two modes."""

    key: Path
    client: Path
    card: Path | None
    passphrase_file: Path | None


def options_of(
    mode: str, key: Path | None, client: Path | None, card: Path | None, passphrase_file: Path | None
) -> ObfuscatedOptions | None:
    """The options, None in another mode. Raises MisconfiguredError if one is missing, or given in vain."""
    if mode not in MODES:
        if key or client or card or passphrase_file:
            raise MisconfiguredError(
                f"--key, --client, --card and --passphrase-file are for {' and '.join(MODES)}, "
                f"not for mode {mode}"
            )
        return None
    if key is None:
        raise MisconfiguredError(f"mode {mode} needs --key FILE, which transom obfuscate wrote")
    return ObfuscatedOptions(key, client or key.with_name(f"{key.name}.client"), card, passphrase_file)


def open_key(options: ObfuscatedOptions) -> tuple[Substitution, ChatTokenizer]:
    """The token map and the real tokenizer, with all of the checkpoint's stop ids.

    Without a card given, the client folder's counts, if it has one. Raises MisconfiguredError when key,
    client folder and card are not one checkpoint's, or the card was edited; CheckpointError,
    MissingExtraError.
    """
    from transom.obfuscation.card import CARD_FILE, read_card
    from transom.obfuscation.client import load_client
    from transom.obfuscation.keyfile import load_key, read_passphrase
    from transom.obfuscation.keys import token_map
    from transom.serving.gateway.obfuscated import Substitution
    from transom.serving.tokenizer import load_tokenizer

    passphrase = read_passphrase(options.passphrase_file) if options.passphrase_file else None
    key = load_key(options.key, passphrase)
    client = load_client(options.client)
    client.require_key(key)
    card = options.card or options.client / CARD_FILE
    private = None
    if options.card or os.path.lexists(card):
        private = read_card(card, key).private_against_base_model
    tokenizer = load_tokenizer(options.client)
    tokenizer.eos_ids = tuple(sorted({*tokenizer.eos_ids, *client.stop_ids}))
    typer.echo(f"checkpoint {key.source[:12]}, {_VERDICTS[private]}", err=True)
    return Substitution(token_map(key.secret, key.vocabulary), private), tokenizer


def obfuscate_gguf(
    folder: Annotated[Path, typer.Argument(help="An obfuscated folder, from transom obfuscate.")],
    out: Annotated[Path, typer.Option(help="The GGUF file; it must not exist.")],
    kind: Annotated[str, typer.Option("--type", help="f16, q8_0 (a hidden size of 32s), or f32.")] = "f16",
) -> None:
    """Write an obfuscated folder as a GGUF file for llama.cpp; a vocabulary of placeholders goes with it."""
    from transom.obfuscation.card import verify_card
    from transom.obfuscation.gguf_writer import shortened, write_gguf

    verify_card(folder)
    write_gguf(folder, out, kind)
    if told := shortened(folder):
        typer.echo(told, err=True)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:,.1f} MB, for the host", err=True)
