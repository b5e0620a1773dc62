"""An exponential moving average of the trained weights, in fp32.

Averaged weights generalise like those of a lower learning rate (Polyak & Juditsky 1992; Izmailov et al. 2018). Each
rank averages what it holds: at ZeRO 3 its slices, below it everything. Leaves out: files (checkpoint.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from chuxin.training.shards import local, part, refresh, trained


class Average:
    """The average of a module's trained weights; begins at the weights it is made with.

    Args:
        module: Inside the engine.
        decay: Weight of the old average in a step.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.held = {name: local(parameter).clone() for name, parameter in trained(module).items()}
        """What `shards.local` is to the weights."""

    def update(self) -> None:
        """Takes a step's weights in: average = decay × average + (1 − decay) × weights."""
        weights = [local(parameter) for parameter in trained(self.module).values()]
        torch._foreach_lerp_(list(self.held.values()), weights, 1.0 - self.decay)

    def restore(self, read: Callable[[str], torch.Tensor]) -> None:
        """Goes on with an earlier average; `read` gives a parameter's whole one."""
        for name, parameter in trained(self.module).items():
            self.held[name].copy_(part(read(name), parameter))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the module has the averaged weights; all ranks together, and no step in it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        # By content: ZeRO's flat buffers alias the weights. One parameter at a time is held twice.
        for name, parameter in trained(self.module).items():
            weight = local(parameter)
            kept = weight.clone()
            weight.copy_(self.held[name])
            self.held[name].copy_(kept)
        refresh(self.module)
