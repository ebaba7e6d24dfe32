"""Packed models against what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from transom.checkpoint.fingerprint import fingerprint
from transom.checkpoint.load import Dtype, load
from transom.checkpoint.packed import PackedLinear, pack
from transom.checkpoint.tiny import tiny_llama

ARCHITECTURES = ("Llama", "Mistral", "Qwen2", "Qwen3")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_packed_model_says_what_it_said(tmp_path: Path, architecture: str, dtype: Dtype) -> None:
    model = load(tiny_llama(tmp_path, architecture=architecture), dtype=dtype).model
    head = model.get_output_embeddings().weight
    before, weights = fingerprint(model), {name: one.clone() for name, one in model.state_dict().items()}
    ids_BT = torch.randint(5, 300, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = model(input_ids=ids_BT).logits.float()
        pack(model)
        packed = [one for one in model.modules() if isinstance(one, PackedLinear)]
        assert len(packed) == 3 * 7 + 1
        assert not [one for one in model.modules() if type(one) is nn.Linear]
        got = model(input_ids=ids_BT).logits.float()
        for rows in (1, 2, 5):
            few = model(input_ids=ids_BT[:1, :rows]).logits.float()
            torch.testing.assert_close(few, wanted[:1, :rows], **_near(dtype))
    torch.testing.assert_close(got, wanted, **_near(dtype))
    assert fingerprint(model) == before
    assert {name: one.shape for name, one in model.state_dict().items()} == {
        name: one.shape for name, one in weights.items()
    }
    for name, one in model.state_dict().items():
        assert torch.equal(one, weights[name]), name
    assert model.get_output_embeddings().weight is head


def _near(dtype: str) -> dict[str, float]:
    return {"atol": 2e-5, "rtol": 1e-4} if dtype == "float32" else {"atol": 0.05, "rtol": 0.05}


def test_a_layer_with_a_bias_and_odd_sizes(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(2)
    for inner, outer in ((1, 1), (3, 7), (33, 129), (576, 192)):
        linear = nn.Linear(inner, outer)
        packed = PackedLinear(linear)
        assert torch.equal(packed.weight, linear.weight)
        for shape in ((inner,), (2, inner), (2, 3, inner), (1, 0, inner)):
            x = torch.randn(*shape, generator=draw)
            with torch.inference_mode():
                torch.testing.assert_close(packed(x), linear(x), atol=1e-5, rtol=1e-5)


def test_a_norm_that_adds_one_is_left_alone() -> None:
    class OneRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.full((8,), 0.5)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)

    from transom.checkpoint.packed import _in_one

    norm, x = OneRMSNorm(), torch.randn(2, 8)
    wanted = norm(x)
    _in_one(norm)
    assert torch.equal(norm(x), wanted)
    assert "forward" not in vars(norm)
