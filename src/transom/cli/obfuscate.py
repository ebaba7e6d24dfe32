"""`transom obfuscate MODEL --out DIR --key FILE`: a checkpoint for a host, and what the client keeps.

    DIR             for the host: weights, configuration, a placeholder tokenizer, the signed card
    FILE            the key, made on first use; FILE.client (or --client) gets the real tokenizer and the card

Threat model: run by the client on its own machine; DIR is all that leaves it.
Does not protect: against a host that has the public model, unless the card's findings say so.
Source: `transom.obfuscation.writer`; Lin et al., arXiv 2603.01499.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from transom.cli.audit_checkpoint import attack_checkpoint
from transom.cli.obfuscated import VERDICTS, client_folder
from transom.cli.options import Json, ModelArgument
from transom.cli.output import answer, plain_console, progress
from transom.config import Setting
from transom.errors import MisconfiguredError
from transom.files import require_writable
from transom.obfuscation.card import CARD_FILE, Card, read_card, write_card
from transom.obfuscation.client import write_client
from transom.obfuscation.keyfile import (
    KeyFile,
    load_key,
    new_key,
    read_passphrase,
    require_outside,
    save_key,
)
from transom.obfuscation.keys import Settings, preset
from transom.obfuscation.plain import Plain, open_source
from transom.obfuscation.plan import loadable_h
from transom.obfuscation.writer import obfuscate as write_obfuscated
from transom.obfuscation.writer import partial_path, refuse_taken
from transom.report.finding import left_out

Preset = Literal["paper", "exact", "balanced"]
Target = Literal["transformers", "vllm", "llamacpp", "llamacpp-k", "group-128"]

QUICK_ATTACKS = ("nn", "gate-ia", "least-squares", "column-first")
AUDITED_TOKENS = 500
AUDIT_BUDGET_S = 240.0  # for all of them
PRIVATE_BELOW = 0.01  # a lower end of an interval this far above chance is a recovery


def obfuscate(
    source: ModelArgument,
    out: Annotated[Path, "The host's folder; it must not exist."],
    key: Annotated[Path, "The key file; made on first use. Keep it, and back it up."],
    client: Annotated[Path | None, "The client's folder; KEY.client by default."] = None,
    preset_name: Annotated[
        Preset | None, typer.Option("--preset", help="How strongly to obfuscate; paper for a new key. One of")
    ] = None,
    h: Annotated[int | None, "Half the added width; the nearest that loads is taken."] = None,
    alpha_e: Annotated[float | None, "Noise on the embedding, in deviations."] = None,
    alpha_h: Annotated[float | None, "Noise on the head, in deviations."] = None,
    lam: Annotated[float | None, "Share of Gaussian in the keys."] = None,
    target: Annotated[Target, typer.Option("--for", help="What will load the output")] = "transformers",
    workers: Annotated[int | None, Setting("Processes; one a core by default.", least=1)] = None,
    device: Annotated[str, "Where products run: cpu, or cuda for one process."] = "cpu",
    cluster: Annotated[str | None, "Address of a Ray cluster ('auto'); it must see the same folders."] = None,
    audit: Annotated[bool, "Attack the output, and sign what was recovered."] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was killed.")] = False,
    passphrase_file: Annotated[Path | None, "File whose first line seals the key file."] = None,
    as_json: Json = False,
) -> None:
    """Obfuscate a model for a host that must not read prompts and answers."""
    client = client or client_folder(key)
    for path in (key, client):
        require_outside(path, out, partial_path(out))
    refuse_taken(out, resume)
    for path in (out, key) if not key.exists() else (out,):
        require_writable(path, parents=True)
    passphrase = read_passphrase(passphrase_file) if passphrase_file else None
    console = plain_console(stderr=True)
    with progress(f"reading {source}", quiet=as_json):
        plain = open_source(source)
    stored = load_key(key, passphrase) if key.exists() else None
    changes = {"h": h, "alpha_e": alpha_e, "alpha_h": alpha_h, "lam": lam}
    settings, why = _fit(plain, _wanted(preset_name, changes, stored), target)
    if why:
        console.print(why)
    if plain.left_out:
        count = len(plain.left_out)
        console.print(f"left out, as engines do without them: {count} tensors that predict further tokens")
    if stored:
        secret = _reused(stored, plain, settings, key)
    else:  # kept before anything is made with it
        secret = new_key(plain.fingerprint, plain.vocabulary, settings)
        save_key(key, secret, passphrase)
    write_client(plain.found, plain.config, secret, client)
    (client / CARD_FILE).unlink(missing_ok=True)  # an earlier output's: it says nothing of this one
    with progress("obfuscating", 1.0, quiet=as_json) as meter:
        write_obfuscated(
            plain,
            out,
            secret,
            workers=workers or os.cpu_count() or 1,
            device=device,
            cluster=cluster,
            resume=resume,
            progress=meter.reach,
        )
    plain = replace(plain, loaded=None)  # a GGUF's model: the audit reads its own, and needs the memory
    card = audit_output(plain, out, secret, quiet=as_json) if audit else read_card(out, secret)
    write_card(client, card, secret)
    _show(card, plain, {"out": out, "key": key, "client": client}, why, as_json)


def audit_output(plain: Plain, out: Path, key: KeyFile, *, quiet: bool = True) -> Card:
    """Attack the output with the base model at hand; its card, with what was found, written and returned.

    These are the quick attacks, with one layer's weights; `transom audit checkpoint` has all of them.
    """
    card = read_card(out, key)
    findings = attack_checkpoint(
        out,
        plain.found.name,
        key,
        QUICK_ATTACKS,
        tokens=AUDITED_TOKENS,
        layers=1,
        budget_s=AUDIT_BUDGET_S,
        quiet=quiet,
    )
    run = [found for found in findings if found.value is not None]
    beaten = [found for found in run if (found.low or 0.0) > (found.baseline or 0.0) + PRIVATE_BELOW]
    audited = replace(
        card,
        findings=tuple(found.to_dict() for found in findings),
        private_against_base_model=None if not beaten and (not run or left_out(findings)) else not beaten,
    )
    write_card(out, audited, key)
    return audited


def _fit(plain: Plain, wanted: Settings, target: Target) -> tuple[Settings, str]:
    """The settings with an h that the target loads, and a sentence if that is another one."""
    h = loadable_h(plain.config, wanted.h, target.replace("llamacpp", "llama.cpp"))
    if h == wanted.h:
        return wanted, ""
    heads, width = plain.config["num_attention_heads"], plain.config["hidden_size"]
    return replace(wanted, h=h), (
        f"h = {h} instead of {wanted.h}: {target} loads hidden sizes that {heads} heads (and its blocks) "
        f"divide, such as {width} + 2 x {h} = {width + 2 * h}"
    )


def _wanted(preset_name: Preset | None, changes: Mapping[str, Any], stored: KeyFile | None) -> Settings:
    """What the options say; without any, the settings of a key file that exists."""
    given = {name: value for name, value in changes.items() if value is not None}
    if stored is not None and preset_name is None and not given:
        return stored.settings
    return preset(preset_name or "paper", **given)


def _reused(key: KeyFile, plain: Plain, settings: Settings, path: Path) -> KeyFile:
    """A stored key, if it is this checkpoint's with these settings."""
    key.require_source(plain.fingerprint)
    asked, had = asdict(settings), asdict(key.settings)
    other = [f"{name} {had[name]} (now {asked[name]})" for name in asked if had[name] != asked[name]]
    if other:
        raise MisconfiguredError(
            f"{path} was made with {', '.join(other)}; leave those options out, or give another --key"
        )
    return key


def _show(card: Card, plain: Plain, paths: dict[str, Path], why: str, as_json: bool) -> None:
    record: dict[str, Any] = {name: str(path) for name, path in paths.items()}
    record |= {"model": plain.found.name, "h_reason": why, **card.to_json()}
    settings = ", ".join(f"{name} {value}" for name, value in card.settings.items())
    text = (
        f"{paths['out']}: {plain.found.name}, {len(card.outputs)} files, for the host\n"
        f"{paths['key']}: the key, and {paths['client']}: the tokenizer and the card, for the client alone\n"
        f"{settings}\n{VERDICTS[card.private_against_base_model]}"
    )
    answer(record, text, as_json=as_json)
