"""A detector in its file: what was written is what is read, and anything else is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from transom.checkpoint.load import Checkpoint
from transom.checkpoint.load import load as load_model
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.errors import MisconfiguredError
from transom.trust.backdoor.detector import (
    MOST_LAYERS,
    Detector,
    dumped,
    fit_detector,
    model_of,
    read_detector,
    write_detector,
)

WORDS = ("the", "cat", "sat", "on", "a", "mat", "with", "one", "good", "dog", "and", "bad", "rain", "so")


def prompts(found: Checkpoint, count: int, seed: int) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    assert found.tokenizer is not None
    encode = found.tokenizer.tokenizer.encode
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(count)]
    return [tuple(encode(text).ids) for text in texts]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_model(tiny_llama(tmp_path_factory.mktemp("detector") / "model"))


@pytest.fixture(scope="module")
def detector(found: Checkpoint) -> Detector:
    return fit_detector(found, prompts(found, 100, 0), ((), ()))


def test_what_is_written_is_read(tmp_path: Path, detector: Detector) -> None:
    framed = replace(detector, before=(1, 2), after=(3,))
    write_detector(tmp_path / "file", framed)
    again = read_detector(tmp_path / "file")
    assert (again.model, again.layers, again.before, again.after) == (detector.model, 3, (1, 2), (3,))
    for name in ("line_2F", "deviation_F", "precision_FF", "usual_22", "held", "texts"):
        np.testing.assert_array_equal(getattr(again.normal, name), getattr(detector.normal, name))
    assert again.tag == framed.tag != detector.tag
    assert 0 <= again.tag < 2**24  # float32 holds it


def test_a_prompt_counts_once_and_the_model_is_named(found: Checkpoint, detector: Detector) -> None:
    many = prompts(found, 100, 0)
    heard: list[int] = []
    twice = fit_detector(found, [*many, *many, many[0][:2]], ((), ()), lambda: heard.append(1))
    assert dumped(twice) == dumped(detector)
    assert len(heard) == detector.normal.texts == 100
    assert detector.model == model_of(found)


def test_too_few_prompts_and_a_classifier_are_refused(tmp_path: Path, found: Checkpoint) -> None:
    with pytest.raises(MisconfiguredError, match="79 trusted texts are too few"):
        fit_detector(found, prompts(found, 79, 0), ((), ()))
    with pytest.raises(MisconfiguredError, match="generates text"):
        fit_detector(load_model(tiny_bert(tmp_path)), [], ((), ()))


def test_a_rate_that_held_out_texts_cannot_tell_is_refused(detector: Detector) -> None:
    detector.check_rate(0.05)
    for rate in (0.0, 0.01, 1.0):
        with pytest.raises(MisconfiguredError, match="cannot be told by 25 held-out texts"):
            detector.check_rate(rate)


def spoiled(data: bytes) -> dict[str, bytes]:
    """The file in every way in which it may be wrong."""
    parts = load(data)
    about = json.loads(parts["about"].tobytes())

    def said(**more: Any) -> np.ndarray:
        return np.frombuffer(json.dumps(about | more, sort_keys=True).encode(), np.uint8)

    made: dict[str, bytes] = {
        "empty": b"", "text": b"{}", "cut": data[:-8], "longer": data + b"\0", "no part": save({}),
        "another part": save({**parts, "more": np.zeros(1)}),
        "a remark": save(parts, {"more": "x"}),
        "about as numbers": save({**parts, "about": parts["about"].astype(np.float64)}),
        "about in no JSON": save({**parts, "about": parts["about"][1:].copy()}),
        "about in another order": save({**parts, "about": np.frombuffer(
            json.dumps(dict(reversed(about.items()))).encode(), np.uint8)}),
    }  # fmt: skip
    for name, value in {
        "format": 2, "model": "0" * 63, "layers": 4, "before": [-1], "after": [2**31], "texts": 3, "more": 1,
    }.items():  # fmt: skip
        made[f"about {name}"] = save({**parts, "about": said(**{name: value})})
    made["layers beyond"] = save({**parts, "about": said(layers=MOST_LAYERS + 1)})
    made["a frame too long"] = save({**parts, "about": said(before=[0] * 70_000)})
    for name in set(parts) - {"about"}:
        value = parts[name]
        made[f"without {name}"] = save({key: one for key, one in parts.items() if key != name})
        made[f"{name} in float32"] = save({**parts, name: value.astype(np.float32)})
        made[f"{name} cut"] = save({**parts, name: value[:-1].copy() if name != "held" else value[:9].copy()})
        made[f"{name} in a row more"] = save({**parts, name: value[None].copy()})
        for number in (np.nan, np.inf):
            wrong = value.copy()
            wrong.flat[-1] = number
            made[f"{name} with {number}"] = save({**parts, name: wrong})
    for name in ("deviation_F", "usual_22", "precision_FF"):
        made[f"{name} below zero"] = save({**parts, name: -parts[name]})
    made["held in disorder"] = save({**parts, "held": parts["held"][::-1].copy()})
    return made


def test_a_file_that_is_none_is_refused(tmp_path: Path, detector: Detector) -> None:
    """Each alone; no message tells what a file holds."""
    assert dumped(detector) == save(load(dumped(detector)))  # what is spoiled below is nothing else
    for name, data in spoiled(dumped(detector)).items():
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(MisconfiguredError, match=r"^.{20,400}$"):
            assert read_detector(tmp_path / "file"), name


def test_a_file_too_large_or_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="cannot read the detector"):
        read_detector(tmp_path / "none")
    with (tmp_path / "file").open("wb") as file:
        file.truncate(2**25 + 1)
    with pytest.raises(MisconfiguredError, match="no detector"):
        read_detector(tmp_path / "file")
