"""One preset of Transom over texts: what `words_letters.py` runs, in a process of its own, for any build.

    python benchmarks/_letters_transom.py PRESET DRAWS < texts.json

`PYTHONPATH` says which build; one that has no presets knows `words` alone. The answer on standard output is a
list with an object a text: `changed`, a list a draw of the stretches [start, end) of the text that the host
does not see as they were; `restored`, whether the map gives the first draw's text back to the byte; `ms`,
the processor time of one draw.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from time import process_time
from typing import Any

from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitized, Sanitizer

LIKE = {ord("’"): "'", ord("‘"): "'", ord("\n"): " ", ord("\t"): " ", ord("\r"): " "}  # same length


def sanitizer(preset: str) -> Sanitizer:
    """A sanitiser under the shipped policy and a preset."""
    try:
        from transom.privacy.presets import with_preset
    except ImportError:
        if preset != "words":
            raise SystemExit(f"this build has no preset {preset!r}") from None
        return Sanitizer(load_policy())
    return Sanitizer(with_preset(load_policy(), preset))


def changed(text: str, sanitized: Sanitized) -> Iterator[tuple[int, int]]:
    """The stretches of `text` whose piece reads otherwise in the sanitised text.

    Pieces stand in the order of the text; white space and quotes may have been made plain on the way.
    """
    like, cursor = text.translate(LIKE), 0
    for piece in sanitized.pieces:
        source = piece.source.translate(LIKE)
        if not any(map(str.isalnum, source)):
            continue
        start = like.find(source, cursor)
        if start < 0 or any(map(str.isalnum, text[cursor:start])):
            raise SystemExit(f"the pieces do not follow the text at character {cursor}")
        cursor = start + len(source)
        if piece.output.casefold() != piece.source.casefold():
            yield start, cursor


def main() -> None:
    preset, draws = sys.argv[1], int(sys.argv[2])
    texts, one = json.load(sys.stdin), sanitizer(preset)
    for text in texts:  # so that no text pays for the tables of its draws
        one.sanitize(text, placeholders=Placeholders())
    results: list[dict[str, Any]] = []
    for text in texts:
        maps = [Placeholders() for _ in range(draws)]
        start_s = process_time()
        drawn = [one.sanitize(text, placeholders=names) for names in maps]
        took_s = process_time() - start_s
        results.append(
            {
                "changed": [list(changed(text, sanitized)) for sanitized in drawn],
                "restored": maps[0].restore(drawn[0].text) == text,
                "ms": 1000 * took_s / draws,
            }
        )
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
