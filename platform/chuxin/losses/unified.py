"""The losses joined: one head's, and the unified loss of three heads and their ensemble.

Leaves out: scores (dense.py, sparse.py, multivector.py), means over the batch (the caller divides by global counts).

Shapes: B queries of a tile, C candidates, X candidates of the dense head alone.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from chuxin.losses.distillation import Teacher, kl_div, m3_kd, self_distillation
from chuxin.losses.ensemble import ensemble_scores
from chuxin.losses.infonce import infonce

SPARSE_WEIGHT = 0.1
"""Of the sparse head's losses; the others have 1 (lambda of Chen et al. 2024, section 3.3, and FlagEmbedding's)."""


class Scores(NamedTuple):
    """The three heads' scores, divided by the temperature."""

    dense_BC: torch.Tensor
    sparse_BC: torch.Tensor
    multi_BC: torch.Tensor


def head_loss(
    scores_BC: torch.Tensor, positive_B: torch.Tensor, excluded_BC: torch.Tensor | None = None,
    teacher: Teacher | None = None, distill: Literal["none", "kl_div", "m3_kd_loss"] = "none",
    bonus_BC: torch.Tensor | None = None, extra_BX: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Returns one head's losses [B]: InfoNCE, and what a teacher says besides it or instead of it.

    Args:
        scores_BC: Divided by the temperature.
        positive_B: int64, the column of each query's positive.
        excluded_BC: bool, candidates taken out; never the positive, and in teaching never the own group.
        teacher: Of the queries' groups; None if there are no scores to learn from.
        distill: `kl_div` adds its loss to InfoNCE, `m3_kd_loss` takes InfoNCE's place; in groups that teach nothing
            InfoNCE stands alone.
        bonus_BC: Added to the scores in InfoNCE (`hardness_bonus`), not in teaching.
        extra_BX: Scores of further candidates (directions.py), divided by the temperature.
    """
    weighted_BC = scores_BC if bonus_BC is None else scores_BC + bonus_BC
    all_BC, all_excluded_BC = _beside(weighted_BC, excluded_BC, extra_BX)
    hard_B = infonce(all_BC, positive_B, all_excluded_BC)
    if teacher is None or distill == "none":
        return hard_B
    if distill == "kl_div":
        return hard_B + kl_div(scores_BC.gather(1, teacher.column_BG), teacher.target_BG, teacher.own_BG)
    all_BC, all_excluded_BC = _beside(scores_BC, excluded_BC, extra_BX)
    return torch.where(teacher.taught_B, m3_kd(all_BC, teacher, all_excluded_BC), hard_B)


def unified(
    scores: Scores, positive_B: torch.Tensor, excluded_BC: torch.Tensor | None = None,
    teacher: Teacher | None = None, distill: Literal["none", "kl_div", "m3_kd_loss"] = "none",
    self_distill: bool = False, dense_losses_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # fmt: skip
    """Joins the heads: L = (dense + ensemble + 0.1 sparse + multi-vector) / 4.

    With self-distillation the ensemble teaches the heads, L' = (dense + 0.1 sparse + multi-vector) / 3, and the loss
    is (L + L') / 2 (Chen et al. 2024, section 3.3).

    Args:
        scores: Of the tile's queries and all candidates.
        positive_B: int64, the column of each query's positive.
        excluded_BC: bool, candidates taken out for all heads. All columns but the query's own group: no in-batch
            negatives.
        teacher: See `head_loss`; it teaches the heads and the ensemble alike.
        distill: Likewise.
        self_distill: Whether the ensemble teaches.
        dense_losses_B: The dense head's losses where they are not `head_loss` of its scores: over several widths,
            with hardness or with further candidates.

    Returns:
        Losses [B], and each term without gradient [B]: `dense_loss`, `sparse_loss`, `multivector_loss`,
        `ensemble_loss`, and with self-distillation `dense_self_loss`, `sparse_self_loss`, `multivector_self_loss`.

    Relations:
        FlagEmbedding's `EncoderOnlyEmbedderM3Model.forward` with `unified_finetuning`; without in-batch negatives
        theirs stops at an IndexError or has an ensemble loss of 0.
    """
    ensemble_BC = ensemble_scores(*scores)
    judged = positive_B, excluded_BC, teacher, distill
    dense_B = head_loss(scores.dense_BC, *judged) if dense_losses_B is None else dense_losses_B
    sparse_B, multi_B, ensemble_B = (
        head_loss(head_BC, *judged) for head_BC in (scores.sparse_BC, scores.multi_BC, ensemble_BC)
    )
    losses_B = (dense_B + ensemble_B + SPARSE_WEIGHT * sparse_B + multi_B) / 4
    terms = {"dense_loss": dense_B, "sparse_loss": sparse_B, "multivector_loss": multi_B, "ensemble_loss": ensemble_B}
    if self_distill:
        dense_B, sparse_B, multi_B = (
            self_distillation(head_BC, ensemble_BC, positive_B, excluded_BC) for head_BC in scores
        )
        losses_B = (losses_B + (dense_B + SPARSE_WEIGHT * sparse_B + multi_B) / 3) / 2
        terms |= {"dense_self_loss": dense_B, "sparse_self_loss": sparse_B, "multivector_self_loss": multi_B}
    return losses_B, {name: term_B.detach() for name, term_B in terms.items()}


def _beside(
    scores_BC: torch.Tensor, excluded_BC: torch.Tensor | None, extra_BX: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Puts further candidates to the right of the passages."""
    if extra_BX is None:
        return scores_BC, excluded_BC
    if excluded_BC is not None:
        excluded_BC = torch.cat([excluded_BC, torch.zeros_like(extra_BX, dtype=torch.bool)], 1)
    return torch.cat([scores_BC, extra_BX], 1), excluded_BC
