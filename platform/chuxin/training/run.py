"""What a training's driver tells its workers.

A module of its own and light: Ray Train's controller unpickles it too, and would otherwise import torch's whole
world a second time (6 s of the 14 s before a first step).
"""

from __future__ import annotations

from typing import NamedTuple

from chuxin.training.config import TrainingConfig
from chuxin.training.plan_reader import Plan


class Run(NamedTuple):
    """All that a worker is told."""

    stage: str
    config: TrainingConfig
    plan: Plan
    plan_uri: str
    model: str
    dev: str | None
    """Local folder of the dev benchmark."""
    state: str
    owner: str
