"""Ranks that train together: who they are, and numbers added up or compared over them.

Pure torch: without a process group there is one rank. Leaves out: gathering tensors (gather.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import distributed


def world_size() -> int:
    """Ranks that train together: 1 without a process group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """This process's rank."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def all_sum(values: Sequence[float], device: torch.device) -> list[float]:
    """Adds numbers over the ranks, in fp64."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if world_size() > 1:
        distributed.all_reduce(total)
    return total.tolist()


def all_max(value: int, device: torch.device) -> int:
    """The largest of the ranks' integers."""
    largest = torch.tensor([value], device=device)
    if world_size() > 1:
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return int(largest)
