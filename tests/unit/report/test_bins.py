"""Power-of-two bins."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chuxin.report.bins import SCALES, length_bins, scale_of, score_bins


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


@given(st.sampled_from(sorted(SCALES)), st.lists(st.floats(-40, 40, width=32) | st.just(float("nan")), max_size=20))
def test_every_score_is_in_the_bin_that_holds_it_or_at_the_end(kind: str, scores: list[float]) -> None:
    low, width, count = SCALES[kind]
    bins = score_bins(kind, np.array(scores, np.float32))
    assert len(bins) == count and sum(bins) == sum(score == score for score in scores)
    for i, found in enumerate(bins):
        start = -np.inf if i == 0 else round(low + i * width, 9)
        end = np.inf if i == count - 1 else round(low + (i + 1) * width, 9)
        assert found == sum(start <= score < end for score in scores)


def test_a_histogram_is_counted_by_the_first_word_of_its_name() -> None:
    assert [scale_of(name) for name in ("logit_mined", "probability_yes", "cosine_x", "query_tokens", "logit")] == [
        "logit", "probability", "cosine", None, None,
    ]  # fmt: skip
