"""Records reach the file in time, and those beyond a checkpoint are cut when a run goes on from it."""

import json
from pathlib import Path

import pytest

from chuxin.files import filesystem
from chuxin.training import records as module
from chuxin.training.records import Records


@pytest.fixture(params=["local", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{tmp_path if request.param == 'local' else f'memory://{tmp_path.name}'}/told/me/metrics.jsonl"


def steps(uri: str) -> list[int]:
    fs, path = filesystem(uri)
    return [json.loads(line)["step"] for line in fs.cat_file(path).splitlines()]


def test_a_local_file_has_every_record_at_once_and_once(tmp_path: Path) -> None:
    records = Records(str(tmp_path / "me/metrics.jsonl"), [])
    for step in range(1, 4):
        records.add({"step": step})
        records.write()
        assert steps(records.uri) == list(range(1, step + 1))


def test_an_object_store_has_it_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seconds = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: seconds)
    records = Records(f"memory://{tmp_path.name}/metrics.jsonl", [])
    records.add({"step": 1})
    assert steps(records.uri) == []
    seconds += module.EVERY_S
    records.add({"step": 2})
    assert steps(records.uri) == [1, 2]
    records.add({"step": 3})
    assert steps(records.uri) == [1, 2]
    for _ in range(2):
        records.write()
        assert steps(records.uri) == [1, 2, 3]


def test_steps_that_are_taken_again_do_not_count_twice(uri: str) -> None:
    killed = Records(uri, [])
    for step in range(1, 9):
        killed.add({"step": step})
    killed.write()
    again = Records(uri, killed.all[:6])  # as the checkpoint behind step 6 has them
    assert steps(uri) == list(range(1, 7))
    for step in range(7, 10):
        again.add({"step": step})
    again.write()
    assert steps(uri) == list(range(1, 10))


def test_other_ranks_write_nothing() -> None:
    records = Records(None, [{"step": 1}])
    records.add({"step": 2})
    records.write()
    assert [record["step"] for record in records.all] == [1, 2]
