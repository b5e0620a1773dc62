"""Groups of unequal size as tables: each query's own passages, positive first, and a mask of what is filled up.

Shapes: B queries of a tile, G passages of the largest group, N passages of all groups, P candidates.
"""

from __future__ import annotations

import torch


def own_columns(first_B: torch.Tensor, count_B: torch.Tensor, largest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists the columns of each query's own passages.

    Args:
        first_B: int64, the column of the group's first passage; the others follow it.
        count_B: int64, passages of the group, at least 1.
        largest: G, the largest of `count_B` and at least 1; known on the host, so that no device has to be asked.

    Returns:
        int64 [B, G], its columns, the first repeated where a group is smaller; bool [B, G], False there.
    """
    place_G = torch.arange(largest, device=first_B.device)
    own_BG = place_G < count_B[:, None]
    return first_B[:, None] + place_G * own_BG, own_BG


def own_passages(first_B: torch.Tensor, count_B: torch.Tensor, passages: int) -> torch.Tensor:
    """Marks each query's own group among all passages: bool [B, P]. Its inverse excludes in-batch negatives."""
    column_P = torch.arange(passages, device=first_B.device)
    return (column_P >= first_B[:, None]) & (column_P < (first_B + count_B)[:, None])


def pad_groups(
    value_N: torch.Tensor, count_B: torch.Tensor, largest: int, fill: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turns one number a passage, groups one after another, into a table; `largest` as for `own_columns`.

    Returns:
        [B, G] with `fill` where a group is smaller, gradients kept; bool [B, G], False there.
    """
    first_B = torch.cumsum(count_B, 0) - count_B
    column_BG, own_BG = own_columns(first_B, count_B, largest)
    return value_N[column_BG].masked_fill(~own_BG, fill), own_BG
