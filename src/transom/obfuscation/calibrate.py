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

from transom.checkpoint.observe import observing
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
    """The ratio at each norm of a plain transformers decoder, or its trunk, run once on the ids."""
    import torch

    ratios: dict[str, Ratio] = {}
    shared_dw = space.shared().to(ids_BT.device, torch.float32)
    layers, epsilon = model.config.num_hidden_layers, model.config.rms_norm_eps
    labels = {"attention_out": attention_label, "mlp_out": feedforward_label}
    now: dict[str, Tensor] = {}  # the stream x [B, T, d], and the running sum of y_i G_i [B, T, r]

    def read(name: str) -> None:
        x_BTd = now["stream"].float()
        wide = (x_BTd @ shared_dw).square().sum(-1) + now["written"].square().sum(-1)
        ratio_BT = ((wide / space.width + epsilon) / (x_BTd.square().mean(-1) + epsilon)).sqrt()
        ratios[name] = Ratio(float(ratio_BT.mean()), float(ratio_BT.std() / ratio_BT.mean()))

    def see(kind: str, layer: int, y_BTd: Tensor) -> None:
        if layer == -1:
            now["written"] = y_BTd.float() @ space.mixing("embedding", shared_dw)
        elif kind != "hidden":
            now["written"] = now["written"] + y_BTd.float() @ space.mixing(labels[kind](layer), shared_dw)
        if kind == "attention_out":
            now["stream"] = now["stream"] + y_BTd
            read(f"model.layers.{layer}.post_attention_layernorm.weight")
        elif kind == "hidden":
            now["stream"] = y_BTd
            last = layer + 1 == layers
            read("model.norm.weight" if last else f"model.layers.{layer + 1}.input_layernorm.weight")

    first = observing(model, [-1], ["hidden"], see)
    each = observing(model, range(layers), ["attention_out", "mlp_out", "hidden"], see)
    with torch.no_grad(), first, each:
        model(input_ids=ids_BT, use_cache=False)
    return ratios


def isotropic(space: Space, names: Iterable[str]) -> dict[str, float]:
    """Kappa of each named norm without a model: as if states pointed everywhere alike."""
    square = float(space.shared().square().sum()) / space.d + space.settings.h / 2 / space.d
    return dict.fromkeys(names, (square * space.d / space.width) ** 0.5)
