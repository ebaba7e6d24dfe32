"""Kappa without the wide state, against the wide state itself; and a real model, obfuscated as a whole."""

from pathlib import Path

import pytest
import torch
import transformers

from transom.checkpoint import load
from transom.checkpoint.tokenizer import export_tokenizer
from transom.obfuscation.calibrate import TEXT, calibrate, isotropic, measure
from transom.obfuscation.keys import Settings, Space, preset, token_map
from transom.obfuscation.plan import norm_names, obfuscate_state, plan, target_config

SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def model() -> transformers.PreTrainedModel:
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def _ids() -> torch.Tensor:
    return torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(2))


def test_ratio_is_that_of_the_wide_state(model: transformers.PreTrainedModel) -> None:
    """Form x' = sum y_i P_i by hand at the second norm: embedding and first attention."""
    space = Space(SECRET, 64, Settings(h=32, null_scale=1.0))
    states: dict[str, torch.Tensor] = {}
    first = model.model.layers[0]
    hook = first.self_attn.register_forward_hook(lambda _m, _i, out: states.update(y=out[0]))
    model(_ids())
    hook.remove()
    embedded = model.model.embed_tokens(_ids()).double()
    wide = embedded @ space.key("embedding") + states["y"].double() @ space.key("layers.0.attention")
    plain = embedded + states["y"].double()
    epsilon = model.config.rms_norm_eps
    ratio = ((wide.square().mean(-1) + epsilon) / (plain.square().mean(-1) + epsilon)).sqrt()
    found = measure(model, _ids(), space)["model.layers.0.post_attention_layernorm.weight"]
    assert found.mean == pytest.approx(float(ratio.mean()), rel=1e-5)
    assert found.spread == pytest.approx(float(ratio.std() / ratio.mean()), rel=1e-3)


def test_every_norm_is_calibrated_and_no_hook_stays(model: transformers.PreTrainedModel) -> None:
    space = Space(SECRET, 64, Settings(h=32))
    kappas = calibrate(model, _ids(), space)
    assert set(kappas) == set(norm_names(plan(model.config.to_dict(), space.settings)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    fallback = isotropic(space, kappas)
    assert set(fallback) == set(kappas)
    assert all(kappas[name] == pytest.approx(fallback[name], rel=0.1) for name in kappas)


def test_orthogonal_keys_need_no_kappa(model: transformers.PreTrainedModel) -> None:
    space = Space(SECRET, 64, Settings(h=0, lam=0.0))
    assert all(
        ratio.mean == pytest.approx(1, abs=1e-6) and ratio.spread < 1e-5
        for ratio in measure(model, _ids(), space).values()
    )
    assert isotropic(space, ["a"]) == {"a": pytest.approx(1.0)}


def test_small_null_spaces_keep_the_ratio_steady(model: transformers.PreTrainedModel) -> None:
    """Why null_scale is an eighth: at d^-1/2 the spread grows with h."""
    spread = {
        scale: max(
            r.spread
            for r in measure(model, _ids(), Space(SECRET, 64, Settings(h=32, null_scale=scale))).values()
        )
        for scale in (0.125, 1.0)
    }
    assert spread[0.125] < spread[1.0]


def test_smollm2_obfuscated_exactly(smollm2: Path) -> None:
    """A real model on a short text that calibration did not see. (Benchmarks measure on more text.)"""
    model, encode = load(smollm2).model, export_tokenizer("smollm2").tokenizer.encode
    space = Space(SECRET, 576, preset("exact", h=18))
    kappas = calibrate(model, torch.tensor([encode(TEXT).ids]), space)
    config = model.config.to_dict()
    tau_V = token_map(SECRET, config["vocab_size"])
    target = target_config(config, space.settings, tau_V)
    with torch.device("meta"):
        hidden = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(target.pop("model_type"), **target)
        ).eval()
    hidden.load_state_dict(obfuscate_state(model.state_dict(), config, space, kappas), assign=True)
    hidden.model.rotary_emb = model.model.rotary_emb
    text = "The library opens at nine. Visitors may borrow up to ten books for four weeks, and children more."
    ids_BT, order = torch.tensor([encode(text).ids]), torch.from_numpy(tau_V)
    with torch.no_grad():
        plain = model(ids_BT).logits.log_softmax(-1)
        shown = hidden(order[ids_BT]).logits[..., order].log_softmax(-1)
    divergence = (plain.exp() * (plain - shown)).sum(-1).mean()
    assert divergence < 0.02
    assert (plain.argmax(-1) == shown.argmax(-1)).float().mean() >= 0.9
