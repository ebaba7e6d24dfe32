"""The attacker's own obfuscation: the public model under keys of its own, to learn what keys alone change.

The method is public, so whoever holds the base model can obfuscate it as often as it likes and compare.

Threat model: see `weights`; knows the method and its settings, not the key. Does not protect anything.
Source: Lin et al., arXiv 2603.01499 (the method); the use of it against itself is ours.

Shapes: V vocabulary.
"""

from __future__ import annotations

from typing import Any

from transom.audit.attacks.weights import Knowledge, Target
from transom.checkpoint.resolve import MAKING
from transom.obfuscation.calibrate import calibrate
from transom.obfuscation.keys import Settings, Space, token_map
from transom.obfuscation.plan import obfuscate_state, target_config
from transom.report.statistics import Ints


def settings_of(target: Target, knowledge: Knowledge) -> Settings | None:
    """What widths say of the settings: h, and nothing of noise. None where no width was added, as where rows
    were permuted and nothing else was done."""
    added = target.weights.embedding_VD.shape[1] - knowledge.base.embedding_VD.shape[1]
    if added <= 0:
        return None
    return Settings(h=added // 4 * 2, alpha_e=0.0, alpha_h=0.0, block_permutation=False)


def obfuscated(model: Any, settings: Settings, secret: bytes, calibration_ids: Ints) -> tuple[Any, Ints]:
    """(a runnable obfuscation of a transformers causal model, its tau [V]), all in memory.

    `calibration_ids` are the text whose norms set kappa. Raises NotYetError for unknown architectures.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    space = Space(secret, config["hidden_size"], settings)
    tau_V = token_map(secret, config["vocab_size"])
    kappas = calibrate(model, torch.from_numpy(calibration_ids[None]).to(model.device), space)
    target = target_config(config, settings, tau_V)
    shape = AutoConfig.for_model(**target)
    with MAKING:
        wide = AutoModelForCausalLM.from_config(shape).eval()  # type: ignore[no-untyped-call]
    wide.load_state_dict(obfuscate_state(model.state_dict(), config, space, kappas))
    return wide.to(model.device), tau_V
