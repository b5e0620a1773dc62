"""Groups of unequal size as tables."""

import torch

from chuxin.losses.groups import own_columns, own_passages, pad_groups

FIRST, COUNT = torch.tensor([5, 7, 8]), torch.tensor([2, 1, 3])


def test_own_columns_repeat_the_first_where_a_group_is_smaller() -> None:
    column, own = own_columns(FIRST, COUNT, 3)
    assert column.tolist() == [[5, 6, 5], [7, 7, 7], [8, 9, 10]]
    assert own.tolist() == [[True, True, False], [True, False, False], [True, True, True]]


def test_own_passages_are_those_of_the_group() -> None:
    marked = own_passages(FIRST, COUNT, 12)
    assert [row.nonzero().flatten().tolist() for row in marked] == [[5, 6], [7], [8, 9, 10]]


def test_pad_groups_keeps_gradients() -> None:
    value = torch.arange(6.0, requires_grad=True)
    table, own = pad_groups(value, COUNT, 3, -1.0)
    assert table.tolist() == [[0, 1, -1], [2, -1, -1], [3, 4, 5]] and torch.equal(own, table >= 0)
    (table * own).sum().backward()
    assert value.grad.tolist() == [1.0] * 6


def test_no_groups() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert pad_groups(torch.zeros(0), none, 1, 0.0)[0].shape == own_columns(none, none, 1)[0].shape == (0, 1)
    assert own_passages(none, none, 4).shape == (0, 4)
