"""Alone a rank gathers what it has; test_ranks.py holds two ranks, with unequal rows and none, against one."""

import torch

from chuxin.training.gather import gather, send_home


def test_alone_gathering_is_the_identity() -> None:
    tensor = torch.randn(3, 2, requires_grad=True)
    counts = [3]
    gathered = gather(tensor, counts)
    assert gathered.data_ptr() == tensor.data_ptr() and not gathered.requires_grad
    gradient = torch.randn(3, 2)
    assert send_home(gradient, counts) is gradient
