"""Tensors of all ranks joined, and gradients with respect to the joined tensor sent home as their sum over ranks.

Both are collectives without autograd: a loss that is computed in tiles adds its gradients up first and sends them
home once (candidates.py). Leaves out: which tensors; numbers that are added up (step.py).

Shapes: N rows of this rank, P of all ranks, W ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import distributed

from chuxin.training.step import rank


def gather(tensor_NX: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Joins the ranks' rows in the order of ranks, whose numbers may differ.

    Args:
        tensor_NX: This rank's rows, of any dtype; those after the first axis have the same size on every rank.
        counts: Rows of each rank, which the plan tells.

    Returns:
        Rows of all ranks [P, …], without a graph; the tensor itself if there is one rank.
    """
    if len(counts) == 1:
        return tensor_NX.detach()
    padded = tensor_NX.new_zeros((max(counts), *tensor_NX.shape[1:]))
    padded[: len(tensor_NX)] = tensor_NX.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def send_home(gradient_PX: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Adds up what all ranks' losses say about the joined rows and returns this rank's.

    Args:
        gradient_PX: Of this rank's loss, with respect to what `gather` returned; overwritten.
        counts: As given to `gather`.

    Returns:
        Gradient [N, …] of the sum of all ranks' losses.

    Relations:
        `gather` followed by this is the autograd of an all-gather. FlagEmbedding puts its own rows back in place and
        drops what the other ranks' losses say about them, so that after averaging its gradient is 1/W of this one.
    """
    if len(counts) == 1:
        return gradient_PX
    # gloo has no reduce-scatter of unequal parts; all-reduce moves W times as much, of vectors only.
    total = gradient_PX.contiguous()
    distributed.all_reduce(total)
    start = sum(counts[: rank()])
    return total[start : start + counts[rank()]]
