#!/usr/bin/env bash
# llama.cpp decides by the number of layers whether a DeepSeek model has a latent query, not by the file's key.
#
# Versions: xllamacpp 2026.10.11549 (llama.cpp's server inside), gguf 0.19.0 (its own writer of such files).
# Expected: a GGUF of architecture deepseek2 with `deepseek2.attention.q_lora_rank` and the tensors attn_q_a, attn_q_b
#   loads with any number of layers; one without the key and with attn_q loads as well.
# Seen: with 25 and 28 layers only the former loads, with 26 and 27 only the latter (and a model of 48 layers is of
#   the one or the other kind by its number of tokens). The refusal names no reason to the caller.
# Output seen on 2026-11-29:
#   25 layers: latent query True, plain query False
#   26 layers: latent query False, plain query True
#   27 layers: latent query False, plain query True
#   28 layers: latent query True, plain query False
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps xllamacpp==2026.10.11549
"$folder/venv/bin/pip" install --quiet gguf==0.19.0
cd "$folder"
cat >write.py <<'PY'
import sys

import gguf
import numpy as np

layers, latent = int(sys.argv[1]), sys.argv[2] == "latent"
d, heads, q, r, nope, rope, v, f, vocabulary = 32, 2, 16, 16, 8, 8, 8, 32, 64
w = gguf.GGUFWriter("model.gguf", "deepseek2")
keys = {
    "context_length": 64, "embedding_length": d, "block_count": layers, "feed_forward_length": f,
    "attention.head_count": heads, "attention.head_count_kv": 1, "attention.key_length": r + rope,
    "attention.value_length": r, "attention.key_length_mla": nope + rope, "attention.value_length_mla": v,
    "attention.kv_lora_rank": r, "rope.dimension_count": rope, "leading_dense_block_count": layers,
    "expert_count": 2, "expert_used_count": 1, "expert_shared_count": 1, "expert_feed_forward_length": 16,
}  # fmt: skip
if latent:
    keys["attention.q_lora_rank"] = q
for name, value in keys.items():
    w.add_uint32(f"deepseek2.{name}", value)
w.add_float32("deepseek2.attention.layer_norm_rms_epsilon", 1e-6)
w.add_tokenizer_model("gpt2")
w.add_tokenizer_pre("default")
w.add_token_list([f"<{i}>" for i in range(vocabulary)])
w.add_token_types([1] * vocabulary)
w.add_token_merges(["< 0"])
w.add_eos_token_id(1)
shapes = {"token_embd.weight": (vocabulary, d), "output_norm.weight": (d,), "output.weight": (vocabulary, d)}
query = {"attn_q_a": (q, d), "attn_q_a_norm": (q,), "attn_q_b": (heads * (nope + rope), q)}
for i in range(layers):
    block = {
        "attn_norm": (d,), "ffn_norm": (d,), "attn_kv_a_mqa": (r + rope, d), "attn_kv_a_norm": (r,),
        "attn_k_b": (heads, r, nope), "attn_v_b": (heads, v, r), "attn_output": (d, heads * v),
        "ffn_gate": (f, d), "ffn_up": (f, d), "ffn_down": (d, f),
        **(query if latent else {"attn_q": (heads * (nope + rope), d)}),
    }  # fmt: skip
    shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
for name, shape in shapes.items():
    w.add_tensor(name, np.ones(shape, np.float32))
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
PY
cat >load.py <<'PY'
import os

import xllamacpp

p = xllamacpp.CommonParams()
p.model.path, p.n_ctx, p.warmup = "model.gguf", 64, False
server = xllamacpp.Server(p)
os._exit(0)  # loaded; its threads need not end in order
PY
for layers in 25 26 27 28; do
    loads=()
    for kind in latent plain; do
        "$folder/venv/bin/python" write.py "$layers" "$kind"
        if "$folder/venv/bin/python" load.py >log 2>&1; then loads+=(True); else loads+=(False); fi
    done
    echo "$layers layers: latent query ${loads[0]}, plain query ${loads[1]}"
done | tee seen
diff seen - <<'TXT'
25 layers: latent query True, plain query False
26 layers: latent query False, plain query True
27 layers: latent query False, plain query True
28 layers: latent query True, plain query False
TXT
