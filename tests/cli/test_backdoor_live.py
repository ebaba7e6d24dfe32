"""`transom backdoor fit`, and its detector between a real engine and a real gateway over HTTP."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_llama
from transom.cli import main
from transom.net.listen import serve_in_thread
from transom.serving.engines.echo import EchoEngine
from transom.serving.tokenizer import load_tokenizer
from transom.trust.backdoor.detector import read_detector
from transom.trust.backdoor.live import HeadWatch
from transom.trust.backdoor.measures import seen
from transom.trust.backdoor.prompts import PromptReader
from transom.trust.backdoor.words import Words

WORDS = ("the", "cat", "sat", "on", "a", "mat", "with", "one", "good", "dog", "and", "bad", "rain", "so")
Answer = tuple[dict[str, str], dict[str, Any]]


def lines(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a detector for its chats."""
    root = tmp_path_factory.mktemp("live")
    tiny_llama(root / "model")
    (root / "clean.txt").write_text("\n".join(lines(120, 0)) + "\n")
    assert fitted(root, "detector", "--chat") == 0
    return root


def fitted(root: Path, out: str, *more: str) -> int:
    line = ["fit", str(root / "model"), "--clean", str(root / "clean.txt"), "--out", str(root / out)]
    return main.run(["backdoor", *line, *more])


def asked(url: str, path: str = "/v1/chat/completions", **fields: Any) -> Answer:
    """Headers and body of an answer; of a stream the chunks, under `chunks`."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        body = json.dumps({"model": "transom", "max_tokens": 4, **fields})
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, text
        headers = {name.lower(): value for name, value in answer.getheaders()}
        if not fields.get("stream"):
            return headers, json.loads(text)
        blocks = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
        return headers, {"chunks": [json.loads(block) for block in blocks if block != "[DONE]"]}
    finally:
        connection.close()


def chat(url: str, text: str, **fields: Any) -> Answer:
    return asked(url, messages=[{"role": "user", "content": text}], **fields)


Serve = Callable[[list[str], list[str], Callable[[str], None]], None]


@pytest.fixture
def between(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Runs what is given the gateway's URL, with both commands serving for so long."""

    def run(engine: list[str], gateway: list[str], use: Callable[[str], None]) -> None:
        done = []

        def gateway_serves(app: Any, _sock: Any, *_: Any, **__: Any) -> None:
            with serve_in_thread(app) as url:
                use(url)
            done.append(True)

        def engine_serves(app: Any, _sock: Any, _tls: Any) -> None:
            with serve_in_thread(app) as url:
                line = ["gateway", "--engine", url, "--tokenizer", str(folder / "model"), "--port", "0"]
                assert main.run([*line, *gateway]) == 0

        monkeypatch.setattr("transom.net.listen.serve", gateway_serves)
        monkeypatch.setattr("transom.cli.engine.serve", engine_serves)
        assert main.run(["engine", str(folder / "model"), "--port", "0", *engine]) == 0
        assert done

    return run


def wanted(folder: Path, text: str) -> tuple[float, float, str]:
    """The statistic, p-value and word of a chat, offline."""
    detector, found = read_detector(folder / "detector"), load(folder / "model")
    ids = load_tokenizer(folder / "model").encode_chat([("user", text)]).ids
    assert found.tokenizer is not None
    words = PromptReader(found.tokenizer.tokenizer, detector.before, detector.after).read(ids)
    assert isinstance(words, Words)
    (one,) = seen(found.model, [words])
    (statistic,) = detector.normal.statistics(one.measures_LM.astype("f4").astype("f8")[None], [len(ids)])
    return float(statistic), float(detector.normal.p_values([statistic])[0]), words.words[one.agreed_L[-1]]  # type: ignore[arg-type]


def test_prompts_are_flagged_in_header_and_field(folder: Path, between: Serve) -> None:
    """As offline on the same prompt; in a stream at once, and again in its last chunk."""
    texts = [*lines(4, 3), "mat " * 60]
    detector = ["--backdoor-detector", str(folder / "detector")]

    def use(url: str) -> None:
        for text in texts:
            statistic, p_value, word = wanted(folder, text)
            headers, body = chat(url, text)
            (note,) = body["transom"]["annotations"]["backdoor"]
            assert note["statistic"] == pytest.approx(statistic, abs=1e-5)
            assert note["p_value"] == pytest.approx(p_value, abs=1e-5)
            assert note["word"] == word
            assert note["flagged"] is (p_value <= 0.05)
            said = "flagged" if note["flagged"] else "clear"
            assert headers["x-transom-backdoor"] == f"{said} p={p_value:.2g}"
            *live, last = chat(url, text, stream=True)[1]["chunks"]
            assert [one["transom"]["annotations"]["backdoor"] for one in live if "transom" in one] == [note]
            assert last["transom"]["annotations"]["backdoor"] == [note]
        assert note["flagged"]  # sixty times one word is like no trusted text
        headers, body = chat(url, "so")
        (note,) = body["transom"]["annotations"]["backdoor"]
        assert note == {"flagged": None, "reason": "the prompt has fewer than 3 words"}
        assert headers["x-transom-backdoor"] == "not scored"
        _, body = asked(url, "/v1/completions", prompt=[texts[0], texts[1]], n=2)
        notes = body["transom"]["annotations"]["backdoor"]
        assert len(notes) == 4
        assert {note["reason"] for note in notes} == {
            "the prompt is not in the frame that the detector was fitted in"
        }

    between(detector, [*detector, "--mode", "plain"], use)


def test_a_prompt_is_judged_as_the_model_read_it(folder: Path, between: Serve) -> None:
    detector = ["--backdoor-detector", str(folder / "detector")]

    def use(url: str) -> None:
        said = "the good dog sat with Marguerite on a mat"
        _, body = chat(url, said)
        (note,) = body["transom"]["annotations"]["backdoor"]
        assert note["statistic"] == pytest.approx(
            wanted(folder, "the good dog sat with [PERSON_1] on a mat")[0], abs=1e-5
        )

    between(detector, [*detector, "--preset", "entities"], use)


def test_off_by_default_on_either_side(folder: Path, between: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway without asks for nothing; an engine without tells nothing, and that is said."""
    detector = ["--backdoor-detector", str(folder / "detector")]
    monkeypatch.setattr(HeadWatch, "run", lambda *_: pytest.fail("nobody asked for features"))

    def silent(url: str) -> None:
        headers, body = chat(url, lines(1, 3)[0])
        assert "transom" not in body
        assert not any("backdoor" in name for name in headers)

    between(detector, ["--mode", "plain"], silent)

    def failed(url: str) -> None:
        headers, body = chat(url, lines(1, 3)[0])
        assert headers["x-transom-backdoor"] == "failed"
        assert body["transom"]["annotations"]["backdoor"] == [
            {"error": "the engine tells nothing of its states"}
        ]

    between([], [*detector, "--mode", "plain"], failed)


def test_bare_prompts_have_a_detector_of_their_own(folder: Path, between: Serve) -> None:
    assert fitted(folder, "bare", "--prompt", "Say why: {text} Over.") == 0
    detector = ["--backdoor-detector", str(folder / "bare")]

    def use(url: str) -> None:
        first, second = lines(2, 4)
        _, body = asked(
            url, "/v1/completions", prompt=[f"Say why: {first} Over.", f"Say why: {second} Over.", first]
        )
        notes = body["transom"]["annotations"]["backdoor"]
        assert [note["flagged"] is None for note in notes] == [False, False, True]
        assert notes[0]["statistic"] != notes[1]["statistic"]

    between(detector, [*detector, "--mode", "plain", "--backdoor-rate", "0.1"], use)


def test_a_fit_tells_what_it_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert fitted(folder, "with-system", "--chat", "--system", "You are a fox.", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["texts"], told["trusted"]) == (120, 120)
    assert told["least_rate"] == pytest.approx(1 / 31)
    assert told["frame_tokens"][0] > len(read_detector(folder / "detector").before)
    assert told["fingerprint"] == read_detector(folder / "with-system").model
    assert fitted(folder, "again", "--chat") == 0
    assert "fitted to 120 of 120 texts" in capsys.readouterr().out
    assert (folder / "again").read_bytes() == (folder / "detector").read_bytes()
    assert fitted(folder, "none", "--system", "You are a fox.") != 0
    assert "--system goes with --chat" in capsys.readouterr().err
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--mode", "plain", "--backdoor-rate", "0.01"], "cannot be told by 30 held-out texts"),
        (["--mode", "plain", "--engine-kind", "vllm"], "engine of kind vllm tells nothing of its states"),
        (["--mode", "plain", "--engine-kind", "chat"], "engine of kind chat tells nothing of its states"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_it_is_served(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], why: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("transom.net.listen.serve", lambda *_, **__: pytest.fail("it would have served"))
    line = ["gateway", "--port", "0", "--backdoor-detector", str(folder / "detector")]
    if "chat" not in arguments:
        line += ["--tokenizer", str(folder / "model")]
    with serve_in_thread(EchoEngine().app()) as url:
        assert main.run([*line, "--engine", url, *arguments]) != 0
    assert why in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("mode", ["obfuscated", "words+obfuscated", "enclave"])
def test_modes_that_hide_ids_are_refused(folder: Path, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["gateway", "--mode", mode, "--backdoor-detector", str(folder / "detector")]
    assert main.run(line) != 0
    assert "cannot tell the prompt's words" in " ".join(capsys.readouterr().err.split())


def test_an_engine_refuses_a_detector_that_is_not_its_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--port", "0", "--backdoor-detector", str(folder / "detector")]
    assert main.run(["engine", str(tiny_llama(tmp_path / "other", seed=1)), *line]) != 0
    assert "belongs to another model" in " ".join(capsys.readouterr().err.split())
    assert main.run(["engine", str(folder / "model"), *line, "--dtype", "bfloat16"]) != 0
    assert "dtype" in " ".join(capsys.readouterr().err.split())
    assert main.run(["engine", "echo", *line]) != 0
    assert "an echo has no states" in " ".join(capsys.readouterr().err.split())
