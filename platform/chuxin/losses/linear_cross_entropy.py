"""Vocabulary projection and cross-entropy in one, in tiles: at no time are there logits of all tokens.

Loss and gradients come out of the forward pass: a tile's logits give the softmax's denominator in a first round and,
in a second, the gradient's shares of states, table and bias; then the tile is overwritten. What stays for the
backward pass is the gradients, as large as the weights. Measured on one CPU thread in fp32 (N 663, H 64, V 250,002),
forward and backward: PyTorch's linear + cross_entropy 6.4 s; 16 or 32 whole rows at a time 1.7 to 1.9 s; tiles that
stay in the cache 1.4 to 1.6 s, although each logit is computed twice. N 1,024, H 256: 15.4 s and 6.9 s.
Leaves out: what stands before the projection (models/retromae.py), label smoothing, ignored targets.

Shapes: N predicted tokens, H width, V vocabulary, R rows and C columns of a tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Tile(NamedTuple):
    """How many logits there are at once."""

    rows: int
    """Tokens computed together; the table and its gradient are passed over once for each so many."""
    columns: int
    """Entries of the vocabulary in a tile."""
    keep: bool
    """Keep the logits of all tiles of these rows, [R, V], instead of computing them a second time."""


CPU_TILE = Tile(1024, 512, keep=False)
"""2 MB of fp32 logits. On the machine above 128 to 1,024 rows × 256 to 4,096 columns lay within 10 % of it."""
CUDA_TILE = Tile(2048, 16384, keep=False)
"""134 MB of fp32 logits, whatever the vocabulary. Not yet measured: keeping a row's tiles would spare one product of
four, and hold all logits of up to 2,048 tokens."""


def linear_cross_entropy(
    states_NH: torch.Tensor, table_VH: torch.Tensor, bias_V: torch.Tensor, target_N: torch.Tensor,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Returns the summed cross-entropy of `states @ table.T + bias`.

    Args:
        states_NH: What is projected; N may be 0, gradients are then zero.
        table_VH: Output embeddings, usually the input's (tied).
        bias_V: One number an entry.
        target_N: int64, the right entries; one beyond the vocabulary makes the loss NaN.
        tile: Sizes; None takes the measured ones of the device.

    Returns:
        The sum as an fp32 scalar with a gradient, and the losses [N] in fp32 without.

    Relations:
        Equals `functional.cross_entropy(functional.linear(states, table, bias).float(), target, reduction="sum")`,
        gradients too. Under autocast products are in its dtype, softmax and sums in fp32, as there.
    """
    if tile is None:
        tile = CUDA_TILE if states_NH.is_cuda else CPU_TILE
    kind = states_NH.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states_NH.dtype
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(states_NH, table_VH, bias_V, target_N, dtype, tile)


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes gradients forward, for a loss whose gradient is 1, and multiplies them by the real one backward."""

    @staticmethod
    def forward(
        ctx: Any, states_NH: torch.Tensor, table_VH: torch.Tensor, bias_V: torch.Tensor, target_N: torch.Tensor,
        dtype: torch.dtype, tile: Tile,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        wanted = any(ctx.needs_input_grad)
        losses_N = torch.empty(len(states_NH), device=states_NH.device)
        gradients = None
        if wanted:
            fresh = torch.empty_like if len(states_NH) else torch.zeros_like
            gradients = [fresh(tensor, dtype=torch.float32) for tensor in (states_NH, table_VH, bias_V)]
        for start in range(0, len(states_NH), tile.rows):
            rows = slice(start, start + tile.rows)
            part = states_NH[rows].to(dtype), table_VH, bias_V, target_N[rows]
            own = gradients and [gradients[0][rows], *gradients[1:]]
            losses_N[rows] = _one_block(*part, tile, own, first=start == 0)
        ctx.gradients = gradients
        ctx.dtypes = tuple(tensor.dtype for tensor in (states_NH, table_VH, bias_V))
        ctx.mark_non_differentiable(losses_N)
        return losses_N.sum(), losses_N

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("a second backward pass: the gradients of the first are gone")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (own.mul_(gradient).to(dtype) for own, dtype in zip(gradients, ctx.dtypes, strict=True))
        return *scaled, None, None, None


def _one_block(
    states_RH: torch.Tensor, table_VH: torch.Tensor, bias_V: torch.Tensor, target_R: torch.Tensor, tile: Tile,
    gradients: list[torch.Tensor] | None, first: bool,
) -> torch.Tensor:  # fmt: skip
    """Returns the losses of so many rows; writes the states' gradient, adds to the others' (the first writes)."""
    size, vocabulary, dtype = len(states_RH), len(table_VH), states_RH.dtype
    columns = [slice(start, min(start + tile.columns, vocabulary)) for start in range(0, vocabulary, tile.columns)]
    kept = tile.keep and gradients is not None
    room = states_RH.new_empty(size * (vocabulary if kept else min(tile.columns, vocabulary)))

    def place(part: slice) -> torch.Tensor:
        start = size * part.start if kept else 0
        return room[start : start + size * (part.stop - part.start)].view(size, -1)

    def project(part: slice) -> torch.Tensor:
        bias_C, table_CH = bias_V[part].to(dtype), table_VH[part].to(dtype)
        return torch.addmm(bias_C, states_RH, table_CH.T, out=place(part))

    def right(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        # Where in the tile the right entry stands [R, 1] (anywhere if it is in another), and whether it does.
        place_R1 = (target_R - part.start)[:, None]
        within_R1 = place_R1.clamp(0, part.stop - part.start - 1)
        return within_R1, within_R1 == place_R1

    largest_R = torch.full((size,), float("-inf"), device=states_RH.device)
    total_R = torch.zeros_like(largest_R)
    right_R = torch.full_like(largest_R, float("nan"))  # stays so for a target that is no entry: nobody asks a device
    for part in columns:  # Milakov & Gimelshein 2018: the maximum and the sum in one round
        logits_RC = project(part)
        # The tile's own number, rounded as the sum's is: computed apart from it, losses near 0 would be below 0.
        place_R1, inside_R1 = right(part)
        right_R = torch.where(inside_R1, logits_RC.gather(1, place_R1).float(), right_R[:, None])[:, 0]
        risen_R = torch.maximum(largest_R, logits_RC.amax(1).float())
        powers_RC = logits_RC.to(torch.float32, copy=kept).sub_(risen_R[:, None]).exp_()
        total_R.mul_((largest_R - risen_R).exp_()).add_(powers_RC.sum(1))
        largest_R = risen_R
    norm_R = total_R.log_().add_(largest_R)
    losses_R = norm_R - right_R
    if gradients is None:
        return losses_R

    state_RH, whole_VH, whole_V = gradients
    for part in columns:
        logits_RC = place(part) if kept else project(part)
        share_RC = logits_RC.float().sub_(norm_R[:, None]).exp_()
        # Before rounding: of 1 - 0.001 bf16 would make 1, and a nearly certain token would teach nothing.
        place_R1, inside_R1 = right(part)
        share_RC.scatter_add_(1, place_R1, -inside_R1.float())
        bias_C = share_RC.sum(0)
        whole_V[part] = bias_C if first else whole_V[part].add_(bias_C)
        share_RC = share_RC.to(dtype)
        _multiply(state_RH, share_RC, table_VH[part].to(dtype), fresh=part.start == 0)
        _multiply(whole_VH[part], share_RC.T, states_RH, fresh=first)
    return losses_R


def _multiply(into: torch.Tensor, left: torch.Tensor, right: torch.Tensor, fresh: bool) -> None:
    """Writes the product of two matrices, or adds it, in fp32."""
    if left.dtype == torch.float32:
        torch.addmm(into, left, right, beta=0 if fresh else 1, out=into)
    elif fresh:
        into.copy_(left @ right)
    else:
        into.add_(left @ right)
