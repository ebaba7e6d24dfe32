"""The seam: the documented example runs, and no attack stops an audit whatever it is given."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

from transom.audit import attacks
from transom.audit.attack import choose
from transom.report.finding import Bound, Finding
from transom.report.runner import run

PAGE = Path(__file__).parents[2] / "docs/audit.md"
MODULES = [
    importlib.import_module(f"transom.audit.attacks.{found.name}")
    for found in pkgutil.iter_modules(attacks.__path__)
]
MOUNTED = [module for module in MODULES if callable(getattr(module, "attack", None))]


def ran(attack: Any, *given: object) -> Finding:
    (found,) = run((attack,), *given, budget_s=5, progress=False)
    return found


@pytest.fixture
def parrot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example of docs/audit.md, from a folder of its own."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "class Parrot" in block]
    name = re.findall(r'^"""(\w+)\.py"""', block)[0]
    (tmp_path / f"{name}.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    (place,) = re.findall(rf"--attack ({name}:\w+)", PAGE.read_text())
    return choose((), [place])[0]


def test_the_documented_attack_reads_what_was_kept(world: Any, parrot: Any) -> None:
    """It succeeds where hardly a word is exchanged, and is at its keep-rate where all are alike."""
    plain = world.sentences(60, seed=2)
    found = ran(parrot, *world.attacked(world.mechanism("krr", 30.0), plain))
    assert (found.name, found.metric) == ("parrot", "token recovery")
    assert found.low is not None
    assert found.low > 0.9
    blind = ran(parrot, *world.attacked(world.mechanism("random-in-group", 1.0), plain))
    assert blind.value == pytest.approx(1 / 5, abs=5 * (0.16 / blind.n) ** 0.5)  # groups of five words


@pytest.mark.parametrize("module", MOUNTED, ids=lambda module: module.__name__.rsplit(".", 1)[1])
def test_a_target_of_another_kind_is_not_run(module: Any) -> None:
    """Whatever an attack does with it, the audit goes on and says why there is no figure."""
    mounted = Bound("strange", "token recovery", module.attack)
    for target in (None, object(), "a text", Path("no/such/folder")):
        found = ran(mounted, target, object(), object())
        assert found.status == "not run"
        assert found.reason


def test_all_attacks_are_mounted() -> None:
    assert len(MOUNTED) > 12
    assert choose(MOUNTED[:0], ()) == ()
