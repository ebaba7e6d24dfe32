"""The README's walk from a CSV to restored answers and its other commands on texts run as they stand."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from transom.net.listen import serve_in_thread
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.echo import EchoEngine
from transom.serving.engines.job import Job, Step
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.tokenizer import load_tokenizer

README = (Path(__file__).parents[1] / "README.md").read_text()


class Parrot(EchoEngine):
    """An echo that does not stop at the end-of-turn tokens of its own prompt."""

    async def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        async for step in super().generate(replace(job, stop_ids=frozenset())):
            yield step


def section(head: str) -> str:
    parts = re.split(r"^## ", README, flags=re.MULTILINE)
    return next(part for part in parts if part.startswith(f"{head}\n"))


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.+?)^```", text, re.DOTALL | re.MULTILINE)


def shell(folder: Path, block: str) -> str:
    """Run the commands of a block in `folder`; what they print on standard output."""
    script = "\n".join(line.removeprefix("$ ") for line in block.splitlines())
    (folder / "bin").mkdir(exist_ok=True)
    for name, command in (("transom", "-m transom.cli.main"), ("python", "")):
        tool = folder / "bin" / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        tool.chmod(0o700)
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env={**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_a_csv_goes_from_reviews_to_restored_answers(tmp_path: Path) -> None:
    text = section("A CSV, from installation to restored answers")
    before, _servers, after = blocks("console", text)
    shown = shell(tmp_path, before)
    assert blocks("text", text)[0].strip() in shown
    assert "Okafor" not in (tmp_path / "safe.csv").read_text()
    gateway = GatewayConfig(mode="plain")
    with (
        serve_in_thread(Parrot(model="smollm2").app()) as engine,
        serve_in_thread(create_gateway(gateway, IdsEngine(engine), load_tokenizer("smollm2"))) as url,
    ):
        script = blocks("python", text)[0]
        assert "http://127.0.0.1:8000" in script
        (tmp_path / "answer.py").write_text(script.replace("http://127.0.0.1:8000", url))
        shell(tmp_path, after)
    with (
        (tmp_path / "reviews.csv").open(newline="") as asked,
        (tmp_path / "restored.csv").open(newline="") as got,
    ):
        rows = list(zip(csv.DictReader(asked), csv.DictReader(got), strict=True))
    assert len(rows) == 2
    for review, restored in rows:
        assert restored["text"] == review["text"]
        assert "[PERSON_1]" not in restored["answer"]
    assert "Jane Miller" in rows[0][1]["answer"]  # the echo of a placeholder, restored


@pytest.mark.timeout(120)
def test_own_lists_do_what_is_shown(tmp_path: Path) -> None:
    text = section("Your own lists and recognisers")
    assert shell(tmp_path, blocks("console", text)[0]).strip() == blocks("text", text)[0].strip()
