"""`transom audit words --utility`: the frontier in the report, and tasks that cannot run."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from transom.audit.utility.tasks import Answers, Question
from transom.checkpoint.tiny import tiny_llama
from transom.cli.audit_utility import Utility, at_setting, measured, open_utility
from transom.cli.main import app
from transom.errors import MisconfiguredError
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.report.finding import INTERRUPTED, not_run, share

TEXTS = ["the fox jumps over the lazy dog", "a person asks what the weather will be", "please tell me why"]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("facts.csv").write_text("statement,label\n" + "".join(f"{text}.,1\n" for text in TEXTS))
    Path("mail.txt").write_text("\n".join(TEXTS * 5))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("tiny") / "model"))


class Broken:
    """A task that fails, once it is asked, in the way it is told."""

    floor = 0.0

    def __init__(self, error: BaseException) -> None:
        self.name, self.texts, self.error = type(error).__name__, ("secret",), error

    def scores(self, protected: Any, model: Any) -> Any:
        raise self.error


def test_a_task_that_fails_is_not_run_and_the_others_are_measured(model: str) -> None:
    good = Answers((Question(TEXTS[0], ("yes", "no"), 0),))
    broken = [Broken(error) for error in (MisconfiguredError("why"), ValueError("secret"))]
    opened = open_utility(["answers:facts.csv"], model, None)
    assert opened is not None
    made, failed = measured(Utility((*broken, good), opened.models), (), quiet=True)
    assert made is not None
    assert [point.task for point in made.points] == ["answers"]
    reasons = {found.name: found.reason for found in failed}
    assert reasons == {"MisconfiguredError": "why", "ValueError": "it raised ValueError"}
    assert all(found.status == "not run" for found in failed)


def test_an_interruption_leaves_the_other_tasks(model: str) -> None:
    good = Answers((Question(TEXTS[0], ("yes", "no"), 0),))
    opened = open_utility(["answers:facts.csv"], model, None)
    assert opened is not None
    made, failed = measured(Utility((Broken(KeyboardInterrupt()), good), opened.models), (), quiet=True)
    assert made is None
    assert [(found.name, found.reason) for found in failed] == [
        ("KeyboardInterrupt", INTERRUPTED),
        ("answers", INTERRUPTED),
    ]


def test_nothing_is_loaded_when_no_task_is_asked_for() -> None:
    assert open_utility(None, "absent", "absent") is None
    assert measured(None, (), quiet=True) == (None, ())


def test_a_setting_takes_the_strongest_attack_that_ran() -> None:
    sanitizer = Sanitizer(load_policy(), epsilon=3.0)
    found = [share("a", "token recovery", hits=hits, n=10, baseline=0, cost_s=0) for hits in (2, 5, 3)]
    (setting,) = at_setting("epsilon 3", sanitizer, [*found, not_run("b", "token recovery", "no time")])
    assert (setting.name, setting.recovery) == ("epsilon 3", found[1])
    assert at_setting("epsilon 3", sanitizer, [not_run("b", "token recovery", "no time")]) == []


def test_the_command_reports_utility_beside_recovery_for_both_modes(model: str) -> None:
    line = ["audit", "words", "mail.txt", "--epsilon", "1", "--epsilon", "8", "--attack", "bayes", "--json"]
    line += ["--utility", "answers:facts.csv", "--utility-model", model, "--utility-preset", "exact"]
    done = CliRunner().invoke(app, [*line, "--html", "out.html"])
    assert done.exit_code == 0, done.stderr
    points = json.loads(done.stdout)["frontier"]
    assert {(point["label"], point["setting"]) for point in points} == {
        (label, setting)
        for label in ("words", "words+obfuscated")
        for setting in ("plain text", "epsilon 1", "epsilon 8")
    }
    assert all(point["task"] == "answers facts" for point in points)
    recovered = {point["setting"]: point["recovery"] for point in points}
    assert recovered["epsilon 1"] < recovered["epsilon 8"] < recovered["plain text"] == 1
    assert "answers facts" in Path("out.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--utility", "guess:facts.csv"], "is no task"),
        (["--utility", "answers:absent.csv"], "cannot be read"),
        (["--utility", "answers:facts.csv", "--utility-preset", "none"], "no preset"),
    ],
)
def test_a_task_that_cannot_be_read_is_refused_before_any_attack(
    model: str, options: list[str], message: str
) -> None:
    done = CliRunner().invoke(app, ["audit", "words", "mail.txt", "--utility-model", model, *options])
    assert isinstance(done.exception, MisconfiguredError)
    assert message in str(done.exception)
    assert done.stdout == ""
