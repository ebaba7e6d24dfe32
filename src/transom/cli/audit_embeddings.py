"""`transom audit embeddings`: what is read of embeddings that cross a boundary.

    transom audit embeddings rows.safetensors --model MODEL --texts plain.txt --noise gaussian
    transom audit embeddings --model MODEL --texts plain.txt --noise gaussian:0.3 --noise gaussian:0.6
    transom audit embeddings --kind sentence --model minilm --texts plain.txt --prior own.txt

With FILE its rows are attacked and the texts are the truth that guesses are scored against; FILE holds one
tensor, or one named `embeddings`: rows [N, D] of all texts one after another, [B, T, D] padded at the end, or
one row a text for --kind sentence. Without FILE the texts are embedded here, with each --noise in turn.
Noise is LAW:SCALE: `gaussian` and `laplace` a coordinate, `norm` with a density that falls with the length
(scale 1/eta). With FILE of tokens the scale may be left out; the attacker then estimates it.
Threat model: run by the owner of the text, with the host's part played by the attacks; the model, the law and
--prior are the attacker's too. Texts that are audited are taken out of --prior.
Does not prove privacy: only that these attacks, within this budget, found no more.
Source: each attack's own docstring.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from transom.audit.attack import choose
from transom.audit.attacks import beam, blocks, sentence_inversion, sentences
from transom.audit.attacks.rows import Noise, Rows, Truth
from transom.audit.attacks.states import METRIC
from transom.audit.attacks.traffic import Texts
from transom.checkpoint import Checkpoint, load
from transom.checkpoint.walk import walk
from transom.cli.audit_adapter import start_id, token_ids
from transom.cli.audit_report import Options, auditing
from transom.cli.output import progress
from transom.config import Setting
from transom.data.rows import read_texts
from transom.errors import MisconfiguredError, NotYetError
from transom.report.finding import Attack, Bound

if TYPE_CHECKING:
    import torch

Kind = Literal["token", "hidden", "sentence"]
_TENSOR = "embeddings"


def embeddings(
    model: Annotated[str, "The public model: directory, .gguf, hub name, 'minilm', ..."],
    texts: Annotated[Path, "The plain texts, one a line."],
    file: Annotated[Path | None, typer.Argument(help="Observed rows; without it they are made here.")] = None,
    kind: Annotated[Kind, "What a row is of."] = "token",
    layer: Annotated[int, Setting("For --kind hidden: after which block, from 0.", least=0)] = 0,
    noise: Annotated[list[str] | None, "LAW or LAW:SCALE; repeatable without FILE."] = None,
    clip: Annotated[float | None, "Length that rows were clipped to before."] = None,
    prior: Annotated[Path | None, "The attacker's own text, one text a line."] = None,
    limit: Annotated[int, Setting("Audit the first so many texts.", least=1)] = 100,
    max_tokens: Annotated[int, Setting("Take the first tokens of each text.", least=1)] = 128,
    *,
    options: Options,
) -> None:
    """Attack embeddings of tokens, hidden states or embeddings of sentences."""
    noises = [parse_noise(text, clip) for text in noise or ["none"]]
    _check(file, kind, noises)
    record = {
        "target": str(file or texts),
        "model": model,
        "noise": ", ".join(map(_spelled, noises)),
        "clipped to": clip,
        "made here": file is None,
    }
    named = choose(attacks_on(kind, None, layer, ()), options.attack)
    with auditing(f"{kind} embeddings", record, named, options) as audit:
        with progress(f"loading {model}", quiet=options.json):
            loaded = load(model)
        plain, own = (
            token_ids(read_texts(path) if path else (), loaded, max_tokens, ends=kind != "sentence")
            for path in (texts, prior)
        )
        plain, audited = plain[:limit], set(plain[:limit])
        own = tuple(text for text in own if text not in audited)
        audit.record |= {"texts": len(plain), "attacker's texts": len(own)}
        observed = None if file is None else read_tensor(file)
        for number, one in enumerate(noises):
            audit.setting = _spelled(one) if len(noises) > 1 else ""
            every, target, knowledge = case(loaded, kind, layer, one, plain, own, observed)
            data = Truth(plain, loaded.tokenizer.tokenizer.decode if loaded.tokenizer else None)
            attacks = choose(every, options.attack)
            audit.attack(attacks, target, knowledge, data, of=len(noises) - number)


def parse_noise(text: str, clip: float | None) -> Noise:
    """ "gaussian:0.5" as a value. Raises MisconfiguredError."""
    law, _, scale = text.partition(":")
    try:
        return Noise(law, float(scale) if scale else None, clip)  # type: ignore[arg-type]
    except ValueError:
        raise MisconfiguredError(f"--noise {text!r}: {scale!r} is no number; write gaussian:0.5") from None


def _check(file: Path | None, kind: Kind, noises: Sequence[Noise]) -> None:
    bare = [one.law for one in noises if one.law != "none" and one.scale is None]
    if file is not None and len(noises) > 1:
        raise MisconfiguredError(f"{file} was made with one noise, got {len(noises)}; give one --noise")
    if bare and (file is None or kind == "hidden"):
        why = "to be added here" if file is None else "which rows of hidden states do not show"
        raise MisconfiguredError(f"--noise {bare[0]} needs a scale, {why}; write {bare[0]}:0.5")


def _spelled(noise: Noise) -> str:
    return noise.law if noise.scale is None else f"{noise.law}:{noise.scale:g}"


def read_tensor(file: Path) -> torch.Tensor:
    """The embeddings in a safetensors file, in float32. Raises MisconfiguredError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise MisconfiguredError(f"{file} is no readable safetensors file ({type(error).__name__})") from None
    if len(tensors) != 1 and _TENSOR not in tensors:
        raise MisconfiguredError(f"{file} holds {len(tensors)} tensors, none named {_TENSOR!r}; name one so")
    found: torch.Tensor = tensors.get(_TENSOR, next(iter(tensors.values())))
    return found.float()


def case(
    loaded: Checkpoint,
    kind: Kind,
    layer: int,
    noise: Noise,
    plain: Texts,
    own: Texts,
    observed: torch.Tensor | None,
) -> tuple[tuple[Attack, ...], object, object]:
    """The attacks of `kind`, the rows observed or made of `plain` with `noise`, what the attacker knows."""
    import torch

    draw = torch.Generator().manual_seed(0)
    if kind == "sentence":
        encoder = sentences.encoder_of(loaded)
        if observed is None:
            observed = noise.protect(encoder.embed(plain), draw)
        public = sentences.Public(sentences.faster(encoder), own)
        return attacks_on(kind, None, layer, own), sentences.Sentences(observed[: len(plain)], noise), public
    if kind == "hidden" and not walk(loaded.model).family.causal:
        raise NotYetError(f"--kind hidden needs a causal model, {loaded.source.name} is not one")
    place = blocks.Observed(loaded.model, layer if kind == "hidden" else None)
    if observed is None:
        bare = (place.states_of(np.array([text]))[0] for text in plain)
        rows = tuple(noise.protect(rows_TD, draw) for rows_TD in bare)
    else:
        rows = split(observed, [len(text) for text in plain])
    table_VD = walk(loaded.model).embedding.weight.detach().float()
    made = attacks_on(kind, loaded.model, layer, own)
    return made, Rows(rows, noise), beam.Public(table_VD, _language(loaded, own))


def attacks_on(kind: Kind, model: Any, layer: int, own: Texts) -> tuple[Attack, ...]:
    """The attacks on embeddings of `kind`; their names need no model."""
    if kind == "sentence":
        return sentence_inversion.attacks()
    place = blocks.Observed(model, layer if kind == "hidden" else None)
    made = (Bound("nn", METRIC, beam.nearest), *blocks.attacks(place, own))
    return (*made, beam) if kind == "token" else made


def split(observed: torch.Tensor, lengths: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Rows [T, D] of each text, out of [N, D] or of [B, T, D] padded at the end.

    Rows beyond the last text are left out; where there are too few, the last texts have fewer than they
    should, which the attacks refuse.
    """
    if observed.ndim == 3:
        return tuple(rows_TD[:length] for rows_TD, length in zip(observed, lengths, strict=False))
    if observed.ndim != 2:
        raise MisconfiguredError(f"embeddings of shape {tuple(observed.shape)}; give [N, D] or [B, T, D]")
    cuts = [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    return tuple(observed[start:stop] for start, stop in pairwise(cuts))


def _language(loaded: Checkpoint, own: Texts) -> beam.Prior | None:
    """The model itself where it is causal, else the attacker's texts."""
    parts = walk(loaded.model)
    if parts.family.causal and parts.head is not None:
        return beam.causal(loaded.model, start_id(loaded.model))
    return beam.bigrams(own, parts.embedding.num_embeddings) if own else None
