"""`transom audit text FILE`: one table for choosing a preset, from the user's own file.

Every preset (all of them by default) sanitises the texts here, and the table says of each what is still
readable and of which kind, what was changed without need, what an attacker reads, and what the text is still
good for. The second opinion on what is private are the policy's public lists, patterns, and where given the
user's own lists and recognisers, which are asked and not applied. Places and spellings stand in `--json` and
`--html`. Nothing is sent and nothing is charged to a ledger.
Threat model and what it does not prove: those of `transom.audit.choice`, `exposure` and `recovery`.
Source: each module's own.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from transom.audit.attack import choose
from transom.audit.attacks import causal
from transom.audit.choice import Exposure, expose
from transom.audit.choice_table import compare, with_utility
from transom.audit.exposure import Opinion
from transom.audit.recovery import ATTACKS, Attacker
from transom.audit.utility.frontier import Setting as At
from transom.audit.utility.protect import words as protected
from transom.checkpoint.source import DEFAULT_MODEL
from transom.cli.audit_report import Options, auditing
from transom.cli.audit_utility import UtilityModelOption, UtilityOption, measured, open_utility
from transom.cli.options import ListOptions, PolicyFile, sanitizer_under
from transom.cli.texts import FileOptions
from transom.data.rows import read_texts
from transom.errors import MisconfiguredError
from transom.privacy.presets import PRESETS, Preset
from transom.report.finding import interrupted


def text(
    file: Annotated[Path, typer.Argument(help="Your text: .txt, .csv, .tsv, .jsonl, .json, .parquet, or -.")],
    preset: Annotated[tuple[Preset, ...], "Preset; repeatable, all of them by default. One of"] = (),
    *,
    changes: PolicyFile,
    listing: ListOptions,
    where: FileOptions,
    epsilon: Annotated[
        float | None, typer.Option(help="Epsilon a drawn word; overrides the presets'.", min=0)
    ] = None,
    prior: Annotated[Path | None, "The attacker's own text, in a file of any kind."] = None,
    prior_column: Annotated[str | None, "Column of --prior, where it has columns."] = None,
    language_model: Annotated[
        str | None,
        f"The attacker's causal model, as {DEFAULT_MODEL}; takes most of --budget. None by default.",
    ] = None,
    utility: UtilityOption = None,
    utility_model: UtilityModelOption = "smollm2",
    options: Options,
) -> None:
    """Choose a preset: what each leaves readable, changes without need, lets an attacker read, and keeps.

    Your lists and recognisers are asked as a second opinion here, and not applied.
    """
    names = list(dict.fromkeys(preset or PRESETS))
    if own_attacks := [one for one in options.attack if ":" in one]:
        raise MisconfiguredError(f"{own_attacks[0]} is an attack of your own; transom audit words runs it")
    attacks = frozenset(attack.NAME for attack in choose(ATTACKS, options.attack))
    sanitizers = {name: sanitizer_under(changes, name, epsilon) for name in names}
    claims, tasks = listing.claims(), open_utility(utility, utility_model, None)
    sample = where.sample(file)
    own = read_texts(prior, prior_column) if prior else ()
    model = None if language_model is None else causal.load_causal(language_model)
    first = sanitizers[names[0]].policy
    record = {
        "target": f"{file}, {sample.told}",
        "policy": first.name,
        "presets": ", ".join(names),
        "prior": f"{prior}, {len(own)} texts" if prior else "public word frequencies",
        "language model": language_model or "none",
        "second opinion": "public lists" + (", your lists and recognisers" if listing.given else ""),
    }
    with auditing("text", record, (), options) as audit:
        exposures: list[Exposure] = []
        settings: list[At] = []
        for number, name in enumerate(names):
            audit.setting = name
            started = time.monotonic()
            opinion = Opinion(sanitizers[name].policy, claims)
            attacker = Attacker(own, model, audit.left_s / (len(names) - number), attacks)
            texts = [one.text for one in sample.texts]
            exposures.append(expose(name, sanitizers[name], texts, opinion, attacker))
            audit.left_s -= time.monotonic() - started
            audit.add(exposures[-1].findings())
            audit.comparison = compare(exposures, sample.texts, opinions=listing.given)
            settings.append(At(name, protected(sanitizers[name]), exposures[-1].read))
        audit.setting = ""
        audit.frontier, failed = measured(tasks, settings, quiet=options.json)
        audit.comparison = with_utility(audit.comparison, audit.frontier)
        audit.findings += failed
        if interrupted(failed):
            raise KeyboardInterrupt
