"""Exact deduplication: of the rows with one text hash the smallest id stays, whatever the order of the rows.

Leaves out near duplicates (a later operator beside this one).
"""

from __future__ import annotations

import numpy as np


def duplicates(hashes: np.ndarray, ids: np.ndarray, eligible: np.ndarray) -> np.ndarray:
    """Marks the rows that repeat another.

    Args:
        hashes: Text hash of each row, int64 [N].
        ids: Unique id of each row, int64 [N].
        eligible: False for rows that fell already, bool [N]; they neither stay nor make another fall.

    Returns:
        bool [N]: eligible, and an eligible row with the same hash has a smaller id.
    """
    rows = np.flatnonzero(eligible)
    order = rows[np.lexsort((ids[rows], hashes[rows]))]
    repeated = np.zeros(len(hashes), dtype=bool)
    repeated[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
    return repeated
