"""The multi-vector score: every token of the query meets its best token of the passage (late interaction).

Between forward and backward pass lives only which token was the best, 4 bytes a query token and passage; FlagEmbedding
keeps all similarities, tokens of queries x tokens of passages. For 16 queries and 128 passages of unequal length at
width 128, one core: forward 0.12 s and backward 0.01 s here, 0.39 s and 2.3 s in its form. Padding takes no part: its
padded vectors are 0, so that a padded passage never scores below 0 and one that fills its batch does.

Shapes: B queries of a tile, P passages, I tokens of all queries, J of all passages, D width, R passages of a tile,
L tokens of its longest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

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
    texts: int
    """Texts there are, those of one token included, which have no vector."""


def token_vectors(vector_TD: torch.Tensor, lengths_N: torch.Tensor) -> TokenVectors:
    """Takes the model's output for packed texts of these lengths (int64 [N]) and leaves their first tokens out."""
    text_N = torch.arange(len(lengths_N), device=vector_TD.device)
    text_T = text_N.repeat_interleave(lengths_N, output_size=len(vector_TD))
    later_T = torch.ones_like(text_T, dtype=torch.bool)
    later_T[torch.cumsum(lengths_N, 0) - lengths_N] = False
    return TokenVectors(vector_TD[later_T], text_T[later_T], len(lengths_N))


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
        return 0.0 * nothing + query.vector_TD.new_zeros((query.texts, passage.texts), dtype=torch.float32)
    best_IP = _Best.apply(query.vector_TD.float(), passage.vector_TD.float(), passage.text_T, passage.texts, tile)
    count_B = torch.bincount(query.text_T, minlength=query.texts).clamp_(min=1)
    sum_BP = best_IP.new_zeros((query.texts, passage.texts)).index_add(0, query.text_T, best_IP)
    return sum_BP / count_B[:, None]


class _Best(torch.autograd.Function):
    """The largest inner product [I, P] of each query token with a passage's tokens, 0 if it has none."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, query_ID: torch.Tensor, passage_JD: torch.Tensor, text_J: torch.Tensor, passages: int,
        tile: int,
    ) -> torch.Tensor:  # fmt: skip
        best_IP = query_ID.new_zeros((len(query_ID), passages))
        place_IP = torch.zeros_like(best_IP, dtype=torch.int32)
        counts_P = torch.bincount(text_J, minlength=passages)
        first_P = torch.cumsum(counts_P, 0) - counts_P
        for text_R, longest in _tiles(counts_P, len(query_ID), tile):
            # Tokens of the tile's passages, the first repeated where one is shorter: it changes no maximum.
            offset_L = torch.arange(longest, device=text_J.device)
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
        return query_gradient_ID, passage_gradient_JD, None, None, None


def _tiles(counts_P: torch.Tensor, tokens: int, tile: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Yields passages of similar length and the longest one's tokens, longest first; none without tokens."""
    order_P = torch.argsort(counts_P, descending=True, stable=True)
    lengths = counts_P[order_P].tolist()
    start, filled = 0, sum(length > 0 for length in lengths)
    while start < filled:
        stop = min(filled, start + max(1, tile // (tokens * lengths[start])))
        yield order_P[start:stop], lengths[start]
        start = stop
