"""An obfuscated folder as GGUF: llama.cpp computes from it what transformers computes from the folder.

Float32 files are compared, as rounding to F16 alone may send a token to another expert. Of three prompts the
middle error counts, for the same reason: llama.cpp rounds keys and values.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from openai import OpenAI
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from transom.checkpoint.gguf import read_gguf_head
from transom.checkpoint.gguf_weights import gguf_weights
from transom.checkpoint.load import load
from transom.checkpoint.resolve import flattened
from transom.checkpoint.tiny import tiny_llama
from transom.cli.app import App
from transom.cli.obfuscate import obfuscate
from transom.cli.obfuscated import ObfuscatedOptions, obfuscate_gguf, open_key
from transom.errors import CheckpointError, MisconfiguredError, NotYetError, TransomError
from transom.net.listen import serve_in_thread
from transom.obfuscation import gguf_writer
from transom.obfuscation.gguf_known import require_known
from transom.obfuscation.gguf_writer import shortened, write_gguf
from transom.serving.engines.llamacpp import LlamaCppEngine
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig

from ..llamacpp import LlamaCpp, llamacpp
from .gguf_families import FAMILIES, FLAGS, Flag, V, next_logprobs, save_model, settings

SHAPE = {"hidden_size": 96, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
PROMPTS = [np.random.default_rng(seed).integers(5, V, 38).tolist() for seed in range(3)]


@pytest.fixture(scope="module")
def oracle() -> Iterator[LlamaCpp]:
    with llamacpp() as running:
        yield running


def error_nats(
    oracle: LlamaCpp, folder: Path, family: str, flags: Sequence[Flag], kind: str = "f32"
) -> float:
    """Mean error of the next token's log-probabilities, the middle one of three prompts.

    What our own reader makes of a float32 file has to answer as the model that was written.
    """
    model = save_model(folder / "model", family, settings(family, *flags))
    file = write_gguf(folder / "model", folder / "model.gguf", kind)
    if kind == "f32":
        read = next_logprobs(load(file).model, PROMPTS[0])
        assert np.abs(read - next_logprobs(model, PROMPTS[0])).max() < 1e-4, [flag.name for flag in flags]
    rows = [(oracle.next_logprobs(file, ids, V), next_logprobs(model, ids)) for ids in PROMPTS]
    file.unlink()
    return sorted(float(np.abs(found_V - expected_V).mean()) for found_V, expected_V in rows)[1]


def in_few(flags: Sequence[Flag]) -> Iterator[list[Flag]]:
    """Flags together, so that every two which can be set at once are in one configuration."""
    left = [pair for pair in combinations(flags, 2) if not set(pair[0].changes) & set(pair[1].changes)]
    while left:
        chosen = list(left[0])
        for pair in left:
            joined = chosen + [flag for flag in pair if flag not in chosen]
            if all(not set(a.changes) & set(b.changes) for a, b in combinations(joined, 2)):
                chosen = joined
        yield chosen
        left = [pair for pair in left if not (pair[0] in chosen and pair[1] in chosen)]


@pytest.mark.parametrize("family", FAMILIES)
def test_llamacpp_agrees_under_every_flag_and_every_pair(
    tmp_path: Path, oracle: LlamaCpp, family: str
) -> None:
    right = [flag for flag in FLAGS[family] if flag.refused is None]
    for number, flags in enumerate([[], *([flag] for flag in right), *in_few(right)]):
        names = [flag.name for flag in flags]
        assert error_nats(oracle, tmp_path / str(number), family, flags) < 0.01, names


@pytest.mark.parametrize("family", FAMILIES)
def test_what_llamacpp_would_compute_otherwise_is_refused_by_name_alone_and_beside_others(
    tmp_path: Path, family: str
) -> None:
    wrong = [flag for flag in FLAGS[family] if flag.refused is not None]
    for number, flag in enumerate(wrong):
        save_model(tmp_path / str(number), family, settings(family, flag))
        with pytest.raises(NotYetError, match=flag.refused):
            write_gguf(tmp_path / str(number), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    right = [flag for flag in FLAGS[family] if flag.refused is None]
    for flag, other in ((a, b) for a in wrong for b in right):
        if not set(flag.changes) & set(other.changes):
            keywords = settings(family, other, flag)
            config = flattened(transformers.AutoConfig.for_model(family, **keywords))
            with pytest.raises(
                NotYetError, match="partial" if "partial" in str(flag.refused) else flag.refused
            ):
                require_known(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_that_a_later_class_may_bring_is_refused_by_name(family: str) -> None:
    config = flattened(transformers.AutoConfig.for_model(family, **settings(family)))
    require_known(config)
    require_known(config | {"no_such_thing": None})
    with pytest.raises(NotYetError, match="no_such_thing is not known"):
        require_known(config | {"no_such_thing": 0})
    with pytest.raises(NotYetError, match="no_such_thing is not known"):
        require_known(config | {"rope_parameters": config["rope_parameters"] | {"no_such_thing": 0}})
    with pytest.raises(NotYetError, match=r"hidden_act is 'relu'.*512 layers"):
        require_known(config | {"hidden_act": "relu", "num_hidden_layers": 513})


@pytest.mark.parametrize(("kind", "tolerance"), [("f16", 0.02), ("q8_0", 0.2)])
def test_rounded_files_answer_nearly_the_same(
    tmp_path: Path, oracle: LlamaCpp, kind: str, tolerance: float
) -> None:
    wide = Flag("whole blocks", {"intermediate_size": 64})
    for family in ("llama", "qwen3"):
        assert error_nats(oracle, tmp_path / family, family, [wide], kind) < tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_our_own_reader_finds_every_weight_as_it_was_or_rounded(tmp_path: Path, family: str) -> None:
    plain = save_model(tmp_path / "model", family, settings(family)).state_dict()
    read = load(write_gguf(tmp_path / "model", tmp_path / "out.gguf")).model.state_dict()
    assert read.keys() == plain.keys()
    for name, weight in plain.items():
        kept = weight.dim() == 1 or name.endswith("gate.weight")
        assert torch.equal(read[name], weight if kept else weight.half().float()), name


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """A GGUF's weights under transformers' names, float32."""
    return dict(gguf_weights(read_gguf_head(path)))


def test_every_weight_survives_within_its_rounding(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", **SHAPE, tie_word_embeddings=False)
    plain = load_file(folder / "model.safetensors")
    for kind, largest in (("f32", 0.0), ("f16", 2**-11), ("q8_0", 0.5 / 127 + 2**-11)):
        write_gguf(folder, tmp_path / f"{kind}.gguf", kind)
        read = weights_of(tmp_path / f"{kind}.gguf")
        assert set(read) == set(plain)
        for name, weight in plain.items():
            bound = 0 if weight.dim() == 1 else largest * weight.abs().max() * 1.01
            assert (read[name] - weight).abs().max() <= bound, name


def test_bfloat16_and_several_files_are_read_and_a_stale_one_is_not(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", **SHAPE)
    one = load_file(folder / "model.safetensors")
    whole = write_gguf(folder, tmp_path / "whole.gguf")
    names = sorted(one)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    (folder / "model.safetensors").unlink()
    for part, held in parts.items():
        save_file({name: one[name].bfloat16() for name in held}, folder / part)
    save_file({name: 1 - value for name, value in one.items()}, folder / "c.safetensors")
    index = {"metadata": {}, "weight_map": {name: part for part, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    split = write_gguf(folder, tmp_path / "split.gguf")
    first, second = weights_of(whole), weights_of(split)
    for name, weight in first.items():
        assert torch.allclose(weight, second[name], rtol=2**-7, atol=1e-6), name


def edited(folder: Path, file: str = "config.json", **changes: Any) -> None:
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "kind", "error"),
    [
        ({}, "q4_0", MisconfiguredError),
        ({"hidden_size": 40}, "q8_0", MisconfiguredError),
        ({"model_type": "gpt2"}, "f16", TransomError),
        ({"rope_parameters": {"rope_type": "yarn"}}, "f16", TransomError),
        ({"hidden_act": "relu"}, "f16", NotYetError),
        ({"eos_token_id": [1, 2, 3, 4, 5, 6, 7]}, "f16", NotYetError),
        ({"eos_token_id": None}, "f16", NotYetError),
        ({"eos_token_id": 10**6}, "f16", CheckpointError),
        ({"bos_token_id": 10**6}, "f16", CheckpointError),
        ({"pad_token_id": 10**6}, "f16", CheckpointError),
        ({"vocab_size": 77}, "f16", CheckpointError),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], kind: str, error: type[TransomError]
) -> None:
    shape = SHAPE | {name: value for name, value in changes.items() if name in SHAPE}
    folder = tiny_llama(tmp_path / "model", **shape)
    (folder / "generation_config.json").unlink()
    edited(folder, **changes)
    with pytest.raises(error):
        write_gguf(folder, tmp_path / "out.gguf", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("value", [1e6, float("nan"), float("-inf")])
def test_values_that_do_not_fit_and_strange_tensors_leave_nothing(tmp_path: Path, value: float) -> None:
    folder = tiny_llama(tmp_path / "model", **SHAPE)
    weights = load_file(folder / "model.safetensors")
    strange = weights | {"model.layers.0.mystery.weight": torch.zeros(2)}
    save_file(strange, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="mystery"):
        write_gguf(folder, tmp_path / "out.gguf")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="up_proj"):
        write_gguf(folder, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    if np.isfinite(value):
        write_gguf(folder, tmp_path / "out.gguf", "f32")
        write_gguf(folder, tmp_path / "out8.gguf", "q8_0")
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 2e7
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="up_proj"):
            write_gguf(folder, tmp_path / "more.gguf", "q8_0")


def test_an_existing_file_is_kept_and_one_that_appears_meanwhile_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tiny_llama(tmp_path / "model", **SHAPE), tmp_path / "out.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(MisconfiguredError, match="exists"):
        write_gguf(folder, out)
    with pytest.raises(MisconfiguredError, match="cannot write"):
        write_gguf(folder, tmp_path / "nowhere" / "out.gguf")
    out.unlink()
    write = gguf_writer._write

    def slowly(*arguments: Any) -> None:
        write(*arguments)
        out.write_bytes(b"another's")

    monkeypatch.setattr(gguf_writer, "_write", slowly)
    with pytest.raises(MisconfiguredError, match="meanwhile"):
        write_gguf(folder, out)
    assert out.read_bytes() == b"another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.gguf"]


def test_a_kill_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama(tmp_path / "model", **SHAPE)
    monkeypatch.setattr(gguf_writer, "_encoded", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    child = os.fork()
    if not child:
        try:
            write_gguf(folder, tmp_path / "out.gguf")
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_window_shortens_the_context_and_is_told(tmp_path: Path) -> None:
    save_model(tmp_path / "model", "mistral", settings("mistral", Flag("window", {"sliding_window": 40})))
    head = read_gguf_head(write_gguf(tmp_path / "model", tmp_path / "out.gguf"))
    assert head.metadata["llama.context_length"] == 40
    assert "context 40 instead of 128" in shortened(tmp_path / "model")
    save_model(tmp_path / "whole", "mistral", settings("mistral"))
    assert shortened(tmp_path / "whole") == ""


def test_each_id_that_ends_an_answer_ends_it_in_llamacpp(tmp_path: Path, oracle: LlamaCpp) -> None:
    save_model(tmp_path / "model", "llama", settings("llama", Flag("unused", {"eos_token_id": 0})))
    ids = oracle.greedy(write_gguf(tmp_path / "model", tmp_path / "out.gguf", "f32"), PROMPTS[0], 12)
    assert len(ids) == 12
    end = next(i for i in range(3, 12) if ids[i] not in ids[:i])
    others = [token for token in range(V) if token not in ids][:5]
    for place in range(6):
        ends = [*others[:place], ids[end], *others[place:]]
        (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        file = write_gguf(tmp_path / "model", tmp_path / f"{place}.gguf", "f32")
        assert oracle.greedy(file, PROMPTS[0], 12)[:end] == ids[:end]
        assert len(oracle.greedy(file, PROMPTS[0], 12)) <= end + 1


def command(*arguments: object) -> str:
    app = App()
    app.command("obfuscate")(obfuscate)
    app.command("obfuscate-gguf")(obfuscate_gguf)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stderr


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2"])
def test_from_a_plain_checkpoint_to_an_answer_of_llamacpp(
    tmp_path: Path, oracle: LlamaCpp, architecture: str
) -> None:
    shape = {"head_dim": 32} if architecture == "Llama" else {}
    plain = tiny_llama(tmp_path / "plain", architecture=architecture, hidden_size=128, **shape)
    key, out, gguf = tmp_path / "key", tmp_path / "out", tmp_path / "out.gguf"
    common = ("--preset", "exact", "--lam", 0.05, "--h", 16, "--workers", 1, "--no-audit")
    command("obfuscate", plain, "--out", out, "--key", key, *common)
    command("obfuscate-gguf", out, "--out", gguf, "--type", "f16")
    substitution, tokenizer = open_key(ObfuscatedOptions(key, tmp_path / "key.client", None, None))
    ids = list(tokenizer.encode_chat([("user", "Where is the fox?")]).ids)
    hidden = list(substitution.hide(ids))
    body = {"prompt": hidden, "n_predict": 12, "temperature": 0, "return_tokens": True}
    tokens = [
        token
        for token in oracle.ask(gguf, "/completion", body)["tokens"]
        if token not in substitution.hide(tokenizer.eos_ids)
    ]
    engine, config = LlamaCppEngine(oracle.url(gguf), model="tiny"), GatewayConfig(mode="obfuscated")
    app = create_gateway(config, engine, tokenizer, substitution=substitution)
    with (
        serve_in_thread(app) as url,
        OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client,
    ):
        answer: Any = client.chat.completions.create(
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
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        rows_TV = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    return rows_TV[range(len(answer)), answer].numpy()
