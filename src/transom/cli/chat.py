"""`transom chat`: talk to a model through a gateway, with what its host saw beside the answer.

Threat model: as the gateway's. The conversation is kept in this process's memory and nowhere else; a
picture (`--svg`) holds the private side too. Does not protect: a question on the command line stands where
the operating system shows it to every process of this machine; `-` reads it from standard input.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from transom.cli.ask import (
    Exchange,
    ask,
    connect,
    embedded_engine,
    figures,
    judged,
    render,
    require_openai,
    words_gateway,
)
from transom.cli.options import Json, LedgerOptions, WordOptions, ledger_for
from transom.cli.output import progress
from transom.config import Setting
from transom.errors import ReplaceableError
from transom.files import require_writable

if TYPE_CHECKING:
    from openai import OpenAI


def chat(
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="Ask this and stop; `-` reads standard input.")
    ] = None,
    *,
    show_host: Annotated[bool, "Show what the host saw beside each answer."] = False,
    gateway: Annotated[str | None, "URL of a running gateway; by default one starts for this chat."] = None,
    engine: Annotated[str | None, "URL of a running engine; by default the embedded one starts."] = None,
    model: Annotated[str, "Model to load, or whose tokenizer to use before --engine."] = "smollm2",
    session: Annotated[
        str | None, "Session name; a resent history of the same session costs nothing."
    ] = None,
    max_tokens: Annotated[int, Setting("Length limit of an answer.", least=1)] = 128,
    words: WordOptions,
    restore_words: Annotated[bool, "Put drawn words in answers back, on this side, at no cost."] = False,
    books: LedgerOptions,
    svg: Annotated[Path | None, "Save what was shown as a picture."] = None,
    as_json: Json = False,
) -> None:
    """Chat with a model whose host sees sanitised words only.

    Without a question it reads them from the terminal until the end of input (Ctrl-D).
    """
    own = engine is not None or books != LedgerOptions() or words != WordOptions() or restore_words
    if gateway is not None and own:
        raise ReplaceableError(
            "--engine, --ledger, --no-ledger, --cap, --restore-words and the options of words are for the "
            "gateway that a chat starts; set them on the one at --gateway"
        )
    books.check()
    if svg is not None:
        require_writable(svg)
    require_openai()
    console = Console(record=svg is not None, stderr=as_json, width=120 if svg else None)
    with ExitStack() as stack:
        if gateway is None:
            sanitizer = words.sanitizer()
            book = ledger_for(sanitizer, books)
            if book is not None:
                stack.enter_context(book)
            with progress("starting", quiet=as_json):
                engine = engine or stack.enter_context(embedded_engine(model))
                gateway = stack.enter_context(
                    words_gateway(engine, model, sanitizer, book, restore_words=restore_words)
                )
        client = stack.enter_context(connect(gateway))
        for exchange in talk(
            client, console, question, session or secrets.token_hex(8), max_tokens, show_host
        ):
            if as_json:
                typer.echo(json.dumps(vars(exchange)))
    if svg is not None:
        drawn = console.export_svg(title="transom chat")  # rich names fonts on a public server
        svg.write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL), "utf-8")


def talk(
    client: OpenAI, console: Console, question: str | None, session: str, max_tokens: int, show_host: bool
) -> Iterator[Exchange]:
    """One exchange a question; the conversation so far goes with each, under one session."""
    messages: list[dict[str, str]] = []
    for text in questions(question, console):
        messages.append({"role": "user", "content": text})
        shown = None if show_host else partial(console.out, end="", highlight=False)
        exchange = ask(client, messages, max_tokens=max_tokens, session=session, on_text=shown)
        if show_host:
            console.print(render(exchange))
        else:
            console.print()
            console.print(short(exchange), style="dim")
        for line in judged(exchange):
            console.print(line, style="yellow", markup=False, highlight=False)
        messages.append({"role": "assistant", "content": exchange.answer})
        yield exchange


def short(exchange: Exchange) -> str:
    """The spending in one line."""
    if exchange.guarantee is None:
        return figures(exchange)[-1]
    total = "" if exchange.epsilon_total is None else f" (total {exchange.epsilon_total:g})"
    return f"epsilon {exchange.epsilon_spent:g}{total}; --show-host shows what the host saw"


def questions(question: str | None, console: Console) -> Iterator[str]:
    """The one question, or what is typed until the end of input; empty lines are skipped."""
    if question is not None:
        yield sys.stdin.read() if question == "-" else question
        return
    console.print("Type a question; Ctrl-D ends the chat.", style="dim")
    while True:
        try:
            text = console.input("[bold green]> [/]").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text:
            yield text
