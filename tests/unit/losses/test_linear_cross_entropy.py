"""The tiled projection and cross-entropy against PyTorch's two functions."""

import pytest
import torch
from torch.nn import functional

from chuxin.losses.linear_cross_entropy import Tile, linear_cross_entropy

TILES = [Tile(4, 8, False), Tile(4, 8, True), Tile(100, 7, False), Tile(3, 500, True), None]


def inputs(rows: int, width: int = 12, vocabulary: int = 53, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    shapes = (rows, width), (vocabulary, width), (vocabulary,)
    tensors = [scale * torch.randn(shape, generator=generator) for shape in shapes]
    return [*(tensor.requires_grad_() for tensor in tensors), torch.randint(vocabulary, (rows,), generator=generator)]


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("rows", [1, 4, 11])
def test_equals_projection_and_cross_entropy(rows: int, tile: Tile | None) -> None:
    *weights, target = inputs(rows, scale=3.0)
    logits = functional.linear(*weights)
    expected = functional.cross_entropy(logits, target, reduction="sum")
    loss, losses = linear_cross_entropy(*weights, target, tile)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses, functional.cross_entropy(logits, target, reduction="none"), rtol=1e-5, atol=1e-5)
    assert not losses.requires_grad
    wanted = torch.autograd.grad(0.37 * expected, weights)
    for gradient, right in zip(torch.autograd.grad(0.37 * loss, weights), wanted, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-5, atol=1e-5)


def test_a_tied_table_gets_both_gradients() -> None:
    states, table, bias, target = inputs(6)

    def gradient(tiled: bool) -> torch.Tensor:
        mixed = table[target] * 0.5 + states
        if tiled:
            loss = linear_cross_entropy(mixed, table, bias, target, Tile(4, 16, False))[0]
        else:
            loss = functional.cross_entropy(functional.linear(mixed, table, bias), target, reduction="sum")
        return torch.autograd.grad(loss, table)[0]

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-5, atol=1e-5)


def test_no_rows_cost_nothing_and_have_gradients_of_zero() -> None:
    *weights, target = inputs(0)
    loss, losses = linear_cross_entropy(*weights, target)
    assert loss.item() == 0.0 and losses.shape == (0,)
    for gradient, weight in zip(torch.autograd.grad(loss, weights), weights, strict=True):
        assert gradient.shape == weight.shape and not gradient.any()


def test_huge_logits_do_not_overflow() -> None:
    states, table, bias, target = inputs(5, scale=40.0)
    loss, _ = linear_cross_entropy(states, table, bias, target, Tile(2, 10, False))
    expected = functional.cross_entropy(functional.linear(states, table, bias), target, reduction="sum")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("keep", [False, True])
def test_autocast_multiplies_in_bf16_and_sums_in_fp32(keep: bool) -> None:
    *weights, target = inputs(40, width=32, vocabulary=300)
    with torch.autocast("cpu", torch.bfloat16):
        loss, losses = linear_cross_entropy(*weights, target, Tile(16, 64, keep))
        logits = functional.linear(*weights)
        assert logits.dtype == torch.bfloat16
        expected = functional.cross_entropy(logits.float(), target, reduction="sum")
    assert loss.dtype == losses.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0.0)
    exact = functional.cross_entropy(functional.linear(*weights), target, reduction="sum")
    pairs = (torch.autograd.grad(value, weights) for value in (loss, exact))
    for gradient, right in zip(*pairs, strict=True):
        assert gradient.dtype == torch.float32
        # bf16 keeps 8 bits: products of 32 terms agree to about 2 ** -8 of the largest.
        assert (gradient - right).abs().max() < 0.02 * right.abs().max()


def test_without_gradients_none_are_computed() -> None:
    *weights, target = inputs(9)
    with torch.no_grad():
        loss, _ = linear_cross_entropy(*weights, target, Tile(4, 16, True))
    assert not loss.requires_grad
    only_bias = [weights[0].detach(), weights[1].detach(), weights[2]]
    (gradient,) = torch.autograd.grad(linear_cross_entropy(*only_bias, target)[0], [weights[2]])
    share = functional.linear(*weights).softmax(1).sum(0) - torch.bincount(target, minlength=53)
    torch.testing.assert_close(gradient, share, rtol=1e-5, atol=1e-5)


def test_a_second_backward_pass_is_refused() -> None:
    *weights, target = inputs(3)
    loss, _ = linear_cross_entropy(*weights, target)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_no_tensor_as_large_as_the_logits_is_made() -> None:
    rows, vocabulary = 64, 4096
    *weights, target = inputs(rows, width=4, vocabulary=vocabulary)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    with Watch():
        linear_cross_entropy(*weights, target, Tile(rows, 128, False))[0].backward()
    assert max(sizes) <= 4 * vocabulary < rows * vocabulary


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("rows", [16, 23])
def test_the_loss_in_bf16_is_that_of_the_very_logits_that_are_summed(keep: bool, rows: int) -> None:
    """Nearly certain tokens: a target's logit computed apart from its tile would make losses below 0."""
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(61, 32, generator=generator)
    target = torch.randint(61, (rows,), generator=generator)
    states = (0.9 * table[target] + 0.05 * torch.randn(rows, 32, generator=generator)).requires_grad_()
    bias = 0.3 * torch.randn(61, generator=generator)
    weights = [states, table.requires_grad_(), bias.requires_grad_()]
    tile = Tile(8, 7, keep)
    with torch.autocast("cpu", torch.bfloat16):
        loss, losses = linear_cross_entropy(*weights, target, tile)
    logits = []
    for start in range(0, rows, tile.rows):
        part = states[start : start + tile.rows].bfloat16()
        tiles = zip(table.bfloat16().split(tile.columns), bias.bfloat16().split(tile.columns), strict=True)
        logits.append(torch.cat([torch.addmm(own_bias, part, own.T) for own, own_bias in tiles], 1).float())
    logits = torch.cat(logits)
    naive = torch.logsumexp(logits, 1) - logits[torch.arange(rows), target]
    torch.testing.assert_close(losses, naive.detach(), rtol=1e-4, atol=1e-5)
    assert (losses >= 0).all() and (losses < 0.02).any() and loss.item() == pytest.approx(losses.sum().item())


@pytest.mark.parametrize("keep", [False, True])
def test_a_nearly_certain_token_still_teaches_in_bf16(keep: bool) -> None:
    """Its gradient is 1 - p of the right entry; p itself, rounded to bf16, would be 1."""
    states, table, target = torch.tensor([[7.0]], requires_grad=True), torch.tensor([[1.0], [0.0]]), torch.tensor([0])
    bias = torch.zeros(2, requires_grad=True)
    table.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(states, table, bias, target, Tile(1, 1, keep))
    found = torch.autograd.grad(loss, [states, table, bias])
    exact = functional.cross_entropy(functional.linear(states, table, bias), target)
    for gradient, right in zip(found, torch.autograd.grad(exact, [states, table, bias]), strict=True):
        assert right.abs().max() > 5e-4
        torch.testing.assert_close(gradient, right, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("target", [-1, -100, 53])
def test_a_target_that_is_no_entry_is_not_taken_for_one(target: int) -> None:
    *weights, _ = inputs(2)
    losses = linear_cross_entropy(*weights, torch.tensor([3, target]), Tile(2, 10, False))[1]
    assert losses.isnan().tolist() == [False, True]
