"""Length histograms: the one binning that stages count by and the report draws."""

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
