"""Exact dense search: blocked matrix products with a running top-k, in one process or shard by shard.

Every passage is scored, so the result is the truth that approximate indexes are measured against. Memory is bounded
by the block, not by the number of passages, which may stand in a memory-mapped file of float16. Leaves out: reading
the shards (store.py), who searches which (mining), fusion with BM25.

Shapes: Q queries, P passages, H embedding width, K results a query, W passages of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

QUERY_BLOCK = 256
"""Queries scored together: with blocks of 8,192 passages, the scores take 8 MiB. Only scores above a query's K-th
best so far are ranked; ranking them all took twice the time of the products (1,000 × 48,000 × 256 on one core)."""
DEVICE_QUERY_BLOCK = 4096
"""The same on a GPU, where the scores take 128 MiB: a block's launches and waits cost the same for 256 queries. 2,048
queries in 10^6 passages of width 1,024 took 0.91 s instead of 1.69 (H100)."""
SCORE_BYTES = 96
"""Bytes that stay free on a GPU beside resident vectors, for each score of a block: its worst block, in which every
score enters the running best, took 2.8 GiB of the 3 that this gives 4,096 queries and 8,192 passages."""
_ROOM = 512 << 20
_MOVED_ROWS = 1 << 16


def top_k(
    queries_QH: np.ndarray, passages_PH: np.ndarray | torch.Tensor, k: int, block: int = 8192,
    device: str | torch.device = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k passages with the highest inner product for each query, best first.

    Equal scores are ordered by passage index, so the result does not depend on the library's selection
    algorithm. Products are taken in float32; the same inputs, block and device give the same bits.

    Args:
        queries_QH: float array [Q, H]; L2-normalised if cosine is meant.
        passages_PH: float array [P, H], of any float dtype and in memory or memory-mapped: only one block of it
            is converted to float32 at a time. A block goes to the device once, in its own dtype. A tensor stands
            there already (`resident`).
        k: results a query, at least 1; P when there are fewer passages.
        block: passages scored together.
        device: where products and selection are computed.

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
    size = QUERY_BLOCK if torch.device(device).type == "cpu" else DEVICE_QUERY_BLOCK
    queries = [_float32(queries_QH[i : i + size], device) for i in range(0, len(queries_QH), size)]
    best = [torch.empty((len(part), 0), dtype=torch.int64, device=device) for part in queries]
    for start in range(0, len(passages_PH), block):
        passages_WH = _float32(passages_PH[start : start + block], device)
        for place, part in enumerate(queries):
            best[place] = _better(best[place], part @ passages_WH.T, start, k)
    if not queries:
        return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
    return _unpack(torch.cat(best))


def resident(
    arrays: Sequence[np.ndarray], device: str | torch.device, block: int, free: Callable[[], int] | None = None
) -> list[np.ndarray | torch.Tensor]:
    """Moves vectors to a GPU, for many searches there, as long as they leave it room.

    Args:
        arrays: float16 [P, H] each, memory-mapped or in memory.
        device: Of the searches. On the CPU nothing moves.
        block: Theirs, as for `top_k`.
        free: Bytes free on the device; by default asked of CUDA.

    Returns:
        Tensors on the device, and arrays as they were from the first that has no room: its blocks move at each search.
    """
    if torch.device(device).type == "cpu" and free is None:
        return list(arrays)
    if free is None:
        torch.cuda.empty_cache()  # what earlier vectors took counts as used until then
    free = free or (lambda: torch.cuda.mem_get_info(device)[0])
    room = DEVICE_QUERY_BLOCK * block * SCORE_BYTES + _ROOM
    held: list[np.ndarray | torch.Tensor] = []
    for array in arrays:
        if free() - array.nbytes < room:
            break
        moved = torch.empty(array.shape, dtype=torch.float16, device=device)
        for start in range(0, len(array), _MOVED_ROWS):  # a mapped file passes through memory in pieces
            moved[start : start + _MOVED_ROWS] = torch.from_numpy(np.array(array[start : start + _MOVED_ROWS]))
        held.append(moved)
    return held + list(arrays[len(held):])


def merge_top_k(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Joins the results of two disjoint sets of passages.

    Args:
        first: scores_QK float32 in descending order and index_QK int64. Missing results: score −inf, index −1.
        second: Likewise; the numbers of K may differ.
        k: results a query of the join, at most.

    Returns:
        Scores and indices like the inputs'; of equal scores those of `first` stand before, and each side keeps its
        order.

    *Relations*: merging the shards of a set in their order equals `top_k` on the whole set.
    """
    scores, index = (np.concatenate(side, axis=1) for side in zip(first, second, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(index, order, axis=1)


def top_k_row(scores_P: np.ndarray, k: int) -> np.ndarray:
    """Returns the int64 indices of one row's k highest scores, best first, equal scores by index."""
    candidates = np.arange(len(scores_P))
    if k < len(scores_P):
        candidates = np.flatnonzero(scores_P >= np.partition(scores_P, -k)[-k])
    return candidates[np.argsort(-scores_P[candidates], kind="stable")][:k]


def _better(best_QK: torch.Tensor, scores_QW: torch.Tensor, start: int, k: int) -> torch.Tensor:
    """The k largest ranking keys so far, int64 [Q, K], descending, once a block of passages from `start` is scored."""
    low, high = scores_QW.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError(f"a score of passages {start} to {start + scores_QW.shape[1] - 1} is not finite")
    if best_QK.shape[1] < k:
        index_W = torch.arange(start, start + scores_QW.shape[1], device=scores_QW.device)
        fresh = _pack(scores_QW, index_W)
    else:
        # An equal score of a later passage loses, so only higher ones can enter.
        query_N, place_N = (scores_QW > _scores(best_QK[:, -1:])).nonzero(as_tuple=True)
        if not len(query_N):
            return best_QK
        counts_Q = torch.bincount(query_N, minlength=len(scores_QW))
        first_Q = counts_Q.cumsum(0) - counts_Q
        column_N = torch.arange(len(query_N), device=query_N.device) - first_Q[query_N]
        size = (len(scores_QW), int(counts_Q.max()))
        fresh = torch.full(size, torch.iinfo(torch.int64).min, device=query_N.device)
        fresh[query_N, column_N] = _pack(scores_QW[query_N, place_N], place_N + start)
    keys = torch.cat([best_QK, fresh], dim=1)
    return keys.topk(min(k, keys.shape[1]), dim=1).values


def _pack(scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """One int64 a score that sorts by score, then by *lower* index; all keys of a query differ.

    A float32's bits read as an integer sort like the float when it is positive and in reverse when it is
    negative, so the 31 bits below the sign are flipped for negatives. Adding 0.0 turns −0 into +0 first.
    """
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)
    ordered = torch.where(bits < 0, bits ^ 0x7FFF_FFFF, bits)
    return (ordered << 32) + (0xFFFF_FFFF - index)


def _scores(keys: torch.Tensor) -> torch.Tensor:
    """Scores back from ranking keys."""
    ordered = keys >> 32
    return torch.where(ordered < 0, ordered ^ 0x7FFF_FFFF, ordered).to(torch.int32).view(torch.float32)


def _unpack(keys: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Scores and indices back from ranking keys."""
    return _scores(keys).cpu().numpy(), (0xFFFF_FFFF - (keys & 0xFFFF_FFFF)).cpu().numpy()


def _float32(array: np.ndarray | torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """The array as a float32 tensor; half precision travels as such and is widened where it is used."""
    if isinstance(array, torch.Tensor):
        return array.float()
    dtype = np.float16 if array.dtype == np.float16 else np.float32
    return torch.from_numpy(np.require(array, dtype, ["C_CONTIGUOUS", "WRITEABLE"])).to(device).float()
