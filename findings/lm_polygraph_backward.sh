#!/usr/bin/env bash
# Two of lm-polygraph's scores of uncertainty are higher where the model is certain.
#
# Version: lm-polygraph 0.7.0.
# Expected: scores are ordered as their documentation says ("higher values indicate more uncertain samples"): one token
#   with all of the probability scores lower than forty equally likely ones.
# Seen: so it is with SelfCertainty and MeanTokenEntropy. FisherRao and RenyiNeg are the distance to the uniform
#   distribution itself, not less it, and score the certain model higher; whoever sorts by them sorts backward.
# Output seen on 2026-12-01:
#   SelfCertainty: unsure is higher
#   MeanTokenEntropy: unsure is higher
#   FisherRao: certain is higher
#   RenyiNeg: certain is higher
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 lm-polygraph==0.7.0
"$folder/venv/bin/python" -W ignore - <<'PY' | tee "$folder/seen"
import numpy as np
from lm_polygraph.estimators import FisherRao, MeanTokenEntropy, RenyiNeg, SelfCertainty
from lm_polygraph.stat_calculators.entropy import EntropyCalculator

certain = np.full((1, 40), -40.0)
certain[0, 5] = 0.0
unsure = np.full((1, 40), -np.log(40.0))
for scorer in (SelfCertainty(), MeanTokenEntropy(), FisherRao(), RenyiNeg()):
    found = []
    for log_probabilities in (certain, unsure):
        stats = {"greedy_log_probs": [log_probabilities]}
        found.append(float(scorer(stats | EntropyCalculator()(stats))[0]))
    print(f"{scorer}: {'certain' if found[0] > found[1] else 'unsure'} is higher")
PY
diff "$folder/seen" - <<'SEEN'
SelfCertainty: unsure is higher
MeanTokenEntropy: unsure is higher
FisherRao: certain is higher
RenyiNeg: certain is higher
SEEN
