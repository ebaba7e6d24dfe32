"""An engine and a gateway with a detector, asked by the official client: sentences are marked as they arrive.

python examples/hallucination_smollm2/live.py DETECTOR [QUESTION ...]
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

COMMAND = Path(sys.executable).with_name("transom")
MODEL, STARTING_S, MOST_TOKENS = "smollm2", 120.0, 60
QUESTIONS = (
    "In which country is the city of Lyon?",
    "In which country is the city of Semey?",
    "In which country is the city of Boston?",
    "In which country is the city of Barinas?",
)


@contextmanager
def served(model: str, detector: Path) -> Iterator[str]:
    """The URL of a gateway in mode plain, while it and its engine run."""
    engine_port, port = free_port(), free_port()
    option = ["--risk-detector", str(detector)]
    commands = (
        ["engine", model, "--port", str(engine_port), *option],
        [
            "gateway",
            "--mode",
            "plain",
            "--engine",
            f"http://127.0.0.1:{engine_port}",
            "--port",
            str(port),
            *option,
        ],
    )
    running = []
    try:
        for words, at in zip(commands, (engine_port, port), strict=True):
            print(f"$ transom {' '.join(words)} &")
            running.append(
                subprocess.Popen([COMMAND, *words], stderr=subprocess.DEVNULL)  # noqa: S603 (ours)
            )
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


def watch(url: str, question: str) -> list[dict[str, Any]]:
    """Ask, print sentences as they are judged, and return what the last chunk tells of them."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        model="transom", messages=[{"role": "user", "content": question}], max_tokens=MOST_TOKENS,
        temperature=0, stream=True,
    )  # fmt: skip
    print(f"\n{question}")
    text, note = "", dict[str, Any]()
    for chunk in stream:
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        told = (chunk.model_extra or {}).get("transom", {}).get("annotations", {}).get("hallucination")
        if not told:
            continue
        if isinstance(told, list):  # the last one tells of each whole answer
            (note,) = told
            continue
        for one in told["sentences"]:
            mark = "!" if one["flagged"] else " "
            print(f"  {mark} {one['risk']:.2f}  {text[one['start'] : one['end']].strip()}")
    said = "flagged" if note["flagged"] else "clear"
    print(
        f"  whole answer: {said}, risk {note['risk']:.2f} (line {note['line']:.2f})",
        *note["why"],
        sep="\n    ",
    )
    return list(note["sentences"])


def main() -> None:
    """Read the command line."""
    if len(sys.argv) < 2:
        sys.exit((__doc__ or "").strip())
    with served(MODEL, Path(sys.argv[1])) as url:
        for question in sys.argv[2:] or QUESTIONS:
            watch(url, question)


if __name__ == "__main__":
    main()
