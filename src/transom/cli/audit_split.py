"""`transom audit split JOB.yaml`: what the vendor of a split tuning reads in what it was sent.

    transom audit split job.yaml --public reviews.tsv
    transom audit split job.yaml --public reviews.txt --attack eia/inverter --gate 0.3

The rows that the job trains on leave once more as they did in the run, with its noise where OUT/customer
holds it, and else with noise as a new run would have. Tokens that are spared are scored once more apart.
Attacks on attributes need a public file with the job's columns, those on gradients the layout customer.
Threat model: run by the customer, with the vendor's part played by the attacks; model, cut, law and spared
tokens are the vendor's too. Texts that are audited are taken out of --public.
Does not prove privacy: only that these attacks, within this budget, found no more.
Source: each attack's own docstring.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from transom.audit.attack import choose
from transom.audit.attacks import (
    split_attribute,
    split_gradient,
    split_inverter,
    split_labels,
    split_nearest,
    split_next,
    split_pooled,
)
from transom.cli.audit_report import Options, auditing
from transom.cli.output import progress
from transom.config import Setting
from transom.report.finding import Attack

ON_TOKENS: tuple[Attack, ...] = (split_nearest, split_inverter, split_gradient)
ATTACKS: tuple[Attack, ...] = (
    *ON_TOKENS,
    *split_pooled.attacks(),
    *split_attribute.attacks(),
    *split_labels.attacks(),
    split_next,
)
CONTRIBUTING = "contributing tokens"


def split(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="The customer's job, YAML.")],
    public: Annotated[Path, "The attacker's own texts: a text a line, or a table with the job's columns."],
    limit: Annotated[int, Setting("Audit the first so many rows.", least=1)] = 100,
    known: Annotated[int, Setting("Labels of each class that the vendor knows.", least=0)] = 2,
    *,
    options: Options,
) -> None:
    """Attack what the vendor of a split tuning sees: noised states, and gradients at the top."""
    from transom.audit.split_case import case
    from transom.split.job import read_job

    read = replace(read_job(job), device="cpu")  # where the attacks are
    record = {
        "target": str(job),
        "model": read.model,
        "cut": f"after block {read.after_block}" if read.after_block else "at the embedding",
        "layout": read.layout,
        "law": read.noise.kind if read.tunnel.kind == "none" else read.tunnel.kind,
    }
    chosen = choose(ATTACKS, options.attack)
    with auditing("split", record, chosen, options) as audit:
        with progress(f"loading {read.model}", quiet=options.json):
            made = case(read, public, limit, known)
        audit.record |= made.told
        apart = [one for one in chosen if one in ON_TOKENS] if made.contributing else []
        audit.attack(chosen, made.target, made.knowledge, made.data, of=2 if apart else 1)
        if apart:
            audit.setting = CONTRIBUTING
            audit.attack(apart, made.target, made.knowledge, made.contributing)
