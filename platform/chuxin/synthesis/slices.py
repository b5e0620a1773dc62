"""Which rows a partition has: a row group of an input part, and of it the rows that a sample or the gate leave.

Rows are chosen by a hash of seed and id, so the same are chosen however the input is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chuxin.files import open_parquet
from chuxin.schema import KEEP

ALL = (1 << 64) - 1


class Slice(NamedTuple):
    """A row group of a part, or a part whole."""

    file: str
    group: int = -1
    """-1: all of them."""

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads its rows."""
        with open_parquet(self.file) as part:
            wanted = list(columns) if columns else None
            return part.read(wanted) if self.group < 0 else part.read_row_group(self.group, columns=wanted)


def slices(files: Iterable[str]) -> Iterator[tuple[str, Slice]]:
    """Yields (key, slice) over all row groups of a table's parts, in order."""
    for number, file in enumerate(files):
        with open_parquet(file) as part:
            groups = part.num_row_groups
        for group in range(groups):
            yield f"{number:05d}-{group:05d}", Slice(file, group)


def draws(ids: np.ndarray, seed: int) -> np.ndarray:
    """Returns a pseudo-random uint64 for each id: SplitMix64's finaliser over id and seed."""
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) + np.uint64(seed % (1 << 63)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def limit_of(kept: Iterable[np.ndarray], seed: int, most: int | None) -> int:
    """Returns the draw up to which rows are taken so that `most` of those to keep are (all if fewer)."""
    if most is None:
        return ALL
    least = np.zeros(0, np.uint64)
    for ids in kept:
        least = np.sort(np.concatenate([least, draws(ids, seed)]))[:most]
    return int(least[-1]) if len(least) == most and most else ALL


def chosen(table: pa.Table, seed: int, limit: int, gate: pa.Table | None = None) -> pa.Table:
    """Returns the rows to work on: status "keep", kept by the gate, drawn."""
    mask = pc.equal(table["status"], KEEP)
    if gate is not None:
        good = gate.filter(pc.equal(gate["status"], KEEP))["passage_id"]
        mask = pc.and_(mask, pc.is_in(table["passage_id"], value_set=good.combine_chunks()))
    drawn = draws(table["passage_id"].to_numpy(), seed) <= np.uint64(limit)
    return table.filter(pc.and_(mask, pa.array(drawn)))


def columns(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Builds a table from rows as dicts."""
    return pa.Table.from_pylist(list(rows), schema=schema)
