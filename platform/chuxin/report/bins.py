"""Histograms: the two binnings that stages count by and the report draws, of lengths and of scores."""

from __future__ import annotations

import numpy as np


def length_bins(lengths_N: np.ndarray) -> list[int]:
    """Counts lengths in power-of-two bins; counts of parts add up bin by bin.

    Args:
        lengths_N: integers, at least 0.

    Returns:
        Bin i holds the lengths from 2^i up to 2^(i+1) − 1, bin 0 also those of 0; no empty bins at the end.
    """
    if not len(lengths_N):
        return []
    # Exact, where a logarithm would round: x = m · 2^e with ½ ≤ m < 1, so 2^(e − 1) ≤ x < 2^e.
    _, exponents_N = np.frexp(np.maximum(lengths_N, 1).astype(np.float64))
    return np.bincount(exponents_N - 1).tolist()


SCORES_FROM, SCORES_TO = -12, 12
"""Range of raw reranker logits that have a bin of their own; the first and the last bin take what lies beyond."""
SCORE_MARK = "score"
"""A histogram whose name begins so is counted in score bins, any other in length bins."""


def score_bins(scores_N: np.ndarray) -> list[int]:
    """Counts raw logits in bins one wide; counts of parts add up bin by bin.

    Args:
        scores_N: floats, none of them NaN.

    Returns:
        SCORES_TO - SCORES_FROM counts; bin i holds the scores from SCORES_FROM + i up to one more.
    """
    bins_N = np.clip(np.floor(scores_N), SCORES_FROM, SCORES_TO - 1).astype(np.int64) - SCORES_FROM
    return np.bincount(bins_N, minlength=SCORES_TO - SCORES_FROM).tolist()
