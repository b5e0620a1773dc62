"""Reading a plan: ranks partition each batch, steps are found again, errors name the plan."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chuxin.errors import InputError
from chuxin.schema import PLAN_TEXTS
from chuxin.training.plan_reader import (
    Plan,
    ahead,
    open_plan,
    read_batches,
    token_lists,
)  # fmt: skip

SLICES, SIZES = 4, ([9, 3, 8], [], [2, 7])


@pytest.fixture(params=[[[0], [1], [2], [3]], [[0, 2], [1, 3]], [[0, 2, 1, 3]]], ids=["four", "two", "one"])
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Plan:
    """A plan of texts whose batches are four, two or one row groups of the slices given."""
    files = []
    for number, sizes in enumerate(SIZES):
        path = tmp_path / f"{number}.parquet"
        with pq.ParquetWriter(path, PLAN_TEXTS) as writer:
            for batch, size in enumerate(sizes):
                for parts in request.param:
                    rows = [
                        {"epoch": number, "batch": batch, "slice": part, "row": row, "offset": 0, "source": "s",
                         "passage_id": 100 * batch + row, "token_ids": [0, row, 2][: row + 1],
                         "length": min(row + 1, 3)} for part in parts for row in range(part, size, SLICES)
                    ]  # fmt: skip
                    if rows:
                        writer.write_table(pa.Table.from_pylist(rows, PLAN_TEXTS))
        files.append(str(path))
    partitions = [{"tables": {"plan": {}}, "facts": facts(len(sizes), number)} for number, sizes in enumerate(SIZES)]
    return open_plan("here", [{"tables": {"tokens": {}}, "facts": {}}, *partitions], files)


def facts(batches: int, number: int = 0) -> dict:
    return {
        "batches": batches, "slices": SLICES, "max_token_id": 9 + number, "max_row": f"query_id {number}",
        "longest": 3 - number, "longest_row": f"query_id 7{number}", "vocabulary": "v", "sources": ["s", f"s{number}"],
        "without_negatives": "query_id 5" if number == 1 else None,
    }  # fmt: skip


def test_what_older_plans_do_not_tell_is_known_to_be_unknown() -> None:
    def scored(*counts: int | None) -> int | None:
        extra = [{} if count is None else {"scored_groups": count} for count in counts]
        parts = [{"tables": {"plan": {}}, "facts": facts(1) | more} for more in extra]
        return open_plan("here", parts, [f"{n}.parquet" for n in range(len(counts))]).scored_groups

    assert open_plan("here", [{"tables": {"plan": {}}, "facts": facts(1)}], ["0.parquet"]).longest_pair == 0
    longest = [{"longest_pair": n, "longest_pair_row": f"query_id {n}"} for n in (4, 9, 2)]
    parts = [{"tables": {"plan": {}}, "facts": facts(1) | more} for more in longest]
    plan = open_plan("here", parts, ["0.parquet"] * 3)
    assert (plan.longest_pair, plan.longest_pair_row) == (9, "query_id 9")
    assert scored(3, 0, 4) == 7 and scored(0, 0) == 0 and scored(3, None) is None


def test_the_number_of_batches_comes_from_the_manifests(plan: Plan) -> None:
    assert plan.batches == 5 and [file.batches for file in plan.files] == [3, 2]


def test_what_training_needs_to_know_of_all_rows_comes_from_the_manifests(plan: Plan) -> None:
    assert plan.sources == ("s", "s0", "s1", "s2") and plan.without_negatives == "query_id 5"
    assert (plan.max_token_id, plan.max_row) == (11, "query_id 2")
    assert (plan.longest, plan.longest_row) == (3, "query_id 70")


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_partition_every_batch(plan: Plan, world: int) -> None:
    shares = [list(read_batches(plan, rank, world, 1, 5)) for rank in range(world)]
    flat = [size for sizes in SIZES for size in sizes]
    for step, (size, own) in enumerate(zip(flat, zip(*shares, strict=True), strict=True), 1):
        assert [batch.step for batch in own] == [step] * world and {batch.rows for batch in own} == {size}
        rows = [row for batch in own for row in batch.table["row"].to_pylist()]
        assert sorted(rows) == list(range(size))
        for batch in own:
            assert [lengths.tolist() for lengths in batch.lengths_of_ranks] == [
                [len(ids) for ids in of_rank.table["token_ids"].to_pylist()] for of_rank in own
            ]
            assert [texts.tolist() for texts in batch.texts_of_ranks] == [[1] * len(of_rank.table) for of_rank in own]
    assert [(batch.epoch, batch.index) for batch in shares[0]] == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]


def test_a_step_is_found_again(plan: Plan) -> None:
    whole = list(read_batches(plan, 1, 2, 1, 5))
    for first in range(1, 6):
        rest = list(read_batches(plan, 1, 2, first, 5))
        assert [b.table.to_pylist() for b in rest] == [b.table.to_pylist() for b in whole[first - 1 :]]
    assert [batch.step for batch in read_batches(plan, 0, 1, 2, 3)] == [2, 3]


def test_token_lists_are_the_rows(plan: Plan) -> None:
    table = next(read_batches(plan, 0, 1, 1, 1)).table
    assert [ids.tolist() for ids in token_lists(table["token_ids"])] == table["token_ids"].to_pylist()
    assert token_lists(table["token_ids"].slice(0, 0)) == []


def test_an_artifact_without_a_plan_is_refused() -> None:
    with pytest.raises(InputError, match="here: it holds no batch plan"):
        open_plan("here", [{"tables": {"passages": {}}, "facts": {}}], [])
    with pytest.raises(InputError, match="no batch plan"):
        open_plan("here", [{"tables": {"plan": {}}, "facts": facts(0)}], ["f"])


def test_reading_ahead_keeps_order_and_passes_errors_on() -> None:
    assert list(ahead(iter(range(20)), lambda n: n * n)) == [n * n for n in range(20)]

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    items = ahead(broken(), lambda n: n)
    assert next(items) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)


def test_reading_ahead_stops_with_its_consumer() -> None:
    before = threading.active_count()
    items = ahead(iter(range(10_000)), lambda n: n)
    assert next(items) == 0
    items.close()
    for thread in threading.enumerate():
        if thread.name == "plan-reader":
            thread.join(timeout=5)
    assert threading.active_count() == before
