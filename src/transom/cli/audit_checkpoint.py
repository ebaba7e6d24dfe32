"""`transom audit checkpoint DIR`: what a host with the public model recovers from an obfuscated checkpoint.

The key is the truth that guesses are scored against; attacks do not see it. Without a key the checkpoint is
taken to be one whose ids are unchanged (refused for a folder with a card).
Threat model: run by the client, on its own machine, with the host's part played by the attacks.
Does not prove privacy: only that these attacks, within these budgets, found no more.
Source: each attack's own docstring.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from transom.audit.attack import choose
from transom.audit.attacks import checkpoint_states, fingerprint
from transom.audit.attacks.own_keys import settings_of
from transom.audit.attacks.weights import Knowledge, Sample, Target, read, sample
from transom.checkpoint import load
from transom.cli.audit_keys import KeyOption, PassphraseOption, read_key, secret_map, template_ids
from transom.cli.audit_report import Options, auditing
from transom.cli.output import progress
from transom.config import Setting
from transom.errors import MisconfiguredError
from transom.obfuscation.card import CARD_FILE, read_card
from transom.obfuscation.keyfile import KeyFile
from transom.obfuscation.keys import Settings
from transom.report.finding import Attack, Bound, Finding
from transom.report.runner import run
from transom.serving.tokenizer import load_tokenizer

METRIC = "ttrsr"
WEIGHT_ATTACKS = {  # quick ones first
    "nn": "nearest",
    "gate-ia": "gate_ia",
    "attn-ia": "attn_ia",
    "neurons-first": "neurons_first",
    "gram-matching": "gram_matching",
    "least-squares": "least_squares",
    "column-first": "column_first",
    "vma": "vma",
    "fingerprint": "fingerprint",
    "alignment": "alignment",
}
ATTACKS = (*WEIGHT_ATTACKS, "ima", "isa")
_NEED_MODELS = {"fingerprint", "isa"}


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(Options):
    """The common options, with the names of these attacks."""

    attack: Annotated[
        tuple[str, ...],
        Setting(f"All by default; repeatable: {', '.join(ATTACKS)}, or module:object of your own."),
    ] = ()


def checkpoint(
    folder: Annotated[Path, typer.Argument(help="The obfuscated checkpoint, as the host gets it.")],
    base: Annotated[str, "The public model: directory, .gguf, hub name or 'smollm2'."],
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
    tokens: Annotated[int, Setting("Tokens to recover, drawn at random.", least=16)] = 1000,
    layers: Annotated[int | None, Setting("Read only the first layers.", least=1)] = None,
    *,
    options: CheckpointOptions,
) -> None:
    """Attack an obfuscated checkpoint with the public model at hand."""
    chosen = choose(attacks(None), options.attack)  # a name that is unknown is refused before models load
    secret = _truth(folder, key, passphrase_file)
    models = bool(_NEED_MODELS & {one.NAME for one in chosen})
    record = {"target": str(folder), "base": base, "tokens": tokens}
    with auditing("checkpoint", record, chosen, options) as audit:
        with progress("reading both checkpoints", quiet=options.json):
            given = mounted(folder, base, secret, models=models, tokens=tokens, layers=layers)
        audit.attack(choose(attacks(_settings(secret, given)), options.attack), *given)


def attack_checkpoint(
    folder: Path,
    base: str,
    key: KeyFile | None,
    names: Sequence[str] = ATTACKS,
    *,
    tokens: int = 1000,
    layers: int | None = None,
    budget_s: float = 600.0,
    quiet: bool = True,
) -> tuple[Finding, ...]:
    """The findings of the attacks in `names` on `folder`, within about `budget_s` for all of them.

    Raises CheckpointError, MisconfiguredError, MissingExtraError.
    """
    models = bool(_NEED_MODELS & set(names))
    with progress("reading both checkpoints", quiet=quiet):
        given = mounted(folder, base, key, models=models, tokens=tokens, layers=layers)
    chosen = choose(attacks(_settings(key, given)), names)
    return run(chosen, *given, budget_s=budget_s, progress=not quiet)


def mounted(
    folder: Path, base: str, key: KeyFile | None, *, models: bool, tokens: int, layers: int | None
) -> tuple[Target, Knowledge, Sample]:
    """What the attacks take, with runnable models where `models` says so. Raises MisconfiguredError."""
    observed, public = (load(folder).model, load(base).model) if models else (None, None)
    weights = read(folder, layers=layers)
    if key is not None and key.vocabulary != weights.vocabulary:
        raise MisconfiguredError(
            f"the key file knows {key.vocabulary} ids, the checkpoint {weights.vocabulary}; give its own key"
        )
    tau_V = secret_map(key, weights.vocabulary, permute=False)
    known = {int(tau_V[token]): token for token in template_ids(load_tokenizer(base))}
    knowledge = Knowledge(read(base, layers=layers), public, known)
    return Target(weights, observed), knowledge, sample(tau_V, tokens)


def attacks(settings: Settings | None) -> tuple[Attack, ...]:
    """The attacks by the names of the command line; those that make own keys are told the settings."""
    made: list[Attack] = []
    for name, module in WEIGHT_ATTACKS.items():
        call = importlib.import_module(f"transom.audit.attacks.{module}").attack
        if name == "fingerprint":
            call = partial(fingerprint.attack, settings=settings)
        made.append(Bound(name, METRIC, call))
    made.append(Bound("ima", METRIC, partial(checkpoint_states.invert, settings=settings)))
    for kind in ("hidden", "attention"):
        made.append(Bound("isa", METRIC, partial(checkpoint_states.descend, kind=kind)))
    return tuple(made)


def _settings(key: KeyFile | None, given: tuple[Target, Knowledge, Sample]) -> Settings | None:
    """The method's settings, which are public; rows that are only permuted have none."""
    return key.settings if key and settings_of(*given[:2]) else None


def _truth(folder: Path, key: Path | None, passphrase_file: Path | None) -> KeyFile | None:
    """The key of a checkpoint, which must be its own."""
    has_card = (folder / CARD_FILE).exists()
    if key is None:
        if has_card:
            raise MisconfiguredError(f"{folder} is obfuscated; give --key, or nothing can be scored")
        return None
    secret = read_key(key, passphrase_file)
    if has_card:
        read_card(folder, secret)
    return secret
