"""Learning from scores instead of labels: a teacher's over a group, or the ensemble's over all candidates.

Groups differ in size and are tables with a mask (groups.py). A group whose scores are not all known teaches nothing.
Leaves out: how the terms are weighed (unified.py).

Shapes: B queries of a tile, C candidates, G passages of the largest group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

NEVER = -1e30
"""Stands for -inf where gradients flow: exp of it is 0, and it never gives inf - inf."""


class Teacher(NamedTuple):
    """What a teacher says about the groups of a tile. Every field has B rows: a smaller tile is a slice of each."""

    column_BG: torch.Tensor
    """int64, the columns of each query's own passages."""
    own_BG: torch.Tensor
    """bool, False where a group is smaller."""
    target_BG: torch.Tensor
    """fp32, probabilities of the passages; 0 in groups that teach nothing."""
    taught_B: torch.Tensor
    """bool, whether the group's scores are all known."""


def teacher(score_BG: torch.Tensor, column_BG: torch.Tensor, own_BG: torch.Tensor, temperature: float = 1.0) -> Teacher:
    """Turns a teacher's scores into a distribution over each group.

    Args:
        score_BG: Scores of any scale, NaN where there is none.
        column_BG: As `own_columns` of groups.py gives them.
        own_BG: Likewise.
        temperature: Scores are divided by it. FlagEmbedding has none: its own example's scores, 98.19 and 82.25, are
            the probabilities 0.9999999 and 0.0000001 then.
    """
    target_BG, taught_B = teacher_targets(score_BG, own_BG, temperature)
    return Teacher(column_BG, own_BG, target_BG, taught_B)


def teacher_targets(
    score_BG: torch.Tensor, own_BG: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns softmax(score / temperature) over each group, 0 in groups with a NaN, and bool [B], which have none."""
    score_BG = score_BG.detach().float()
    taught_B = ~(score_BG.isnan() & own_BG).any(1)
    score_BG = (score_BG.nan_to_num() / temperature).masked_fill(~own_BG, NEVER)
    return torch.softmax(score_BG, 1) * (own_BG & taught_B[:, None]), taught_B


def kl_div(scores_BG: torch.Tensor, target_BG: torch.Tensor, kept_BG: torch.Tensor) -> torch.Tensor:
    """Returns -sum target x log softmax(scores) [B] over the columns kept; the teacher's entropy is left out.

    Relations:
        FlagEmbedding's `distill_loss` of the same name, of which it takes the mean.
    """
    # A score of -inf is not kept either, and the fill is finite: 0 x -inf would be NaN.
    kept_BG = kept_BG & ~scores_BG.isneginf()
    log_BG = torch.log_softmax(scores_BG.float().masked_fill(~kept_BG, NEVER), 1)
    return -(target_BG * log_BG.masked_fill(~kept_BG, 0.0)).sum(1)


def m3_kd(scores_BC: torch.Tensor, teacher: Teacher, excluded_BC: torch.Tensor | None = None) -> torch.Tensor:
    """Returns sum_i target_i x CE(scores without the group's passages before i; passage i), [B].

    With z the log-sum-exp of all candidates outside the group and r_i that of the group from i on, the i-th
    cross-entropy is log(exp z + exp r_i) - s_i: one pass over the scores, none of size [B, C] a passage.

    Args:
        scores_BC: Scores of all candidates; -inf takes one out.
        teacher: Of the groups; 0 comes back for those that teach nothing.
        excluded_BC: bool; True takes a candidate out, if it is not of the query's own group: there the teacher says
            how wrong a passage is.

    Relations:
        FlagEmbedding's `m3_kd_loss`, of which it takes the mean, with G cross-entropies of the full scores. Without
        in-batch negatives theirs stops at an IndexError; here all foreign columns are excluded.
    """
    scores_BC = scores_BC.float()
    own_BC = torch.zeros_like(scores_BC, dtype=torch.bool).scatter(1, teacher.column_BG, True)
    taken_BC = own_BC if excluded_BC is None else own_BC | excluded_BC
    other_B = torch.logsumexp(scores_BC.masked_fill(taken_BC, NEVER), 1)
    own_BG = scores_BC.gather(1, teacher.column_BG).masked_fill(~teacher.own_BG, NEVER)
    rest_BG = torch.logcumsumexp(own_BG.flip(1), 1).flip(1)
    return (teacher.target_BG * (torch.logaddexp(other_B[:, None], rest_BG) - own_BG)).sum(1)


def self_distillation(
    scores_BC: torch.Tensor, ensemble_BC: torch.Tensor, positive_B: torch.Tensor,
    excluded_BC: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Returns the cross-entropy [B] of a head's scores to the ensemble's distribution, which gets no gradient.

    Args:
        scores_BC: The head's.
        ensemble_BC: The ensemble's.
        positive_B: int64, never taken out.
        excluded_BC: bool; True takes a candidate out of both.

    Relations:
        FlagEmbedding's `use_self_distill`; Chen et al. 2024, eq. 8.
    """
    kept_BC = torch.ones_like(scores_BC, dtype=torch.bool) if excluded_BC is None else ~excluded_BC
    kept_BC = kept_BC.scatter(1, positive_B[:, None], True)
    target_BC = torch.softmax(ensemble_BC.detach().float().masked_fill(~kept_BC, float("-inf")), 1)
    return kl_div(scores_BC, target_BC, kept_BC)
