"""What model a GGUF head describes: its class and configuration in transformers, and where each weight lies.

Threat model: a head whose keys or tensors this reader does not know, or which lacks some: dropping them, or
filling them with anything, gives the user another model without a word. Every key about the model and every
tensor has a place here, or is an error by name, before any tensor is read.
Does not protect against: a head that is consistent and describes another model than its name says.
Source: llama.cpp (load_hparams, src/models/), which runs such files and is the judge in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transom.checkpoint.families import FAMILIES
from transom.checkpoint.gguf import ROPE_TENSORS, TYPES, GgufHead, GgufTensor, broken
from transom.checkpoint.gguf_families import ARCHITECTURES, Settings
from transom.checkpoint.gguf_keys import Keys, check_general, token_ids
from transom.checkpoint.gguf_models import Row
from transom.errors import CheckpointError, NotYetError

Placed = tuple[str, str, Row]  # names in the file and in transformers
READABLE = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0",
    "MXFP4",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A tensor of the file (None: zeros), its shape in transformers' order, and how its values change."""

    tensor: GgufTensor | None
    shape: tuple[int, ...]
    form: str


@dataclass(frozen=True)
class GgufModel:
    """The settings of a head's class in transformers, and the parts of each weight by its name there."""

    settings: Mapping[str, Any]
    weights: Mapping[str, tuple[Part, ...]]


def gguf_config(head: GgufHead) -> Settings:
    """The transformers configuration that a head describes, with the class's defaults; no tensor is read.

    Raises NotYetError (an architecture, key, tensor or scaling that is not read, by name), CheckpointError
    (values that no model has, missing tensors, wrong shapes), MissingExtraError.
    """
    from transom.checkpoint.resolve import causal_class, flattened

    config = class_config(gguf_model(head))
    return flattened(config) | {"architectures": [causal_class(config.model_type)]}


def class_config(model: GgufModel) -> Any:
    """The configuration as transformers' own class. Raises NotYetError, MissingExtraError."""
    from transom.checkpoint.resolve import libraries

    transformers, _ = libraries()
    try:
        return transformers.CONFIG_MAPPING[model.settings["model_type"]](**model.settings)
    except (KeyError, TypeError, ValueError) as error:
        kind = model.settings["model_type"]
        raise NotYetError(
            f"the installed transformers does not take this {kind!r} ({type(error).__name__})"
        ) from error


def gguf_model(head: GgufHead) -> GgufModel:
    """As `gguf_config`, without transformers: what the head says, and where the weights lie."""
    try:
        return _model(head)
    except (NotYetError, CheckpointError) as error:
        where = f"{head.paths[0]}: " if head.paths else ""
        raise type(error)(f"{where}{error}") from None


def _model(head: GgufHead) -> GgufModel:
    architecture = head.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise NotYetError(
            f"the GGUF architecture {str(architecture)[:32]!r} is not read yet; there are "
            f"{', '.join(ARCHITECTURES)}; give a directory in transformers' format"
        )
    check_general(head)
    keys = Keys(head, architecture)
    settings, sizes = ARCHITECTURES[architecture](keys, head)
    settings |= token_ids(head, settings["vocab_size"]) | {"dtype": "float32"}
    keys.finish()
    return GgufModel(settings, _weights(head, settings, sizes))


def _weights(head: GgufHead, settings: Settings, sizes: Mapping[str, int]) -> dict[str, tuple[Part, ...]]:
    """The parts of every weight. Raises for tensors of another shape or type."""
    found = {tensor.name: tensor for tensor in head.tensors}
    placed = list(_placed(settings, sizes))
    _check_names(found, placed, settings["model_type"], sizes)
    weights: dict[str, tuple[Part, ...]] = {}
    for stored, target, row in placed:
        tensor, shape = found.get(stored), tuple(sizes[letter] for letter in row.shape.split())
        if tensor is not None:
            _check_tensor(tensor, shape)
        weights[target] = (*weights.get(target, ()), Part(tensor, shape, row.form))
    return weights


def _check_names(
    found: Mapping[str, GgufTensor], placed: list[Placed], kind: str, sizes: Mapping[str, int]
) -> None:
    """Raises where the two differ. Biases are in all layers or none."""
    known = {stored for stored, _, _ in placed} | {name for name in ROPE_TENSORS if sizes.get(name)}
    unread = [name for name in found if name not in known]
    if unread:
        raise NotYetError(
            f"the GGUF has {len(unread)} tensors that are not read for {kind!r}, first {unread[0][:64]!r}; "
            "without them it would be another model"
        )
    somewhere = {row.stored for stored, _, row in placed if stored in found}
    for stored, _, row in placed:
        if stored not in found and (row.absent != "zeros" or row.stored in somewhere):
            raise broken(f"the GGUF lacks the tensor {stored!r}")


def _placed(settings: Settings, sizes: Mapping[str, int]) -> Iterator[Placed]:
    facts = {**settings, **sizes}
    rows = FAMILIES[settings["model_type"]].rows
    for row in rows:
        if row.outer and _counts(row.only, facts):
            yield row.stored, row.target, row
    for i in range(settings["num_hidden_layers"]):
        dense = i < settings.get("first_k_dense_replace", 0)
        here = facts | {"dense": dense, "sparse": not dense, "correction": not dense and facts.get("sigmoid")}
        for row in rows:
            if not row.outer and _counts(row.only, here):
                yield f"blk.{i}.{row.stored}", f"model.layers.{i}.{row.target}", row


def _counts(only: str, facts: Mapping[str, Any]) -> bool:
    if only.startswith("not "):
        return not facts.get(only[4:])
    return not only or bool(facts.get(only))


def _check_tensor(tensor: GgufTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape[::-1] != shape:
        raise CheckpointError(
            f"the tensor {tensor.name!r} has the shape {tensor.shape[::-1]}, and its configuration implies "
            f"{shape}; download the GGUF again"
        )
    if TYPES[tensor.type_id][0] not in READABLE:
        raise NotYetError(
            f"the tensor {tensor.name!r} is stored as {TYPES[tensor.type_id][0]}, which is not read"
        )
