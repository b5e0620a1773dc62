"""What the loop tells and when, and dropout that follows the config and not the checkpoint."""

import time
from collections.abc import Iterator

import torch
from torch import nn

from chuxin.training.deepspeed import deepspeed_config
from chuxin.training.loop import set_dropout, watch


def steps(first: int, last: int, seconds: float) -> Iterator[dict]:
    for step in range(first, last + 1):
        time.sleep(seconds)
        yield {"step": step}


def test_first_and_last_are_always_told_and_records_pass_through() -> None:
    told: list[dict] = []
    assert [record["step"] for record in watch(steps(1, 5, 0), 5, 60, told.append)] == [1, 2, 3, 4, 5]
    assert [record["step"] for record in told] == [1, 5] and told[-1]["remaining"] == 0


def test_the_estimate_counts_from_where_a_resumed_run_began() -> None:
    told: list[dict] = []
    list(watch(steps(91, 95, 0.02), 100, 0.0, told.append))
    assert len(told) == 5 and told[-1]["total"] == 100
    # 5 steps took t, so 5 more take t.
    assert abs(told[-1]["remaining"] - told[-1]["elapsed"]) < 0.02


def test_set_dropout() -> None:
    module = nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Dropout(0.5)))
    set_dropout(module, 0.0)
    ones = torch.ones(50)
    assert torch.equal(module.train()(ones), ones)


def test_deepspeed_clips_only_where_it_tells_the_norm() -> None:
    assert deepspeed_config(0, False, 1.0)["gradient_clipping"] == 0.0
    config = deepspeed_config(2, True, 0.5)
    assert config["gradient_clipping"] == 0.5 and config["zero_optimization"] == {"stage": 2}
    assert config["torch_autocast"]["enabled"] and "bf16" not in config and "optimizer" not in config
