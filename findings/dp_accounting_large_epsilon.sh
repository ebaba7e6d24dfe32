#!/usr/bin/env bash
# dp-accounting's privacy loss distributions report, above an epsilon of about 700, infinity or one too much.
#
# Version: dp-accounting 0.6.0.
# Expected: `get_epsilon_for_delta` of a Gaussian lies a little above the exact epsilon (Balle and Wang 2018,
#   theorem 8), however large that is, as the grid's rounding is upwards: within 1e-4 on a grid of 0.01.
# Seen: up to 700 it does. Where exp(-loss) is no longer a normal float64 it is infinite (with numpy's warning
#   "overflow encountered in scalar divide") or nearly 1 too large: an upper bound still, and not a tight one.
# Output seen on 2026-11-29:
#   sigma 1/33, delta 1e-06: exact 700.429, reported 700.429
#   sigma 1/34, delta 1e-06: exact 738.681, reported 739.620
#   sigma 1/35, delta 1e-03: exact 719.700, reported inf
# Fails when any of that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dp-accounting==0.6.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import math

from dp_accounting.pld import privacy_loss_distribution
from scipy.optimize import brentq
from scipy.special import log_ndtr


def exact(mu, delta):
    def excess(epsilon):
        reached, allowed = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
        return reached + math.log(-math.expm1(allowed - reached)) - math.log(delta)

    return brentq(excess, 0, mu * mu)


def both(mu, delta):
    made = privacy_loss_distribution.from_gaussian_mechanism(1 / mu, value_discretization_interval=0.01)
    told, right = made.get_epsilon_for_delta(delta), exact(mu, delta)
    print(f"sigma 1/{mu}, delta {delta:.0e}: exact {right:.3f}, reported {told:.3f}")
    return told - right


assert 0 <= both(33, 1e-6) < 1e-4
assert 0.9 < both(34, 1e-6) < 1
assert both(35, 1e-3) == math.inf
PY
