"""Reading a batch plan: rank r of W takes slices r, r + W, … of every global batch, with a thread that reads ahead.

A plan is the same for any number of workers; a step's batch follows from the step alone, so a resumed run seeks.
Leaves out: how batches are composed (packing), whether they fit a model and a config (plan_checks.py), what is computed
from them (pretrain.py, finetune.py).

A row group holds one batch's rows, or some of them; a rank reads the row groups in which its slices lie and, of the
others, only the columns of lengths: from these it knows how many micro-batches every rank runs, without a collective.
Reading the lengths of all ranks takes 0.3 ms of 3.3 ms a batch of 64 rows with 8 passages, 2 ms of 7 to 31 of 1,024.

Shapes: S slices of a global batch, W ranks, T rows of a batch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chuxin.errors import InputError
from chuxin.files import open_parquet

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
    sources: tuple[str, ...] = ()
    """Of all rows, sorted."""
    without_negatives: str | None = None
    """Names the first row that brings no negative of its own; None if each does, or for a plan of texts."""
    max_row: str = ""
    """Names the row that holds `max_token_id`."""
    longest_row: str = ""
    """Names the row that holds the text of `longest` tokens."""
    scored_groups: int | None = None
    """Rows of which every passage has a teacher's score: those that distillation learns from. None: the plan was
    made before packing counted them."""
    longest_pair: int = 0
    """Tokens of the longest query with one of its passages; 0 for a plan of texts, or one made before packing told."""
    longest_pair_row: str = ""
    """Names its row."""
    margin_groups: int | None = None
    """Rows whose positive has a teacher's score and some negative too; None as for `scored_groups`."""
    kind: str | None = None
    """"groups", or "texts" for RetroMAE; None: the plan was made before packing told."""

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
    lengths_of_ranks: tuple[np.ndarray, ...]
    """Tokens of every rank's texts, int64: of groups, each row's query and then its passages; in the table's order."""
    texts_of_ranks: tuple[np.ndarray, ...]
    """Texts of every rank's rows, int64: of a group one query and its passages."""

    def sides_of_ranks(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Tokens of every rank's queries and of its passages, int64, in the table's order; of groups."""
        return tuple(map(_sides, self.lengths_of_ranks, self.texts_of_ranks))

    def pairs_of_ranks(self) -> tuple[np.ndarray, ...]:
        """Tokens of each query with each of its passages, of every rank, int64, in the table's order; of groups.

        *Relations*: `models.reranker.pair_ids` leaves out and adds one special token, so that lengths add up.
        """
        sides = zip(self.sides_of_ranks(), self.texts_of_ranks, strict=True)
        return tuple(passage_N + np.repeat(query_B, texts_B - 1) for (query_B, passage_N), texts_B in sides)

    def groups_of_ranks(self) -> tuple[np.ndarray, ...]:
        """Tokens of each row's pairs together, of every rank, int64; of groups."""
        found = []
        for pairs_N, texts_B in zip(self.pairs_of_ranks(), self.texts_of_ranks, strict=True):
            tokens_B = np.bincount(np.repeat(np.arange(len(texts_B)), texts_B - 1), pairs_N, len(texts_B))
            found.append(tokens_B.astype(np.int64))
        return tuple(found)


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
    named = {name: max(facts, key=lambda fact: fact[name]) for name in ("max_token_id", "longest")}
    pair = max(facts, key=lambda fact: fact.get("longest_pair", 0))
    listed = [PlanFile(file, fact["batches"]) for file, fact in zip(files, facts, strict=True)]
    return Plan(
        tuple(file for file in listed if file.batches), facts[0]["slices"],
        named["max_token_id"]["max_token_id"], named["longest"]["longest"], facts[0]["vocabulary"],
        tuple(sorted({source for fact in facts for source in fact["sources"]})),
        next((fact["without_negatives"] for fact in facts if fact["without_negatives"]), None),
        named["max_token_id"]["max_row"], named["longest"]["longest_row"],
        sum(fact["scored_groups"] for fact in facts) if all("scored_groups" in fact for fact in facts) else None,
        pair.get("longest_pair", 0), pair.get("longest_pair_row", ""),
        sum(fact["margin_groups"] for fact in facts) if all("margin_groups" in fact for fact in facts) else None,
        facts[0].get("kind"),
    )  # fmt: skip


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


def _row_groups(parquet: pq.ParquetFile) -> list[list[int]]:
    """The row groups of each global batch, from the footer's statistics."""
    column = parquet.schema_arrow.names.index("batch")
    batches: list[list[int]] = []
    for index in range(parquet.metadata.num_row_groups):
        if parquet.metadata.row_group(index).column(column).statistics.min == len(batches):
            batches.append([])
        batches[-1].append(index)
    return batches


def _read(parquet: pq.ParquetFile, groups: list[int], rank: int, world: int, step: int, index: int) -> Batch:
    names = parquet.schema_arrow.names
    small = ["epoch", "slice", "lengths" if "lengths" in names else "length"]
    if world == 1 or len(groups) == 1:
        table = whole = parquet.read_row_groups(groups, use_threads=False)
        rank_T = whole["slice"].to_numpy() % world
        read_T = rank_T
    else:
        whole = parquet.read_row_groups(groups, columns=small, use_threads=False)
        rank_T = whole["slice"].to_numpy() % world
        group_T = np.repeat(groups, [parquet.metadata.row_group(group).num_rows for group in groups])
        wanted = np.unique(group_T[rank_T == rank])
        read_T = rank_T[np.isin(group_T, wanted)]
        empty = parquet.schema_arrow.empty_table()
        table = parquet.read_row_groups(wanted.tolist(), use_threads=False) if len(wanted) else empty
    epoch = whole["epoch"][0].as_py()
    lengths, texts = _texts_of_ranks(whole[small[-1]].combine_chunks(), rank_T, world)
    return Batch(step, epoch, index, len(rank_T), _only(table, read_T == rank), lengths, texts)


def _only(table: pa.Table, wanted_T: np.ndarray) -> pa.Table:
    own = np.flatnonzero(wanted_T)
    if len(own) and own[-1] - own[0] + 1 == len(own):  # as the plan lays rows out: no copy
        return table.slice(int(own[0]), len(own))
    return table.filter(pa.array(wanted_T))


def _texts_of_ranks(
    lengths: pa.Array, rank_T: np.ndarray, world: int
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Returns for each rank the tokens of its texts and the texts of its rows."""
    texts_T = np.ones(len(rank_T), np.int64)
    if pa.types.is_list(lengths.type):
        texts_T = lengths.value_lengths().to_numpy().astype(np.int64)
        lengths = lengths.flatten()
    lengths_L, rank_L = lengths.to_numpy().astype(np.int64), np.repeat(rank_T, texts_T)
    return (tuple(lengths_L[rank_L == rank] for rank in range(world)),
            tuple(texts_T[rank_T == rank] for rank in range(world)))  # fmt: skip


def _sides(lengths_L: np.ndarray, texts_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first_B = np.cumsum(texts_B) - texts_B
    return lengths_L[first_B], np.delete(lengths_L, first_B)
