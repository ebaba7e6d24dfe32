"""`transom audit tunnel JOB.yaml`: what a partner reads in what leaves a feature party through its tunnel.

    transom audit tunnel shop.yaml --property income                          recorded traffic
    transom audit tunnel shop.yaml --partner bank.yaml --known 2000           a run of both parties, here
    transom audit tunnel photos.yaml --partner labels.yaml --image 28x28 --html report.html

Property inference and reconstruction read what left; feature-space hijacking plays a label party that sends
gradients of its own, against the job's bottom, mechanism and `watch`. With --image rows are images of grey
values, and the page shows what was made of them.
Threat model: run by the feature party on its own machine, with its partner's part played by the attacks.
Does not prove privacy: only that these attacks, within this budget, found no more.
Source: each attack's own docstring.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from transom.cli.audit_report import Options, auditing
from transom.cli.output import progress
from transom.config import Setting
from transom.errors import MisconfiguredError
from transom.report.finding import Attack


@dataclass(frozen=True, kw_only=True)
class TunnelOptions(Options):
    """The common options; four attacks of five minutes each."""

    budget: Annotated[float, Setting("Minutes for the attacks together; loading comes on top.", least=0)] = (
        20.0
    )


def attacks(metric: str) -> tuple[Attack, ...]:
    """Those on what left, and those that train the party."""
    from transom.audit.attacks import tunnel_hijack, tunnel_read

    return (*tunnel_read.attacks(metric), *tunnel_hijack.attacks(metric))


def tunnel(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="The feature party's job, YAML.")],
    partner: Annotated[Path | None, "The label party's job: without traffic both train here."] = None,
    known: Annotated[int, Setting("Rows that the attacker knows, at most half of all.", least=0)] = 2000,
    column: Annotated[
        str, typer.Option("--property", help="A column; whether it is above its median is inferred.")
    ] = "",
    image: Annotated[str, "Height and width of images, as 28x28."] = "",
    *,
    options: TunnelOptions,
) -> None:
    """Attack what leaves through a tunnel: property inference, reconstruction, hijacking."""
    from transom.audit.attack import choose
    from transom.audit.attacks.tunnel_view import SSIM, require_images
    from transom.audit.attacks.vertical_inversion import VARIANCE
    from transom.audit.tunnel_case import case
    from transom.vertical.job import read_job

    shape = _shape(image)
    if shape:
        require_images()  # before both parties train
    chosen = choose(attacks(SSIM if shape else VARIANCE), options.attack)
    feature = replace(read_job(job), device="cpu")
    label = None if partner is None else replace(read_job(partner), device="cpu")
    with auditing("tunnel", {"target": str(job), "task": feature.task}, chosen, options) as audit:
        with progress("reading, or training both parties", quiet=options.json):
            made = case(feature, label, known, column, shape)
        audit.record |= made.told
        audit.attack(chosen, made.target, made.knowledge, made.data)


def _shape(image: str) -> tuple[int, int] | None:
    if not image:
        return None
    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", image)
    if found is None or min(int(found[1]), int(found[2])) < 3:
        raise MisconfiguredError(f"--image {image!r:.20} is no height and width of 3 and more; write 28x28")
    return int(found[1]), int(found[2])
