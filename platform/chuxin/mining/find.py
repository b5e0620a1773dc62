"""Queries against a span of the store: what each miner finds, with the dense score of everything that was found.

Leaves out: joining spans and miners (join.py), reading and writing (pipeline.py).

Shapes: Q queries, G passages that the groups came with, K results a query, H embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from chuxin.mining.inputs import passages_of
from chuxin.search.exact import merge_top_k, top_k
from chuxin.search.postings import Query, bm25_values
from chuxin.search.store import PassageStore

GATHER_ROWS = 8192
"""Vectors read together for scores of single pairs: 16 MiB at width 1024."""


class Given(NamedTuple):
    """The passages that groups came with, first all positives, then all negatives."""

    owner_G: np.ndarray
    """int64, the query each belongs to."""
    id_G: np.ndarray
    hash_G: np.ndarray
    positive_G: np.ndarray
    """bool."""


class Queries(NamedTuple):
    """A block of queries, ready to search."""

    dense_QH: np.ndarray
    lists: Mapping[str, Sequence[Query]]
    """Keys and weights of each query, by miner; of BM25 the weights hold the whole store's idf."""
    mean_length: float
    """Terms of a passage, over the whole store."""


class Hits(NamedTuple):
    """What one miner found, best first; id −1, score −inf and dense NaN where there is no further result."""

    score_QK: np.ndarray
    id_QK: np.ndarray
    hash_QK: np.ndarray
    dense_QK: np.ndarray
    """float32, the dense score, whoever the miner is."""


class Span(NamedTuple):
    """Shards that are searched together."""

    store: PassageStore
    dense: Sequence[np.ndarray | torch.Tensor]
    """float16 [P, H] of each shard: memory-mapped, or on the GPU that searches."""


def given_passages(groups: pa.Table) -> Given:
    """Returns the passages that groups came with."""
    parts = []
    for side in ("positives", "negatives"):
        owner, passages = passages_of(groups, side)
        ids, hashes = (passages.field(name).to_numpy(zero_copy_only=False) for name in ("passage_id", "text_hash"))
        parts.append((owner, ids, hashes, np.full(len(owner), side == "positives")))
    return Given(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def search_span(
    span: Span, queries: Queries, miners: Sequence[str], keep: int, block: int, device: str
) -> dict[str, Hits]:
    """Searches the shards of a span for all queries of a block, by each miner.

    *Relations*: exact: the results of one search over all its passages; equal scores in the order of shards and rows.
    """
    count, store = len(queries.dense_QH), span.store
    found = {miner: (np.empty((count, 0), np.float32), np.empty((count, 0), np.int64)) for miner in miners}
    first = 0
    for shard, dense_PH in zip(store.shards, span.dense, strict=True):
        scores_QK, row_QK = top_k(queries.dense_QH, dense_PH, keep, block, device)
        found["dense"] = merge_top_k(found["dense"], (scores_QK, row_QK + first), keep)
        for miner in set(miners) - {"dense"}:
            for start, lists in shard.lists(miner):
                values = lists.value_N if miner == "sparse" else bm25_values(lists, queries.mean_length)
                scores_QK, row_QK = lists.search(queries.lists[miner], count, keep, values)
                placed_QK = np.where(row_QK >= 0, row_QK + first + start, -1)
                found[miner] = merge_top_k(found[miner], (scores_QK, placed_QK), keep)
        first += shard.passages
    return {miner: _hits(store, queries.dense_QH, *found[miner], miner == "dense") for miner in miners}


def given_scores(store: PassageStore, queries: Queries, given: Given) -> np.ndarray:
    """Returns the dense scores float32 [G] of what groups came with; NaN where this span does not hold the text."""
    scores_G, first = np.full(len(given.owner_G), np.nan, np.float32), 0
    for shard in store.shards:
        row_G = shard.rows(given.hash_G)
        held = np.flatnonzero(row_G >= 0)
        scores_G[held] = _products(store, queries.dense_QH, given.owner_G[held], row_G[held] + first)
        first += shard.passages
    return scores_G


def _hits(
    store: PassageStore, dense_QH: np.ndarray, score_QK: np.ndarray, place_QK: np.ndarray, is_dense: bool
) -> Hits:
    id_QK, hash_QK = np.full(place_QK.shape, -1, np.int64), np.full(place_QK.shape, -1, np.int64)
    real = place_QK >= 0
    id_QK[real], hash_QK[real] = store.at(place_QK[real])
    dense_QK = score_QK
    if not is_dense:
        dense_QK = np.full(place_QK.shape, np.nan, np.float32)
        dense_QK[real] = _products(store, dense_QH, np.nonzero(real)[0], place_QK[real])
    return Hits(score_QK, id_QK, hash_QK, dense_QK)


def _products(store: PassageStore, dense_QH: np.ndarray, query_M: np.ndarray, place_M: np.ndarray) -> np.ndarray:
    scores_M = np.empty(len(query_M), np.float32)
    for start in range(0, len(query_M), GATHER_ROWS):
        part = slice(start, start + GATHER_ROWS)
        scores_M[part] = np.einsum("mh,mh->m", dense_QH[query_M[part]], store.vectors(place_M[part]))
    return scores_M
