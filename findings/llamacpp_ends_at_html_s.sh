#!/usr/bin/env bash
# llama.cpp ends an answer at the text "</s>" wherever a vocabulary has it as a piece, also as an HTML tag.
#
# Versions: xllamacpp 2026.10.11549 (llama.cpp inside), gguf 0.19.0, numpy 2.4.6.
# Expected: what ends an answer are the ids that the file names (eos_token_id, eot_token_id), and control tokens.
# Seen: any piece spelled "</s>" ends it, although its type is NORMAL and another id is eos_token_id; in a text it
#   is then matched whole, as control tokens are. Gemma 3 has the piece 212 for the HTML tag of struck-out text,
#   Qwen2.5-Coder the piece 128247 as ordinary text: an answer that writes <s>old</s> breaks off there. The same
#   holds for "<EOT>", "[EOS]", "<PAD>" and some twenty other spellings.
# Output seen on 2026-11-29:
#   ids that end an answer: 0 a (eos_token_id), 3 </s>
#   "a</s>b" is [0, 3, 1]
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6 pyyaml tqdm requests
cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import http.client
import json
import time
import urllib.parse

import gguf
import numpy as np
import xllamacpp

PIECES, WIDTH = ["a", "b", "ab", "</s>", "<b>"], 8
writer = gguf.GGUFWriter("model.gguf", "llama")
writer.add_context_length(128)
writer.add_embedding_length(WIDTH)
writer.add_feed_forward_length(WIDTH)
for add in (writer.add_block_count, writer.add_head_count, writer.add_head_count_kv):
    add(1)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list(PIECES)
writer.add_token_types([1] * len(PIECES))
writer.add_token_merges(["a b"])
writer.add_eos_token_id(0)
shapes = {name: (len(PIECES), WIDTH) for name in ("token_embd", "output")}
for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
    shapes[f"blk.0.{part}"] = (WIDTH, WIDTH)
for name, shape in shapes.items():
    writer.add_tensor(f"{name}.weight", np.random.default_rng(0).normal(size=shape).astype(np.float32))
for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
    writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.warmup = "model.gguf", 128, False
server = xllamacpp.Server(parameters)
address = urllib.parse.urlsplit(server.listening_address)


def ask(path, body):
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.request("POST", path, json.dumps(body))
    return json.loads(connection.getresponse().read())


for _ in range(60):
    if "error" not in ask("/tokenize", {"content": "a"}):
        break
    time.sleep(0.5)
ends = []
for token in range(len(PIECES)):
    body = {"prompt": [1], "n_predict": 2, "logit_bias": [[token, 1000]], "temperature": 0}
    if ask("/completion", body)["stop_type"] == "eos":
        ends.append(token)
ids = ask("/tokenize", {"content": "a</s>b"})["tokens"]
print("ids that end an answer:", ", ".join(f"{i} {PIECES[i]}" + " (eos_token_id)" * (i == 0) for i in ends))
print(f'"a</s>b" is {ids}')
assert ends == [0, 3], ends
assert ids == [0, 3, 1], ids
PY
