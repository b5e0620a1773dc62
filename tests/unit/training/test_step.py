"""Without a process group there is one rank, and numbers over ranks are its own."""

import torch

from chuxin.training.step import all_max, all_sum, rank, world_size

CPU = torch.device("cpu")


def test_alone() -> None:
    assert (rank(), world_size()) == (0, 1)
    assert all_sum([1, 2.5], CPU) == [1, 2.5] and all_max(7, CPU) == 7
