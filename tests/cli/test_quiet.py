"""Standard error holds our own lines and nothing of the libraries': no bars, no warnings, no reports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from transom.checkpoint.tiny import tiny_llama

SCRIPT = """
import sys
from pathlib import Path
from transom.checkpoint import load
from transom.errors import TransomError
from transom.obfuscation.calibrate import isotropic
from transom.obfuscation.keyfile import new_key
from transom.obfuscation.keys import preset
from transom.obfuscation.plain import open_source
from transom.obfuscation.writer import obfuscate
root = Path(sys.argv[1])
loaded = load(root / "tied")
loaded.model.save_pretrained(root / "saved", max_shard_size="20KB")
load(root / "saved")
plain = open_source(root / "tied")
obfuscate(plain, root / "out", new_key(plain.fingerprint, plain.vocabulary, preset("paper", h=8)))
load(root / "out")
for broken in ("short", "strange"):
    try:
        load(root / broken)
    except TransomError as error:
        print(str(error)[-60:])
"""


def test_nothing_but_ours_on_standard_error(tmp_path: Path) -> None:
    """Among the folders: a tied head that is another, a tensor that is missing, one that nobody reads, and an
    id that is none."""
    for name in ("tied", "short", "strange"):
        folder = tiny_llama(tmp_path / name, pad_token_id=-1)
        weights = load_file(folder / "model.safetensors")
        if name == "short":
            del weights["model.norm.weight"]
        elif name == "strange":
            weights["strange"] = torch.ones(2)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    text = (tmp_path / "tied" / "config.json").read_text()
    assert '"tie_word_embeddings": false' in text
    (tmp_path / "tied" / "config.json").write_text(text.replace('embeddings": false', 'embeddings": true'))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 2
