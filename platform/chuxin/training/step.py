"""Ranks that train together: who they are, and numbers added up over them.

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


def all_sum(values: Sequence[float], device: torch.device, tensors: Sequence[torch.Tensor] = ()) -> list[float]:
    """Adds numbers over the ranks, in fp64.

    Args:
        values: Known to the CPU.
        device: Where they are added up.
        tensors: On the device, of any shape; their elements follow the values. Nothing waits for the device but the
            result.
    """
    known = torch.tensor(values, dtype=torch.float64)
    known = known.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else known
    total = torch.cat([known, *(tensor.detach().double().flatten() for tensor in tensors)])
    if world_size() > 1:
        distributed.all_reduce(total)
    return total.tolist()
