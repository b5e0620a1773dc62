"""Token weights to sparse vectors: for each text its ids, each once, with their largest weight.

Leaves out: the weights themselves (models/encoder.py), scores for training (losses/sparse.py).

Shapes: N texts, T tokens of all texts, K ids of one text that weigh something.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class SparseVector(NamedTuple):
    """What a text weighs, token by token."""

    ids_K: np.ndarray
    """int64, ascending, each once."""
    weight_K: np.ndarray
    """float32, above 0."""

    @classmethod
    def empty(cls) -> SparseVector:
        """The vector of a text without weights."""
        return cls(np.empty(0, np.int64), np.empty(0, np.float32))


def text_weights(
    ids_T: np.ndarray, weight_T: np.ndarray, lengths: Sequence[int], special_ids: Sequence[int]
) -> list[SparseVector]:
    """Returns the sparse vector of each of N texts.

    Args:
        ids_T: int64, token ids of all texts, one text after another.
        weight_T: float32 >= 0, a weight a token.
        lengths: Tokens of each text.
        special_ids: Ids that never weigh anything.
    """
    text_T = np.repeat(np.arange(len(lengths)), lengths)
    kept = (weight_T > 0) & ~np.isin(ids_T, special_ids)
    ids_T, weight_T, text_T = ids_T[kept], weight_T[kept], text_T[kept]
    order = np.lexsort((ids_T, text_T))
    ids_T, weight_T, text_T = ids_T[order], weight_T[order], text_T[order]
    if len(ids_T) == 0:
        return [SparseVector.empty()] * len(lengths)
    first = np.r_[True, (np.diff(ids_T) != 0) | (np.diff(text_T) != 0)].nonzero()[0]
    largest = np.maximum.reduceat(weight_T, first)
    borders = np.searchsorted(text_T[first], np.arange(1, len(lengths)))
    parts = zip(np.split(ids_T[first], borders), np.split(largest, borders), strict=True)
    return [SparseVector(*part) for part in parts]
