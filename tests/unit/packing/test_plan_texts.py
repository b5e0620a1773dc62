"""Packing texts to a token budget: all of them, none over it, similar lengths together."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.packing.plan_texts import plan_texts


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(3, 50), max_size=60), st.integers(50, 120), st.integers(0, 3))
def test_texts_are_all_packed_within_the_budget(lengths: list[int], budget: int, epoch: int) -> None:
    length, ids = np.array(lengths, np.int64), np.arange(len(lengths))
    batches = plan_texts(ids, np.zeros_like(ids), length, np.ones(len(ids)), tokens_per_batch=budget, seed=1,
                         epoch=epoch, bucket=0)  # fmt: skip
    assert sorted(np.concatenate(batches or [ids])) == ids.tolist()
    assert all(length[batch].sum() <= budget for batch in batches)


def test_texts_of_a_batch_have_similar_lengths() -> None:
    length = np.random.default_rng(0).integers(4, 512, 4000)
    ids = np.arange(len(length))
    batches = plan_texts(ids, ids * 0, length, np.ones(len(ids)), tokens_per_batch=8192, seed=1, epoch=0, bucket=0)
    padded = sum(len(batch) * length[batch].max() for batch in batches)
    assert padded < 1.2 * length.sum()  # 1.9 without sorting
    assert length[batches[0]].max() != length[batches[1]].max()
