"""InfoNCE against a loop over queries, with ragged negatives and exclusions."""

import math

import pytest
import torch

from chuxin.losses.infonce import infonce, same_text


def naive(scores, positive: list[int], excluded=None) -> torch.Tensor:
    losses = []
    for i, row in enumerate(scores):
        kept = [s for j, s in enumerate(row) if excluded is None or not excluded[i][j] or j == positive[i]]
        losses.append(torch.logsumexp(torch.stack(kept), 0) - row[positive[i]])
    return torch.stack(losses)


@pytest.fixture
def scores() -> tuple[torch.Tensor, list[int]]:
    # Queries with 0, 2, 1 and 0 negatives of their own.
    torch.manual_seed(0)
    return (torch.randn(4, 7) * 5).requires_grad_(), [0, 1, 4, 6]


def test_equals_the_loop_with_ragged_negatives(scores) -> None:
    losses = infonce(scores[0], torch.tensor(scores[1]))
    torch.testing.assert_close(losses, naive(*scores), rtol=0, atol=1e-5)


def test_excluded_passages_do_not_count_but_the_positive_always_does(scores) -> None:
    excluded = torch.rand(4, 7) < 0.5
    excluded[2, 4] = True
    losses, expected = infonce(scores[0], torch.tensor(scores[1]), excluded), naive(*scores, excluded.tolist())
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(side.sum(), scores[0])[0] for side in (losses, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


def test_equals_flagembedding_with_in_batch_negatives_and_without(flag) -> None:
    torch.manual_seed(1)
    model = flag.model(unified_finetuning=False)
    query, passage = (torch.nn.functional.normalize(torch.randn(n, 6), dim=-1) for n in (3, 12))
    group, positive = torch.arange(12) // 4, torch.arange(3) * 4
    scores = query @ passage.T / model.temperature
    _, both = model._compute_in_batch_neg_loss(query, passage, compute_score_func=model.compute_dense_score)
    assert float(infonce(scores, positive).mean() - both) == pytest.approx(0, abs=1e-5)
    _, own = model._compute_no_in_batch_neg_loss(query, passage, compute_score_func=model.compute_dense_score)
    foreign = group[None, :] != torch.arange(3)[:, None]
    assert float(infonce(scores, positive, foreign).mean() - own) == pytest.approx(0, abs=1e-5)


def test_without_other_candidates_the_loss_is_zero(scores) -> None:
    everything = torch.ones(4, 7, dtype=torch.bool)
    assert infonce(scores[0], torch.tensor(scores[1]), everything).abs().max() == 0


def test_half_precision_scores_are_compared_in_fp32(scores) -> None:
    low = scores[0].detach().bfloat16()
    losses = infonce(low, torch.tensor(scores[1]))
    assert losses.dtype == torch.float32 and torch.equal(losses, infonce(low.float(), torch.tensor(scores[1])))


def test_a_rank_without_queries_gets_no_losses_and_a_graph() -> None:
    for candidates in (5, 0):
        scores = torch.zeros(0, candidates, requires_grad=True)
        losses = infonce(scores, torch.zeros(0, dtype=torch.int64), torch.zeros(0, candidates, dtype=torch.bool))
        losses.sum().backward()
        assert losses.shape == (0,) and scores.grad.shape == scores.shape


def test_a_certain_query_has_a_loss_of_zero_and_a_hopeless_one_the_difference() -> None:
    losses = infonce(torch.tensor([[50.0, -50.0], [0.0, 100.0]]), torch.tensor([0, 0]))
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-100)), 100.0])


def test_same_text_marks_copies_of_query_and_positive_only() -> None:
    query, positive, passages = torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([3, 4, 1, 5, 3])
    assert same_text(query, positive, passages).tolist() == [[True, False, True, False, True],
                                                             [False, True, False, False, False]]  # fmt: skip
