"""A frozen sentence encoder: a BERT's mean-pooled states, as features of a classifier.

Threat model: none of its own. Does not run behind a token map: nothing is generated, so no map hides it.
Source: Reimers and Gurevych 2019, arXiv 1908.10084, section 3 (mean pooling).

Legend: M sentences, T tokens, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.audit.batches import by_length
from transom.errors import CheckpointError

_BATCH = 32
_MAX_TOKENS = 128


def sentence_features(source: str | Path) -> Callable[[Sequence[str]], NDArray[np.float64]]:
    """The function from sentences to features [M, F] of an encoder. Raises CheckpointError."""
    from transom.checkpoint.load import load

    checkpoint = load(source)
    if checkpoint.tokenizer is None:
        raise CheckpointError(f"{source} has no tokenizer.json; an encoder needs one")
    trunk: Any = checkpoint.model.base_model
    tokenizer = checkpoint.tokenizer.tokenizer
    tokenizer.enable_truncation(_MAX_TOKENS)
    tokenizer.enable_padding()

    def features(sentences: Sequence[str]) -> NDArray[np.float64]:
        import torch

        found_MF = np.empty((len(sentences), trunk.config.hidden_size))
        for batch in by_length(sentences, _BATCH):
            encoded = tokenizer.encode_batch([sentences[i] for i in batch])
            mask_BT = torch.tensor([one.attention_mask for one in encoded])
            with torch.inference_mode():
                ids_BT = torch.tensor([one.ids for one in encoded])
                state_BTF = trunk(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
            weight_BT1 = mask_BT[..., None] / mask_BT.sum(dim=1)[:, None, None]
            found_MF[batch] = (state_BTF * weight_BT1).sum(dim=1).numpy()
        return found_MF

    return features
