"""`transom audit words FILE`: what a host recovers of text that the words mode sanitises.

The file is sanitised here, message by message, exactly as the words mode does it, at each epsilon; then every
attack is run on the result. Files: one text a line (`-` is standard input), or .csv, .tsv, .jsonl and
.parquet with --column. The prior is the attacker's own text: sentences of the audited file are taken out.
The preset is `words` unless another is named. Nothing is sent and nothing is charged to a ledger.
Threat model: run by the owner of the text, with the host's part played by the attacks.
Does not prove privacy: only that these attacks, with this prior and within this budget, found no more.
Source: each attack's own docstring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from transom.audit.attack import choose
from transom.audit.attacks import averaging, causal, mask_token
from transom.audit.attacks.causal_beam import Causal
from transom.audit.attacks.word_text import Sentences, own_sentences
from transom.audit.own import own_mechanism
from transom.audit.words import ATTACKS, sanitised_case
from transom.checkpoint.source import DEFAULT_MODEL
from transom.cli.audit_report import Audit, Options, auditing
from transom.cli.audit_utility import (
    UtilityModelOption,
    UtilityOption,
    UtilityPresetOption,
    at_setting,
    measured,
    open_utility,
)
from transom.cli.options import PolicyOptions
from transom.config import Setting
from transom.data.rows import read_texts
from transom.errors import CheckpointError, MisconfiguredError, MissingExtraError
from transom.privacy.lexicon import read_vectors
from transom.privacy.mechanisms import IN_GROUP, build
from transom.privacy.partition import WordMechanism
from transom.privacy.policy import Policy
from transom.privacy.sanitize import Sanitizer
from transom.report.finding import Attack, Bound, interrupted, not_run

_KNOWN = (*IN_GROUP, "custext+", "santext+")


def words(
    file: Annotated[Path, typer.Argument(help="Text to audit: .txt, .csv, .tsv, .jsonl, or - for lines.")],
    policy: PolicyOptions,
    mechanism: Annotated[str | None, f"{', '.join(_KNOWN)}, or module:object."] = None,
    epsilon: Annotated[list[float] | None, "Epsilon a word; repeatable."] = None,
    prior: Annotated[Path | None, "The attacker's own text, in a file of any kind."] = None,
    column: Annotated[str | None, "Column of a table or field of .jsonl; also a number from 1."] = None,
    embeddings: Annotated[Path | None, "Word vectors, for santext+."] = None,
    model: Annotated[
        str | None, "BERT with a masked-language head for mask-token inference; 'minilm' trains one."
    ] = None,
    language_model: Annotated[
        str | None,
        typer.Option(
            help=f"The attacker's causal model: directory, .gguf or hub name; {DEFAULT_MODEL} where it is "
            "installed, 'none' leaves it out.",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        int, Setting("How often each text is sent, sanitised anew; averaging reads all.", least=1)
    ] = 1,
    limit: Annotated[int, Setting("Audit the first so many texts.", least=1)] = 2000,
    utility: UtilityOption = None,
    utility_model: UtilityModelOption = "smollm2",
    utility_preset: UtilityPresetOption = None,
    *,
    options: Options,
) -> None:
    """Sanitise text as the words mode does, attack the result, and report what is recovered."""
    masked: tuple[Attack, ...] = () if model is None else (mask_token,)
    attacks = choose((*ATTACKS, *masked), options.attack)
    chosen = policy.load() if policy.preset or policy.overlay else policy.under("words")
    sanitizers = _sanitizers(chosen, mechanism, epsilon, embeddings)
    record = {
        "target": str(file),
        "policy": chosen.name,
        "mechanism": mechanism or chosen.mechanism,
        "epsilon": ", ".join(sanitizers),
        "prior": str(prior) if prior else "public word frequencies",
        "each text sent": f"{repeats} times" if repeats > 1 else "once",
    }
    tasks = open_utility(utility, utility_model, utility_preset)
    with auditing("words", record, attacks, options) as audit:
        texts = read_texts(file, column)[:limit]
        own = own_sentences(chosen, read_texts(prior, column)) if prior else ()
        audit.record |= {"texts": len(texts), "attacker's sentences": len(own)}
        language: mask_token.Masked | None = None
        reader: Causal | None = None
        settings = []
        for number, (value, sanitizer) in enumerate(sanitizers.items()):
            audit.setting = f"epsilon {value}"
            case = sanitised_case(sanitizer, texts, own, repeats=repeats - 1)
            audit.record["share of tokens drawn"] = round(case.drawn_share, 3)
            if model is not None and language is None:
                language = _language(model, case.knowledge.text, audit)
            if reader is None and causal in attacks:
                attacks, reader = _with_reader(attacks, language_model)
            knowledge = replace(case.knowledge, language=language, causal=reader)
            found = audit.attack(attacks, case.target, knowledge, case.data, of=len(sanitizers) - number)
            once = [one for one in found if one.name != averaging.NAME]
            settings += at_setting(audit.setting, sanitizer, once)
        audit.setting = ""
        audit.frontier, failed = measured(tasks, settings, quiet=options.json)
        audit.findings += failed
        if interrupted(failed):
            raise KeyboardInterrupt


def _sanitizers(
    policy: Policy, mechanism: str | None, epsilons: Sequence[float] | None, embeddings: Path | None
) -> dict[str, Sanitizer]:
    """One for each epsilon of the sweep, by its figure. Raises MisconfiguredError, PolicyError."""
    if mechanism is not None and ":" in mechanism:
        if epsilons:
            raise MisconfiguredError("a mechanism of your own has its own epsilon; leave out --epsilon")
        return {"of its own": Sanitizer(policy, own_mechanism(mechanism, policy))}
    budgets = list(dict.fromkeys(rule for rule in policy.rules.values() if not isinstance(rule, str)))
    if not epsilons and len(budgets) > 1:
        if mechanism == "santext+":
            rules = ", ".join(f"{kind}={rule:g}" for kind, rule in policy.rules.items() if rule in budgets)
            raise MisconfiguredError(
                f"santext+ has one budget, the rules have several ({rules}); give --epsilon"
            )
        return {" and ".join(f"{one:g}" for one in budgets): Sanitizer(policy, mechanism)}
    wanted = epsilons or budgets
    if not wanted:
        raise MisconfiguredError(
            "the policy draws no words; choose --preset words or sensitive, give --epsilon, or see what "
            "passes with transom audit text"
        )
    return {
        f"{one:g}": Sanitizer(policy, _mechanism(policy, mechanism, one, embeddings), one) for one in wanted
    }


def _mechanism(
    policy: Policy, name: str | None, epsilon: float, embeddings: Path | None
) -> str | WordMechanism | None:
    """What a sanitizer takes: a name, or a mechanism on the vectors of the policy's words."""
    if name is not None and name not in _KNOWN:
        raise MisconfiguredError(f"unknown mechanism {name!r}; choose from {', '.join(_KNOWN)}")
    if name != "santext+":
        return name
    if embeddings is None:
        raise MisconfiguredError("santext+ works on word vectors; give them with --embeddings")
    vectors = read_vectors(embeddings, 400_000)
    row = {word: number for number, word in enumerate(vectors.words)}
    space_VE = np.zeros((len(policy.words), vectors.vectors_VE.shape[1]))
    for number, word in enumerate(policy.words):
        if word in row:
            space_VE[number] = vectors.vectors_VE[row[word]]
    return build(name, space_VE, epsilon, frequency_V=policy.prior_V)


def _language(model: str, text: Sentences, audit: Audit) -> mask_token.Masked:
    """The attacker's language model; one that is trained takes a fifth of the time."""
    if model != "minilm":
        return mask_token.load_masked(model)
    if not text:
        raise MisconfiguredError("--model minilm is trained on the attacker's own text; give it with --prior")
    budget_s = audit.left_s / 5
    audit.left_s -= budget_s
    return mask_token.trained(text, budget_s=budget_s)


def _with_reader(attacks: tuple[Attack, ...], source: str | None) -> tuple[tuple[Attack, ...], Causal | None]:
    """The causal model, or attacks of which `causal` says why there is none.

    One that was not asked for may be absent; one that was raises CheckpointError, NotYetError,
    MissingExtraError.
    """
    reason = "--language-model none leaves it out"
    if source != "none":
        try:
            return attacks, causal.load_causal(source or DEFAULT_MODEL)
        except (CheckpointError, MissingExtraError) as error:
            if source is not None:
                raise
            reason = str(error)
    absent = Bound(causal.NAME, causal.METRIC, lambda *_: not_run(causal.NAME, causal.METRIC, reason))
    return tuple(absent if attack is causal else attack for attack in attacks), None
