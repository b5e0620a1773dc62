"""Distillation against FlagEmbedding's and against a loop, for groups of unequal size."""

import math

import pytest
import torch

from chuxin.losses.distillation import kl_div, m3_kd, self_distillation, teacher, teacher_targets
from chuxin.losses.groups import own_columns, own_passages

COUNTS = [3, 1, 4, 2]


def naive_m3_kd(scores, counts, targets, excluded=None) -> torch.Tensor:
    losses, first = [], 0
    for b, count in enumerate(counts):
        total, own = scores[b, 0] * 0, range(first, first + count)
        for i in range(count):
            kept = [
                c
                for c in range(scores.shape[1])
                if (c in own and c >= first + i) or (c not in own and not (excluded is not None and excluded[b, c]))
            ]
            total = total + targets[b][i] * (torch.logsumexp(scores[b, kept], 0) - scores[b, first + i])
        losses.append(total)
        first += count
    return torch.stack(losses)


@pytest.fixture
def ragged():
    torch.manual_seed(0)
    count_B = torch.tensor(COUNTS)
    first_B = torch.cumsum(count_B, 0) - count_B
    scores = (torch.randn(4, 10) * 4).requires_grad_()
    taught = teacher(torch.randn(4, 4), *own_columns(first_B, count_B, 4), 0.5)
    return scores, taught, ~own_passages(first_B, count_B, 10)


@pytest.fixture
def even():
    torch.manual_seed(1)
    scores = (torch.randn(3, 12) * 4).requires_grad_()
    taught = teacher(torch.randn(3, 4) * 2, *own_columns(torch.arange(3) * 4, torch.full((3,), 4), 4))
    return scores, taught, torch.arange(12)[None, :] // 4 != torch.arange(3)[:, None]


def same(scores, ours, expected) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    gradients = (torch.autograd.grad(side.sum(), scores, retain_graph=True)[0] for side in (ours, expected))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-4)


def test_m3_kd_equals_flagembedding(flag, even) -> None:
    scores, taught, _ = even
    same(scores, m3_kd(scores, taught).mean(), flag.model().distill_loss("m3_kd_loss", taught.target_BG, scores, 4))


@pytest.mark.parametrize("foreign", ["all", "none", "some"])
def test_m3_kd_equals_the_loop_with_ragged_groups(ragged, foreign) -> None:
    scores, taught, foreign_BC = ragged
    excluded = {"all": None, "none": foreign_BC, "some": foreign_BC & (torch.rand(4, 10) < 0.5)}[foreign]
    same(scores, m3_kd(scores, taught, excluded), naive_m3_kd(scores, COUNTS, taught.target_BG, excluded))


def test_m3_kd_without_in_batch_negatives_where_flagembedding_raises(flag, even) -> None:
    scores, taught, foreign_BC = even
    local = scores.gather(1, taught.column_BG)
    with pytest.raises(IndexError, match="out of bounds"):
        flag.model().distill_loss("m3_kd_loss", taught.target_BG, local, 4)
    expected = torch.zeros(())
    for i in range(4):
        expected = expected + (taught.target_BG[:, i] * (local[:, i:].logsumexp(1) - local[:, i])).mean()
    same(scores, m3_kd(scores, taught, foreign_BC).mean(), expected)


def test_m3_kd_with_scores_of_100_stays_finite(ragged) -> None:
    scores, taught, _ = ragged
    far = (scores.detach() * 1000).requires_grad_()
    m3_kd(far, taught).sum().backward()
    assert far.grad.isfinite().all()


def test_kl_div_equals_flagembedding(flag, even) -> None:
    scores, taught, _ = even
    local = scores.gather(1, taught.column_BG)
    ours = kl_div(local, taught.target_BG, taught.own_BG).mean()
    same(scores, ours, flag.model().distill_loss("kl_div", taught.target_BG, local, 4))


def test_kl_div_of_a_ragged_group_is_that_of_the_group_alone(ragged) -> None:
    scores, taught, _ = ragged
    ours = kl_div(scores.gather(1, taught.column_BG), taught.target_BG, taught.own_BG)
    expected, first = [], 0
    for b, count in enumerate(COUNTS):
        log = torch.log_softmax(scores[b, first : first + count], 0)
        expected.append(-(taught.target_BG[b, :count] * log).sum())
        first += count
    same(scores, ours, torch.stack(expected))


def test_a_group_with_a_missing_score_teaches_nothing(ragged) -> None:
    scores, taught, _ = ragged
    known = torch.randn(4, 4)
    known[2, 1] = float("nan")
    known[0, 3] = float("nan")  # Beyond the first group's three passages: nothing is missing there.
    taught = teacher(known, taught.column_BG, taught.own_BG)
    assert taught.taught_B.tolist() == [True, True, False, True]
    for losses_B in (m3_kd(scores, taught), kl_div(scores[:, :4], taught.target_BG, taught.own_BG)):
        gradient = torch.autograd.grad(losses_B.sum(), scores)[0]
        assert losses_B[2] == 0 and not gradient[2].any() and gradient.isfinite().all()


def test_a_temperature_softens_scores_that_flagembedding_takes_for_labels(flag) -> None:
    score, own = torch.tensor([[98.19, 82.25, 79.0]]), torch.ones(1, 3, dtype=torch.bool)
    theirs = torch.softmax(score, -1)
    assert theirs[0, 0] > 0.9999998
    torch.testing.assert_close(teacher_targets(score, own, 1.0)[0], theirs)
    soft = teacher_targets(score, own, 20.0)[0]
    powers = [math.exp(value / 20) for value in score[0].tolist()]
    assert soft[0].tolist() == pytest.approx([power / sum(powers) for power in powers]) and soft[0, 0] < 0.6


def test_self_distillation_equals_flagembedding_and_leaves_the_ensemble_alone(flag, even) -> None:
    scores, _, _ = even
    ensemble = torch.randn(3, 12, requires_grad=True)
    ours = self_distillation(scores, ensemble, torch.arange(3) * 4)
    same(scores, ours.mean(), flag.model().distill_loss("kl_div", torch.softmax(ensemble.detach(), -1), scores))
    ours.sum().backward()
    assert ensemble.grad is None


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_self_distillation_keeps_excluded_candidates_out_of_both_sides(even, share) -> None:
    scores, _, foreign_BC = even
    torch.manual_seed(2)
    ensemble, positive = torch.randn(3, 12), torch.arange(3) * 4
    excluded = foreign_BC & (torch.rand(3, 12) <= share)
    expected = []
    for b in range(3):
        kept = ~excluded[b]
        expected.append(-(ensemble[b, kept].softmax(0) * scores[b, kept].log_softmax(0)).sum())
    same(scores, self_distillation(scores, ensemble, positive, excluded), torch.stack(expected))
    hidden = scores.masked_fill(excluded, float("-inf"))
    same(scores, self_distillation(hidden, ensemble, positive, excluded), torch.stack(expected))


def test_a_query_with_nothing_but_its_positive_has_no_loss(even) -> None:
    scores, _, _ = even
    losses = self_distillation(scores, torch.randn(3, 12), torch.arange(3), torch.ones(3, 12, dtype=torch.bool))
    losses.sum().backward()
    assert not losses.any() and not scores.grad.any()


def test_a_rank_without_queries_gets_no_losses_and_a_graph() -> None:
    scores, none = torch.zeros(0, 5, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    taught = teacher(torch.zeros(0, 1), *own_columns(none, none, 1))
    sides = (m3_kd(scores, taught), kl_div(scores[:, :1], taught.target_BG, taught.own_BG),
             self_distillation(scores, scores, none))  # fmt: skip
    for losses_B in sides:
        losses_B.sum().backward()
        assert losses_B.shape == (0,)
