"""Lines reach the driver once and in order, also from a worker that was replaced, and so do errors."""

import time
from pathlib import Path

from chuxin.errors import InputError
from chuxin.training.progress import KEPT, Teller, followed, leave_error, take_error


def test_lines_arrive_once_and_in_order(tmp_path: Path) -> None:
    state, seen = str(tmp_path), []
    with followed(state, seen.append, every=0.01):
        first = Teller(state)
        for number in range(3):
            first.line(f"a{number}")
            time.sleep(0.03)
        second = Teller(state)
        second.line("b0")
        second.line("b1")
    assert seen == ["a0", "a1", "a2", "b0", "b1"]


def test_lines_of_a_killed_driver_are_not_repeated(tmp_path: Path) -> None:
    state, seen = str(tmp_path), []
    Teller(state).line("old")
    with followed(state, seen.append, every=0.01):
        time.sleep(0.05)
    assert seen == []


def test_the_file_stays_small(tmp_path: Path) -> None:
    state, seen = str(tmp_path), []
    with followed(state, seen.append, every=60):
        teller = Teller(state)
        for number in range(KEPT + 5):
            teller.line(str(number))
    assert seen == [str(number) for number in range(5, KEPT + 5)]


def test_an_error_arrives_whole_and_once(tmp_path: Path) -> None:
    state = str(tmp_path)
    assert take_error(state) is None
    leave_error(state, InputError("step 3", "the loss is nan", "Lower it"))
    assert str(take_error(state)) == "step 3: the loss is nan. Lower it."
    assert take_error(state) is None
