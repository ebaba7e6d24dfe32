"""Kappa, the weight of each obfuscated norm: how much longer a state is in the wide basis, on public text.

The wide state is never formed. Keys share a base and differ by G_i N with N orthonormal to that base, so
|x'|^2 = |x base|^2 + |sum_i y_i G_i|^2, where x is the plain state and y_i what sub-layer i wrote into it.

Threat model: none; the text is public. Does not make the ratio constant: `Ratio.spread` is what remains.
Source: Lin et al., arXiv 2603.01499, with the square root that the printed kappa lacks. The norm's epsilon is
counted in, which is exact where the formula is not.

Legend: B batch, T tokens, d plain width, w obfuscated width, r = h / 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transom.obfuscation.keys import Space
from transom.obfuscation.task import attention_label, feedforward_label

if TYPE_CHECKING:
    from torch import Tensor

TEXT = """\
The ferry leaves the harbour at seven and reaches the island before noon. Most passengers carry bread,
newspapers and boxes of seedlings for their gardens. On Mondays the captain also takes the mail.

To change a bicycle tyre, first let out the air, then loosen one edge of the tyre with two levers and pull out
the tube. Look for the hole under water: bubbles show where it is. Dry the tube, roughen the spot, apply glue,
wait five minutes and press the patch on.

Question: What is the sum of 17 and 26? Answer: 17 + 26 = 43.
Question: Which planet is the largest? Answer: Jupiter.

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

In 1854 a physician drew a map of the cholera cases around a pump. "Close the pump," he said, and the cases
fell. The committee, however, did not believe that water could carry a disease; it took another ten years, a
second epidemic and a warmer summer to persuade them. Der Zug nach Hamburg hat zwanzig Minuten Verspätung.
"""


@dataclass(frozen=True)
class Ratio:
    """rms(x') / rms(x) at one norm, over all positions: its mean is kappa, `spread` its relative scatter."""

    mean: float
    spread: float


def calibrate(model: Any, ids_BT: Tensor, space: Space) -> dict[str, float]:
    """Kappa of each norm of a plain transformers model, by the norm's tensor name."""
    return {name: ratio.mean for name, ratio in measure(model, ids_BT, space).items()}


def measure(model: Any, ids_BT: Tensor, space: Space) -> dict[str, Ratio]:
    """The ratio at each norm of a plain transformers decoder, run once on the ids."""
    import torch

    ratios: dict[str, Ratio] = {}
    shared_dw = space.shared().to(model.device, torch.float32)
    written: list[Tensor] = []  # one element: the running sum of y_i G_i [B, T, r]
    hooks = []

    def writer(label: str) -> Any:
        mixing_dr = space.mixing(label, shared_dw)

        def hook(module: Any, inputs: Any, output: Any) -> None:
            part = (output[0] if isinstance(output, tuple) else output).float() @ mixing_dr
            written[:] = [part] if label == "embedding" else [written[0] + part]

        return hook

    def reader(name: str, epsilon: float) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            x_BTd = inputs[0].float()
            wide = (x_BTd @ shared_dw).square().sum(-1) + written[0].square().sum(-1)
            ratio_BT = ((wide / space.width + epsilon) / (x_BTd.square().mean(-1) + epsilon)).sqrt()
            ratios[name] = Ratio(float(ratio_BT.mean()), float(ratio_BT.std() / ratio_BT.mean()))

        return hook

    trunk, epsilon = model.model, model.config.rms_norm_eps
    hooks.append(trunk.embed_tokens.register_forward_hook(writer("embedding")))
    hooks.append(trunk.norm.register_forward_pre_hook(reader("model.norm.weight", epsilon)))
    for i, layer in enumerate(trunk.layers):
        own = f"model.layers.{i}"
        hooks.append(layer.self_attn.register_forward_hook(writer(attention_label(i))))
        hooks.append(layer.mlp.register_forward_hook(writer(feedforward_label(i))))
        for name in ("input_layernorm", "post_attention_layernorm"):
            read = reader(f"{own}.{name}.weight", epsilon)
            hooks.append(getattr(layer, name).register_forward_pre_hook(read))
    try:
        with torch.no_grad():
            model(input_ids=ids_BT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return ratios


def isotropic(space: Space, names: Iterable[str]) -> dict[str, float]:
    """Kappa of each named norm without a model: as if states pointed everywhere alike."""
    square = float(space.shared().square().sum()) / space.d + space.settings.h / 2 / space.d
    return dict.fromkeys(names, (square * space.d / space.width) ** 0.5)
