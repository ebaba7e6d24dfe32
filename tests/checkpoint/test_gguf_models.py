"""GGUF models against the transformers model that they were made from, and llama.cpp on the same file.

Every architecture, optional tensor and scaling accepted. Float32 files must give the source's numbers,
float16 files llama.cpp's: the 50 likeliest tokens within 0.02 nats each, and the expected difference below a
thousandth. A mixture may take another expert where two are nearly tied: such prompts are told apart by the
router's own gap, and only the others are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.checkpoint.ggufs import CONFIGS, NAMES, Draft, V, draft_of, model_of
from tests.llamacpp import LlamaCpp, LlamaCppError, llamacpp

from transom.checkpoint import gguf
from transom.checkpoint.gguf import read_gguf_head
from transom.checkpoint.gguf_config import READABLE, gguf_config, gguf_model
from transom.checkpoint.gguf_weights import gguf_weights
from transom.checkpoint.load import load
from transom.checkpoint.resolve import flattened
from transom.errors import CheckpointError

Row = NDArray[np.float64]
IDS = [int(i) for i in np.random.default_rng(1).integers(2, V, 40)]
TOLERANCE = 0.02  # nats
NEAR_TIE = 0.004  # of a router's scores, which 16-bit rounding may turn over
KINDS = sorted(CONFIGS)
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3")
DIVISORS = 1 + 0.7 * np.arange(8, dtype=np.float32)


@pytest.fixture(scope="module")
def oracle() -> Iterator[LlamaCpp]:
    with llamacpp() as one:
        yield one


def next_of(model: Any, ids: list[int] = IDS) -> Row:
    with torch.no_grad():
        row: Row = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).numpy()
    return row


def assert_close(ours: Row, theirs: Row, tolerance: float = TOLERANCE) -> None:
    top = np.argsort(-theirs)[:50]
    assert np.abs(ours - theirs)[top].max() < tolerance
    assert np.exp(theirs) @ (theirs - ours) < tolerance / 20


def narrowest(model: Any, ids: list[int]) -> float:
    """The smallest gap between the last expert chosen and the first one not, over tokens and layers."""
    gaps: list[float] = []
    used = getattr(model.config, "num_experts_per_tok", 0)

    def watch(module: Any, _args: Any, output: Any) -> None:
        scores = output[0] if isinstance(output, tuple) else output
        if hasattr(module, "e_score_correction_bias"):
            scores = scores.sigmoid() + module.e_score_correction_bias
            groups = model.config.n_group
            if groups > 1:  # of which the better half is open
                by_group = scores.view(len(scores), groups, -1).topk(2, dim=-1).values.sum(-1)
                gaps.append(float((by_group[:, 0] - by_group[:, 1]).abs().min()))
                shut = by_group < by_group.max(-1, keepdim=True).values
                scores = scores.masked_fill(shut.repeat_interleave(scores.shape[-1] // groups, -1), -9.0)
        top = scores.float().topk(used + 1, dim=-1).values
        gaps.append(float((top[..., -2] - top[..., -1]).min()))

    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    hooks = [router.register_forward_hook(watch) for router in routers]
    next_of(model, ids)
    for hook in hooks:
        hook.remove()
    return min(gaps, default=1.0)


def decided(model: Any) -> list[int]:
    """A prompt for which no router of the model is near a tie."""
    if model.config.model_type not in MIXTURES:
        return IDS
    prompts = [[int(i) for i in np.random.default_rng(s).integers(2, V, 16)] for s in range(24)]
    best = max(prompts, key=lambda ids: narrowest(model, ids))
    assert narrowest(model, best) > NEAR_TIE
    return best


def set_keys(**values: Any) -> Callable[[Draft], None]:
    """Keys by name with __ for the point; None takes one away."""

    def edit(draft: Draft) -> None:
        for name, value in values.items():
            draft.keys[name.replace("__", ".")] = value
        draft.keys = {key: value for key, value in draft.keys.items() if value is not None}

    return edit


def set_tensors(**values: NDArray[np.float32]) -> Callable[[Draft], None]:
    def edit(draft: Draft) -> None:
        draft.tensors |= {name.replace("__", "."): value for name, value in values.items()}

    return edit


def without(*parts: str) -> Callable[[Draft], None]:
    """Take away the tensors whose name holds one of the parts."""

    def edit(draft: Draft) -> None:
        draft.tensors = {n: v for n, v in draft.tensors.items() if not any(part in n for part in parts)}

    return edit


def both(*edits: Callable[[Draft], None]) -> Callable[[Draft], None]:
    def edit(draft: Draft) -> None:
        for one in edits:
            one(draft)

    return edit


def whole_latent(draft: Draft) -> None:
    """The form that old files have latent attention in: keys and values made from it in one matrix."""
    for i in range(draft.keys["block_count"]):
        key = draft.tensors.pop(f"blk.{i}.attn_k_b.weight").swapaxes(1, 2)
        value = draft.tensors.pop(f"blk.{i}.attn_v_b.weight")
        joint = np.concatenate([key, value], axis=1)
        draft.tensors[f"blk.{i}.attn_kv_b.weight"] = joint.reshape(-1, joint.shape[-1])
    draft.keys["attention.head_count_kv"] = draft.keys["attention.head_count"]
    for name in ("key", "value"):
        draft.keys[f"attention.{name}_length"] = draft.keys.pop(f"attention.{name}_length_mla")


def llama3(
    factor: float, length: int, low: float, high: float, width: int, theta: float
) -> NDArray[np.float32]:
    """Llama 3's divisors as its conversion computes them, pair by pair."""
    made = []
    for wave in 2 * np.pi * theta ** (np.arange(0, width, 2) / width):
        smooth = (length / wave - low) / (high - low)
        inner = 1 / ((1 - smooth) / factor + smooth)
        made.append(1.0 if wave < length / high else factor if wave > length / low else inner)
    return np.asarray(made, np.float32)


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **values}}


YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
YARN_KEYS = {
    "rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 32,
}  # fmt: skip
LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LONG = {
    "short_factor": [float(x) for x in DIVISORS], "long_factor": [float(2 * x) for x in DIVISORS],
    "original_max_position_embeddings": 600,
}  # fmt: skip
LONG_TENSORS = set_tensors(rope_factors_long__weight=2 * DIVISORS, rope_factors_short__weight=DIVISORS)
LONG_KEYS = set_keys(rope__scaling__original_context_length=600)
LOCAL = {"rope_type": "default", "rope_theta": 10_000.0}
# name: model type, settings of the source model, what to change in the file as conversion writes it
VARIANTS: dict[str, tuple[str, dict[str, Any], Callable[[Draft], None]]] = {
    "llama, tied": ("llama", {"tie_word_embeddings": True}, set_keys()),
    "llama, attention bias": ("llama", {"attention_bias": True}, set_keys()),
    "llama, mlp bias": ("llama", {"mlp_bias": True}, set_keys()),
    "llama, wide heads": ("llama", {"head_dim": 32}, set_keys()),
    "llama, no width of heads": (
        "llama", {}, set_keys(attention__key_length=None, attention__value_length=None),
    ),
    "llama, no groups": ("llama", {"num_key_value_heads": 4}, set_keys(attention__head_count_kv=None)),
    "llama, one for each layer": ("llama", {}, set_keys(attention__head_count_kv=[2] * 3)),
    "llama, no base": ("llama", {}, set_keys(rope__freq_base=None)),
    "llama, another base": ("llama", rope("default", rope_theta=500_000.0), set_keys()),
    "llama, another epsilon": ("llama", {"rms_norm_eps": 1e-2}, set_keys()),
    "llama, remarks": ("llama", {}, set_keys(rope__scaling__finetuned=False, expert_count=0, vocab_size=V)),
    "llama, window of everything": ("llama", {}, set_keys(attention__sliding_window=128)),
    "llama, factor alone": ("llama", rope("linear", factor=4.0), set_keys(rope__scaling__factor=4.0)),
    "llama, linear": (
        "llama", rope("linear", factor=4.0),
        set_keys(rope__scaling__type="linear", rope__scaling__factor=4.0),
    ),
    "llama, the old key": ("llama", rope("linear", factor=4.0), set_keys(rope__scale_linear=4.0)),
    "llama, old and new key": (
        "llama", rope("linear", factor=2.0), set_keys(rope__scale_linear=4.0, rope__scaling__factor=2.0),
    ),
    "llama, new key of nothing": ("llama", {}, set_keys(rope__scale_linear=4.0, rope__scaling__factor=0.0)),
    "llama, none": ("llama", {}, set_keys(rope__scaling__type="none", rope__scaling__factor=4.0)),
    "llama, yarn": ("llama", rope("yarn", **YARN), set_keys(**YARN_KEYS)),
    "llama, yarn of the whole length": (
        "llama", rope("yarn", **YARN | {"original_max_position_embeddings": 128}),
        set_keys(**YARN_KEYS | {"rope__scaling__original_context_length": None}),
    ),
    "llama, yarn with a magnitude": (
        "llama", rope("yarn", **YARN, attention_factor=1.5 * (1 + 0.1 * np.log(4.0))),
        set_keys(**YARN_KEYS, rope__scaling__attn_factor=1.5),
    ),
    "llama, llama3": (
        "llama", rope("llama3", **LLAMA3),
        set_tensors(rope_freqs__weight=llama3(8.0, 64, 1.0, 4.0, 16, 10_000.0)),
    ),
    "llama, other divisors": (
        "llama",
        rope("longrope", short_factor=list(map(float, DIVISORS)), long_factor=list(map(float, DIVISORS)),
             attention_factor=1.0, original_max_position_embeddings=128),
        set_tensors(rope_freqs__weight=DIVISORS),
    ),
    "llama, divisors of nothing": ("llama", {}, set_tensors(rope_freqs__weight=np.ones(8, np.float32))),
    "llama, longrope": (
        "llama", rope("longrope", **LONG, attention_factor=1.0),
        both(LONG_KEYS, LONG_TENSORS, set_keys(rope__scaling__type="longrope")),
    ),
    "mixtral, tied": ("mixtral", {"tie_word_embeddings": True}, set_keys()),
    "mixtral, llama3": (
        "mixtral", rope("llama3", **LLAMA3),
        set_tensors(rope_freqs__weight=llama3(8.0, 64, 1.0, 4.0, 16, 10_000.0)),
    ),
    "mixtral, what it does anyhow": (
        "mixtral", {}, set_keys(expert_weights_norm=True, expert_gating_func=1, expert_weights_scale=1.0),
    ),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}, set_keys()),
    "qwen2, yarn": ("qwen2", rope("yarn", **YARN), set_keys(**YARN_KEYS)),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}, set_keys()),
    "qwen3_moe, yarn": ("qwen3_moe", rope("yarn", **YARN), set_keys(**YARN_KEYS)),
    "qwen2_moe, linear": ("qwen2_moe", rope("linear", factor=2.0), set_keys(rope__scaling__factor=2.0)),
    "gemma2, defaults": (
        "gemma2", {"sliding_window": 4096},
        set_keys(attention__sliding_window=None, attn_logit_softcapping=None, final_logit_softcapping=None),
    ),
    "gemma2, other caps": (
        "gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}, set_keys(),
    ),
    "gemma3, no window": (
        "gemma3_text", {"layer_types": ["full_attention"] * 3}, set_keys(attention__sliding_window=None),
    ),
    "gemma3, bases": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": LOCAL | {"rope_theta": 1e6},
                             "sliding_attention": LOCAL | {"rope_theta": 500.0}}},
        set_keys(rope__freq_base_swa=500.0),
    ),
    "gemma3, linear": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": LOCAL | {"rope_type": "linear", "factor": 8.0},
                             "sliding_attention": LOCAL}},
        set_keys(rope__scaling__type="linear", rope__scaling__factor=8.0),
    ),
    "gemma3, six layers a turn": (
        "gemma3_text",
        {"num_hidden_layers": 7,
         "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]},
        set_keys(attention__sliding_window_pattern=None),
    ),
    "gemma3, cap": ("gemma3_text", {"final_logit_softcapping": 5.0}, set_keys()),
    "gemma3, own head": ("gemma3_text", {"tie_word_embeddings": False}, set_keys()),
    "phi3, tied": ("phi3", {"tie_word_embeddings": True}, set_keys()),
    "phi3, longrope": (
        "phi3", rope("longrope", **LONG, attention_factor=1.2),
        both(LONG_KEYS, LONG_TENSORS, set_keys(rope__scaling__attn_factor=1.2)),
    ),
    "phi3, partial": (
        "phi3", rope("default", partial_rotary_factor=0.75), set_keys(rope__dimension_count=12),
    ),
    "deepseek_v2, whole latent": ("deepseek_v2", {}, whole_latent),
    "deepseek_v2, defaults": (
        "deepseek_v2", {"routed_scaling_factor": 1.0},
        set_keys(expert_gating_func=None, expert_weights_scale=None, expert_weights_norm=None),
    ),
    "deepseek_v2, plain query": ("deepseek_v2", {"q_lora_rank": None, "num_hidden_layers": 26}, set_keys()),
    "deepseek_v2, yarn": (
        "deepseek_v2", rope("yarn", **YARN, mscale=0.707, mscale_all_dim=0.707),
        set_keys(**YARN_KEYS, rope__scaling__yarn_log_multiplier=0.0707),
    ),
    "deepseek_v3, whole latent": ("deepseek_v3", {}, whole_latent),
    "deepseek_v3, yarn": (
        "deepseek_v3", rope("yarn", **YARN, mscale=1.0, mscale_all_dim=1.0),
        set_keys(**YARN_KEYS, rope__scaling__yarn_log_multiplier=0.1),
    ),
    "deepseek_v3, groups": (
        "deepseek_v3", {"n_group": 2, "topk_group": 1, "n_routed_experts": 8}, set_keys(),
    ),
    "deepseek_v3, no norm": ("deepseek_v3", {"norm_topk_prob": False}, set_keys()),
    "deepseek_v3, experts only": ("deepseek_v3", {"first_k_dense_replace": 0}, set_keys()),
    "deepseek_v3, tied": ("deepseek_v3", {"tie_word_embeddings": True}, set_keys()),
}  # fmt: skip
CASES = {kind: (kind, {}, set_keys()) for kind in KINDS} | VARIANTS


@pytest.mark.parametrize("name", CASES)
def test_a_file_gives_its_source_and_llama_cpp(name: str, oracle: LlamaCpp, tmp_path: Path) -> None:
    kind, settings, edit = CASES[name]
    source = model_of(kind, **settings)
    draft = draft_of(source)
    edit(draft)
    exact = load_model(draft.write(tmp_path / "exact.gguf"))
    assert np.abs(next_of(exact) - next_of(source)).max() < 1e-4
    path = draft.write(tmp_path / "half.gguf", "F16")
    half = load_model(path)
    ids = decided(half)
    assert_close(next_of(half, ids), oracle.next_logprobs(path, ids, V))


def load_model(path: Path) -> Any:
    return load(path).model


@pytest.mark.parametrize("kind", MIXTURES)
def test_what_differs_in_a_mixture_is_a_near_tie(kind: str, oracle: LlamaCpp, tmp_path: Path) -> None:
    model = load_model(path := draft_of(model_of(kind, seed=5)).write(tmp_path / "m.gguf", "F16"))
    compared = 0
    for seed in range(8):
        ids = [int(i) for i in np.random.default_rng(seed).integers(2, V, 12)]
        if narrowest(model, ids) > NEAR_TIE:
            assert_close(next_of(model, ids), oracle.next_logprobs(path, ids, V))
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_has_a_say_far_above_the_tolerance(kind: str) -> None:
    model = model_of(kind)
    expected = next_of(model)
    for name, weight in model.state_dict().items():
        kept = weight.clone()
        weight.zero_()
        assert np.abs(next_of(model) - expected).max() > 5 * TOLERANCE, name
        weight.copy_(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_without_a_tensor_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    settings = {"attention_bias": True, "mlp_bias": True} if kind == "llama" else {}
    draft = draft_of(model_of(kind, **settings))
    whole = read_gguf_head(draft.write(tmp_path / "whole.gguf"))
    for lost in whole.tensors:
        if lost.name == "output.weight" and kind != "qwen2_moe":
            continue  # then the head is the embedding
        head = gguf.GgufHead(whole.metadata, tuple(t for t in whole.tensors if t != lost))
        with pytest.raises(CheckpointError, match=lost.name.replace(".", r"\.")):
            gguf_model(head)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_another_shape_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    whole = read_gguf_head(draft_of(model_of(kind)).write(tmp_path / "whole.gguf"))
    for i, other in enumerate(whole.tensors):
        for shape in ((*other.shape[:-1], other.shape[-1] + 2), (*other.shape, 1)):
            changed = gguf.GgufTensor(other.name, shape, other.type_id, other.offset_bytes)
            tensors = (*whole.tensors[:i], changed, *whole.tensors[i + 1 :])
            with pytest.raises(CheckpointError, match=r"shape|tokens"):
                gguf_model(gguf.GgufHead(whole.metadata, tensors))


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_is_the_sources(kind: str, tmp_path: Path) -> None:
    source = model_of(kind)
    ours = gguf_config(read_gguf_head(draft_of(source).write(tmp_path / "m.gguf")))
    theirs = flattened(source.config)
    unlike = {"architectures", "dtype", "torch_dtype", "num_mtp_layers"}
    unlike |= {"max_window_layers", "sliding_window", "_sliding_window_pattern", "pretraining_tp"}
    unlike |= {"original_max_position_embeddings"} if kind == "phi3" else set()  # read by longrope only
    unlike |= {"n_group", "topk_group", "num_nextn_predict_layers"} if "deepseek" in kind else set()
    for key in theirs.keys() - unlike:
        assert ours.get(key) == theirs[key], key
    assert ours["architectures"] == [type(source).__name__]
    assert ours["model_type"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_is_saved_and_comes_back(kind: str, tmp_path: Path) -> None:
    path = draft_of(model_of(kind)).write(tmp_path / "m.gguf")
    model = load_model(path)
    model.save_pretrained(tmp_path / "folder")
    assert np.array_equal(next_of(load(tmp_path / "folder").model), next_of(model))
    assert not hasattr(model.config, "quantization_config")


def test_weights_come_by_name_and_in_float32(tmp_path: Path) -> None:
    source = model_of("deepseek_v3")
    head = read_gguf_head(draft_of(source).write(tmp_path / "m.gguf"))
    weights = dict(gguf_weights(head))
    assert weights.keys() == source.state_dict().keys()
    for name, weight in source.state_dict().items():
        assert torch.equal(weights[name], weight), name


def test_a_dtype_is_that_of_the_weights_and_not_of_the_waves(tmp_path: Path) -> None:
    path = draft_of(model_of("llama")).write(tmp_path / "m.gguf")
    model = load(path, dtype="bfloat16").model
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16
    assert torch.equal(model.model.rotary_emb.inv_freq, load_model(path).model.rotary_emb.inv_freq)


def test_the_window_of_phi3_is_kept_where_llama_cpp_has_switched_it_off(
    oracle: LlamaCpp, tmp_path: Path
) -> None:
    source = model_of("phi3", sliding_window=32)
    draft = draft_of(source)
    draft.keys["attention.sliding_window"] = 32
    model = load_model(path := draft.write(tmp_path / "m.gguf"))
    assert_close(next_of(model, IDS[:30]), oracle.next_logprobs(path, IDS[:30], V))
    assert np.abs(next_of(model) - next_of(source)).max() < 1e-4
    assert np.abs(next_of(model) - oracle.next_logprobs(path, IDS, V)).max() > 10 * TOLERANCE


def test_positions_slowed_for_long_texts_follow_the_text(tmp_path: Path) -> None:
    """llama.cpp chooses the long or short divisors by the context that it is started with, transformers by
    the text: beyond the original length, both take the long ones."""
    short = {"original_max_position_embeddings": 30}
    source = model_of("phi3", **rope("longrope", **LONG | short, attention_factor=1.2), **short)
    draft = draft_of(source)
    both(LONG_TENSORS, set_keys(rope__scaling__original_context_length=30, rope__scaling__attn_factor=1.2))(
        draft
    )
    path = draft.write(tmp_path / "m.gguf")
    assert np.abs(next_of(load_model(path)) - next_of(source)).max() < 1e-4
    with llamacpp(n_ctx=512) as oracle:  # beyond the original length: llama.cpp takes the long ones
        assert_close(next_of(load_model(path)), oracle.next_logprobs(path, IDS, V))


QUANTISED = ["BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"]


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_llama_cpps(kind: str, oracle: LlamaCpp, tmp_path: Path) -> None:
    """llama.cpp also rounds what it multiplies such weights with, so that bound is loose; the same weights
    written as float32 are held to the tight one."""
    draft = draft_of(model_of("llama"))
    ours = load_model(path := draft.write(tmp_path / "m.gguf", kind))
    written = {name: weight.numpy() for name, weight in ours.state_dict().items()}
    again = draft_of(ours).write(tmp_path / "again.gguf")
    theirs = oracle.next_logprobs(again, IDS, V)
    assert_close(next_of(ours), theirs)
    assert written.keys() == model_of("llama").state_dict().keys()
    top = np.argsort(-theirs)[:20]
    assert np.abs(next_of(ours) - oracle.next_logprobs(path, IDS, V))[top].max() < 0.5


def random_blocks(kind: int, values: int, seed: int) -> NDArray[np.uint8]:
    """Random blocks of a type whose scales are finite: their float16 fields are set small."""
    name, block, block_bytes = gguf.TYPES[kind]
    raw = np.random.default_rng(seed).integers(0, 256, (values // block, block_bytes), dtype=np.uint8)
    scale = np.frombuffer(np.float16(0.004).tobytes(), np.uint8)
    ends = {"Q6_K": [208], "Q3_K": [108], "Q2_K": [80, 82], "TQ1_0": [52], "TQ2_0": [64]}
    for at in ends.get(name, [0, 2] if name in ("Q4_K", "Q5_K") else [0]):
        raw[:, at : at + 2] = scale
    if name == "IQ1_M":  # its scale is in the high four bits of four 16-bit words
        bits = int(np.frombuffer(scale.tobytes(), np.uint16)[0])
        for i in range(4):
            raw[:, 49 + 2 * i] = raw[:, 49 + 2 * i] & 0x0F | (bits >> 4 * i & 0xF) << 4
    return raw


BLOCKS = sorted(
    number for number, (name, block, _) in gguf.TYPES.items() if block == 256 and name in READABLE
)


@pytest.mark.parametrize("number", [*BLOCKS, 20], ids=lambda number: gguf.TYPES[number][0])
def test_blocks_of_256_are_llama_cpps(number: int, oracle: LlamaCpp, tmp_path: Path) -> None:
    """Types that the reference only dequantises: random blocks as the weights that values are made of."""
    settings = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64}
    draft = draft_of(model_of("llama", **settings))
    names = [name for name in draft.tensors if "ffn_" in name and "norm" not in name]
    blocks = {name: random_blocks(number, draft.tensors[name].size, i) for i, name in enumerate(names)}
    path = write_raw(draft, tmp_path / "m.gguf", blocks, number)
    ours = load_model(path)
    again = draft_of(ours).write(tmp_path / "again.gguf")
    assert_close(next_of(ours), oracle.next_logprobs(again, IDS, V))
    theirs = oracle.next_logprobs(path, IDS, V)
    top = np.argsort(-theirs)[:20]
    assert np.abs(next_of(ours) - theirs)[top].max() < 0.5


def write_raw(draft: Draft, path: Path, blocks: dict[str, NDArray[np.uint8]], number: int) -> Path:
    import gguf as reference

    writer = reference.GGUFWriter(path, draft.name)
    draft.describe(writer)
    form = reference.GGMLQuantizationType(number)
    for name, values in draft.tensors.items():
        if name in blocks:
            raw = blocks[name].reshape(values.shape[0], -1)
            writer.add_tensor(name, raw, raw_dtype=form)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    return Draft.finish(writer, path)


def test_the_types_are_the_references() -> None:
    import gguf as reference

    sizes = {int(kind): (kind.name, *size) for kind, size in reference.GGML_QUANT_SIZES.items()}
    assert sizes == gguf.TYPES


def test_every_architecture_is_tried_here() -> None:
    from transom.checkpoint.families import FAMILIES
    from transom.checkpoint.gguf_families import ARCHITECTURES

    assert set(NAMES.values()) == set(ARCHITECTURES)
    assert {family.kind for family in FAMILIES.values() if family.rows} == set(CONFIGS)


def test_llama_cpp_does_not_load_what_is_no_model(oracle: LlamaCpp, tmp_path: Path) -> None:
    with pytest.raises(LlamaCppError):
        oracle.next_logprobs(tmp_path / "absent.gguf", IDS, V)
