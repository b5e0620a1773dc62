"""A loss that is no number or explodes stops, the window survives a resume, ordinary losses pass."""

import math

import pytest

from chuxin.errors import InputError
from chuxin.training.guard import WINDOW, Guard


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_no_number_stops_at_once(loss: float) -> None:
    with pytest.raises(InputError, match=r"step 3 \(epoch 1\): the loss is (nan|inf)\. Lower optimizer.learning_rate"):
        Guard(5.0).check_loss(loss, "step 3 (epoch 1)", 1e-3)
    with pytest.raises(InputError, match="the gradient's norm is"):
        Guard(5.0).check_norm(loss, "step 3", 1e-3)


def test_an_explosion_is_measured_against_the_highest_of_fifty() -> None:
    guard = Guard(5.0)
    for index in range(WINDOW):
        guard.check_loss(4.0 if index == 7 else 0.1, "an easy source, but for one batch", 1e-3)
    guard.check_loss(19.9, "a hard batch", 1e-3)
    with pytest.raises(InputError, match="step 51.*100, 5.0 times the highest of the 50.*max_loss_ratio"):
        guard.check_loss(100.0, "step 51", 1e-3)
    assert len(guard.recent) == WINDOW and guard.recent[-1] == 19.9


def test_losses_near_zero_may_rise() -> None:
    guard = Guard(5.0, [1e-4] * WINDOW)
    guard.check_loss(1.0, "a hard source after easy ones", 1e-3)


def test_nothing_is_compared_before_there_are_fifty() -> None:
    Guard(2.0, [1.0] * (WINDOW - 1)).check_loss(50.0, "step 50", 1e-3)
    with pytest.raises(InputError, match="50.0 times the highest"):
        Guard(2.0, [1.0] * WINDOW).check_loss(50.0, "step 51", 1e-3)


def test_a_resumed_guard_has_the_same_window() -> None:
    losses = [1.0 + index / 100 for index in range(70)]
    whole, first = Guard(5.0), Guard(5.0)
    for loss in losses:
        whole.check_loss(loss, "", 1.0)
    for loss in losses[:40]:
        first.check_loss(loss, "", 1.0)
    second = Guard(5.0, list(first.recent))
    for loss in losses[40:]:
        second.check_loss(loss, "", 1.0)
    assert second.recent == whole.recent
