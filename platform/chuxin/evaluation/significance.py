"""Paired bootstrap over queries: how far a mean, or a difference of two means, moves when the queries change.

Each resample draws Q queries with replacement and takes every system's mean on the *same* draw. Differences
between systems are therefore paired: a query that is hard for both cancels out. Intervals are percentile
intervals. They speak for queries like these, not for other corpora, nor for another training seed.

Shapes: Q queries, C columns (systems × metrics), S resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEVEL = 0.95
MIN_QUERIES = 20
"""Below this no difference is called significant: the percentile bootstrap is too narrow on a handful of
queries (normal values, measured: its 95 % interval holds the truth 84 times in 100 with 5 queries, 92 with
20, 94 with 50)."""

_BLOCK = 1_000_000  # query draws held at once: 8 MB, and as much again for the counts


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def resample_means(values_QC: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Returns the columns' means over resampled queries.

    Args:
        values_QC: float array [Q, C]: one row a query, one column a system and metric.
        samples: S.
        seed: the same seed and Q draw the same queries, whatever the values are.

    Returns:
        means_SC float64.

    Raises:
        ValueError: there are no queries.
    """
    n_queries = len(values_QC)
    if n_queries == 0:
        raise ValueError("no queries to resample")
    values_QC = values_QC.astype(np.float64)
    draw = np.random.default_rng(seed)
    means_SC = np.empty((samples, values_QC.shape[1]))
    block = max(1, _BLOCK // n_queries)
    for start in range(0, samples, block):
        size = min(block, samples - start)
        picks = draw.integers(0, n_queries, (size, n_queries))
        # A query's picks times its values, summed, is the sum over the picks: one product for all columns.
        picks += np.arange(size)[:, None] * n_queries
        times_SQ = np.bincount(picks.ravel(), minlength=size * n_queries).reshape(size, n_queries)
        means_SC[start : start + size] = times_SQ @ values_QC / n_queries
    return means_SC


def interval(values_Q: np.ndarray, means_S: np.ndarray) -> Interval:
    """Returns the mean of the values with the percentile interval of its resampled means."""
    low, high = np.quantile(means_S, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values_Q.mean(dtype=np.float64)), float(low), float(high))


def is_significant(difference: Interval, n_queries: int) -> bool:
    """True if the interval of a difference leaves out 0 and rests on enough queries."""
    return n_queries >= MIN_QUERIES and not difference.low <= 0 <= difference.high
