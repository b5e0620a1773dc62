"""The plan of one bucket of RetroMAE's texts in one epoch: batches of similar lengths within a token budget.

Leaves out: contrastive batches (plan.py), cutting texts (pieces.py).

Shapes: N rows of the token table, R rows of the plan (a row may be used more than once an epoch).
"""

from __future__ import annotations

import numpy as np

from chuxin.packing.draws import copies, mix, rank_in_run

WINDOW_BATCHES = 32
# See plan.py: what a draw is for goes into its hash.
_ORDER, _COPIES, _BATCHES = range(2, 5)


def plan_texts(
    id_N: np.ndarray, offset_N: np.ndarray, length_N: np.ndarray, weight_N: np.ndarray, *,
    tokens_per_batch: int, seed: int, epoch: int, bucket: int,
) -> list[np.ndarray]:  # fmt: skip
    """Packs texts into batches of at most `tokens_per_batch` tokens and of similar lengths.

    Rows are shuffled, cut into windows of `WINDOW_BATCHES` batches' tokens, sorted by length within a window and cut
    into batches, which are shuffled: little padding, and a batch is still a random draw from its window.

    Args:
        id_N: passage_id, int64 [N].
        offset_N: Where the row begins in its passage, int64 [N].
        length_N: Tokens of the row, int64 [N], each at most `tokens_per_batch`.
        weight_N: Uses of the row an epoch, float [N].
        tokens_per_batch: Tokens of a batch.
        seed: Of the whole plan.
        epoch: The order differs by epoch.
        bucket: Enters the order of batches only.

    Returns:
        Row indices of each batch.
    """
    uses_N = copies(weight_N, seed, _COPIES, epoch, id_N)
    rows_R = np.repeat(np.arange(len(id_N)), uses_N)
    use_R = rank_in_run(rows_R)
    rows_R = rows_R[np.argsort(mix(seed, _ORDER, epoch, use_R, id_N[rows_R], offset_N[rows_R]), kind="stable")]
    length_R = length_N[rows_R]
    window_R = (np.cumsum(length_R) - length_R) // (WINDOW_BATCHES * tokens_per_batch)
    rows_R = rows_R[np.lexsort((length_R, window_R))]

    batches, start, tokens = [], 0, 0
    for stop, length in enumerate(length_N[rows_R].tolist()):
        if tokens + length > tokens_per_batch:
            batches.append(rows_R[start:stop])
            start, tokens = stop, 0
        tokens += length
    if start < len(rows_R):
        batches.append(rows_R[start:])
    shuffled = np.argsort(mix(seed, _BATCHES, epoch, bucket, np.arange(len(batches))), kind="stable")
    return [batches[index] for index in shuffled]
