"""Reading a batch plan: rank r of W takes slices r, r + W, … of every global batch, with a thread that reads ahead.

A plan is the same for any number of workers; a step's batch follows from the step alone, so a resumed run seeks.
Leaves out: how batches are composed (packing), what is computed from them (pretrain.py, finetune.py).

Shapes: S slices of a global batch, W ranks, G row groups of a file.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chuxin.artifacts import open_parquet
from chuxin.errors import InputError

AHEAD = 4
"""Batches prepared before they are needed."""

T = TypeVar("T")


class PlanFile(NamedTuple):
    """One partition of a plan."""

    file: str
    batches: int


class Plan(NamedTuple):
    """A whole plan: its files in order, and the figures training needs before it opens them."""

    files: tuple[PlanFile, ...]
    slices: int
    max_token_id: int
    longest: int
    vocabulary: str

    @property
    def batches(self) -> int:
        """Global batches of all epochs: the steps of a run over the whole plan."""
        return sum(file.batches for file in self.files)


class Batch(NamedTuple):
    """This rank's rows of a global batch."""

    step: int
    """1 for the first global batch of the plan."""
    epoch: int
    index: int
    """Of the batch in its file."""
    rows: int
    """Rows of all ranks."""
    table: pa.Table
    """This rank's rows, schema PLAN_GROUPS or PLAN_TEXTS; may be empty."""


def open_plan(uri: str, partitions: Sequence[Mapping[str, Any]], files: Sequence[str]) -> Plan:
    """Reads a plan's figures from its partitions' manifests.

    Args:
        uri: Of the artifact; named in errors.
        partitions: Manifests of its partitions, in order.
        files: Parquet files of the table `plan`, in the same order.

    Raises:
        InputError: The artifact holds no plan, or an empty one.
    """
    facts = [part["facts"] for part in partitions if "plan" in part["tables"]]
    if not sum(fact["batches"] for fact in facts):
        raise InputError(uri, "it holds no batch plan", "Give the artifact of a pack stage")
    listed = [PlanFile(file, fact["batches"]) for file, fact in zip(files, facts, strict=True)]
    return Plan(
        tuple(file for file in listed if file.batches), facts[0]["slices"],
        max(fact["max_token_id"] for fact in facts), max(fact["longest"] for fact in facts), facts[0]["vocabulary"],
    )  # fmt: skip


def check_fits(plan: Plan, uri: str, vocabulary: str, vocab_size: int, max_length: int, workers: int) -> None:
    """Checks that a plan's token ids mean what a model takes them for.

    Args:
        plan: The plan.
        uri: Its artifact; named in errors.
        vocabulary: Fingerprint of the model's tokenizer.
        vocab_size: Rows of its embedding table.
        max_length: Most tokens it takes.
        workers: That will share each batch.

    Raises:
        InputError: Another vocabulary, ids or lengths beyond the model's tables, or more workers than slices.
    """
    repack = "Pack again with this model's tokenizer"
    if plan.vocabulary != vocabulary:
        raise InputError(uri, "the plan was made with another tokenizer than the model's", repack)
    if plan.max_token_id >= vocab_size:
        raise InputError(uri, f"token id {plan.max_token_id} is beyond the model's {vocab_size} entries", repack)
    if plan.longest > max_length:
        remedy = f"Pack again with at most {max_length} tokens a text"
        raise InputError(uri, f"a text has {plan.longest} tokens, the model takes {max_length}", remedy)
    if workers > plan.slices:
        remedy = f"Lower num_workers to {plan.slices}, or pack again with more slices"
        raise InputError(uri, f"{workers} workers cannot share {plan.slices} slices", remedy)


def read_batches(plan: Plan, rank: int, world: int, first_step: int, last_step: int) -> Iterator[Batch]:
    """Yields this rank's share of the global batches of steps first_step … last_step, both counted from 1."""
    step = 0
    for file in plan.files:
        if step + file.batches < first_step:
            step += file.batches
            continue
        with open_parquet(file.file) as parquet:
            for index, groups in enumerate(_row_groups(parquet)):
                step += 1
                if step > last_step:
                    return
                if step >= first_step:
                    yield _read(parquet, groups, rank, world, step, index)


def ahead(items: Iterator[T], prepare: Callable[[T], Any]) -> Iterator[Any]:
    """Runs `items` and `prepare` in a thread, a few items ahead of who takes them; errors come out here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(AHEAD)
    stopped = threading.Event()

    def put(value: tuple[bool, Any]) -> None:
        while not stopped.is_set():
            try:
                ready.put(value, timeout=0.2)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                put((True, prepare(item)))
                if stopped.is_set():
                    return
            put((False, None))
        except BaseException as error:  # noqa: B036  # raised again by the consumer
            put((False, error))

    threading.Thread(target=run, name="plan-reader", daemon=True).start()
    try:
        while True:
            alive, value = ready.get()
            if alive:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stopped.set()


def token_lists(column: pa.ChunkedArray | pa.Array) -> list[np.ndarray]:
    """Turns a list<int32> column into one array a row, without copying."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    flat, offsets = column.flatten().to_numpy(), column.value_lengths().to_numpy()
    return np.split(flat, np.cumsum(offsets)[:-1]) if len(offsets) else []


def _row_groups(parquet: pq.ParquetFile) -> list[list[tuple[int, int, int]]]:
    """For each global batch the (row group, slice, rows) of its slices, from the footer's statistics."""
    names = parquet.schema_arrow.names
    batch_column, slice_column = names.index("batch"), names.index("slice")
    batches: list[list[tuple[int, int, int]]] = []
    for index in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(index)
        batch = group.column(batch_column).statistics.min
        if batch == len(batches):
            batches.append([])
        batches[batch].append((index, group.column(slice_column).statistics.min, group.num_rows))
    return batches


def _read(
    parquet: pq.ParquetFile, groups: list[tuple[int, int, int]], rank: int, world: int, step: int, index: int
) -> Batch:
    own = [group for group, part, _ in groups if part % world == rank]
    table = parquet.read_row_groups(own, use_threads=False) if own else parquet.schema_arrow.empty_table()
    # The epoch of a rank without rows is never used, but for the record.
    epoch = pc.max(table["epoch"]).as_py() if own else -1
    return Batch(step, epoch, index, sum(rows for _, _, rows in groups), table)
