"""The two tables of the vocabulary: W_e' = Pi (W_e + noise) P and W_h' = Q (W_h + noise) Pi^T, untied.

Threat model: the host knows the plain tables. Pi is a secret substitution of ids; only the noise and Pi stand
between the host and the plain text once it multiplies two obfuscated weights.
Does not protect against known plaintext (template tokens), frequencies, lengths, or equality of tokens.
Source: Lin et al., arXiv 2603.01499, embedding and head; sigma is the standard deviation of the whole table.

Legend: V vocabulary, d plain width, w obfuscated width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from transom.errors import CheckpointError
from transom.obfuscation.keys import token_map
from transom.obfuscation.norms import PIECE, norm, not_finite, reads, wide
from transom.obfuscation.task import Config, Context, Made, Task
from transom.privacy.stream import Stream

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 2048  # rows whose noise is drawn, and whose deviation is summed, at once: both depend on it


def table_tasks(config: Config) -> tuple[Task, ...]:
    """Embedding, last norm and head; a tied head is made from the embedding."""
    table, last = "model.embed_tokens.weight", "model.norm.weight"
    plain_head = table if config.get("tie_word_embeddings") else "lm_head.weight"
    return (
        Task((table,), (table,), embedding, local=True),
        Task((last,), (last,), norm),
        Task(("lm_head.weight",), (plain_head, last), head, local=True),
    )


def embedding(context: Context, table_Vd: Tensor) -> Made:
    """The embedding [V, w]: row tau(v) is the noisy row of v times the key."""
    key_dw = context.space.key("embedding", wide(table_Vd[:0]))
    noise = _noise(context, "embedding", context.space.settings.alpha_e, table_Vd)
    return (reads(table_Vd, key_dw.T, order_n=_order(table_Vd, context), noise=noise),)


def head(context: Context, table_Vd: Tensor, norm_d: Tensor) -> Made:
    """The head [V, w], from the table [V, d] (the embedding, when tied) and the last norm's weight [d]."""
    inverse_wd = context.space.inverse("head", wide(table_Vd[:0]))
    noise = _noise(context, "head", context.space.settings.alpha_h, table_Vd)
    order_V = _order(table_Vd, context)
    return (reads(table_Vd, inverse_wd, norm_d=norm_d, order_n=order_V, noise=noise),)


def _order(table_Vd: Tensor, context: Context) -> Tensor:
    """The plain id of each obfuscated id."""
    import torch

    vocabulary = table_Vd.shape[0]
    if vocabulary != context.config["vocab_size"]:
        raise CheckpointError(
            f"the vocabulary's table has {vocabulary} rows and the configuration says "
            f"{context.config['vocab_size']}; mend vocab_size in config.json"
        )
    tau_V = torch.from_numpy(token_map(context.space.secret, vocabulary))
    return tau_V.argsort().to(table_Vd.device)


def _noise(context: Context, label: str, alpha: float, table_Vd: Tensor) -> Iterator[Tensor] | None:
    """Noise [PIECE, d] in the table's own units for one piece after the other; None when alpha is 0."""
    return _scaled(context.space.stream(f"{label}/noise"), alpha, table_Vd) if alpha else None


def _scaled(stream: Stream, alpha: float, table_Vd: Tensor) -> Iterator[Tensor]:
    import torch

    scale, like = alpha * _deviation(table_Vd), wide(table_Vd[:0])
    rows, d = table_Vd.shape
    for start in range(0, rows, _BLOCK):
        drawn_nd = torch.from_numpy(stream.normal32((min(_BLOCK, rows - start), d))).to(like).mul_(scale)
        yield from torch.split(drawn_nd, PIECE)


def _deviation(table_Vd: Tensor) -> float:
    """The standard deviation of the table's finite numbers, without a float32 copy of the whole of it."""
    total = square = 0.0
    count = 0
    for start in range(0, table_Vd.shape[0], _BLOCK):
        piece = wide(table_Vd[start : start + _BLOCK])
        if not_finite(piece) is not None:
            piece = piece[piece.isfinite()]
        total += float(piece.sum())
        square += float((piece * piece).sum())
        count += piece.numel()
    mean = total / max(count, 1)
    return float((square / max(count, 1) - mean * mean) ** 0.5)
