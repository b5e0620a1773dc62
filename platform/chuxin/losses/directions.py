"""More candidates than passages: other queries against a query, other passages against its positive.

Li et al. 2023 (GTE, arXiv 2308.03281, section 3.3, improved contrastive loss) put them below InfoNCE's fraction, as
columns beside the passages. For dense vectors only: sparse scores are not normalised, so that two passages, which
share many tokens, would outweigh every query. Leaves out: the fourth direction of GTE, other queries against the
positive.

Shapes: B queries of a tile, Q queries of all ranks, P passages of all ranks, X either of them, H width.
"""

from __future__ import annotations

import torch

from chuxin.losses.dense import dense_scores
from chuxin.losses.infonce import same_text


def further_scores(own_BH: torch.Tensor, other_XH: torch.Tensor, excluded_BX: torch.Tensor) -> torch.Tensor:
    """Returns cosines [B, X] with what else is a negative, -inf for what is none.

    Args:
        own_BH: Vectors of length 1 of the tile's queries (query to query) or of their positives (passage to passage).
        other_XH: Vectors of length 1 of all queries, or of all passages.
        excluded_BX: bool, from `no_query_negatives` or `no_passage_negatives`.
    """
    return dense_scores(own_BH, other_XH).masked_fill(excluded_BX, float("-inf"))


def no_query_negatives(
    own_B: torch.Tensor, query_hash_Q: torch.Tensor, positive_hash_Q: torch.Tensor
) -> torch.Tensor:
    """Marks the queries [B, Q] that are no negatives of a query: itself, its copies, those with the same positive.

    Args:
        own_B: int64, the place of each of the tile's queries among all.
        query_hash_Q: int64 hashes of all queries' texts.
        positive_hash_Q: int64 hashes of their positives' texts.
    """
    hashes_Q = (query_hash_Q, positive_hash_Q)
    copies_BQ, answered_BQ = (hash_Q[None, :] == hash_Q[own_B][:, None] for hash_Q in hashes_Q)
    return copies_BQ | answered_BQ


def no_passage_negatives(
    positive_B: torch.Tensor, own_BP: torch.Tensor, query_hash_B: torch.Tensor, passage_hash_P: torch.Tensor
) -> torch.Tensor:
    """Marks the passages [B, P] that are no negatives of a query's positive: copies of query or positive, its group.

    Args:
        positive_B: int64, the place of each query's positive among the passages.
        own_BP: bool, the query's own group: its negatives are near the positive for good reason (sentence-transformers
            leaves them out as well).
        query_hash_B: int64 hashes of the queries' texts.
        passage_hash_P: int64 hashes of the passages' texts.
    """
    return own_BP | same_text(query_hash_B, passage_hash_P[positive_B], passage_hash_P)
