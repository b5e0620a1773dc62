"""A loss that is no number or explodes stops, the window survives a resume, ordinary losses pass."""

import math

import pytest

from chuxin.errors import InputError
from chuxin.training.guard import KNOWN, LEFT_OUT, WINDOW, Guard


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_no_number_stops_at_once(loss: float) -> None:
    with pytest.raises(InputError, match=r"step 3 \(epoch 1\): the loss is (nan|inf)\. Lower optimizer.learning_rate"):
        Guard(5.0).check_loss(loss, "step 3 (epoch 1)", 1e-3)
    with pytest.raises(InputError, match="the gradient's norm is"):
        Guard(5.0).check_norm(loss, "step 3", 1e-3)


def test_an_explosion_is_measured_against_the_highest_of_fifty() -> None:
    guard = Guard(5.0)
    for index in range(WINDOW + LEFT_OUT):
        guard.check_loss(4.0 if index == 7 else 0.1, "an easy source, but for one batch", 1e-3)
    guard.check_loss(19.9, "a hard batch", 1e-3)
    against = "5.0 times the highest of the 50 that lie more than 10 steps back.*max_loss_ratio"
    with pytest.raises(InputError, match=f"step 62.*the loss is 20.1, {against}"):
        guard.check_loss(20.1, "step 62", 1e-3)
    assert len(guard.recent) == WINDOW + LEFT_OUT and guard.recent[-1] == 19.9


@pytest.mark.parametrize("before", [KNOWN, 200])
@pytest.mark.parametrize(("factor", "steps"), [(1.2, 9), (1.5, 4), (3.0, 2), (6.0, 1)])
def test_exponential_growth_does_not_raise_its_own_bar(before: int, factor: float, steps: int) -> None:
    guard, stopped = Guard(5.0), 0
    for _ in range(before):
        guard.check_loss(2.0, "", 1e-3)
    with pytest.raises(InputError, match="times the highest"):
        for stopped in range(1, 40):
            guard.check_loss(2.0 * factor**stopped, "", 1e-3)
    assert stopped == steps


@pytest.mark.parametrize("factor", [1.5, 3.0])
def test_growth_from_the_first_step_on_is_seen(factor: float) -> None:
    guard, step = Guard(5.0), 0
    with pytest.raises(InputError, match="times the highest"):
        for step in range(1, 100):
            guard.check_loss(2.0 * factor**step, "", 1e-3)
    assert step == KNOWN + 1


def test_healthy_batches_of_easy_and_hard_sources_pass() -> None:
    guard = Guard(5.0)
    for index in range(300):
        guard.check_loss(4.1 if index % 2 else 0.1, "alternating", 1e-3)
    for index in range(300):
        guard.check_loss(4.1 if index % 37 == 36 else 0.1, "a rare hard source", 1e-3)


def test_losses_near_zero_may_rise() -> None:
    guard = Guard(5.0, [1e-4] * 60)
    guard.check_loss(1.0, "a hard source after easy ones", 1e-3)


def test_nothing_is_compared_before_there_are_thirty() -> None:
    Guard(2.0, [1.0] * (KNOWN - 1)).check_loss(50.0, "step 30", 1e-3)
    with pytest.raises(InputError, match="50.0 times the highest of the 20 "):
        Guard(2.0, [1.0] * KNOWN).check_loss(50.0, "step 31", 1e-3)


def test_a_resumed_guard_has_the_same_window() -> None:
    losses = [1.0 + index / 100 for index in range(90)]
    whole, first = Guard(5.0), Guard(5.0)
    for loss in losses:
        whole.check_loss(loss, "", 1.0)
    for loss in losses[:40]:
        first.check_loss(loss, "", 1.0)
    second = Guard(5.0, list(first.recent))
    for loss in losses[40:]:
        second.check_loss(loss, "", 1.0)
    assert second.recent == whole.recent
