"""Commands that load models say on standard error what is theirs, and nothing that libraries would say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from transom.checkpoint.tiny import tiny_llama

from ..checkpoint.ggufs import draft_of, model_of

# One process, as each start takes seconds; its first command is the one that finds the libraries untouched.
RUN = """
import contextlib, io, json, os, sys
from transom.cli.main import run
for line in json.loads(sys.argv[1]):
    with open("err", "w+") as err, open("out", "w+") as out:
        kept = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        code = run(line.split())
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(kept[0], 1), os.dup2(kept[1], 2)
        out.seek(0), err.seek(0)
        print(json.dumps([code, out.read(), err.read()]), flush=True)
"""
LINES = {
    "obfuscate mixture --out a --key ka --h 8 --workers 2 --no-audit --json": "",
    "obfuscate file.gguf --out b --key kb --h 8 --workers 1 --json": "",
    "audit checkpoint a --base mixture --key ka --tokens 20 --attack nn --attack fingerprint --json": "",
    "obfuscate-gguf a --out a.gguf": "a.gguf: ",
    "pack make mixture --out packed --owner owner --json": "",
    "obfuscate mixture/config.json --out c --key kc": "transom: misconfigured: ",
}


def test_nothing_foreign_on_standard_error_and_one_object_on_standard_output(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "mixture", architecture="Mixtral", num_local_experts=4, num_experts_per_tok=2)
    draft_of(model_of("qwen2")).write(tmp_path / "file.gguf")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(list(LINES))],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    for (line, expected), answer in zip(LINES.items(), done.stdout.splitlines(), strict=True):
        code, out, err = json.loads(answer)
        assert (code == 0) == (expected != "transom: misconfigured: "), (line, err)
        assert err.startswith(expected), line
        assert err.count("\n") == bool(expected), (line, err)
        if "--json" in line:
            assert isinstance(json.loads(out), dict), line
