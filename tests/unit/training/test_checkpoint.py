"""Checkpoints: whole or not there, the newest one chosen, old ones gone, every tensor back to the bit."""

from pathlib import Path

import pytest
import torch

from chuxin.training import checkpoint
from chuxin.training.ema import Average
from chuxin.training.optimizer import new_optimizer
from chuxin.training.shards import set_optimizer_state, trained

from .engines import PlainEngine, config, module


def new_engine(steps: int = 0) -> PlainEngine:
    inner = module()
    inner[3].requires_grad_(False)
    engine = PlainEngine(inner, new_optimizer(inner, config().optimizer))
    for step in range(steps):
        inner(torch.arange(5) + step).sum().backward()
        engine.step()
    return engine


def save(state: str, step: int, keep: int = 2, owner: str | None = None, engine: PlainEngine | None = None) -> str:
    owner = owner or checkpoint.claim(state)
    records = [{"step": s, "loss": 1.0 / s} for s in range(1, step + 1)]
    engine = engine or new_engine()
    average = Average(engine.module, 0.5)
    average.held["1.bias"] += 1
    checkpoint.save(engine, state, owner, step, records, [0.1, 1 / 3], 0, keep, average)
    return f"step-{step:08d}-{owner}"


@pytest.fixture(params=["local", "memory"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def test_the_newest_checkpoint_comes_back_with_its_records_and_losses(state: str) -> None:
    assert checkpoint.newest(state) is None
    for step in (2, 4, 6):
        save(state, step)
    saved = checkpoint.newest(state)
    assert saved.step == 6 and saved.recent == [0.1, 1 / 3]
    records = checkpoint.read_records(f"{saved.uri}/{checkpoint.METRICS}")
    assert [record["step"] for record in records] == list(range(1, 7))
    assert records[2]["loss"] == 1 / 3


def test_weights_moments_steps_and_average_come_back_to_the_bit(state: str) -> None:
    first = new_engine(steps=3)
    save(state, 3, engine=first)
    second = new_engine()
    with checkpoint.opened(checkpoint.newest(state).uri) as reader:
        reader.put_weights(second.module)
        set_optimizer_state(second, 0, reader)
        average = Average(second.module, 0.5)
        average.restore(lambda name: reader(name, checkpoint.AVERAGE))
        assert reader("3.weight", checkpoint.WEIGHT) is None  # frozen: the starting model has it
    for name, parameter in trained(first.module).items():
        other = trained(second.module)[name]
        assert torch.equal(parameter, other)
        states = (engine.optimizer.state[p] for engine, p in ((first, parameter), (second, other)))
        expected, found = ({key: value.tolist() for key, value in s.items()} for s in states)
        assert expected == found and found["step"] == 3
    assert torch.equal(average.held["1.bias"], second.module[1].bias + 1)
    for engine in (first, second):
        engine.module(torch.arange(4)).sum().backward()
        engine.step()
    assert torch.equal(first.module[1].weight, second.module[1].weight)


def test_a_checkpoint_before_the_first_step_has_no_moments(state: str) -> None:
    save(state, 0)
    engine = new_engine()
    with checkpoint.opened(checkpoint.newest(state).uri) as reader:
        set_optimizer_state(engine, 0, reader)
    assert not engine.optimizer.state


def test_old_ones_go_and_unfinished_ones_are_ignored(state: str) -> None:
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
    with pytest.raises(RuntimeError, match="another run has taken over"):
        checkpoint.save_best(module(), state, owner, 4, 0.5)
    assert checkpoint.newest(state).step == 2 and checkpoint.best(state, 4) is None
    save(state, 4, owner=successor)
    assert checkpoint.newest(state).step == 4
    with pytest.raises(RuntimeError, match="another run"):
        checkpoint.require_owner(f"{state}/gone", owner)


def test_the_best_weights_outlive_a_kill_between_two_checkpoints(state: str) -> None:
    owner = checkpoint.claim(state)
    engine = new_engine()
    for step, score in ((2, 0.5), (4, 0.7)):
        torch.nn.init.constant_(engine.module[1].bias, step)
        checkpoint.save_best(engine.module, state, owner, step, score)
    save(state, 4, owner=owner)
    assert checkpoint.best(state, 2) is None  # gone: a checkpoint stands behind the better ones
    checkpoint.save_best(engine.module, state, owner, 6, 0.9)
    # Killed here, the run goes on from step 4, and what was best then is there.
    assert checkpoint.best(state, 4).step == 4 and checkpoint.best(state, 6).score == 0.9
    fresh = new_engine()
    with checkpoint.opened(checkpoint.best(state, 4).uri) as reader:
        reader.put_weights(fresh.module)
    assert fresh.module[1].bias.tolist() == [4.0] * 8


def test_best_weights_of_steps_that_are_taken_again_do_not_count(state: str) -> None:
    owner = checkpoint.claim(state)
    checkpoint.save_best(module(), state, owner, 4, 0.5)
    save(state, 4, owner=owner)
    checkpoint.save_best(module(), state, owner, 8, 0.9)
    checkpoint.save_best(module(), state, owner, 10, 0.95)
    fs, path = checkpoint.filesystem(f"{state}/best")
    fs.rm_file(f"{path}/step-00000010-{owner}/complete.json")  # as if killed before it
    owner = checkpoint.claim(state)
    checkpoint.drop_unreached(state, owner, checkpoint.newest(state).step)
    assert [p.rpartition("/")[2][:13] for p in fs.ls(path, detail=False)] == ["step-00000004"]
    # Taken again, step 8 scores a little less.
    checkpoint.save_best(module(), state, owner, 8, 0.8)
    assert checkpoint.best(state, 12).uri.endswith(f"step-00000008-{owner}")
    with pytest.raises(RuntimeError, match="another run"):
        checkpoint.drop_unreached(state, "earlier", 0)


def test_of_equal_scores_the_earlier_is_best(state: str) -> None:
    owner = checkpoint.claim(state)
    for step in (4, 2, 6):
        checkpoint.save_best(module(), state, owner, step, 0.5)
    assert checkpoint.best(state, 10).step == 2
