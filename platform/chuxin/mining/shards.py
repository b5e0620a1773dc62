"""Who owns a text, and the shards of the passage store: one task a slice of the passages.

A text stands in the store once: of the corpus' passages with one hash the lowest id owns it; a group's own passage
enters only where the corpus lacks its text. Leaves out: the layout of a shard (search/store.py), which slices there
are (pipeline.py).

Shapes: P passages of a shard, H embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from chuxin.artifacts import Attempt
from chuxin.encoding.engine import Encoder
from chuxin.errors import InputError
from chuxin.files import fetched, open_parquet
from chuxin.mining.config import MineConfig
from chuxin.mining.inputs import passages_of, read_groups, read_heads
from chuxin.search.postings import count_terms
from chuxin.search.store import Chunk, write_shard

OWN = pa.schema([("passage_id", pa.int64()), ("text_hash", pa.int64()), ("text", pa.string())])
"""Groups' own passages that the corpus lacks."""
SEGMENT_ROWS = 65_536
"""Passages whose inverted lists are sorted together: at 200 terms a passage, about 0.4 GB."""
CHUNK_DENSE, CHUNK_SPARSE = 4096, 256
"""Texts encoded together. The encoder gives all three outputs or the dense one; the multi-vectors of 4,096 texts of
256 tokens would take 4 GiB at width 1024."""


def find_owners(
    slices: Sequence[Mapping[str, Any]], blocks: Sequence[Mapping[str, Any]], buckets: int, key: str,
    bucket: int, attempt: Attempt,
) -> None:  # fmt: skip
    """Settles the texts of one bucket of hashes: `losers.npy` holds the corpus' ids that another owns, `own` the rest.

    Holds 16 bytes a passage of the bucket, and the texts of its groups' own passages.

    Raises:
        InputError: A passage is given twice.
    """
    heads = [_bucket_of(*read_heads(item), buckets, bucket) for item in slices]
    ids, hashes = (np.concatenate([head[i] for head in heads]) for i in range(2))
    order = np.lexsort((ids, hashes))
    ids, hashes = ids[order], hashes[order]
    repeated = np.r_[False, hashes[1:] == hashes[:-1]] if len(hashes) else np.zeros(0, bool)
    if (twice := repeated[1:] & (ids[1:] == ids[:-1])).any():
        raise InputError(f"{key}: passages", f"passage {ids[1:][twice][0]} is given twice",
                         "Name each file of passages once")
    np.save(attempt.path("losers.npy"), np.sort(ids[repeated]))
    attempt.write("own", [_own_passages(blocks, hashes, buckets, bucket)], OWN)
    attempt.count(facts={f"{key}-losers": int(repeated.sum())})


def _bucket_of(
    ids: np.ndarray, hashes: np.ndarray, keep: np.ndarray, buckets: int, bucket: int
) -> tuple[np.ndarray, np.ndarray]:
    chosen = keep & (hashes % buckets == bucket)
    return ids[chosen], hashes[chosen]


def _own_passages(
    blocks: Sequence[Mapping[str, Any]], corpus_hashes: np.ndarray, buckets: int, bucket: int
) -> pa.Table:
    """The groups' passages of a bucket whose text the corpus lacks, each text once, by the lowest id."""
    held, waiting = OWN.empty_table(), list[pa.Table]()
    for item in blocks:
        groups = read_groups(item)
        for side in ("positives", "negatives"):
            _, passages = passages_of(groups, side)
            hashes = passages.field("text_hash").to_numpy(zero_copy_only=False)
            chosen = (hashes % buckets == bucket) & ~_holds(corpus_hashes, hashes)
            own = pa.Table.from_arrays([passages.field(name) for name in OWN.names], schema=OWN)
            waiting.append(own.filter(chosen))
        if sum(map(len, waiting)) > len(held):  # as often as the table doubles: linear, and never twice its size
            held, waiting = _lowest(pa.concat_tables([held, *waiting])), []
    return _lowest(pa.concat_tables([held, *waiting]))


def _holds(sorted_N: np.ndarray, wanted_M: np.ndarray) -> np.ndarray:
    if not len(sorted_N):
        return np.zeros(len(wanted_M), bool)
    return sorted_N[np.minimum(np.searchsorted(sorted_N, wanted_M), len(sorted_N) - 1)] == wanted_M


def _lowest(table: pa.Table) -> pa.Table:
    ids, hashes = table["passage_id"].to_numpy(), table["text_hash"].to_numpy()
    order = np.lexsort((ids, hashes))
    first = np.r_[True, hashes[order][1:] != hashes[order][:-1]] if len(order) else np.zeros(0, bool)
    return table.take(order[first])


def build_corpus_shard(
    config: MineConfig, model: str, loser_files: Sequence[str], key: str, item: Mapping[str, Any], attempt: Attempt
) -> None:
    """Encodes a slice of the passages into a shard; texts pass through in chunks."""
    ids, hashes, keep = read_heads(item)
    losers = np.concatenate([np.load(fetched(file)) for file in loser_files])
    chosen = keep & ~np.isin(ids, losers)

    def texts() -> Iterator[list[str]]:
        start = 0
        with open_parquet(item["file"]) as part:
            for group in range(item["start"], item["end"]):
                column = part.read_row_group(group, columns=["text"])["text"]
                yield column.filter(chosen[start : start + len(column)]).to_pylist()
                start += len(column)

    _build(config, model, key, ids[chosen], hashes[chosen], texts(), attempt)


def build_own_shard(config: MineConfig, model: str, key: str, file: str, attempt: Attempt) -> None:
    """Encodes the groups' own passages of a bucket into a shard."""
    with open_parquet(file) as part:
        heads = part.read(columns=["passage_id", "text_hash"])
        texts = (part.read_row_group(g, columns=["text"])["text"].to_pylist() for g in range(part.num_row_groups))
        _build(config, model, key, heads["passage_id"].to_numpy(), heads["text_hash"].to_numpy(), texts, attempt)


def _build(
    config: MineConfig, model: str, key: str, ids_P: np.ndarray, hashes_P: np.ndarray, texts: Iterator[list[str]],
    attempt: Attempt,
) -> None:  # fmt: skip
    encoder = open_encoder(config, model, config.passage_max_len) if len(ids_P) else None
    terms = 0
    size = CHUNK_SPARSE if "sparse" in config.miners else CHUNK_DENSE

    def chunks() -> Iterator[Chunk]:
        nonlocal terms
        for group in texts:
            for start in range(0, len(group), size):
                chunk = encode_chunk(encoder, group[start : start + size], config)
                terms += int(chunk.lists["bm25"][3].sum()) if "bm25" in chunk.lists else 0
                yield chunk

    if encoder is not None:
        write_shard(attempt.path(key), ids_P, hashes_P, encoder.width, chunks(), SEGMENT_ROWS)
    attempt.count(facts={key: {"passages": len(ids_P), "terms": terms}})


def open_encoder(config: MineConfig, model: str, max_length: int) -> Encoder:
    """Opens the miner's model.

    Raises:
        InputError: The sparse miner is asked for and the model's head was never trained.
    """
    execution = config.execution
    torch.set_num_threads(execution.threads)
    encoder = Encoder(model, max_length, execution.batch_tokens, config.dtype, "cuda" if execution.use_gpu else "cpu")
    if "sparse" in config.miners and not encoder.model.heads_trained:
        raise InputError(model, "its sparse output was never trained", "Leave \"sparse\" out of mine.miners")
    return encoder


def encode_chunk(encoder: Encoder, texts: Sequence[str], config: MineConfig) -> Chunk:
    """Encodes texts for the miners that are asked for."""
    lists = {}
    if "sparse" in config.miners:
        encoded = encoder.encode_all(texts)
        dense_MH, sizes = encoded.dense_NH, np.array([len(vector.ids_K) for vector in encoded.sparse], np.int32)
        keys, weights = (np.concatenate([np.zeros(0, kind), *(vector[i] for vector in encoded.sparse)])
                         for i, kind in enumerate((np.int64, np.float32)))  # fmt: skip
        lists["sparse"] = keys, np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), weights, sizes
    else:
        dense_MH = encoder.encode(texts)
    if "bm25" in config.miners:
        lists["bm25"] = count_terms(texts)
    return Chunk(texts, dense_MH, lists)
