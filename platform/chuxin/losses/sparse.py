"""The sparse score: the inner product of two bags of weighted tokens, on the queries' own vocabulary.

A token that no query of the tile holds adds to no score, so the work is done on the U tokens the queries do hold:
nothing here has the size of the vocabulary. FlagEmbedding builds [N, L, 250,002] with its gradient instead: 8.7 s
and 1.6 GB for 4 queries of 16 and 16 passages of 64 tokens on one core.

Shapes: T tokens of all texts of a side, B queries of a tile, P passages, U different tokens of the queries, E pairs
of a text and one of these tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

TILE = 1 << 24
"""Elements of a table [passages, U] that lives at once: 64 MB in fp32."""


class TokenWeights(NamedTuple):
    """What the sparse head says about texts that stand one after another."""

    ids_T: torch.Tensor
    """int64, token ids, special ones included."""
    weight_T: torch.Tensor
    """Weights, at least 0."""
    text_T: torch.Tensor
    """int64, the index of each token's text, rising."""
    texts: int
    """Texts there are, those without tokens included."""


def token_weights(ids_T: torch.Tensor, weight_T: torch.Tensor, lengths_N: torch.Tensor) -> TokenWeights:
    """Takes the model's output for packed texts of these lengths (int64 [N])."""
    text_N = torch.arange(len(lengths_N), device=ids_T.device)
    return TokenWeights(ids_T, weight_T, text_N.repeat_interleave(lengths_N, output_size=len(ids_T)), len(lengths_N))


def sparse_scores(
    query: TokenWeights, passage: TokenWeights, special_ids: Sequence[int], tile: int = TILE
) -> torch.Tensor:
    """Returns sum over shared tokens of the products of their weights (Chen et al. 2024, section 3.2), not normalised.

    A token that a text holds several times has the largest of its weights, and the gradient goes to that place alone
    (the first of equals). Special tokens weigh nothing.

    Args:
        query: Texts to score, B of them.
        passage: Texts to score them against, P of them.
        special_ids: Token ids that do not count (FlagEmbedding: cls, eos, pad and unk).
        tile: Passages are taken so many at a time that this many elements are enough; changes no result.

    Returns:
        Scores [B, P] in fp32, not divided by the temperature. With no texts on a side they are empty and still have
        a graph.

    Relations:
        FlagEmbedding's `_sparse_embedding` and `compute_sparse_score`: values and gradients.
    """
    ids_T = query.ids_T[~torch.isin(query.ids_T, _special(tuple(special_ids), query.ids_T.device))]
    vocabulary_U = torch.unique(ids_T)
    value_F, row_F, column_F = _largest(query, vocabulary_U)
    empty_BU = value_F.new_zeros((query.texts, len(vocabulary_U)))
    query_BU = empty_BU.index_put((row_F, column_F), value_F)
    value_E, row_E, column_E = _largest(passage, vocabulary_U)
    rows = max(1, tile // max(1, len(vocabulary_U)))
    return _Product.apply(query_BU, value_E, row_E, column_E, passage.texts, rows)


@functools.lru_cache(maxsize=8)
def _special(ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    # Once a device, not once a tile: each copy from the host's pageable memory waits for the device.
    return torch.tensor(ids, dtype=torch.int64, device=device)


def _largest(side: TokenWeights, vocabulary_U: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns each text's weights of the vocabulary's tokens: value [E] with gradient, text [E] rising, token [E]."""
    with torch.no_grad():
        size = len(vocabulary_U)
        place_T = torch.searchsorted(vocabulary_U, side.ids_T).clamp_(max=max(0, size - 1))
        known_T = vocabulary_U[place_T] == side.ids_T if size else torch.zeros_like(side.ids_T, dtype=torch.bool)
        token_K = known_T.nonzero().squeeze(1)
        key_K = side.text_T[token_K] * size + place_T[token_K]
        # Largest weight first, then by text and token, the order among equals kept: each run begins with its largest.
        order_K = torch.argsort(side.weight_T[token_K], descending=True, stable=True)
        order_K = order_K[torch.argsort(key_K[order_K], stable=True)]
        key_K, token_K = key_K[order_K], token_K[order_K]
        begins_K = torch.ones_like(key_K, dtype=torch.bool)
        begins_K[1:] = key_K[1:] != key_K[:-1]
        key_E, token_E = key_K[begins_K], token_K[begins_K]
        size = max(1, size)
    return side.weight_T[token_E].float(), key_E // size, key_E % size


class _Product(torch.autograd.Function):
    """query [B, U] times the passages' weights, which are a table of a few rows at a time, here and in backward."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, query_BU: torch.Tensor, value_E: torch.Tensor, row_E: torch.Tensor, column_E: torch.Tensor,
        passages: int, rows: int,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(query_BU, value_E, row_E, column_E)
        ctx.passages, ctx.rows = passages, rows
        scores_BP = query_BU.new_empty((len(query_BU), passages))
        for part, pairs in _tiles(row_E, passages, rows):
            table_RU = _table(value_E[pairs], row_E[pairs] - part.start, column_E[pairs], part, query_BU)
            with torch.autocast(query_BU.device.type, enabled=False):
                scores_BP[:, part] = query_BU @ table_RU.T
        return scores_BP

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient_BP: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_BU, value_E, row_E, column_E = ctx.saved_tensors
        query_gradient_BU, value_gradient_E = torch.zeros_like(query_BU), torch.zeros_like(value_E)
        for part, pairs in _tiles(row_E, ctx.passages, ctx.rows):
            row_F, column_F = row_E[pairs] - part.start, column_E[pairs]
            table_RU = _table(value_E[pairs], row_F, column_F, part, query_BU)
            with torch.autocast(query_BU.device.type, enabled=False):
                query_gradient_BU += gradient_BP[:, part] @ table_RU
                value_gradient_E[pairs] = (gradient_BP[:, part].T @ query_BU)[row_F, column_F]
        return query_gradient_BU, value_gradient_E, None, None, None, None


def _tiles(row_E: torch.Tensor, passages: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Yields passages, at most `rows` of them, and the pairs that are theirs."""
    if passages <= rows:
        yield slice(0, passages), slice(0, len(row_E))
        return
    starts = torch.arange(0, passages + rows, rows, device=row_E.device)
    bounds = torch.searchsorted(row_E, starts).tolist()
    for turn, start in enumerate(range(0, passages, rows)):
        yield slice(start, min(start + rows, passages)), slice(bounds[turn], bounds[turn + 1])


def _table(
    value_F: torch.Tensor, row_F: torch.Tensor, column_F: torch.Tensor, part: slice, query_BU: torch.Tensor
) -> torch.Tensor:
    table_RU = query_BU.new_zeros((part.stop - part.start, query_BU.shape[1]))
    table_RU[row_F, column_F] = value_F
    return table_RU
