#!/usr/bin/env bash
# torch turns infinity into 448 when it casts to float8_e4m3fn; ml_dtypes makes the same values NaN.
#
# Version: torch 2.13.0 (CPU), ml_dtypes 0.6.0, numpy 2.4.6.
# Expected: a cast of what is too large gives NaN in e4m3fn, which has no infinity, as it gives infinity in e5m2: an
#   overflow, and an infinity that a calculation made, is seen afterwards.
# Seen: torch saturates in e4m3fn alone: every larger value and infinity become 448, finite, without a word, so a
#   test for finite values after the cast passes. Its e5m2 overflows to infinity. ml_dtypes gives NaN in e4m3fn from
#   465 on: one and the same array is two in the two libraries.
# Output seen on 2026-11-29:
#   torch e4m3fn: 464 -> 448, 465 -> 448, 10000 -> 448, inf -> 448, nan -> nan
#   torch e5m2: 57344 -> 57344, 65536 -> inf, inf -> inf
#   ml_dtypes e4m3fn: 464 -> 448, 465 -> nan, 10000 -> nan, inf -> nan, nan -> nan
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 ml_dtypes==0.6.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PY' | tee "$folder/seen"
import ml_dtypes
import numpy as np
import torch

LARGE, WIDE = ("464", "465", "10000", "inf", "nan"), ("57344", "65536", "inf")


def line(name, values, cast):
    print(f"{name}: " + ", ".join(f"{value} -> {cast(float(value)):g}" for value in values))


line("torch e4m3fn", LARGE, lambda x: torch.tensor([x]).to(torch.float8_e4m3fn).float().item())
line("torch e5m2", WIDE, lambda x: torch.tensor([x]).to(torch.float8_e5m2).float().item())
line("ml_dtypes e4m3fn", LARGE, lambda x: float(np.float32(x).astype(ml_dtypes.float8_e4m3fn)))
PY
diff "$folder/seen" - <<'SEEN'
torch e4m3fn: 464 -> 448, 465 -> 448, 10000 -> 448, inf -> 448, nan -> nan
torch e5m2: 57344 -> 57344, 65536 -> inf, inf -> inf
ml_dtypes e4m3fn: 464 -> 448, 465 -> nan, 10000 -> nan, inf -> nan, nan -> nan
SEEN
