"""`transom audit checkpoint DIR` and `transom audit traffic FILE`: what a host recovers, attack by attack.

    transom audit checkpoint DIR --base MODEL --key FILE [--attack NAME ...] [--gate 0.01] [--json]
    transom audit traffic ids.jsonl --tokenizer MODEL --prior text.txt --key FILE [--gate 0.2] [--json]

The key is the truth that guesses are scored against; attacks do not see it. Without a key a checkpoint is
taken to be one whose ids are unchanged (refused for a folder with a card), and traffic to be plain ids, which
are then permuted here: what these attacks find does not depend on the permutation.
With --gate the exit code is 20 when the upper end of some finding's interval lies above the bound, or when no
attack could be run. Top-10 and top-100 recovery are reported and not gated.
Threat model: run by the client, on its own machine, with the host's part played by the attacks.
Does not prove privacy: only that these attacks, within these budgets, found no more.
Source: each attack's own docstring.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from transom.audit.attacks import sda, tfma
from transom.audit.attacks.traffic import Ints, Prior, Texts, Traffic, conceal, read_traffic, reveal
from transom.audit.finding import Finding, not_run
from transom.cli import audit_adapter, audit_embeddings, audit_epsilon, audit_words
from transom.errors import MisconfiguredError, NotYetError, RefusedError

if TYPE_CHECKING:
    from transom.obfuscation.keyfile import KeyFile
    from transom.obfuscation.keys import Settings
    from transom.serving.tokenizer import ChatTokenizer

GATE_EXIT = 20
WEIGHT_ATTACKS = {  # quick ones first
    "nn": "nearest",
    "gate-ia": "gate_ia",
    "attn-ia": "attn_ia",
    "least-squares": "least_squares",
    "column-first": "column_first",
    "vma": "vma",
    "fingerprint": "fingerprint",
    "alignment": "alignment",
}
STATE_ATTACKS = ("ima", "isa")
ATTACKS = (*WEIGHT_ATTACKS, *STATE_ATTACKS)
_NEED_MODELS = {"fingerprint", "isa"}
_LISTS = ("top-10 ", "top-100 ")  # a token among many guesses is not a token read: reported, not gated

app = typer.Typer(no_args_is_help=True)
app.command()(audit_epsilon.epsilon)
app.command()(audit_adapter.adapter)
app.command()(audit_embeddings.embeddings)
app.command()(audit_words.words)

KeyOption = Annotated[Path | None, typer.Option(help="Key file: the truth that guesses are scored against.")]
PassphraseOption = Annotated[Path | None, typer.Option(help="File whose first line opens a sealed key file.")]
GateOption = Annotated[
    float | None, typer.Option(help="Exit with 20 when a finding may exceed this share.", min=0, max=1)
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on one line.")]


@app.callback()
def group() -> None:
    """Attack what a host would see, and report how much is recovered."""


@app.command()
def checkpoint(
    folder: Annotated[Path, typer.Argument(help="The obfuscated checkpoint, as the host gets it.")],
    base: Annotated[str, typer.Option(help="The public model: directory, .gguf, hub name or 'smollm2'.")],
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
    attack: Annotated[
        list[str] | None, typer.Option(help=f"All by default; repeatable: {', '.join(ATTACKS)}.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to recover, drawn at random.", min=16)] = 1000,
    layers: Annotated[int | None, typer.Option(help="Read only the first layers.", min=1)] = None,
    budget_s: Annotated[float, typer.Option(help="Seconds for each attack.", min=0)] = 120.0,
    gate: GateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Attack an obfuscated checkpoint with the public model at hand."""
    names = attack or list(ATTACKS)
    if unknown := sorted(set(names) - set(ATTACKS)):
        raise MisconfiguredError(f"unknown attack {unknown[0]!r}; known: {', '.join(ATTACKS)}")
    secret = _truth(folder, key, passphrase_file)
    findings = attack_checkpoint(folder, base, secret, names, tokens=tokens, layers=layers, budget_s=budget_s)
    _report({"target": str(folder), "base": base}, findings, gate, as_json)


@app.command()
def traffic(
    file: Annotated[
        Path, typer.Argument(help="One JSON list of ids a line: observed, or plain without --key.")
    ],
    tokenizer: Annotated[str, typer.Option(help="The public model, for its tokenizer.")],
    prior: Annotated[Path, typer.Option(help="The attacker's own text, one text a line.")],
    level: Annotated[
        Literal["domain", "distribution"], typer.Option(help="How like the traffic that text is.")
    ] = "distribution",
    template: Annotated[
        bool, typer.Option("--template", help="The traffic is chats: the template's tokens are known.")
    ] = False,
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
    budget_s: Annotated[float, typer.Option(help="Seconds for deciphering.", min=0)] = 120.0,
    gate: GateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Attack observed ids by their frequencies and their neighbours."""
    from transom.serving.tokenizer import load_tokenizer

    encoder = load_tokenizer(tokenizer)
    secret = None if key is None else _load_key(key, passphrase_file)
    vocabulary = encoder.vocab_size if secret is None else secret.vocabulary
    if vocabulary < encoder.vocab_size:
        raise MisconfiguredError(
            f"the key file knows {vocabulary} ids, the tokenizer {encoder.vocab_size}; give the model's own"
        )
    tau_V = _token_map(secret, vocabulary)
    target, plain = _target(read_traffic(file, vocabulary), tau_V, concealed=secret is not None)
    known = {int(tau_V[token]): token for token in template_ids(encoder)} if template else {}
    text = Prior(level, _encoded(prior, encoder), known)
    findings = (
        *tfma.findings(target, Prior("none", (), known), plain, budget_s),
        *tfma.findings(target, text, plain, budget_s),
        *sda.findings(target, text, plain, budget_s),
    )
    record = {"target": str(file), "tokenizer": tokenizer, "permuted_here": secret is None}
    _report(record, findings, gate, as_json)


def attack_checkpoint(
    folder: Path,
    base: str,
    key: KeyFile | None,
    names: Sequence[str] = ATTACKS,
    *,
    tokens: int = 1000,
    layers: int | None = None,
    budget_s: float = 120.0,
) -> list[Finding]:
    """The findings of the attacks in `names` on `folder`; one that does not fit the target is "not run".

    Raises CheckpointError, MisconfiguredError, MissingExtraError.
    """
    from transom.audit.attacks.own_keys import settings_of
    from transom.audit.attacks.weights import Knowledge, Target, read, sample
    from transom.checkpoint import load
    from transom.serving.tokenizer import load_tokenizer

    models = (load(folder).model, load(base).model) if _NEED_MODELS & set(names) else (None, None)
    weights = read(folder, layers=layers)
    if key is not None and key.vocabulary != weights.vocabulary:
        raise MisconfiguredError(
            f"the key file knows {key.vocabulary} ids, the checkpoint {weights.vocabulary}; give its own key"
        )
    tau_V = _token_map(key, weights.vocabulary, permute=False)
    known = {int(tau_V[token]): token for token in template_ids(load_tokenizer(base))}
    target = Target(weights, models[0])
    knowledge = Knowledge(read(base, layers=layers), models[1], known)
    data = sample(tau_V, tokens)
    settings = key.settings if key and settings_of(target, knowledge) else None  # permuted rows have none
    return [
        _tried(name, partial(attack, target, knowledge, data, budget_s))
        for name in names
        for attack in _attacks(name, settings)
    ]


def _attacks(name: str, settings: Settings | None) -> list[Callable[..., Finding]]:
    """The functions behind a name; those that make keys of their own are told the method's settings."""
    from transom.audit.attacks import checkpoint_states, fingerprint

    if name == "fingerprint":
        return [partial(fingerprint.attack, settings=settings)]
    if name == "ima":
        return [partial(checkpoint_states.invert, settings=settings)]
    if name == "isa":
        return [partial(checkpoint_states.descend, kind=kind) for kind in ("hidden", "attention")]
    return [importlib.import_module(f"transom.audit.attacks.{WEIGHT_ATTACKS[name]}").attack]


def _tried(name: str, run: Callable[[], Finding]) -> Finding:
    try:
        return run()
    except NotYetError as error:
        return not_run(name, "ttrsr", str(error))


def template_ids(tokenizer: ChatTokenizer) -> list[int]:
    """Ids that the chat template puts into every conversation; none where there is no template."""
    if not tokenizer.has_template:
        return []
    try:
        return sorted(set(tokenizer.encode_chat([("user", "")]).ids))
    except RefusedError:
        return []


def _truth(folder: Path, key: Path | None, passphrase_file: Path | None) -> KeyFile | None:
    """The key of a checkpoint, which must be its own."""
    from transom.obfuscation.card import CARD_FILE, read_card

    has_card = (folder / CARD_FILE).exists()
    if key is None:
        if has_card:
            raise MisconfiguredError(f"{folder} is obfuscated; give --key, or nothing can be scored")
        return None
    secret = _load_key(key, passphrase_file)
    if has_card:
        read_card(folder, secret)
    return secret


def _load_key(key: Path, passphrase_file: Path | None) -> KeyFile:
    from transom.obfuscation.keyfile import load_key, read_passphrase

    return load_key(key, read_passphrase(passphrase_file) if passphrase_file else None)


def _token_map(key: KeyFile | None, vocabulary: int, *, permute: bool = True) -> Ints:
    """tau [V] of a key; without one a fresh permutation, or none."""
    if key is None:
        return np.random.default_rng(0).permutation(vocabulary) if permute else np.arange(vocabulary)
    from transom.obfuscation.keys import token_map

    return token_map(key.secret, vocabulary)


def _target(read: Traffic, tau_V: Ints, *, concealed: bool) -> tuple[Traffic, Texts]:
    """(what the host sees, the plain texts) from a file that holds one of the two."""
    if concealed:
        return read, reveal(read.texts, tau_V)
    return Traffic(conceal(read.texts, tau_V), read.vocabulary), read.texts


def _encoded(path: Path, tokenizer: ChatTokenizer) -> Texts:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MisconfiguredError(f"{path} cannot be read as UTF-8 text ({type(error).__name__})") from None
    texts = tuple(tokenizer.encode_text(line).ids for line in lines if line.strip())
    if not texts:
        raise MisconfiguredError(f"{path} holds no text; give the attacker one text a line")
    return texts


def _report(record: dict[str, Any], findings: Sequence[Finding], gate: float | None, as_json: bool) -> None:
    """Print the findings; exit with 20 when the gate is shut."""
    run = [found for found in findings if found.high is not None and not found.metric.startswith(_LISTS)]
    worst = max(run, key=lambda finding: finding.high or 0.0, default=None)
    passed = None if gate is None else worst is not None and (worst.high or 0.0) <= gate
    record |= {
        "findings": [finding.to_dict() for finding in findings],
        "worst": None if worst is None else {"name": worst.name, "metric": worst.metric, "high": worst.high},
        "gate": gate,
        "passed": passed,
    }
    if as_json:
        typer.echo(json.dumps(record))
    else:
        _print(record["target"], findings)
    if passed is False:
        why = "no attack ran" if worst is None else f"{worst.name}: up to {worst.high:.3g} ({worst.metric})"
        typer.echo(f"gate {gate:g} not passed: {why}", err=True)
        raise typer.Exit(GATE_EXIT)


def _print(target: str, findings: Sequence[Finding]) -> None:
    table = Table(
        "attack", "metric", "value", "95 % interval", "chance", "n", "s", "note", title=escape(target)
    )
    for found in findings:
        if found.value is None:
            table.add_row(escape(found.name), found.metric, "not run", "", "", "", "", escape(found.reason))
            continue
        table.add_row(
            escape(found.name),
            found.metric,
            f"{found.value:.4f}",
            f"{found.low:.4f} to {found.high:.4f}",
            f"{found.baseline:.2g}",
            str(found.n),
            f"{found.cost_s:.1f}",
            escape(found.note),
        )
    Console(highlight=False).print(table)
