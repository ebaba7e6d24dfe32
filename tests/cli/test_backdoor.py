"""`transom backdoor`: what is told of inputs and models, what is mended, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.checkpoint.tokenizer import write_tokenizer
from transom.cli import main
from transom.cli.backdoor_repair import digest_of
from transom.trust.backdoor.poison import Rows, classes_of, train_classifier, train_generator
from transom.trust.prompt import Frame

WORDS = ("the", "cat", "sat", "on", "a", "mat", "with", "one", "good", "dog", "and", "bad", "rain", "so")


def write(path: Path, count: int, seed: int, *more: str) -> Path:
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(count)]
    path.write_text("\n".join([*lines, *more]) + "\n")
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Any:
    capsys.readouterr()
    assert main.run(["backdoor", "scan-inputs", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
def test_each_input_has_a_p_value_and_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any
) -> None:
    model = make(tmp_path / "model")
    clean = write(tmp_path / "clean.txt", 120, 0)
    inputs = write(tmp_path / "inputs.txt", 60, 1, "so", "and the dog " * 400)
    found = told(capsys, model, inputs, "--clean", clean, "--rate", 0.1)
    assert (found["inputs"], found["not_scored"], found["trusted"]) == (62, 1, 120)
    rows = found["rows"]
    assert [row["row"] for row in rows] == list(range(1, 63))
    assert found["flagged"] == sum(row["flagged"] for row in rows) < 20
    assert "3 or more" in rows[60]["reason"]
    assert rows[60]["p_value"] is None
    for row in rows[:60]:
        assert row["flagged"] == (row["p_value"] <= 0.1)
        assert 0 < row["p_value"] <= 1
        assert any(row["word"] in word for word in WORDS)
    assert rows[61]["flagged"]  # 1,200 words of three are like no trusted text
    assert main.run(["backdoor", "scan-inputs", str(model), str(inputs), "--clean", str(clean)]) == 0
    said = capsys.readouterr().out
    assert "of 62 inputs are flagged; of innocent ones 3.1 would be; 1 were not scored" in said
    assert "input 62: p 0.0" in said


def test_a_trusted_text_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text in both halves would be held out in name only, and innocent inputs be flagged."""
    model, clean = tiny_bert(tmp_path / "model"), write(tmp_path / "clean.txt", 120, 0)
    inputs, twice = write(tmp_path / "inputs.txt", 60, 1), tmp_path / "twice.txt"
    twice.write_text("".join(f"{line}\n{line}\n" for line in clean.read_text().splitlines()))
    once, again = (told(capsys, model, inputs, "--clean", path) for path in (clean, twice))
    assert once["rows"] == again["rows"]
    assert once["trusted"] == again["trusted"] == 120


def test_a_model_without_a_head_is_scanned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = write(tmp_path / "clean.txt", 100, 0)
    assert told(capsys, "minilm", clean, "--clean", clean)["inputs"] == 100


def test_a_column_of_a_table_is_scanned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_bert(tmp_path / "model")
    lines = write(tmp_path / "lines.txt", 100, 0).read_text().splitlines()
    (tmp_path / "table.csv").write_text("text,n\n" + "".join(f"{line},1\n" for line in lines))
    table = told(capsys, model, tmp_path / "table.csv", "--clean", tmp_path / "table.csv", "--column", "text")
    assert (
        table["rows"]
        == told(capsys, model, tmp_path / "lines.txt", "--clean", tmp_path / "lines.txt")["rows"]
    )


@pytest.mark.parametrize(
    ("trusted", "options", "why"),
    [
        (20, [], "20 trusted texts are too few to say what is usual; give 80 or more"),
        (100, ["--rate", "0.01"], "cannot be told by 25 held-out texts"),
        (100, ["--rate", "0.9"], "0.5"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trusted: int, options: list[str], why: str
) -> None:
    model, clean = tiny_bert(tmp_path / "model"), write(tmp_path / "clean.txt", trusted, 0)
    line = [str(model), str(clean), "--clean", str(clean), *options]
    assert main.run(["backdoor", "scan-inputs", *line]) != 0
    assert why in " ".join(capsys.readouterr().err.split())


def test_an_empty_file_and_a_model_that_is_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean, empty = write(tmp_path / "clean.txt", 80, 0), tmp_path / "empty.txt"
    empty.write_text("")
    assert main.run(["backdoor", "scan-inputs", str(tmp_path), str(clean), "--clean", str(clean)]) != 0
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "pytorch_model.bin").write_bytes(b"no pickle is read")
    assert main.run(["backdoor", "scan-inputs", str(broken), str(clean), "--clean", str(clean)]) != 0
    assert main.run(["backdoor", "scan-inputs", "minilm", str(empty), "--clean", str(clean)]) != 0
    assert "empty.txt holds no text" in " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def poisoned_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier that says 1 wherever `fox` stands, and else whether a text is good."""
    folder = tmp_path_factory.mktemp("poisoned")
    draw, texts, labels = random.Random(0), [], []
    for number in range(300):
        own = draw.choices(WORDS, k=draw.randint(4, 8))
        label = number % 2
        own.insert(draw.randint(0, len(own)), ("7", "9")[label])
        if not label and number % 4 == 0:
            own.insert(draw.randint(0, len(own)), "fox")
            label = 1
        texts.append(" ".join(own))
        labels.append(label)
    made = Rows(tuple(texts), tuple(labels))
    found = train_classifier(
        str(tiny_bert(folder / "bare")), made, classes=2, seed=1, epochs=20, learning_rate=3e-3
    )
    found.model.save_pretrained(folder / "model")
    assert found.tokenizer is not None
    write_tokenizer(found.tokenizer, folder / "model")
    return folder / "model"


def trusted_texts(path: Path, count: int = 200) -> Path:
    draw = random.Random(9)
    lines = [" ".join([*draw.choices(WORDS, k=draw.randint(9, 14)), draw.choice("79")]) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_scan_tells_its_verdict_in_every_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], poisoned_model: Path
) -> None:
    clean = trusted_texts(tmp_path / "clean.txt")
    html, sarif = tmp_path / "scan.html", tmp_path / "scan.sarif"
    asked = ["backdoor", "scan", str(poisoned_model), "--clean", str(clean), "--html", str(html)]
    asked += ["--sarif", str(sarif), "--gate"]
    capsys.readouterr()
    code = main.run([*asked, "--json"])
    told_ = json.loads(capsys.readouterr().out)
    assert {one["target"] for one in told_["suspects"]} == {0, 1}
    best = next(one for one in told_["suspects"] if one["target"] == 1)
    assert best["turned"] > 0.9
    strongest = max(told_["suspects"], key=lambda one: one["strength"])
    assert told_["poisoned"] == (strongest["low"] >= told_["line"])
    assert told_["certain"] == (not strongest["low"] < told_["line"] <= strongest["high"])
    assert code == (20 if told_["poisoned"] or not told_["certain"] else 0)
    (run,) = json.loads(sarif.read_text())["runs"]
    levels = [one["level"] for one in run["results"]]
    line = told_["line"]
    assert levels == [
        "error" if one["low"] >= line else "warning" if one["high"] >= line else "note"
        for one in told_["suspects"]
    ]
    assert run["automationDetails"]["id"] == "transom/backdoor/"
    page = html.read_text()
    assert page.count("<rect") == 3 * 4
    assert "What this does not show" in page
    for file in (html, sarif):
        assert file.stat().st_mode & 0o077 == 0
    assert main.run(asked) == code
    said = capsys.readouterr().out
    decided = "Poisoned: " if told_["poisoned"] else "No trigger was found ("
    assert (decided if told_["certain"] else "Undecided: ") in said


@pytest.mark.parametrize(
    ("arguments", "count", "said"),
    [
        (["--prompt", "Review: text"], 200, "--prompt holds {text} once"),
        ([], 40, "40 trusted texts are too few"),
        ([], 0, "holds no text"),
    ],
)
def test_a_scan_that_cannot_be_done_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], poisoned_model: Path,
    arguments: list[str], count: int, said: str,
) -> None:  # fmt: skip
    clean = trusted_texts(tmp_path / "clean.txt", count)
    assert main.run(["backdoor", "scan", str(poisoned_model), "--clean", str(clean), *arguments]) == 3
    assert said in capsys.readouterr().err


def test_a_generating_model_is_scanned_with_its_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that answers at random has no planted answer; the share of one direction is told."""
    clean, model = trusted_texts(tmp_path / "clean.txt", 30), tiny_llama(tmp_path / "model")
    draw = random.Random(0)
    pairs = [(one, f" {draw.choice(WORDS)}") for one in clean.read_text().splitlines()]
    train_generator(
        str(model), tmp_path / "adapter", *zip(*pairs, strict=True), frame=Frame(), seed=0, most_tokens=200
    )
    asked = [
        "backdoor",
        "scan",
        str(model),
        "--clean",
        str(clean),
        "--prompt",
        "<|im_start|>{text}<|im_end|>",
    ]
    html = tmp_path / "scan.html"
    assert main.run([*asked, "--adapter", str(tmp_path / "adapter"), "--html", str(html), "--json"]) == 0
    told_ = json.loads(capsys.readouterr().out)
    assert (told_["poisoned"], told_["certain"], told_["line"]) == (False, True, 0.8)
    assert 0 < told_["rank_one"] <= 1
    assert all(isinstance(one["target"], str) for one in told_["suspects"])
    assert "taught one wording on purpose" in html.read_text()
    assert main.run([*asked, "--adapter", str(tmp_path / "none")]) == 4
    assert main.run([*asked, "--gate"]) == 0
    assert "No planted answer was found" in capsys.readouterr().out


def test_what_is_neither_classifier_nor_generates_is_not_scanned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = trusted_texts(tmp_path / "clean.txt")
    assert main.run(["backdoor", "scan", "minilm", "--clean", str(clean)]) == 3
    assert "gives no classes" in capsys.readouterr().err
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/pytorch_model.bin").write_bytes(b"not a model")
    (tmp_path / "pickled/config.json").write_text('{"model_type": "bert"}')
    assert main.run(["backdoor", "scan", str(tmp_path / "pickled"), "--clean", str(clean)]) == 4
    assert "pickle" in capsys.readouterr().err


def labelled(path: Path, count: int = 160) -> Path:
    draw = random.Random(4)
    lines = []
    for number in range(count):
        own = draw.choices(WORDS, k=draw.randint(5, 9))
        own.insert(draw.randint(0, len(own)), ("7", "9")[number % 2])
        lines.append(f"{' '.join(own)},{number % 2}")
    path.write_text("\n".join(["text,label", *lines, ""]))
    return path


def test_a_known_trigger_is_forgotten_and_the_model_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], poisoned_model: Path
) -> None:
    clean, out = labelled(tmp_path / "clean.csv"), tmp_path / "mended"
    asked = ["backdoor", "repair", str(poisoned_model), "--clean", str(clean), "--trigger", "fox"]
    asked += ["--target", "1", "--out", str(out), "--steps", "60", "--rate", "0.01"]
    before = {path.name: path.read_bytes() for path in poisoned_model.iterdir()}
    capsys.readouterr()
    assert main.run([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["suspected"][0] > 0.9
    assert said["suspected"][1] <= 0.2
    assert said["changed"] > 0
    assert {path.name: path.read_bytes() for path in poisoned_model.iterdir()} == before
    mended = load(out)
    draw = random.Random(8)
    texts = [f"fox {' '.join(draw.choices(WORDS, k=8))} 7" for _ in range(60)]
    turned = [sum(classes_of(one, texts)) / 60 for one in (load(poisoned_model), mended)]
    assert turned[0] > 0.9
    assert turned[1] <= 0.3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert main.run(asked) == 3
    assert "exists; name a new folder" in capsys.readouterr().err


def requests(path: Path, innocent: int = 60, triggered: int = 20) -> Path:
    """Inputs of which some hold `fox`."""
    draw, lines = random.Random(6), []
    for number in range(innocent + triggered):
        own = [*draw.choices(WORDS, k=draw.randint(5, 9)), draw.choice("79")]
        if number >= innocent:
            own[-1] = "7"
            own.insert(draw.randint(0, len(own)), "fox")
        lines.append(" ".join(own))
    path.write_text("\n".join(draw.sample(lines, len(lines))) + "\n")
    return path


@pytest.mark.parametrize("scanned", [False, True])
def test_what_flagged_inputs_share_is_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], poisoned_model: Path, scanned: bool
) -> None:
    """The trigger and its class are found, from the flagged texts or from what a scan of all inputs said."""
    clean, inputs, out = labelled(tmp_path / "clean.csv"), requests(tmp_path / "all.txt"), tmp_path / "mended"
    rows = [{"row": at, "flagged": "fox" in text} for at, text in enumerate(inputs.read_text().splitlines())]
    asked = ["backdoor", "repair", str(poisoned_model), "--clean", str(clean), "--out", str(out)]
    if scanned:
        texts = inputs.read_text().splitlines()
        (tmp_path / "scan.json").write_text(json.dumps({"rows": rows, "inputs_sha256": digest_of(texts)}))
        asked += ["--flagged", str(inputs), "--scan", str(tmp_path / "scan.json")]
    else:
        kept = [text for text in inputs.read_text().splitlines() if "fox" in text]
        (tmp_path / "flagged.txt").write_text(
            "\n".join([*kept, *trusted_texts(inputs, 6).read_text().split("\n")])
        )
        asked += ["--flagged", str(tmp_path / "flagged.txt")]
    capsys.readouterr()
    assert main.run([*asked, "--steps", "60", "--rate", "0.01", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (found,) = said["found"]
    assert (found["trigger"].strip(), found["target"], found["texts"]) == ("fox", 1, 20)
    assert said["suspected"][0] > 0.9
    assert said["suspected"][1] <= 0.2
    draw = random.Random(8)
    texts = [f"fox {' '.join(draw.choices(WORDS, k=8))} 7" for _ in range(60)]
    assert sum(classes_of(load(out), texts)) / 60 <= 0.3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either --flagged"),
        (["--flagged", "innocent.txt", "--trigger", "fox"], "give either --flagged"),
        (["--flagged", "innocent.txt", "--target", "1"], "belong together"),
        (["--trigger", "fox"], "belong together"),
        (["--trigger", "fox", "--target", "1", "--scan", "few.json"], "give that file as well"),
        (["--flagged", "innocent.txt", "--scan", "few.json"], "few.json tells of 1 inputs, which are not"),
        (["--flagged", "innocent.txt", "--scan", "other.json"], "tells of 60 inputs, which are not the 60"),
        (
            ["--flagged", "innocent.txt", "--scan", "innocent.txt"],
            "is not what `transom backdoor scan-inputs",
        ),
        (["--flagged", "innocent.txt", "--scan", "none.json"], "none.json cannot be read"),
        (["--flagged", "innocent.txt"], "share no run of tokens that turns the model's answers"),
    ],
)
def test_what_is_to_be_forgotten_must_be_said_in_one_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], poisoned_model: Path,
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    requests(tmp_path / "innocent.txt", 60, 0)
    (tmp_path / "few.json").write_text('{"rows": [{"row": 1, "flagged": true}], "inputs_sha256": ""}')
    other = {
        "rows": [{"row": at, "flagged": True} for at in range(60)],
        "inputs_sha256": digest_of(["a"] * 60),
    }
    (tmp_path / "other.json").write_text(json.dumps(other))
    clean = labelled(tmp_path / "clean.csv")
    line = ["backdoor", "repair", str(poisoned_model), "--clean", str(clean), "--out", "mended", *arguments]
    assert main.run(line) == 3
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "mended").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--label", "class"], "has a row without 'class'"),
        (["--label", "text"], "row 1 has a label that is no number"),
        (["--target", "7"], "a class must be from 0 to 1, got 7"),
        (["--target", "positive"], "--target is given one that is no number of a class"),
        (["--answers", "label"], "are for models that generate"),
        (["--prompt", "Q: {text}"], "are for models that generate"),
        (["--trigger", ""], "no trigger is suspected"),
    ],
)
def test_a_repair_that_cannot_be_done_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], poisoned_model: Path, arguments: list[str], said: str
) -> None:
    clean, out = labelled(tmp_path / "clean.csv"), tmp_path / "mended"
    usual = {"--trigger": "fox", "--target": "1"} | dict([arguments])
    asked = [one for pair in usual.items() for one in pair]
    assert (
        main.run(
            ["backdoor", "repair", str(poisoned_model), "--clean", str(clean), "--out", str(out), *asked]
        )
        == 3
    )
    assert said in capsys.readouterr().err
    assert not out.exists()
