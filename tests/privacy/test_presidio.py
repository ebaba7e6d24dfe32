"""Presidio behind our protocol, by a fake of its interface: the real one is not installed with the tests."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from transom.errors import MisconfiguredError, MissingExtraError
from transom.privacy.claims import CLAIMABLE, Claims
from transom.privacy.presidio import DEFAULT_MODEL, KIND_OF_ENTITY, LEAST_SCORE, Presidio, kind_of

TEXT = "Jane Miller, card 4111 1111 1111 1111, works at Siemens."
FOUND = [("PERSON", 0, 11), ("CREDIT_CARD", 18, 37), ("US_BANK_NUMBER", 18, 37), ("CLEARANCE", 48, 55)]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Presidio's three names and spaCy's one; how they were called."""
    made: dict[str, Any] = {}

    class Engine:
        def __init__(self, **given: Any) -> None:
            made.update(given)

        def analyze(self, text: str, language: str) -> list[SimpleNamespace]:
            made["language"] = language
            return [SimpleNamespace(entity_type=kind, start=a, end=b, score=0.9) for kind, a, b in FOUND]

    class Provider:
        def __init__(self, nlp_configuration: dict[str, Any]) -> None:
            made["configuration"] = nlp_configuration

        def create_engine(self) -> str:
            return "engine"

    modules: dict[str, dict[str, Any]] = {
        "spacy": {},
        "spacy.util": {"is_package": DEFAULT_MODEL.__eq__},
        "tldextract": {},
        "tldextract.tldextract": {"TLD_EXTRACTOR": SimpleNamespace(suffix_list_urls=("https://example",))},
        "presidio_analyzer": {"AnalyzerEngine": Engine},
        "presidio_analyzer.nlp_engine": {"NlpEngineProvider": Provider},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("spacy.util", "tldextract.tldextract"):
        package, _, part = name.partition(".")
        setattr(sys.modules[package], part, sys.modules[name])
    return made


def test_what_it_finds_is_of_our_kinds(made: dict[str, Any]) -> None:
    spans = Claims(recognisers={"presidio": Presidio()}).find(TEXT)
    assert [(TEXT[start:end], kind) for start, end, kind in spans] == [
        ("Jane Miller", "person"),
        ("4111 1111 1111 1111", "card"),
        ("Siemens", "rare"),
    ]
    assert made["configuration"]["models"] == [{"lang_code": "en", "model_name": DEFAULT_MODEL}]
    assert sys.modules["tldextract.tldextract"].TLD_EXTRACTOR.suffix_list_urls == ()  # nothing is fetched
    assert (made["language"], made["default_score_threshold"]) == ("en", LEAST_SCORE)


def test_a_model_is_named_or_lies_at_a_path_and_is_never_fetched(made: dict[str, Any], tmp_path: Any) -> None:
    with pytest.raises(MisconfiguredError, match="no spaCy model 'en_core_web_xl'"):
        Presidio("en_core_web_xl")
    assert "configuration" not in made
    (tmp_path / "config.cfg").touch()
    Presidio(str(tmp_path))
    assert made["configuration"]["models"][0]["model_name"] == str(tmp_path)


def test_without_the_extra_the_message_is_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[presidio\]'"):
        Presidio()


def test_every_entity_has_a_kind_that_can_be_claimed() -> None:
    assert set(KIND_OF_ENTITY.values()) <= set(CLAIMABLE)
    assert [kind_of(one) for one in ("UK_NHS", "US_SSN", "IP_ADDRESS", "NEW")] == [
        "document",
        "document",
        "identifier",
        "rare",
    ]
