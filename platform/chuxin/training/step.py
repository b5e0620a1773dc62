"""What a training step is made of: token-budget micro-batches, gathering over ranks, one summed report.

A global batch is shared out among W ranks. Each encodes its own texts, gathers the others' vectors and scores its
own queries; losses are divided by global counts, so that losses and gradients *summed* over ranks are those of one
process with the whole batch. Pure torch: DeepSpeed and Ray are not needed here.
Leaves out: GradCache (the activations of a rank's share live until its backward pass), objectives (pretrain.py,
finetune.py), the optimizer step (loop.py).

Shapes: B texts of a micro-batch, L tokens, H width, N texts of this rank, P of all ranks, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import distributed


def micro_batches(lengths: Sequence[int], budget: int) -> list[np.ndarray]:
    """Cuts texts into batches of similar length whose padded size is within a budget of tokens.

    Args:
        lengths: Tokens of each text.
        budget: Tokens of a batch, padding included; a longer text makes a batch of its own.

    Returns:
        Text indices of each batch, longest texts first: the largest batch comes first, and so does running out of
        memory.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, budget // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def pad(texts: Sequence[np.ndarray], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns token ids and mask, int64 [B, L], padded on the right to the longest text."""
    longest = max(len(text) for text in texts)
    ids = np.full((len(texts), longest), pad_id, np.int64)
    mask = np.zeros((len(texts), longest), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def encode(
    texts: Sequence[np.ndarray], embed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], budget: int,
    pad_id: int, device: torch.device, extra_batches: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Encodes texts in micro-batches and puts the vectors back in the texts' order.

    Args:
        texts: Token ids of each text; may be empty.
        embed: Token ids and mask [B, L] → vectors [B, H].
        budget: Tokens of a micro-batch, padding included.
        pad_id: Of the tokenizer.
        device: Where `embed` runs.
        extra_batches: Micro-batches of one padding token to run besides, their vectors thrown away: under ZeRO-3
            all ranks must run equally many. One is always run if there is no text, so that the result has a graph.

    Returns:
        Vectors [N, H].
    """
    batches = micro_batches([len(text) for text in texts], budget)
    vectors = [embed(*pad([texts[i] for i in batch], pad_id, device)) for batch in batches]
    nothing = [np.full(1, pad_id)]
    for _ in range(max(extra_batches, 0 if batches else 1)):
        ids, mask = pad(nothing, pad_id, device)
        vectors.append(embed(ids, torch.ones_like(mask))[:0])
    order = np.concatenate(batches) if batches else np.zeros(0, np.int64)
    back = torch.from_numpy(np.argsort(order, kind="stable")).to(device)
    return torch.cat(vectors)[back]


def padded_tokens(lengths: Sequence[int], budget: int) -> int:
    """Tokens that `encode` computes for texts of these lengths, padding included."""
    return sum(len(batch) * max(1, int(lengths[batch[0]])) for batch in micro_batches(lengths, budget))


def world_size() -> int:
    """Ranks that train together: 1 without a process group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """This process's rank."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def gather(tensor_NX: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Joins the ranks' rows, which may differ in number, in the order of ranks.

    The gradient of a rank's rows is the sum of what all ranks' losses send back to them. Every rank must run the
    backward pass, with a loss that depends on the result.

    Returns:
        Rows of all ranks [P, …], and where this rank's begin.
    """
    if world_size() == 1:
        return tensor_NX, 0
    sizes = [torch.zeros(1, dtype=torch.int64, device=tensor_NX.device) for _ in range(world_size())]
    distributed.all_gather(sizes, torch.tensor([len(tensor_NX)], device=tensor_NX.device))
    counts = [int(size) for size in sizes]
    return _Gather.apply(tensor_NX, counts), sum(counts[: rank()])


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


class _Gather(torch.autograd.Function):
    """All-gather of unequal row counts whose backward adds the ranks' gradients up."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, own_NX: torch.Tensor, counts: list[int]) -> torch.Tensor:
        ctx.counts = counts
        padded = own_NX.new_zeros((max(counts), *own_NX.shape[1:]))
        padded[: len(own_NX)] = own_NX
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        # gloo has no reduce-scatter of unequal parts; all-reduce moves W times as much, of vectors only.
        total = gradient.contiguous()
        distributed.all_reduce(total)
        start = sum(ctx.counts[: rank()])
        return total[start : start + ctx.counts[rank()]], None
