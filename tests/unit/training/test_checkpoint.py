"""Checkpoints: whole or not there, the newest one chosen, old ones gone; and the loop's check for NaN."""

import os
from pathlib import Path

import pytest
import torch

from chuxin.errors import InputError
from chuxin.training import checkpoint


class FileEngine:
    """An engine that keeps one tensor, in DeepSpeed's signature."""

    def __init__(self, value: float) -> None:
        self.weight = torch.tensor(value)

    def save_checkpoint(self, directory: str, tag: str, save_latest: bool) -> None:
        os.makedirs(f"{directory}/{tag}", exist_ok=True)
        torch.save(self.weight, f"{directory}/{tag}/weight.pt")

    def load_checkpoint(self, directory: str, tag: str) -> None:
        self.weight = torch.load(f"{directory}/{tag}/weight.pt", weights_only=True)


def save(state: str, step: int, keep: int = 2, owner: str | None = None) -> str:
    owner = owner or checkpoint.claim(state)
    records = [{"step": s, "loss": 1.0 / s} for s in range(1, step + 1)]
    checkpoint.save(FileEngine(float(step)), state, owner, step, records, 0, keep)
    return f"step-{step:08d}-{owner}"


@pytest.fixture(params=["local", "memory"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def test_the_newest_checkpoint_comes_back_with_its_records(state: str) -> None:
    assert checkpoint.newest(state) is None
    for step in (2, 4, 6):
        save(state, step)
    saved = checkpoint.newest(state)
    assert saved.step == 6 and saved.workers == 1
    engine = FileEngine(0.0)
    records = checkpoint.restore(engine, saved, 0)
    assert engine.weight == 6 and [record["step"] for record in records] == list(range(1, 7))
    assert records[2]["loss"] == pytest.approx(1 / 3)


def test_old_ones_go_and_unfinished_ones_are_ignored(state: str, tmp_path: Path) -> None:
    names = [save(state, step) for step in (2, 4, 6)]
    fs, path = checkpoint.filesystem(f"{state}/checkpoints")
    assert sorted(p.rpartition("/")[2] for p in fs.ls(path, detail=False)) == names[1:]
    fs.rm_file(f"{path}/{names[2]}/complete.json")  # as if killed before it
    assert checkpoint.newest(state).step == 4
    last = save(state, 6, keep=1)
    assert checkpoint.newest(state).step == 6
    assert [p.rpartition("/")[2] for p in fs.ls(path, detail=False)] == [last]


def test_a_run_with_a_successor_writes_nothing_more(state: str) -> None:
    owner = checkpoint.claim(state)
    save(state, 2, owner=owner)
    checkpoint.require_owner(state, owner)
    successor = checkpoint.claim(state)
    with pytest.raises(RuntimeError, match="another run has taken over"):
        save(state, 4, owner=owner)
    assert checkpoint.newest(state).step == 2
    save(state, 4, owner=successor)
    assert checkpoint.newest(state).step == 4
    with pytest.raises(RuntimeError, match="another run"):
        checkpoint.require_owner(f"{state}/gone", owner)


def test_sharded_state_of_other_workers_is_refused(tmp_path: Path) -> None:
    saved = checkpoint.Saved("x/checkpoints/step-1", 1, workers=4, zero_stage=2)
    with pytest.raises(InputError, match="zero_stage 2 and 4 workers"):
        checkpoint.restore(FileEngine(0.0), saved, 2)
    with pytest.raises(InputError, match="was written with zero_stage 0"):
        checkpoint.restore(FileEngine(0.0), saved._replace(zero_stage=0), 1)
