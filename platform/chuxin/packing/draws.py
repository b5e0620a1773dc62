"""Random draws as hashes of what they decide: the same on every machine, in any order, on any number of workers.

A draw is a function of (seed, epoch, id, …) and of nothing else, so no generator has a state that workers would
have to share. Leaves out: masks of RetroMAE (models/retromae.py), which need many numbers a row.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(*fields: int | np.ndarray) -> np.ndarray:
    """Hashes integers, broadcast against each other, to uint64 of at least one dimension.

    Each field goes through the finaliser of SplitMix64 (Steele et al. 2014), a bijection, before the next is added.
    """
    with np.errstate(over="ignore"):
        state = np.zeros(1, np.uint64)
        for field in fields:
            state = _finalise(state + np.atleast_1d(np.asarray(field)).astype(np.uint64) + _GOLDEN)
    return state


def uniform(*fields: int | np.ndarray) -> np.ndarray:
    """The same as float64 in [0, 1)."""
    return (mix(*fields) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def copies(weight: np.ndarray, *fields: int | np.ndarray) -> np.ndarray:
    """Rounds weights to whole numbers by a draw whose mean is the weight: 0.2 gives 1 with probability 0.2.

    Args:
        weight: Float array [N] ≥ 0.
        *fields: What the draw depends on.

    Returns:
        int64 [N].
    """
    whole = np.floor(weight)
    return (whole + (uniform(*fields) < weight - whole)).astype(np.int64)


def first_in_each(group_N: np.ndarray, key_N: np.ndarray, valid_N: np.ndarray, k: int) -> np.ndarray:
    """Picks in each group the k valid members of least key: k members without replacement where keys are hashes.

    Args:
        group_N: int64 [N], the group each member belongs to.
        key_N: uint64 [N].
        valid_N: bool [N].
        k: How many, at most; a group with fewer valid members gives all of them.

    Returns:
        Indices into [N], ordered by (group, key).
    """
    index = np.flatnonzero(valid_N)
    index = index[np.lexsort((key_N[index], group_N[index]))]
    return index[rank_in_run(group_N[index]) < k]


def rank_in_run(sorted_N: np.ndarray) -> np.ndarray:
    """Position of each element within its run of equal values."""
    size = len(sorted_N)
    starts = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]]) if size else np.zeros(0, np.int64)
    return np.arange(size) - np.repeat(starts, np.diff(np.r_[starts, size]))


def _finalise(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * _M1
    value = (value ^ (value >> np.uint64(27))) * _M2
    return value ^ (value >> np.uint64(31))
