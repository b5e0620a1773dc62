"""What mining reads: tables of artifacts, cut into partitions at row groups or rows.

Leaves out: what is computed from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chuxin.artifacts import Artifact
from chuxin.errors import InputError
from chuxin.files import fetched, open_parquet
from chuxin.schema import KEEP
from chuxin.search.store import PassageStore, shard_uris

if TYPE_CHECKING:
    from chuxin.runner import Context

GROUP_COLUMNS = ("query_id", "query", "query_hash", "source", "positives", "negatives", "lineage")
PASSAGE_COLUMNS = ("passage_id", "text", "text_hash", "status")


def holds_values(files: Sequence[str], column: str) -> bool:
    """True if a value of a column, e.g. "candidates.list.element.bm25_rank", is not null; reads only the footers."""
    for file in files:
        with open_parquet(file) as part:
            for group in range(part.num_row_groups):
                chunks = map(part.metadata.row_group(group).column, range(part.metadata.num_columns))
                own = next(chunk.statistics for chunk in chunks if chunk.path_in_schema == column)
                if own is None or own.has_min_max:  # without statistics it may hold some
                    return True
    return False


def store_of(ctx: Context, ref: str) -> list[str]:
    """Returns where a mine stage's shards stand, in their order; `open_store` opens them on any machine.

    Raises:
        InputError: The reference names no artifact with a store.
    """
    shards = shard_uris(_mined(ctx, ref))
    if not shards:
        raise InputError(f"{ctx.name}: {ref}", "it holds no passage store", "Name the mine stage as `store`")
    return shards


def mined_config(ctx: Context, ref: str) -> Mapping[str, Any]:
    """Returns the config that a mine stage's artifact was made by; nothing of one that notes none."""
    return _mined(ctx, ref).manifest.get("config", {})


def _mined(ctx: Context, ref: str) -> Artifact:
    return ctx.inputs.get(ref.partition(":")[0]) or Artifact(ref)


def open_store(shards: Sequence[str]) -> PassageStore:
    """Opens shards, here on the machine that needs them."""
    return PassageStore([fetched(shard) for shard in shards])


def kept_ids(files: Sequence[str], where: str) -> np.ndarray:
    """Returns the ids of the groups to keep, int64: 8 bytes each.

    Raises:
        InputError: There are none, two groups have one id, or a file lacks a column of groups.
    """
    parts = [np.zeros(0, np.int64)]
    for file in files:
        with open_parquet(file) as part:
            _require_columns(file, part, "groups", (*GROUP_COLUMNS, "status"))
            table = part.read(columns=["query_id", "status"])
        parts.append(table["query_id"].filter(pc.equal(table["status"], KEEP)).to_numpy())
    ids = np.concatenate(parts)
    values, counts = np.unique(ids, return_counts=True)
    if not len(ids):
        raise InputError(where, "there is no group to keep", "Check the status of the groups' rows")
    if len(values) < len(ids):
        raise InputError(f"{where}: query_id {values[counts.argmax()]}", "two groups have this id",
                         "Name each artifact once, and give two syntheses of the same passages different seeds")
    return ids


def _require_columns(file: str, part: pq.ParquetFile, table: str, columns: Sequence[str]) -> None:
    missing = {*columns} - {*part.schema_arrow.names}
    if missing:
        raise InputError(file, f"the table of {table} has no column {', '.join(sorted(missing))}",
                         f"Name a stage in `{table}`, or write {', '.join(columns)}")


def cut_row_groups(files: Sequence[str], rows: int) -> Iterator[dict[str, Any]]:
    """Yields slices of about so many rows: the file, and the range `start` to `end` of its row groups.

    Raises:
        InputError: A file lacks a column of passages.
    """
    for file in files:
        with open_parquet(file) as part:
            _require_columns(file, part, "passages", PASSAGE_COLUMNS)
            sizes = [part.metadata.row_group(group).num_rows for group in range(part.num_row_groups)]
        start = held = 0
        for group, size in enumerate(sizes):
            if held and held + size > rows:
                yield {"file": file, "start": start, "end": group}
                start, held = group, 0
            held += size
        if held:
            yield {"file": file, "start": start, "end": len(sizes)}


def cut_rows(files: Sequence[str], rows: int) -> Iterator[dict[str, Any]]:
    """Yields blocks of at most so many rows: the file, and the range `start` to `end` of its rows."""
    for file in files:
        with open_parquet(file) as part:
            total = part.metadata.num_rows
        for start in range(0, total, rows):
            yield {"file": file, "start": start, "end": min(start + rows, total)}


def read_heads(item: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ids and text hashes, int64, and whether a row is to be kept, bool, of a slice of passages."""
    with open_parquet(item["file"]) as part:
        columns = ["passage_id", "text_hash", "status"]
        table = part.read_row_groups(list(range(item["start"], item["end"])), columns=columns)
    keep = pc.equal(table["status"], KEEP).to_numpy()
    return table["passage_id"].to_numpy(), table["text_hash"].to_numpy(), keep


def read_groups(item: Mapping[str, Any]) -> pa.Table:
    """Returns the groups to keep of a block of rows, without their status.

    Raises:
        InputError: A group has no query, or no positive.
    """
    parts, start = [], 0
    with open_parquet(item["file"]) as file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            low, high = max(item["start"] - start, 0), min(item["end"] - start, rows)
            if low < high:
                own = file.read_row_group(group, columns=[*GROUP_COLUMNS, "status"]).slice(low, high - low)
                parts.append(own.filter(pc.equal(own["status"], KEEP)))
            start += rows
    table = pa.concat_tables(parts).select(GROUP_COLUMNS).combine_chunks()
    for column, fault in (("query", "the query is empty"), ("positives", "the group has no positive")):
        length = pc.utf8_length if column == "query" else pc.list_value_length
        short = pc.fill_null(pc.equal(length(table[column]), 0), True)
        if pc.any(short).as_py():
            query_id = table["query_id"].filter(short)[0].as_py()
            raise InputError(f"{item['file']}: query_id {query_id}", fault, "Curate the file, or mark the row's status")
    return table


def passages_of(groups: pa.Table, side: str) -> tuple[np.ndarray, pa.StructArray]:
    """Returns the passages of one side of all groups, and the row each belongs to, int64."""
    lists = groups[side].combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    owner = np.repeat(np.arange(len(lists)), pc.fill_null(pc.list_value_length(lists), 0).to_numpy())
    return owner, lists.flatten()
