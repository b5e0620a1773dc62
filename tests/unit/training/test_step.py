"""Micro-batches and encoding: every text once, within the budget, back in order, without a graph lost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.training.step import all_max, all_sum, encode, gather, micro_batches, pad, padded_tokens

CPU = torch.device("cpu")


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=50), st.integers(1, 100))
def test_micro_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = micro_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    sizes = [lengths[i] for batch in batches for i in batch]
    assert sizes == sorted(sizes, reverse=True)
    assert padded_tokens(lengths, budget) == sum(len(b) * max(lengths[i] for i in b) for b in batches)


def test_pad() -> None:
    ids, mask = pad([np.array([5, 6, 7]), np.array([8])], 1, CPU)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.fixture
def table() -> torch.Tensor:
    return torch.randn(50, 4, requires_grad=True)


def mean_embedding(table: torch.Tensor, calls: list[int]):
    def embed(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids))
        return (table[ids] * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    return embed


def test_vectors_come_back_in_the_texts_order(table: torch.Tensor) -> None:
    draw = np.random.default_rng(0)
    texts = [draw.integers(2, 50, size) for size in draw.integers(1, 20, 30)]
    calls: list[int] = []
    vectors = encode(texts, mean_embedding(table, calls), 64, 1, CPU)
    expected = torch.stack([table[torch.from_numpy(text)].mean(0) for text in texts])
    torch.testing.assert_close(vectors, expected)
    assert sum(calls) == 30 and len(calls) > 3


def test_no_text_still_gives_a_graph(table: torch.Tensor) -> None:
    calls: list[int] = []
    vectors = encode([], mean_embedding(table, calls), 64, 1, CPU)
    assert vectors.shape == (0, 4) and calls == [1]
    vectors.sum().backward()
    assert table.grad is not None and not table.grad.any()


def test_extra_passes_change_nothing_but_their_number(table: torch.Tensor) -> None:
    calls: list[int] = []
    texts = [np.array([3, 4]), np.array([5])]
    vectors = encode(texts, mean_embedding(table, calls), 64, 1, CPU, extra_batches=2)
    assert calls == [2, 1, 1] and torch.equal(vectors, encode(texts, mean_embedding(table, []), 64, 1, CPU))


def test_alone_gathering_is_the_identity() -> None:
    tensor = torch.randn(3, 2)
    assert gather(tensor) == (tensor, 0)
    assert all_sum([1, 2.5], CPU) == [1, 2.5] and all_max(7, CPU) == 7
