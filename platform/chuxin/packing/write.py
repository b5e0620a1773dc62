"""From plans to tables: row groups of whole slices of a global batch, and the figures a trainer needs beforehand.

Row r of a batch goes to slice r mod S. Slices stand in the order of their reversed bits (of 8: 0 4 2 6 1 5 3 7), so
that for any power of two W the slices r, r + W, … of rank r stand together. A row group takes slices until it holds
`ROW_GROUP_TOKENS`. Measured with 8 passages a row, one loader on one core, all ranks' lengths included:

    rows a batch   row group        tokens/s of 1 rank   a step of rank 15 of 16   footer a batch
    64             2^17 tokens      60 million           3.3 ms                    2 KB
    64             one a slice      5 million            -                         94 KB
    1,024          2^17 tokens      68 million           6.7 ms                    23 KB
    1,024          one a slice      33 million           16 ms                     96 KB

A rank decodes whole row groups, so of a small batch it decodes all to keep its run of rows; a row group a slice would
spare it that, but the many small column chunks cost more, and the footer, which is read whole before the first batch,
would hold 1.5 GB for the 15,600 batches of 10^6 groups.

Shapes: T rows of the plan, S slices, L texts of the T rows together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chuxin.artifacts import add_bins
from chuxin.packing.plan import Rows
from chuxin.packing.tokens import PASSAGES_TYPE
from chuxin.report.bins import length_bins
from chuxin.schema import PLAN_GROUPS, PLAN_TEXTS

# Batches assembled at a time: bounds memory beside the bucket itself.
CHUNK = 64
ROW_GROUP_TOKENS = 1 << 17
GROUP_COLUMNS = ["query_id", "source", "query_hash", "query_ids"]


def group_slices(
    table: pa.Table, batches: Sequence[Rows], epoch: int, slices: int
) -> Iterator[pa.Table]:
    """Yields the plan's row groups in order: batch by batch, slices by reversed bits (schema PLAN_GROUPS).

    Args:
        table: The bucket's token table.
        batches: From `plan_groups`.
        epoch: Written into the rows.
        slices: S.
    """
    positives, negatives = _flat(table["positives"]), _flat(table["negatives"])
    for start in range(0, len(batches), CHUNK):
        part = batches[start : start + CHUNK]
        batch_T, slice_T, row_T, order_T = _places([len(batch.group_R) for batch in part], start, slices)
        rows = Rows(*map(np.concatenate, zip(*part, strict=True))).take(order_T)
        offsets = np.r_[0, np.cumsum(1 + rows.count_R)]
        # Both kinds are taken alone and then put in turns: joining the bucket's would hold its tokens twice.
        drawn = pa.concat_arrays([
            positives.take(pa.array(rows.positive_R)), negatives.take(pa.array(rows.negative_K))
        ])  # fmt: skip
        in_turn = np.insert(np.arange(len(rows.group_R), len(drawn)), offsets[:-1] - np.arange(len(rows.group_R)),
                            np.arange(len(rows.group_R)))  # fmt: skip
        flat = drawn.take(pa.array(in_turn))
        of_group = table.select(GROUP_COLUMNS).take(pa.array(rows.group_R))
        query_T = pc.list_value_length(of_group["query_ids"]).to_numpy()
        lengths_L = np.insert(flat.field("token_ids").value_lengths().to_numpy(), offsets[:-1], query_T)
        text_offsets = offsets + np.arange(len(offsets))  # a query before each row's passages
        planned = pa.table({
            "epoch": np.full(len(row_T), epoch, np.int32), "batch": batch_T, "slice": slice_T, "row": row_T,
            "query_id": of_group["query_id"], "source": of_group["source"], "query_hash": of_group["query_hash"],
            "query_ids": of_group["query_ids"],
            "lengths": pa.ListArray.from_arrays(pa.array(text_offsets, pa.int32()), pa.array(lengths_L, pa.int32())),
            "passages": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat).cast(PASSAGES_TYPE),
        }, schema=PLAN_GROUPS)  # fmt: skip
        yield from _cut(planned, batch_T, slice_T, np.add.reduceat(lengths_L, text_offsets[:-1]))


def text_slices(table: pa.Table, batches: Sequence[np.ndarray], epoch: int, slices: int) -> Iterator[pa.Table]:
    """Yields the plan's row groups in order (schema PLAN_TEXTS); see `group_slices`."""
    for start in range(0, len(batches), CHUNK):
        part = batches[start : start + CHUNK]
        batch_T, slice_T, row_T, order_T = _places([len(batch) for batch in part], start, slices)
        taken = table.take(pa.array(np.concatenate(part)[order_T], pa.int64()))
        length_T = pc.list_value_length(taken["token_ids"]).to_numpy()
        planned = pa.table({
            "epoch": np.full(len(taken), epoch, np.int32), "batch": batch_T, "slice": slice_T, "row": row_T,
            "length": length_T, **{name: taken[name] for name in ("passage_id", "offset", "source", "token_ids")},
        }).select(PLAN_TEXTS.names).cast(PLAN_TEXTS)  # fmt: skip
        yield from _cut(planned, batch_T, slice_T, length_T)


class Figures:
    """Counts over a plan's row groups as they are written: rows, tokens, padding, the highest id, the longest text."""

    def __init__(self) -> None:
        self.rows = self.tokens = self.highest = self.longest = self.scored = self.margin = 0
        self.longest_pair = 0
        self.highest_row = self.longest_row = self.longest_pair_row = ""
        self.histograms: dict[str, list[int]] = {}
        self.sources: set[str] = set()
        self.without_negatives: str | None = None
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
            self.sources.update(part["source"].unique().to_pylist())
            if "query_ids" in part.column_names:
                self._add_groups(part)
            else:
                self._add("text_tokens", part["token_ids"], lambda text, part=part: _named(part, text, "passage_id"))
            yield part
        self._close_batch()

    def facts(self, batches: int) -> dict[str, Any]:
        """What the partition's manifest tells: training reads the number of batches from it.

        `padding_share` is what padding every batch to its longest query and passage would waste. `max_row`,
        `longest_row`, `longest_pair_row` and `without_negatives` name rows, for the errors of a plan that does not fit
        a model; `longest_pair` is the tokens of a query and one of its passages together. `scored_groups` counts rows
        of which every passage has a teacher's score, `margin_groups` those whose positive and some negative have one.
        """
        share = 1 - self.tokens / self._padded if self._padded else 0.0
        return {"batches": batches, "rows": self.rows, "tokens": self.tokens, "padding_share": round(share, 4),
                "max_token_id": self.highest, "max_row": self.highest_row, "longest": self.longest,
                "longest_row": self.longest_row, "longest_pair": self.longest_pair,
                "longest_pair_row": self.longest_pair_row, "sources": sorted(self.sources),
                "without_negatives": self.without_negatives, "scored_groups": self.scored,
                "margin_groups": self.margin, "kind": "groups" if self.longest_pair else "texts"}  # fmt: skip

    def _add_groups(self, part: pa.Table) -> None:
        passages = part["passages"].combine_chunks()
        flat, parent_P = passages.flatten(), pc.list_parent_indices(passages).to_numpy()
        alone = np.flatnonzero(passages.value_lengths().to_numpy() < 2)
        if len(alone) and self.without_negatives is None:
            self.without_negatives = _named(part, int(alone[0]), "query_id")

        missing_P = pc.is_null(flat.field("score"), nan_is_null=True).to_numpy(zero_copy_only=False)
        self.scored += len(passages) - len(np.unique(parent_P[missing_P]))
        first_P = np.r_[True, parent_P[1:] != parent_P[:-1]]
        beside_N = np.bincount(parent_P[~missing_P & ~first_P], minlength=len(passages)) > 0
        self.margin += int((beside_N[parent_P] & first_P & ~missing_P).sum())

        def name(text: int) -> str:
            return f"{_named(part, int(parent_P[text]), 'query_id')}, {_named(flat, text, 'passage_id')}"

        query_T = pc.list_value_length(part["query_ids"]).to_numpy()
        pair_P = query_T[parent_P] + flat.field("token_ids").value_lengths().to_numpy()
        if (longest := int(pair_P.max())) > self.longest_pair:
            self.longest_pair, self.longest_pair_row = longest, name(int(pair_P.argmax()))
        self._add("query_tokens", part["query_ids"], lambda text: _named(part, text, "query_id"))
        self._add("passage_tokens", flat.field("token_ids"), name)

    def _add(self, name: str, column: pa.ChunkedArray | pa.Array, named: Callable[[int], str]) -> None:
        lengths = pc.list_value_length(column).to_numpy()
        count, longest = self._batch.get(name, (0, 0))
        self._batch[name] = (count + len(lengths), max(longest, int(lengths.max())))
        self.tokens += int(lengths.sum())
        if (longest := int(lengths.max())) > self.longest:
            self.longest, self.longest_row = longest, named(int(lengths.argmax()))
        ids = pc.list_flatten(column).to_numpy()
        if (highest := int(ids.max())) > self.highest:
            owner = int(np.searchsorted(np.cumsum(lengths), ids.argmax(), side="right"))
            self.highest, self.highest_row = highest, named(owner)
        self.histograms[name] = add_bins(self.histograms.get(name, []), length_bins(lengths))

    def _close_batch(self) -> None:
        self._padded += sum(count * longest for count, longest in self._batch.values())
        self._batch = {}


def _named(rows: pa.Table | pa.StructArray, index: int, column: str) -> str:
    values = rows[column] if isinstance(rows, pa.Table) else rows.field(column)
    return f"{column} {values[index]}"


def _places(sizes: Sequence[int], first: int, slices: int) -> tuple[np.ndarray, ...]:
    """Batch, slice and row of each planned row, and the order of the batches' rows: batch, slice (see above), row."""
    batch = np.repeat(np.arange(len(sizes)), sizes)
    row = np.concatenate([np.arange(size) for size in sizes])
    order = np.lexsort((row, reversed_bits(row % slices), batch))
    batch, row = batch[order], row[order]
    return (batch + first).astype(np.int32), (row % slices).astype(np.int16), row.astype(np.int32), order


def reversed_bits(slice_T: np.ndarray) -> np.ndarray:
    """Reverses 16 bits: where slices are ordered by it, those equal modulo a power of two stand together."""
    return sum(((slice_T >> bit) & 1) << (15 - bit) for bit in range(16))


def _cut(planned: pa.Table, batch_T: np.ndarray, slice_T: np.ndarray, tokens_T: np.ndarray) -> Iterator[pa.Table]:
    """Cuts at ends of slices, the first at which a row group holds its tokens."""
    new_batch = np.flatnonzero(np.r_[True, batch_T[1:] != batch_T[:-1]])
    new_slice = np.flatnonzero(np.r_[True, (batch_T[1:] != batch_T[:-1]) | (slice_T[1:] != slice_T[:-1])])
    before_T = np.cumsum(tokens_T) - tokens_T
    first = set(new_batch.tolist())
    edges, begun = [], 0
    for start in new_slice.tolist():
        if start in first or before_T[start] - begun >= ROW_GROUP_TOKENS:
            edges.append(start)
            begun = before_T[start]
    for start, stop in itertools.pairwise([*edges, len(batch_T)]):
        yield planned.slice(start, stop - start)


def _flat(column: pa.ChunkedArray) -> pa.StructArray:
    flat = pc.list_flatten(column)
    return flat.combine_chunks() if flat.num_chunks != 1 else flat.chunk(0)
