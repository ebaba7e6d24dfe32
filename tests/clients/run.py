"""Real clients against a gateway on the embedded engine, in modes plain and words: `make test-clients`.

    python -m tests.clients.run --python PYTHON [--client NAME ...] [--write]

Each client runs in an environment of its own (PYTHON, with `requirements.txt`), in a process of its own. What
it is known for must bring a text, in pieces where it streams; in mode words no private word of the question
may be in any byte that the engine received, and in mode plain all are. Fails where something else came than
`results.json` says, so that what breaks and what begins to work are both seen; `--write` writes it anew, with
the date, and with it `docs/clients.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.progress import track
from tests.clients.asking import CLIENTS

from transom.cli.ask import embedded_engine, words_gateway
from transom.cli.options import WordOptions
from transom.net.listen import serve_in_thread
from transom.serving.engines.client import IdsEngine
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.tokenizer import load_tokenizer

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results.json", HERE.parents[1] / "docs" / "clients.md"
PRIVATE = ("Marguerite", "Okafor")
LONGEST_S = 300
HEAD = """# Clients

What real clients do with a gateway on the embedded engine, each as its package index has it, with nothing
changed but the base URL (and the model's name, `transom`). `make test-clients` runs them and fails where one
does something else than stands here, which was written on {date}.

| client | version | does | plain | words |
|---|---|---|---|---|
"""


@contextmanager
def gateways(seen: list[bytes]) -> Iterator[dict[str, str]]:
    """The URLs of a gateway in each mode, before one engine."""
    with ExitStack() as stack:
        engine = stack.enter_context(embedded_engine("smollm2", seen.append))
        plain = create_gateway(GatewayConfig(), IdsEngine(engine), load_tokenizer("smollm2"))
        yield {
            "plain": stack.enter_context(serve_in_thread(plain)),
            "words": stack.enter_context(words_gateway(engine, "smollm2", WordOptions().sanitizer())),
        }


def asked(python: str, client: str, url: str) -> dict[str, Any]:
    done = subprocess.run(
        [Path(python).absolute(), HERE / "asking.py", client, f"{url}/v1"], capture_output=True,
        text=True, check=False, timeout=LONGEST_S, cwd=HERE,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{client} did not run:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def works(told: dict[str, Any]) -> bool:
    answer = told.get("answer")
    pieces = answer if isinstance(answer, list) else [answer]
    several = not isinstance(answer, list) or len(pieces) > 1
    return several and bool("".join(map(str, filter(None, pieces))).strip())


def row(python: str, client: str, urls: dict[str, str], seen: list[bytes]) -> dict[str, Any]:
    found: dict[str, Any] = {"client": client, "did": {}}
    for mode, url in urls.items():
        seen.clear()
        told = asked(python, client, url)
        found["version"] = told["version"]
        read = [load_tokenizer("smollm2").detokenizer().feed(ids) for ids in prompts(seen)]
        leaked = [word for word in PRIVATE if any(word in text for text in read)]
        if mode == "words" and leaked:
            sys.exit(f"{client}: the engine received {len(leaked)} private words")
        if mode == "plain" and seen and not leaked:
            sys.exit(f"{client}: the engine never received the question, so words prove nothing")
        for name, one in told["did"].items():
            found["did"].setdefault(name, {})[mode] = "works" if works(one) else reason(one)
    return found


def prompts(seen: list[bytes]) -> list[list[int]]:
    return [json.loads(body)["prompt"] for body in seen]


def reason(told: dict[str, Any]) -> str:
    """What the gateway said, or the client's first line."""
    error = str(told.get("error", "nothing came"))
    said = re.search(r"'message': (['\"])(.+?)\1,", error)
    return said[2] if said else error.splitlines()[0][:160]


def page(results: dict[str, Any]) -> str:
    lines = [
        f"| {one['client'] if not number else ''} | {one['version'] if not number else ''} | {name} | "
        f"{did['plain'].replace('|', ' ')} | {did['words'].replace('|', ' ')} |"
        for one in results["clients"]
        for number, (name, did) in enumerate(one["did"].items())
    ]
    return HEAD.format(date=results["date"]) + "\n".join(lines) + "\n"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--python", required=True)
    flags.add_argument("--client", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    flags.add_argument("--write", action="store_true")
    args = flags.parse_args()
    seen: list[bytes] = []
    with gateways(seen) as urls:
        rows = [row(args.python, one, urls, seen) for one in track(args.client, "asking")]
    stored = json.loads(RESULTS.read_text("utf-8"))["clients"] if RESULTS.exists() else []
    kept = {one["client"]: one for one in stored}
    if args.write:
        kept |= {one["client"]: one for one in rows}
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        results = {"date": today, "clients": [kept[one] for one in CLIENTS if one in kept]}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
        PAGE.write_text(page(results), "utf-8")
        return
    for one in rows:
        print(one["client"], one["version"], json.dumps(one["did"]))
    wrong = [one["client"] for one in rows if kept.get(one["client"], {}).get("did") != one["did"]]
    if wrong:
        sys.exit(f"not as results.json says: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
