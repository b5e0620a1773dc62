"""The ensemble: one score of the three heads, which is trained itself and teaches them.

Shapes: B queries of a tile, C candidates.
"""

from __future__ import annotations

import torch

SPARSE_WEIGHT = 0.3
"""Of the sparse score; dense and multi-vector have 1 (w of Chen et al. 2024, section 3.3, and FlagEmbedding's)."""


def ensemble_scores(dense_BC: torch.Tensor, sparse_BC: torch.Tensor, multi_BC: torch.Tensor) -> torch.Tensor:
    """Returns dense + 0.3 sparse + multi-vector, of scores that are all divided by the temperature or all not."""
    return dense_BC + SPARSE_WEIGHT * sparse_BC + multi_BC
