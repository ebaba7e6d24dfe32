"""Accuracy against what the Bayes attacker recovers: Transom's words, CUSTEXT+ and SANTEXT+ on SST-2.

    python benchmarks/vectors.py --glove glove.6B.50d.txt --out vectors.txt
    TRANSOM_DATA=DIR python benchmarks/words_sst2.py --embeddings vectors.txt --wordnet DIR

MiniLM is fine-tuned and tested on sanitised text (full SST-2 dev set, 872 sentences; a second task that is
not sentiment: the topic of the true/false statements). Epsilons of different methods are different things,
so methods are compared at equal *measured* success of the exact Bayes attacker, who knows the mechanism, the
group (where there are groups) and the unigram distribution of the training text; passed tokens, punctuation
included, count as recovered. For each compared method the parameter is searched so that the success meets
each of three levels. All methods share tokeniser, vectors, vocabulary and the rule for words outside it (one
placeholder).

Gains are differences of mean accuracy over the seeds (six, or --seeds) with a 95 % bootstrap interval, paired
over sentences and seeds. Each trained setting is kept in --cache, so an interrupted run resumes; --worker
shares the work. An empty cache is needed after a change of vectors or of this script. `rnm-laplace` is left
out: its tables take ten seconds at each parameter that is tried.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from _bench import RESULTS, need, parser, report
from _classify import correct_answers
from transom.privacy.build import build_policy
from transom.privacy.lexicon import Vectors, read_vectors
from transom.privacy.mechanisms import build
from transom.privacy.partition import Partition, WordMechanism
from transom.privacy.policy import Policy, load_policy
from transom.privacy.relaxed import DistanceMechanism

LEVELS = (0.66, 0.70, 0.75)
UNKNOWN = "[UNK]"
MAX_PASS_SHARE = 0.50
TRAIN_SENTENCES = 5_000
SEEDS = 6
OURS = "rnm"
COMPARED = (OURS, "custext+", "santext+")
SANTEXT_KEEP = 0.8  # 1 - p of the paper
GROUP_SIZE = 20  # CUSTEXT's K


# ---------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Task:
    """A labelled corpus, split once; `counts` are the training text's unigrams (the attacker's prior)."""

    name: str
    train: list[tuple[list[str], int]] = field(repr=False)
    test: list[tuple[list[str], int]] = field(repr=False)
    counts: Counter[str] = field(repr=False)


def tokens_of(text: str) -> list[str]:
    """Lower-case words, with SST-2's split contractions kept whole, and runs of everything else."""
    return re.findall(r"[a-z]*n't|'[a-z]+|\w+|[^\w\s]+", text.lower())


def data_folder() -> Path:
    if "TRANSOM_DATA" not in os.environ:
        sys.exit("set TRANSOM_DATA to the folder that holds sst2/ and true_false/")
    return Path(os.environ["TRANSOM_DATA"])


def sst2(train_sentences: int) -> Task:
    def read(name: str) -> list[tuple[list[str], int]]:
        lines = (data_folder() / "sst2" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]
        return [(tokens_of(text), int(label)) for label, text in (line.split("\t") for line in lines)]

    everything = read("train")
    counts = Counter(token for tokens, _ in everything for token in tokens)
    sentences = [row for row in everything if len(row[0]) >= 6]
    order = np.random.default_rng(0).permutation(len(sentences))[:train_sentences]
    return Task("sst2", [sentences[i] for i in order], read("dev"), counts)


def topics(train_sentences: int) -> Task:
    """Which of six topics a true/false statement belongs to; 1,000 statements are held out."""
    rows: list[tuple[list[str], int]] = []
    names = ("animals", "capitals", "elements", "facts", "inventions", "cities")
    for label, name in enumerate(names):
        with (data_folder() / "true_false" / f"{name}.csv").open(encoding="utf-8", newline="") as lines:
            rows += [(tokens_of(row["statement"]), label) for row in list(csv.DictReader(lines))[:1_500]]
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = [rows[i] for i in order]
    train = shuffled[1_000 : 1_000 + train_sentences]
    return Task(
        "topic", train, shuffled[:1_000], Counter(t for tokens, _ in shuffled[1_000:] for t in tokens)
    )


# ------------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Method:
    """One way to sanitise: a mechanism over a vocabulary, and the words that pass."""

    name: str
    words: tuple[str, ...] = field(repr=False)
    passing: frozenset[str] = field(repr=False)
    make: Callable[[float], WordMechanism] = field(repr=False)

    def ids(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}


@dataclass(frozen=True)
class Exposure:
    """What the attacker gets from one mechanism on one corpus, in shares of all tokens."""

    bayes_success: float
    bayes_chance: float
    pass_share: float


def exposure(method: Method, mechanism: WordMechanism, counts: Counter[str]) -> Exposure:
    """Exact Bayes success over the corpus' unigram distribution.

    Passed tokens count as recovered; every unknown word as a guess at the likeliest unknown word.
    """
    ids = method.ids()
    prior_V = np.zeros(len(method.words))
    total = sum(counts.values())
    passed = unknown = likeliest_unknown = 0
    for token, count in counts.items():
        if token in method.passing or not any(c.isalnum() for c in token):
            passed += count
        elif token in ids:
            prior_V[ids[token]] += count
        else:
            unknown += count
            likeliest_unknown = max(likeliest_unknown, count)
    attack = mechanism.bayes(prior_V)
    share = prior_V.sum() / total
    own_pass = float(prior_V @ pass_rates(mechanism, len(prior_V))) / total
    fixed = (passed + likeliest_unknown) / total
    return Exposure(fixed + share * attack.success, fixed + share * attack.chance, passed / total + own_pass)


def pass_rates(mechanism: WordMechanism, words: int) -> NDArray[np.float64]:
    """Probability [V] that the mechanism itself lets a word pass unsanitised (SANTEXT+ does)."""
    if isinstance(mechanism, DistanceMechanism):
        return np.where(mechanism.sensitive_V, 0.0, mechanism.keep)
    return np.zeros(words)


def sanitise(
    method: Method, mechanism: WordMechanism, rows: Iterable[tuple[list[str], int]]
) -> list[tuple[str, int]]:
    """Every sentence with its words drawn anew; one vectorised call for all of them."""
    ids = method.ids()
    sentences = [(list(tokens), label) for tokens, label in rows]
    places, inputs = [], []
    for sentence, (tokens, _) in enumerate(sentences):
        for position, token in enumerate(tokens):
            if token in method.passing or not any(c.isalnum() for c in token):
                continue
            if token in ids:
                places.append((sentence, position))
                inputs.append(ids[token])
            else:
                tokens[position] = UNKNOWN
    for (sentence, position), output in zip(places, mechanism.sample(np.array(inputs)).tolist(), strict=True):
        sentences[sentence][0][position] = method.words[output]
    return [(" ".join(tokens), label) for tokens, label in sentences]


@dataclass(frozen=True)
class Materials:
    """The public resources every method shares."""

    policies: dict[bool, Policy]  # polarity-coherent groups or not
    vectors: Vectors


def materials(args: argparse.Namespace) -> Materials:
    """The shipped policy, the same words without polarity, and the vectors."""
    shipped = load_policy(None)
    with tempfile.TemporaryDirectory() as folder:
        names, out = Path(folder) / "names", Path(folder) / "plain.safetensors"
        names.write_text("\n".join(sorted(shipped.names)), encoding="utf-8")
        size = len(shipped.words)
        plain = build_policy(args.embeddings, out, wordnet=args.wordnet, names=[names], vocabulary_size=size)
    return Materials({True: shipped, False: plain}, read_vectors(args.embeddings, 200_000))


def vectors_for(words: Sequence[str], vectors: Vectors) -> NDArray[np.float32]:
    """Vectors [V, E] of the words; the few function words that have none get the zero vector."""
    row = {word: index for index, word in enumerate(vectors.words)}
    out = np.zeros((len(words), vectors.vectors_VE.shape[1]), dtype=np.float32)
    for index, word in enumerate(words):
        if word in row:
            out[index] = vectors.vectors_VE[row[word]]
    return out


# ------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Setting:
    """One row of the table: a method at one parameter (or at one level of Bayes success) on one task."""

    task: str
    method: str
    polarity: bool = True
    level: float | None = None
    parameter: float | None = None
    seeds: int = 1


def settings(seeds: int) -> list[Setting]:
    """The whole table; the rows that decide come first and get `seeds` seeds each."""
    low, middle, high = LEVELS
    rows = [
        Setting("sst2", method, level=level, seeds=seeds)
        for level in (middle, low, high)
        for method in COMPARED
    ]
    rows += [Setting("sst2", "plain", seeds=3), Setting("topic", "plain")]
    rows += [Setting("topic", method, level=level) for level in LEVELS for method in COMPARED]
    rows += [
        Setting(task, "random-in-group", polarity=coherent, parameter=0.0)
        for task, coherent in (("sst2", True), ("sst2", False), ("topic", True))
    ]
    rows += [Setting("sst2", OURS, polarity=False, level=level) for level in (middle, low, high)]
    rows += [Setting("sst2", OURS, parameter=epsilon) for epsilon in (1.0, 3.0, 8.0)]
    rows += [Setting("sst2", method, level=middle) for method in ("krr", "em", "optimal", "tem")]
    return rows


def method_for(setting: Setting, materials: Materials, task: Task) -> Method:
    """The method of a row. All share the policy's vocabulary and the words that pass."""
    policy = materials.policies[setting.polarity]
    words, passing = tuple(policy.words), frozenset(policy.pass_words)
    options: dict[str, Any] = {}
    space: Any = policy.partition
    if setting.method == "santext+":
        # Function words belong to its vocabulary; no more tokens pass than MAX_PASS_SHARE.
        words, passing = words + tuple(sorted(passing)), frozenset()
        frequency_V = public_frequency(words, materials.vectors)
        share = sensitive_share(words, frequency_V, task.counts)
        options = {"frequency_V": frequency_V, "keep": SANTEXT_KEEP, "sensitive_share": share}
        space = vectors_for(words, materials.vectors)
    elif setting.method == "tem":
        space = vectors_for(words, materials.vectors)
        options = {"gamma": float(np.quantile(sampled_distances(space), 0.05))}
    elif setting.method == "custext+":
        words, space = greedy_groups(words, vectors_for(words, materials.vectors))
    return Method(
        setting.method, words, passing, lambda epsilon: build(setting.method, space, epsilon, **options)
    )


def public_frequency(words: Sequence[str], vectors: Vectors) -> NDArray[np.float64]:
    """Zipf frequency [V] from the rank in the embedding file; the rarest rank for words not in it."""
    rank = {word: index for index, word in enumerate(vectors.words)}
    return np.array([1.0 / (2.7 + rank.get(word, len(rank))) for word in words])


def sensitive_share(words: Sequence[str], frequency_V: NDArray[np.float64], counts: Counter[str]) -> float:
    """SANTEXT+'s share of sensitive types at which at most MAX_PASS_SHARE of all tokens pass."""
    total = sum(counts.values())
    punctuation = sum(count for token, count in counts.items() if not any(c.isalnum() for c in token))
    order = np.argsort(-frequency_V, kind="stable")
    passing_V = SANTEXT_KEEP * np.cumsum([counts.get(words[i], 0) for i in order])
    return 1.0 - int(np.searchsorted(passing_V, MAX_PASS_SHARE * total - punctuation)) / len(words)


def greedy_groups(words: Sequence[str], vectors_VE: NDArray[np.float32]) -> tuple[tuple[str, ...], Partition]:
    """CUSTEXT's groups: the next word and its nearest words that are still free, GROUP_SIZE in all."""
    unit_VE = vectors_VE / (np.linalg.norm(vectors_VE, axis=1, keepdims=True) + 1e-12)
    rank = np.arange(len(words))
    free, groups = rank, []
    while len(free):
        size = GROUP_SIZE if len(free) >= GROUP_SIZE + 2 else len(free)
        nearest = np.argsort(-(unit_VE[free] @ unit_VE[free[0]]), kind="stable")[:size]
        groups.append(free[nearest])
        free = np.delete(free, nearest)
    order = np.concatenate(groups)
    cosines = [np.clip((1 + unit_VE[g] @ unit_VE[g].T) / 2, 0, 1) for g in groups]
    scores_S = np.concatenate([np.rint(c * 255).astype(np.uint8).ravel() for c in cosines])
    starts_G1 = np.concatenate([[0], np.cumsum([len(g) for g in groups])]).astype(np.int32)
    return tuple(words[i] for i in order), Partition(starts_G1, scores_S)


def sampled_distances(vectors_VE: NDArray[np.float32]) -> NDArray[np.float64]:
    """Distances of 20,000 random pairs of words (public vectors; the seed only picks pairs)."""
    pairs = np.random.default_rng(0).integers(0, len(vectors_VE), size=(2, 20_000))
    return np.linalg.norm(vectors_VE[pairs[0]] - vectors_VE[pairs[1]], axis=1)


def parameter_for(method: Method, counts: Counter[str], level: float) -> float:
    """The parameter at which the attacker's success is `level` within 0.001 (bisection on a log scale)."""
    low, high = np.log(0.01), np.log(300.0 if method.name == "tem" else 39.0)
    for _ in range(14):
        middle = (low + high) / 2
        success = exposure(method, method.make(float(np.exp(middle))), counts).bayes_success
        if abs(success - level) < 0.001:
            break
        low, high = (middle, high) if success < level else (low, middle)
    return float(np.exp(middle))


# ---------------------------------------------------------------------------------------------------- rows


class Store:
    """Outcomes by key, one small JSON file each, so that an interrupted run resumes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """The stored outcome of `key`, computed and stored first if need be."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
        path = self.folder / f"{name}.json"
        if not path.exists():
            scratch = path.with_suffix(f".{os.getpid()}")
            scratch.write_text(json.dumps({"key": key, "value": compute()}), encoding="utf-8")
            scratch.rename(path)
        return json.loads(path.read_text(encoding="utf-8"))["value"]


@dataclass(frozen=True)
class Bench:
    """What every row needs."""

    materials: Materials
    tasks: dict[str, Task]
    store: Store
    device: str

    def key(self, setting: Setting, **more: Any) -> dict[str, Any]:
        """Whatever changes an outcome is part of its key; the number of seeds does not."""
        policy = self.materials.policies[setting.polarity]
        content = "\n".join(policy.words).encode() + policy.partition.scores_S.tobytes()
        key = asdict(setting) | {"policy": hashlib.sha256(content).hexdigest()}
        del key["seeds"]
        task = self.tasks[setting.task]
        return key | {"train": len(task.train), "test": len(task.test)} | more

    def row(self, setting: Setting) -> dict[str, Any]:
        """Everything about one row: the attacker's figures first (exact), then the trained seeds."""
        figures: dict[str, Any] = {}
        if setting.method != "plain":
            figures = self.store.get(self.key(setting), lambda: self.figures(setting))
        correct = [self.correct(setting, figures, seed) for seed in range(setting.seeds)]
        return asdict(setting) | figures | {"accuracy": float(np.mean(correct)), "correct": correct}

    def figures(self, setting: Setting) -> dict[str, Any]:
        """The exact figures of a row: the attacker's success, epsilons, outputs used."""
        task = self.tasks[setting.task]
        method = method_for(setting, self.materials, task)
        parameter = setting.parameter
        if parameter is None:
            parameter = parameter_for(method, task.counts, setting.level or 0.0)
        mechanism = method.make(parameter)
        exact = mechanism.exact_epsilon()
        return asdict(exposure(method, mechanism, task.counts)) | {
            "nominal_epsilon": parameter,
            "exact_epsilon": "inf" if np.isinf(exact) else exact,
            "outputs_used": outputs_used(method, mechanism, task.counts),
        }

    def correct(self, setting: Setting, figures: dict[str, Any], seed: int) -> list[bool]:
        """Which test sentences are classified rightly after training on freshly sanitised text."""
        task = self.tasks[setting.task]

        def compute() -> list[bool]:
            if setting.method == "plain":
                train, test = (
                    [(" ".join(t), label) for t, label in rows] for rows in (task.train, task.test)
                )
            else:
                method = method_for(setting, self.materials, task)
                mechanism = method.make(figures["nominal_epsilon"])
                train, test = (sanitise(method, mechanism, rows) for rows in (task.train, task.test))
            return correct_answers(train, test, seed=seed, device=self.device).tolist()

        return self.store.get(self.key(setting, seed=seed), compute)


def outputs_used(method: Method, mechanism: WordMechanism, counts: Counter[str], sampled: int = 300) -> float:
    """Effective number of outputs of a word (exponential of the row's entropy), averaged over tokens."""
    weight_V = np.array([counts.get(word, 0) for word in method.words], dtype=np.float64)
    chosen = np.random.default_rng(0).choice(len(weight_V), size=sampled, p=weight_V / weight_V.sum())
    sizes = []
    for word in chosen.tolist():
        p = mechanism.row(word)[1] / 2.0**64
        p = p[p > 0]
        sizes.append(float(np.exp(-(p * np.log(p)).sum())))
    return float(np.mean(sizes))


# --------------------------------------------------------------------------------------------------- gains


def gains(rows: list[dict[str, Any]], task: str, against: str) -> list[dict[str, Any]]:
    """Per level: our mean accuracy minus theirs, with a paired bootstrap over sentences and seeds."""

    def row(method: str, level: float) -> dict[str, Any]:
        wanted = (task, method, level, True)
        return next(r for r in rows if (r["task"], r["method"], r["level"], r["polarity"]) == wanted)

    out = []
    for level in LEVELS:
        ours, theirs = row(OURS, level), row(against, level)
        # Seeds x sentences, paired on both.
        difference = np.array(ours["correct"], dtype=float) - np.array(theirs["correct"], dtype=float)
        rng, (seeds, items) = np.random.default_rng(0), difference.shape
        draws = [
            difference[rng.integers(0, seeds, seeds)][:, rng.integers(0, items, items)].mean()
            for _ in range(4_000)
        ]
        low, high = np.quantile(draws, (0.025, 0.975))
        figures = {"gain": difference.mean(), "gain_low": low, "gain_high": high}
        # A method whose chance lies above the level cannot be compared there.
        reached = all(abs(r["bayes_success"] - level) < 0.005 for r in (ours, theirs))
        out.append({"level": level, "reached": reached} | {k: float(v) for k, v in figures.items()})
    return out


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The frontier: accuracy over Bayes success, one line a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for axis, task in zip(axes, ("sst2", "topic"), strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in (row for row in rows if row["task"] == task):
            if row["method"] == "plain":
                axis.axhline(row["accuracy"], linestyle="--", color="grey", label="plain text")
                continue
            name = row["method"] + ("" if row["polarity"] else ", no polarity")
            lines.setdefault(name, []).append((row["bayes_success"], row["accuracy"]))
        for name, points in lines.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        axis.set(title=task, xlabel="tokens recovered by the exact Bayes attacker", ylabel="accuracy")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Compute the rows, print the table, store the record."""
    flags = parser(__doc__)
    flags.add_argument("--embeddings", type=Path, required=True, help="word vectors, GloVe text format")
    flags.add_argument("--wordnet", type=Path, help="folder of WordNet 3.0 database files")
    flags.add_argument("--cache", type=Path, default=Path("work/words_sst2"), help="where outcomes are kept")
    flags.add_argument("--seeds", type=int, default=SEEDS, help="of the rows that decide")
    flags.add_argument("--worker", default="0/1", help="i/n: compute every n-th row only, to share the work")
    args = flags.parse_args()
    folder = data_folder()
    need(
        {
            "sentences": folder / "sst2/train.tsv",
            "statements": folder / "true_false",
            "word vectors": args.embeddings,
            "WordNet 3.0": args.wordnet,
        }
    )
    tasks = {"sst2": sst2(TRAIN_SENTENCES), "topic": topics(3_000)}
    todo = settings(args.seeds)
    if args.quick:
        tasks = {name: replace(t, train=t.train[:160], test=t.test[:100]) for name, t in tasks.items()}
        todo = [Setting("sst2", "plain"), Setting("sst2", OURS, parameter=3.0)]
    bench = Bench(materials(args), tasks, Store(args.cache), args.device)
    worker, workers = map(int, args.worker.split("/"))
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        for setting in progress.track(todo[worker::workers], description="rows"):
            rows.append(bench.row(setting))
            print({k: v for k, v in rows[-1].items() if k != "correct"}, file=sys.stderr, flush=True)
    if workers > 1:
        print("this worker's rows are stored; run without --worker for the table", file=sys.stderr)
        return
    record: dict[str, Any] = {
        "rows": [{k: v for k, v in row.items() if k != "correct"} for row in rows],
        "plain_accuracy": next(row["accuracy"] for row in rows if row["method"] == "plain"),
        "train_sentences": len(tasks["sst2"].train),
        "vectors_sha256": hashlib.sha256(args.embeddings.read_bytes()).hexdigest(),
    }
    if not args.quick:
        for name in ("custext", "santext"):
            record[f"gain_vs_{name}"] = gains(rows, "sst2", f"{name}+")
            record[f"topic_gain_vs_{name}"] = gains(rows, "topic", f"{name}+")
        both = record["gain_vs_custext"] + record["gain_vs_santext"]
        record["min_gain_low"] = min(gain["gain_low"] for gain in both)
        plot(rows, RESULTS / "words_sst2.svg")
    report("words_sst2", record, record["rows"], args)


if __name__ == "__main__":
    main()
