"""Write the generated files here: `python docs/generate.py [cli] [policy] [picture]`, by default all.

`cli.md` is the command line's own help, `english-policy.md` the shipped policy's figures computed from its
integers, with its hash in GUARANTEES.md (tests/test_docs.py fails when one drifts), the picture a real
`transom chat --show-host`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from transom.cli.main import app, run
from transom.privacy.data import ENGLISH_SHA256
from transom.privacy.explain import explain
from transom.privacy.policy import load_policy

DOCS = Path(__file__).parent
QUESTION = "How can my friend Marguerite save 4815 dollars in a year to get a quokka?"
EPSILONS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)


def cli_page() -> str:
    """The command line's help as one Markdown page."""
    command = typer.main.get_command(app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), name="transom", title="Command line")
    return f"{page.strip()}\n"


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


def main() -> None:
    """Write the files named on the command line."""
    wanted = sys.argv[1:] or ["cli", "policy", "picture"]
    if "cli" in wanted:
        (DOCS / "cli.md").write_text(cli_page())
    if "policy" in wanted:
        (DOCS / "english-policy.md").write_text(policy_page())
        guarantees = DOCS.parent / "GUARANTEES.md"
        guarantees.write_text(re.sub(r"[0-9a-f]{64}", ENGLISH_SHA256, guarantees.read_text()))
    if "picture" in wanted:
        picture = DOCS / "chat-show-host.svg"
        sys.exit(run(["chat", "--show-host", QUESTION, "--max-tokens", "60", "--svg", str(picture)]))


if __name__ == "__main__":
    main()
