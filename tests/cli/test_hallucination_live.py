"""Risk of answers between a real engine and a real gateway over HTTP, against what is read offline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_llama
from transom.cli import main
from transom.cli.hallucination_live import RiskAnnotator, RiskOptions
from transom.errors import EngineGarbageError, MisconfiguredError, RefusedError
from transom.serving.annotate import Asked, Heard
from transom.serving.tokenizer import load_tokenizer
from transom.trust.hallucination.detector import Detector, read_detector
from transom.trust.hallucination.live import FIRST, LATER, Listener, row_size
from transom.trust.hallucination.score import cut
from transom.trust.hallucination.states import Encoded

from .test_backdoor_live import Serve, between, chat  # noqa: F401
from .test_hallucination import answers, write

TEXTS = ("the cat sat on", "one dog", "a mat with rain and a fox and a bird and one more")
OPTION = "--risk-detector"


@pytest.fixture(scope="module", params=["logistic", "no-attention"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a detector of its chats."""
    made = tmp_path_factory.mktemp("risk")
    model = tiny_llama(made / "model")
    file = write(made / "answers.csv", answers(120, 0))
    line = ["hallucination", "fit", str(model), str(file), "--label", "made_up", "--chat"]
    more = ["--no-attention"] if request.param == "no-attention" else []
    assert main.run([*line, *more, "--out", str(made / "detector"), "--rate", "0.5"]) == 0
    return made


def offline(folder: Path, text: str, ids: list[int]) -> tuple[Detector, dict[str, Any]]:
    """The series of an answer that was chosen so, of one pass."""
    detector, found = read_detector(folder / "detector"), load(folder / "model")
    prompt = load_tokenizer(folder / "model").encode_chat([("user", text)]).ids
    states = detector.reader(found.model).read(Encoded(tuple(prompt), tuple(ids), (0,) * len(prompt)))
    return detector, detector.series(states)


def chosen(url: str, text: str, count: int) -> list[int]:
    """What the engine says, by its ids, from the gateway's log-probabilities."""
    _, body = chat(url, text, max_tokens=count, temperature=0, logprobs=True)
    return [int(one["token"].removeprefix("token_id:")) for one in body["choices"][0]["logprobs"]["content"]]


def test_an_answer_has_the_risk_that_is_read_offline(
    folder: Path,
    between: Serve,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In header and field, and sentence by sentence in a stream, with the official client."""
    detector_option = [OPTION, str(folder / "detector")]
    found, tokenizer = load(folder / "model"), load_tokenizer(folder / "model")

    def use(url: str) -> None:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        for text in TEXTS:
            headers, body = chat(url, text, max_tokens=12, temperature=0)
            (note,) = body["transom"]["annotations"]["hallucination"]
            if note["risk"] is None:
                assert note["reason"] == "the answer is empty"
                continue
            prompt = tokenizer.encode_chat([("user", text)]).ids
            ids = greedy(found, prompt, 12, tokenizer.eos_ids)
            detector, series = offline(folder, text, ids)
            wanted = detector.risk(series)
            assert note["risk"] == pytest.approx(wanted.risk, abs=1e-4)
            assert note["flagged"] == wanted.flagged
            assert bool(note["why"]) <= note["flagged"]
            said = "flagged" if note["flagged"] else "clear"
            assert headers["x-transom-hallucination"] == f"{said} risk={wanted.risk:.2f}"
            content = body["choices"][0]["message"]["content"]
            spans = [(one["start"], one["end"]) for one in note["sentences"]]
            assert "".join(content[start:end] for start, end in spans).strip() == content.strip()
            streamed: list[Any] = []
            stream = client.chat.completions.create(
                model="transom", messages=[{"role": "user", "content": text}], max_tokens=12, temperature=0,
                stream=True,
            )  # fmt: skip
            for chunk in stream:
                told = (chunk.model_extra or {}).get("transom", {}).get("annotations", {})
                streamed += [told["hallucination"]] if "hallucination" in told else []
            *live, (last,) = streamed
            assert last["risk"] == pytest.approx(note["risk"], abs=1e-5)
            assert [part for one in live for part in one["sentences"]] == last["sentences"]
            for part, other in zip(last["sentences"], note["sentences"], strict=True):
                assert (part["start"], part["end"]) == (other["start"], other["end"])
                assert part["risk"] == pytest.approx(other["risk"], abs=1e-5)
            asked = ["chat", text, "--gateway", url, "--max-tokens", "12"]
            capsys.readouterr()
            assert main.run(asked) == 0
            assert f"risk of being made up {wanted.risk:.2f}" in capsys.readouterr().out

    between(detector_option, ["--mode", "plain", *detector_option], use)


def greedy(found: Any, prompt: Any, count: int, ends: Any) -> list[int]:
    import torch

    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(found.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("policy", ["withhold", "stop"])
def test_a_risky_answer_is_withheld_or_stopped(
    folder: Path,
    between: Serve,  # noqa: F811
    policy: str,
) -> None:
    """As an error with a code; what is below the line comes through."""
    detector_option = [OPTION, str(folder / "detector")]
    marks: dict[str, Any] = {}

    def mark(url: str) -> None:
        for text in TEXTS:
            marks[text] = chat(url, text, max_tokens=12, temperature=0)[1]["transom"]["annotations"]

    def judge(url: str) -> None:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        for text in TEXTS:
            (note,) = marks[text]["hallucination"]
            risky = (
                note["flagged"] if policy == "withhold" else any(one["flagged"] for one in note["sentences"])
            )
            call = client.chat.completions.create
            asked: Any = {"model": "transom", "messages": [{"role": "user", "content": text}]}
            asked |= {"max_tokens": 12, "temperature": 0}
            if note["risk"] is None or not risky:
                call(**asked)
                continue
            with pytest.raises(openai.APIError) as caught:
                call(**asked)
            assert caught.value.code == "made_up"

    between(detector_option, ["--mode", "plain", *detector_option], mark)
    between(detector_option, ["--mode", "plain", *detector_option, "--risk-policy", policy], judge)


def test_each_row_of_a_batch_has_its_own_risk(folder: Path) -> None:
    """Several answers at once, of several lengths."""
    import asyncio

    from transom.serving.engines.embedded import EmbeddedEngine
    from transom.serving.engines.job import Job
    from transom.trust.hallucination.live import RiskWatch

    found, detector = load(folder / "model"), read_detector(folder / "detector")
    tokenizer = load_tokenizer(folder / "model")

    async def one(engine: EmbeddedEngine, text: str) -> tuple[list[int], Any]:
        prompt = tuple(tokenizer.encode_chat([("user", text)]).ids)
        job = Job(prompt_ids=prompt, max_tokens=9, temperature=1.0, seed=3, ignore_eos=True, features=True)
        steps = [step async for step in engine.generate(job)]
        rows = [step.features_TF for step in steps if step.features_TF is not None]
        return [token for step in steps for token in step.ids], np.concatenate(rows)

    async def all_of_them() -> list[tuple[list[int], Any]]:
        with EmbeddedEngine(found, max_batch=3, watch=RiskWatch(found, detector)) as engine:
            return await asyncio.gather(*(one(engine, text) for text in TEXTS))

    for text, (ids, rows) in zip(TEXTS, asyncio.run(all_of_them()), strict=True):
        listener = Listener(detector)
        listener.hear(rows, "said", [1] * len(rows), last=True)
        _, series = offline(folder, text, ids)
        for name, wanted in series.items():
            np.testing.assert_allclose(listener.series()[name], wanted, atol=2e-3, err_msg=name)


def test_sentences_count_the_steps_until_they_were_delivered(folder: Path) -> None:
    detector = read_detector(folder / "detector")
    count, draw = len(detector.probes), np.random.default_rng(0)
    rows = np.zeros((7, row_size(detector)))
    rows[:, 0], rows[:, 1] = detector.tag, [FIRST, *[LATER] * 6]
    rows[:, 2:] = draw.normal(size=(7, count))
    words = ["One", " two", ".", " Three", ".", "", ""]
    whole, lengths = "".join(words), [len(one) for one in words]
    one, piecewise, late = Listener(detector), Listener(detector), Listener(detector)
    at_once = one.hear(rows, whole, lengths, last=True)
    found, waited = [], []
    for place, text in enumerate(words):
        last = place == len(words) - 1
        found += piecewise.hear(rows[place : place + 1], text, [len(text)], last=last)
        held = whole if last else ""  # as a restored placeholder's text comes after its tokens
        waited += late.hear(rows[place : place + 1], held, [len(text)], last=last)
    assert at_once == found == waited
    assert [(each.start, each.end) for each in found] == [(0, 9), (9, 15)]
    series = piecewise.series()
    first, second = (detector.risk(cut(series, *steps)).risk for steps in ((0, 4), (3, 7)))
    assert [each.risk for each in found] == pytest.approx([first, second])


@pytest.mark.parametrize("broken", ["size", "nan", "tag", "order", "late"])
def test_rows_that_no_engine_with_the_detector_tells_are_garbage(folder: Path, broken: str) -> None:
    detector = read_detector(folder / "detector")
    row = np.zeros((1, row_size(detector)))
    row[0, :2] = detector.tag, FIRST
    listener = Listener(detector)
    if broken == "late":
        listener.hear(row, "a", [1], last=False)
    elif broken == "size":
        row = row[:, :-1]
    elif broken == "nan":
        row[0, 3] = np.nan
    elif broken == "tag":
        row[0, 0] += 1
    else:
        row[0, 1] = LATER
    with pytest.raises(EngineGarbageError, match="one detector"):
        listener.hear(row, "a", [1], last=False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["engine", "echo", OPTION, "{detector}"], "an echo has no states"),
        (["engine", "{model}", OPTION, "{detector}", "--backdoor-detector", "x"], "an engine tells of one"),
        (["engine", "{other}", OPTION, "{detector}"], "belongs to another model"),
        (
            ["gateway", "--mode", "plain", "--engine-kind", "chat", OPTION, "{detector}"],
            "tells nothing of its",
        ),
        (["gateway", "--mode", "obfuscated", OPTION, "{detector}"], "in mode obfuscated"),
        (["engine", "{model}", OPTION, "{model}/config.json"], "no detector of made-up answers"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: list[str], message: str
) -> None:
    other = tiny_llama(tmp_path / "other", seed=5)
    names = {"detector": folder / "detector", "model": folder / "model", "other": other}
    assert main.run([one.format(**names) for one in line] + ["--port", "0"]) != 0
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("policy", ["mark", "withhold", "stop"])
def test_an_answer_of_which_nothing_was_told_is_a_failure_and_not_let_through(
    folder: Path, policy: Any
) -> None:
    """A failure is marked, or fails the answer where each must be judged; an empty one has no risk."""
    annotator = RiskAnnotator(read_detector(folder / "detector"), lambda _: "a", policy)
    assert annotator.required == (policy != "mark")
    watcher = annotator.watch(Asked("plain", "m", ("q",)))
    watcher.hear(Heard("It is so.", (5, 6)))
    with pytest.raises(EngineGarbageError, match="told nothing of its states"):
        watcher.close()
    empty = annotator.watch(Asked("plain", "m", ("q",))).close()
    assert (empty.field["risk"], empty.header) == (None, "not scored")
    texts = {1: "[PERSON", 2: "_1]", 3: "."}
    annotator = RiskAnnotator(read_detector(folder / "detector"), texts.__getitem__, policy)
    named = annotator.watch(Asked("words", "m", ("q",)))
    named.hear(Heard("Ada Lovelace.", (1, 2, 3)))  # as delivered
    note = named.close()
    assert (note.field["risk"], note.field["reason"]) == (None, "the answer is placeholders alone")


def test_nothing_is_said_of_placeholders_before_other_words_come(folder: Path) -> None:
    """Not even by a policy that stops: what stands there is the user's own."""
    detector = read_detector(folder / "detector")
    eager = replace(detector, about=replace(detector.about, line=0.0))  # flags whatever is judged
    texts = {1: "[PERSON_1].", 2: " [PLACE", 3: "_1]. She", 4: " is."}  # cut inside a placeholder
    rows_TF = np.zeros((4, row_size(eager)), np.float32)
    rows_TF[:, 0], rows_TF[:, 1] = eager.tag, (FIRST, LATER, LATER, LATER)
    watcher = RiskAnnotator(eager, texts.__getitem__, "stop", True).watch(Asked("words", "m", ("q",)))
    assert watcher.hear(Heard("Ada. ", (1, 2), features_TF=rows_TF[:2], finish_reason=None)) is None
    with pytest.raises(RefusedError, match="likely made up"):
        watcher.hear(Heard("Rome. She is.", (3, 4), features_TF=rows_TF[2:], finish_reason="stop"))


def test_options_of_a_vllm_are_refused_before_another_engine(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "model")
    for more in ({"risk_model": "m"}, {"risk_states": folder}):
        options = RiskOptions(risk_detector=folder / "detector", **more)
        with pytest.raises(MisconfiguredError, match="for a vLLM"):
            options.annotators("transom", tokenizer)
        with pytest.raises(MisconfiguredError, match="--risk-states FOLDER"):
            options.client("http://127.0.0.1:1")
    with pytest.raises(MisconfiguredError, match="need --risk-detector"):
        RiskOptions(risk_model="m").check("plain")
