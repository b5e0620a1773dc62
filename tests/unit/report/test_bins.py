"""Power-of-two bins."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chuxin.report.bins import length_bins


@given(st.lists(st.integers(0, 2**40), max_size=20))
def test_every_length_is_in_the_bin_of_its_power(lengths: list[int]) -> None:
    bins = length_bins(np.array([length % 10_000 for length in lengths], np.int64))
    assert sum(bins) == len(lengths)
    for i, count in enumerate(bins):
        low = 0 if i == 0 else 2**i
        assert count == sum(low <= length % 10_000 < 2 ** (i + 1) for length in lengths)


def test_edges() -> None:
    assert length_bins(np.array([], np.int64)) == []
    assert length_bins(np.array([0, 1, 2, 3, 4, 7, 8, 2**40 - 1, 2**40]))[:4] == [2, 2, 2, 1]
    assert length_bins(np.array([2**40 - 1]))[39] == 1
