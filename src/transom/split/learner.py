"""How the learning rate of a split tuning goes with its steps.

Threat model: none. Does not protect anything. Source: as `transom.link.learner`.
"""

from __future__ import annotations

import math

from transom.link.learner import Schedule
from transom.split.job import Train


def schedule(train: Train, rows: int) -> Schedule:
    """The schedule of a job for so many rows of training."""
    total_steps = train.epochs * math.ceil(rows / train.batch_rows)
    return Schedule(train.learning_rate, math.ceil(train.warmup_share * total_steps), total_steps)
