"""The average against its formula, exchanged in place to the bit, and gone on with."""

import pytest
import torch
from torch import nn

from chuxin.training.ema import Average


def test_the_average_is_the_formula_and_leaves_frozen_weights_out() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    module[1].requires_grad_(False)
    average = Average(module, 0.9)
    assert sorted(average.held) == ["0.bias", "0.weight"]
    expected = module[0].weight.detach().double()
    for step in range(5):
        with torch.no_grad():
            module[0].weight.add_(step)
        average.update()
        expected = 0.9 * expected + 0.1 * module[0].weight.detach().double()
    torch.testing.assert_close(average.held["0.weight"].double(), expected, atol=1e-6, rtol=0)


def test_in_place_exchanges_to_the_bit_even_after_an_error() -> None:
    module = nn.Linear(40, 40)
    average = Average(module, 0.3)
    nn.init.normal_(module.weight)
    average.update()
    weight, held = module.weight.detach().clone(), average.held["weight"].clone()
    with pytest.raises(RuntimeError, match="inside"), average.in_place():
        assert torch.equal(module.weight, held)
        raise RuntimeError("inside")
    assert torch.equal(module.weight, weight) and torch.equal(average.held["weight"], held)


def test_restored_it_goes_on_as_before() -> None:
    module = nn.Linear(4, 4)
    first = Average(module, 0.5)
    nn.init.ones_(module.weight)
    first.update()
    second = Average(module, 0.5)
    second.restore(lambda name: first.held[name])
    nn.init.zeros_(module.weight)
    first.update()
    second.update()
    assert all(torch.equal(first.held[name], second.held[name]) for name in first.held)
