"""Search with M3's sparse and multi-vector outputs: an inverted product over all passages, late interaction over some.

The sparse output searches the whole corpus. Multi-vectors would take 4·D bytes a token to keep, so they, and the sum
of all three outputs, only order the dense search's candidates anew. Leaves out: indexes on disk, encoding.

Shapes: Q queries, P passages, K candidates a query, L tokens of a text, D width of a multi-vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chuxin.search.exact import top_k_row

WEIGHTS = (1.0, 0.3, 1.0)
"""Of the dense, the sparse and the multi-vector score in the sum (Chen et al. 2024, 3.3)."""

SparseVector = tuple[np.ndarray, np.ndarray]
"""int64 ids, each once, and their float32 weights."""


class Postings:
    """The sparse vectors of P passages, by token: 12 bytes for each distinct token of each passage."""

    def __init__(self, passages: Sequence[SparseVector]) -> None:
        self.passages = len(passages)
        ids = np.concatenate([np.zeros(0, np.int64), *(ids for ids, _ in passages)])
        order = np.argsort(ids, kind="stable")
        self._weight = np.concatenate([np.zeros(0, np.float32), *(weight for _, weight in passages)])[order]
        owner = np.repeat(np.arange(len(passages), dtype=np.int32), [len(ids) for ids, _ in passages])
        self._passage = owner[order]
        self._token, self._start = np.unique(ids[order], return_index=True)
        self._end = np.r_[self._start[1:], len(ids)]

    def scores(self, query: SparseVector) -> np.ndarray:
        """Returns the products of a query with all passages, float32 [P]."""
        scores_P = np.zeros(self.passages, np.float32)
        ids, weights = query
        places = np.searchsorted(self._token, ids)
        for token, place, weight in zip(ids, places, weights, strict=True):
            if place < len(self._token) and self._token[place] == token:
                found = slice(self._start[place], self._end[place])
                scores_P[self._passage[found]] += weight * self._weight[found]  # a passage has a token once
        return scores_P


def best_of(scores_P: np.ndarray, k: int) -> np.ndarray:
    """Returns the int64 indices [k] of the best passages of one query; −1 where it shares no token with so many."""
    index_K = np.full(k, -1, np.int64)
    found = np.flatnonzero(scores_P)
    best = found[top_k_row(scores_P[found], k)]
    index_K[: len(best)] = best
    return index_K


def late_interaction(
    queries: Sequence[np.ndarray], passages: Sequence[np.ndarray], wanted: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Returns the multi-vector scores of chosen pairs: the mean over query tokens of the best passage token.

    Args:
        queries: float32 [L, D] of each query; at least one token.
        passages: float32 [L, D] of each of some passages; at least one token.
        wanted: For each of these passages, indices of the queries to score it for.

    Returns:
        For each passage, float32 scores in the order of `wanted`.
    """
    scores = []
    for passage_LD, chosen in zip(passages, wanted, strict=True):
        if not len(chosen):
            scores.append(np.zeros(0, np.float32))
            continue
        lengths = np.array([len(queries[query]) for query in chosen])
        best_T = (np.concatenate([queries[query] for query in chosen]) @ passage_LD.T).max(1)
        starts = np.r_[0, np.cumsum(lengths)[:-1]]
        scores.append((np.add.reduceat(best_T, starts) / lengths).astype(np.float32))
    return scores


def reorder(index_QK: np.ndarray, scores_QK: np.ndarray) -> np.ndarray:
    """Returns candidates ordered by other scores, best first; equal ones keep their order."""
    return np.take_along_axis(index_QK, np.argsort(-scores_QK, axis=1, kind="stable"), axis=1)
