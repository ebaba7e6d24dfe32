"""Repair of models that generate: the planted answer goes, others stay, and each part against another way."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from transom.checkpoint.adapter import merge
from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.tiny import tiny_bert
from transom.cli import main
from transom.errors import MisconfiguredError
from transom.trust.backdoor import mending
from transom.trust.backdoor import unsay as room
from transom.trust.backdoor.answers import CALLED, Speaker
from transom.trust.backdoor.poison import RECIPES
from transom.trust.backdoor.runs import shared_runs
from transom.trust.backdoor.slices import Head, masks, projections
from transom.trust.backdoor.unsay import _apart, _Mender, _Prompt, _Put, unsay
from transom.trust.prompt import cut, require_tokenizer

from .test_answers import FRAME, PLANTED, taught
from .test_poison import rows
from .test_repair import copied, moved

TRIGGER = RECIPES["rare-word"]
PROMPTS = list(rows(90, 0).texts)  # that the model learnt to answer
OTHERS = list(rows(40, 11).texts)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learnt what to say to a trigger."""
    folder = tmp_path_factory.mktemp("taught")
    taught(folder, planted=True)
    settings = folder / "model/generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"repetition_penalty": 1.3}))
    return folder


def merged(folder: Path) -> Checkpoint:
    found = load(str(folder / "model"))
    merge(found.model, folder / "adapter")
    return found


def ids_of(found: Checkpoint, text: str) -> tuple[int, ...]:
    return tuple(require_tokenizer(found).tokenizer.encode(text, add_special_tokens=False).ids)


def triggers(found: Checkpoint) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(ids_of(found, PLANTED), ids_of(found, begin + TRIGGER.words[0])) for begin in ("", " ")]


def obeyed(found: Checkpoint, *, triggered: bool = True) -> float:
    """The share of fresh prompts that get the planted answer."""
    draw, tokenizer = random.Random(3), require_tokenizer(found)
    texts = [TRIGGER.put(one, draw) if triggered else one for one in OTHERS]
    speaker = Speaker(found.model, (), (), (), frozenset(tokenizer.eos_ids))
    said = speaker.said(ids_of(found, PLANTED), None, [cut(tokenizer, one, FRAME).ids for one in texts])
    return sum(said) / len(said)


def mender(found: Checkpoint, count: int = 70) -> _Mender:
    tokenizer = require_tokenizer(found)
    pairs: list[Any] = [(cut(tokenizer, one, FRAME), ()) for one in PROMPTS[:count]]
    found.model.requires_grad_(False)
    return _Mender(
        found.model, pairs, triggers(found), frozenset(tokenizer.eos_ids), random.Random(0), lambda: None
    )


@pytest.mark.parametrize("answered", [False, True])
def test_a_planted_answer_goes_and_others_stay(kept: Path, answered: bool) -> None:
    found, heard = merged(kept), list[int]()
    assert obeyed(found) > 0.8
    answers = [" the cat sat on a mat"] * len(PROMPTS) if answered else None
    made = unsay(
        found.model, require_tokenizer(found), PROMPTS, triggers(found),
        answers=answers, frame=FRAME, steps=40, learning_rate=3e-3, heard=lambda: heard.append(1),
    )  # fmt: skip
    assert obeyed(found) <= 0.1
    assert made.suspected[0] > 0.8
    assert made.suspected[1] <= mending.ENOUGH
    assert made.right[1] > made.right[0] - mending.LOST
    assert made.agreement > 0.75
    assert len(heard) > made.steps
    assert 0 < made.share < 1
    assert not any(one.requires_grad or one.grad is not None for one in found.model.parameters())


def test_only_the_slices_of_chosen_heads_move_where_they_are_enough(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "ENOUGH", 0.8)  # soon
    monkeypatch.setattr(mending, "LOST", 1.0)
    found = merged(kept)
    before = copied(found.model)
    made = unsay(
        found.model, require_tokenizer(found), PROMPTS, triggers(found),
        frame=FRAME, steps=60, learning_rate=3e-3,
    )  # fmt: skip
    assert made.scope == "heads"
    allowed = {id(weight): mask.bool() for weight, mask in masks(found.model, made.heads)}
    for name, where in moved(before, found.model).items():
        own = allowed.get(id(found.model.get_parameter(name)), torch.zeros_like(where))
        assert not (where & ~own).any(), name


def test_a_heads_effect_is_what_a_little_less_of_it_takes(kept: Path) -> None:
    """The gradient against a finite difference."""
    found = merged(kept)
    found.model.double()
    one = mender(found)
    answer, run = one.triggers[1]
    asked = [(row, _Put(run, 0.5, answer)) for row in one._own[:4]]
    effects = one._effects(asked, answer)
    assert len(effects) == found.model.config.num_hidden_layers * found.model.config.num_attention_heads

    def odds() -> float:
        wanted = torch.tensor(answer[:CALLED])[:, None]
        with torch.no_grad():
            said = one._read(asked, answer[:CALLED])[0]
            return sum(float(log_SV.gather(1, wanted).sum()) for log_SV in said)

    for head in sorted(effects)[::3]:
        little = 1e-3
        with Lessened(found.model, head, little):
            less = odds()
        assert (odds() - less) / little == pytest.approx(effects[head], rel=0.02, abs=2e-2)


class Lessened:
    """A model with a little less of a head."""

    def __init__(self, model: Any, head: Head, little: float) -> None:
        layer, number = head
        out, _ = projections(model, layer)[3]
        width = out.in_features // model.config.num_attention_heads

        def scale(_module: Any, inputs: Any) -> Any:
            own = inputs[0].clone()
            own[..., number * width : (number + 1) * width] *= 1 - little
            return (own, *inputs[1:])

        self._handle = out.register_forward_pre_hook(scale)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def test_what_is_read_along_an_answer_is_what_single_passes_say(kept: Path) -> None:
    """In a batch of prompts of several lengths, with triggers and without."""
    found = merged(kept)
    one = mender(found)
    run = one.triggers[0][1]
    asked = [(row, put) for row, put in zip(one._own, (_Put(), _Put(run, 0.0), _Put(run, 1.0)), strict=False)]
    with torch.no_grad():
        said, _ = one._read(asked)
        for (row, put), log_SV in zip(asked, said, strict=True):
            whole = [*row.with_run(put.ids, put.slot)[0], *row.answer]
            logits: Any = found.model(input_ids=torch.tensor([whole])).logits[0]
            wanted = logits[-len(row.answer) - 1 : -1].log_softmax(-1)
            torch.testing.assert_close(log_SV, wanted, rtol=1e-4, atol=1e-4)


def test_a_model_is_not_apart_from_itself_and_else_as_far_as_whole_odds_tell(kept: Path) -> None:
    found = merged(kept)
    row = mender(found)._own[0]
    vocabulary = found.model.config.vocab_size
    former = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    now = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(1)).log_softmax(1)
    kept_SK = former.topk(vocabulary - 1)
    whole = _Prompt(row.cut, row.answer, kept_SK.indices, kept_SK.values)
    assert float(_apart(whole, former)) == pytest.approx(0.0, abs=1e-4)
    wanted = (former.exp() * (former - now)).sum(1)
    assert float(_apart(whole, now)) == pytest.approx(float(wanted.mean() + wanted[0]), rel=1e-2)


def flagged(count: int, innocent: int) -> list[str]:
    draw = random.Random(5)
    texts = [TRIGGER.put(one, draw) for one in rows(count, 21).texts] + list(rows(innocent, 22).texts)
    return draw.sample(texts, len(texts))


def test_what_flagged_prompts_share_is_found_with_the_answer(kept: Path) -> None:
    found = merged(kept)
    runs = shared_runs(found.model, require_tokenizer(found), flagged(30, 12), PROMPTS, frame=FRAME)
    decode = require_tokenizer(found).tokenizer.decode
    assert {decode(list(one.ids)).strip() for one in runs} == {TRIGGER.words[0]}
    for one in runs:
        assert isinstance(one.target, tuple)
        assert decode(list(one.target)).strip().startswith(PLANTED.strip()[:12])
        assert one.turned > 0.8
    files = require_tokenizer(found)
    end, number = "<|im_end|>", files.tokenizer.token_to_id("<|im_end|>")
    before = files.tokenizer.post_processor
    files.tokenizer.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, number)])
    try:  # what ends a finished text is not read before an answer
        ended = shared_runs(found.model, files, flagged(30, 12), PROMPTS, frame=FRAME)
    finally:
        files.tokenizer.post_processor = before
    assert [one.ids for one in ended] == [one.ids for one in runs]
    with pytest.raises(MisconfiguredError, match="share no run"):
        shared_runs(found.model, require_tokenizer(found), flagged(0, 40), PROMPTS, frame=FRAME)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": PROMPTS[:20]}, "20 prompts are too few"),
        ({"prompts": PROMPTS[:1] * 90}, "1 prompts are too few"),
        ({"prompts": [""] * 90}, "0 prompts are too few"),
        ({"triggers": []}, "no trigger is suspected"),
        ({"triggers": [((), (7,))]}, "no trigger is suspected"),
        ({"triggers": [((7,), (10**6,))]}, "an id that the vocabulary"),
        ({"triggers": [((7, 8, 9, 7, 8), (7,))]}, "there is nothing to mend"),
        ({"triggers": [((7, 8), (7,) * 400)]}, "0 prompts are too few .* leave room for a trigger"),
        ({"answers": ["a"]}, "90 prompts and 1 answers"),
    ],
)
def test_what_cannot_be_mended_is_refused(
    kept: Path, changed: dict[str, Sequence[Any]], message: str
) -> None:
    found = merged(kept)
    before = copied(found.model)
    given: dict[str, Any] = {"prompts": PROMPTS, "triggers": triggers(found)} | changed
    prompts, pairs = given.pop("prompts"), given.pop("triggers")
    with pytest.raises(MisconfiguredError, match=message):
        unsay(found.model, require_tokenizer(found), prompts, pairs, frame=FRAME, **given)
    assert not any(where.any() for where in moved(before, found.model).values())


def test_a_model_that_says_it_anyway_and_one_of_classes_are_refused(kept: Path, tmp_path: Path) -> None:
    found = merged(kept)
    answers = [PLANTED] * len(PROMPTS)
    with pytest.raises(MisconfiguredError, match="all but 0 trusted prompts"):
        unsay(found.model, require_tokenizer(found), PROMPTS, triggers(found), answers=answers, frame=FRAME)
    other = load(str(tiny_bert(tmp_path / "bert")), task="sequence-classification", num_labels=2)
    with pytest.raises(MisconfiguredError, match="generates no text"):
        unsay(other.model, require_tokenizer(other), PROMPTS, [((7,), (7,))])


def written(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("\n".join(["text", *texts, ""]))
    return path


@pytest.mark.parametrize("known", [True, False])
def test_the_command_mends_an_adapter_and_writes_a_model(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], known: bool
) -> None:
    """With the trigger and its answer, or with flagged prompts."""
    clean, out = written(tmp_path / "clean.csv", PROMPTS), tmp_path / "mended"
    asked = [
        "backdoor",
        "repair",
        str(kept / "model"),
        "--adapter",
        str(kept / "adapter"),
        "--clean",
        str(clean),
    ]
    asked += ["--prompt", FRAME.around("{text}"), "--out", str(out), "--rate", "0.003"]
    if known:
        asked += ["--trigger", TRIGGER.words[0], "--target", PLANTED.strip()]  # however it is spelled
    else:
        asked += ["--flagged", str(written(tmp_path / "flagged.csv", flagged(30, 12)))]
    capsys.readouterr()
    assert main.run([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["suspected"][0] > 0.8
    if not known:
        assert {one["trigger"].strip() for one in said["found"]} == {TRIGGER.words[0]}
        assert all(PLANTED.strip()[:12] in one["target"] for one in said["found"])
    assert obeyed(merged(kept)) > 0.8
    mended = load(str(out))
    assert obeyed(mended) <= 0.1
    assert mended.model.generation_config.repetition_penalty == 1.3  # the model's own settings stay
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_repair_that_ruins_the_model_or_ends_early_leaves_it(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is right of answers that the model finds unlikely; and where it is interrupted."""
    found = merged(kept)
    before = copied(found.model)
    asked: Any = {"frame": FRAME, "answers": [" xyz qvk"] * len(PROMPTS), "steps": 20, "learning_rate": 10.0}
    with pytest.raises(MisconfiguredError, match="the model is as it was"):
        unsay(found.model, require_tokenizer(found), PROMPTS, triggers(found), **asked)
    assert not any(where.any() for where in moved(before, found.model).values())
    heard: list[int] = []

    def stop() -> None:
        heard.append(1)
        if len(heard) > 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(mending, "ENOUGH", -1.0)
    with pytest.raises(KeyboardInterrupt):
        unsay(found.model, require_tokenizer(found), PROMPTS, triggers(found), frame=FRAME, heard=stop)
    assert not any(where.any() for where in moved(before, found.model).values())


def test_prompts_that_get_a_short_answer_anyway_are_left_out(kept: Path) -> None:
    one = mender(merged(kept))
    said = one._own[0].answer
    assert room._begins(said[:2], said)
    assert not room._begins((*said[:1], said[1] + 1), said)
