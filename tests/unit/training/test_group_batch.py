"""A plan's rows as arrays: order, what is missing, and dropout keys that depend on the text's place alone."""

import numpy as np
import pytest

from chuxin.training.group_batch import GroupBatch, group_batch, text_keys
from chuxin.training.plan_reader import read_batches

from . import ranks


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], list[GroupBatch]]:
    directory = tmp_path_factory.mktemp("plan")
    ranks.write_plan(directory)
    return {
        (rank, world): [
            group_batch(batch, ranks.SOURCES, 5, 80)
            for batch in read_batches(ranks.plan(directory), rank, world, 1, len(ranks.SLICES))
        ]
        for rank, world in ((0, 1), (0, 2), (1, 2))
    }


def test_queries_come_first_and_nothing_is_lost(shares: dict) -> None:
    batch = shares[0, 1][0]
    assert batch.rows == len(batch.count_B) == 7 and len(batch.lengths) == 7 + batch.count_B.sum()
    assert batch.count_B.tolist() == [2 + row % 3 for row in (0, 3, 5, 1, 2, 4, 6)]  # in the order of slices
    assert batch.lengths.sum() == len(batch.ids_T) == sum(sum(part.packed.lengths) for part in batch.parts)
    starts = np.cumsum(batch.lengths) - batch.lengths
    assert (batch.ids_T[starts] == 0).all()
    assert batch.score_N.isnan().sum() == sum(2 + row % 3 for row in (0, 3, 6))
    assert batch.source_B.tolist() == [0, 1, 1, 1, 0, 0, 0]


def test_a_rank_without_rows_runs_the_others_passes(shares: dict) -> None:
    full, empty = shares[0, 2][2], shares[1, 2][2]
    assert len(empty.count_B) == len(empty.ids_T) == len(empty.score_N) == 0 and empty.rows == 3
    assert len(empty.parts) == len(full.parts) > 1


def test_keys_follow_the_text_whatever_the_ranks(shares: dict) -> None:
    def keys(batches: list[GroupBatch]) -> set[tuple[int, int]]:
        return {(batch.step, int(key)) for batch in batches for part in batch.parts
                for key in part.key_N[: len(part.text_N)]}  # fmt: skip

    alone = keys(shares[0, 1])
    assert alone == keys(shares[0, 2]) | keys(shares[1, 2])
    assert len(alone) == sum(len(batch.lengths) for batch in shares[0, 1])


def test_keys_differ_with_each_number() -> None:
    row, place = (grid.ravel() for grid in np.meshgrid(np.arange(200), np.arange(9)))
    of = {(seed, step): text_keys(seed, step, row, place) for seed in (1, 2) for step in (1, 2)}
    everything = np.concatenate(list(of.values()))
    assert everything.dtype == np.int32 and len(np.unique(everything)) == len(everything)
    assert (text_keys(1, 1, row, place) == of[1, 1]).all()
    assert abs(np.mean(everything < 0) - 0.5) < 0.03
