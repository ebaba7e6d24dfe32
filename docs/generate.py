"""Write the generated pages of this folder: `python docs/generate.py [cli] [picture]`, by default both.

`cli.md` comes from the command line's own help (tests/test_docs.py fails when it drifts), the picture from a
real `transom chat --show-host` on the embedded model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from transom.cli.main import app, run

DOCS = Path(__file__).parent
QUESTION = "My friend Marguerite has 4815 dollars and a pet quokka. What should she do with them?"


def cli_page() -> str:
    """The command line's help as one Markdown page."""
    command = typer.main.get_command(app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), name="transom", title="Command line")
    return f"{page.strip()}\n"


def main() -> None:
    """Write the pages named on the command line."""
    wanted = sys.argv[1:] or ["cli", "picture"]
    if "cli" in wanted:
        (DOCS / "cli.md").write_text(cli_page())
    if "picture" in wanted:
        picture = DOCS / "chat-show-host.svg"
        sys.exit(run(["chat", "--show-host", "--ask", QUESTION, "--max-tokens", "60", "--svg", str(picture)]))


if __name__ == "__main__":
    main()
