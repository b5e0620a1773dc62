"""The loop alone, stopped and gone on with, on two ranks, with a loss that fails; what it records and tells."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from chuxin.errors import InputError
from chuxin.training.deepspeed import deepspeed_config
from chuxin.training.loop import watch
from chuxin.training.optimizer import new_optimizer
from chuxin.training.plan_reader import Plan

from . import engines, processes
from .engines import STEPS, config, module, run, write_plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return write_plan(tmp_path / "plan.parquet")


def test_records_say_what_happened(plan: Plan) -> None:
    _, watched, records = run(plan)
    first, *rest = list(records)
    assert set(first) == {"step", "epoch", "batch", "rows", "loss", "half", "loss_by_source", "tokens", "padding_share",
                          "cached_bytes", "grad_norm", "lr", "seconds", "tokens_per_second", "mfu"}  # fmt: skip
    assert first["half"] == pytest.approx(first["loss"] / 2) and first["cached_bytes"] == 100
    a, b = (first["loss_by_source"][source] for source in "ab")
    assert first["loss"] == pytest.approx((2 * a + 4 * b) / 6, rel=1e-6)
    assert first["padding_share"] == pytest.approx(1 - first["tokens"] / 48, abs=1e-4)
    assert [r["step"] for r in rest] == list(range(2, STEPS + 1)) and rest[-1]["loss"] < first["loss"]
    assert list(watched.guard.recent) == [r["loss"] for r in (first, *rest)]


def test_equal_to_plain_training_with_clipping_and_average(plan: Plan) -> None:
    engine, watched, records = run(plan)
    found = list(records)
    plain = module()
    optimizer = new_optimizer(plain, config().optimizer)
    averaged = [p.detach().clone() for p in plain.parameters()]
    table = torch.nn.ModuleList([plain])
    rows = pq.read_table(plan.files[0].file).to_pylist()
    for step, record in enumerate(found):
        batch = [torch.tensor(r["token_ids"]) for r in rows if r["batch"] == step]
        loss = torch.stack([(plain(text).mean() - 1) ** 2 for text in batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(table.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = record["lr"]
        optimizer.step()
        averaged = [0.9 * old + 0.1 * p.detach() for old, p in zip(averaged, plain.parameters(), strict=True)]
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for ours, theirs in zip(engine.module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(watched.average.held.values(), averaged, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_stopped_and_gone_on_with_is_the_same_to_the_bit(plan: Plan) -> None:
    whole = list(run(plan)[2])
    engine, _, records = run(plan)
    first = [next(records) for _ in range(3)]
    state = engine.module.state_dict(), engine.optimizer.state_dict()
    second = list(run(plan, done=3, state=state)[2])
    keys = ("step", "batch", "loss", "loss_by_source", "grad_norm", "lr")
    assert [[r[k] for k in keys] for r in first + second] == [[r[k] for k in keys] for r in whole]


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_the_batch_and_leaves_the_weights(plan: Plan, factor: float) -> None:
    engine, watched, records = run(plan, fail_at={4: factor})
    kept: dict = {}
    with pytest.raises(InputError, match=r"step 4 \(epoch 0, batch 3, sources a, b\): the loss is (nan|inf)") as error:
        for _ in records:
            kept = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
            average = {name: tensor.clone() for name, tensor in watched.average.held.items()}
    assert "last checkpoint is kept" in str(error.value)
    assert all(torch.equal(kept[name], tensor) for name, tensor in engine.module.state_dict().items())
    assert all(torch.equal(average[name], tensor) for name, tensor in watched.average.held.items())


def test_a_damaged_plan_names_the_step(plan: Plan) -> None:
    file = Path(plan.files[0].file)
    chunk = pq.ParquetFile(file).metadata.row_group(4).column(8)
    with open(file, "r+b") as opened:
        opened.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
        opened.write(bytes(chunk.total_compressed_size))
    taken = []
    with pytest.raises(InputError, match=r"step 5: the plan cannot be read \(.*\)\. Remove the artifact and pack"):
        taken.extend(run(plan)[2])
    assert [record["step"] for record in taken] == [1, 2, 3, 4]


def test_a_missing_plan_may_come_back(plan: Plan) -> None:
    Path(plan.files[0].file).unlink()
    with pytest.raises(FileNotFoundError):
        next(run(plan)[2])


def test_an_explosion_stops_before_the_step(plan: Plan) -> None:
    engine, _, records = run(plan, fail_at={2: 1e6}, recent=[0.5] * 50)
    next(records)
    kept = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    with pytest.raises(InputError, match="step 2 .* times the highest of the 41 that lie"):
        next(records)
    assert all(torch.equal(kept[name], tensor) for name, tensor in engine.module.state_dict().items())


def test_two_ranks_are_one_process(plan: Plan, tmp_path: Path) -> None:
    (one, weights, average, sums), (other, *_, other_sums) = processes.both(engines, tmp_path)
    engine, _, records = run(plan)
    records = list(records)
    same = ("step", "epoch", "batch", "rows", "tokens", "padding_share", "lr")
    for ours, theirs, alone in zip(one, other, records, strict=True):
        assert [ours[k] for k in same] == [theirs[k] for k in same] == [alone[k] for k in same]
        assert ours["loss"] == theirs["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert ours["loss_by_source"] == pytest.approx(alone["loss_by_source"], rel=1e-5)
        assert ours["cached_bytes"] == 200
    for name, tensor in engine.module.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-4)
    assert np.isfinite([float(tensor.sum()) for tensor in average.values()]).all()
    expected = [[text.sum(), len(text)] for text in engines.TEXTS]
    for all_texts, one_text in (sums, other_sums):
        assert all_texts.tolist() == expected and one_text.tolist() == expected[:1]


def steps(first: int, last: int, seconds: float) -> Iterator[dict]:
    for step in range(first, last + 1):
        time.sleep(seconds)
        yield {"step": step, **({"dev_ndcg_at_10": 0.5} if step == 3 else {})}


def test_first_last_and_dev_scores_are_always_told_and_records_pass_through() -> None:
    told: list[dict] = []
    assert [record["step"] for record in watch(steps(1, 5, 0), 5, 60, told.append)] == [1, 2, 3, 4, 5]
    assert [record["step"] for record in told] == [1, 3, 5] and told[-1]["remaining"] == 0


def test_the_estimate_counts_from_where_a_resumed_run_began() -> None:
    told: list[dict] = []
    list(watch(steps(91, 95, 0.02), 100, 0.0, told.append))
    assert len(told) == 5 and told[-1]["total"] == 100
    # 5 steps took t, so 5 more take t.
    assert abs(told[-1]["remaining"] - told[-1]["elapsed"]) < 0.02


def test_deepspeed_clips_only_where_it_tells_the_norm() -> None:
    assert deepspeed_config(0, False, 1.0)["gradient_clipping"] == 0.0
    settings = deepspeed_config(2, True, 0.5)
    assert settings["gradient_clipping"] == 0.5 and settings["zero_optimization"] == {"stage": 2}
    assert settings["torch_autocast"]["enabled"] and "bf16" not in settings and "optimizer" not in settings
