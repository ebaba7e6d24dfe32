"""An obfuscated folder as GGUF: llama.cpp computes from it what transformers computes from the folder."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from openai import OpenAI
from safetensors.torch import load_file, save_file
from typer import Typer
from typer.testing import CliRunner

from transom.checkpoint.gguf_llama import read_llama
from transom.checkpoint.tiny import tiny_llama
from transom.cli.obfuscate import obfuscate
from transom.cli.obfuscated import ObfuscatedOptions, obfuscate_gguf, open_key
from transom.errors import CheckpointError, MisconfiguredError, NotYetError, TransomError
from transom.net.listen import serve_in_thread
from transom.obfuscation.gguf_writer import write_gguf
from transom.serving.engines.llamacpp import LlamaCppEngine
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig

SERVER = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port = sys.argv[1], int(sys.argv[2])
p.hostnames, p.n_ctx, p.n_parallel, p.cpuparams.n_threads = ["127.0.0.1"], 256, 1, 1
server = xllamacpp.Server(p)
sys.stdin.read()
"""
# As after obfuscation: the heads together are narrower than the hidden size.
SHAPE = {"hidden_size": 96, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"attention_bias": True},
    "Mistral": {},
    "Llama 3.1": {"rope_parameters": LLAMA3},
    "Qwen3": {},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "DeepseekV3": EXPERTS | LATENT | {"n_group": 2, "topk_group": 1, "q_lora_rank": 64},
    "DeepseekV2": EXPERTS | LATENT | {"n_group": 1, "topk_group": 1, "q_lora_rank": 64},
    "Qwen3Moe": EXPERTS | {"num_experts": 4, "norm_topk_prob": True},
}
PROMPT = [5, 17, 99, 40, 7, 201, 33]


@contextmanager
def llamacpp(path: Path) -> Iterator[int]:
    """The port of llama.cpp's own server with this model, in its own process."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(path), str(port)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not healthy(port):
            assert process.poll() is None, "llama.cpp's server stopped while starting"
            assert time.monotonic() < deadline, "llama.cpp's server did not start"
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.communicate()


def healthy(port: int) -> bool:
    try:
        return "ok" in request(port, "GET", "/health")["status"]
    except (OSError, KeyError):
        return False


def request(port: int, method: str, path: str, body: Any = None) -> Any:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def logprobs(folder: Path, ids: list[int]) -> torch.Tensor:
    """transformers' log-probabilities after each id, float32 [T, V]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize(
    ("family", "kind", "tolerance"), [(f, "f16", 0.03) for f in FAMILIES] + [("Llama", "q8_0", 0.5)]
)
def test_llamacpp_agrees_with_transformers(tmp_path: Path, family: str, kind: str, tolerance: float) -> None:
    folder = tiny_llama(tmp_path / "model", architecture=family.split()[0], **SHAPE | FAMILIES[family])
    out = write_gguf(folder, tmp_path / "model.gguf", kind)
    options = {"n_predict": 6, "temperature": 0, "n_probs": 20, "return_tokens": True}
    with llamacpp(out) as port:
        answer = request(port, "POST", "/completion", {"prompt": PROMPT, **options})
    tokens = answer["tokens"]
    assert answer["content"] == "".join(f"<{i}>" for i in tokens)
    expected_TV = logprobs(folder, PROMPT + tokens)[len(PROMPT) - 1 : -1]
    errors = [
        abs(float(row_V[one["id"]]) - one["logprob"])
        for row_V, entry in zip(expected_TV, answer["completion_probabilities"], strict=True)
        for one in entry["top_logprobs"]
    ]
    assert len(errors) == 6 * 20
    assert np.mean(errors) < tolerance  # llama.cpp rounds states as well; any two tokens differ by nats


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """A GGUF's weights under transformers' names, float32; its vocabulary is one that no tokenizer takes."""
    weights: dict[str, torch.Tensor] = read_llama(path, transformers, torch)[1]
    return weights


def test_every_weight_survives_within_its_rounding(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", **SHAPE, tie_word_embeddings=False)
    plain = load_file(folder / "model.safetensors")
    for kind, largest in (("f16", 2**-11), ("q8_0", 0.5 / 127 + 2**-11)):
        write_gguf(folder, tmp_path / f"{kind}.gguf", kind)
        read = weights_of(tmp_path / f"{kind}.gguf")
        assert set(read) == set(plain)
        for name, weight in plain.items():
            bound = 0 if weight.dim() == 1 else largest * weight.abs().max() * 1.01
            assert (read[name] - weight).abs().max() <= bound, name


def test_bfloat16_and_several_files_are_read(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", **SHAPE)
    one = load_file(folder / "model.safetensors")
    whole = write_gguf(folder, tmp_path / "whole.gguf")
    names = sorted(one)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    (folder / "model.safetensors").unlink()
    for part, held in parts.items():
        save_file({name: one[name].bfloat16() for name in held}, folder / part)
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    split = write_gguf(folder, tmp_path / "split.gguf")
    first, second = weights_of(whole), weights_of(split)
    for name, weight in first.items():
        assert torch.allclose(weight, second[name], rtol=2**-7, atol=1e-6), name


def edited(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "kind", "error"),
    [
        ({}, "q4_0", MisconfiguredError),
        ({"hidden_size": 40}, "q8_0", MisconfiguredError),
        ({"model_type": "gpt2"}, "f16", NotYetError),
        ({"rope_parameters": {"rope_type": "yarn"}}, "f16", NotYetError),
        ({"model_type": "qwen3_moe", "norm_topk_prob": False}, "f16", NotYetError),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], kind: str, error: type[TransomError]
) -> None:
    shape = SHAPE | {name: value for name, value in changes.items() if name in SHAPE}
    folder = tiny_llama(tmp_path / "model", **shape)
    edited(folder, **changes)
    with pytest.raises(error):
        write_gguf(folder, tmp_path / "out.gguf", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_values_that_do_not_fit_and_strange_tensors_leave_nothing(tmp_path: Path, value: float) -> None:
    folder = tiny_llama(tmp_path / "model", **SHAPE)
    weights = load_file(folder / "model.safetensors")
    strange = weights | {"model.layers.0.mystery.weight": torch.zeros(2)}
    save_file(strange, folder / "model.safetensors")
    with pytest.raises(NotYetError, match="mystery"):
        write_gguf(folder, tmp_path / "out.gguf")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="up_proj"):
        write_gguf(folder, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", **SHAPE)
    (tmp_path / "out.gguf").write_bytes(b"mine")
    with pytest.raises(MisconfiguredError, match="exists"):
        write_gguf(folder, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == b"mine"
    with pytest.raises(MisconfiguredError, match="cannot write"):
        write_gguf(folder, tmp_path / "nowhere" / "out.gguf")


def command(*arguments: object) -> None:
    app = Typer()
    app.command("obfuscate")(obfuscate)
    app.command("obfuscate-gguf")(obfuscate_gguf)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception


def test_from_a_plain_checkpoint_to_an_answer_of_llamacpp(tmp_path: Path) -> None:
    plain = tiny_llama(tmp_path / "plain", hidden_size=128, head_dim=32)
    key, out, gguf = tmp_path / "key", tmp_path / "out", tmp_path / "out.gguf"
    common = ("--preset", "exact", "--lam", 0.05, "--h", 16, "--workers", 1)
    command("obfuscate", plain, "--out", out, "--key", key, *common)
    command("obfuscate-gguf", out, "--out", gguf, "--type", "f16")
    substitution, tokenizer = open_key(ObfuscatedOptions(key, tmp_path / "key.client", out, None))
    ids = list(tokenizer.encode_chat([("user", "Where is the fox?")]).ids)
    hidden = list(substitution.hide(ids))
    with llamacpp(gguf) as port:
        body = {"prompt": hidden, "n_predict": 12, "temperature": 0, "return_tokens": True}
        tokens = request(port, "POST", "/completion", body)["tokens"]
        tokens = [token for token in tokens if token not in substitution.hide(tokenizer.eos_ids)]
        engine = LlamaCppEngine(f"http://127.0.0.1:{port}", model="tiny")
        config = GatewayConfig(mode="obfuscated")
        app = create_gateway(config, engine, tokenizer, substitution=substitution)
        with (
            serve_in_thread(app) as url,
            OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client,
        ):
            answer = client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "Where is the fox?"}], temperature=0,
                max_tokens=len(tokens), logprobs=True, top_logprobs=2,
                extra_headers={"X-Transom-Show-Host": "1"},
            )  # fmt: skip
    assert answer.transom["host_token_ids"] == hidden
    # What the gateway says of each token is what transformers computes from the obfuscated folder,
    entries = answer.choices[0].logprobs.content
    shown = [tokenizer.token_text(token) for token in substitution.reveal(tokens)]
    assert [entry.token for entry in entries] == shown
    found_T = np.array([entry.logprob for entry in entries])
    assert np.abs(found_T - scored(out, hidden, tokens)).max() < 0.1
    # and nearly what the plain model says, though in so small a model kappa is a coarse approximation.
    assert np.abs(found_T - scored(plain, ids, list(substitution.reveal(tokens)))).mean() < 1.0


def scored(folder: Path, prompt: list[int], answer: list[int]) -> np.ndarray:
    """transformers' log-probability of each token of an answer."""
    rows_TV = logprobs(folder, prompt + answer)[len(prompt) - 1 : -1]
    return rows_TV[range(len(answer)), answer].numpy()
