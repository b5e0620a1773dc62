"""A block of queries on disk, between the task that encodes it and those that search with it.

    block.parquet            the block's groups to keep, without their status
    dense.npy                float32 [Q, H]
    MINER-key.npy, -weight.npy, -start.npy    keys and weights of each query, by miner

Leaves out: searching (find.py).

Shapes: Q queries, H embedding width, N keys of all queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chuxin.mining.config import MineConfig
from chuxin.mining.find import Queries
from chuxin.mining.inputs import GROUP_COLUMNS
from chuxin.mining.shards import CHUNK_DENSE, CHUNK_SPARSE, open_encoder
from chuxin.schema import GROUPS
from chuxin.search.postings import Query, bm25_query, bm25_weights
from chuxin.search.store import PassageStore

BLOCK = pa.schema([GROUPS.field(name) for name in GROUP_COLUMNS])
"""Table `block`: groups without their status."""


def read_block(directory: str) -> pa.Table:
    """Returns the groups of a block."""
    return pq.read_table(f"{directory}/block.parquet").combine_chunks()


def save_queries(
    directory: str, queries: Sequence[str], config: MineConfig, model: str, store: PassageStore, passages: int
) -> None:
    """Encodes queries for every miner; BM25's weights take the document frequencies of the whole store."""
    encoder = open_encoder(config, model, config.query_max_len)
    lists: dict[str, list[Query]] = {}
    if "sparse" in config.miners:
        parts = [encoder.encode_all(queries[i : i + CHUNK_SPARSE]) for i in range(0, len(queries), CHUNK_SPARSE)]
        dense_QH = np.concatenate([np.empty((0, encoder.width), np.float32), *(part.dense_NH for part in parts)])
        lists["sparse"] = [(vector.ids_K, vector.weight_K) for part in parts for vector in part.sparse]
    else:
        parts = [encoder.encode(queries[i : i + CHUNK_DENSE]) for i in range(0, len(queries), CHUNK_DENSE)]
        dense_QH = np.concatenate([np.empty((0, encoder.width), np.float32), *parts])
    np.save(f"{directory}/dense.npy", dense_QH)
    if "bm25" in config.miners:
        lists["bm25"] = _with_frequencies([bm25_query(query) for query in queries], store, passages)
    for miner, own in lists.items():
        np.save(f"{directory}/{miner}-start.npy", np.cumsum([0, *(len(keys) for keys, _ in own)]))
        for i, (name, kind) in enumerate((("key", np.int64), ("weight", np.float32))):
            np.save(f"{directory}/{miner}-{name}.npy", np.concatenate([np.zeros(0, kind), *(q[i] for q in own)]))


def load_queries(directory: str, config: MineConfig, statistics: Mapping[str, int]) -> Queries:
    """Returns the queries of a block as `save_queries` left them.

    Args:
        directory: The block's.
        config: The mine stage's.
        statistics: Of the whole store: "passages", and "terms" of them all.
    """
    lists = {}
    for miner in set(config.miners) - {"dense"}:
        keys, weights, start = (np.load(f"{directory}/{miner}-{name}.npy") for name in ("key", "weight", "start"))
        lists[miner] = list(zip(np.split(keys, start[1:-1]), np.split(weights, start[1:-1]), strict=True))
    mean_length = statistics["terms"] / statistics["passages"]
    dense_QH = np.load(f"{directory}/dense.npy")
    return Queries(dense_QH, {miner: own[: len(dense_QH)] for miner, own in lists.items()}, mean_length)


def _with_frequencies(queries: Sequence[Query], store: PassageStore, passages: int) -> list[Query]:
    keys = np.unique(np.concatenate([np.zeros(0, np.int64), *(own for own, _ in queries)]))
    frequency = np.zeros(len(keys), np.int64)
    for shard in store.shards:
        for _, lists in shard.lists("bm25"):
            frequency += lists.frequency(keys)
    idf = bm25_weights(frequency, passages)
    return [(own, counts * idf[np.searchsorted(keys, own)]) for own, counts in queries]
