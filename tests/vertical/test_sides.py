"""What a side does when gradients are late, lost, old or too many, step by step with a partner by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.errors import LinkRefusedError
from transom.link.message import Header, Step
from transom.link.session import Received
from transom.link.talk import Message
from transom.vertical import feature, schedule
from transom.vertical.feature import FeatureSide
from transom.vertical.label import LabelSide
from transom.vertical.messages import DROP, DROPPED, END, EVALUATE, GO, TRAIN, message
from transom.vertical.party import Party, make_party

from .scene import Heard, make_jobs, make_parts

ASYNC: dict[str, Any] = {
    "schedule": "pubsub", "epochs": 1, "embeddings": 3, "gradients": 2, "deadline_s": 10.0, "staleness": 2,
}  # fmt: skip


class ByHand:
    """In place of a conversation: what is sent is kept, `script` says what comes: steps of answers, or
    seconds that pass without one. At its end the test's partner goes away."""

    class GoneError(Exception):
        """The script is over."""

    def __init__(self, script: list[Any], width: int = 5) -> None:
        self.script, self.width, self.sent, self.now_s = script, width, list[Step](), 0.0
        self.said: dict[Step, int] = {}

    def wait(self, topics: tuple[str, ...], ready: Callable[[], bool], until_s: float) -> Received | None:
        if ready():
            return None
        if not self.script:
            raise self.GoneError
        what = self.script.pop(0)
        if isinstance(what, float):
            self.now_s = min(self.now_s + what, until_s)
            return None
        step, rows, says = what
        tensors = message(self.width, torch.ones(rows, self.width), [says] if says is not None else [])
        return Received(Header("j", "r", "p", 0, step), tensors)

    def send(self, step: Step, tensors: Any) -> None:
        self.sent.append(step)
        self.said[step] = int(tensors["counts"][0]) if len(tensors["counts"]) else -1

    def stepped(self, steps: int) -> bool:
        return False

    is_full = False

    def commit(self, state: bytes | None, last: Message | None = None) -> None:
        if last is not None:
            self.send(*last)

    def wake(self) -> None:
        """Nobody sleeps."""


def party(folder: Path, role: str, **train: Any) -> Party:
    jobs, parts = make_jobs("binary", folder, **ASYNC | train), make_parts("binary")
    number = 0 if role == "label" else 1
    return make_party(jobs[number], parts[number], Heard())


def trained(unit: int, attempt: int = 0, direction: Any = "forward") -> Step:
    return Step(0, unit, direction, attempt, TRAIN)


def answered(unit: int, attempt: int = 0, says: int = GO, rows: int | None = None) -> Any:
    """A gradient of one of the four batches of 63 rows."""
    count = 15 if unit == 3 else 16
    rows = count if says == GO and rows is None else rows or 0
    return trained(unit, attempt, "backward"), rows, says


def feature_run(folder: Path, monkeypatch: pytest.MonkeyPatch, script: list[Any], **train: Any) -> Any:
    """What the feature party sent until the script was over, and the party."""
    one, talk = party(folder, "feature", **train), ByHand(script)
    monkeypatch.setattr(feature.time, "monotonic", lambda: talk.now_s)
    assert isinstance(one.side, FeatureSide)
    with closing(one), pytest.raises(ByHand.GoneError):
        one.side.run(talk)  # type: ignore[arg-type]
    return talk.sent, one.side


def test_no_more_than_so_many_are_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, side = feature_run(tmp_path, monkeypatch, [answered(1)])
    assert sent == [trained(0), trained(1), trained(2), trained(3)]
    assert side.done.extras == (1,)


def test_an_overdue_unit_is_dropped_there_and_given_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [9.0, answered(0), answered(2), 1.0, answered(1), answered(3), answered(1, attempt=1)]
    sent, side = feature_run(tmp_path, monkeypatch, script)
    assert sent[:4] == [trained(unit) for unit in range(4)]
    assert sent[4:6] == [Step(0, 1, "forward", 0, DROP), trained(1, attempt=1)]
    assert sent[6].topic == EVALUATE  # all units are done: the late answer had no effect, the second had
    assert side.now.dropped == {"overdue": 1}
    assert side.steps == 4


def test_a_unit_that_the_partner_dropped_is_given_out_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, side = feature_run(tmp_path, monkeypatch, [answered(0, says=DROPPED)])
    assert sent[3:] == [trained(0, attempt=1)]
    assert side.steps == 0


def test_a_gradient_that_is_too_old_is_not_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [answered(1), answered(2), answered(3), answered(0), answered(0, attempt=1)]
    sent, side = feature_run(tmp_path, monkeypatch, script)
    assert sent[4:5] == [trained(0, attempt=1)]
    assert side.now.dropped == {"too old": 1}
    assert side.ages.report()["most"] <= ASYNC["staleness"]


ANSWERS = st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([GO, GO, DROPPED]))


@settings(max_examples=40)
@given(st.lists(ANSWERS, max_size=30))
def test_no_unit_is_learnt_twice_whatever_comes(
    tmp_path_factory: pytest.TempPathFactory, answers: list[tuple[int, int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        script = [answered(*one) for one in answers]
        sent, side = feature_run(tmp_path_factory.mktemp("run"), patch, script)
    assert side.steps == len(side.done) <= 4
    assert len(set(sent)) == len(sent)
    assert side.ages.report()["most"] <= ASYNC["staleness"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([(trained(9, direction="backward"), 16, GO)], "was not asked"),
        ([(trained(0), 16, GO)], "was not asked"),
        ([answered(0, rows=3)], "sent 3 rows, and the batch has 16"),
        ([(trained(0, direction="backward"), 16, 7)], "says nothing that is known"),
    ],
)
def test_answers_that_are_none_are_refused(tmp_path: Path, script: list[Any], message: str) -> None:
    one = party(tmp_path, "feature")
    with closing(one), pytest.raises(LinkRefusedError, match=message):
        one.side.run(ByHand(script))  # type: ignore[arg-type]


class Idle:
    """A worker that never ends what it was given."""

    def give(self, task: Any) -> None: ...

    def close(self) -> None: ...


def label_run(folder: Path, script: list[Any], *, idle: bool = False, **train: Any) -> Any:
    one, talk = party(folder, "label", **train), ByHand(script)
    assert isinstance(one.side, LabelSide)
    if idle:
        one.side.pool._make = lambda number, tell: Idle()
        one.side.pool.depth = 1
    with closing(one), pytest.raises(ByHand.GoneError):
        one.side.run(talk)  # type: ignore[arg-type]
    return talk, one.side


def came(unit: int, attempt: int = 0, topic: str = TRAIN) -> Any:
    return Step(0, unit, "forward", attempt, topic), 0 if topic == DROP else (15 if unit == 3 else 16), None


def test_of_too_many_embeddings_that_wait_the_oldest_is_dropped(tmp_path: Path) -> None:
    talk, side = label_run(tmp_path, [came(unit) for unit in (2, 0, 3, 1)], idle=True, embeddings=2)
    assert talk.said == {trained(0, direction="backward"): DROPPED}  # one is at work
    assert side.now.dropped == {"dropped": 1}


def test_what_the_partner_drops_does_not_wait_any_longer(tmp_path: Path) -> None:
    script = [came(2), came(0), came(0, topic=DROP), came(1), came(0, 1), came(3, 0, DROP)]
    talk, side = label_run(tmp_path, script, idle=True, embeddings=3)
    assert not talk.sent
    assert list(side._waiting) == [1, 0]
    assert side._waiting[0][0] == 1


def test_the_label_party_answers_each_attempt_and_counts_units_once(tmp_path: Path) -> None:
    talk, side = label_run(tmp_path, [came(0), came(0, 1), came(1)])
    assert talk.sent == [trained(0, 0, "backward"), trained(0, 1, "backward"), trained(1, 0, "backward")]
    assert side.done.to_plain() == [2]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ((Step(3, 0, "forward"), 16, None), "no such unit"),
        ((Step(0, 0, "backward"), 16, None), "goes the other way"),
        ((Step(0, 0, "forward"), 15, None), "sent 15 rows, and the batch has 16"),
        ((Step(1, 0, "forward", topic=EVALUATE), 27, None), "0 epochs are"),
    ],
)
def test_what_the_label_party_did_not_expect_is_refused(tmp_path: Path, what: Any, message: str) -> None:
    with pytest.raises(LinkRefusedError, match=message):
        label_run(tmp_path, [what])


def test_in_lockstep_a_batch_out_of_its_turn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LinkRefusedError, match="out of its turn"):
        label_run(tmp_path, [came(1)], schedule="vfl")


def test_an_evaluation_that_began_again_is_answered_again(tmp_path: Path) -> None:
    test = Step(0, 0, "forward", topic=EVALUATE), 27, None
    again = replace(test[0], attempt=1), 27, None
    talk, side = label_run(tmp_path, [came(0), test, again])
    assert [step.topic for step in talk.sent] == [TRAIN, EVALUATE, EVALUATE]
    assert len(side.now.history) == 1
    assert math.isfinite(side.now.history[0].metrics["auc"])
    assert END not in {step.topic for step in talk.sent}


def restarted(one: Party, kept: bytes) -> ByHand:
    """What a party does first that goes on from a checkpoint."""
    talk = ByHand([])
    with closing(one):
        one.side.restore(kept)
        with pytest.raises(ByHand.GoneError):
            one.side.run(talk)  # type: ignore[arg-type]
    return talk


class Reluctant(Idle):
    """A worker that learns nothing."""

    def __init__(self, half: Any, tell: Any) -> None:
        self.half, self.tell = half, tell

    def give(self, task: Any) -> None:
        if task.kind != "backward":
            self.tell(self.half.do(task))


def test_after_a_restart_units_whose_gradients_are_lost_go_out_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(party(tmp_path / "a", "feature")) as one:
        half = one.side.pool.half
        one.side.pool._make = lambda number, tell: Reluctant(half, tell)
        with pytest.raises(ByHand.GoneError):
            one.side.run(ByHand([answered(1), answered(0, says=DROPPED), answered(2)]))  # type: ignore[arg-type]
        kept = one.side.saved()
    talk = restarted(party(tmp_path / "b", "feature"), kept)
    assert talk.sent == [trained(0, 1), trained(1, 1), trained(2, 1)]


def test_of_two_answers_that_come_again_at_a_restart_one_is_learnt_from(tmp_path: Path) -> None:
    with closing(party(tmp_path / "a", "feature")) as one:
        half = one.side.pool.half
        one.side.pool._make = lambda number, tell: Reluctant(half, tell)
        with pytest.raises(ByHand.GoneError):
            one.side.run(ByHand([answered(0), answered(0, attempt=1)]))  # type: ignore[arg-type]
        assert isinstance(one.side, FeatureSide)
        assert not one.side._gradients  # the first is at a worker, and the other is not kept
        assert one.side.standing().attempts == {"0": 2}


def test_after_a_restart_the_label_party_says_which_embeddings_are_lost(tmp_path: Path) -> None:
    script = [came(2), came(0), came(3), came(0, 1)]
    _, side = label_run(tmp_path / "a", script, idle=True, embeddings=3)
    kept = side.saved()
    talk = restarted(party(tmp_path / "b", "label", embeddings=3), kept)
    assert set(talk.sent) == {
        trained(unit, attempt, "backward") for unit, attempt in ((2, 0), (0, 1), (3, 0))
    }
    assert set(talk.said.values()) == {DROPPED}


@pytest.fixture
def _two_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation of 27 rows has one of 16 and one of 11."""
    monkeypatch.setattr(schedule, "EVALUATED_ROWS", 1)


def of_test(number: int, attempt: int = 0, direction: Any = "forward") -> Step:
    return Step(0, number, direction, attempt, EVALUATE)


@pytest.mark.usefixtures("_two_messages")
def test_an_evaluation_whose_beginning_is_lost_there_begins_again_at_once(tmp_path: Path) -> None:
    rows = {0: 16, 1: 11}
    script = [
        came(0),
        *((of_test(one, attempt), rows[one], None) for one, attempt in ((1, 0), (0, 1), (1, 1))),
    ]
    talk, side = label_run(tmp_path, script)
    answers = [of_test(1, 0, "backward"), of_test(0, 1, "backward"), of_test(1, 1, "backward")]
    assert talk.sent[1:] == answers
    assert [talk.said[step] for step in answers] == [DROPPED, GO, GO]
    assert len(side.now.history) == 1


@pytest.mark.usefixtures("_two_messages")
def test_an_evaluation_goes_on_where_a_restart_or_a_loss_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = [answered(unit) for unit in range(4)]
    script = [*learnt, (of_test(0, 0, "backward"), 0, DROPPED), (of_test(1, 0, "backward"), 0, DROPPED)]
    sent, side = feature_run(tmp_path / "a", monkeypatch, [*script, (of_test(0, 1, "backward"), 0, GO)])
    assert sent[4:] == [of_test(0), of_test(1), of_test(0, 1), of_test(1, 1)]
    assert side.now.evaluated == 0
    kept = side.saved()
    for answers in ([(1, 1)], [(0, 2), (1, 2)]):  # it had begun again after what is kept
        with closing(party(tmp_path / f"b{len(answers)}", "feature")) as one:
            one.side.restore(kept)
            talk = ByHand([(of_test(number, attempt, "backward"), 0, GO) for number, attempt in answers])
            one.side.run(talk)  # type: ignore[arg-type]
        assert (talk.sent[0], talk.sent[-1].topic) == (of_test(1, 1), END)
        assert one.side.now.evaluated == 1
