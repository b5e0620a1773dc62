"""AdamW over a module's parameters, and the learning rate as a pure function of the step.

The rate has no state of its own, so a resumed run cannot be off by a step. Leaves out: sharding (DeepSpeed).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from chuxin.errors import InputError
from chuxin.training.config import OptimizerConfig


def check_schedule(config: OptimizerConfig, total: int, where: str) -> None:
    """Checks that a schedule fits a run.

    Raises:
        InputError: The decay of `wsd` would begin within the warm-up.
    """
    if config.schedule == "wsd" and config.warmup_steps + config.decay_steps > total:
        steps = f"{config.warmup_steps} warmup_steps and {config.decay_steps} decay_steps"
        raise InputError(f"{where}.optimizer", f"{steps} do not fit into {total} steps", "Lower one of the two")


def learning_rate(config: OptimizerConfig, step: int, total: int) -> float:
    """Returns the learning rate of a step.

    Args:
        config: Rate, warm-up and schedule.
        step: 1 … total. The first step of a warm-up of w steps has 1/w of the full rate.
        total: Steps of the whole run; every decay would reach 0 at step total + 1, so that every step counts.

    *Relations*: `linear` and `cosine` are transformers' schedules of the same name, shifted by that one step.
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    left = total + 1 - step
    if config.schedule == "wsd":
        return config.learning_rate * min(1.0, left / (config.decay_steps + 1))
    share = left / (total + 1 - config.warmup_steps)
    return config.learning_rate * (share if config.schedule == "linear" else (1 - math.cos(math.pi * share)) / 2)


def new_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Builds AdamW with two parameter groups: matrices decay, biases and norms do not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon, foreach=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
