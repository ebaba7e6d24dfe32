"""Write the word vectors behind the shipped policy: GloVe beside MiniLM's encoding of each word.

    python benchmarks/vectors.py --glove glove.6B.50d.txt --out vectors.txt

GloVe knows which words occur in the same places, MiniLM which mean the same (and whether they are kind
words). Both are public and of length 1. The order, and so the public frequency rank, is GloVe's. `transom
words build` and words_sst2.py read the result; every compared method gets the same vectors.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from transom.checkpoint.source import packaged_minilm
from transom.privacy.lexicon import Vectors, read_vectors

WORDS = 100_000
MINILM_DIMENSIONS = 100  # principal components kept of 384


def encode(words: tuple[str, ...]) -> NDArray[np.float32]:
    """MiniLM's mean-pooled encodings, principal components [V, MINILM_DIMENSIONS]."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = packaged_minilm()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    encoded = np.zeros((len(words), model.config.hidden_size), dtype=np.float32)
    order = np.argsort([len(word) for word in words], kind="stable")
    with torch.inference_mode():
        for start in track(range(0, len(order), 256), description="encoding"):
            batch = order[start : start + 256]
            inputs = tokenizer([words[i] for i in batch], padding=True, return_tensors="pt")
            mask = inputs["attention_mask"][..., None]
            states = model(**inputs).last_hidden_state
            encoded[batch] = ((states * mask).sum(1) / mask.sum(1)).numpy()
    encoded -= encoded.mean(axis=0)
    directions = np.linalg.eigh(encoded.T @ encoded)[1][:, ::-1][:, :MINILM_DIMENSIONS]
    return encoded @ directions


def unit(vectors_VE: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centred rows of length 1."""
    centred = vectors_VE - vectors_VE.mean(axis=0)
    return centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-12)


def main() -> None:
    """Read GloVe, encode its words, write both side by side."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--glove", type=Path, required=True, help="GloVe text file")
    flags.add_argument("--out", type=Path, required=True)
    args = flags.parse_args()
    glove: Vectors = read_vectors(args.glove, WORDS)
    both = np.hstack([unit(glove.vectors_VE), unit(encode(glove.words))])
    with args.out.open("w", encoding="utf-8") as out:
        for word, row in zip(glove.words, both, strict=True):
            out.write(word + " " + " ".join(f"{value:.4f}" for value in row) + "\n")


if __name__ == "__main__":
    main()
