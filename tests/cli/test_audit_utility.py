"""`transom audit words --utility`: the frontier in the report, and tasks that cannot run."""

from pathlib import Path
from typing import Any

import pytest

from transom.audit.utility import Answers, Question, Setting, unprotected
from transom.checkpoint.tiny import tiny_llama
from transom.cli.audit_utility import Utility, measured, open_utility
from transom.errors import MisconfiguredError

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
    broken = [
        Broken(error) for error in (MisconfiguredError("why"), ValueError("secret"), KeyboardInterrupt())
    ]
    opened = open_utility(["answers:facts.csv"], model, None)
    assert opened is not None
    made, failed = measured(
        Utility((*broken, good), opened.models), [Setting("plain text", unprotected)], progress=False
    )
    assert made is not None
    assert [point.task for point in made.points] == ["answers"]
    reasons = {found.name: found.reason for found in failed}
    assert reasons == {
        "MisconfiguredError": "why",
        "ValueError": "it raised ValueError",
        "KeyboardInterrupt": "it was interrupted",
    }
    assert all(found.status == "not run" for found in failed)


def test_nothing_is_loaded_when_no_task_is_asked_for() -> None:
    assert open_utility(None, "absent", "absent") is None
