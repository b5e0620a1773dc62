"""Hardness weighting against sentence-transformers' MultipleNegativesRankingLoss."""

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from chuxin.losses.dense import dense_scores
from chuxin.losses.hardness import hardness_bonus
from chuxin.losses.unified import head_loss

B, G, H, T = 4, 3, 8, 0.05


@pytest.mark.parametrize("strength", [5.0, 9.0])
def test_equals_sentence_transformers(strength) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(B, H, requires_grad=True), torch.randn(B * G, H, requires_grad=True)
    cosine = dense_scores(*(torch.nn.functional.normalize(side, dim=-1) for side in vectors))
    positive = torch.arange(B) * G
    ours = head_loss(cosine / T, positive, bonus_BC=hardness_bonus(cosine, positive, strength)).mean()
    loss = MultipleNegativesRankingLoss(
        torch.nn.Identity(), scale=1 / T, hardness_mode="all_negatives", hardness_strength=strength
    )
    # Its columns are positives, first negatives, second negatives.
    theirs = loss.compute_loss_from_embeddings([vectors[0], *vectors[1].view(B, G, H).unbind(1)], None)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(side, vectors, retain_graph=True) for side in (ours, theirs)]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-4)


def test_it_weighs_a_negative_by_exp_of_its_cosine() -> None:
    cosine, positive = torch.tensor([[0.5, 0.2, -0.4]], requires_grad=True), torch.tensor([0])
    bonus = hardness_bonus(cosine, positive, 9.0)
    assert not bonus.requires_grad and bonus[0].tolist() == pytest.approx([0.0, 1.8, -3.6])
    weighted = (cosine / T).exp() * bonus.exp()
    expected = (weighted.sum() / weighted[0, 0]).log()
    torch.testing.assert_close(head_loss(cosine / T, positive, bonus_BC=bonus)[0], expected)


def test_strength_zero_changes_nothing() -> None:
    assert not hardness_bonus(torch.randn(3, 5), torch.arange(3), 0.0).any()
