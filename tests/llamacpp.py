"""llama.cpp as an oracle: its own code reads a GGUF and says what comes next, in a child process.

A file costs some ten milliseconds. The child may die of a file; the next question gets a new child. Rarely it
gives no answer to what it answers at once when asked again: after a minute a new child is asked, once.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHILD = """
import http.client, json, sys, time, urllib.parse, xllamacpp
answers = open(3, "w")

def ask(server, path, body=None):
    address = urllib.parse.urlsplit(server.listening_address)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.request("POST" if body is not None else "GET", path, body and json.dumps(body))
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, text

file = server = None
for line in sys.stdin:
    question = json.loads(line)
    try:
        if question["file"] != file:
            server, file = None, None
            p = xllamacpp.CommonParams()
            p.model.path, p.n_ctx, p.n_parallel, p.warmup = question["file"], question["n_ctx"], 1, False
            p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
            server, file = xllamacpp.Server(p), question["file"]
            while ask(server, "/health")[0] != 200:
                time.sleep(0.005)
        status, text = 200, json.dumps(server.listening_address)
        if question["path"]:
            status, text = ask(server, question["path"], question["body"])
        answer = {"status": status, "answer": json.loads(text)}
    except Exception as error:
        server = file = None
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
"""


ANSWER_S = 60


class LlamaCppError(Exception):
    """llama.cpp does not load this file, or died of it."""


class LlamaCpp:
    """Questions to llama.cpp about GGUF files. All are asked with nothing cached."""

    def __init__(self, n_ctx: int = 512) -> None:
        self._n_ctx = n_ctx
        self._child: subprocess.Popen[str] | None = None

    def ask(self, file: Path, path: str, body: Any = None) -> Any:
        """The answer of its server's route. Raises LlamaCppError."""
        question = json.dumps({"file": str(file), "n_ctx": self._n_ctx, "path": path, "body": body})
        line = self._line(question)
        if line is None and (line := self._line(question)) is None:
            raise LlamaCppError(f"llama.cpp gave no answer about {file}, twice")
        if not line:
            self.close()
            raise LlamaCppError(f"llama.cpp died of {file}")
        answer = json.loads(line)
        if answer.get("status") != 200:
            raise LlamaCppError(str(answer.get("error") or answer["answer"]))
        return answer["answer"]

    def _line(self, question: str) -> str | None:
        """The child's answer, "" where it died, None where it gave none in time; then it is ended."""
        if self._child is None:
            self._child = subprocess.Popen(
                ["/bin/sh", "-c", 'exec "$@" 3>&1 1>/dev/null 2>&1', "sh", sys.executable, "-c", CHILD],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert self._child.stdin
        assert self._child.stdout
        with suppress(BrokenPipeError):
            print(question, file=self._child.stdin, flush=True)
        if not select.select([self._child.stdout], [], [], ANSWER_S)[0]:
            self.close()
            return None
        return self._child.stdout.readline()

    def next_logprobs(
        self, file: Path, ids: Sequence[int], vocabulary: int, *, say: int | None = None
    ) -> NDArray[np.float64]:
        """Log-probabilities of the next token after `ids`, float64 [vocabulary].

        A token inside a character is answered without scores; so `say` another, whose bias they leave out.
        """
        more = {} if say is None else {"logit_bias": [[say, 100]]}
        (step,) = self._steps(file, ids, 1, vocabulary, **more)
        row_V = np.full(vocabulary, np.nan)
        for one in step["top_logprobs"]:
            row_V[one["id"]] = one["logprob"]
        return row_V

    def greedy(self, file: Path, ids: Sequence[int], count: int) -> list[int]:
        """The likeliest continuation, at most `count` ids; it ends at the file's own stop token."""
        return [step["id"] for step in self._steps(file, ids, count, 1)]

    def tokenize(self, file: Path, text: str, *, special: bool = True, bos: bool = False) -> list[int]:
        """The ids of a text; `special` matches control tokens in it, `bos` adds what the file asks for."""
        body = {"content": text, "add_special": bos, "parse_special": special}
        return list(self.ask(file, "/tokenize", body)["tokens"])

    def url(self, file: Path) -> str:
        """Where its server answers for this file, until it is asked about another one."""
        return str(self.ask(file, "")).rstrip("/")

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _steps(
        self, file: Path, ids: Sequence[int], count: int, n_probs: int, **more: Any
    ) -> list[dict[str, Any]]:
        body = {
            "prompt": list(ids), "n_predict": count, "n_probs": n_probs, "temperature": 0,
            "cache_prompt": False, "return_tokens": True, **more,
        }  # fmt: skip
        return list(self.ask(file, "/completion", body)["completion_probabilities"])


@contextmanager
def llamacpp(n_ctx: int = 512) -> Iterator[LlamaCpp]:
    """An oracle for the length of a test module."""
    oracle = LlamaCpp(n_ctx)
    try:
        yield oracle
    finally:
        oracle.close()
