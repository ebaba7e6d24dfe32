#!/usr/bin/env bash
# Two threads that load models with transformers at a time leave weight tying off for the whole process.
#
# Version: transformers 5.23.0, torch 2.13.0 (CPU).
# Expected: `from_pretrained` in one thread does not change what another gets; a model whose embedding and head are one
#   loads so, before and after.
# Seen: while it makes a model, `from_pretrained` puts a function that does nothing in the place of
#   `PreTrainedModel.tie_weights`, and afterwards what it had found there. A thread that begins while another is in the
#   middle finds that function, and where it ends last, it stays. From then on a model with tied weights is loaded
#   without a head, whose weights are then random, and reported as missing; nothing is raised.
# Output seen on 2026-11-29:
#   before: head tied, missing []
#   two threads, the second ends last: tie_weights replaced
#   after, in one thread: head not tied, missing ['lm_head.weight']
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
HOME="$folder" "$folder/venv/bin/python" -W ignore - "$folder/model" <<'PY' 2>/dev/null | tee "$folder/seen"
import sys
import threading

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
config = LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
tie = PreTrainedModel.tie_weights


def load():
    model, info = LlamaForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    return f"head {'tied' if tied else 'not tied'}, missing {sorted(info['missing_keys'])}"


print("before:", load())
second_is_in, first_is_out, make = threading.Event(), threading.Event(), LlamaForCausalLM.__init__
waits = {"first": second_is_in, "second": first_is_out}


def slow(self, *args, **options):  # as a large model is
    name = threading.current_thread().name
    if name == "second":
        second_is_in.set()
    if name in waits:
        waits[name].wait(20)
    make(self, *args, **options)


def run():
    load()
    first_is_out.set()


LlamaForCausalLM.__init__ = slow
threads = [threading.Thread(target=run, name=name) for name in ("first", "second")]
threads[0].start()
threading.Event().wait(1)
threads[1].start()
for thread in threads:
    thread.join()
LlamaForCausalLM.__init__ = make
print("two threads, the second ends last: tie_weights", "as it was" if PreTrainedModel.tie_weights is tie else "replaced")
print("after, in one thread:", load())
PY
diff "$folder/seen" - <<'SEEN'
before: head tied, missing []
two threads, the second ends last: tie_weights replaced
after, in one thread: head not tied, missing ['lm_head.weight']
SEEN
