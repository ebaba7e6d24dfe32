#!/usr/bin/env bash
# tokenizers' `word_ids` call a whole text one word where spaces are signs of the pieces, as in SentencePiece.
#
# Version: tokenizers 0.23.3.
# Expected: `Encoding.word_ids` numbers the words of a text, whatever the tokenizer, since offsets show the spaces.
# Seen: numbers are those of the pre-tokenizer's parts. Llama 2's layout has none, and Gemma's splits at spaces
#   after its normalizer has replaced them all: both number every token 0. One that divides with Metaspace, which
#   writes the same pieces, numbers words.
# Output seen on 2026-11-30:
#   no pre-tokenizer   ['▁the', '▁good', '▁dog'] [0, 0, 0]
#   split at spaces    ['▁the', '▁good', '▁dog'] [0, 0, 0]
#   metaspace          ['▁the', '▁good', '▁dog'] [0, 1, 2]
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PY'
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

PIECES = ["<unk>", "▁the", "▁good", "▁dog"]


def numbered(name, replaces, divides):
    tokenizer = Tokenizer(models.Unigram([(piece, -float(rank)) for rank, piece in enumerate(PIECES)], 0, False))
    if replaces:
        signs = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(signs)
    if divides is not None:
        tokenizer.pre_tokenizer = divides
    found = tokenizer.encode("the good dog")
    print(f"{name:<18} {found.tokens} {found.word_ids}")
    assert found.tokens == PIECES[1:]
    return found.word_ids


assert numbered("no pre-tokenizer", True, None) == [0, 0, 0]
assert numbered("split at spaces", True, pre_tokenizers.Split(" ", "merged_with_previous")) == [0, 0, 0]
assert numbered("metaspace", False, pre_tokenizers.Metaspace()) == [0, 1, 2]
PY
