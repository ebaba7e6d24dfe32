"""Obfuscated SmolLM2 answers as the plain one does, on the engines themselves: embedded, llama.cpp, vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from openai import OpenAI

from transom.audit.agreement import Agreement, compare, next_scores
from transom.checkpoint.load import load
from transom.obfuscation.client import write_client
from transom.obfuscation.gguf_writer import write_gguf
from transom.obfuscation.keyfile import KeyFile
from transom.obfuscation.keys import preset, token_map
from transom.obfuscation.plain import open_source
from transom.obfuscation.writer import obfuscate
from transom.serving.engines.base import Engine
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.llamacpp import LlamaCppEngine
from transom.serving.engines.request import Limits
from transom.serving.engines.server import create_engine_app
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.obfuscated import Substitution
from transom.serving.local import serve_in_thread
from transom.serving.tokenizer import load_tokenizer

from .test_gguf_writer import llamacpp

README = Path(__file__).parents[2] / "README.md"
QUESTION = [{"role": "user", "content": "Name the capital city of France."}]
SECRET = bytes(range(32))  # fixed, so that the figures below are the same each time
K = 500


class Pair(NamedTuple):
    """SmolLM2 as a directory, plain and obfuscated (preset exact, h = 144), and the client's side."""

    plain: Path
    hidden: Path
    client: Path
    substitution: Substitution


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("smollm2")
    checkpoint = load("smollm2")
    checkpoint.model.save_pretrained(root / "plain")
    source = open_source("smollm2")
    key = KeyFile(source.fingerprint, source.vocabulary, preset("exact", h=144), SECRET, SECRET)
    write_client(source.found, source.config, key, root / "client")
    obfuscate(source, root / "hidden", key)
    substitution = Substitution(token_map(key.secret, key.vocabulary))
    return Pair(root / "plain", root / "hidden", root / "client", substitution)


def prefixes(pair: Pair, every: int, length: int = 48, count: int = 40) -> list[tuple[int, ...]]:
    """Beginnings of pieces of the README, cut at every so many tokens; text that calibration never saw."""
    text = README.read_text(encoding="utf-8")
    ids = load_tokenizer(pair.client).encode_text(text).ids
    pieces = [ids[start : start + length] for start in range(0, len(ids) - length, length)]
    return [tuple(piece[:end]) for piece in pieces for end in range(every, length + 1, every)][:count]


Serve = Callable[[Path], AbstractContextManager[Engine]]


@contextmanager
def embedded(folder: Path) -> Iterator[Engine]:
    checkpoint = load(folder, dtype="float32")
    with (
        EmbeddedEngine(checkpoint) as engine,
        serve_in_thread(create_engine_app(engine, limits=Limits(logprobs=K))) as url,
    ):
        yield IdsEngine(url)


@contextmanager
def llama_cpp(folder: Path) -> Iterator[Engine]:
    file = folder.with_suffix(".gguf")
    with llamacpp(write_gguf(folder, file)) as port:
        yield LlamaCppEngine(f"http://127.0.0.1:{port}")


def agreement(pair: Pair, serve: Serve, prompts: list[tuple[int, ...]]) -> Agreement:
    """The same prompts to both checkpoints, one after the other."""
    scores = []
    for folder, substitution in ((pair.plain, None), (pair.hidden, pair.substitution)):
        with serve(folder) as engine:
            scores.append(asyncio.run(_scores(engine, prompts, substitution)))
    return compare(*scores)


async def _scores(
    engine: Engine, prompts: list[tuple[int, ...]], substitution: Substitution | None
) -> list[dict[int, float]]:
    found = await next_scores(engine, prompts, K, substitution)
    await engine.close()
    return found


@pytest.mark.parametrize("serve", [embedded, llama_cpp])
def test_next_tokens_are_those_of_the_plain_model(pair: Pair, serve: Serve) -> None:
    found = agreement(pair, serve, prefixes(pair, every=12))
    assert found.named > 0.8
    assert found.kl < 0.02
    assert found.top1 >= 0.9  # of so few positions; the benchmark has the figure
