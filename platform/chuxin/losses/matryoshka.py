"""Matryoshka: the first numbers of a dense vector are to be a vector by themselves.

Shapes: N texts, H width, B queries of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def matryoshka(loss: Callable[..., torch.Tensor], dims: Sequence[int], *vectors_NH: torch.Tensor) -> torch.Tensor:
    """Returns the mean of a loss over several widths (Kusupati et al. 2022, weights all alike).

    Args:
        loss: Takes vectors cut to one width and brought to length 1 again, returns losses [B].
        dims: Widths; one above the full width counts as the full width. The full one is trained only if named.
        vectors_NH: The loss's arguments: queries, passages and whatever else it compares.

    Relations:
        FlagEmbedding's `use_mrl`, which its M3 model refuses and its base model has.
    """
    return torch.stack([loss(*(cut(vector_NH, dim) for vector_NH in vectors_NH)) for dim in dims]).mean(0)


def cut(vector_NH: torch.Tensor, dim: int) -> torch.Tensor:
    """Returns the first `dim` numbers of each vector, of length 1 again."""
    return torch.nn.functional.normalize(vector_NH[:, :dim].float(), dim=-1)
