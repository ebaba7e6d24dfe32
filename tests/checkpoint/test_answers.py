"""What a model says to prompts of several lengths, against one pass a token."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from transom.checkpoint.answers import answers_of
from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_llama


def test_drawn_answers_repeat_with_a_seed_and_keep_to_the_likeliest(tmp_path: Path) -> None:
    found, prompt = load(tiny_llama(tmp_path / "model")), (5, 9, 14)

    def drawn(seed: int) -> tuple[int, ...]:
        torch.manual_seed(seed)
        return next(answers_of(found.model, [prompt], (), most_tokens=12, temperature=1.0))

    answers = [drawn(seed) for seed in range(6)]
    assert answers[0] == drawn(0)
    assert len(set(answers)) > 3
    for answer in answers:
        ids = list(prompt)
        for token in answer:
            with torch.no_grad():
                likeliest = found.model(input_ids=torch.tensor([ids])).logits[0, -1].topk(50).indices
            assert token in likeliest
            ids.append(token)


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 3.0, "temperature": 0.2, "max_length": 4}])
def test_answers_are_the_likeliest_tokens_up_to_what_ends_them(
    tmp_path: Path, settings: dict[str, float]
) -> None:
    """Whatever the model's own settings of generation are."""
    found, draw, heard = load(tiny_llama(tmp_path / "model")), random.Random(0), list[int]()
    for name, value in settings.items():
        setattr(found.model.generation_config, name, value)
    prompts = [tuple(draw.choices(range(3, 300), k=draw.randint(1, 12))) for _ in range(7)]
    bare = list(answers_of(found.model, prompts, (), most_tokens=9, at_once=3, heard=lambda: heard.append(1)))
    ends = {bare[0][3], bare[5][1]}
    answers = list(answers_of(found.model, prompts, ends, most_tokens=9, at_once=3))
    assert len(heard) == 3
    for prompt, whole, answer in zip(prompts, bare, answers, strict=True):
        ids = list(prompt)
        for token in whole:
            assert int(found.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
        assert len(whole) == 9
        end = next((place for place, one in enumerate(whole) if one in ends), 8)
        assert answer == whole[: end + 1]
    assert min(map(len, answers)) < 9
