"""InfoNCE against a loop over queries, with ragged negatives and exclusions."""

import math

import pytest
import torch

from chuxin.losses.infonce import infonce, same_text


def naive(query_BH, passage_PH, positive: list[int], t: float, excluded=None) -> list[float]:
    losses = []
    for i, query in enumerate(query_BH):
        total = 0.0
        for j, passage in enumerate(passage_PH):
            if excluded is None or not excluded[i][j] or j == positive[i]:
                total += math.exp(float(query @ passage) / t)
        losses.append(-math.log(math.exp(float(query @ passage_PH[positive[i]]) / t) / total))
    return losses


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    # Queries with 0, 2, 1 and 0 negatives of their own.
    torch.manual_seed(0)
    query, passage = (torch.nn.functional.normalize(torch.randn(n, 6), dim=-1) for n in (4, 7))
    return query, passage, [0, 1, 4, 6]


def test_equals_the_loop_with_ragged_negatives(vectors) -> None:
    query, passage, positive = vectors
    losses = infonce(query, passage, torch.tensor(positive), 0.1)
    torch.testing.assert_close(losses, torch.tensor(naive(query, passage, positive, 0.1)), rtol=0, atol=1e-5)


def test_excluded_passages_do_not_count_but_the_positive_always_does(vectors) -> None:
    query, passage, positive = vectors
    excluded = torch.rand(4, 7) < 0.5
    excluded[2, 4] = True
    losses = infonce(query, passage, torch.tensor(positive), 0.1, excluded)
    expected = naive(query, passage, positive, 0.1, excluded.tolist())
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=0, atol=1e-5)


def test_gradients_equal_those_of_the_loop(vectors) -> None:
    query, passage, positive = vectors
    query.requires_grad_()
    passage.requires_grad_()
    excluded = torch.eye(4, 7, dtype=torch.bool).roll(3, 1)
    infonce(query, passage, torch.tensor(positive), 0.2, excluded).sum().backward()
    own = query.grad.clone(), passage.grad.clone()
    query.grad = passage.grad = None
    total = torch.zeros(())
    for i in range(4):
        scores = torch.stack([query[i] @ p / 0.2 for j, p in enumerate(passage) if not excluded[i, j]
                              or j == positive[i]])  # fmt: skip
        total = total + torch.logsumexp(scores, 0) - query[i] @ passage[positive[i]] / 0.2
    total.backward()
    for ours, theirs in zip(own, (query.grad, passage.grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_without_other_candidates_the_loss_is_zero(vectors) -> None:
    query, passage, positive = vectors
    everything = torch.ones(4, 7, dtype=torch.bool)
    assert infonce(query, passage, torch.tensor(positive), 0.02, everything).abs().max() == 0


def test_half_precision_vectors_are_scored_in_fp32(vectors) -> None:
    query, passage, positive = vectors
    losses = infonce(query.bfloat16(), passage.bfloat16(), torch.tensor(positive), 0.02)
    expected = infonce(query.bfloat16().float(), passage.bfloat16().float(), torch.tensor(positive), 0.02)
    assert losses.dtype == torch.float32 and torch.equal(losses, expected)


def test_same_text_marks_copies_of_query_and_positive_only() -> None:
    query, positive, passages = torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([3, 4, 1, 5, 3])
    assert same_text(query, positive, passages).tolist() == [[True, False, True, False, True],
                                                             [False, True, False, False, False]]  # fmt: skip
