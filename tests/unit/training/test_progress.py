"""Lines reach the driver once and in order, also from a worker that was replaced, and so do errors."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from chuxin.errors import InputError
from chuxin.files import filesystem
from chuxin.training.progress import Teller, all_left_one, error_left, followed, leave_error, told

WRITER = """
import sys
from chuxin.training.progress import Teller
teller = Teller(sys.argv[1], "me")
for number in range(int(sys.argv[2])):
    teller.line(str(number))
"""


@pytest.fixture(params=["local", "memory"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def test_lines_arrive_once_and_in_order(state: str) -> None:
    seen: list[str] = []
    with followed(state, "me", seen.append, every=0.01):
        first = Teller(state, "me")
        for number in range(3):
            first.line(f"a{number}")
            time.sleep(0.03)
        second = Teller(state, "me")
        second.line("b0")
        second.line("b1")
    assert seen == ["a0", "a1", "a2", "b0", "b1"]


@pytest.mark.parametrize("every", [0.001, 60.0])
def test_no_line_of_two_writers_at_once_is_lost(state: str, every: float) -> None:
    """A worker that was thought dead tells on beside the one in its place: with one file for all, the last wins."""
    seen: list[str] = []
    with followed(state, "me", seen.append, every):
        tellers = [Teller(state, "me") for _ in range(2)]
        for number in range(60):
            for name, teller in zip("ab", tellers, strict=True):
                teller.line(f"{name}{number}")
    for name in "ab":
        assert [line for line in seen if line.startswith(name)] == [f"{name}{number}" for number in range(60)]
    assert len(seen) == 120


def test_no_line_of_a_process_that_ends_at_once_is_lost(tmp_path: Path) -> None:
    seen: list[str] = []
    with followed(str(tmp_path), "me", seen.append, every=0.001):
        subprocess.run([sys.executable, "-c", WRITER, str(tmp_path), "40"], check=True, env={"PYTHONPATH": "platform"})
    assert seen == [str(number) for number in range(40)]


def test_lines_are_read_after_an_error_too(state: str) -> None:
    seen: list[str] = []
    with pytest.raises(RuntimeError, match="inside"), followed(state, "me", seen.append, every=60):
        Teller(state, "me").line("last")
        raise RuntimeError("inside")
    assert seen == ["last"]


def test_lines_of_an_earlier_drivers_workers_are_not_shown(state: str) -> None:
    seen: list[str] = []
    earlier = Teller(state, "earlier")
    earlier.line("before the kill")
    with followed(state, "me", seen.append, every=0.001):
        earlier.line("still at work")
        Teller(state, "me").line("mine")
        time.sleep(0.05)
    assert seen == ["mine"]
    fs, path = filesystem(told(state, "me"))
    assert fs.glob(f"{path}/*") == []  # what is read is removed


def test_an_error_arrives_whole(state: str) -> None:
    assert error_left(state, "me") is None
    leave_error(state, "earlier", 0, InputError("another", "driver's", "error"))
    leave_error(state, "me", 1, InputError("step 3", "the loss is nan", "Lower it"))
    assert str(error_left(state, "me")) == "step 3: the loss is nan. Lower it."


def test_ranks_with_the_same_error_find_each_other(state: str) -> None:
    error = InputError("step 3", "the loss is nan", "Lower it")
    leave_error(state, "me", 0, error)
    assert all_left_one(state, "me", 1) and not all_left_one(state, "me", 2, wait=0.1)
    later = threading.Timer(0.1, leave_error, (state, "me", 1, error))
    later.start()
    assert all_left_one(state, "me", 2)
    later.join()
