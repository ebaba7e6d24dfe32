"""The official client as `make test-clients` asks it, and the page that is made of what all clients did."""

from __future__ import annotations

import json

from tests.clients.asking import done
from tests.clients.run import PAGE, RESULTS, gateways, page, row, works


def test_the_official_client_does_what_it_is_known_for_and_words_stay_here() -> None:
    import sys

    seen: list[bytes] = []
    with gateways(seen) as urls:
        found = row(sys.executable, "openai", urls, seen)
    assert found["did"]
    assert all(one == {"plain": "works", "words": "works"} for one in found["did"].values())


def test_what_does_not_work_is_told() -> None:
    told = done("openai", "http://127.0.0.1:9/v1")["did"]
    assert told
    assert not any(map(works, told.values()))
    assert not works({"answer": ["all at once"]})
    assert not works({"answer": "  "})


def test_the_page_is_of_the_stored_results() -> None:
    assert page(json.loads(RESULTS.read_text("utf-8"))) == PAGE.read_text("utf-8")
