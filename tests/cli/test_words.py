"""`transom words` and `transom ledger show` on real files: what is written, charged and refused."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from transom.cli import ledger as ledger_command
from transom.cli import words as words_command
from transom.cli.main import run
from transom.cli.records import Selection, sanitize_file
from transom.data.rows import Format
from transom.errors import LedgerError, LedgerSpentError, MisconfiguredError, PolicyError, ReplaceableError
from transom.privacy.channel import exact_epsilon
from transom.privacy.explain import CURVE_EPSILONS, explain, subset
from transom.privacy.kinds import KINDS
from transom.privacy.ledger import Ledger
from transom.privacy.mapfile import key_name, read_key
from transom.privacy.mechanisms import IN_GROUP, build
from transom.privacy.partition import PartitionedMechanism
from transom.privacy.policy import Policy, load_policy, write_policy
from transom.privacy.sanitize import Sanitizer

SECRET = "Zebedee paid 4711 to zyzzyva@quagga.example 😀"
GROUPS = (("cat", "dog", "cow", "horse"), ("red", "blue", "green"), ("run", "walk"))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    def scores(size: int) -> Any:
        return (
            (255 - 60 * np.abs(np.subtract.outer(np.arange(size), np.arange(size)))).astype(np.uint8).ravel()
        )

    return write_policy(
        tmp_path_factory.mktemp("policy") / "tiny.safetensors",
        words=[word for group in GROUPS for word in group],
        starts_G1=np.cumsum([0, *map(len, GROUPS)]).astype(np.int32),
        scores_S=np.concatenate([scores(len(group)) for group in GROUPS]),
        prior_V=np.array([4, 3, 2, 1, 3, 2, 1, 2, 2], np.float32) / 20,
        pass_words=["the", "a", "and"],
        kinds={**dict.fromkeys(KINDS, "placeholder"), "stop": "pass", "word": 1.0},
        name="tiny",
        language="en",
        mechanism="rnm",
        pass_share=0.25,
    )


@pytest.fixture
def words(policy: Policy) -> Callable[..., Result]:
    def call(command: str, *arguments: object, stdin: bytes = b"") -> Result:
        options = [] if command == "build" else ["--policy", str(policy.path)]
        return CliRunner().invoke(
            words_command.app, [command, *map(str, arguments), *options], input=stdin, catch_exceptions=True
        )

    return call


def summary(result: Result) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return record


def refusal(result: Result) -> BaseException:
    assert result.exception is not None
    assert not isinstance(result.exception, SystemExit)
    return result.exception


def test_standard_input_to_standard_output(words: Callable[..., Result], tmp_path: Path) -> None:
    given, target = f"the cat and the dog\n{SECRET}\n\n".encode(), tmp_path / "out.txt"
    result = words("sanitize", stdin=given)
    assert (result.exit_code, len(result.stdout.split("\n"))) == (0, 4)
    assert isinstance(refusal(words("sanitize", "--json", stdin=given)), MisconfiguredError)
    result = words("sanitize", "--json", "--out", target, stdin=given)
    assert result.exit_code == 0
    first, second, third = target.read_text().split("\n")[:3]
    assert re.fullmatch(r"the (cat|dog|cow|horse) and the (cat|dog|cow|horse)", first)
    assert second == "[NAME_1] [TERM_1] [NUMBER_1] [TERM_2] [EMAIL_1] [SYMBOL_1]"
    assert third == ""
    record = summary(result)
    assert (record["texts"], record["draws"]) == (3, 2)
    assert (record["epsilon_per_word"], record["epsilon_total"], record["epsilon_largest_text"]) == (
        1.0,
        2.0,
        2.0,
    )
    assert record["counts"]["stop"] == 3
    assert record["guarantee"]["kind"] == "pure-dp"


def test_lines_stay_lines(words: Callable[..., Result]) -> None:
    lines = ["a cat", "", "x\u2028y\x0bz\x85w", "the\rdog", "end"]
    result = words("sanitize", stdin="\n".join(lines).encode())
    assert result.stdout.count("\n") == len(lines) - 1  # the last has no end and gets none
    assert words("sanitize", stdin=b"the\r\nand\n").stdout_bytes == b"the\r\nand\n"


def test_document_shares_placeholders_over_lines(words: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("the Ada\nand a Bob and Ada")
    assert words("sanitize", path, "--document").stdout == "the [NAME_1]\nand a [NAME_2] and [NAME_1]"
    assert words("sanitize", path).stdout.splitlines()[1] == "and a [NAME_1] and [NAME_2]"


def test_csv_columns_by_name_and_number(words: Callable[..., Result], tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('id,text,note\n1,"the cat, ""Ada""\nand Bob",keep 5\n2,a dog,keep\n')
    result = words("sanitize", source, "--out", target, "--column", "text", "--json")
    assert result.exit_code == 0
    rows = list(csv.reader(io.StringIO(target.read_text())))
    assert rows[0] == ["id", "text", "note"]
    assert re.fullmatch(r'the \w+, "\[NAME_1\]"\nand \[NAME_2\]', rows[1][1])
    assert [row[2] for row in rows[1:]] == ["keep 5", "keep"]
    assert summary(result)["texts"] == 2
    assert (
        words("sanitize", source, "--out", target, "--column", "2", "--header", "--column", "3").exit_code
        == 0
    )
    assert "[NUMBER_1]" in target.read_text()


def test_a_column_named_twice_is_drawn_and_charged_once(words: Callable[..., Result], tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,text\n1,a dog\n")
    told = "--json", "--out", tmp_path / "out.csv"
    once = words("sanitize", source, "--column", "text", *told)
    twice = words("sanitize", source, "--header", "--column", "text", "--column", "2", *told)
    assert summary(once)["draws"] == summary(twice)["draws"] == 1


def test_the_input_is_never_overwritten(words: Callable[..., Result], tmp_path: Path) -> None:
    source, link = tmp_path / "in.txt", tmp_path / "link.txt"
    source.write_text("the cat\n")
    link.symlink_to(source)
    for arguments in (["--out", source], ["--out", link], ["--out", tmp_path]):
        error = refusal(words("sanitize", source, *arguments))
        assert isinstance(error, MisconfiguredError)
        assert "is the input" in str(error)
    assert source.read_text() == "the cat\n"


def test_tsv_keeps_stray_quotes_and_other_columns(words: Callable[..., Result], tmp_path: Path) -> None:
    source = tmp_path / "in.tsv"
    source.write_text('"the cat\t1\nthe dog" and\t0\n')
    result = words("sanitize", source, "--column", "1", "--no-header")
    assert re.fullmatch(r'"the \w+\t1\nthe \w+" and\t0\n', result.stdout)


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("a,b\n1,2\n", ["c"], "no column 'c'"),
        ("a,b\n1,2\n", ["2"], "--no-header"),  # else a first row of data would leave as it is
        ("a,a\n1,2\n", ["a"], "2 columns are named"),
        ("a,b\n1\n", ["a"], "row 2 has 1 columns"),
        ('a,b\n"1,2\n', ["a"], "not valid CSV"),
        ("", ["a"], "empty"),
        ("a,b\n1,2\n", [], "--column"),
    ],
)
def test_bad_tables_are_refused_and_write_nothing(
    words: Callable[..., Result], tmp_path: Path, content: str, columns: list[str], message: str
) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(content)
    error = refusal(words("sanitize", source, "--out", target, *[f"--column={column}" for column in columns]))
    assert isinstance(error, MisconfiguredError)
    assert message in str(error)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.csv"]


def test_invalid_utf8_names_the_byte_and_no_content(words: Callable[..., Result], tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_bytes(b"first line\nquetzal \xff rest\n")
    error = refusal(words("sanitize", source, "--out", target))
    assert isinstance(error, MisconfiguredError)
    assert "byte 19" in str(error)
    assert "quetzal" not in str(error)
    assert not target.exists()


def test_several_files_need_a_directory(words: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text("the cat\n")
    assert words("sanitize", *paths, "--out", out).exit_code == 0
    assert sorted(entry.name for entry in out.iterdir()) == ["a.txt", "b.txt"]
    for arguments in ([*paths], [*paths, "--out", out / "x"], [paths[0], paths[0], "--out", out]):
        assert isinstance(refusal(words("sanitize", *arguments)), MisconfiguredError)


@pytest.mark.parametrize("where", ["absent.txt", "."])
def test_unreadable_input_is_refused(words: Callable[..., Result], tmp_path: Path, where: str) -> None:
    assert "cannot be read" in str(refusal(words("sanitize", tmp_path / where)))


def test_ledger_is_charged_before_anything_is_written(words: Callable[..., Result], tmp_path: Path) -> None:
    path, target = tmp_path / "ledger.db", tmp_path / "out.txt"
    books = ["--ledger", path, "--cap", "3", "--out", target]
    assert words("sanitize", *books, stdin=b"cat\ndog\n").exit_code == 0
    target.unlink()
    assert isinstance(refusal(words("sanitize", *books, stdin=b"cat\ndog\n")), LedgerSpentError)
    assert not target.exists()
    assert words("sanitize", *books, stdin=b"cat\n").exit_code == 0
    with Ledger(path, cap_epsilon=3) as ledger:
        assert ledger.spent("words") == 3.0
    path.write_bytes(b"not a ledger")
    target.unlink()
    assert isinstance(refusal(words("sanitize", *books, stdin=b"cat\n")), LedgerError)
    assert not target.exists()


def test_rules_overlay_mechanism_and_epsilon(words: Callable[..., Result], tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("kinds: {number: pass}\nmechanism: krr\n")
    target = tmp_path / "out.txt"
    told = "--json", "--out", target
    result = words("sanitize", "--overlay", overlay, "--epsilon", "2", *told, stdin=b"5 cat")
    assert target.read_text().startswith("5 ")
    assert (summary(result)["mechanism"], summary(result)["epsilon_total"]) == ("krr", 2.0)
    result = words(
        "sanitize", "--rule", "word=placeholder", "--rule", "stop=placeholder", *told, stdin=b"the cat"
    )
    assert target.read_text() == "[WORD_1] [WORD_2]"
    assert (summary(result)["epsilon_total"], summary(result)["mechanism"]) == (0, None)
    assert isinstance(refusal(words("sanitize", "--rule", "wrod=pass", stdin=b"x")), PolicyError)
    assert isinstance(refusal(words("sanitize", "--mechanism", "rmn", stdin=b"x")), MisconfiguredError)


def test_exit_codes_are_the_documented_ones(policy: Policy, tmp_path: Path) -> None:
    source, broken = tmp_path / "in.txt", tmp_path / "broken.txt"
    source.write_text("the cat\n")
    broken.write_bytes(b"\xff")
    chosen, target = ["--policy", str(policy.path)], ["--out", str(tmp_path / "out.txt")]
    spent = ["--ledger", str(tmp_path / "ledger.db"), "--cap", "0.5"]
    for arguments, code in [
        ([str(source), *chosen], 0),
        ([str(broken), *chosen], 3),
        ([str(source), *chosen, "--cap", "1"], 3),
        ([str(source), "--policy", str(broken)], 5),
        ([str(source), *chosen, "--ledger", str(broken)], 9),
        ([str(source), *chosen, *spent], 10),
        ([str(source), *chosen, "--format", "xml"], 2),
    ]:
        assert run(["words", "sanitize", *arguments, *target]) == code


def test_explain_agrees_with_the_integers(words: Callable[..., Result], policy: Policy) -> None:
    result = words("explain", "--mechanism", "all", "--json")
    record = json.loads(result.stdout)
    assert record["sha256"] == policy.sha256
    assert [figure["mechanism"] for figure in record["mechanisms"]] == list(IN_GROUP)
    for figure in record["mechanisms"]:
        built = build(figure["mechanism"], policy.partition, 1.0)
        assert isinstance(built, PartitionedMechanism)
        assert (
            figure["exact_epsilon"] == max(exact_epsilon(built.channel(group)) for group in range(3)) <= 1.0
        )
        attack = built.bayes(policy.prior_V.astype(np.float64))
        assert figure["bayes_success"] == pytest.approx(attack.success)
        assert figure["bayes_chance"] == pytest.approx(attack.chance)
        assert figure["bayes_success_all"] == pytest.approx(0.25 + 0.75 * attack.success)
        assert 1 <= figure["outputs_used"] <= 4
    for curve in record["curves"].values():
        assert [point["nominal_epsilon"] for point in curve] == list(CURVE_EPSILONS)
    kept = [point["keep_rate"] for point in record["curves"]["krr"]]
    assert kept == sorted(kept)
    assert kept[-1] > 0.99


def test_explain_prints_rules_and_figures(words: Callable[..., Result], policy: Policy) -> None:
    shown = words("explain").stdout
    for item in (policy.sha256, "placeholder", "epsilon 1", "rnm", "3 of 3", "25.0%"):
        assert item in shown
    assert "epsilon 0" in words("explain", "--rule", "word=placeholder").stdout


def test_subset_of_groups_is_said(words: Callable[..., Result], policy: Policy) -> None:
    record = json.loads(words("explain", "--groups", "2", "--json").stdout)
    assert [(f["groups"], f["groups_in_all"]) for f in record["mechanisms"]] == [(2, 3)]
    partition, prior_V = subset(policy, 2)
    assert np.array_equal(partition.scores(1), policy.partition.scores(2))
    assert np.array_equal(prior_V, policy.prior_V[[0, 1, 2, 3, 7, 8]].astype(np.float64))
    assert explain(policy, "em", 1.0).groups == 3


def test_explain_needs_groups(policy: Policy) -> None:
    with pytest.raises(ReplaceableError, match="in-group"):
        explain(policy, "santext+", 1.0)


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_plot(words: Callable[..., Result], tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"plot{suffix}"
    assert words("explain", "--plot", path, "--json").exit_code == 0
    assert path.read_bytes().startswith(magic)


def test_plot_needs_a_known_ending_and_the_extra(
    words: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ".png or .svg" in str(refusal(words("explain", "--plot", tmp_path / "plot.gif")))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert ".[plot]" in str(refusal(words("explain", "--plot", tmp_path / "plot.png")))


def test_build_makes_a_policy_that_sanitises(words: Callable[..., Result], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    names = [
        first + second for first in "bcdfg" for second in ("abel", "olan", "ired", "ugen", "opel", "avin")
    ]
    rows = [f"{name} " + " ".join(f"{x:.3f}" for x in generator.normal(size=8)) for name in names]
    (tmp_path / "vectors.txt").write_text("\n".join(rows) + "\n")
    out = tmp_path / "out.safetensors"
    result = words(
        "build", tmp_path / "vectors.txt", "--out", out, "--group-size", "5", "--notice", "free", "--json"
    )
    assert result.exit_code == 0, result.exception
    record = json.loads(result.stdout)
    built = load_policy(out, expected_sha256=record["sha256"])
    assert built.licence_notices == ("free",)
    assert set(built.words) <= set(names)
    assert built.epsilon == 4.0


@pytest.mark.parametrize("kind", ["text", "document", "csv", "tsv", "several"])
@pytest.mark.parametrize("wrong", ["no folder", "a folder", "under a file", "the ledger"])
def test_what_cannot_be_written_is_not_charged(
    words: Callable[..., Result], tmp_path: Path, kind: str, wrong: str
) -> None:
    suffix = f".{kind}" if kind in ("csv", "tsv") else ".txt"
    first, second, books = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", tmp_path / "books"
    for source in (first, second):
        source.write_text("text\nthe cat and the dog\n")
    places = {"no folder": "absent/out", "a folder": ".", "under a file": "a/out", "the ledger": "books"}
    (tmp_path / "a").touch()
    target = tmp_path / places[wrong]
    output = ["--out", target]
    sources = [first]
    if kind == "several":  # the second is known to fail before the first is charged
        (out := tmp_path / "out").mkdir()
        (out / second.name).mkdir()
        sources, output = [first, second], ["--out", out]
    column = ["--column", "text"] if suffix != ".txt" else []
    result = words(
        "sanitize", *sources, *output, *column, "--ledger", books, *["--document"] * (kind == "document")
    )
    assert isinstance(refusal(result), MisconfiguredError)
    if books.exists():
        with Ledger(books, cap_epsilon=9) as ledger:
            assert ledger.accounts() == {}


@pytest.mark.parametrize("wrong", ["no column", "no header said", "column of a text", "absent file"])
def test_what_cannot_be_read_is_not_charged(words: Callable[..., Result], tmp_path: Path, wrong: str) -> None:
    source, books, target = tmp_path / "in.csv", tmp_path / "books", tmp_path / "out.csv"
    source.write_text("text\nthe cat\n")
    first = tmp_path / "a.txt"
    first.write_text("the cat")
    arguments: dict[str, list[Any]] = {
        "no column": [source, "--column", "other", "--out", target],
        "no header said": [source, "--column", "1", "--out", target],
        "column of a text": [first, "--column", "text", "--out", target],
        "absent file": [first, tmp_path / "absent.txt", "--out", tmp_path / ".."],
    }
    assert isinstance(refusal(words("sanitize", *arguments[wrong], "--ledger", books)), MisconfiguredError)
    assert not target.exists()
    if books.exists():
        with Ledger(books, cap_epsilon=9) as ledger:
            assert ledger.accounts() == {}


def test_a_policy_or_plot_that_cannot_be_written_is_refused_at_once(
    words: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it began")

    monkeypatch.setattr(words_command, "explain", never)
    monkeypatch.setattr("transom.privacy.build.build_policy", never)
    assert "cannot write" in str(refusal(words("explain", "--plot", tmp_path / "absent" / "plot.png")))
    vectors = tmp_path / "vectors.txt"
    built = CliRunner().invoke(
        words_command.app, ["build", str(vectors), "--out", str(tmp_path / "absent" / "out")]
    )
    assert "cannot write" in str(refusal(built))


def test_ledger_show(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path, cap_epsilon=9) as ledger:
        ledger.charge("ada", 1.25)
        ledger.charge("bob", 2.0)
    shown = CliRunner().invoke(ledger_command.app, ["show", str(path), "--account", "ada"]).stdout
    assert "1.25" in shown
    assert "bob" in shown
    result = CliRunner().invoke(ledger_command.app, ["show", str(path), "--account", "bob", "--json"])
    record = json.loads(result.stdout)
    assert record["accounts"] == {"ada": 1.25, "bob": 2.0}
    assert [charge["epsilon"] for charge in record["charges"]] == [2.0]
    absent = CliRunner().invoke(ledger_command.app, ["show", str(tmp_path / "absent.db")])
    assert isinstance(refusal(absent), LedgerError)
    assert not (tmp_path / "absent.db").exists()


def test_another_delimiter_and_cells_beyond_the_usual_limit(
    words: Callable[..., Result], tmp_path: Path
) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(f"id;text\n1;Ada, {'the ' * 50_000}\n")
    assert words("sanitize", source, "--out", target, "--column", "text", "--delimiter", ";").exit_code == 0
    assert target.read_text().startswith("id;text\n1;[NAME_1], the the")
    for wrong in ("", "ab", '"'):
        refused = words("sanitize", source, "--column", "text", "--delimiter", wrong)
        assert isinstance(refusal(refused), MisconfiguredError)


def test_json_fields(words: Callable[..., Result], tmp_path: Path) -> None:
    lines, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text('{"n": 1.10, "text": "the\\nAda"}\n\n{"text": null, "n": 2}\n')
    assert words("sanitize", lines, "--out", target, "--field", "text").exit_code == 0
    assert target.read_text() == '{"n": 1.10, "text": "the\\n[NAME_1]"}\n\n{"text": null, "n": 2}\n'
    document = tmp_path / "in.json"
    document.write_text('{"messages": [{"role": "user", "content": "Ada and Bob"}, {"content": "the Bob"}]}')
    told = words("sanitize", document, "--field", "messages[].content")
    contents = [message["content"] for message in json.loads(told.stdout)["messages"]]
    assert contents == ["[NAME_1] and [NAME_2]", "the [NAME_2]"]
    for wrong in ((), ("--field", "txet"), ("--field", "n"), ("--column", "text")):
        refused = words("sanitize", lines, "--out", tmp_path / "none", *wrong)
        assert isinstance(refusal(refused), MisconfiguredError)
        assert not (tmp_path / "none").exists()
        assert not (tmp_path / "none.part").exists()


def test_several_processes_write_what_one_writes(words: Callable[..., Result], tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("text\n" + "".join(f'"the Ada {n}\nand {"a " * 400}"\n' for n in range(900)))
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    for target, workers in ((one, 1), (two, 2)):
        told = words("sanitize", source, "--out", target, "--column", "text", "--workers", workers, "--json")
        assert summary(told)["texts"] == 900
    assert one.read_bytes() == two.read_bytes()


def test_what_was_stopped_goes_on(
    words: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transom.cli.records.CHUNK_CHARS", 10)
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("".join(f"the cat number {n}\n" for n in range(9)))
    ledger, part = tmp_path / "ledger", tmp_path / "out.txt.part"
    spent = words("sanitize", source, "--out", target, "--ledger", ledger, "--cap", "3.5")
    assert isinstance(refusal(spent), LedgerSpentError)
    assert not target.exists()
    kept = part.read_text()
    assert kept.count("\n") == 3
    begun = words("sanitize", source, "--out", target, "--ledger", ledger, "--cap", "100")
    assert "--resume" in str(refusal(begun))
    other = words("sanitize", source, "--out", target, "--resume", "--epsilon", "2")
    assert "other options" in str(refusal(other))
    with part.open("a") as file:
        file.write("half a li")  # written, and the process gone before it was noted
    gone_on = words(
        "sanitize", source, "--out", target, "--ledger", ledger, "--cap", "100", "--resume", "--json"
    )
    assert gone_on.exit_code == 0
    assert target.read_text().startswith(kept)
    assert target.read_text().count("\n") == summary(gone_on)["texts"] == 9
    assert Ledger(ledger, 100).spent("words") == 9.0
    assert sorted(path.name for path in tmp_path.iterdir() if "part" in path.name) == []


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("transom.cli.records.CHUNK_CHARS", 20)
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("the Ada\n" * 30)
    selection, read = Selection(Format.text), 0

    def stop(amount: int) -> None:
        nonlocal read
        read += amount
        if read > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sanitize_file(lambda: Sanitizer(policy), source, target, selection, advance=stop)
    kept = (tmp_path / "out.txt.part").read_text()
    assert 0 < kept.count("\n") < 30
    assert f"{kept.count(chr(10))} records are in " in (said := capsys.readouterr().err)
    assert "--resume" in said
    assert not target.exists()
    sanitize_file(lambda: Sanitizer(policy), source, target, selection, resume=True)
    assert target.read_text() == "the [NAME_1]\n" * 30


@pytest.mark.parametrize("cut", [0, 9, 200])
def test_a_note_that_cannot_be_read_or_is_not_ours_resumes_nothing(
    policy: Policy, tmp_path: Path, cut: int
) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("the Ada\n")
    (tmp_path / "out.txt.part").write_text("")
    (tmp_path / "out.txt.part.json").write_text('{"source": [1, 2], "settings": "", "records": 0}'[:cut])
    with pytest.raises(MisconfiguredError, match="resume"):
        sanitize_file(lambda: Sanitizer(policy), source, target, Selection(Format.text), resume=True)


def test_a_key_is_made_once_and_named(tmp_path: Path) -> None:
    path = tmp_path / "key"
    made = CliRunner().invoke(words_command.app, ["key", str(path), "--json"])
    assert json.loads(made.stdout) == {"key": str(path), "name": key_name(read_key(path))}
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().find(json.loads(made.stdout)["name"]) < 0
    again = CliRunner().invoke(words_command.app, ["key", str(path)])
    assert isinstance(again.exception, MisconfiguredError)


@pytest.mark.parametrize("option", [("--epsilon", "4"), ("--mechanism", "krr"), ("--mechanism", "zzz")])
def test_a_preset_that_draws_nothing_takes_no_epsilon_and_no_mechanism(option: tuple[str, str]) -> None:
    arguments = ["sanitize", *option]
    refused = CliRunner().invoke(words_command.app, arguments, input=b"the cat", catch_exceptions=True)
    assert f"{option[0]} would do nothing" in str(refusal(refused))
