"""Stops a training whose loss or gradient is no number, or whose loss explodes, before the weights change.

Leaves out: what is done about it (the user lowers the rate or looks at the batch; the last checkpoint is kept).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from chuxin.errors import InputError

WINDOW = 50
"""Losses whose highest the next one is compared with.

Not their median: batches of one source each differ by far more than a factor between an easy source and a hard one
(0.1 and 4.1 within thirty steps of the real world's finetuning).
"""
LEFT_OUT = 10
"""Newest losses that are not among them: a loss that grows by less than `max_ratio` a step would raise its own bar.

So growth of more than max_ratio ** (1 / 11) a step is seen: 1.16 at the default of 5.
"""
KNOWN = 30
"""Losses, the newest included, before which nothing is compared."""
FLOOR = 1.0
"""The least that is taken for their highest, in nats: a loss near zero that doubles is no explosion."""


class Guard:
    """Looks at each step's loss and gradient norm.

    Args:
        max_ratio: Highest loss, in multiples of the highest of the 50 that lie more than 10 steps back.
        recent: The last losses of an earlier part of this run.
    """

    def __init__(self, max_ratio: float, recent: Iterable[float] = ()) -> None:
        self.max_ratio = max_ratio
        self.recent = deque(recent, WINDOW + LEFT_OUT)

    def check_loss(self, loss: float, where: str, rate: float) -> None:
        """Checks a step's loss and remembers it.

        Args:
            loss: Of the global batch.
            where: Names step, epoch, batch and source.
            rate: The learning rate.

        Raises:
            InputError: It is no number, or exploded.
        """
        if not math.isfinite(loss):
            raise _stopped(where, f"the loss is {loss}", rate)
        compared = list(self.recent)[:-LEFT_OUT]
        highest = max([FLOOR, *compared])
        if len(self.recent) >= KNOWN and loss > self.max_ratio * highest:
            against = f"the highest of the {len(compared)} that lie more than {LEFT_OUT} steps back"
            problem = f"the loss is {loss:.4g}, {loss / highest:.1f} times {against}"
            raise _stopped(where, problem, rate, ", or raise max_loss_ratio")
        self.recent.append(loss)

    def check_norm(self, norm: float, where: str, rate: float) -> None:
        """Checks a step's gradient norm.

        Raises:
            InputError: It is no number.
        """
        if not math.isfinite(norm):
            raise _stopped(where, f"the gradient's norm is {norm}", rate)


def _stopped(where: str, problem: str, rate: float, choice: str = "") -> InputError:
    look = f"Lower optimizer.learning_rate (it was {rate:.3g}) or look at this batch"
    return InputError(where, problem, f"{look}{choice}; the last checkpoint is kept")
