#!/usr/bin/env bash
# A decoder that classifies in transformers finds the last token by its id and not by the attention mask.
#
# Version: transformers 5.23.0, torch 2.13.0 (CPU).
# Expected: padding that the attention mask rules out does not change a row's scores, whichever token it is made of
#   (as for the hidden states), and a token that the mask keeps counts.
# Seen: the pooled position is that of the last id which is not `pad_token_id`; the mask is not asked. Padding of another
#   token changes the scores without a word, and of a text whose last token has the padding's id (a common case where
#   padding and end of text are one token) that token is passed over though the mask keeps it. Only for
#   `inputs_embeds` there is a remark in the log.
# Output seen on 2026-11-29:
#   padded with pad_token_id: as alone
#   padded with another token, masked: other scores
#   ends in pad_token_id, not masked: scores of the text without it
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" -W ignore - <<'PY' | tee "$folder/seen"
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
)
model = LlamaForSequenceClassification(config).eval()


def scores(ids, mask):
    with torch.no_grad():
        return model(torch.tensor([ids]), attention_mask=torch.tensor([mask])).logits


def same(left, right):
    return bool((left - right).abs().max() < 1e-5)


alone = scores([5, 6, 7], [1, 1, 1])
print("padded with pad_token_id:", "as alone" if same(scores([5, 6, 7, 0, 0], [1, 1, 1, 0, 0]), alone) else "other scores")
other = scores([5, 6, 7, 9, 9], [1, 1, 1, 0, 0])
print("padded with another token, masked:", "as alone" if same(other, alone) else "other scores")
ends = scores([5, 6, 0], [1, 1, 1])
passed_over = same(ends, scores([5, 6], [1, 1]))
print("ends in pad_token_id, not masked:", "scores of the text without it" if passed_over else "its own scores")
PY
diff "$folder/seen" - <<'SEEN'
padded with pad_token_id: as alone
padded with another token, masked: other scores
ends in pad_token_id, not masked: scores of the text without it
SEEN
