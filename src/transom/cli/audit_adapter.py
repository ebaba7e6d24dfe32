"""`transom audit adapter DIR`: does a fine-tuned LoRA adapter give away which texts it was trained on?

Both files hold one text a line and must come from one source: what an attacker could tell apart without any
training counts as found. With 437 non-members or more the interval of the rate has a lower end above 0.
Threat model: run by the owner of the adapter, the attack plays somebody who was given it.
Does not prove privacy: only that these scores, on these texts, told no more.
Source: `transom.audit.attacks.membership`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from transom.audit.attack import choose
from transom.audit.attacks import membership
from transom.audit.attacks.traffic import Texts
from transom.checkpoint import Checkpoint, load
from transom.cli.audit_report import Options, auditing
from transom.cli.output import progress
from transom.config import Setting
from transom.data.rows import read_texts
from transom.errors import MisconfiguredError


def adapter(
    folder: Annotated[Path, typer.Argument(help="The adapter, as peft saves it (safetensors).")],
    base: Annotated[str, "The base model: directory, .gguf, hub name or 'smollm2'."],
    members: Annotated[Path, "Texts that it was trained on, one a line."],
    non_members: Annotated[Path, "Texts of the same source that it was not trained on."],
    max_tokens: Annotated[int, Setting("Look at the first tokens of each text.", least=1)] = 128,
    *,
    options: Options,
) -> None:
    """Try to tell the texts that a LoRA adapter was trained on from others."""
    attacks = choose(membership.attacks(), options.attack)
    record: dict[str, Any] = {"target": str(folder), "base": base}
    with auditing("adapter", record, attacks, options) as audit:
        inside, outside = read_texts(members), read_texts(non_members)
        audit.record |= {"members": len(inside), "non_members": len(outside)}
        with progress(f"loading {base}", quiet=options.json):
            loaded = load(base)
        sides = (token_ids(texts, loaded, max_tokens) for texts in (inside, outside))
        knowledge = membership.Base(loaded.model, start_id(loaded.model))
        audit.attack(attacks, folder, knowledge, membership.Candidates(*sides))


def token_ids(texts: Sequence[str], loaded: Checkpoint, longest: int, *, ends: bool = False) -> Texts:
    """The first `longest` ids of each text, with the tokenizer's own tokens around it if `ends`."""
    if loaded.tokenizer is None:
        raise MisconfiguredError(f"{loaded.source.name} has no tokenizer; give a folder with tokenizer.json")
    encoded = loaded.tokenizer.tokenizer.encode_batch(list(texts), add_special_tokens=ends)
    return tuple(tuple(one.ids[:longest]) for one in encoded)


def start_id(model: object) -> int:
    """The id that stands before a text: the model's own start token, or its end token, or 0."""
    config = getattr(model, "config", None)
    found = getattr(config, "bos_token_id", None), getattr(config, "eos_token_id", None)
    return next((one for one in found if isinstance(one, int)), 0)
