"""The learning rate by step, and which parameters decay."""

import math

import pytest
import torch
from torch import nn

from chuxin.errors import InputError
from chuxin.training.config import OptimizerConfig
from chuxin.training.optimizer import check_schedule, learning_rate, new_optimizer, set_learning_rate


def test_linear_warm_up_and_decay() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    rates = [learning_rate(config, step, 8) for step in range(1, 9)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_constant_and_no_warm_up() -> None:
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=0, schedule="constant")
    assert [learning_rate(config, step, 3) for step in (1, 2, 3)] == [0.5] * 3
    assert learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=0), 1, 4) == pytest.approx(0.8)


def test_cosine_is_half_a_wave_and_every_step_counts() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=2, schedule="cosine")
    rates = [learning_rate(config, step, 10) for step in range(1, 11)]
    # transformers' get_cosine_schedule_with_warmup, whose rate would be 0 at step 11.
    wave = [2.0 * 0.5 * (1 + math.cos(math.pi * (step - 2) / 9)) for step in range(3, 11)]
    assert rates == pytest.approx([1.0, 2.0, *wave]) and rates[-1] > 0


def test_wsd_is_stable_until_the_last_steps() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, schedule="wsd", decay_steps=3)
    rates = [learning_rate(config, step, 8) for step in range(1, 9)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_a_decay_that_would_begin_within_the_warm_up_is_refused() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=5, schedule="wsd", decay_steps=4)
    check_schedule(config, 9, "finetune")
    assert max(learning_rate(config, step, 9) for step in range(1, 10)) == 1.0
    with pytest.raises(InputError, match="finetune.optimizer: 5 warmup_steps and 4 decay_steps do not fit into 8"):
        check_schedule(config, 8, "finetune")
    check_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=5), 3, "finetune")


def test_a_rate_follows_from_the_step_alone() -> None:
    for schedule, decay in (("linear", 0), ("cosine", 0), ("wsd", 4), ("constant", 0)):
        config = OptimizerConfig(1e-4, 3, schedule, decay)
        rates = [learning_rate(config, step, 20) for step in range(1, 21)]
        assert rates[10:] == [learning_rate(config, step, 20) for step in range(11, 21)]
        assert max(rates) == pytest.approx(1e-4) and min(rates) > 0
        assert all(after <= before for before, after in zip(rates[2:], rates[3:], strict=False))


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
