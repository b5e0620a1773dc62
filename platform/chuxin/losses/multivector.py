"""The multi-vector score: every token of the query meets its best token of the passage (late interaction).

Between forward and backward pass lives only which token was the best, 4 bytes a query token and passage; FlagEmbedding
keeps all similarities, tokens of queries x tokens of passages. For 16 queries and 128 passages of unequal length at
width 128, one core: forward 0.12 s and backward 0.01 s here, 0.39 s and 2.3 s in its form. Padding takes no part: its
padded vectors are 0, so that a padded passage never scores below 0 and one that fills its batch does.

Shapes: B queries of a tile, P passages, I tokens of all queries, J of all passages, D width, R passages of a tile,
L tokens of its longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

TILE = 1 << 22
"""Similarities that live at once: 16 MB in fp32 (on a CPU 64 MB took half as long again: fresh pages)."""


class TokenVectors(NamedTuple):
    """What the multi-vector head says about texts that stand one after another, first tokens left out."""

    vector_TD: torch.Tensor
    """Vectors of length 1."""
    text_T: torch.Tensor
    """int64, the index of each vector's text, rising."""
    counts_N: np.ndarray
    """int64, vectors of each text, on the host: no device has to be asked; 0 for a text of one token."""


def token_vectors(vector_TD: torch.Tensor, lengths_N: Sequence[int] | np.ndarray) -> TokenVectors:
    """Takes the model's output for packed texts of these lengths and leaves their first tokens out."""
    lengths_N = np.asarray(lengths_N, np.int64)
    later_T = np.ones(len(vector_TD), bool)
    later_T[np.cumsum(lengths_N) - lengths_N] = False
    later_V = torch.from_numpy(np.flatnonzero(later_T)).to(vector_TD.device, non_blocking=True)
    return later_vectors(vector_TD[later_V], lengths_N)


def later_vectors(vector_TD: torch.Tensor, lengths_N: np.ndarray) -> TokenVectors:
    """Takes vectors of packed texts of these lengths whose first tokens are left out already."""
    counts_N = lengths_N - 1
    text_N = torch.arange(len(counts_N), device=vector_TD.device)
    count_N = torch.from_numpy(counts_N).to(vector_TD.device, non_blocking=True)
    return TokenVectors(vector_TD, text_N.repeat_interleave(count_N, output_size=len(vector_TD)), counts_N)


def multivector_scores(query: TokenVectors, passage: TokenVectors, tile: int = TILE) -> torch.Tensor:
    """Returns the mean over query tokens of the largest inner product (Chen et al. 2024, section 3.2, after ColBERT).

    Args:
        query: Texts to score, B of them.
        passage: Texts to score them against, P of them.
        tile: Similarities that may live at once; one query token with one passage is the least. Changes no result.

    Returns:
        Scores [B, P] in fp32, not divided by the temperature; 0 for a text without vectors. With no texts on a side
        they are empty and still have a graph.

    Relations:
        FlagEmbedding's `compute_colbert_score` where no passage is padded: values and gradients.
    """
    if not len(query.vector_TD) or not len(passage.vector_TD):
        nothing = query.vector_TD.float().sum() + passage.vector_TD.float().sum()
        size = len(query.counts_N), len(passage.counts_N)
        return 0.0 * nothing + query.vector_TD.new_zeros(size, dtype=torch.float32)
    best_IP = _Best.apply(query.vector_TD.float(), passage.vector_TD.float(), passage.counts_N, tile)
    count_B = torch.from_numpy(query.counts_N).to(best_IP.device, non_blocking=True).clamp(min=1)
    sum_BP = best_IP.new_zeros((len(count_B), best_IP.shape[1])).index_add(0, query.text_T, best_IP)
    return sum_BP / count_B[:, None]


class _Best(torch.autograd.Function):
    """The largest inner product [I, P] of each query token with a passage's tokens, 0 if it has none."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, query_ID: torch.Tensor, passage_JD: torch.Tensor, lengths_P: np.ndarray, tile: int
    ) -> torch.Tensor:
        best_IP = query_ID.new_zeros((len(query_ID), len(lengths_P)))
        place_IP = torch.zeros_like(best_IP, dtype=torch.int32)
        counts_P = torch.from_numpy(lengths_P).to(query_ID.device, non_blocking=True)
        first_P = torch.cumsum(counts_P, 0) - counts_P
        # Passages of similar length together: longest first.
        order = np.argsort(-lengths_P, kind="stable")
        order_P = torch.from_numpy(order).to(query_ID.device, non_blocking=True)
        for part_P, longest in _tiles(lengths_P[order].tolist(), len(query_ID), tile):
            text_R = order_P[part_P]
            # Tokens of the tile's passages, the first repeated where one is shorter: it changes no maximum.
            offset_L = torch.arange(longest, device=query_ID.device)
            offset_RL = offset_L * (offset_L < counts_P[text_R, None])
            vector_RLD = passage_JD[first_P[text_R, None] + offset_RL]
            rows = max(1, tile // (len(text_R) * longest))
            for start in range(0, len(query_ID), rows):
                part = slice(start, start + rows)
                with torch.autocast(query_ID.device.type, enabled=False):
                    scores_RLI = vector_RLD.flatten(0, 1) @ query_ID[part].T
                best_RI, offset_RI = scores_RLI.unflatten(0, (len(text_R), longest)).max(1)
                best_IP[part, text_R] = best_RI.T
                place_IP[part, text_R] = (first_P[text_R, None] + offset_RL.gather(1, offset_RI)).T.int()
        ctx.save_for_backward(query_ID, passage_JD, place_IP, counts_P > 0)
        return best_IP

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient_IP: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_ID, passage_JD, place_IP, filled_P = ctx.saved_tensors
        gradient_IP = (gradient_IP * filled_P).contiguous()
        # Both are weighted sums of rows: embedding_bag adds them up without [I, P, D].
        query_gradient_ID = functional.embedding_bag(place_IP, passage_JD, per_sample_weights=gradient_IP, mode="sum")
        place_K, order_K = torch.sort(place_IP.flatten(), stable=True)
        token_J = torch.arange(len(passage_JD), device=place_K.device, dtype=torch.int32)
        passage_gradient_JD = functional.embedding_bag(
            order_K // gradient_IP.shape[1], query_ID, torch.searchsorted(place_K, token_J),
            per_sample_weights=gradient_IP.flatten()[order_K], mode="sum",
        )  # fmt: skip
        return query_gradient_ID, passage_gradient_JD, None, None


def _tiles(lengths: Sequence[int], tokens: int, tile: int) -> Iterator[tuple[slice, int]]:
    """Yields places among passages that stand longest first, and the longest one's tokens; none without tokens."""
    start, filled = 0, sum(length > 0 for length in lengths)
    while start < filled:
        stop = min(filled, start + max(1, tile // (tokens * lengths[start])))
        yield slice(start, stop), lengths[start]
        start = stop
