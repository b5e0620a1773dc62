"""The dense score: the cosine of two vectors.

Shapes: B queries of a tile, P passages, H width.
"""

from __future__ import annotations

import torch


def dense_scores(query_BH: torch.Tensor, passage_PH: torch.Tensor) -> torch.Tensor:
    """Returns the inner products [B, P], which are cosines if vectors have length 1 (as the model's do).

    In fp32, under autocast too: divided by a temperature of 0.02, what bf16 rounds a cosine by comes to 0.1.

    Relations:
        FlagEmbedding's `compute_dense_score` before it divides by the temperature.
    """
    with torch.autocast(query_BH.device.type, enabled=False):
        return query_BH.float() @ passage_PH.float().T
