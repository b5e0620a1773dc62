"""Partitions computed in Ray actors that stay: what one keeps serves the next, and a killed one costs what it had."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from chuxin.artifacts import Attempt, Draft
from chuxin.errors import InputError

# Ray Data 2.60 warns of its own defaults when a driver first uses it.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")]
ROOT = Path(__file__).resolve().parents[2]
KEYS = [f"p-{number:02d}" for number in range(12)]


class Counting:
    """Numbers the partitions that it computes; dies in one of them, the first time, and refuses another."""

    def __init__(self, folder: Path, refused: str = "", meets: str = "") -> None:
        self._folder, self._refused, self._meets, self._computed = folder, refused, meets, 0

    def __call__(self, key: str, item: Any, attempt: Attempt) -> None:
        if key == self._refused:
            raise InputError(key, "it is refused", "Give another")
        begun = self._folder / f"{key}-begun"
        first = not begun.exists()
        begun.touch()
        if key == KEYS[5] and first:
            os.kill(os.getpid(), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while self._meets and not (self._folder / f"{self._meets}-begun").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.3)
        self._computed += 1
        attempt.count(rows_out=item, facts={key: {"computed": self._computed, "pid": os.getpid()}})


@pytest.fixture
def ray_of_two_cpus() -> Any:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False,
             runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}})  # fmt: skip
    yield ray
    ray.shutdown()


def test_an_actor_keeps_its_own_and_a_killed_one_is_made_again(ray_of_two_cpus: Any, tmp_path: Path) -> None:
    draft = Draft(f"{tmp_path}/counted", "f" * 32, {"stage": "counted", "inputs": {}}, print)
    work = {key: number for number, key in enumerate(KEYS)}
    draft.map(work, Counting(tmp_path), name="counted", actors=True)
    artifact = draft.close()
    facts = artifact.manifest["facts"]
    assert [part["rows_out"] for part in artifact.partitions()] == list(range(12))
    assert max(fact["computed"] for fact in facts.values()) >= 3
    assert len({fact["pid"] for fact in facts.values()}) <= 4  # two actors, one of them made anew
    assert len(os.listdir(f"{artifact.uri}/parts")) == 12


def test_two_partitions_are_computed_side_by_side(ray_of_two_cpus: Any, tmp_path: Path) -> None:
    draft = Draft(f"{tmp_path}/two", "f" * 32, {"stage": "two", "inputs": {}}, print)
    draft.map(dict.fromkeys(KEYS[:2], 0), Counting(tmp_path, meets=KEYS[1]), name="two", actors=True)
    assert len({part["facts"][part["key"]]["pid"] for part in draft.close().partitions()}) == 2


def test_an_actor_without_a_place_gets_no_partition(ray_of_two_cpus: Any, tmp_path: Path) -> None:
    holder = ray_of_two_cpus.util.placement_group([{"CPU": 1}])  # another job's
    ray_of_two_cpus.get(holder.ready())
    draft = Draft(f"{tmp_path}/one", "f" * 32, {"stage": "one", "inputs": {}}, print)
    draft.map(dict.fromkeys(KEYS[:4], 0), Counting(tmp_path), name="one", actors=True)
    facts = draft.close().manifest["facts"]
    assert sorted(fact["computed"] for fact in facts.values()) == [1, 2, 3, 4]


def test_a_users_error_ends_the_actors(ray_of_two_cpus: Any, tmp_path: Path) -> None:
    draft = Draft(f"{tmp_path}/refused", "f" * 32, {"stage": "refused", "inputs": {}}, print)
    with pytest.raises(InputError, match="it is refused"):
        draft.map(dict.fromkeys(KEYS, 0), Counting(tmp_path, KEYS[3]), name="refused", actors=True)
    deadline = time.monotonic() + 30
    while ray_of_two_cpus.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray_of_two_cpus.available_resources()["CPU"] == 2
