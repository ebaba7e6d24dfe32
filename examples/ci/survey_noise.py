"""The mechanism that the sample build audits: a yes or no answer, given truthfully with probability 73 %.

It claims epsilon 1: 0.73 / 0.27 is just below e. Change TRUTHFUL to 0.8 and the build fails.
"""

from __future__ import annotations

import secrets

TRUTHFUL = 0.73


def answer(truth: str) -> str:
    """`truth` ("yes" or "no"), or its opposite."""
    truthful = secrets.randbelow(10_000) < 10_000 * TRUTHFUL
    return truth if truthful else {"yes": "no", "no": "yes"}[truth]
