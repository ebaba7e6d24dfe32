"""`transom audit vertical JOB.yaml`: what the parties of a vertical training read in what they were sent.

    transom audit vertical feature.yaml                          the label party's view, by the feature party
    transom audit vertical label.yaml --gate 0.9                 the feature party's view, by the label party
    transom audit vertical label.yaml --partner feature.yaml     both, where both files are here

The job must have trained with `train.record_traffic_mb`. Each party has the truth of its own side: features
are scored where the feature party's job is given, labels where the label party's is.
Threat model: run by a party on its own machine, with its partner's part played by the attacks; the law of the
noise is the attacker's too. Does not prove privacy: only that these attacks, within this budget, found no
more.
Source: each attack's own docstring.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from transom.audit.attack import choose
from transom.audit.attacks import vertical_inversion, vertical_labels
from transom.cli.audit_report import Options, auditing
from transom.cli.output import progress
from transom.config import Setting
from transom.report.finding import Attack


def attacks() -> tuple[Attack, ...]:
    """Those on embeddings, and those on gradients."""
    return (*vertical_inversion.attacks(), *vertical_labels.attacks())


def vertical(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A party's job, YAML.")],
    partner: Annotated[Path | None, "The other party's job, where its file is here too."] = None,
    known: Annotated[int, Setting("Rows whose columns the label party knows.", least=0)] = 200,
    known_labels: Annotated[int, Setting("Labels of each class that the feature party knows.", least=0)] = 10,
    *,
    options: Options,
) -> None:
    """Attack what each party of a vertical training receives: embeddings, and gradients."""
    from transom.audit.vertical_case import case
    from transom.vertical.job import read_job

    jobs = [replace(read_job(path), device="cpu") for path in (job, partner) if path is not None]
    law = next((one.noise.kind for one in jobs if one.role == "feature"), "not told")
    record = {"target": str(job), "task": jobs[0].task, "schedule": jobs[0].train.schedule, "law": law}
    chosen = choose(attacks(), options.attack)
    with auditing("vertical", record, chosen, options) as audit:
        with progress("reading", quiet=options.json):
            made = case(jobs[0], jobs[1] if partner else None, known, known_labels)
        audit.record |= made.told
        audit.attack(chosen, made.target, made.knowledge, made.data)
