"""Power-of-two bins."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chuxin.report.bins import SCORES_FROM, SCORES_TO, length_bins, score_bins


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


@given(st.lists(st.floats(-40, 40), max_size=20))
def test_every_score_is_in_the_bin_one_wide_that_holds_it_or_at_the_end(scores: list[float]) -> None:
    bins = score_bins(np.array(scores, np.float32))
    assert len(bins) == SCORES_TO - SCORES_FROM and sum(bins) == len(scores)
    for i, count in enumerate(bins):
        low = -np.inf if i == 0 else SCORES_FROM + i
        high = np.inf if i == len(bins) - 1 else SCORES_FROM + i + 1
        assert count == sum(low <= score < high for score in np.array(scores, np.float32))
