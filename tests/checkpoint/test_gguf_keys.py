"""Every key about a model: one thing at a time changed, the answer is llama.cpp's or a refusal by name.

The sweep takes each key that a file of each architecture has, and each that any architecture reads, with
several values. Nothing may be dropped in silence: what loads must answer as llama.cpp does on the same file.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoint.ggufs import CONFIGS, D, Draft, H, V, draft_of, model_of
from tests.checkpoint.test_gguf_models import (
    DIVISORS,
    assert_close,
    decided,
    load_model,
    next_of,
)
from tests.llamacpp import LlamaCpp, LlamaCppError, llamacpp

from transom.checkpoint.gguf import read_gguf_head
from transom.checkpoint.gguf_config import gguf_config, gguf_model
from transom.errors import CheckpointError, NotYetError

KINDS = sorted(CONFIGS)
# Keys of other architectures, or that are optional, with values that would change a model that reads them.
OTHERS: dict[str, list[Any]] = {
    "attention.causal": [False], "attention.scale": [0.5], "attention.clamp_kqv": [0.1],
    "attention.max_alibi_bias": [8.0], "attention.sliding_window": [8, 4096],
    "attention.sliding_window_pattern": [3], "attention.key_length_swa": [8],
    "attention.value_length_swa": [8], "attention.temperature_scale": [0.1], "attention.output_scale": [0.5],
    "attention.shared_kv_layers": [1], "attn_logit_softcapping": [2.0], "final_logit_softcapping": [2.0],
    "router_logit_softcapping": [2.0], "logit_scale": [0.5], "residual_scale": [0.5],
    "embedding_scale": [2.0], "rope.scale_linear": [4.0], "rope.scaling.factor": [0.0, 1.0, 4.0],
    "rope.scaling.type": ["none", "linear", "yarn"], "rope.scaling.attn_factor": [1.5],
    "rope.scaling.original_context_length": [32], "rope.scaling.finetuned": [True],
    "rope.scaling.alpha": [4.0], "rope.scaling.yarn_log_multiplier": [0.2],
    "rope.scaling.yarn_ext_factor": [0.5], "rope.scaling.yarn_attn_factor": [2.0],
    "rope.scaling.yarn_beta_fast": [2.0], "rope.scaling.yarn_beta_slow": [2.0],
    "rope.dimension_count": [4, 8], "rope.dimension_count_swa": [8], "rope.freq_base_swa": [500.0],
    "expert_group_count": [2], "expert_group_used_count": [1], "expert_shared_count": [1],
    "expert_feed_forward_length": [16], "expert_shared_feed_forward_length": [16],
    "expert_weights_scale": [2.0], "expert_weights_norm": [True, False], "expert_gating_func": [0, 1, 2, 3],
    "leading_dense_block_count": [0, 1, 2], "nextn_predict_layers": [1], "interleave_moe_layer_step": [2],
    "use_parallel_residual": [True], "pooling_type": [1], "vocab_size": [V, V // 2], "swin_norm": [True],
    "expert_count": [2], "expert_used_count": [1], "an_invention": [1],
}  # fmt: skip
# llama.cpp has switched the window off; `test_gguf_models` says what becomes of it here.
OWN_WAY = {("phi3", "attention.sliding_window")}


@pytest.fixture(scope="module")
def oracle() -> Iterator[LlamaCpp]:
    with llamacpp() as one:
        yield one


def changes(draft: Draft) -> Iterator[tuple[str, Any]]:
    """Each key of the file with other values, and each further one; None takes it away."""
    for key, value in draft.keys.items():
        yield key, None
        if isinstance(value, bool):
            yield key, not value
        elif isinstance(value, int):
            yield from ((key, value + 1), (key, 2 * value), (key, max(value - 1, 0)))
        else:
            yield from ((key, 2 * value), (key, 0.0), (key, float("nan")))
    for key, values in OTHERS.items():
        yield from ((key, value) for value in values if draft.keys.get(key) != value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_key_is_llama_cpps_or_refused(kind: str, oracle: LlamaCpp, tmp_path: Path) -> None:
    draft = draft_of(model := model_of(kind))
    ids, keys, loaded = decided(model), draft.keys, 0
    for number, (key, value) in enumerate(changes(draft)):
        if (kind, key) in OWN_WAY:
            continue
        draft.keys = {k: v for k, v in (keys | {key: value}).items() if v is not None}
        path = draft.write(tmp_path / f"{number}.gguf")
        try:
            ours = next_of(load_model(path), ids)
        except (CheckpointError, NotYetError):
            path.unlink()
            continue
        assert_close(ours, oracle.next_logprobs(path, ids, V))
        loaded += 1
        path.unlink()
    assert loaded >= 8  # remarks, other bases and scalings; the others have no other value


REFUSED: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "rotated less than the head": ("llama", {"rope.dimension_count": 8}, CheckpointError, "8 of them"),
    "rotated less, without one's own width": (
        "qwen3", {"rope.dimension_count": 8}, CheckpointError, "8 of them rotated",
    ),
    "base of nothing": ("llama", {"rope.freq_base": 0.0}, CheckpointError, r"freq_base is 0\.0"),
    "base below nothing": ("qwen2", {"rope.freq_base": -1.0}, CheckpointError, r"freq_base is -1\.0"),
    "endless base": ("llama", {"rope.freq_base": float("inf")}, CheckpointError, "freq_base is inf"),
    "base of a word": ("llama", {"rope.freq_base": "x" * 99}, CheckpointError, "freq_base is a str"),
    "epsilon that is none": (
        "llama", {"attention.layer_norm_rms_epsilon": float("nan")}, CheckpointError, "epsilon is nan",
    ),
    "epsilon below nothing": (
        "gemma2", {"attention.layer_norm_rms_epsilon": -1e-5}, CheckpointError, "epsilon is -9",
    ),
    "a million layers": ("llama", {"block_count": 1_000_000}, CheckpointError, "block_count is 1000000"),
    "no layers": ("llama", {"block_count": 0}, CheckpointError, "block_count is 0"),
    "more layers than there are": ("llama", {"block_count": 4}, CheckpointError, r"blk\.3\.attn_norm"),
    "fewer layers than there are": ("llama", {"block_count": 2}, NotYetError, r"blk\.2\."),
    "heads that do not divide": ("llama", {"attention.head_count_kv": 3}, CheckpointError, "3 key-value"),
    "no heads": ("llama", {"attention.head_count": 0}, CheckpointError, "head_count is 0"),
    "groups of layers": ("llama", {"attention.head_count_kv": [2, 1, 2]}, NotYetError, "layer to layer"),
    "groups of too few layers": ("llama", {"attention.head_count_kv": [2, 2]}, NotYetError, "layer to layer"),
    "groups of no layer": ("llama", {"attention.head_count_kv": ["x"] * 3}, CheckpointError, "head_count_kv"),
    "heads of two widths": ("llama", {"attention.value_length": 8}, NotYetError, "values of width 8"),
    "a window": ("qwen3", {"attention.sliding_window": 8}, NotYetError, "sliding window"),
    "a scale of scores": ("llama", {"attention.scale": 0.5}, NotYetError, r"llama\.attention\.scale"),
    "not causal": ("llama", {"attention.causal": False}, NotYetError, r"attention\.causal is False"),
    "another gating": ("mixtral", {"expert_gating_func": 2}, NotYetError, "expert_gating_func is 2"),
    "weights not normalised": ("qwen3_moe", {"expert_weights_norm": False}, NotYetError, "weights_norm"),
    "weights scaled": ("qwen2_moe", {"expert_weights_scale": 2.0}, NotYetError, "weights_scale"),
    "groups of experts": ("qwen3_moe", {"expert_group_count": 2}, NotYetError, "expert_group_count"),
    "more used than there are": ("mixtral", {"expert_used_count": 5}, CheckpointError, "used_count is 5"),
    "experts of no groups": ("deepseek_v3", {"expert_group_count": 4}, CheckpointError, "4 groups"),
    "version 2, normalised": ("deepseek_v2", {"expert_weights_norm": True}, NotYetError, "normalised"),
    "further tokens": ("deepseek_v3", {"nextn_predict_layers": 1}, NotYetError, "further tokens"),
    "latent, linear": ("deepseek_v3", {"rope.scaling.factor": 2.0}, NotYetError, "other than by YaRN"),
    "a scaling of no name": ("llama", {"rope.scaling.type": "su"}, NotYetError, "'su'"),
    "stretched positions": ("llama", {"rope.scaling.factor": 0.5}, NotYetError, r"stretched by 0\.5"),
    "a magnitude alone": ("llama", {"rope.scaling.attn_factor": 2.0}, NotYetError, "magnitude"),
    "another ramp": ("llama", {"rope.scaling.yarn_beta_fast": 8.0}, NotYetError, "yarn_beta_fast"),
    "another vocabulary": ("llama", {"vocab_size": 64}, CheckpointError, "vocab_size"),
    "no context": ("llama", {"context_length": 0}, CheckpointError, "context_length is 0"),
    "wider than the heads": ("qwen2", {"attention.key_length": 32, "attention.value_length": 32}, NotYetError,
                             "width of the model"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_model_has_or_is_not_read_is_refused_by_name(name: str, tmp_path: Path) -> None:
    kind, keys, error, words = REFUSED[name]
    draft = draft_of(model_of(kind))
    draft.keys |= keys
    head = read_gguf_head(draft.write(tmp_path / "m.gguf"))
    with pytest.raises(error, match=words):
        gguf_config(head)


def head_of(tmp_path: Path, kind: str = "llama", **others: Any) -> Any:
    draft = draft_of(model_of(kind))
    draft.others = {k: v for k, v in (draft.others | others).items() if v is not None}
    return read_gguf_head(draft.write(tmp_path / "m.gguf"))


def test_an_unknown_architecture_is_refused_with_those_known(tmp_path: Path) -> None:
    draft = draft_of(model_of("llama"))
    draft.name = "mamba"
    with pytest.raises(NotYetError, match=r"m\.gguf: .*'mamba'.*llama, qwen2, .*deepseek2"):
        gguf_model(read_gguf_head(draft.write(tmp_path / "m.gguf")))


REMARKS: dict[str, Any] = {
    "general.name": "x", "general.author": "y", "general.license": "z", "general.license.link": "w",
    "general.base_model.0.name": "b", "general.tags": ["a"], "general.file_type": 7, "general.type": "model",
    "general.quantization_version": 2, "general.sampling.temp": 0.7, "quantize.imatrix.file": "f",
    "quantize.imatrix.entries_count": 3, "somebody.note": "made with love", "general.size_label": "1B",
    **dict.fromkeys(
        (
            "general.parameter_count", "general.hardware", "general.converted_by", "general.created",
            "general.date", "general.copyright", "general.bits", "general.dtype", "general.hf_id",
            "general.pipeline_tag", "general.tokenizer", "general.invention", "general.quantization",
            "general.merged_from", "general.parameter_size", "general.model_tree", "general.imatrix",
        ),
        "x",
    ),
}  # fmt: skip
MATTERS: dict[str, Any] = {
    "general.type": "adapter", "general.quantization_version": 1, "general.context_length": 8,
    "general.rope.freq_base": 5.0, "general.expert_count": 2, "general.tensor_extra.name": ["x"],
    "llbma.rope.freq_base": 5.0, "qwen2.rope.freq_base": 5.0, "adapter.rope": 1,
}  # fmt: skip


def test_remarks_change_nothing_and_what_matters_is_refused(tmp_path: Path) -> None:
    plain = gguf_model(head_of(tmp_path))
    assert gguf_model(head_of(tmp_path, **REMARKS)).settings == plain.settings
    for key, value in MATTERS.items():
        with pytest.raises(NotYetError, match=key.partition(".")[2].replace(".", r"\.") + "|type|version"):
            gguf_model(head_of(tmp_path, **{key: value}))


def test_remarks_do_not_change_what_llama_cpp_answers(oracle: LlamaCpp, tmp_path: Path) -> None:
    draft = draft_of(model := model_of("llama"))
    expected = oracle.next_logprobs(draft.write(tmp_path / "plain.gguf"), decided(model), V)
    draft.others |= REMARKS
    file = draft.write(tmp_path / "remarks.gguf")
    assert_close(oracle.next_logprobs(file, decided(model), V), expected)
    assert_close(next_of(load_model(file), decided(model)), expected)


def test_ids_are_the_files_and_those_outside_the_vocabulary_are_dropped(tmp_path: Path) -> None:
    ids = {f"tokenizer.ggml.{role}_token_id": i for role, i in (("eot", 7), ("eom", 1), ("padding", V))}
    config = gguf_config(head_of(tmp_path, **ids))
    assert [config[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == [0, [1, 7], None]
    absent = gguf_config(head_of(tmp_path, **{"tokenizer.ggml.eos_token_id": None}))
    assert absent["eos_token_id"] is None
    with pytest.raises(CheckpointError, match=f"3 tokens and an embedding of {V} rows"):
        gguf_config(head_of(tmp_path, **{"tokenizer.ggml.tokens": ["a", "b", "ab"]}))


def test_the_largest_of_a_family_scales_its_queries_otherwise(tmp_path: Path) -> None:
    """As llama.cpp does by the number of layers: the 27B models have heads wider than their share."""
    for kind, layers in (("gemma2", 46), ("gemma3_text", 62)):
        for count, expected in ((layers, D // H), (layers - 1, 32)):
            draft = draft_of(model_of(kind, num_hidden_layers=count, layer_types=None))
            head = read_gguf_head(draft.write(tmp_path / f"{kind}{count}.gguf"))
            assert gguf_model(head).settings["query_pre_attn_scalar"] == expected


EXTRA = {
    "a bias of the norm": ("llama", "output_norm.bias", (D,)),
    "sinks": ("llama", "blk.0.attn_sinks.weight", (4,)),
    "norms of heads": ("llama", "blk.0.attn_q_norm.weight", (16,)),
    "a bias that the class lacks": ("qwen2", "blk.1.attn_output.bias", (D,)),
    "one bias of three": ("llama", "blk.1.attn_q.bias", (D,)),
    "divisors where none are read": ("qwen2", "rope_freqs.weight", (8,)),
    "divisors of another number": ("llama", "rope_freqs.weight", (4,)),
    "half of the divisors": ("phi3", "rope_factors_short.weight", (8,)),
    "a head where it is the embedding": ("gemma", "output.weight", (V, D)),
    "a correction of softmax": ("deepseek_v2", "blk.1.exp_probs_b.bias", (6,)),
    "a correction of a dense layer": ("deepseek_v3", "blk.0.exp_probs_b.bias", (6,)),
    "experts one by one": ("mixtral", "blk.0.ffn_gate.0.weight", (96, D)),
    "a layer too many": ("qwen3", "blk.3.attn_norm.weight", (D,)),
    "a layer of another spelling": ("qwen3", "blk.01.attn_norm.weight", (D,)),
    "an invention": ("qwen2_moe", "blk.0.invention.weight", (D,)),
}


@pytest.mark.parametrize("name", EXTRA)
def test_a_further_tensor_is_refused_by_name(name: str, tmp_path: Path) -> None:
    kind, tensor, shape = EXTRA[name]
    draft = draft_of(model_of(kind))
    draft.tensors[tensor] = np.ones(shape, np.float32) * 1.5
    head = read_gguf_head(draft.write(tmp_path / "m.gguf"))
    shown = {"half of the divisors": "half of", "one bias of three": r"attn_q\.bias"}
    with pytest.raises((CheckpointError, NotYetError), match=shown.get(name, re.escape(tensor))):
        gguf_config(head)


def test_positions_rescaled_twice_are_refused(tmp_path: Path) -> None:
    for keys in ({"rope.scaling.factor": 2.0}, {"rope.scaling.type": "none"}, {"rope.scaling.type": "yarn"}):
        draft = draft_of(model_of("llama"))
        draft.keys |= keys
        draft.tensors["rope_freqs.weight"] = DIVISORS
        with pytest.raises(NotYetError, match="rescaled"):
            gguf_config(read_gguf_head(draft.write(tmp_path / "m.gguf")))


@pytest.mark.parametrize("values", [[0.0] * 8, [-1.0] * 8, [float("nan")] * 8, [float("inf")] * 8])
def test_divisors_of_positions_are_positive_and_finite(values: list[float], tmp_path: Path) -> None:
    draft = draft_of(model_of("llama"))
    draft.tensors["rope_freqs.weight"] = np.array(values, np.float32)
    with pytest.raises(CheckpointError, match="8 positive float32"):
        gguf_config(read_gguf_head(draft.write(tmp_path / "m.gguf")))


def test_old_experts_one_by_one_are_no_longer_read_by_llama_cpp(oracle: LlamaCpp, tmp_path: Path) -> None:
    draft = draft_of(model_of("mixtral"))
    for name in [name for name in draft.tensors if "_exps." in name]:
        for i, one in enumerate(draft.tensors.pop(name)):
            draft.tensors[name.replace("_exps", f".{i}")] = one
    path = draft.write(tmp_path / "m.gguf")
    with pytest.raises(LlamaCppError):
        oracle.next_logprobs(path, [1, 2], V)
    with pytest.raises(NotYetError, match=r"blk\.0\.ffn_gate\.0\.weight"):
        gguf_config(read_gguf_head(path))


@pytest.mark.parametrize(
    ("kind", "call"),
    [("gemma2", "transom.obfuscation.plain.open_source"), ("mamba", "transom.checkpoint.load.load")],
)
def test_what_is_refused_for_its_head_costs_no_library(kind: str, call: str, tmp_path: Path) -> None:
    """Importing them takes longer than all the rest, and a file without a plan may have gigabytes."""
    draft = draft_of(model_of("llama" if kind == "mamba" else kind))
    draft.name = kind
    draft.write(tmp_path / "m.gguf")
    module, _, name = call.rpartition(".")
    script = (
        f"import sys\nfrom {module} import {name}\nfrom transom.errors import NotYetError\n"
        f"try: {name}({str(tmp_path / 'm.gguf')!r})\n"
        f"except NotYetError as e: print({kind!r} in str(e), {{'torch', 'transformers'}} & {{*sys.modules}})"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "True set()"
