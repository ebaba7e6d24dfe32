#!/usr/bin/env bash
# A WordPiece vocabulary that tokenizers trains on the same texts has other ids in each process.
#
# Version: tokenizers 0.23.3.
# Expected: the same trainer on the same texts gives the same tokenizer, as its BPE trainer does.
# Seen: the pieces are the same ones, but those that continue a word (`##x`) are numbered in another order in each
#   process, and with them the pieces that are merged of them. A model that was trained with one file reads another's
#   ids as other pieces, though both files hold the same pieces and the same count of them.
# Output seen on 2026-11-29:
#   BPE: one vocabulary in 6 processes
#   WordPiece: 6 vocabularies in 6 processes, of the same single letters
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
cat >"$folder/train.py" <<'PY'
import json
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

kind = sys.argv[1]
tokenizer = Tokenizer(getattr(models, kind)(unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
trainer = getattr(trainers, {"BPE": "BpeTrainer"}.get(kind, f"{kind}Trainer"))(vocab_size=80, special_tokens=["[UNK]"], show_progress=False)
texts = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"] * 3
tokenizer.train_from_iterator(texts, trainer)
print(json.dumps(tokenizer.get_vocab(), sort_keys=True))
PY
for kind in BPE WordPiece; do
    for _ in 1 2 3 4 5 6; do
        "$folder/venv/bin/python" "$folder/train.py" "$kind" >>"$folder/$kind"
    done
done
"$folder/venv/bin/python" - "$folder" <<'PY' | tee "$folder/seen"
import json
import pathlib
import sys

for kind in ("BPE", "WordPiece"):
    lines = (pathlib.Path(sys.argv[1]) / kind).read_text().splitlines()
    different = len(set(lines))
    letters = {frozenset(piece for piece in json.loads(line) if len(piece.removeprefix("##")) == 1) for line in lines}
    told = "one vocabulary" if different == 1 else f"{different} vocabularies"
    print(f"{kind}: {told} in {len(lines)} processes{', of the same single letters' * (len(letters) == 1 < different)}")
PY
diff "$folder/seen" - <<'SEEN'
BPE: one vocabulary in 6 processes
WordPiece: 6 vocabularies in 6 processes, of the same single letters
SEEN
