"""Drawing in another process: outputs arrive as they are, and every way to fail has its own words."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from transom.audit import draws
from transom.audit.draws import Encoder, draw, serve
from transom.errors import MisconfiguredError


@pytest.fixture(autouse=True)
def beside_the_mechanisms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)


def drawn(name: str, a: object = "a", b: object = "b", samples: int = 50, timeout_s: float = 60):
    return draw(f"mechanisms:{name}", a, b, samples, timeout_s)


def test_words_get_identities_and_keep_their_frequencies() -> None:
    found = drawn("coin", samples=3000)
    assert found.a.shape == found.b.shape == (3000,)
    assert set(found.a) | set(found.b) == {0, 1}
    usual = np.bincount(found.a).argmax()
    assert abs((found.a == usual).mean() - 0.75) < 0.05
    assert abs((found.b != usual).mean() - 0.75) < 0.05


def test_floats_arrive_as_they_are() -> None:
    found = drawn("array", [0.5, 2.25], [-1.5, 3.0])
    np.testing.assert_array_equal(found.a, np.tile([0.5, 2.25], (50, 1)))
    np.testing.assert_array_equal(found.b, np.tile([-1.5, 3.0], (50, 1)))


def test_lists_of_integers_are_compared_not_measured() -> None:
    found = drawn("token_ids", [5, 5], [5, 5], samples=200)
    assert found.a.dtype == np.int64
    assert set(found.a) | set(found.b) == set(range(4))


def test_inputs_are_fresh_for_every_draw() -> None:
    assert len(set(drawn("changes_its_input", [1], [2]).a)) == 1


def test_what_it_prints_is_not_taken_for_an_output() -> None:
    assert len(drawn("prints").a) == 50


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", "raised KeyError on draw 1$"),
        ("raises_later", "raised ZeroDivisionError on draw 50$"),
        ("leaves", "raised SystemExit on draw 1$"),
        ("ends", r"ended its process \(exit code 3\) after 0 draws"),
        ("killed", r"ended its process \(SIGKILL\) after 0 draws"),
        ("interrupts", "raised KeyboardInterrupt on draw 1$"),
        ("raises_its_own", "raised OwnExit on draw 1$"),
        ("odd_hash", "a Odd that could not be compared: it raised ValueError on draw 1$"),
        ("odd_equality", "a Odd that could not be compared: it raised KeyboardInterrupt on draw 1$"),
        ("odd_array", "a OddArray that could not be compared: it raised KeyboardInterrupt on draw 1$"),
        ("holds_itself", "a list that could not be compared: it raised RecursionError on draw 1$"),
        ("writes_everywhere", "sent something unreadable"),
        ("a_dict", "returned a dict"),
        ("an_object", "returned a object"),
        ("an_object_inside", "returned a tuple with a object in it"),
        ("a_set_inside", "returned a tuple with a set in it"),
        ("ragged", "floats where earlier outputs had"),
        ("now_a_word", r"floats on some draws and something else \(str\) on others; one kind is needed"),
        ("NOT_CALLABLE", "is a str, which cannot be called"),
        ("absent", r"cannot be imported \(AttributeError\)"),
    ],
)
def test_a_mechanism_that_fails_is_an_error_with_its_reason(name: str, reason: str) -> None:
    with pytest.raises(MisconfiguredError, match=reason) as caught:
        drawn(name, samples=60)
    assert "nobody may see" not in str(caught.value)


def test_a_module_that_exits_on_import_is_an_error_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("exits.py").write_text("import sys; sys.exit('text that nobody may see')")
    with pytest.raises(MisconfiguredError, match=r"exits:f raised SystemExit on import$"):
        draw("exits:f", "a", "b", 50, 60)


def test_one_that_closes_the_pipe_and_goes_on_is_not_called_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "_ENDING_S", 0.5)
    with pytest.raises(MisconfiguredError, match="closed the pipe for its outputs after 0 draws"):
        drawn("closes_everything")


@pytest.mark.parametrize("name", ["suppresses", "suppresses_inside"])
def test_none_is_an_output_like_others(name: str) -> None:
    found = drawn(name, samples=200)
    assert len(set(found.a)) == len(set(found.b)) == 2
    assert len(set(found.a) & set(found.b)) == 1


def test_one_that_hangs_is_stopped() -> None:
    with pytest.raises(MisconfiguredError, match="gave no output within 3 s"):
        drawn("hangs", timeout_s=3)


def test_what_was_drawn_before_it_hung_counts() -> None:
    found = drawn("hangs_later", samples=20_000, timeout_s=5)
    assert 0 < len(found.a) == len(found.b) <= 2000


def frames(request: dict[str, object]) -> bytes:
    sink = io.BytesIO()
    serve({"a": '"a"', "b": '"b"', "samples": 3} | request, sink)
    return sink.getvalue()


def test_the_child_sends_numbers_only() -> None:
    head, _, body = frames({"place": "mechanisms:coin"}).partition(b"\n")
    assert json.loads(head) == {"type": "<i8", "shape": [3, 2]}
    assert set(np.frombuffer(body, "<i8")) <= {0, 1}
    assert frames({"place": "no_such_module_at_all:x"}).startswith(
        b'{"error": "no_such_module_at_all:x cannot'
    )
    assert json.loads(frames({"place": "mechanisms:raises"}))["error"] == "raised KeyError on draw 1"


def test_equal_outputs_share_an_identity() -> None:
    encode = Encoder()
    assert [encode(output) for output in ("x", ("x", 1), ["x", 1], np.array([1, 2]), (1, 2), "x")] == [
        0,
        1,
        1,
        2,
        2,
        0,
    ]


def test_arrays_and_tensors_of_integers_are_compared_by_value() -> None:
    import torch

    encode = Encoder()
    assert [
        encode(output) for output in (torch.tensor([1, 2]), np.array([1, 2]), [1, 2], np.int64(1), 1)
    ] == [
        0,
        0,
        0,
        1,
        1,
    ]


@pytest.mark.parametrize("outputs", [(1.0, "x"), ("x", 1.0), (1.0, None), (None, [1.0, 2.0])])
def test_two_kinds_of_output_are_named(outputs: tuple[object, object]) -> None:
    encode = Encoder()
    encode(outputs[0])
    with pytest.raises(MisconfiguredError, match=r"something else \((str|NoneType)\) on others"):
        encode(outputs[1])


def test_a_mechanism_that_hangs_ends_with_its_parent(tmp_path: Path) -> None:
    """The parent is killed, so that it cannot stop the process that draws."""
    (tmp_path / "hung.py").write_text(
        "import os, pathlib\n"
        "def mechanism(_):\n"
        "    pathlib.Path('pid').write_text(str(os.getpid()))\n"
        "    while True:\n"
        "        pass\n"
    )
    script = "from transom.audit.draws import draw; draw('hung:mechanism', 0, 1, 10, 600)"
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    pid = tmp_path / "pid"
    wait_until(lambda: pid.exists() and pid.read_text() != "")
    parent.kill()
    parent.wait()
    wait_until(lambda: not runs(int(pid.read_text())))


def runs(pid: int) -> bool:
    """Whether a process goes on; one that has ended and was not asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(reached: Callable[[], bool]) -> None:
    for _ in range(600):
        if reached():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come to that within a minute")
