"""A real vLLM, unmodified, on the CPU, behind the gateway: by ids, by embeddings, by its chat endpoint.

It lives in its own environment; `make test-vllm` makes one and sets TRANSOM_VLLM_PYTHON to its python.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPSConnection
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
from openai import OpenAI

from transom.enclave.bundle import pack
from transom.enclave.owner import Owner
from transom.enclave.policy import Rule
from transom.enclave.table import open_table
from transom.net.listen import serve_in_thread
from transom.net.pin import make_certificate
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.base import Call
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.connect import detect
from transom.serving.engines.http import Pinned
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.enclave import Enclave, ExtractionMeter
from transom.serving.tokenizer import load_tokenizer

from .test_llamacpp import QUESTION, healthy

PYTHON = os.environ.get("TRANSOM_VLLM_PYTHON", "")
VLLM_ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "2", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
}  # fmt: skip
MARKS = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON, reason="TRANSOM_VLLM_PYTHON is not set; run `make test-vllm`"),
]
pytestmark = MARKS


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model as a Hugging Face directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from transom.checkpoint.source import packaged_smollm2

    gguf, folder = packaged_smollm2(), tmp_path_factory.mktemp("smollm2")
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del model.config.quantization_config  # the weights are dense by now
    model.hf_quantizer = None
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def guard(key_folder: Path) -> Pinned:
    """The key that the server must hold."""
    return Pinned(make_certificate(key_folder))


@pytest.fixture(scope="module")
def key_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("key")


@pytest.fixture(scope="module")
def vllm(model_folder: Path, guard: Pinned, key_folder: Path) -> Iterator[str]:
    """The URL of a server that holds the key which the guard names."""
    with running_vllm(
        model_folder, "--dtype", "bfloat16", "--enable-prompt-embeds",
        "--ssl-certfile", str(key_folder / "tls.pem"), "--ssl-keyfile", str(key_folder / "tls.key"),
    ) as port:  # fmt: skip
        yield f"https://127.0.0.1:{port}"


@contextmanager
def running_vllm(folder: Path, *options: str) -> Iterator[int]:
    """The port of a vLLM server in its own process, which calls the model smollm2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [
        PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
        "--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port),
        "--max-model-len", "512", "--enforce-eager", *options,
    ]  # fmt: skip
    with TemporaryFile() as output:
        process = subprocess.Popen(command, env=VLLM_ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 600
            while not (healthy_over_tls(port) if "--ssl-keyfile" in options else healthy(port)):
                if process.poll() is not None:
                    output.seek(0)
                    raise AssertionError(output.read().decode(errors="replace")[-3000:])
                assert time.monotonic() < deadline, "vLLM did not start"
                time.sleep(1)
            yield port
        finally:
            process.terminate()
            process.wait(60)


def healthy_over_tls(port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


async def test_answers_by_ids(vllm: str, guard: Pinned, model_folder: Path) -> None:
    assert await detect(vllm, guard=guard) == "vllm"
    app = create_gateway(
        GatewayConfig(), IdsEngine(vllm, vllm=True, guard=guard), load_tokenizer(model_folder)
    )
    with serve_in_thread(app) as url, OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="smollm2", messages=QUESTION, temperature=0, max_tokens=24, logprobs=True, top_logprobs=2
        )
        text = answer.choices[0].message.content
        assert "Paris" in text
        entries = answer.choices[0].logprobs.content
        assert text.startswith("".join(entry.token for entry in entries[:3]))
        chunks = list(
            client.chat.completions.create(
                model="smollm2", messages=QUESTION, temperature=0, max_tokens=24, stream=True, n=2
            )
        )
        assert text == "".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == 1)


async def test_embeddings_in_equal_ids_in(vllm: str, guard: Pinned, model_folder: Path) -> None:
    from safetensors.torch import load_file

    table_VD = load_file(model_folder / "model.safetensors")["model.embed_tokens.weight"].float().numpy()
    tokenizer = load_tokenizer(model_folder)
    texts = ("The capital of France is", "The quick brown fox", "1, 2, 3, 4,")
    prompts = tuple(tokenizer.encode_text(text).ids for text in texts)
    client = IdsEngine(vllm, vllm=True, guard=guard)
    found = []
    for content in ({"prompts": prompts}, {"embeds": tuple(table_VD[list(prompt)] for prompt in prompts)}):
        call = Call(**content, max_tokens=16, temperature=0, stream=True)
        pieces = [(delta.index, i) async for delta in client.generate(call) for i in delta.ids]
        found.append([[i for index, i in pieces if index == wanted] for wanted in range(len(prompts))])
    await client.close()
    assert found[0] == found[1]
    assert all(len(ids) > 3 for ids in found[0])


def test_answers_by_its_chat_endpoint(vllm: str, guard: Pinned) -> None:
    app = create_gateway(GatewayConfig(), ChatEngine(vllm, guard=guard))
    with serve_in_thread(app) as url, OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="smollm2", messages=QUESTION, temperature=0, max_tokens=24
        )
        assert "Paris" in answer.choices[0].message.content
        assert answer.usage.completion_tokens > 0


def test_mode_enclave_answers_as_plain_mode(
    vllm: str, guard: Pinned, model_folder: Path, tmp_path: Path
) -> None:
    """A bundle's rows through vLLM's `prompt_embeds`; the same sanitised words as ids in plain mode."""
    owner, policy = Owner(tmp_path / "owner"), load_policy()
    manifest = pack(
        str(model_folder), tmp_path / "bundle", owner, production=False, rules=(Rule("insecure-dev"),),
        policy_sha256=policy.sha256, name="smollm2",
    )  # fmt: skip
    client = tmp_path / "bundle" / "client"
    table = open_table(client, manifest, owner.data_key(manifest.bundle))
    enclave = Enclave(table, ExtractionMeter(manifest.rows, 1.0), manifest.model, "none", "")

    def ask(app: Any, content: str) -> Any:
        with (
            serve_in_thread(app) as url,
            OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as openai,
        ):
            return openai.chat.completions.create(
                model="transom", messages=[{"role": "user", "content": content}], temperature=0,
                max_tokens=24, extra_headers={"X-Transom-Show-Host": "1"},
            )  # fmt: skip

    def engine() -> IdsEngine:
        return IdsEngine(vllm, vllm=True, guard=guard)

    hidden = ask(
        create_gateway(
            GatewayConfig(mode="enclave"), engine(), load_tokenizer(client), Sanitizer(policy), None, enclave
        ),
        "Which meal did the doctor cook at home?",
    )
    seen = re.search(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", hidden.transom["host_saw"], re.S)
    assert seen is not None
    plain = ask(create_gateway(GatewayConfig(), engine(), load_tokenizer(client)), seen[1])
    assert plain.transom["host_token_ids"] == hidden.transom["host_token_ids"]
    assert plain.choices[0].message.content == hidden.choices[0].message.content
    assert len(plain.choices[0].message.content) > 10
