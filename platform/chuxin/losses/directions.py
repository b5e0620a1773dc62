"""More candidates than passages: other queries against a query, other passages against its positive.

Li et al. 2023 (GTE, arXiv 2308.03281, section 3.3, improved contrastive loss) put them below InfoNCE's fraction, as
columns beside the passages. For dense vectors only: sparse scores are not normalised, so that two passages, which
share many tokens, would outweigh every query. Leaves out: the fourth direction of GTE, other queries against the
positive.

Shapes: B queries of a tile, Q queries of all ranks, P passages of all ranks, H width.
"""

from __future__ import annotations

import torch

from chuxin.losses.dense import dense_scores
from chuxin.losses.infonce import same_text


def query_to_query(
    query_BH: torch.Tensor, query_QH: torch.Tensor, own_B: torch.Tensor,
    query_hash_Q: torch.Tensor, positive_hash_Q: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Returns cosines [B, Q] of queries with all queries, -inf for those that are no negatives.

    Args:
        query_BH: Vectors of length 1.
        query_QH: All queries' vectors, the tile's among them.
        own_B: int64, the row of each of the tile's queries in `query_QH`.
        query_hash_Q: int64 hashes of all queries' texts. The query itself and its copies are no negatives.
        positive_hash_Q: int64 hashes of their positives' texts. Nor is a query with the same positive.
    """
    copies_BQ = query_hash_Q[None, :] == query_hash_Q[own_B][:, None]
    answered_BQ = positive_hash_Q[None, :] == positive_hash_Q[own_B][:, None]
    return dense_scores(query_BH, query_QH).masked_fill(copies_BQ | answered_BQ, float("-inf"))


def passage_to_passage(
    passage_PH: torch.Tensor, positive_B: torch.Tensor, own_BP: torch.Tensor,
    query_hash_B: torch.Tensor, passage_hash_P: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Returns cosines [B, P] of each query's positive with all passages, -inf for those that are no negatives.

    Args:
        passage_PH: Vectors of length 1.
        positive_B: int64, the row of each query's positive.
        own_BP: bool, the query's own group: its negatives are near the positive for good reason (sentence-transformers
            leaves them out as well).
        query_hash_B: int64 hashes of the queries' texts.
        passage_hash_P: int64 hashes of the passages' texts. Copies of query or positive are no negatives.
    """
    excluded_BP = own_BP | same_text(query_hash_B, passage_hash_P[positive_B], passage_hash_P)
    return dense_scores(passage_PH[positive_B], passage_PH).masked_fill(excluded_BP, float("-inf"))
