"""The study's points beside noise: re-grown layers, changed weights, sanitised words, rotated keys.

Threat model: the host, with the public base model and every setting, also the covariance of the noise.

Shapes: V vocabulary, D width, R rows to name, C candidates, B batch, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import _hardening_attacks as attacks
import _hardening_layers as layers
import _hardening_noise as noise
from _hardening import choice_accuracy, fidelity, host_weights, tables
from _hardening_study import Study, read_tables, share
from obfuscate_attacks import template_ids
from obfuscate_fidelity import documents, questions
from transom.audit.attacks import column_first, gram_matching, neurons_first, sda
from transom.audit.attacks.traffic import Prior, Traffic, conceal
from transom.audit.attacks.weights import Knowledge, Target, sample

Points = Iterator[tuple[str, Callable[[], dict[str, Any]]]]
GRAM_ROWS = 1000
CONTEXTS = ("<|im_start|>user\n",)
CANDIDATES, FUNCTIONAL_ROWS = 2048, 400
REGROWN = (2,)


def known(study: Study, tau_V: Any, count: int = 0) -> dict[int, int]:
    """{obfuscated id: plain id} of the chat template's tokens, filled up to `count` with common ones."""
    template = template_ids(study.tokenizer)
    common = np.setdiff1d(np.arange(300, 2300), template)  # byte-pair ids: the early ones are common
    more = np.random.default_rng(11).permutation(common)[: max(0, count - len(template))]
    return {int(tau_V[plain]): int(plain) for plain in (*template, *more)}


def gram(study: Study, host: Any, tau_V: Any, count: int = 0) -> dict[str, Any]:
    """Seeded Gram matching, which reads no layer."""
    named = sample(tau_V, GRAM_ROWS)
    guess_R = gram_matching.named(host, study.base, named.obfuscated_S, known(study, tau_V, count))
    return share(guess_R, named.plain_S)


def functional(study: Study, model: Any, tau_V: Any) -> dict[str, Any]:
    """Seeded functional matching among `CANDIDATES` ids; `model` is the variant before its ids are mapped."""
    pairs, (base, candidates_C, contexts) = known(study, tau_V), behaviour(study)
    plain_R = np.random.default_rng(3).permutation(candidates_C)[: 2 * FUNCTIONAL_ROWS]
    seen = attacks.behaviour(model, plain_R, contexts)
    target = attacks.Behaviour(seen.states, seen.head_VD[np.argsort(tau_V)], len(contexts))
    here = attacks.Behaviour(base, study.head_VD, len(contexts))
    guess_R = attacks.functional_matching(target, here, tau_V[plain_R], candidates_C, pairs)
    return share(guess_R[:FUNCTIONAL_ROWS], plain_R[:FUNCTIONAL_ROWS]) | {"candidates": CANDIDATES}


def behaviour(study: Study) -> tuple[Any, Any, list[list[int]]]:
    """(states of the plain model, ids, contexts); first asked for before any table is changed."""
    seeds, rng = np.array(template_ids(study.tokenizer)), np.random.default_rng(3)
    others = rng.permutation(np.setdiff1d(np.arange(len(study.embedding_VD)), seeds))
    candidates_C = np.sort(np.concatenate([seeds, others[: CANDIDATES - len(seeds)]]))
    contexts = [study.tokenizer.encode(text, add_special_tokens=False).ids for text in CONTEXTS]
    states = study.remembered(
        "behaviour", lambda: attacks.behaviour(study.model, candidates_C, contexts).states
    )
    return states, candidates_C, contexts


def tables_only(study: Study) -> Points:
    """Every layer re-grown, at no cost to the model: what the tables and the behaviour still betray.

    Fidelity is that of the point of the same name under `isotropic` or `shaped`; re-growing can only
    lower it.
    """
    into, out = study.metrics
    behaviour(study)

    def one(into: noise.Channel, out: noise.Channel) -> dict[str, Any]:
        with tables(study.model, into.send(study.embedding_VD, 1), out.send(study.head_VD, 2)):
            host, tau_V = host_weights(study.model, 1)
            found = {
                "Gram matching": gram(study, host, tau_V),
                "Gram matching, 50 tokens known": gram(study, host, tau_V, 50),
            }
            found["functional matching"] = functional(study, study.model, tau_V)
            return {"attacks": found}

    for alpha_e, alpha_h in ((0.25, 0.1), (0.5, 0.2), (1, 0.2), (2, 2)):
        yield (
            f"alpha_e {alpha_e}, alpha_h {alpha_h}",
            lambda a=alpha_e, b=alpha_h: one(
                noise.isotropic(study.embedding_VD, into, a), noise.isotropic(study.head_VD, out, b)
            ),
        )
    for alpha_e, scale in ((0.5, 0.01), (1, 0.03)):
        yield (
            f"alpha_e {alpha_e}, head scale {scale}",
            lambda a=alpha_e, s=scale: one(
                noise.isotropic(study.embedding_VD, into, a), noise.least_harm(study.head_VD, out, s)
            ),
        )


def regrown(study: Study) -> Points:
    """The first layers' feed-forwards re-grown; the host attacks them, and the first one behind them."""
    import torch

    ids = torch.tensor(documents(study.tokenizer, 108)[8:])
    model = copy.deepcopy(study.model)
    unexplained: list[float] = []

    def one(count: int) -> dict[str, Any]:
        while len(unexplained) < count:
            unexplained.append(layers.regrow(model, len(unexplained), ids, steps=150))
        host, tau_V = host_weights(model, count + 1)
        base = study.base_layers(count + 1)
        data = study.sample(tau_V)
        still = noise.isotropic(study.embedding_VD, study.metrics[0], 0)
        at = {f"neurons first, layer {layer}": layer for layer in (0, count)}
        found = {
            name: read_tables(study, host, data, still, still, base=base, layer=layer)[
                "neurons first, both tables"
            ]
            for name, layer in at.items()
        }
        found |= {
            "Gram matching": gram(study, host, tau_V),
            "functional matching": functional(study, model, tau_V),
        }
        return {"unexplained": list(unexplained), **fidelity(model, study.yardstick), "attacks": found}

    for count in REGROWN:
        yield f"first {count}", lambda count=count: one(count)


def changed(study: Study) -> Points:
    """A secretly fine-tuned base: a change along a fine-tuning direction, or a random one, by its size."""
    import torch

    def directions() -> dict[str, Any]:
        ids = torch.tensor(documents(study.tokenizer, 124)[108:])[:, :96]
        return layers.fine_tune(study.model, ids, step=1e-4)

    kept: dict[str, Any] = {}

    def one(kind: str, size: float | None) -> dict[str, Any]:
        if kind not in kept:
            kept[kind] = directions() if kind == "fine-tuned" else layers.random_change(study.model, 5)
        natural = layers.relative_size(study.model, kept[kind])
        factor = 1.0 if size is None else size / natural
        weights = dict(study.model.named_parameters())
        before = {name: weights[name].data for name in kept[kind]}
        for name, part in kept[kind].items():
            weights[name].data = before[name] + factor * part
        try:
            host, tau_V = host_weights(study.model, 1)
            still = noise.isotropic(study.embedding_VD, study.metrics[0], 0)
            data = study.sample(tau_V)
            found = read_tables(study, host, data, still, still)
            quantiles = column_first.attack(Target(host), Knowledge(study.base), data, 120.0)
            found["Gram matching"] = gram(study, host, tau_V)
            found["column first"] = {
                "recovery": quantiles.value,
                "low": quantiles.low,
                "high": quantiles.high,
            }
            return {
                "relative_size": factor * natural,
                **fidelity(study.model, study.yardstick),
                "attacks": found,
            }
        finally:
            for name, weight in before.items():
                weights[name].data = weight

    yield "fine-tuned, as trained", lambda: one("fine-tuned", None)
    for kind, size in (("fine-tuned", 0.03), ("random", 0.03), ("random", 0.1), ("random", 0.3)):
        yield f"{kind}, {size}", lambda kind=kind, size=size: one(kind, size)


def words(study: Study) -> Points:
    """Sanitised words through the obfuscated model: with tau known, the exact Bayes attacker remains."""
    from transom.privacy.mechanisms import build
    from transom.privacy.policy import load_policy
    from words_sst2 import Method, exposure, sanitise, sst2, tokens_of

    policy = load_policy(None)
    counts = sst2(1).counts
    method = Method(
        "rnm", tuple(policy.words), frozenset(policy.pass_words), lambda e: build("rnm", policy.partition, e)
    )
    texts = sorted(questions(10**6)["sst2"], key=lambda row: len(row[0]))[: study.rows]
    rows = [
        (tokens_of(text.removeprefix("Review: ").removesuffix("\nSentiment:")), label)
        for text, label in texts
    ]

    def one(epsilon: float) -> dict[str, Any]:
        mechanism = method.make(epsilon)
        known_to = exposure(method, mechanism, counts)
        accuracies = []
        for _ in range(2 if study.texts >= 4 else 1):
            drawn = [
                (f"Review: {text}\nSentiment:", label) for text, label in sanitise(method, mechanism, rows)
            ]
            prompts = [
                (study.tokenizer.encode(text, add_special_tokens=False).ids, label) for text, label in drawn
            ]
            accuracies.append(choice_accuracy(study.model, prompts, study.yardstick.answers))
        behind = (known_to.bayes_success - known_to.pass_share) / (1 - known_to.pass_share)
        return {
            "epsilon": epsilon,
            "sst2_accuracy": float(np.mean(accuracies)),
            "pass_share": known_to.pass_share,
            "chance": known_to.bayes_chance,
            "recovery_of_sanitised": behind,
            "attacks": {"exact Bayes, tau known": {"recovery": known_to.bayes_success}},
        }

    for epsilon in (1.0, 2.0, 4.0, 8.0):
        yield f"epsilon {epsilon:g}", lambda epsilon=epsilon: one(epsilon)


def rotation(study: Study) -> Points:
    """New keys: traffic deciphered by tokens seen under one key, and what several uploads tell together."""
    vocabulary = study.base.vocabulary

    def traffic(texts: int) -> dict[str, Any]:
        ids = tuple(map(tuple, documents(study.tokenizer, 656)))
        tau_V = np.random.default_rng(4).permutation(vocabulary)
        seen, prior = ids[:texts], ids[256:]
        target = Traffic(conceal(seen, tau_V), vocabulary)
        found = sda.attack(target, Prior("distribution", prior), seen, 240.0)
        return {
            "tokens": sum(map(len, seen)),
            "attacks": {
                "deciphering": {"recovery": found.value, "low": found.low, "high": found.high, "n": found.n}
            },
        }

    def uploads(alpha: float, count: int) -> dict[str, Any]:
        into, out = study.metrics
        a = noise.isotropic(study.embedding_VD, into, alpha)
        b = noise.isotropic(study.head_VD, out, alpha)
        data = sample(np.arange(vocabulary), study.ids)
        looks, clean, spread = [], [], []
        for upload in range(count):
            for seed, channel, table_VD in (
                (2 * upload, a, study.embedding_VD),
                (2 * upload + 1, b, study.head_VD),
            ):
                looks.append(channel.send(table_VD, 10 + seed)[data.plain_S])
                clean.append(table_VD)
                spread.append(channel.noise_DD)
        # Equal noise and equal tables: the mean of the uploads says all they say together.
        into_mean, out_mean = np.mean(looks[::2], axis=0), np.mean(looks[1::2], axis=0)
        guess_R = neurons_first.decode(
            (into_mean, out_mean), clean[:2], (spread[0] / count, spread[1] / count)
        )
        return {
            "uploads": count,
            "alpha": alpha,
            "attacks": {"neurons first, uploads linked": share(guess_R, data.plain_S)},
        }

    for texts in (4, 32, 256):
        yield f"traffic, {256 * texts} tokens a key", lambda texts=texts: traffic(texts)
    for count in (1, 2, 4):
        yield f"uploads, {count} at alpha 8", lambda count=count: uploads(8.0, count)
