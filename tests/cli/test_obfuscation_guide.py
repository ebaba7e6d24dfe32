"""The lines of docs/obfuscation.md, run as they stand there, from `obfuscate` to `chat`; with free ports."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transom.checkpoint.tiny import tiny_llama
from transom.cli import main
from transom.obfuscation.card import CARD_FILE, read_card
from transom.obfuscation.keyfile import load_key

GUIDE = (Path(__file__).parents[2] / "docs/obfuscation.md").read_text()
QUESTION = "Does Marguerite owe me 4815 euros?"
VERDICT = "not private against a host that has the base model"


def lines() -> dict[str, list[str]]:
    """The first block's commands by name, without `transom` and `&`."""
    (block,) = re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)[:1]
    words = [shlex.split(line.removeprefix("$ transom ").removesuffix(" &")) for line in block.splitlines()]
    return {one[0]: one for one in words}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A command in the background, as `&` starts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "transom.cli.main", *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str], until: str) -> str:
    """What it says on standard error, up to the line with `until`."""
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(line)
        if until in line:
            return "".join(lines)
    pytest.fail(f"it ended before it said {until!r}; it said: {''.join(lines)}")


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    tiny_llama(Path("tiny"))


@pytest.mark.usefixtures("in_folder")
def test_the_lines_of_the_guide_lead_to_a_chat_whose_gateway_knows_the_card(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told, engine_port = lines(), free_port()
    assert set(told) == {"obfuscate", "engine", "gateway", "chat"}
    assert "--card" not in told["gateway"]
    obfuscate = ["tiny" if word == "smollm2" else word for word in told["obfuscate"]]
    assert main.run([*obfuscate, "--h", "8", "--workers", "1"]) == 0
    output = capsys.readouterr()
    assert VERDICT in output.out
    assert output.err == ""
    assert Path("client", CARD_FILE).read_bytes() == Path("disguised", CARD_FILE).read_bytes()
    assert read_card("client", load_key("secret.key")).findings
    at_engine = [f"http://127.0.0.1:{engine_port}" if "8001" in word else word for word in told["gateway"]]
    with started([*told["engine"], "--port", str(engine_port)]) as engine:
        assert re.fullmatch(r"serving smollm2 at .*\n", said(engine, "serving"))
        with started([*at_engine, "--port", "0"]) as gateway:
            text = said(gateway, "gateway in mode")
            assert VERDICT in text
            assert "not audited" not in text
            shown, record = asked(told["chat"], re.findall(r"at (\S+)/v1", text)[0], capsys)
    assert "can read if it has the base model: the text itself" in shown
    assert QUESTION in record["host_can_read"]
    assert re.fullmatch(r"<\d+>( <\d+>)*", record["host_saw"])


def asked(chat: list[str], gateway: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, str]]:
    """What the guide's chat shows of the host, wrapped lines joined, and what `--json` has."""
    line = [gateway if word.startswith("http") else word for word in chat]
    line += [QUESTION, "--max-tokens", "4"]
    assert main.run(line) == 0
    rows = [row.rsplit("│", 2) for row in capsys.readouterr().out.splitlines() if row.endswith("│")]
    shown = " ".join(row[1].strip() for row in rows)
    assert main.run([*line, "--json"]) == 0
    record: dict[str, str] = json.loads(capsys.readouterr().out)
    return shown, record
