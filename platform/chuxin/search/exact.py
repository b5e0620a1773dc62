"""Exact dense search: blocked matrix products with a running top-k.

Every passage is scored, so the result is the truth that approximate indexes are measured against. Memory is
bounded by the block, not by the number of passages. Left out: sharding over machines, GPUs and fusion with
BM25.

Shapes: Q queries, P passages, H embedding width, K results a query.
"""

from __future__ import annotations

import numpy as np
import torch

QUERY_BLOCK = 256
"""Queries scored together: with blocks of 8,192 passages, scores and ranking keys take about 60 MiB.
Measured on one core at 1,000 × 48,000 × 256: 0.46 s for the products alone, 1.36 s with the ranking."""


def top_k(
    queries_QH: np.ndarray, passages_PH: np.ndarray, k: int, block: int = 8192
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k passages with the highest inner product for each query, best first.

    Equal scores are ordered by passage index, so the result does not depend on the library's selection
    algorithm. Products are taken in float32; the same inputs and the same block give the same bits.

    Args:
        queries_QH: float array [Q, H]; L2-normalised if cosine is meant.
        passages_PH: float array [P, H], of any float dtype and in memory or memory-mapped: only one block of
        it
            is converted to float32 at a time.
        k: results a query, at least 1; P when there are fewer passages.
        block: passages scored together.

    Returns:
        scores_QK float32 in descending order, and index_QK int64 into the passages.

    Raises:
        ValueError: if the widths differ, or k or block is below 1, or a score is not a number.
    """
    if queries_QH.ndim != 2 or passages_PH.ndim != 2 or queries_QH.shape[1] != passages_PH.shape[1]:
        raise ValueError(f"queries {queries_QH.shape} and passages {passages_PH.shape} do not share a width")
    if k < 1 or block < 1:
        raise ValueError(f"k and block must be at least 1, got k={k}, block={block}")
    k = min(k, len(passages_PH))
    scores_QK = np.empty((len(queries_QH), k), np.float32)
    index_QK = np.empty((len(queries_QH), k), np.int64)
    for start in range(0, len(queries_QH), QUERY_BLOCK):
        rows = slice(start, start + QUERY_BLOCK)
        best = _top_keys(_float32(queries_QH[rows]), passages_PH, k, block)
        scores_QK[rows], index_QK[rows] = _unpack(best)
    return scores_QK, index_QK


def top_k_row(scores_P: np.ndarray, k: int) -> np.ndarray:
    """Returns the int64 indices of one row's k highest scores, best first, equal scores by index."""
    candidates = np.arange(len(scores_P))
    if k < len(scores_P):
        candidates = np.flatnonzero(scores_P >= np.partition(scores_P, -k)[-k])
    return candidates[np.argsort(-scores_P[candidates], kind="stable")][:k]


def _top_keys(queries: torch.Tensor, passages_PH: np.ndarray, k: int, block: int) -> torch.Tensor:
    """The k largest ranking keys of each query over all blocks, int64 [Q, K], descending."""
    best = torch.empty((len(queries), 0), dtype=torch.int64)
    for start in range(0, len(passages_PH), block):
        scores = queries @ _float32(passages_PH[start : start + block]).T
        if not torch.isfinite(scores).all():
            raise ValueError(f"a score of passages {start} to {start + scores.shape[1] - 1} is not finite")
        keys = torch.cat([best, _pack(scores, start)], dim=1)
        best = keys.topk(min(k, keys.shape[1]), dim=1).values
    return best


def _pack(scores: torch.Tensor, start: int) -> torch.Tensor:
    """One int64 a score that sorts by score, then by *lower* index; all keys of a query differ.

    A float32's bits read as an integer sort like the float when it is positive and in reverse when it is
    negative, so the 31 bits below the sign are flipped for negatives. Adding 0.0 turns −0 into +0 first.
    """
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)
    ordered = torch.where(bits < 0, bits ^ 0x7FFF_FFFF, bits)
    index = torch.arange(start, start + scores.shape[1], dtype=torch.int64)
    return (ordered << 32) + (0xFFFF_FFFF - index)


def _unpack(keys: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Scores and indices back from ranking keys."""
    ordered = keys >> 32
    bits = torch.where(ordered < 0, ordered ^ 0x7FFF_FFFF, ordered).to(torch.int32)
    return bits.view(torch.float32).numpy(), (0xFFFF_FFFF - (keys & 0xFFFF_FFFF)).numpy()


def _float32(array: np.ndarray) -> torch.Tensor:
    """The array as a float32 tensor; copied only if it is of another dtype, strided or read-only."""
    return torch.from_numpy(np.require(array, np.float32, ["C_CONTIGUOUS", "WRITEABLE"]))
