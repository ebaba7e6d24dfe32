#!/usr/bin/env bash
# Presidio's e-mail recogniser opens a connection to publicsuffix.org at the first address that it meets.
#
# Versions: presidio-analyzer 2.2.366, tldextract 5.4.0 (which it validates addresses with).
# Expected: analysing a text needs no network: the package lists of top-level domains come with tldextract.
# Seen: `tldextract.extract` is used with its defaults, which fetch the list of public suffixes anew (no part of the
#   text is sent); without a network the log gets two tracebacks, and behind a firewall the first text waits.
#   With `tldextract.tldextract.TLD_EXTRACTOR.suffix_list_urls = ()` the list that is packaged is used.
# Output seen on 2026-11-29:
#   by default: found 1, looked for ['publicsuffix.org', 'raw.githubusercontent.com']
#   without addresses to fetch from: found 1, looked for []
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet presidio-analyzer==2.2.366 tldextract==5.4.0
cat >"$folder/look.py" <<'PY'
import logging
import socket
import sys

asked = []


def no_network(host, *given, **named):
    asked.append(host)
    raise socket.gaierror(-3, "there is none here")


socket.getaddrinfo = no_network
import tldextract
from presidio_analyzer.predefined_recognizers import EmailRecognizer

logging.disable()
what = "by default"
if "packaged" in sys.argv:
    what = "without addresses to fetch from"
    tldextract.tldextract.TLD_EXTRACTOR.suffix_list_urls = ()
found = EmailRecognizer().analyze("Write to jane@example.org", ["EMAIL_ADDRESS"], None)
print(f"{what}: found {len(found)}, looked for {asked}")
assert len(found) == 1
assert bool(asked) == ("packaged" not in sys.argv)
PY
TLDEXTRACT_CACHE="$folder/one" "$folder/venv/bin/python" "$folder/look.py"
TLDEXTRACT_CACHE="$folder/two" "$folder/venv/bin/python" "$folder/look.py" packaged
