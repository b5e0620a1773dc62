"""Scores of a cross-encoder, in the struct of the candidate they belong to.

Each distinct (query, text) of a part is scored once, whatever number of its groups asks for it; pairs are tokenised
and sorted by length a chunk at a time. Leaves out: the forward pass and its budget (encoding/pairs.py), thresholds
(select.py).

Shapes: N candidates of all groups, M those to score.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import pyarrow as pa

from chuxin.mining.columns import Columns, own_passages, read_columns
from chuxin.mining.join import NO_RANK
from chuxin.report.bins import score_bins
from chuxin.schema import CANDIDATE, CANDIDATES
from chuxin.search.store import PassageStore


class Scorer(Protocol):
    """What `PairScorer` does."""

    def score(self, queries: list[str], passages: list[str], index_N2: np.ndarray) -> np.ndarray:
        """Returns the scores float32 [N] of pairs (index of the query, index of the passage)."""


def rerank_table(
    table: pa.Table, store: PassageStore, scorer: Scorer, top_k: int | None, chunk_pairs: int
) -> tuple[pa.Table, int]:
    """Scores candidates.

    Args:
        table: CANDIDATES.
        store: Holds the mined texts; the groups' own stand in the table.
        scorer: The cross-encoder.
        top_k: Mined candidates of a query that are scored, by the best rank any miner gave; None: all. The group's
            own passages always are.
        chunk_pairs: Pairs tokenised together, at least one query's.

    Returns:
        The table with `rerank` set (null where a candidate was not scored), and the number of pairs scored.
    """
    columns = read_columns(table)
    chosen_M = np.flatnonzero(_chosen(columns, top_k))
    queries = table["query"].combine_chunks().dictionary_encode()
    queries = queries.chunk(0) if isinstance(queries, pa.ChunkedArray) else queries
    query_M = queries.indices.to_numpy(zero_copy_only=False)[columns.row_N[chosen_M]]
    order = np.argsort(query_M, kind="stable")
    chosen_M, query_M = chosen_M[order], query_M[order]
    own_texts, names = own_passages(table)[1]["text"], queries.dictionary
    scores_N, pairs = np.full(len(columns.row_N), np.nan, np.float32), 0
    for part in _chunks(query_M, chunk_pairs):
        texts, text_M = np.unique(_texts(columns, chosen_M[part], own_texts, store), return_inverse=True)
        asked, asked_M = np.unique(query_M[part], return_inverse=True)
        joint, place_M = np.unique(asked_M * len(texts) + text_M, return_inverse=True)
        index = np.stack([joint // len(texts), joint % len(texts)], axis=1)
        scores = scorer.score(names.take(pa.array(asked)).to_pylist(), texts.tolist(), index)
        scores_N[chosen_M[part]] = scores[place_M]
        pairs += len(index)
    return with_scores(table, scores_N), pairs


def with_scores(table: pa.Table, scores_N: np.ndarray) -> pa.Table:
    """Puts a score into each candidate's struct; NaN becomes null."""
    lists = table["candidates"].combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    flat = lists.flatten()
    fields = [pa.array(scores_N, pa.float32(), mask=np.isnan(scores_N)) if field.name == "rerank"
              else flat.field(field.name) for field in CANDIDATE]  # fmt: skip
    structs = pa.StructArray.from_arrays(fields, fields=list(CANDIDATE))
    bounds = np.r_[0, np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))].astype(np.int32)
    column = pa.ListArray.from_arrays(pa.array(bounds), structs)
    place = table.schema.get_field_index("candidates")
    return table.set_column(place, CANDIDATES.field("candidates"), column)


def score_histograms(table: pa.Table) -> dict[str, list[int]]:
    """Counts the scores of own positives, own negatives and mined passages."""
    columns = read_columns(table)
    kinds = {"own_positives": columns.given_N, "own_negatives": columns.own_negative_N, "mined": columns.own_N < 0}
    return {f"logit_{name}": score_bins("logit", columns.rerank_N[kind]) for name, kind in kinds.items()}


def _chosen(columns: Columns, top_k: int | None) -> np.ndarray:
    """Which candidates are scored, bool [N]."""
    own = columns.own_N >= 0
    if top_k is None:
        return np.ones(len(own), bool)
    order = np.lexsort((np.where(own, NO_RANK, columns.rank["best"]), own, columns.row_N))
    start = np.searchsorted(columns.row_N, columns.row_N)  # rows ascend, so `order` keeps each row's range
    place = np.arange(len(order)) - start
    chosen = own.copy()
    chosen[order[place < top_k]] = True
    return chosen


def _chunks(query_M: np.ndarray, pairs: int) -> Iterator[slice]:
    """Cuts sorted pairs where a query ends, once there are enough."""
    ends = np.append(np.flatnonzero(np.diff(query_M)) + 1, len(query_M)).tolist()
    start = 0
    for index, end in enumerate(ends):
        following = ends[index + 1] if index + 1 < len(ends) else None
        if end > start and (following is None or following - start > pairs):
            yield slice(start, end)
            start = end


def _texts(columns: Columns, chosen: np.ndarray, own_texts: pa.ChunkedArray, store: PassageStore) -> np.ndarray:
    """The texts of candidates, an object array: an own passage's as the group has it, a mined one's from the store."""
    texts = np.empty(len(chosen), object)
    own = columns.own_N[chosen]
    texts[own >= 0] = own_texts.take(pa.array(own[own >= 0])).to_pylist()
    texts[own < 0] = store.texts(columns.hash_N[chosen[own < 0]])
    return texts
