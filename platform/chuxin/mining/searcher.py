"""Search actors: each holds a span of the store, on a GPU its vectors too, and searches block after block of queries.

What a block finds in a span waits in a file of the draft's state until its spans are joined: 24 bytes a hit and miner,
more than the candidates take, and gone with the commit. Leaves out: the search itself (find.py) and its joining
(join.py).

Shapes: Q queries, G passages that the groups came with, K results a query.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from chuxin.artifacts import Attempt
from chuxin.errors import InputError
from chuxin.files import fetched, filesystem, write_bytes
from chuxin.mining.config import MineConfig
from chuxin.mining.find import Hits, Span, given_passages, given_scores, search_span
from chuxin.mining.inputs import open_store
from chuxin.mining.queries import load_queries, read_block
from chuxin.search.exact import resident


class SpanSearcher:
    """What a search actor does with a partition: a block of queries in a span of shards.

    Args:
        config: The mine stage's.
        statistics: Of the whole store: "passages", and "terms" of them all.
    """

    def __init__(self, config: MineConfig, statistics: Mapping[str, int]) -> None:
        self._config, self._statistics = config, statistics
        self._shards: Sequence[str] = ()
        self._span: Span | None = None

    def __call__(self, key: str, item: Mapping[str, Any], attempt: Attempt) -> None:
        """Searches; `item` names the block's directory, the span's shards and the file to write."""
        config, execution = self._config, self._config.execution
        torch.set_num_threads(execution.threads)
        device = "cuda" if execution.use_gpu else "cpu"
        span, directory = self._open(item["shards"], device), fetched(item["queries"])
        queries = load_queries(directory, config, self._statistics)
        found = search_span(span, queries, config.miners, config.keep, execution.passage_block, device)
        given = given_scores(span.store, queries, given_passages(read_block(directory)))
        save_found(item["found"], found, given)

    def _open(self, shards: Sequence[str], device: str) -> Span:
        if self._span is None or shards != self._shards:
            self._span = None  # its vectors go before the next ones come: a GPU need not hold both
            store = open_store(shards)
            vectors = [shard.dense_PH for shard in store.shards]
            self._span = Span(store, resident(vectors, device, self._config.execution.passage_block))
            self._shards = shards
        return self._span


def save_found(uri: str, found: Mapping[str, Hits], given_G: np.ndarray) -> None:
    """Writes what a block found in a span: each miner's hits, and the scores of what its groups came with."""
    arrays = {f"{miner}_{name}": array for miner, hits in found.items() for name, array in hits._asdict().items()}
    buffer = io.BytesIO()
    np.savez(buffer, given=given_G, **arrays)
    write_bytes(uri, buffer.getvalue())


def load_found(uri: str, miners: Sequence[str]) -> tuple[dict[str, Hits], np.ndarray]:
    """Returns hits and scores as `save_found` was given them.

    Raises:
        InputError: The file is gone, though the search that wrote it is committed.
    """
    fs, path = filesystem(uri)
    try:
        data = fs.cat_file(path)
    except FileNotFoundError as error:
        stage = uri.rpartition("/state/")[0]
        raise InputError(uri, "somebody removed what mine had found", f"Remove {stage} and run again") from error
    with np.load(io.BytesIO(data)) as arrays:
        hits = {miner: Hits(*(arrays[f"{miner}_{name}"] for name in Hits._fields)) for miner in miners}
        return hits, arrays["given"]
