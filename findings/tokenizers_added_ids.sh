#!/usr/bin/env bash
# tokenizers gives added tokens new ids when a tokenizer.json lists them with a gap, and says so to nobody.
#
# Version: tokenizers 0.23.3.
# Expected: an added token loaded from tokenizer.json has the "id" that the file gives it, or the file is refused.
# Seen: ids of added tokens that are not in the model's vocabulary are counted on from its size, in the order of the
#   list; the "id" in the file is not used. Taking one entry out of "added_tokens" renumbers those after it.
# Output seen on 2026-11-29:
#   in the file: {'<b>': 3, '<c>': 4}
#   after loading: {'<b>': 2, '<c>': 3}
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PY'
import json

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

tokenizer = Tokenizer(BPE({"x": 0, "y": 1}, []))
tokenizer.add_special_tokens([AddedToken("<a>"), AddedToken("<b>"), AddedToken("<c>")])
spec = json.loads(tokenizer.to_str())
spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] != "<a>"]
told = {token["content"]: token["id"] for token in spec["added_tokens"]}
loaded = Tokenizer.from_str(json.dumps(spec))
got = {name: loaded.token_to_id(name) for name in told}
print("in the file:", told)
print("after loading:", got)
assert told == {"<b>": 3, "<c>": 4}
assert got == {"<b>": 2, "<c>": 3}
PY
