"""Presidio's recognisers behind our protocol: what they find, in the kinds of a policy. An optional extra.

They run in this process. Entity types that are not known here (of a recogniser added to Presidio) count as
`rare`, so that nothing that was found is dropped. Findings below `LEAST_SCORE` are: Presidio gives any nine
digits 0.05 for a bank account, and the lexer hides numbers without it.
Threat model: that of Presidio and spaCy, which run with all the rights of this process. A model is loaded
from where it lies, and neither it nor the list of top-level domains is fetched. Does not protect: what they
miss.
Source: Presidio Analyzer 2.2, "Supported entities".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transom.errors import MisconfiguredError, extra
from transom.privacy.kinds import Span

DEFAULT_MODEL = "en_core_web_lg"
LEAST_SCORE = 0.3
KIND_OF_ENTITY = {
    "PERSON": "person",
    "LOCATION": "place",
    "ORGANIZATION": "organisation",
    "NRP": "name",
    "DATE_TIME": "date",
    "AGE": "number",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "account",
    "US_BANK_NUMBER": "account",
    "CRYPTO": "account",
    "EMAIL_ADDRESS": "email",
    "EMAIL": "email",
    "URL": "url",
    "IP_ADDRESS": "identifier",
    "MAC_ADDRESS": "identifier",
    "UUID": "identifier",
    "ID": "document",
    "MEDICAL_LICENSE": "document",
}


class Presidio:
    """Presidio's analyzer with a spaCy model. Raises MissingExtraError, MisconfiguredError."""

    def __init__(self, model: str = DEFAULT_MODEL, language: str = "en") -> None:
        with extra("presidio", "presidio-analyzer"):
            import spacy.util
            import tldextract.tldextract
            from presidio_analyzer import AnalyzerEngine
            from presidio_analyzer.nlp_engine import NlpEngineProvider
        if not spacy.util.is_package(model) and not Path(model, "config.cfg").is_file():
            raise MisconfiguredError(
                f"no spaCy model {model!r} is installed or lies at this path; name one: presidio:MODEL"
            )
        models = [{"lang_code": language, "model_name": model}]
        provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models})
        tldextract.tldextract.TLD_EXTRACTOR.suffix_list_urls = ()  # else the first e-mail address fetches it
        self._language = language
        self._analyzer: Any = AnalyzerEngine(
            nlp_engine=provider.create_engine(),
            supported_languages=[language],
            default_score_threshold=LEAST_SCORE,
        )

    def find(self, text: str) -> Iterator[Span]:
        """What Presidio finds."""
        for found in self._analyzer.analyze(text=text, language=self._language):
            yield Span(found.start, found.end, kind_of(found.entity_type))


def kind_of(entity: str) -> str:
    """The kind of a Presidio entity type."""
    of_a_country = entity[2:3] == "_"  # UK_NHS, US_SSN, IT_FISCAL_CODE
    return KIND_OF_ENTITY.get(entity, "document" if of_a_country else "rare")
