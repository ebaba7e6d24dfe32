#!/usr/bin/env bash
# Presidio finds a URL in the first letters of a file name or a user name, and leaves the last ones in the text.
#
# Versions: presidio-analyzer 2.2.366, presidio-anonymizer 2.2.366.
# Expected: "report.docx" is one thing: found whole or not at all, as "report.pdf" is.
# Seen: the pattern for URLs without a scheme takes the longest top-level domain that the next letters begin with
#   (.do, .mil, .com) and does not ask for a word's end behind it. What the anonymizer returns holds fragments.
# Output seen on 2026-11-29:
#   report.pdf -> report.pdf
#   report.docx -> <URL>cx
#   jane.miller -> <URL>ler
#   john.compton -> <URL>pton
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet presidio-analyzer==2.2.366 presidio-anonymizer==2.2.366
"$folder/venv/bin/python" - <<'PY'
from presidio_analyzer.predefined_recognizers import UrlRecognizer
from presidio_anonymizer import AnonymizerEngine

seen = {"report.pdf": "report.pdf", "report.docx": "<URL>cx", "jane.miller": "<URL>ler", "john.compton": "<URL>pton"}
for text, expected in seen.items():
    found = UrlRecognizer().analyze(text, ["URL"], None)
    shown = AnonymizerEngine().anonymize(text, found).text
    print(f"{text} -> {shown}")
    assert shown == expected, (text, shown)
PY
