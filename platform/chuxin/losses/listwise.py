"""Listwise loss of a cross-encoder: softmax over a query's own passages.

Shapes: B queries, G passages of the largest group.
"""

from __future__ import annotations

import torch

from chuxin.losses.distillation import NEVER, kl_div, teacher_targets


def listwise(
    logits_BG: torch.Tensor, own_BG: torch.Tensor, label_B: torch.Tensor,
    teacher_score_BG: torch.Tensor | None = None, weight: float = 0.0, temperature: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """Returns (1 - weight) x cross-entropy of the label + weight x cross-entropy to the teacher's distribution, [B].

    Args:
        logits_BG: The cross-encoder's scores of each group (`pad_groups` of groups.py).
        own_BG: bool, False where a group is smaller.
        label_B: int64, the positive's place in the group.
        teacher_score_BG: Scores of any scale, NaN where there is none: such a group learns from its label alone.
        weight: Of the teacher, between 0 and 1.
        temperature: The teacher's scores are divided by it.

    Relations:
        Without a teacher FlagEmbedding's reranker loss; with weight 0.5 half of its sum of both terms.
    """
    hard_B = torch.nn.functional.cross_entropy(logits_BG.float().masked_fill(~own_BG, NEVER), label_B, reduction="none")
    if teacher_score_BG is None or weight == 0:
        return hard_B
    target_BG, taught_B = teacher_targets(teacher_score_BG, own_BG, temperature)
    weight_B = weight * taught_B
    return (1 - weight_B) * hard_B + weight_B * kl_div(logits_BG, target_BG, own_BG)
