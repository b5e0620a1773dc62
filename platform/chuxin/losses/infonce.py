"""InfoNCE on scores: every passage of the batch is a candidate of every query.

Leaves out: how scores come about (dense.py, sparse.py, multivector.py, ensemble.py), teacher scores
(distillation.py), other candidates than passages (directions.py).

Shapes: B queries of a tile, C candidates, P passages of the whole global batch.
"""

from __future__ import annotations

import torch


def infonce(scores_BC: torch.Tensor, positive_B: torch.Tensor, excluded_BC: torch.Tensor | None = None) -> torch.Tensor:
    """Returns -log softmax of each query's positive among all candidates (van den Oord et al. 2018, eq. 4).

    Candidates stand in one flat list, so queries may bring any number of negatives: none is ever made up.

    Args:
        scores_BC: Scores already divided by the temperature (0.02 in BGE-M3, Chen et al. 2024); -inf takes a
            candidate out.
        positive_B: int64, the column that is each query's positive.
        excluded_BC: bool; True takes a candidate out, for example a false negative. A query's positive is never
            taken out.

    Returns:
        Losses [B] in fp32, one a query; the mean over the global batch is the objective.

    Relations:
        With all columns excluded but the query's own group, this is the loss without in-batch negatives. With W
        workers that score their own queries against the gathered passages and divide by the global number of
        queries, the summed losses and gradients are those of one process.
    """
    scores_BC = scores_BC.float()
    if excluded_BC is not None:
        excluded_BC = excluded_BC.scatter(1, positive_B[:, None], False)
        scores_BC = scores_BC.masked_fill(excluded_BC, float("-inf"))
    return torch.nn.functional.cross_entropy(scores_BC, positive_B, reduction="none")


def same_text(query_hash_B: torch.Tensor, positive_hash_B: torch.Tensor, passage_hash_P: torch.Tensor) -> torch.Tensor:
    """Marks false negatives by text: passages that are word for word the query or its positive.

    Args:
        query_hash_B: int64 hashes of the queries' texts.
        positive_hash_B: int64 hashes of their positives' texts.
        passage_hash_P: int64 hashes of all passages' texts.

    Returns:
        bool [B, P] for `excluded_BC`; a query's own positive is among the marked.
    """
    text_P = passage_hash_P[None, :]
    return (text_P == positive_hash_B[:, None]) | (text_P == query_hash_B[:, None])
