"""Scores weights while training and keeps the best.

Leaves out: the score (dev.py), how weights are stored (checkpoint.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import nn

from chuxin.training import checkpoint
from chuxin.training.ema import Average
from chuxin.training.loop import DEV, Record


def scored(
    records: Iterator[Record], score: Callable[[], float], every: int, total: int, module: nn.Module,
    average: Average | None, state: str, owner: str, done: int,
) -> Iterator[Record]:  # fmt: skip
    """Passes records on, now and then with a score; writes the weights where it is the highest so far.

    Args:
        records: Of the steps, each right behind its step.
        score: Scores the weights in place; all ranks call it, and get the same.
        every: Steps between two scores; step `total` is always scored.
        total: The run's last step.
        module: Inside the engine.
        average: Scored and kept instead of the weights, if there is one.
        state: The run's.
        owner: This run's name.
        done: Steps that the weights have behind them.
    """
    best = checkpoint.best(state, done)
    for record in records:
        step = record["step"]
        if step % every and step != total:
            yield record
            continue
        with average.in_place() if average is not None else contextlib.nullcontext():
            value = score()
            if best is None or value > best.score:
                best = checkpoint.save_best(module, state, owner, step, value)
        yield {**record, DEV: round(value, 6)}
