"""The losses of a tile of queries against all candidates: what a config asks for, put together from `losses`.

Leaves out: where outputs come from and gradients go to (finetune.py).

Shapes: B queries of the tile, C candidates (passages), N passages of the tile's own groups, Q queries of all ranks,
H width, G passages of the largest group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from chuxin.losses.dense import dense_scores
from chuxin.losses.directions import further_scores, no_passage_negatives, no_query_negatives
from chuxin.losses.distillation import Teacher, teacher
from chuxin.losses.groups import own_columns, own_passages, pad_groups
from chuxin.losses.hardness import hardness_bonus
from chuxin.losses.infonce import same_text
from chuxin.losses.matryoshka import matryoshka
from chuxin.losses.multivector import TokenVectors, later_vectors, multivector_scores
from chuxin.losses.sparse import TokenWeights, sparse_scores, token_weights
from chuxin.losses.unified import Scores, head_loss, unified
from chuxin.training.candidates import Texts
from chuxin.training.config import FinetuneConfig


class Side(NamedTuple):
    """Queries or candidates as the scores take them."""

    dense_NH: torch.Tensor
    weights: TokenWeights | None
    vectors: TokenVectors | None


class Others(NamedTuple):
    """All ranks' queries, which are candidates too if `query_to_query` asks for it."""

    dense_QH: torch.Tensor
    own_B: torch.Tensor
    """int64, where the tile's queries stand among them."""
    query_hash_Q: torch.Tensor
    positive_hash_Q: torch.Tensor


class Tile(NamedTuple):
    """Some of a rank's queries, and what they are scored against."""

    query: Side
    candidate: Side
    first_B: torch.Tensor
    """int64, the candidate that is each query's positive; the rest of its group follows."""
    count_B: torch.Tensor
    """int64, passages of each group."""
    largest: int
    """G, on the host: no device has to be asked."""
    score_N: torch.Tensor
    """fp32, the teacher's scores of the groups' passages; NaN where there is none."""
    query_hash_B: torch.Tensor
    candidate_hash_C: torch.Tensor
    others: Others | None


def side(texts: Texts) -> Side:
    """Returns texts as the scores take them."""
    dense_NH, weight_T, vector_VD = texts.outputs
    if weight_T is None or vector_VD is None:
        return Side(dense_NH, None, None)
    lengths_N = torch.from_numpy(texts.lengths_N).to(dense_NH.device, non_blocking=True)
    weights = token_weights(texts.ids_T, weight_T, lengths_N)
    return Side(dense_NH, weights, later_vectors(vector_VD, texts.lengths_N))


def losses(
    tile: Tile, config: FinetuneConfig, special_ids: Sequence[int], self_distill: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns the tile's losses.

    Args:
        tile: Queries and candidates; no query at all is allowed.
        config: What is asked for.
        special_ids: Token ids without a sparse weight.
        self_distill: Whether the ensemble teaches in this step.

    Returns:
        Losses [B] with a graph; the terms to log [B] without: `accuracy` (the positive's dense score is above every
        other candidate's), and with all heads those of `unified`.

    Relations:
        A query's losses depend on its candidates alone, so those of several tiles are those of one.
    """
    taught, excluded_BC = _teacher(tile, config), _excluded(tile, config)
    cosine_BC = dense_scores(tile.query.dense_NH, tile.candidate.dense_NH)
    with torch.no_grad():
        # Not the positive itself, which is among the excluded. Of equal scores none is right: a model whose vectors are
        # all alike must not look perfect.
        best_BC = (cosine_BC >= cosine_BC.gather(1, tile.first_B[:, None])) & ~excluded_BC
        accuracy_B = 1.0 - best_BC.any(1).float()
    if config.heads == "dense":
        dense_B = _dense(tile, config, taught, excluded_BC)
        return dense_B, {"dense_loss": dense_B.detach(), "accuracy": accuracy_B}
    scores = Scores(
        cosine_BC / config.temperature,
        sparse_scores(tile.query.weights, tile.candidate.weights, special_ids) / config.temperature,
        multivector_scores(tile.query.vectors, tile.candidate.vectors) / config.temperature,
    )
    losses_B, terms = unified(
        scores, tile.first_B, excluded_BC, taught, config.distill, self_distill,
        _dense(tile, config, taught, excluded_BC),
    )  # fmt: skip
    return losses_B, {**terms, "accuracy": accuracy_B}


def _dense(
    tile: Tile, config: FinetuneConfig, taught: Teacher | None, excluded_BC: torch.Tensor
) -> torch.Tensor:
    """The dense head's losses [B], over all widths, with hardness and further candidates."""
    no_query_BQ = no_passage_BC = None
    if tile.others is not None:
        no_query_BQ = no_query_negatives(*tile.others[1:])
    if config.passage_to_passage:
        own_BC = own_passages(tile.first_B, tile.count_B, len(tile.candidate_hash_C))
        no_passage_BC = no_passage_negatives(tile.first_B, own_BC, tile.query_hash_B, tile.candidate_hash_C)

    def loss(query_BH: torch.Tensor, candidate_CH: torch.Tensor, query_QH: torch.Tensor | None = None) -> torch.Tensor:
        cosine_BC = dense_scores(query_BH, candidate_CH)
        bonus_BC = hardness_bonus(cosine_BC, tile.first_B, config.hardness) if config.hardness else None
        extra = []
        if no_query_BQ is not None:
            extra.append(further_scores(query_BH, query_QH, no_query_BQ))
        if no_passage_BC is not None:
            extra.append(further_scores(candidate_CH[tile.first_B], candidate_CH, no_passage_BC))
        return head_loss(
            cosine_BC / config.temperature, tile.first_B, excluded_BC, taught, config.distill, bonus_BC,
            torch.cat(extra, 1) / config.temperature if extra else None,
        )  # fmt: skip

    vectors = [tile.query.dense_NH, tile.candidate.dense_NH]
    if tile.others is not None:
        vectors.append(tile.others.dense_QH)
    return matryoshka(loss, config.matryoshka_dims, *vectors) if config.matryoshka_dims else loss(*vectors)


def _teacher(tile: Tile, config: FinetuneConfig) -> Teacher | None:
    if config.distill == "none":
        return None
    score_BG, own_BG = pad_groups(tile.score_N, tile.count_B, tile.largest, float("nan"))
    column_BG, _ = own_columns(tile.first_B, tile.count_B, tile.largest)
    return teacher(score_BG, column_BG, own_BG, config.teacher_temperature)


def _excluded(tile: Tile, config: FinetuneConfig) -> torch.Tensor:
    """Marks candidates [B, C] that are no negatives of a query, among them its positive."""
    positive_hash_B = tile.candidate_hash_C[tile.first_B]
    excluded_BC = same_text(tile.query_hash_B, positive_hash_B, tile.candidate_hash_C)
    if config.false_negative_margin is not None:
        score_BG, _ = pad_groups(tile.score_N, tile.count_B, tile.largest, float("nan"))
        column_BG, _ = own_columns(tile.first_B, tile.count_B, tile.largest)
        # A missing score, NaN, is above nothing.
        better_BG = score_BG > score_BG[:, :1] + config.false_negative_margin
        excluded_BC |= torch.zeros_like(excluded_BC).scatter(1, column_BG, better_BG)
    if not config.in_batch_negatives:
        excluded_BC |= ~own_passages(tile.first_B, tile.count_B, len(tile.candidate_hash_C))
    return excluded_BC
