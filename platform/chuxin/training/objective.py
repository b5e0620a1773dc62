"""What the loop asks of an objective: tensors from a plan's batch, the backward passes of a step, its terms.

An objective's loss is a sum over ranks: each rank computes its share of one global mean, so that losses and gradients
summed over ranks are those of one process with the whole batch. Leaves out: objectives themselves (finetune.py,
pretrain.py, rerank.py) and who calls them (loop.py).

Shapes: S sources of the plan.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from chuxin.training.plan_reader import Batch


class Sent(Protocol):
    """Runs the backward pass of one part of a step's loss."""

    def __call__(self, loss: torch.Tensor, last: bool) -> None:
        """Adds the gradients of `loss`; `last` is true exactly once, on the step's last part.

        The loop multiplies by the number of ranks, since DeepSpeed averages over them.
        """


class Terms(NamedTuple):
    """What a step's record says about the loss."""

    means: dict[str, torch.Tensor]
    """This rank's share of global means, scalars: "loss" first, then its terms; summed over ranks they are the
    figure."""
    by_source: torch.Tensor | None
    """This rank's sums of losses and counts of rows [S, 2] in the order of the plan's sources, or None."""
    cached_bytes: int = 0
    """Bytes of the vectors that GradCache kept on this rank."""


class Objective(Protocol):
    """What the loop needs of an objective."""

    def prepare(self, batch: Batch) -> Any:
        """Turns a plan's rows into tensors on the CPU; runs in the reader's thread."""

    def backward(self, prepared: Any, device: torch.device, send: Sent) -> Terms:
        """Computes a step's loss and sends its parts backward."""

    def tokens(self, prepared: Any) -> tuple[int, int]:
        """Tokens of this rank's share: real ones, and those computed (equal where nothing is padded)."""
