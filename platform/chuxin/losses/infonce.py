"""InfoNCE with in-batch negatives and given ones; every passage of the batch is a candidate of every query.

Leaves out: gathering vectors over ranks (training/step.py), teacher scores, other directions than query → passage.

Shapes: B queries scored here, P passages of the whole global batch, H width.
"""

from __future__ import annotations

import torch


def infonce(
    query_BH: torch.Tensor, passage_PH: torch.Tensor, positive_B: torch.Tensor, temperature: float,
    excluded_BP: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Returns -log softmax of each query's positive among all passages (van den Oord et al. 2018, eq. 4).

    Passages stand in one flat list, so queries may bring any number of negatives: none is ever made up.

    Args:
        query_BH: Vectors, of length 1 for cosine similarity.
        passage_PH: Vectors of the positives and negatives of all queries, in any order.
        positive_B: int64, the row of `passage_PH` that is each query's positive.
        temperature: Similarities are divided by it (0.02 in BGE-M3, Chen et al. 2024).
        excluded_BP: bool; True takes a passage out of a query's candidates, for example a false negative. A
            query's positive is never taken out.

    Returns:
        Losses [B] in fp32, one a query; the mean over the global batch is the objective.

    Relations:
        With one positive and n negatives a query, all excluded but the query's own, this is the loss without
        in-batch negatives. With W workers that score their own queries against the gathered passages and divide by
        the global number of queries, the summed losses and gradients are those of one process.
    """
    scores_BP = (query_BH.float() @ passage_PH.float().T) / temperature
    if excluded_BP is not None:
        kept_BP = excluded_BP.scatter(1, positive_B[:, None], False)
        scores_BP = scores_BP.masked_fill(kept_BP, float("-inf"))
    return torch.nn.functional.cross_entropy(scores_BP, positive_B, reduction="none")


def same_text(
    query_hash_B: torch.Tensor, positive_hash_B: torch.Tensor, passage_hash_P: torch.Tensor
) -> torch.Tensor:
    """Marks false negatives by text: passages that are word for word the query or its positive.

    Args:
        query_hash_B: int64 hashes of the queries' texts.
        positive_hash_B: int64 hashes of their positives' texts.
        passage_hash_P: int64 hashes of all passages' texts.

    Returns:
        bool [B, P] for `excluded_BP`; a query's own positive is among the marked.
    """
    text_P = passage_hash_P[None, :]
    return (text_P == positive_hash_B[:, None]) | (text_P == query_hash_B[:, None])
