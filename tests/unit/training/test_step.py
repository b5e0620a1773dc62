"""Without a process group there is one rank, and numbers over ranks are its own."""

import torch

from chuxin.training.step import all_sum, rank, world_size

CPU = torch.device("cpu")


def test_alone() -> None:
    assert (rank(), world_size()) == (0, 1)
    assert all_sum([1, 2.5], CPU) == [1, 2.5]
    tensors = torch.tensor(3.0), torch.tensor([[4.0, 5.0]], requires_grad=True)
    assert all_sum([1], CPU, tensors) == [1, 3, 4, 5]
