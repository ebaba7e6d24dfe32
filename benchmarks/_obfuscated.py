"""What the obfuscation benchmarks share: an obfuscated copy of a model in a folder, and its secret map."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Obfuscated:
    """A folder an engine can load, and `tau`: plain id -> obfuscated id."""

    folder: Path
    client: Path
    tau: NDArray[np.int64]
    settings: Any


@contextmanager
def obfuscated(model: str, preset: str, *, h: int | None = None, device: str = "cpu") -> Iterator[Obfuscated]:
    """`transom obfuscate` into a folder that is gone afterwards."""
    from transom.cli.main import run
    from transom.obfuscation.keyfile import load_key
    from transom.obfuscation.keys import token_map

    with tempfile.TemporaryDirectory() as scratch:
        folder, key, client = Path(scratch) / "model", Path(scratch) / "key", Path(scratch) / "client"
        arguments = ["obfuscate", model, "--out", str(folder), "--key", str(key), "--client", str(client)]
        arguments += ["--preset", preset, "--device", device]
        arguments += [] if h is None else ["--h", str(h)]
        if run(arguments) != 0:
            raise SystemExit(f"transom obfuscate failed for preset {preset}")
        loaded = load_key(key)
        tau = token_map(loaded.secret, loaded.vocabulary)
        yield Obfuscated(folder, client, tau, loaded.settings)
