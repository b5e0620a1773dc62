"""The reranker's loss against FlagEmbedding's."""

import types

import pytest
import torch

from chuxin.losses.groups import pad_groups
from chuxin.losses.listwise import listwise


def theirs(logits: torch.Tensor, teacher: torch.Tensor | None) -> torch.Tensor:
    from FlagEmbedding.abc.finetune.reranker.AbsModeling import AbsRerankerModel

    class Given(AbsRerankerModel):
        """Their forward pass around logits that are there already."""

        def encode(self, features):
            return logits.flatten()

    class Base(torch.nn.Module):
        config = types.SimpleNamespace(pad_token_id=1)

    model = Given(Base(), lambda *_, **__: {"input_ids": [0]}, train_batch_size=len(logits)).train()
    return model(None, None if teacher is None else teacher.flatten()).loss


@pytest.fixture
def logits() -> torch.Tensor:
    torch.manual_seed(0)
    return (torch.randn(3, 4) * 3).requires_grad_()


@pytest.mark.parametrize("taught", [False, True])
def test_equals_flagembedding(logits, taught) -> None:
    own, label = torch.ones(3, 4, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    teacher = torch.randn(3, 4) if taught else None
    ours = listwise(logits, own, label, teacher, 0.5 if taught else 0.0).mean() * (2 if taught else 1)
    expected = theirs(logits, teacher)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(side, logits, retain_graph=True)[0] for side in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


def test_a_ragged_group_is_that_group_alone() -> None:
    torch.manual_seed(1)
    flat, counts = torch.randn(6, requires_grad=True), torch.tensor([2, 1, 3])
    teacher = torch.randn(6)
    table, own = pad_groups(flat, counts, int(counts.max()), 0.0)
    scores, _ = pad_groups(teacher, counts, int(counts.max()), float("nan"))
    ours = listwise(table, own, torch.tensor([1, 0, 2]), scores, 0.3, 2.0)
    expected = []
    for start, count, label in ((0, 2, 1), (2, 1, 0), (3, 3, 2)):
        log = flat[start : start + count].log_softmax(0)
        target = (teacher[start : start + count] / 2.0).softmax(0)
        expected.append(-0.7 * log[label] - 0.3 * (target * log).sum())
    torch.testing.assert_close(ours, torch.stack(expected))
    ours.sum().backward()
    assert flat.grad.isfinite().all() and flat.grad[2] == 0


def test_a_group_without_all_scores_learns_from_its_label(logits) -> None:
    own, label = torch.ones(3, 4, dtype=torch.bool), torch.tensor([0, 3, 1])
    teacher = torch.randn(3, 4)
    teacher[1, 2] = float("nan")
    ours = listwise(logits, own, label, teacher, 1.0)
    torch.testing.assert_close(ours[1], -logits[1].log_softmax(0)[3])
    ours.sum().backward()
    assert logits.grad.isfinite().all()


def test_no_queries() -> None:
    logits, none = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    losses = listwise(logits, torch.zeros(0, 3, dtype=torch.bool), none, torch.zeros(0, 3), 0.5)
    losses.sum().backward()
    assert losses.shape == (0,)
