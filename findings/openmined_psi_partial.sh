#!/usr/bin/env bash
# openmined-psi takes a response that is cut short, and a raw setup out of order, and gives a part of the
# intersection without an error.
#
# Version: openmined-psi 2.0.6.
# Expected: `GetIntersection` knows how many elements it asked for, and refuses fewer; a raw setup, which a
#   server sends sorted, gives the same intersection in any order, or is refused.
# Seen: both are taken. A response without its last element lacks that element's match; of a setup in reverse
#   order one match of two is found, or none, as the secrets fall. Whoever splits messages or keeps their
#   elements in another order loses rows of a join.
# Output seen on 2026-11-29:
#   as sent: [1, 2]
#   response cut short: [1]
#   setup reversed: [1]
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openmined-psi==2.0.6
"$folder/venv/bin/python" - <<'PY'
import private_set_intersection.python as psi

theirs = ["b", "c", "d"]
client, server = psi.client.CreateWithNewKey(True), psi.server.CreateWithNewKey(True)
setup = server.CreateSetupMessage(1e-9, 3, theirs, psi.DataStructure.RAW)
response = server.ProcessRequest(client.CreateRequest(["a", "b", "c"]))


def found(name, setup, response):
    result = sorted(client.GetIntersection(setup, response))
    print(f"{name}: {result}")
    return result


assert found("as sent", setup, response) == [1, 2]
short = psi.Response(encrypted_elements=response.encrypted_elements[:2])
assert found("response cut short", setup, short) == [1]
other = psi.ServerSetup()
other.raw.encrypted_elements.extend(sorted(setup.raw.encrypted_elements, reverse=True))
assert len(found("setup reversed", other, response)) < 2
PY
