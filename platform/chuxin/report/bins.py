"""Histograms: the binnings that stages count by and the report draws, of lengths and of scores."""

from __future__ import annotations

from typing import NamedTuple

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


class Scale(NamedTuple):
    """Bins of one width; the first and the last one take what lies beyond."""

    low: float
    """The first bin's lower edge."""
    width: float
    """Of each bin."""
    count: int
    """Of bins."""


SCALES = {"logit": Scale(-12, 1, 24), "cosine": Scale(-1, 0.1, 20), "probability": Scale(0, 0.05, 20)}
"""A histogram whose name begins with one of these words and "_" is counted in its bins, any other in length bins.
Logits of bge-reranker lie in about -11 to 11."""


def scale_of(name: str) -> str | None:
    """Returns the scale that a histogram's name stands for, None for lengths."""
    kind, mark, _ = name.partition("_")
    return kind if mark and kind in SCALES else None


def score_bins(kind: str, scores_N: np.ndarray) -> list[int]:
    """Counts scores in a scale's bins; counts of parts add up bin by bin.

    Args:
        kind: A name of SCALES.
        scores_N: floats; NaN counts nowhere.

    Returns:
        Bin i holds the scores from low + i · width up to one width more.
    """
    low, width, count = SCALES[kind]
    edges = np.round(low + width * np.arange(1, count), 9)
    real_N = scores_N[~np.isnan(scores_N)]
    return np.bincount(np.searchsorted(edges, real_N, side="right"), minlength=count).tolist()
