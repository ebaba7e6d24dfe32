"""Sets of answers for the benchmarks of made-up answers, with their states. `TRANSOM_DATA` is a folder.

    facts, animals, ...  statements that are true or false (Azaria and Mitchell 2023), read bare
    cities-asked         SmolLM2's own answers of up to 32 tokens, in which country a city is, of the true
                         ones of `cities`, made up where they do not hold its name (`examples.matched`)
    cities-read          the same of other cities with what is found for each question among such statements:
                         the three that share most words with it, rare ones counting more
    halueval             a chat model's answers of up to 64 tokens to users, judged by people (Li et al.
                         2023), all that are made up and two and a half times as many others
    truthfulqa           SmolLM2's own answers of up to 64 tokens to TruthfulQA's questions (Lin et al. 2022),
                         the likeliest one and one that is drawn at temperature 1 (of 50 tokens), judged by
                         correct and incorrect answers (`examples.matched`)
    xsum                 SmolLM2's own summaries of the first 120 words of documents, made up where they name
                         what the document does not (`examples.strays`)

Of xsum 300 answers are taken. One in three is held out, all to one question together. What is
read is kept in a folder, if one is named, in which it is looked for first.
"""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transom.checkpoint.answers import answers_of
from transom.checkpoint.load import Checkpoint
from transom.checkpoint.tokenizer import write_tokenizer
from transom.errors import MisconfiguredError
from transom.report.statistics import auc
from transom.trust.hallucination.examples import Row
from transom.trust.hallucination.states import Example, Reader, States, encode, prompt_of
from transom.trust.hallucination.study import Set
from transom.trust.prompt import PLAIN, Frame, require_tokenizer

TOPICS = ("facts", "animals", "capitals", "cities", "elements", "inventions")
SETS = (*TOPICS, "cities-asked", "cities-read", "halueval", "truthfulqa", "xsum")
CHAT = Frame("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
ANSWER_TOKENS, SHORT, MOST_TOKENS, MOST, LONG = 64, 32, 512, 900, 300
PEERS = {"lm-polygraph": "TRANSOM_LM_POLYGRAPH", "uqlm": "TRANSOM_UQLM"}
SAMPLING = {"eigenscore": "TRANSOM_LM_POLYGRAPH"}
_OTHERS, _DOCUMENT_WORDS, _READ = 2.5, 120, 3


def data_folder() -> Path:
    folder = Path(os.environ.get("TRANSOM_DATA", ""))
    if not os.environ.get("TRANSOM_DATA") or not (folder / "true_false/facts.csv").exists():
        sys.exit("set TRANSOM_DATA to the folder that holds true_false/facts.csv")
    return folder


def frame_of(name: str) -> Frame:
    return PLAIN if name in TOPICS else CHAT


def rows_of(name: str, found: Checkpoint) -> list[Row]:
    """Answers that are known, or questions with references."""
    folder, draw = data_folder(), random.Random(0)
    if name in TOPICS:
        with (folder / f"true_false/{name}.csv").open(newline="") as file:
            rows = [
                Row(Example(one["statement"], made_up=one["label"] == "0")) for one in csv.DictReader(file)
            ]
        return draw.sample(rows, len(rows))
    if name == "halueval":
        return _halueval(found, draw)
    if name.startswith("cities-"):
        return _asked(folder, draw, read=name == "cities-read")
    if name == "xsum":
        lines = (folder / "xsum/xsum-1000.jsonl").read_text().splitlines()
        documents = [" ".join(json.loads(line)["document"].split()[:_DOCUMENT_WORDS]) for line in lines]
        return [
            Row(Example("", "Summarise this in one sentence.", one))
            for one in draw.sample(documents, len(lines))
        ]
    with (folder / "truthfulqa/TruthfulQA.csv").open(newline="", encoding="utf-8-sig") as file:
        table = list(csv.DictReader(file))
    known = [[part.strip() for part in one["Correct Answers"].split(";") if part.strip()] for one in table]
    rows = [
        Row(
            Example("", one["Question"]),
            tuple(right),
            tuple(map(str.strip, one["Incorrect Answers"].split(";"))),
        )
        for one, right in zip(table, known, strict=True)
    ]
    return draw.sample(rows, len(rows))


def _asked(folder: Path, draw: random.Random, read: bool) -> list[Row]:
    known: dict[str, list[str]] = {}
    with (folder / "true_false/cities.csv").open(newline="") as file:
        told = [row["statement"] for row in csv.DictReader(file) if row["label"] == "1"]
    true = [one for one in told if " is a city in " in one]
    for statement in true:
        if one := re.fullmatch(r"(.+) is a city in (.+)\.", statement):
            known.setdefault(one[1], []).append(one[2])
    rows = [
        Row(Example("", f"In which country is the city of {city}?"), tuple(countries))
        for city, countries in sorted(known.items())
    ]
    asked = draw.sample(rows, min(len(rows), MOST))
    if not read:
        return asked
    rest, find = [one for one in rows if one not in asked], _finder(sorted(set(true)))
    return [replace(one, example=replace(one.example, context=find(one.example.question))) for one in rest]


def _halueval(found: Checkpoint, draw: random.Random) -> list[Row]:
    size = _counter(found)
    lines = (data_folder() / "halueval/general_data.jsonl").read_text().splitlines()
    table = [one for one in map(json.loads, lines) if 0 < size(one["chatgpt_response"]) <= ANSWER_TOKENS]
    rows = [
        Row(
            Example(one["chatgpt_response"], one["user_query"], made_up=one["hallucination"].lower() == "yes")
        )
        for one in table
        if size(one["user_query"]) <= MOST_TOKENS - 2 * ANSWER_TOKENS
    ]
    wrong = [one for one in rows if one.example.made_up]
    others = [one for one in rows if not one.example.made_up]
    chosen = wrong + draw.sample(others, min(len(others), round(_OTHERS * len(wrong))))
    return draw.sample(chosen, len(chosen))


def _counter(found: Checkpoint) -> Any:
    encode_ = require_tokenizer(found).tokenizer.encode
    return lambda text: len(encode_(text, add_special_tokens=False).ids)


def _finder(texts: Sequence[str]) -> Any:
    """The texts that share most with a question, words counting by how few texts have them."""
    words = [set(re.findall(r"\w+", one.lower())) for one in texts]
    times = Counter(word for one in words for word in one)
    weight = {word: math.log(len(texts) / count) for word, count in times.items()}

    def find(question: str) -> str:
        own = set(re.findall(r"\w+", question.lower()))
        worth = [sum(weight[word] for word in own & one) / math.sqrt(1 + len(one)) for one in words]
        best = sorted(range(len(texts)), key=lambda place: -worth[place])[:_READ]
        return " ".join(f"{texts[one].rstrip('.')}." for one in best)

    return find


def answered(found: Checkpoint, name: str, most: int = MOST) -> Iterator[Example]:
    """Answers that are known, of those that the model gives where references tell."""
    tokenizer, rows = require_tokenizer(found), rows_of(name, found)[: 2 * most]
    drawn = name.startswith("truthfulqa") and most == MOST
    if all(row.example.answer for row in rows):
        yield from (row.example for row in rows if row.example.made_up is not None)
        return
    prompts = [prompt_of(tokenizer, row.example, CHAT)[0] for row in rows]
    torch.manual_seed(0)
    for temperature in (0.0, 1.0) if drawn else (0.0,):
        said = answers_of(
            found.model, prompts, tokenizer.eos_ids, at_once=16, temperature=temperature,
            most_tokens=SHORT if name.startswith("cities-") else ANSWER_TOKENS,
        )  # fmt: skip
        for row, ids in zip(rows, said, strict=True):
            text = tokenizer.tokenizer.decode([one for one in ids if one not in tokenizer.eos_ids]).strip()
            judged = replace(row, example=replace(row.example, answer=text, ids=ids)).judged(name == "xsum")
            if text and judged.made_up is not None:
                yield judged


def set_of(name: str, found: Checkpoint, reader: Reader, most: int = MOST, kept: Path | None = None) -> Set:
    """The set, `most` answers of it, with their states."""
    if kept and (kept / f"{name}.npz").exists():
        return _kept(name, kept)
    examples, states, most = [], [], min(most, LONG) if name == "xsum" else most
    for one in answered(found, name, most):
        if len(examples) == most:
            break
        try:
            ids = encode(require_tokenizer(found), one, frame_of(name), most_tokens=MOST_TOKENS)
        except MisconfiguredError:
            continue
        examples.append(one)
        states.append(reader.read(ids))
    if kept:
        _keep(Set(name, examples, states), kept)
    return Set(name, examples, states)


def _keep(one: Set, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{place}/{part}/{name}": value
        for place, states in enumerate(one.states)
        for part, values in (("families", states.families), ("stages", states.stages))
        for name, value in values.items()
    }
    (folder / f"{one.name}.json").write_text(json.dumps([asdict(each) for each in one.examples]))
    np.savez(folder / f"{one.name}.npz", **arrays)  # type: ignore[arg-type]


def kept_examples(name: str, folder: Path) -> list[Example]:
    plain = json.loads((folder / f"{name}.json").read_text())
    return [Example(**(each | {"ids": tuple(each["ids"])})) for each in plain]


def _kept(name: str, folder: Path) -> Set:
    examples = kept_examples(name, folder)
    states = [States({}, {}) for _ in examples]
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        for key in arrays.files:
            place, part, family = key.split("/")
            getattr(states[int(place)], part)[family] = arrays[key]
    return Set(name, examples, states)


def peers(one: Set, found: Checkpoint, held: Sequence[int], kept: Path) -> dict[str, float]:
    """The AUROC of each score of the peers whose Pythons are named, on what is held out; a score that is
    missing of an answer counts as the least doubt."""
    labels_N = np.array([one.made_up[place] for place in held], int)
    areas: dict[str, float] = {}
    for peer in PEERS:
        for scorer, values in scored(peer, one, found, held, kept).items():
            known = [each for each in values if each is not None]
            doubt_N = np.array([min(known, default=0.0) if each is None else each for each in values])
            areas[f"{peer} {scorer}"] = auc(doubt_N, labels_N)
    return areas


def scored(
    peer: str, one: Set, found: Checkpoint, held: Sequence[int], kept: Path
) -> dict[str, list[float | None]]:
    """What a peer says of what is held out; nothing where no Python of its is named."""
    scores = kept / f"{one.name}.{peer}.json"
    if not scores.exists():
        if not (python := os.environ.get((PEERS | SAMPLING)[peer])):
            return {}
        _ask(peer, python, one, found, held, kept, scores)
    told: dict[str, list[float | None]] = json.loads(scores.read_text())
    return told


def _ask(
    peer: str, python: str, one: Set, found: Checkpoint, held: Sequence[int], kept: Path, scores: Path
) -> None:
    tokenizer, folder, lines = require_tokenizer(found), kept / "model", kept / f"{one.name}.jsonl"
    if not folder.exists():
        found.model.save_pretrained(folder)
        write_tokenizer(tokenizer, folder)
    rest = [place for place in range(len(one.examples)) if place not in set(held)]
    learnt = rest if peer == "lm-polygraph" else []
    with lines.open("w") as file:
        for place in (*held, *learnt):
            each = one.examples[place]
            ids = encode(tokenizer, each, frame_of(one.name), most_tokens=MOST_TOKENS)
            row = {
                "prompt": ids.prompt,
                "answer": ids.answer,
                "question": "\n".join(filter(None, (each.context, each.question))),
            }
            file.write(json.dumps(row | {"text": each.answer, "train": place in set(learnt)}) + "\n")
    script = Path(__file__).with_name("_hallucination_peers.py")
    subprocess.run([python, script, peer, folder, lines, scores], check=True, cwd=kept)
