"""Random draws as hashes of what they decide, and random negatives where a config asks for them.

A draw is a function of (seed, query, text) alone, so it does not depend on partitions, workers or their order.

Shapes: M drawn passages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from chuxin.mining.columns import Columns, own_passages
from chuxin.mining.join import locate
from chuxin.search.store import PassageStore

if TYPE_CHECKING:
    from chuxin.mining.config import SelectConfig

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SPARE = 8
"""Draws beyond those needed, for such as are refused; a group stays short where even they do not suffice."""


class Filled(NamedTuple):
    """Passages drawn from the whole store."""

    row_M: np.ndarray
    """int64, the group."""
    id_M: np.ndarray
    hash_M: np.ndarray


def mix(*fields: int | np.ndarray) -> np.ndarray:
    """Hashes integers, broadcast against each other, to uint64: SplitMix64's finaliser (Steele et al. 2014) a field."""
    with np.errstate(over="ignore"):
        state = np.zeros(1, np.uint64)
        for field in fields:
            state = state + np.atleast_1d(np.asarray(field)).astype(np.uint64) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * _M1
            state = (state ^ (state >> np.uint64(27))) * _M2
            state ^= state >> np.uint64(31)
    return state


def fill(
    store: PassageStore, columns: Columns, table: pa.Table, negative_M: np.ndarray, config: SelectConfig
) -> Filled:
    """Draws passages from the whole store for groups with fewer negatives than wanted.

    Neither a candidate of the group nor its own passage, by text or id, nor the query's text is ever drawn, so what a
    miner found near the query cannot come in unseen.
    """
    size = len(table)
    need_Q = np.maximum(config.negatives.most - np.bincount(columns.row_N[negative_M], minlength=size), 0)
    tries_Q = np.where(need_Q > 0, need_Q + SPARE, 0)
    row_M = np.repeat(np.arange(size), tries_Q)
    turn_M = np.arange(len(row_M)) - np.repeat(np.cumsum(tries_Q) - tries_Q, tries_Q)
    query_id_M, query_hash_M = (table[name].to_numpy()[row_M] for name in ("query_id", "query_hash"))
    place_M = (mix(config.seed, query_id_M, turn_M) % np.uint64(store.passages)).astype(np.int64)
    id_M, hash_M = store.at(place_M)
    fresh = (locate(row_M, hash_M, columns.row_N, columns.hash_N) < 0) & (hash_M != query_hash_M)
    own_row, own = own_passages(table)
    fresh &= locate(row_M, id_M, own_row, own["passage_id"].to_numpy()) < 0  # one that was cut for an LLM, uncut
    fresh &= locate(row_M, hash_M, row_M, hash_M) == np.arange(len(row_M))  # the first of equal draws
    row_M, id_M, hash_M = row_M[fresh], id_M[fresh], hash_M[fresh]
    place = np.arange(len(row_M)) - np.searchsorted(row_M, row_M)
    taken = place < need_Q[row_M]
    return Filled(row_M[taken], id_M[taken], hash_M[taken])
