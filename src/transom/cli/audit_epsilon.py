"""`transom audit epsilon MODULE:CALLABLE`: does a mechanism of your own break the epsilon it claims?

The callable takes one JSON value and returns something hashable, or floats: a number, a list, an array. It
runs in a process of its own until the samples are drawn or the budget is spent.
With --gate the exit code is 20 when a larger epsilon than the bound is certified, or nothing could be
measured; a bound equal to the claim asks for just that claim.
Threat model: the mechanism is the user's own code; the attacker sees as many outputs as it asks for.
Does not prove privacy: a claim that survives was not refuted on these two inputs with these samples.
Source: `transom.audit.attacks.epsilon`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from transom.audit.attack import choose
from transom.audit.attacks import epsilon as distinguisher
from transom.cli.audit_report import Options, auditing
from transom.config import load_json
from transom.errors import MisconfiguredError


def epsilon(
    mechanism: Annotated[str, typer.Argument(help="module:callable, in this folder or installed.")],
    epsilon: Annotated[float, "The claim, 0 or more."],
    a: Annotated[str, "One input, as JSON."],
    b: Annotated[str, "Another that the claim calls a neighbour, as JSON."],
    delta: Annotated[float, "The claim's delta, below 1."] = 0.0,
    samples: Annotated[int, "Outputs to draw on each input, 4 or more."] = 20_000,
    alpha: Annotated[float, "The rate of false alarms to stay below."] = 0.01,
    *,
    options: Options,
) -> None:
    """Try to catch a mechanism that claims (epsilon, delta) breaking its claim."""
    inputs = distinguisher.Inputs(_parsed("--a", a), _parsed("--b", b), samples, alpha)
    if inputs.a == inputs.b:
        raise MisconfiguredError("--a and --b are the same value; give two that the claim calls neighbours")
    claim = distinguisher.Claim(mechanism, epsilon, delta)
    distinguisher.check(samples, epsilon, delta, alpha)
    record = {"target": mechanism, "epsilon": epsilon, "delta": delta, "samples": samples, "alpha": alpha}
    chosen = choose((distinguisher,), options.attack)
    with auditing("epsilon", record, chosen, options) as audit:
        audit.attack(chosen, claim, None, inputs)


def _parsed(option: str, text: str) -> object:
    try:
        return load_json(text)
    except ValueError:
        raise MisconfiguredError(
            f"{option} holds {len(text)} characters that are no JSON; a word is '\"word\"', in both quotes"
        ) from None
