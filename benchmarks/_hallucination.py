"""Sets of answers for the benchmarks of made-up answers, with their states; `TRANSOM_DATA` is the data's
folder.

    facts, animals, capitals, ...   statements that are true or false (Azaria and Mitchell 2023), read bare
    halueval                        a chat model's answers of up to 64 tokens to users, judged by people (Li
    et
                                    al. 2023), all that are made up and two and a half times as many others
    truthfulqa                      SmolLM2's own answers of up to 64 tokens to TruthfulQA's questions (Lin et
    al.
                                    2022), judged by its correct and incorrect answers (`examples.matched`)
    truthfulqa-read                 the same with what is found for each question among all correct answers:
    the
                                    three that share most words with it, rare ones counting more
    xsum                            SmolLM2's own summaries of the first 120 words of documents, made up where
                                    they name what the document does not (`examples.strays`)

Of each set one in three answers is held out.
"""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transom.checkpoint.greedy import greedy_answers
from transom.checkpoint.load import Checkpoint
from transom.errors import MisconfiguredError
from transom.trust.hallucination.examples import Row
from transom.trust.hallucination.states import Example, Reader, encode, prompt_of
from transom.trust.hallucination.study import Set
from transom.trust.prompt import PLAIN, Frame, require_tokenizer

TOPICS = ("facts", "animals", "capitals", "cities", "elements", "inventions")
SETS = (*TOPICS, "halueval", "truthfulqa", "truthfulqa-read", "xsum")
CHAT = Frame("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
ANSWER_TOKENS, MOST_TOKENS, MOST = 64, 512, 600
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
    if name == "truthfulqa-read":
        find = _finder([one for right in known for one in right])
        rows = [
            replace(one, example=replace(one.example, context=find(one.example.question))) for one in rows
        ]
    return draw.sample(rows, len(rows))


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


def answered(found: Checkpoint, name: str, rows: Sequence[Row]) -> list[Example]:
    """Answers that are known, of those that the model gives where references tell."""
    tokenizer = require_tokenizer(found)
    if all(row.example.answer for row in rows):
        return [row.example for row in rows if row.example.made_up is not None]
    prompts = [prompt_of(tokenizer, row.example, CHAT)[0] for row in rows]
    said = greedy_answers(found.model, prompts, tokenizer.eos_ids, most_tokens=ANSWER_TOKENS, at_once=16)
    given = []
    for row, ids in zip(rows, said, strict=True):
        text = tokenizer.tokenizer.decode([one for one in ids if one not in tokenizer.eos_ids]).strip()
        judged = replace(row, example=replace(row.example, answer=text)).judged(name == "xsum")
        if text and judged.made_up is not None:
            given.append(judged)
    return given


def set_of(name: str, found: Checkpoint, reader: Reader, most: int = MOST) -> Set:
    """The set, `most` answers of it, with their states."""
    examples, states = [], []
    for one in answered(found, name, rows_of(name, found)[: 2 * most]):
        if len(examples) == most:
            break
        try:
            ids = encode(require_tokenizer(found), one, frame_of(name), most_tokens=MOST_TOKENS)
        except MisconfiguredError:
            continue
        examples.append(one)
        states.append(reader.read(ids))
    return Set(name, examples, states)
