"""`transom audit traffic FILE`: what a host reads in the ids that it is sent, without any weights.

Without a key the file holds plain ids, which are permuted here: what these attacks find does not depend on
the permutation. Top-10 and top-100 recovery are reported and not gated.
Threat model: run by the client, on its own machine, with the host's part played by the attacks.
Does not prove privacy: only that these attacks, within these budgets, found no more.
Source: each attack's own docstring.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from transom.audit.attack import choose
from transom.audit.attacks import sda, tfma
from transom.audit.attacks.traffic import Prior, Texts, Traffic, conceal, read_traffic, reveal
from transom.cli.audit_keys import KeyOption, PassphraseOption, read_key, secret_map, template_ids
from transom.cli.audit_report import Options, auditing
from transom.data.rows import read_texts
from transom.errors import MisconfiguredError
from transom.report.finding import Attack, Bound, Finding
from transom.report.statistics import Ints
from transom.serving.tokenizer import load_tokenizer

_DECIPHERED = ("recovery of tokens", "recovery of types", "BLEU-4")


def traffic(
    file: Annotated[
        Path, typer.Argument(help="One JSON list of ids a line: observed, or plain without --key.")
    ],
    tokenizer: Annotated[str, "The public model, for its tokenizer."],
    prior: Annotated[Path, "The attacker's own text, one text a line."],
    level: Annotated[
        Literal["domain", "distribution"], "How like the traffic that text is."
    ] = "distribution",
    template: Annotated[
        bool, typer.Option("--template", help="The traffic is chats: the template's tokens are known.")
    ] = False,
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
    *,
    options: Options,
) -> None:
    """Attack observed ids by their frequencies and their neighbours."""
    encoder = load_tokenizer(tokenizer)
    secret = None if key is None else read_key(key, passphrase_file)
    vocabulary = encoder.vocab_size if secret is None else secret.vocabulary
    if vocabulary < encoder.vocab_size:
        raise MisconfiguredError(
            f"the key file knows {vocabulary} ids, the tokenizer {encoder.vocab_size}; give the model's own"
        )
    chosen = choose(attacks(level), options.attack)
    record = {"target": str(file), "tokenizer": tokenizer, "prior": level, "permuted_here": secret is None}
    with auditing("traffic", record, chosen, options) as audit:
        texts = tuple(encoder.encode_text(line).ids for line in read_texts(prior))
        tau_V = secret_map(secret, vocabulary)
        target, plain = _sides(read_traffic(file, vocabulary), tau_V, concealed=secret is not None)
        known = {int(tau_V[token]): token for token in template_ids(encoder)} if template else {}
        audit.attack(chosen, target, Prior(level, texts, known), plain)


def attacks(level: Literal["domain", "distribution"]) -> tuple[Attack, ...]:
    """Frequencies without and with a prior, each over tokens and types, and one decipherment's figures."""
    made: list[Attack] = []
    for prior in ("none", level):
        for over in ("tokens", "types"):
            for top in tfma.TOP:
                call = partial(tfma.attack, top=top, over=over)
                if prior == "none":
                    call = partial(_without_text, call)
                made.append(Bound(f"tfma/{prior}", f"top-{top} recovery of {over}", call))
    read: list[tuple[Finding, ...]] = []
    made += [
        Bound(f"sda/{level}", metric, partial(_deciphered, read, at)) for at, metric in enumerate(_DECIPHERED)
    ]
    return tuple(made)


def _without_text(
    call: Callable[..., Finding], target: Traffic, knowledge: Prior, data: Texts, budget_s: float
) -> Finding:
    return call(target, Prior("none", (), knowledge.known), data, budget_s)


def _deciphered(
    read: list[tuple[Finding, ...]], at: int, target: Traffic, knowledge: Prior, data: Texts, budget_s: float
) -> Finding:
    """One of the figures of one decipherment: the first to be asked makes it, in most of the time of all."""
    if not read:
        read.append(sda.findings(target, knowledge, data, 0.8 * len(_DECIPHERED) * budget_s))
    return read[0][at]


def _sides(read: Traffic, tau_V: Ints, *, concealed: bool) -> tuple[Traffic, Texts]:
    """(what the host sees, the plain texts) from a file that holds one of the two."""
    if concealed:
        return read, reveal(read.texts, tau_V)
    return Traffic(conceal(read.texts, tau_V), read.vocabulary), read.texts
