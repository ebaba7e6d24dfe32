"""Write what is generated: `python docs/generate.py [cli] [api] [policy] [kinds] [picture]`, by default all.

`cli.md` is the command line's own help, `api.md` what `src/transom/__init__.pyi` names, `english-policy.md`
the shipped policy's figures computed from its integers, with its hash in GUARANTEES.md, the table of kinds in
`words.md` what the presets do with each (tests/test_docs.py fails when one drifts), the picture a real
`transom chat --show-host`.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

import transom
from transom.cli.main import app, run
from transom.privacy.data import ENGLISH_SHA256
from transom.privacy.explain import explain
from transom.privacy.kinds import KINDS, SUBKINDS, base_of
from transom.privacy.placeholders import LABEL_OF_KIND
from transom.privacy.policy import load_policy
from transom.privacy.presets import PRESETS, with_preset

DOCS = Path(__file__).parent
QUESTION = "Write a short thank-you letter to Marguerite Okafor, who gave $4,815 to our cancer clinic."
ROOMS = {
    "privacy": "Words, mechanisms, guarantees, the ledger",
    "serving": "Gateway and engines",
    "enclave": "Bundles, evidence, key release",
    "obfuscation": "Disguised checkpoints",
    "link": "Tensors between two parties",
    "checkpoint": "Models and their parts",
    "audit": "What an adversary recovers",
    "report": "Findings and reports",
    "net": "Serving and pins",
    "data": "Rows and texts",
    "errors": "Errors",
}
WIDTH = 110
KINDS_HEAD = f"| kind | what | placeholder | {' | '.join(f'`{preset}`' for preset in PRESETS)} |"
EPSILONS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)


def cli_page() -> str:
    """The command line's help as one Markdown page."""
    command = typer.main.get_command(app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), name="transom", title="Command line")
    return f"{page.strip()}\n"


class Bare:
    """A text that a signature shows as it stands, without quotes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def signature(name: str) -> str:
    """How a public name is called, under that name; one parameter a line where that is long."""
    value = getattr(transom, name)
    if getattr(value, "_is_protocol", False):
        return f"class {name}(Protocol)"
    if isinstance(value, type) and issubclass(value, Exception):
        return f"class {name}({', '.join(base.__name__ for base in value.__bases__)})"
    found = inspect.signature(value)
    given = []
    for one in found.parameters.values():
        if isinstance(one.annotation, str):
            one = one.replace(annotation=Bare(one.annotation))
        if repr(one.default).startswith("<") and one.default is not one.empty:
            one = one.replace(default=Bare("..."))  # made anew for each call, or has no name of its own
        given.append(one)
    ends = "" if isinstance(value, type) else f" -> {found.return_annotation}"
    called = f"{name}{found.replace(parameters=given, return_annotation=found.empty)}{ends}"
    if len(called) <= WIDTH:
        return called
    return "\n".join([f"{name}(", *(f"    {part}," for part in _parts(given)), f"){ends}"])


def _parts(given: list[inspect.Parameter]) -> list[str]:
    """Parameters as they are written, with the star before those that are given by name only."""
    texts, starred = [], False
    for one in given:
        starred |= (first := one.kind is one.KEYWORD_ONLY and not starred)
        texts += ["*"] * first + [str(one)]
        starred |= one.kind is one.VAR_POSITIONAL
    return texts


def api_page() -> str:
    """What can be imported from `transom`, by room: how it is called, and what its docstring begins with."""
    lines = [
        "# Python",
        "",
        "`from transom import NAME`; nothing heavy is imported before its first use. What an error means:",
        "[exit-codes.md](exit-codes.md). Whatever is not listed here may change without notice.",
    ]
    homes = transom._homes()
    for room, title in ROOMS.items():
        lines += ["", f"## {title}"]
        for name in transom.__all__:
            home = homes[name][0]
            if home.split(".")[1] == room:
                text = " ".join((inspect.getdoc(getattr(transom, name)) or "").split("\n\n")[0].split())
                lines += [
                    "",
                    f"### {name}",
                    "",
                    "```python",
                    signature(name),
                    "```",
                    "",
                    f"{text} (`{home}`)",
                ]
    return "\n".join(lines) + "\n"


def policy_page() -> str:
    """Exact figures of the shipped policy, one row an epsilon."""
    policy = load_policy()
    lines = [
        "# The shipped English policy",
        "",
        f"{len(policy.words)} words in {len(policy.partition.starts_G1) - 1} groups, mechanism "
        f"`{policy.mechanism}`, default epsilon {policy.epsilon:g} a word. sha256 `{policy.sha256}`.",
        "",
        "Computed from the integer tables of all groups. The attacker knows mechanism, group and public",
        "frequencies; success is the share of drawn words recovered, chance the share without looking.",
        "",
        "| epsilon | exact epsilon | attacker's success | chance | keep-rate | outputs used |",
        "|---|---|---|---|---|---|",
    ]
    for epsilon in EPSILONS:
        found = explain(policy, policy.mechanism, epsilon)
        lines.append(
            f"| {epsilon:g} | {found.exact_epsilon:.6f} | {found.bayes_success:.1%} "
            f"| {found.bayes_chance:.1%} | {found.keep_rate:.1%} "
            f"| {found.outputs_used:.1f} of {found.group_size:.1f} |"
        )
    return "\n".join(lines) + "\n"


def kinds_table() -> str:
    """What each preset does with each kind; sub-kinds are indented below the base that they belong to."""
    policies = [with_preset(load_policy(), preset) for preset in PRESETS]
    lines = [KINDS_HEAD, "|" + "---|" * (3 + len(PRESETS))]
    about = KINDS | {kind: meaning for kind, (_, meaning) in SUBKINDS.items()}
    for kind in sorted(about, key=lambda one: (list(KINDS).index(base_of(one)), one in SUBKINDS)):
        name = f"&emsp;{kind}" if kind in SUBKINDS else kind
        rules = (one.rule(kind) for one in policies)
        cells = (rule if isinstance(rule, str) else f"drawn, epsilon {rule:g}" for rule in rules)
        label = "" if kind == "stop" else f"`[{LABEL_OF_KIND[kind]}_1]`"
        lines.append(f"| {name} | {about[kind]} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Write the files named on the command line."""
    wanted = sys.argv[1:] or ["cli", "api", "policy", "kinds", "picture"]
    if "cli" in wanted:
        (DOCS / "cli.md").write_text(cli_page())
    if "api" in wanted:
        (DOCS / "api.md").write_text(api_page())
    if "policy" in wanted:
        (DOCS / "english-policy.md").write_text(policy_page())
        guarantees = DOCS.parent / "GUARANTEES.md"
        guarantees.write_text(re.sub(r"[0-9a-f]{64}", ENGLISH_SHA256, guarantees.read_text()))
    if "kinds" in wanted:
        page = DOCS / "words.md"
        table = re.escape(KINDS_HEAD) + r"\n(?:\|.*\n)+"
        page.write_text(re.sub(table, lambda _: f"{kinds_table()}\n", page.read_text()))
    if "picture" in wanted:
        picture = DOCS / "chat-show-host.svg"
        sys.exit(run(["chat", "--show-host", QUESTION, "--max-tokens", "80", "--svg", str(picture)]))


if __name__ == "__main__":
    main()
