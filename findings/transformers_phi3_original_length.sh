#!/usr/bin/env bash
# transformers' Phi3Config replaces the original length in `rope_parameters` by its own default, without a word.
#
# Versions: transformers 5.23.0 (no torch needed).
# Expected: rope_parameters={"rope_type": "longrope", ..., "original_max_position_embeddings": 30} is kept; it decides
#   from which position on the long divisors count.
# Seen: Phi3Config writes 4096 over it, the default of its field original_max_position_embeddings, so the short
#   divisors stay in use up to there. LlamaConfig keeps the 30. Giving the length in both places works.
# Output seen on 2026-11-29:
#   LlamaConfig 30
#   Phi3Config 4096
#   Phi3Config with the field given too 30
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0
"$folder/venv/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
from transformers import LlamaConfig, Phi3Config

ROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [8.0] * 8,
    "attention_factor": 1.0, "original_max_position_embeddings": 30,
}
SIZES = {
    "vocab_size": 50, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4,
    "num_hidden_layers": 1, "intermediate_size": 64, "max_position_embeddings": 128, "pad_token_id": None,
}


def kept(kind, **more):
    config = kind(**SIZES, **more, rope_parameters=dict(ROPE))
    return config.rope_parameters["original_max_position_embeddings"]


seen = [kept(LlamaConfig), kept(Phi3Config), kept(Phi3Config, original_max_position_embeddings=30)]
print("LlamaConfig", seen[0])
print("Phi3Config", seen[1])
print("Phi3Config with the field given too", seen[2])
raise SystemExit(seen != [30, 4096, 30])
PY
