"""The frontier: what protected text is still good for against what the strongest attacker reads of it.

    TRANSOM_DATA=DIR python benchmarks/audit_utility.py [--quick] [--json] [--parts PART ...] [--preset NAME]

Words at epsilon 1, 3 and 8 beside plain text, each through the plain model and through an obfuscated copy
(words+obfuscated), which get the same protected texts. Tasks: SST-2 by a linear classifier on protected
training sentences, over a frozen MiniLM (words only: nothing to obfuscate) and over the model's next-token
log-probabilities; XSum summaries, ROUGE-L against the plain model's own summary of the plain document;
true/false statements and TruthfulQA (MC1) by likelihood, scored as the plain model's own choice on plain text
and as the right choice. `floor` is what guessing scores.

`recovery` is the better of exact Bayes and contextual Bayes (trigrams) on the same texts, drawn once more;
the attacker knows mechanism and groups and owns other text of the same corpus. Beside words+obfuscated it is
counted as if the host, which may own the base model, had undone the obfuscation. Intervals: over items, 95 %.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _bench import RESULTS, parser, report
from transom.audit.attacks import bayes, contextual
from transom.audit.attacks.sentences import encoder_of
from transom.audit.attacks.word_text import observe, own_sentences
from transom.audit.attacks.words import mounted
from transom.audit.utility.files import TRUE_OR_FALSE, multiple_choice, statement
from transom.audit.utility.frontier import Setting, frontier
from transom.audit.utility.model import Answerer, load_answerer, obfuscated
from transom.audit.utility.protect import unprotected, words
from transom.audit.utility.tasks import Answers, Classify, Question, Summarise, Task
from transom.checkpoint.load import load
from transom.obfuscation.keys import PRESETS, preset
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.report.finding import Finding

PARTS = ("sst2", "xsum", "true_false", "truthfulqa")
SHOWN = ("task", "label", "setting", "recovery", "utility", "utility_low", "utility_high")
SECRET = bytes(32)  # a benchmark's key need not be secret, and a fixed one repeats


@dataclass(frozen=True)
class Sizes:
    """Items a task; `train` sentences for the classifier over MiniLM, `few` for that over the model; `chars`
    of a document, `tokens` of a summary; `other` texts of the attacker's own."""

    epsilons: tuple[float, ...] = (1.0, 3.0, 8.0)
    other: int = 6000
    train: int = 800
    test: int = 872
    few: int = 120
    documents: int = 16
    chars: int = 1200
    tokens: int = 48
    statements: int = 150
    questions: int = 100


QUICK = Sizes(
    (3.0,), other=300, train=40, test=20, few=8, documents=2, chars=300, tokens=8, statements=4, questions=3
)


@dataclass(frozen=True)
class Corpus:
    """Tasks on the same kind of text, what they share as texts, and other text of the corpus."""

    tasks: tuple[Task, ...]
    other: tuple[str, ...] = field(repr=False)
    obfuscated: bool = True  # whether the tasks also run through the obfuscated model


class Remembering(Answerer):
    """Asks the model once for what two tasks ask."""

    @cache  # noqa: B019 (it lives as long as the benchmark)
    def _likelihoods(self, prompt: str, choices: tuple[str, ...]) -> NDArray[np.float64]:
        return super().log_likelihoods(prompt, choices)

    def log_likelihoods(self, prompt: str, choices: Sequence[str]) -> NDArray[np.float64]:
        return self._likelihoods(prompt, tuple(choices)).copy()


def data_folder() -> Path:
    if "TRANSOM_DATA" not in os.environ:
        sys.exit("set TRANSOM_DATA to the folder that holds sst2/, xsum/, true_false/ and truthfulqa/")
    return Path(os.environ["TRANSOM_DATA"])


def shuffled(rows: Sequence[Any]) -> list[Any]:
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def table(path: str, delimiter: str = ",") -> list[dict[str, str]]:
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    with (data_folder() / path).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter, quoting=quoting))


def sst2(sizes: Sizes) -> list[Corpus]:
    """Over the frozen encoder with many sentences, and over the model's own features with few."""
    everything = shuffled([(r["sentence"], int(r["label"])) for r in table("sst2/train.tsv", "\t")])
    train = tuple(row for row in everything if len(row[0].split()) >= 6)[: sizes.train]
    dev = tuple(shuffled([(r["sentence"], int(r["label"])) for r in table("sst2/dev.tsv", "\t")]))
    other = tuple(text for text, _ in everything[len(everything) // 2 :])
    frozen = Classify(train, dev[: sizes.test], "SST-2 (MiniLM)", features=minilm)
    model = Classify(train[: sizes.few], dev[: sizes.few], "SST-2")
    return [Corpus((frozen,), other, obfuscated=False), Corpus((model,), other)]


@cache
def encoder() -> tuple[Any, Any]:
    """The packaged MiniLM, and its tokenizer."""
    checkpoint = load("minilm")
    return encoder_of(checkpoint), checkpoint.tokenizer.tokenizer


def minilm(sentences: Sequence[str]) -> NDArray[np.float64]:
    """Embeddings of sentences, of 126 tokens at most."""
    model, tokenizer = encoder()
    encoded = tokenizer.encode_batch(list(sentences), add_special_tokens=False)
    return model.embed(tuple(tuple(one.ids[:126]) for one in encoded)).double().numpy()


def xsum(sizes: Sizes, plain: Answerer) -> Corpus:
    lines = (data_folder() / "xsum" / "xsum-1000.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line)["document"][: sizes.chars] for line in shuffled(lines)]
    task = Summarise(tuple(documents[: sizes.documents]), plain, "XSum summaries", max_tokens=sizes.tokens)
    lines = "\n".join(documents[sizes.documents :]).splitlines()
    return Corpus((task,), tuple(lines))


def answers(name: str, questions: list[Question], count: int, plain: Answerer, **options: Any) -> Corpus:
    """The model's own choice, and the right one, on the same questions."""
    right = Answers(tuple(questions[:count]), f"{name}, right choice", **options)
    own = replace(right, name=f"{name}, own choice", reference=plain)
    return Corpus((own, right), tuple(question.text for question in questions[count:]))


def true_false() -> list[Question]:
    names = ("animals", "capitals", "cities", "elements", "facts", "inventions")
    rows = [row for name in names for row in shuffled(table(f"true_false/{name}.csv"))[:500]]
    return [statement(row) for row in shuffled(rows)]


def corpora(sizes: Sizes, plain: Answerer) -> dict[str, Callable[[], list[Corpus]]]:
    def truthful_qa() -> list[Corpus]:
        questions = [multiple_choice(row) for row in shuffled(table("truthfulqa/TruthfulQA.csv"))]
        return [answers("TruthfulQA", questions, sizes.questions, plain)]

    def statements() -> list[Corpus]:
        options = {"prompt": TRUE_OR_FALSE, "calibrated": True}
        return [answers("true/false", true_false(), sizes.statements, plain, **options)]

    return {
        "sst2": lambda: sst2(sizes),
        "xsum": lambda: [xsum(sizes, plain)],
        "true_false": statements,
        "truthfulqa": truthful_qa,
    }


def recoveries(corpus: Corpus, sizes: Sizes, sanitizer: Sanitizer) -> list[Finding]:
    """What each attacker reads of a corpus' texts."""
    assert sanitizer.mechanism is not None
    policy = sanitizer.policy
    seen, plain = observe(sanitizer, corpus.tasks[0].texts)
    own = own_sentences(policy, shuffled(corpus.other)[: sizes.other])
    given = mounted(policy.words, sanitizer.mechanism, seen, plain, own, policy.prior_V)
    return [attack.attack(*given, 120.0) for attack in (bayes, contextual)]


def settings(corpus: Corpus, sizes: Sizes) -> tuple[list[Setting], list[dict[str, Any]]]:
    """Plain text and words at each epsilon beside the strongest attack, and every attack's figures.

    Two tasks on one text get the same draw of it.
    """
    made, rows = [Setting("plain text", unprotected)], []
    for epsilon in sizes.epsilons:
        sanitizer = Sanitizer(load_policy(), epsilon=epsilon)
        found = recoveries(corpus, sizes, sanitizer)
        strongest = max(found, key=lambda each: each.value or 0.0)
        made.append(Setting(f"epsilon {epsilon:g}", cache(words(sanitizer)), strongest))
        shown = ("value", "low", "high", "baseline", "n", "note", "reason")
        rows += [
            {"texts": corpus.tasks[0].name, "epsilon": epsilon, "attack": each.name}
            | {name: getattr(each, name) for name in shown}
            for each in found
        ]
    return made, rows


def plot(rows: Sequence[dict[str, Any]], floors: dict[str, float]) -> None:
    """One panel a task: utility over recovery, a line a mode, guessing dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, -(-len(floors) // 2), figsize=(14, 8), sharex=True, layout="constrained")
    for axis, (task, floor) in zip(axes.flat, floors.items(), strict=False):
        axis.axhline(floor, linestyle="--", color="grey", label="guessing")
        for label in ("words", "words+obfuscated"):
            line = [row for row in rows if (row["task"], row["label"]) == (task, label)]
            if line:
                x, y = ([row[name] for row in line] for name in ("recovery", "utility"))
                reach = [
                    [abs(row[f"utility_{end}"] - row["utility"]) for row in line] for end in ("low", "high")
                ]
                axis.errorbar(x, y, reach, marker="o", capsize=3, label=label)
        axis.set(title=task, xlabel="drawn words recovered by the attacker", ylabel="utility", ylim=(0, 1.02))
        axis.legend(fontsize=8)
    figure.savefig(RESULTS / "audit_utility.svg")


def measure_part(made: Sequence[Corpus], sizes: Sizes, models: dict[str, Answerer]) -> dict[str, Any]:
    """The points of some corpora, what guessing scores on their tasks, and every attack's figures."""
    part: dict[str, Any] = {"floors": {}, "points": [], "attacks": []}
    for corpus in made:
        started = time.monotonic()
        sweep, found = settings(corpus, sizes)
        run_by = models if corpus.obfuscated else {"words": models["words"]}
        part["points"] += [asdict(point) for point in frontier(corpus.tasks, sweep, run_by).points]
        part["attacks"] += found
        part["floors"] |= {task.name: task.floor for task in corpus.tasks}
        print(f"{corpus.tasks[0].name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return part


def main() -> None:
    """Measure every part, setting and mode; print the table, store record and plot."""
    flags = parser(__doc__)
    flags.add_argument("--model", default="smollm2", help="a directory, a .gguf file, a hub name or smollm2")
    flags.add_argument("--preset", default="exact", choices=list(PRESETS), help="of the obfuscated copy")
    flags.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="others stay as stored")
    args = flags.parse_args()
    data_folder()
    import torch

    torch.set_num_threads(1)
    sizes = QUICK if args.quick else Sizes()
    loaded = load_answerer(args.model, device=args.device)
    plain, hidden = (
        Remembering(one.model, one.tokenizer, one.hidden_V)
        for one in (loaded, obfuscated(loaded, SECRET, preset(args.preset)))
    )
    models = {"words": plain, "words+obfuscated": hidden}
    stored = RESULTS / "audit_utility.json"
    parts = {}
    if stored.exists() and not args.quick:
        parts = json.loads(stored.read_text(encoding="utf-8"))["parts"]
    for name in args.parts:
        part = measure_part(corpora(sizes, plain)[name](), sizes, models)
        parts[name] = {"model": args.model, "preset": args.preset, "items": asdict(sizes)} | part
        rows = [row for each in parts.values() for row in each["points"]]
        if not args.quick:
            plot(rows, {k: v for each in parts.values() for k, v in each["floors"].items()})
        report("audit_utility", {"parts": parts}, [{name: row[name] for name in SHOWN} for row in rows], args)


if __name__ == "__main__":
    main()
