"""Utility: oracles for the score of each task, the intervals, the restored placeholders, the two modes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from transom.audit.attacks.sentences import encoder_of
from transom.audit.utility.files import read_task
from transom.audit.utility.frontier import Setting, frontier
from transom.audit.utility.model import Answerer, load_answerer, obfuscated
from transom.audit.utility.protect import Protected, unprotected, words
from transom.audit.utility.tasks import Answers, Classify, Question, Summarise, fitted, rouge_l
from transom.checkpoint import load
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.errors import MisconfiguredError
from transom.obfuscation.keys import preset
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.report.finding import not_run, share

SECRET = bytes(range(32))
DOCUMENTS = ("The fox jumps over the dog.", "Tell me what the weather will be like.", "A person asks, why?")
QUESTIONS = tuple(
    Question(f"{text} {i}", ("The fox jumps.", "A dog asks them.", "The weather"), i % 3)
    for i in range(3)
    for text in DOCUMENTS
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Answerer:
    return load_answerer(tiny_llama(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def hidden(plain: Answerer) -> Answerer:
    """Behind orthogonal keys, which change no norm: equal but for rounding."""
    return obfuscated(plain, SECRET, preset("exact", h=0, lam=0.0))


@pytest.fixture(scope="module")
def english() -> Sanitizer:
    return Sanitizer(load_policy(), epsilon=3.0)


def _all(texts: tuple[str, ...]) -> list[Protected]:
    return [unprotected(text) for text in texts]


def _nothing(texts: tuple[str, ...]) -> list[Protected]:
    return [Protected("x") for _ in texts]


# ---------------------------------------------------------------------------------------------------- model


def test_likelihoods_are_those_of_whole_passes_over_each_text(plain: Answerer) -> None:
    prompt, choices = "Q: why?\nA:", [" The fox", " The fox jumps over the dog.", " A", " Tell me"]
    differences = []
    for choice in choices:
        ids = torch.tensor([plain.tokenizer.encode_text(prompt + choice).ids])
        log_p = plain.model(ids).logits[0].log_softmax(-1)
        differences.append(float(log_p[range(ids.shape[1] - 1), ids[0, 1:]].sum()))
    found = plain.log_likelihoods(prompt, choices)
    assert found - found[0] == pytest.approx(np.array(differences) - differences[0], abs=1e-4)


def test_next_log_probabilities_are_the_last_row_of_a_plain_pass(plain: Answerer) -> None:
    prompts = [text * (1 + i % 3) for i, text in enumerate(DOCUMENTS * 4)]
    found = plain.next_log_probabilities(prompts)
    for prompt, row in zip(prompts, found, strict=True):
        ids = torch.tensor([plain.tokenizer.encode_text(prompt).ids])
        assert row == pytest.approx(plain.model(ids).logits[0, -1].log_softmax(-1).numpy(), abs=1e-3)


def test_answers_do_not_depend_on_what_is_answered_beside_them(plain: Answerer) -> None:
    prompts = [text * (1 + i) for i, text in enumerate(DOCUMENTS * 4)]
    together = plain.respond(prompts, 6)
    assert together == [plain.respond([prompt], 6)[0] for prompt in prompts]
    assert len(set(together)) > 1


def test_an_empty_choice_is_refused(plain: Answerer) -> None:
    with pytest.raises(MisconfiguredError, match="not empty"):
        plain.log_likelihoods("", ["", "b"])


def test_an_obfuscated_model_answers_as_the_plain_one(plain: Answerer, hidden: Answerer) -> None:
    assert not np.array_equal(hidden.hidden_V, plain.hidden_V)
    prompt, choices = "Please tell me", [" the fox", " what the weather will be"]
    assert hidden.log_likelihoods(prompt, choices) == pytest.approx(
        plain.log_likelihoods(prompt, choices), abs=1e-3
    )
    assert hidden.next_log_probabilities([prompt]) == pytest.approx(
        plain.next_log_probabilities([prompt]), abs=1e-3
    )
    assert hidden.respond(list(DOCUMENTS), 8) == plain.respond(list(DOCUMENTS), 8)


# ---------------------------------------------------------------------------------------------------- tasks


def test_rouge_is_the_longest_common_subsequence() -> None:
    assert rouge_l("a b c d", "a b c d") == 1
    assert rouge_l("b x d", "a b c d") == pytest.approx(2 * 2 / 7)
    assert rouge_l("d c b a", "a b c d") == pytest.approx(2 * 1 / 8)
    assert rouge_l("A, b!", "a B") == 1
    assert rouge_l("", "a") == rouge_l("a", "") == rouge_l("...", "!") == 0


def test_plain_documents_score_one_and_lost_ones_no_more_than_the_floor(plain: Answerer) -> None:
    task = Summarise(DOCUMENTS, plain, max_tokens=12)
    assert task.scores(_all(task.texts), plain).tolist() == [1, 1, 1]
    assert task.scores(_nothing(task.texts), plain).mean() < 0.9


def test_placeholders_are_restored_before_a_summary_is_scored(plain: Answerer) -> None:
    class Named(Answerer):
        def respond(self, prompts: list[str], max_tokens: int) -> list[str]:  # type: ignore[override]
            return [prompt.split("\n\n")[1] for prompt in prompts]

    named = Named(plain.model, plain.tokenizer, plain.hidden_V)
    task = Summarise(("Then Ada Lovelace met Babbage in 1833.",), named)
    hide_all = words(Sanitizer(load_policy().with_rules({"word": "placeholder", "stop": "placeholder"})))
    protected = [hide_all(text) for text in task.texts]
    assert "Ada" not in protected[0].text
    assert task.scores(protected, named).tolist() == [1]
    assert task.scores([replace(protected[0], restore=str)], named)[0] < 0.5


def test_the_models_own_choice_is_right_and_a_lost_question_is_chance(plain: Answerer) -> None:
    task = Answers(QUESTIONS, reference=plain)
    assert task.scores(_all(task.texts), plain).tolist() == [1] * len(QUESTIONS)
    lost = Answers(QUESTIONS)
    assert lost.floor == pytest.approx(1 / 3)
    # One and the same choice every time is right for a third of these questions.
    assert lost.scores(_nothing(lost.texts), plain).mean() == pytest.approx(1 / 3)


def test_a_likely_choice_is_not_preferred_when_calibrated(plain: Answerer) -> None:
    question = Question("", ("The fox jumps.", "A dog asks them."), 0)
    for answer in (0, 1):  # an empty text says nothing: both choices gain nothing, and a tie is not right
        task = Answers((replace(question, answer=answer),), calibrated=True)
        assert task.scores(_all(task.texts), plain).tolist() == [0]


def test_choices_show_the_placeholders_of_their_question(english: Sanitizer) -> None:
    protected = words(english)("We asked Zorblatt about 1912.")
    assert "Zorblatt" not in protected.text
    hidden = protected.hide("Zorblatt was born in 1912, not 19123.")
    assert "Zorblatt" not in hidden
    assert protected.restore(hidden) == "Zorblatt was born in 1912, not 19123."
    assert "19123" in hidden


def test_classes_are_told_apart_plain_and_not_when_everything_is_replaced(plain: Answerer) -> None:
    rows = [(f"the fox {i}", 0) if i % 2 else (f"A person asks them {i}", 1) for i in range(40)]
    task = Classify(tuple(rows[:20]), tuple(rows[20:]))
    assert task.scores(_all(task.texts), plain).mean() == 1
    assert task.scores(_nothing(task.texts), plain).mean() == task.floor == 0.5


def test_given_features_are_used_instead_of_the_model(plain: Answerer) -> None:
    rows = tuple((f"{i}", int(i > 20)) for i in range(41))
    task = Classify(rows, rows, features=lambda texts: np.array([[float(text)] for text in texts]))
    assert task.scores(_all(task.texts), plain).mean() > 0.9


def test_an_encoder_pools_over_tokens_and_not_over_padding(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    files = load(folder)
    assert files.tokenizer is not None
    encoded = files.tokenizer.tokenizer.encode_batch([*DOCUMENTS, "fox"])
    together = encoder_of(files).embed(tuple(tuple(one.ids[1:-1]) for one in encoded))
    for one, row in zip(encoded, together, strict=True):
        mean = files.model.base_model(torch.tensor([one.ids])).last_hidden_state[0].mean(dim=0)
        assert row.numpy() == pytest.approx((mean / mean.norm()).numpy(), abs=1e-4)


def test_the_classifier_finds_three_classes_and_refuses_one() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([3, 5, 9], 40)
    features = rng.normal(size=(120, 4)) + 6 * np.eye(4)[np.searchsorted([3, 5, 9], labels)]
    assert np.mean(fitted(features, labels)(features) == labels) > 0.95
    with pytest.raises(MisconfiguredError, match="two classes"):
        fitted(features, np.zeros(120, dtype=np.int64))


# -------------------------------------------------------------------------------------------- the frontier


def test_both_modes_get_the_same_protected_text_and_score_alike(
    plain: Answerer, hidden: Answerer, english: Sanitizer
) -> None:
    tasks = (Summarise(DOCUMENTS, plain, max_tokens=8), Answers(QUESTIONS, calibrated=True))
    recovery = share("bayes", "token recovery", hits=30, n=100, baseline=0.1, cost_s=0)
    settings = (Setting("plain text", unprotected), Setting("epsilon 3", words(english), recovery))
    shares: list[float] = []
    made = frontier(tasks, settings, {"words": plain, "words+obfuscated": hidden}, shares.append)
    assert shares == [i / 8 for i in range(1, 9)]
    for one, other in zip(made.points[::2], made.points[1::2], strict=True):
        assert (one.label, other.label) == ("words", "words+obfuscated")
        assert (one.task, one.setting, one.recovery) == (other.task, other.setting, other.recovery)
        assert one.utility == pytest.approx(other.utility, abs=1e-9)
    by_setting = {(point.task, point.setting): point for point in made.points}
    assert by_setting["summarise", "plain text"].utility == 1
    assert by_setting["summarise", "plain text"].recovery_low == 1
    assert by_setting["answers", "epsilon 3"].recovery == 0.3


def test_a_point_without_its_recovery_is_refused(plain: Answerer) -> None:
    setting = Setting("epsilon 1", unprotected, not_run("bayes", "token recovery", "no text"))
    with pytest.raises(MisconfiguredError, match="epsilon 1"):
        frontier((Answers(QUESTIONS[:1]),), (setting,), {"words": plain})


# ---------------------------------------------------------------------------------------------------- files


def test_tasks_are_read_from_files(plain: Answerer, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("label\tsentence\n" + '1\tgood "film\n0\tbad\n' * 10, "utf-8")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"document": text}) + "\n" for text in DOCUMENTS))
    (tmp_path / "c.csv").write_text("statement,label\n" + '"Foxes, they jump.",1\nNo.,0\n' * 2)
    (tmp_path / "d.csv").write_text("Question,Best Answer,Incorrect Answers\n" + "Why?,Yes,No; Never\n" * 3)
    classify = read_task(f"classify:{tmp_path / 'a.tsv'}", plain, items=5)
    assert isinstance(classify, Classify)
    assert (len(classify.train), len(classify.test)) == (5, 5)
    assert {label for text, label in classify.train if text == 'good "film'} == {1}
    summarise = read_task(f"summarize:{tmp_path / 'b.jsonl'}", plain)
    assert sorted(summarise.texts) == sorted(DOCUMENTS)
    true_false = read_task(f"answers:{tmp_path / 'c.csv'}", plain)
    assert isinstance(true_false, Answers)
    assert {(q.text, q.answer) for q in true_false.questions} == {("Foxes, they jump.", 1), ("No.", 0)}
    multiple = read_task(f"answers:{tmp_path / 'd.csv'}", plain)
    assert isinstance(multiple, Answers)
    assert multiple.questions[0].choices == ("Yes", "No", "Never")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("guess:a.tsv", "is no task"),
        ("classify", "is no task"),
        ("classify:absent.tsv", "cannot be read"),
        ("classify:a.txt", "has no columns"),
        ("classify:short.tsv", "three or more"),
        ("answers:wrong.csv", "lacks a column"),
        ("summarize:wrong.jsonl", "lacks a column"),
        ("summarize:broken.jsonl", "no JSON object"),
        ("summarize:list.jsonl", "no JSON object"),
    ],
)
def test_unusable_files_are_refused_without_their_text(
    plain: Answerer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("secret")
    Path("short.tsv").write_text("label\tsentence\n1\tsecret\n")
    Path("wrong.csv").write_text("statement,label\n" + "secret,perhaps\n" * 4)
    Path("wrong.jsonl").write_text('{"text": "secret"}\n' * 4)
    Path("broken.jsonl").write_text("{secret\n" * 4)
    Path("list.jsonl").write_text('["secret"]\n' * 4)
    with pytest.raises(MisconfiguredError, match=message) as refused:
        read_task(place, plain)
    assert "secret" not in str(refused.value)
