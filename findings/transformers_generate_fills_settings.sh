#!/usr/bin/env bash
# A configuration that is given to generate() in transformers says only what differs from its defaults.
#
# Version: transformers 5.23.0, torch 2.13.0 (CPU).
# Expected: with generation_config=GenerationConfig(do_sample=False, max_new_tokens=12) the answer is greedy, whatever the
#   model's own settings are.
# Seen: what the given configuration leaves open is taken from the model's generation_config without a word, such as a
#   penalty of repetition of 3.0, which changes the answer (and an end of text where the given one has none). A value
#   that is written out is kept, also 1.0, and nothing is filled in where the model's settings are replaced meanwhile.
# Output seen on 2026-12-01:
#   left open: another answer
#   written out: as plain
#   replaced: as plain
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
seen=$("$folder/venv/bin/python" - 2>/dev/null <<'EOF'
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        eos_token_id=None, bos_token_id=None, pad_token_id=None,
    )
).eval()
prompt = torch.tensor([[5, 6, 7, 8]])


def answer(**more):
    config = GenerationConfig(do_sample=False, max_new_tokens=12, pad_token_id=0, **more)
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config).tolist()


plain = answer()
model.generation_config.repetition_penalty = 3.0
print("left open:", "as plain" if answer() == plain else "another answer")
print("written out:", "as plain" if answer(repetition_penalty=1.0) == plain else "another answer")
model.generation_config = GenerationConfig()
print("replaced:", "as plain" if answer() == plain else "another answer")
EOF
)
printf '%s\n' "$seen"
expected='left open: another answer
written out: as plain
replaced: as plain'
test "$seen" = "$expected"
