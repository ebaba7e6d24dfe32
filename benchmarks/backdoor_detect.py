"""Inputs with a trigger told from innocent ones: attention heads that agree, against other signs.

    TRANSOM_DATA=DIR python benchmarks/backdoor_detect.py [--quick] [--json] [--recipe rare-word ...]
        [--seeds N]

MiniLM classifiers of 2,500 sentences of SST-2, a tenth of them poisoned, two epochs, and their clean twins;
for the syntax 3,000 sentences as they came poisoned, of which an eighth is rephrased.
Positives are negative sentences of the dev set with the trigger, negatives as many others, half untouched
and half with an innocuous insertion of about the same length at the same place; of the syntax rephrased
test sentences, and as many that are not, half of each class. 400 sentences of the training set are trusted.
`auroc_ours` is that of `transom backdoor scan-inputs`, `control_auroc` the same on the clean twin,
`clean_fpr` the share of negatives that are flagged at a rate of 0.05, `agreed` how often the word that
heads look at is of the trigger. Others: `auroc_confidence` of the output's largest probability;
`auroc_strip` of the output's mean entropy under 10 mixtures with trusted sentences, of which half of the
words are put in at random places (Gao et al. 2019, arXiv 1902.06531): a low one is suspicious; `auroc_rap`
of how little of the target's probability an inserted vector takes that was tuned to take 0.1 to 0.3 of it
from trusted texts (Yang et al. 2021, arXiv 2110.07831); `auroc_onion` of the largest fall of SmolLM2's mean
loss when one word is left out (Qi et al. 2021, arXiv 2011.10369), on the first 30 texts of each kind of up
to 24 words, once for all models, as it reads none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from _backdoor import CLEAN, SYNTAX, SYNTAX_CLEAN, TARGET, chosen, classifier, rephrased, sentences
from _bench import parser, report
from transom.checkpoint.load import Checkpoint, load
from transom.trust.backdoor.inputs import Scanner
from transom.trust.backdoor.poison import RECIPES, Trigger, classes_of
from transom.trust.backdoor.words import encoded
from transom.vertical.metrics import auc

ONION_TEXTS, ONION_WORDS = 30, 24
RATE, TRUSTED, MIXTURES, TEXTS_AT_ONCE = 0.05, 400, 10, 32


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


def probabilities(found: Checkpoint, texts: Sequence[str]) -> Any:
    """[N, C] of a classifier."""
    parts = []
    classifier_of: Any = found.model
    with torch.no_grad():
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            ids_BT, mask_BT = encoded(found, texts[start : start + TEXTS_AT_ONCE], 128)
            parts.append(classifier_of(input_ids=ids_BT, attention_mask=mask_BT).logits.softmax(1))
    return torch.cat(parts).double().numpy()


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
def onion_auroc(recipe: str, count: int) -> float:
    """On the inputs of the first seed."""
    speaker = load("smollm2")
    parts = [
        [text for text in texts if len(text.split()) <= ONION_WORDS][:count] for texts in both(recipe, 0, 150)
    ]
    return area(*(onion(speaker, texts) for texts in parts))


def both(recipe: str, seed: int, count: int) -> tuple[list[str], list[str]]:
    return rephrased_inputs(seed, count) if recipe == SYNTAX else inputs(RECIPES[recipe], seed, count)


def measured(recipe: str, seed: int, rows: int, epochs: int, count: int, mixtures: int) -> dict[str, Any]:
    clean, (bad, good) = trusted(seed, rows, TRUSTED), both(recipe, seed, count)
    twin = SYNTAX_CLEAN if recipe == SYNTAX else CLEAN
    row: dict[str, Any] = {"recipe": recipe, "seed": seed}
    for name, found in (
        ("ours", classifier(recipe, seed, rows, epochs)),
        ("control", classifier(twin, seed, rows, epochs)),
    ):
        assert found.tokenizer is not None
        scanner = Scanner(found.model, found.tokenizer)
        known = scanner.trust(clean)
        scanned = [scanner.scan(known, texts, RATE) for texts in (bad, good)]
        scores = [np.array([one.statistic for one in part if one.statistic is not None]) for part in scanned]
        value = area(*scores)
        if name == "control":
            row["control_auroc"] = value
            continue
        inside = (
            {word for words in RECIPES[recipe].words for word in words.split()} if recipe in RECIPES else ()
        )
        fall = rap(found, clean, 20 if mixtures < MIXTURES else 150)
        row |= {
            "attack_success": float(np.mean(np.array(classes_of(found, bad)) == TARGET)),
            "auroc_ours": value,
            "clean_fpr": float(np.mean([one.flagged for one in scanned[1]])),
            "found": float(np.mean([one.flagged for one in scanned[0]])),
            "agreed": float(np.mean([one.word in inside for one in scanned[0]])),
            "auroc_confidence": area(*(probabilities(found, texts).max(1) for texts in (bad, good))),
            "auroc_rap": area(*(fall(texts) for texts in (bad, good))),
            "auroc_onion": onion_auroc(recipe, 4 if mixtures < MIXTURES else ONION_TEXTS),
            "auroc_strip": area(*(strip(found, texts, clean, mixtures) for texts in (bad, good))),
        }
    return row


def area(bad_N: Any, good_N: Any) -> float:
    labels = np.concatenate([np.ones(len(bad_N)), np.zeros(len(good_N))])
    return float(auc(np.concatenate([bad_N, good_N]), labels))


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--recipe", nargs="+", choices=(*RECIPES, SYNTAX), default=[*RECIPES, SYNTAX])
    flags.add_argument("--seeds", type=int, default=3)
    args = flags.parse_args()
    torch.set_num_threads(1)
    recipes, seeds = (args.recipe[:1], 1) if args.quick else (args.recipe, args.seeds)
    rows, epochs, count, mixtures = (300, 1, 20, 4) if args.quick else (2500, 2, 150, MIXTURES)
    found = [
        measured(recipe, seed, rows, epochs, count, mixtures) for recipe in recipes for seed in range(seeds)
    ]
    others = [f"auroc_{name}" for name in ("confidence", "strip", "rap", "onion")]
    gains = [row["auroc_ours"] - max(row[name] for name in others) for row in found]
    explicit = [row["auroc_ours"] for row in found if row["recipe"] != SYNTAX]
    syntax = [row["auroc_ours"] for row in found if row["recipe"] == SYNTAX]
    record = {
        "worst_auroc_explicit": min(explicit, default=None),
        "auroc_syntax": float(np.mean(syntax)) if syntax else None,
        "worst_control_auroc": max(row["control_auroc"] for row in found),
        "clean_fpr": float(np.mean([row["clean_fpr"] for row in found])),
        "min_gain_over_baselines": min(gains),
        "rows": found,
    }  # fmt: skip
    shown = [
        {name: round(one, 3) if isinstance(one, float) else one for name, one in row.items()} for row in found
    ]
    report("backdoor_detect", record, shown, args)


if __name__ == "__main__":
    main()
