"""From plans to tables: one row group a slice of a global batch, and the figures a trainer needs beforehand.

Row r of a batch goes to slice r mod S. A batch of fewer than S rows has fewer row groups, never an empty one.

Shapes: T rows of the plan, S slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chuxin.artifacts import add_bins
from chuxin.packing.plan import Groups, Row
from chuxin.packing.tokens import PASSAGES_TYPE
from chuxin.report.bins import length_bins
from chuxin.schema import PLAN_GROUPS, PLAN_TEXTS

# Batches assembled at a time: bounds memory beside the bucket itself.
CHUNK = 64


def group_slices(
    table: pa.Table, groups: Groups, batches: Sequence[Sequence[Row]], epoch: int, slices: int
) -> Iterator[pa.Table]:
    """Yields the plan's row groups in order: batch by batch, slice by slice (schema PLAN_GROUPS).

    Args:
        table: The bucket's token table.
        groups: The same as arrays.
        batches: From `plan_groups`.
        epoch: Written into the rows.
        slices: S.
    """
    passages = pa.concat_arrays([_flat(table["positives"]), _flat(table["negatives"])])
    first_negative = len(groups.positives.group_P)
    for start in range(0, len(batches), CHUNK):
        part = batches[start : start + CHUNK]
        batch_T, slice_T, row_T, order_T = _places([len(batch) for batch in part], start, slices)
        rows = [row for batch in part for row in batch]
        rows = [rows[index] for index in order_T.tolist()]
        taken = [[row.positive, *(first_negative + n for n in row.negatives)] for row in rows]
        offsets = np.r_[0, np.cumsum([len(t) for t in taken])]
        flat = passages.take(pa.array(np.concatenate(taken), pa.int64()))
        of_group = table.take(pa.array([row.group for row in rows], pa.int64()))
        planned = pa.table({
            "epoch": np.full(len(rows), epoch, np.int32), "batch": batch_T, "slice": slice_T, "row": row_T,
            "query_id": of_group["query_id"], "source": of_group["source"], "query_hash": of_group["query_hash"],
            "query_ids": of_group["query_ids"],
            "passages": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat).cast(PASSAGES_TYPE),
        }, schema=PLAN_GROUPS)  # fmt: skip
        yield from _cut(planned, batch_T, slice_T)


def text_slices(table: pa.Table, batches: Sequence[np.ndarray], epoch: int, slices: int) -> Iterator[pa.Table]:
    """Yields the plan's row groups in order (schema PLAN_TEXTS); see `group_slices`."""
    for start in range(0, len(batches), CHUNK):
        part = batches[start : start + CHUNK]
        batch_T, slice_T, row_T, order_T = _places([len(batch) for batch in part], start, slices)
        taken = table.take(pa.array(np.concatenate(part)[order_T], pa.int64()))
        planned = pa.table({
            "epoch": np.full(len(taken), epoch, np.int32), "batch": batch_T, "slice": slice_T, "row": row_T,
            **{name: taken[name] for name in ("passage_id", "offset", "source", "token_ids")},
        }, schema=PLAN_TEXTS)  # fmt: skip
        yield from _cut(planned, batch_T, slice_T)


class Figures:
    """Counts over a plan's row groups as they are written: rows, tokens, padding, the highest token id."""

    def __init__(self) -> None:
        self.rows = self.tokens = self.highest = self.longest = 0
        self.histograms: dict[str, list[int]] = {}
        self._padded = 0
        self._batch: dict[str, tuple[int, int]] = {}
        self._current = -1

    def watch(self, parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Passes row groups through and counts them."""
        for part in parts:
            batch = part["batch"][0].as_py()
            if batch != self._current:
                self._close_batch()
                self._current = batch
            self.rows += part.num_rows
            if "query_ids" in part.column_names:
                self._add("query_tokens", part["query_ids"])
                self._add("passage_tokens", pc.struct_field(pc.list_flatten(part["passages"]), "token_ids"))
            else:
                self._add("text_tokens", part["token_ids"])
            yield part
        self._close_batch()

    def facts(self, batches: int) -> dict[str, Any]:
        """What the partition's manifest tells: training reads the number of batches from it.

        `padding_share` is what padding every batch to its longest query and passage would waste.
        """
        share = 1 - self.tokens / self._padded if self._padded else 0.0
        return {"batches": batches, "rows": self.rows, "tokens": self.tokens, "padding_share": round(share, 4),
                "max_token_id": self.highest, "longest": self.longest}  # fmt: skip

    def _add(self, name: str, column: pa.ChunkedArray) -> None:
        lengths = pc.list_value_length(column).to_numpy()
        count, longest = self._batch.get(name, (0, 0))
        self._batch[name] = (count + len(lengths), max(longest, int(lengths.max())))
        self.tokens += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max()))
        self.highest = max(self.highest, pc.max(pc.list_flatten(column)).as_py())
        self.histograms[name] = add_bins(self.histograms.get(name, []), length_bins(lengths))

    def _close_batch(self) -> None:
        self._padded += sum(count * longest for count, longest in self._batch.values())
        self._batch = {}


def _places(sizes: Sequence[int], first: int, slices: int) -> tuple[np.ndarray, ...]:
    """Batch, slice and row of each planned row, and the order that sorts the batches' rows by (batch, slice, row)."""
    batch = np.repeat(np.arange(len(sizes)), sizes)
    row = np.concatenate([np.arange(size) for size in sizes])
    order = np.lexsort((row, row % slices, batch))
    batch, row = batch[order], row[order]
    return (batch + first).astype(np.int32), (row % slices).astype(np.int16), row.astype(np.int32), order


def _cut(planned: pa.Table, batch_T: np.ndarray, slice_T: np.ndarray) -> Iterator[pa.Table]:
    changes = (batch_T[1:] != batch_T[:-1]) | (slice_T[1:] != slice_T[:-1])
    edges = [*np.flatnonzero(np.r_[True, changes]).tolist(), len(batch_T)]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        yield planned.slice(start, stop - start)


def _flat(column: pa.ChunkedArray) -> pa.StructArray:
    flat = pc.list_flatten(column)
    return flat.combine_chunks() if flat.num_chunks != 1 else flat.chunk(0)
