"""Hardness weighting: a negative counts the more, the closer it is to the query.

Shapes: B queries of a tile, C candidates.
"""

from __future__ import annotations

import torch


def hardness_bonus(cosine_BC: torch.Tensor, positive_B: torch.Tensor, strength: float) -> torch.Tensor:
    """Returns what to add to scores before InfoNCE: strength x cosine for negatives, 0 for the positive.

    In the sum below InfoNCE's fraction a negative then has the weight exp(strength x cosine): Lan et al. 2025 (LLaVE,
    arXiv 2503.04812, eq. 5, in-batch negatives, strength 9) and Schechter Vera et al. 2025 (EmbeddingGemma, arXiv
    2509.20354, given negatives, strength 5). The weight has no gradient and is not divided by the temperature.

    Args:
        cosine_BC: Cosines, before the temperature.
        positive_B: int64, the column of each query's positive.
        strength: At least 0; 0 weighs all negatives alike.

    Relations:
        `hardness_mode="all_negatives"` of sentence-transformers 6: given and in-batch negatives alike.
    """
    return (strength * cosine_BC.detach().float()).scatter(1, positive_B[:, None], 0.0)
