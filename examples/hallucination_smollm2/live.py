"""An engine and a gateway with a detector, asked by the official client: sentences are marked as they arrive.

python examples/hallucination_smollm2/live.py DETECTOR [--svg FILE] [QUESTION ...]
"""

import argparse
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from rich.console import Console
from rich.table import Table
from rich.text import Text

COMMAND = Path(sys.executable).with_name("transom")
MODEL, STARTING_S, MOST_TOKENS = "smollm2", 120.0, 40
QUESTIONS = tuple(f"In which country is the city of {one}?" for one in ("Lyon", "Semey", "Boston", "Barinas"))


@contextmanager
def served(model: str, detector: Path) -> Iterator[str]:
    """The URL of a gateway in mode plain, while it and its engine run."""
    engine_port, port = free_port(), free_port()
    engine = f"http://127.0.0.1:{engine_port}"
    commands = {
        engine_port: ["engine", model, "--port", str(engine_port)],
        port: ["gateway", "--mode", "plain", "--tokenizer", model, "--engine", engine, "--port", str(port)],
    }
    commands = {at: [*words, "--risk-detector", str(detector)] for at, words in commands.items()}
    running = []
    try:
        for at, words in commands.items():
            print(f"$ transom {' '.join(words)} &")
            running.append(subprocess.Popen([COMMAND, *words], stderr=subprocess.DEVNULL))  # noqa: S603 (ours)
            wait(at, running[-1])
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()


def free_port() -> int:
    """One that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Until something listens. Raises RuntimeError where the process ended, or it takes too long."""
    ends = time.monotonic() + STARTING_S
    while time.monotonic() < ends and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"nothing listens at port {port}; run the command above by hand to see why")


def watch(url: str, question: str, console: Console) -> list[dict[str, Any]]:
    """Ask, print sentences as they are judged, and return what the last chunk tells of them."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        model="transom", messages=[{"role": "user", "content": question}], max_tokens=MOST_TOKENS,
        temperature=0, stream=True,
    )  # fmt: skip
    console.print(f"\n> {question}", style="bold", markup=False)
    text, note = "", dict[str, Any]()
    for chunk in stream:
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        told = (chunk.model_extra or {}).get("transom", {}).get("annotations", {}).get("hallucination")
        if isinstance(told, list):  # the last one tells of each whole answer
            (note,) = told
        for one in told["sentences"] if isinstance(told, dict) else ():
            style = "bold red" if one["flagged"] else "green"
            said = text[one["start"] : one["end"]].strip()
            console.print(beside(Text(f"{one['risk']:.2f}", style), Text(said)))
    if note.get("risk") is None:
        console.print(beside(Text(), Text(f"not judged: {note.get('reason') or note.get('error')}", "dim")))
        return []
    verdict = "flagged" if note["flagged"] else "clear"
    lines = (f"answer {verdict}, risk {note['risk']:.2f} (line {note['line']:.2f})", *note["why"])
    console.print(*(beside(Text(), Text(line, "dim")) for line in lines))
    return list(note["sentences"])


def beside(left: Text, right: Text) -> Table:
    """Two columns, the first narrow."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=6, justify="right")
    grid.add_column()
    grid.add_row(left, right)
    return grid


def watched(detector: Path, questions: Sequence[str] = (), svg: Path | None = None) -> None:
    """Ask all of them; `svg` saves what was shown as a picture."""
    console = Console(record=svg is not None, width=104 if svg else None, highlight=False)
    with served(MODEL, detector) as url:
        for question in questions or QUESTIONS:
            watch(url, question, console)
    if svg is not None:
        drawn = console.export_svg(title="an answer through transom gateway --risk-detector")
        svg.write_text(
            re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL), "utf-8"
        )  # no font from a server


def main() -> None:
    """Read the command line."""
    flags = argparse.ArgumentParser(usage=(__doc__ or "").strip())
    flags.add_argument("detector", type=Path)
    flags.add_argument("questions", nargs="*")
    flags.add_argument("--svg", type=Path)
    args = flags.parse_intermixed_args()
    watched(args.detector, args.questions, args.svg)


if __name__ == "__main__":
    main()
