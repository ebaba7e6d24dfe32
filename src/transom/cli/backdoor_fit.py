"""`transom backdoor fit`: what is usual of a model's prompts, in a file by which others are flagged.

    transom backdoor fit smollm2 --clean trusted.txt --chat --out detector.safetensors
    transom engine smollm2 --backdoor-detector detector.safetensors
    transom gateway --mode plain --backdoor-detector detector.safetensors

Threat model: that of `transom.trust.backdoor`. Does not protect: what the detector was not fitted for, such
as another system prompt, is not scored or flagged. Source: see there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transom.checkpoint.load import Dtype, load
from transom.cli.options import Json
from transom.cli.output import answer, progress
from transom.config import Setting
from transom.errors import MisconfiguredError
from transom.files import require_writable

if TYPE_CHECKING:
    from transom.serving.engines.base import Ids


def fit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, GGUF file, or a packaged model.")],
    clean: Annotated[Path, "Trusted texts of the task: 80 or more, some hundred are better."],
    out: Annotated[Path, "The detector's file."],
    column: Annotated[str | None, "The column of texts."] = None,
    chat: Annotated[bool, "A text is one message of a user, as the gateway renders it."] = False,
    system: Annotated[str | None, "With --chat: the system message before it."] = None,
    prompt: Annotated[str, Setting("What stands around a text, with {text} in its place.")] = "{text}",
    device: Annotated[str, "Where it computes: cpu, cuda."] = "cpu",
    dtype: Annotated[Dtype | None, "As the engine runs: by default float32 on cpu, else bfloat16."] = None,
    as_json: Json = False,
) -> None:
    """Fit a detector of triggers in prompts, for `transom engine` and `transom gateway`."""
    from transom.data.rows import read_texts
    from transom.trust.backdoor.detector import fit_detector, write_detector
    from transom.trust.backdoor.prompts import frame_of

    require_writable(out)
    texts = read_texts(clean, column)
    encode = _encoder(model, chat, system, prompt)
    with progress("loading", quiet=as_json):
        found = load(model, dtype=dtype or ("float32" if device == "cpu" else "bfloat16"), device=device)
    with progress("reading trusted texts", len(texts), quiet=as_json) as bar:
        detector = fit_detector(found, list(map(encode, texts)), frame_of(encode), lambda: bar.advance(1))
    write_detector(out, detector)
    read, held = detector.normal.texts, len(detector.normal.held)
    record = {
        "model": model,
        "out": str(out),
        "texts": len(texts),
        "trusted": read,
        "least_rate": 1 / (1 + held),
        "frame_tokens": [len(detector.before), len(detector.after)],
        "fingerprint": detector.model,
    }
    answer(
        record,
        f"{out}: fitted to {read} of {len(texts)} texts, for rates of {1 / (1 + held):.2g} and more. Give it "
        "to transom engine and to transom gateway, each with --backdoor-detector.",
        as_json=as_json,
    )


def _encoder(model: str, chat: bool, system: str | None, prompt: str) -> Callable[[str], Ids]:
    """A text as the gateway sends it: as a chat, or as the prompt of a completion. Raises
    MisconfiguredError."""
    from transom.cli.backdoor import frame_of_prompt
    from transom.serving.tokenizer import load_tokenizer

    frame, tokens = frame_of_prompt(prompt), load_tokenizer(model)
    if not chat:
        if system is not None:
            raise MisconfiguredError("--system goes with --chat; write it into --prompt, or add --chat")
        return lambda text: tokens.encode_text(frame.around(text)).ids
    before = [] if system is None else [("system", system)]
    return lambda text: tokens.encode_chat([*before, ("user", frame.around(text))]).ids
