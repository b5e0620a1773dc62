"""The learning rate by step, and which parameters decay."""

import pytest
import torch
from torch import nn

from chuxin.training.config import OptimizerConfig
from chuxin.training.optimizer import learning_rate, new_optimizer, set_learning_rate


def test_linear_warm_up_and_decay() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    rates = [learning_rate(config, step, 8) for step in range(1, 9)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_constant_and_no_warm_up() -> None:
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=0, schedule="constant")
    assert [learning_rate(config, step, 3) for step in (1, 2, 3)] == [0.5] * 3
    assert learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=0), 1, 4) == pytest.approx(0.8)


def test_a_warm_up_longer_than_the_run_never_reaches_the_full_rate() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10)
    assert learning_rate(config, 3, 3) == pytest.approx(0.3)


def test_matrices_decay_biases_and_norms_do_not() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    module[2].requires_grad_(False)
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, beta2=0.98)
    optimizer = new_optimizer(module, config)
    decayed, plain = optimizer.param_groups
    assert [p.shape for p in decayed["params"]] == [(4, 3)] and decayed["weight_decay"] == 0.5
    assert len(plain["params"]) == 3 and plain["weight_decay"] == 0 and plain["betas"] == (0.9, 0.98)
    set_learning_rate(optimizer, 0.2)
    before = module[0].weight.detach().clone()
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    torch.testing.assert_close(module[0].weight.detach(), before * (1 - 0.2 * 0.5))
