"""From an architecture to the tasks that obfuscate it, and the configuration of what comes out.

Threat model: as the room's. Does not protect the architecture, its sizes, or the number of layers.
Source: Lin et al., arXiv 2603.01499; what each engine loads was found by loading it.

Tasks name few tensors each (a weight, and the vector of the norm before it), because the writer's memory is
bounded by what the largest tasks in flight hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint.families import CHECKED, FAMILIES, Family, family_of
from transom.checkpoint.resolve import further_layers
from transom.errors import CheckpointError, MisconfiguredError, NeverError, NotYetError
from transom.obfuscation import attention, embedding, feedforward, mla, moe, norms
from transom.obfuscation.keys import Settings, Space
from transom.obfuscation.task import Config, Context, Planner, Task

if TYPE_CHECKING:
    from torch import Tensor

# What the obfuscated width must be divisible by, beside the number of heads: blocks of quantised formats.
MULTIPLES = {"transformers": 1, "vllm": 1, "llama.cpp": 32, "group-128": 128, "llama.cpp-k": 256}
_RECURRENT = ("mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "xlstm")
_NOT_THE_HOSTS = ("auto_map", "_name_or_path", "quantization_config")


ATTENTION: dict[str, Planner] = {"heads": attention.attention_tasks, "latent": mla.latent_tasks}


def plan(config: Config, settings: Settings, secret: bytes | None = None) -> tuple[Task, ...]:
    """Every task of a checkpoint. `run` wants those of the secret, which puts a mixture's experts in their
    places. Raises NotYetError for an architecture or a variant that is not planned, NeverError for one that
    has no place for keys."""
    del settings
    family = require_planned(config)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise NotYetError(f"cannot obfuscate a partial rotary embedding yet (factor {partial})")
    if family.projection_biases and _has_window(config):
        raise NotYetError(
            "cannot obfuscate a Qwen2 whose layers see a window (use_sliding_window) yet. Without it, it is "
            f"another model: beyond {config.get('sliding_window')} tokens its answers change. If that will "
            "do, set use_sliding_window to false in config.json and drop layer_types"
        )
    tasks = list(embedding.table_tasks(config))
    for layer in range(config["num_hidden_layers"]):
        inner = moe.mixture_tasks if moe.is_sparse(config, layer) else feedforward.feedforward_tasks
        tasks += norms.norm_tasks(layer)
        tasks += ATTENTION[family.attention](config, layer)
        tasks += inner(config, layer)
    return tuple(tasks) if secret is None else moe.place_experts(tasks, config, secret)


def require_planned(config: Config) -> Family:
    """The architecture's record. Raises NotYetError or NeverError unless there are transforms for it."""
    family = family_of(config)
    if family is None or family.kind not in CHECKED:
        _refuse(config)
    return family


def _has_window(config: Config) -> bool:
    kinds = config.get("layer_types")
    return bool(config.get("use_sliding_window")) if kinds is None else "sliding_attention" in kinds


def _refuse(config: Config) -> NoReturn:
    kind, known = config.get("model_type"), ", ".join(sorted(CHECKED))
    if any(f"{sense}_config" in config for sense in ("vision", "audio")):
        raise NeverError(
            f"{kind!r} takes images or sound, which no substitution of token ids hides from the host; "
            f"obfuscate a text model ({known})"
        )
    if kind in _RECURRENT:
        raise NeverError(
            f"{kind!r} is recurrent: each channel decays by itself, which leaves no room for keys between "
            f"channels; obfuscate a transformer ({known})"
        )
    what = "the encoder of" if config.get("is_encoder_decoder") else "model_type"
    raise NotYetError(f"cannot obfuscate {what} {kind!r} yet; there are {known}")


def run(
    task: Task,
    tensors: Mapping[str, Tensor],
    space: Space,
    config: Config,
    kappas: Mapping[str, float],
) -> dict[str, Tensor]:
    """The outputs of one task, each in the dtype and on the device of the first source; products in float32,
    or float64 when the sources are. Deterministic: the same secret gives the same tensors.

    Raises CheckpointError for a source that is not finite where the plain model would answer nothing but NaN,
    and for one whose obfuscation its dtype cannot hold.
    """
    import torch

    finite = True
    for name in task.sources:
        place = norms.not_finite(tensors[name])
        finite = finite and place is None
        if place is not None and not (task.local and name == task.sources[0]):
            raise CheckpointError(
                f"{name} holds a number that is not finite at {list(place)}, which spoils every answer; "
                "restore the checkpoint"
            )
    with torch.no_grad():
        sources = (tensors[name] for name in task.sources)
        outputs = task.transform(Context(task, space, config, kappas), *sources)
    made = dict(zip(task.outputs, outputs, strict=True))
    for name, tensor in made.items():
        if finite and norms.not_finite(tensor) is not None:
            raise CheckpointError(
                f"{name} is too large for {str(tensor.dtype).removeprefix('torch.')} once obfuscated; "
                "save the checkpoint as bfloat16 or float32"
            )
    return made


def obfuscate_state(
    state: Mapping[str, Tensor], config: Config, space: Space, kappas: Mapping[str, float]
) -> dict[str, Tensor]:
    """A whole state dictionary in memory, for small models: `target_config` is the configuration it fits."""
    tasks = plan(config, space.settings, space.secret)
    check_names(tasks, state, config)
    made: dict[str, Tensor] = {}
    for task in tasks:
        made |= run(task, state, space, config, kappas)
    return made


def norm_names(tasks: Iterable[Task]) -> tuple[str, ...]:
    """The norms that want a kappa."""
    return tuple(task.outputs[0] for task in tasks if task.transform is norms.norm)


def check_names(tasks: Iterable[Task], names: Iterable[str], config: Config) -> None:
    """Raise CheckpointError unless the checkpoint holds what the tasks read and nothing else of weight."""
    wanted, found = {name for task in tasks for name in task.sources}, set(names)
    spare = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    missing = wanted - found
    spare |= set(further_tokens(found, config))
    extra = {name for name in found - wanted - spare if not name.endswith("rotary_emb.inv_freq")}
    problems = [
        f"{len(some)} tensors {what}, such as {min(some)}"
        for some, what in ((missing, "are missing"), (extra, "are unknown to its architecture"))
        if some
    ]
    if problems:
        raise CheckpointError("cannot obfuscate this checkpoint: " + "; ".join(problems))


def further_tokens(names: Iterable[str], config: Config) -> list[str]:
    """The tensors that predict further tokens at once (DeepSeek-V3: layers after the last), which are left
    out: engines answer the same without them."""
    return sorted(name for name in names if name.startswith(further_layers(config)))


def target_config(config: Config, settings: Settings, tau: NDArray[np.int64]) -> dict[str, Any]:
    """config.json of the obfuscated checkpoint: wider, untied, special ids permuted. Qwen2 becomes Llama with
    biases: engines read `head_dim` there. Raises MisconfiguredError for ids outside the vocabulary."""
    target = {name: value for name, value in config.items() if name not in _NOT_THE_HOSTS}
    target |= {
        "hidden_size": config["hidden_size"] + 2 * settings.h,
        "tie_word_embeddings": False,
        "num_key_value_heads": attention.groups(config)[0],
    }
    for name in ("num_nextn_predict_layers", "num_mtp_layers"):
        if name in config:
            target[name] = 0
    if "q_lora_rank" not in config:
        target["head_dim"] = attention.head_width(config)
    if FAMILIES[config["model_type"]].projection_biases:
        target |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        target |= {"attention_bias": True, "mlp_bias": False}
        for name in ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"):
            target.pop(name, None)
    ids = {name: value for name, value in config.items() if name.endswith("_token_id")}
    return target | {name: _map_ids(name, value, tau) for name, value in ids.items()}


def _map_ids(name: str, value: Any, tau: NDArray[np.int64]) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return [_map_ids(name, one, tau) for one in value]
    if name == "pad_token_id" and value == -1:  # engines take it for none
        return None
    if type(value) is not int or not 0 <= value < len(tau):
        raise MisconfiguredError(f"{name} is {value!r} in config.json; the vocabulary has {len(tau)} ids")
    return int(tau[value])


def loadable_h(config: Config, wanted_h: int, engine: str) -> int:
    """The even h nearest to the wanted one that the engine can load; the larger of two. 0 stays 0.

    Engines: transformers, vllm, llama.cpp (F16, Q8_0, Q4_0), llama.cpp-k (K-quants), group-128.
    """
    if engine not in MULTIPLES:
        raise MisconfiguredError(f"no engine {engine!r}; there are {', '.join(MULTIPLES)}")
    if wanted_h == 0:
        return 0
    d = config["hidden_size"]
    divisor = int(np.lcm(config["num_attention_heads"], MULTIPLES[engine]))
    fits = [h for h in range(2, wanted_h + 2 * divisor + 2, 2) if (d + 2 * h) % divisor == 0]
    if not fits:
        raise MisconfiguredError(f"no h makes hidden size {d} + 2h divisible by {divisor}, as {engine} needs")
    return min(fits, key=lambda h: (abs(h - wanted_h), -h))
