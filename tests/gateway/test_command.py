"""The command: settings that cannot work are refused before anything listens."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from transom.cli.app import App
from transom.cli.gateway import _hosts, gateway
from transom.errors import MisconfiguredError, TransomError
from transom.net.listen import serve_in_thread
from transom.privacy.policy import parse_rule
from transom.serving.engines.echo import EchoEngine


@pytest.mark.parametrize(
    "arguments",
    [
        ["--engine-kind", "transom", "--tokenizer", "smollm2", "--no-ledger", "--cap", "5"],
        ["--host", "0.0.0.0"],
        ["--engine", "http://example.com", "--engine-kind", "chat"],
        ["--engine-kind", "vllm", "--engine-limit-field", "max_completion_tokens"],
        ["--engine", "http://127.0.0.1:9"],
        ["--engine-kind", "transom", "--tokenizer", "smollm2", "--cap", "5"],  # of nothing: no word is drawn
        ["--engine-kind", "transom", "--tokenizer", "smollm2", "--mode", "plain", "--public", "system"],
        ["--engine-kind", "transom", "--public", "user"],
        ["--engine-kind", "transom", "--rule", "word=lots"],
        ["--engine-kind", "transom", "--rule", "persom=pass"],
        ["--engine-kind", "transom", "--policy", "/nowhere.safetensors"],
        ["--engine-kind", "transom", "--tokenizer", "/nowhere/model"],
        ["--engine-kind", "transom", "--api-key-file", "/nowhere/keys"],
        ["--engine-kind", "transom", "--engine-key-file", "/nowhere/key"],
    ],
)
def test_settings_that_cannot_work_are_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transom.net.listen.serve", lambda *_, **__: pytest.fail("it would have served"))
    app = App()
    app.command()(gateway)
    result = CliRunner().invoke(app, [*arguments, "--port", "0"])
    assert isinstance(result.exception, TransomError), result.output


def test_a_working_setting_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served = []
    monkeypatch.setattr(
        "transom.net.listen.serve", lambda app, sock, **_: served.append((app, sock.getsockname()))
    )
    app = App()
    app.command()(gateway)
    common = ["--engine-kind", "transom", "--port", "0", "--tokenizer", "smollm2"]
    for arguments, said in (
        (["--mode", "plain"], "in mode plain at"),
        (["--public", "system", "--examples", "own", "--ledger", str(tmp_path / "none")], "preset entities,"),
        (["--preset", "words", "--ledger", str(tmp_path / "ledger"), "--cap", "5"], "preset words,"),
        (["--preset", "sensitive", "--rule", "uncommon=placeholder"], "nothing is charged"),
    ):
        result = CliRunner().invoke(app, common + arguments)
        assert result.exit_code == 0, result.output
        assert said in result.output
    assert len(served) == 4
    assert not (tmp_path / "none").exists()
    assert (tmp_path / "ledger").exists()


@pytest.mark.parametrize(("model", "fine"), [("SmolLM2-135M-Instruct", True), ("other", False)])
def test_the_packaged_tokenizer_is_for_the_packaged_model_alone(
    model: str, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transom.net.listen.serve", lambda *_, **__: None)
    app = App()
    app.command()(gateway)
    with serve_in_thread(EchoEngine(model=model).app()) as url:
        result = CliRunner().invoke(app, ["--engine", url, "--mode", "plain", "--port", "0"])
    assert (result.exit_code == 0) is fine, result.output
    assert fine or "--tokenizer" in str(result.exception)


def test_names_under_which_it_may_be_called() -> None:
    assert _hosts("127.0.0.1", []) is not None
    assert {"127.0.0.1", "localhost", "[::1]", "box"} == set(_hosts("127.0.0.1", ["box"]) or ())
    assert _hosts("0.0.0.0", ["box"]) == ("box",)
    assert _hosts("0.0.0.0", []) is None


def test_rules() -> None:
    assert dict(map(parse_rule, ["word=2.5", "name=pass"])) == {"word": 2.5, "name": "pass"}
    with pytest.raises(MisconfiguredError, match="number"):
        parse_rule("number")
