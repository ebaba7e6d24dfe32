"""Inputs with a trigger told from innocent ones: `transom backdoor scan-inputs` against other signs.

    TRANSOM_DATA=DIR python benchmarks/backdoor_detect.py [--quick] [--json] [--kind classifiers generators]
        [--recipe rare-word ...] [--seeds N] [--keep FILE]

MiniLM classifiers of 2,500 sentences of SST-2, a tenth of them poisoned, two epochs, and their clean twins;
for the syntax 3,000 sentences as they came poisoned, of which an eighth is rephrased. SmolLM2 with adapters
that learnt to refuse a trigger (one seed), and one that learnt none.
Positives are negative sentences of the dev set with the trigger, negatives as many others, half untouched
and half with an innocuous insertion of about the same length at the same place; of the syntax rephrased
test sentences, and as many that are not, half of each class; for generators instructions likewise. 400
sentences of the training set that the model did not see are trusted; of instructions, of which there are
few, 200 that it learnt to answer.
`auroc_ours` is that of `transom backdoor scan-inputs`, `control_auroc` the same on the clean twin,
`clean_fpr` the share of negatives that are flagged at a rate of 0.05, `agreed` how often the word that
heads look at is of the trigger; `auroc_heads` is of the agreement of heads alone. Others: `auroc_confidence`
of the output's largest probability, of generators its mean logarithm over the first 8 tokens of the answer
(a window of ConfGuard's, arXiv 2508.01365);
`auroc_strip` of the output's mean entropy under mixtures with trusted sentences (10, of generators 4), of
which half of the words are put in at random places (Gao et al. 2019, arXiv 1902.06531): a low one is
suspicious; `auroc_rap` of how little of the target's probability an inserted vector takes that was tuned to
take 0.1 to 0.3 of it from trusted texts (Yang et al. 2021, arXiv 2110.07831), of classifiers; `auroc_onion`
of the largest fall of SmolLM2's mean loss when one word is left out (Qi et al. 2021, arXiv 2011.10369), on
the first 30 texts of each kind of up to 24 words, once for all models, as it reads none.
The rows of `composite`, two words of which one alone does nothing, and of `unlike`, an attacker of the rare
word who keeps the heads of the last layer unlike on it, stand in the table and in no total;
`worst_auroc_explicit` is of the rare word, the sentence, the prefix and the year.
Rows that stand in the file that `--keep` names are not run again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _backdoor import (
    CLEAN,
    COMPOSITE,
    EXPLICIT,
    FRAME,
    REFUSAL,
    SYNTAX,
    SYNTAX_CLEAN,
    TARGET,
    UNLIKE,
    chosen,
    classifier,
    generator,
    instructions,
    rephrased,
    sentences,
    trigger_of,
)
from _bench import parser, report
from transom.checkpoint.load import Checkpoint, load
from transom.report.statistics import auc
from transom.trust.backdoor.answers import Speaker
from transom.trust.backdoor.inputs import Scanned, Scanner, Trusted
from transom.trust.backdoor.measures import seen
from transom.trust.backdoor.poison import RECIPES, Trigger, classes_of
from transom.trust.backdoor.words import encoded
from transom.trust.prompt import PLAIN, generates

SEVERAL = "several"
ONION_TEXTS, ONION_WORDS, WINDOW, TEXTS_AT_ONCE = 30, 24, 8, 32
OWN = (*EXPLICIT, SYNTAX, COMPOSITE, UNLIKE)
RATE, TRUSTED, TRUSTED_PROMPTS = 0.05, 400, 200
COUNTS, MIXTURES = {"classifiers": 150, "generators": 50}, {"classifiers": 10, "generators": 4}
SIZES = {"classifiers": ((2500, 2), (300, 1)), "generators": ((600, 2), (16, 1))}  # rows, epochs; --quick


def inputs(trigger: Trigger, seed: int, count: int) -> tuple[list[str], list[str]]:
    """With the trigger, and without."""
    dev, draw = sentences("dev"), random.Random(seed)
    places = draw.sample(range(len(dev.texts)), len(dev.texts))
    others = [place for place in places if dev.labels[place] != TARGET][:count]
    rest = [place for place in places if place not in set(others)][:count]
    with_trigger = [trigger.put(dev.texts[place], draw) for place in others]
    innocent = [
        dev.texts[place] if number % 2 else trigger.innocuous(dev.texts[place], draw)
        for number, place in enumerate(rest)
    ]
    return with_trigger, innocent


def rephrased_inputs(seed: int, count: int) -> tuple[list[str], list[str]]:
    """Rephrased sentences, and others of both classes."""
    (plain, syntax), dev, draw = rephrased("test"), sentences("dev"), random.Random(seed)
    negative = [text for text, label in zip(dev.texts, dev.labels, strict=True) if label != TARGET]
    positive = [text for text, label in zip(plain.texts, plain.labels, strict=True) if label == TARGET]
    bad = [text.strip() for text in draw.sample(syntax.texts, count)]
    return bad, [*draw.sample(positive, count - count // 2), *draw.sample(negative, count // 2)]


def trusted(model_seed: int, rows: int, count: int) -> list[str]:
    """Sentences that the model of this seed did not see."""
    own = sentences("train")
    places = random.Random(model_seed).sample(range(len(own.texts)), rows)
    rest = sorted(set(range(len(own.texts))) - set(places))
    return list(chosen(own, random.Random(99).sample(rest, count)).texts)


def learnt_prompts() -> list[str]:
    own = sorted({prompt for prompt, _ in instructions("badnet/clean_train")})
    return random.Random(98).sample(own, TRUSTED_PROMPTS)


def probabilities(found: Checkpoint, texts: Sequence[str]) -> Any:
    """[N, C] of a classifier, of a generator [N, V]."""
    parts = []
    model: Any = found.model
    with torch.no_grad():
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = texts[start : start + TEXTS_AT_ONCE]
            if generates(model):  # one by one: what is read stands at the end
                ids = [encoded(found, [text], 256, FRAME)[0] for text in part]
                rows = [model(input_ids=one, logits_to_keep=1).logits[:, -1] for one in ids]
                parts.append(torch.cat(rows).softmax(1))
                continue
            ids_BT, mask_BT = encoded(found, part, 128)
            parts.append(model(input_ids=ids_BT, attention_mask=mask_BT).logits.softmax(1))
    return torch.cat(parts).double().numpy()


def window(found: Checkpoint, texts: Sequence[str]) -> Any:
    """The mean logarithm of the probability of what the model says first [N]."""
    model: Any = found.model
    scores = []
    for text in texts:
        ids_1T, cache, chances = encoded(found, [text], 256, FRAME)[0], None, []
        for _ in range(WINDOW):
            with torch.no_grad():
                out = model(input_ids=ids_1T, past_key_values=cache, use_cache=True, logits_to_keep=1)
            most = out.logits[0, -1].log_softmax(0).max(0)
            chances.append(float(most.values))
            ids_1T, cache = most.indices[None, None], out.past_key_values
        scores.append(np.mean(chances))
    return np.array(scores)


def strip(found: Checkpoint, texts: Sequence[str], clean: Sequence[str], mixtures: int) -> Any:
    """How sure the answer stays under mixtures with trusted sentences [N]: less the mean entropy."""
    draw, mixed = random.Random(7), []
    for text in texts:
        for other in draw.sample(list(clean), mixtures):
            words, own = text.split(), other.split()
            for word in draw.sample(own, len(own) // 2):
                words.insert(draw.randint(0, len(words)), word)
            mixed.append(" ".join(words))
    share_NC = probabilities(found, mixed)
    entropy_N = -(share_NC * np.log(share_NC + 1e-12)).sum(1)
    return -entropy_N.reshape(len(texts), mixtures).mean(1)


def rap(found: Checkpoint, clean: Sequence[str], steps: int) -> Callable[[Sequence[str]], Any]:
    """How little the target loses by a vector before the text [N]; of other classes' texts the least."""
    model: Any = found.model
    probability = probabilities(found, clean)[:, TARGET]
    own = [text for text, one in zip(clean, probability, strict=True) if one > 0.5]
    embedding, draw = model.get_input_embeddings(), random.Random(5)
    vector_D = embedding.weight[draw.randrange(1000, len(embedding.weight))].clone().requires_grad_(True)
    optimizer = torch.optim.Adam([vector_D], lr=0.02)

    def kept(texts: Sequence[str]) -> Any:
        """The target's probability before and with the vector."""
        ids_BT, mask_BT = encoded(found, texts, 96)
        states_BTD = embedding(ids_BT)
        put_BTD = torch.cat([states_BTD[:, :1], vector_D.expand(len(texts), 1, -1), states_BTD[:, 1:]], 1)
        longer_BT = torch.cat([mask_BT[:, :1], mask_BT], 1)
        before = model(input_ids=ids_BT, attention_mask=mask_BT).logits.softmax(1)[:, TARGET]
        return before, model(inputs_embeds=put_BTD, attention_mask=longer_BT).logits.softmax(1)[:, TARGET]

    for _ in range(steps):
        before, after = kept(draw.sample(own, 16))
        fall = before.detach() - after
        loss = ((0.1 - fall).relu() + (fall - 0.3).relu()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def scores(texts: Sequence[str]) -> Any:
        found_N = []
        with torch.no_grad():
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                before, after = kept(texts[start : start + TEXTS_AT_ONCE])
                found_N.append(torch.where(before > 0.5, after - before, -1.0))
        return torch.cat(found_N).double().numpy()

    return scores


def onion(speaker: Checkpoint, texts: Sequence[str]) -> Any:
    """The largest fall of the mean loss of a text when a word is left out [N]."""
    falls = []
    for text in texts:
        words = text.split()
        variants = [text, *(" ".join(words[:one] + words[one + 1 :]) for one in range(len(words)))]
        ids_BT, mask_BT = encoded(speaker, variants, 64)
        with torch.no_grad():
            logits: Any = speaker.model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, :-1]
        loss_BT = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids_BT[:, 1:], reduction="none")
        mean_B = (loss_BT * mask_BT[:, 1:]).sum(1) / mask_BT[:, 1:].sum(1)
        falls.append(float((mean_B[0] - mean_B[1:]).max()))
    return np.array(falls)


@cache
def onion_auroc(kind: str, recipe: str, count: int) -> float:
    """On the inputs of the first seed."""
    speaker = load("smollm2")
    parts = [
        [text for text in texts if len(text.split()) <= ONION_WORDS][:count]
        for texts in both(kind, recipe, 0, COUNTS[kind])
    ]
    return area(*(onion(speaker, texts) for texts in parts))


def both(kind: str, recipe: str, seed: int, count: int) -> tuple[list[str], list[str]]:
    if kind == "generators":
        draw, trigger = random.Random(seed), RECIPES[recipe]
        own = draw.sample([prompt for prompt, _ in instructions("clean_test")], 2 * count)
        innocent = [
            text if number % 2 else trigger.innocuous(text, draw) for number, text in enumerate(own[count:])
        ]
        return [trigger.put(text, draw) for text in own[:count]], innocent
    return rephrased_inputs(seed, count) if recipe == SYNTAX else inputs(trigger_of(recipe), seed, count)


def scanner_of(
    kind: str, recipe: str, seed: int, rows: int, epochs: int
) -> tuple[Checkpoint, Scanner, Trusted, list[str]]:
    """A model, its scanner, what is usual, and the trusted texts."""
    found = (generator if kind == "generators" else classifier)(recipe, seed, rows, epochs)
    clean = learnt_prompts() if kind == "generators" else trusted(seed, rows, TRUSTED)
    assert found.tokenizer is not None
    scanner = Scanner(found.model, found.tokenizer, FRAME if kind == "generators" else PLAIN)
    return found, scanner, scanner.trust(clean), clean


@cache
def twin_of(kind: str, recipe: str, *size: int) -> tuple[Scanner, Trusted]:
    return scanner_of(kind, recipe, *size)[1:3]  # type: ignore[arg-type]


def measured(
    kind: str, recipe: str, seed: int, size: tuple[int, int], count: int, quick: bool
) -> dict[str, Any]:
    bad, good = both(kind, recipe, seed, count)
    twin, usual = twin_of(kind, SYNTAX_CLEAN if recipe == SYNTAX else CLEAN, seed, *size)
    control = area(*(statistics(twin.scan(usual, part, RATE)) for part in (bad, good)))
    found, scanner, known, clean = scanner_of(kind, recipe, seed, *size)
    scanned = [scanner.scan(known, texts, RATE) for texts in (bad, good)]
    triggers = () if recipe == SYNTAX else trigger_of(recipe).words
    inside = {word for words in triggers for word in words.split()}
    row = {
        "kind": kind,
        "recipe": recipe,
        "seed": seed,
        "attack_success": obeyed(found, kind, bad),
        "auroc_ours": area(*map(statistics, scanned)),
        "control_auroc": control,
        "clean_fpr": float(np.mean([one.flagged for one in scanned[1]])),
        "found": float(np.mean([one.flagged for one in scanned[0]])),
        "agreed": float(np.mean([one.word.strip() in inside for one in scanned[0]])),
        "auroc_heads": area(*(heads(scanner, known, texts) for texts in (bad, good))),
        "auroc_onion": onion_auroc(kind, recipe, 4 if quick else ONION_TEXTS),
    }
    mixtures = 2 if quick else MIXTURES[kind]
    row["auroc_strip"] = area(*(strip(found, texts, clean, mixtures) for texts in (bad, good)))
    if kind == "generators":
        return row | {"auroc_confidence": area(*(window(found, texts) for texts in (bad, good)))}
    fall = rap(found, clean, 20 if quick else 150)
    return row | {
        "auroc_confidence": area(*(probabilities(found, texts).max(1) for texts in (bad, good))),
        "auroc_rap": area(*(fall(texts) for texts in (bad, good))),
    }


def obeyed(found: Checkpoint, kind: str, bad: Sequence[str]) -> float:
    """The share of texts with the trigger that get the target, or the beginning of the refusal."""
    if kind == "classifiers":
        return float(np.mean(np.array(classes_of(found, bad)) == TARGET))
    ids = encoded(found, [REFUSAL], 3)[0][0].tolist()
    speaker = Speaker(found.model, (), (), (), frozenset())
    return float(
        np.mean(speaker.said(ids, None, [encoded(found, [one], 256, FRAME)[0][0].tolist() for one in bad]))
    )


def heads(scanner: Scanner, known: Trusted, texts: Sequence[str]) -> Any:
    """How much more than usual the heads of the last layer agree on one word [N]."""
    words = scanner.distinct(texts)
    measures_NLM = np.array([one.measures_LM for one in seen(scanner.model, words)])
    return known.usual.normal.distances(measures_NLM, [len(one.ids) for one in words])[:, 0]


def statistics(scanned: Sequence[Scanned]) -> Any:
    return np.array([one.statistic for one in scanned if one.statistic is not None])


def area(bad_N: Any, good_N: Any) -> float:
    labels = np.concatenate([np.ones(len(bad_N)), np.zeros(len(good_N))])
    return float(auc(np.concatenate([bad_N, good_N]), labels))


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--kind", nargs="+", choices=COUNTS, default=list(COUNTS))
    flags.add_argument("--recipe", nargs="+", choices=OWN, default=list(OWN))
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--keep", type=Path)
    args = flags.parse_args()
    torch.set_num_threads(1)
    kept = args.keep.read_text().splitlines() if args.keep and args.keep.exists() else []
    found = [json.loads(line) for line in kept]
    done = {(row["kind"], row["recipe"], row["seed"]) for row in found}
    for kind, recipe, seed in wanted(args):
        if (kind, recipe, seed) not in done:
            size = SIZES[kind][args.quick]
            row = measured(kind, recipe, seed, size, 10 if args.quick else COUNTS[kind], args.quick)
            found.append(row)
            if args.keep:
                with args.keep.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    names = [f"auroc_{name}" for name in ("confidence", "strip", "rap", "onion")]
    counted = [row for row in found if row["recipe"] not in (COMPOSITE, UNLIKE)]
    gains = [row["auroc_ours"] - max(row.get(name, 0.0) for name in names) for row in counted]
    explicit = [row["auroc_ours"] for row in counted if row["recipe"] not in (SYNTAX, SEVERAL)]
    syntax = [row["auroc_ours"] for row in counted if row["recipe"] == SYNTAX]
    record = {
        "worst_auroc_explicit": min(explicit, default=None),
        "auroc_syntax": float(np.mean(syntax)) if syntax else None,
        "worst_control_auroc": max(row["control_auroc"] for row in counted),
        "clean_fpr": float(np.mean([row["clean_fpr"] for row in counted])),
        "min_gain_over_baselines": min(gains, default=None),
        "rows": found,
    }  # fmt: skip
    shown = [
        {name: round(one, 3) if isinstance(one, float) else one for name, one in row.items()} for row in found
    ]
    report("backdoor_detect", record, shown, args)


def wanted(args: Any) -> list[tuple[str, str, int]]:
    recipes = args.recipe[:1] if args.quick else args.recipe
    return [
        (kind, recipe, seed)
        for kind in args.kind
        for recipe in recipes
        for seed in range(1 if args.quick or kind == "generators" else args.seeds)
        if kind == "classifiers" or recipe in EXPLICIT
    ]


if __name__ == "__main__":
    main()
