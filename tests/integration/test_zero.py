"""DeepSpeed's four stages on two ranks without Ray: same losses, resumed to the bit, a NaN leaves the weights.

All heads with GradCache, dropout and activation checkpointing, and RetroMAE, whose decoder uses the encoder's tables.

As a script it is one rank: python tests/integration/test_zero.py RANK DIRECTORY
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import distributed

from chuxin.errors import InputError
from chuxin.models.retromae import RetroMAE
from chuxin.models.retromae_masks import Drawing
from chuxin.schema import PLAN_TEXTS
from chuxin.training import checkpoint
from chuxin.training.config import OptimizerConfig, PretrainConfig, TrainExecution
from chuxin.training.deepspeed import deepspeed_config, new_engine, whole_weights
from chuxin.training.ema import Average
from chuxin.training.finetune import Contrastive, freeze_heads
from chuxin.training.guard import Guard
from chuxin.training.loop import Watched, train
from chuxin.training.optimizer import new_optimizer
from chuxin.training.plan_reader import Plan, PlanFile
from chuxin.training.pretrain import Rebuild
from chuxin.training.shards import local, set_optimizer_state, trained, whole

ROOT = Path(__file__).resolve().parents[2]
STAGES = (0, 1, 2, 3)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=1)
pytestmark = pytest.mark.integration


def load_ranks() -> Any:
    """The tiny model and plan of the unit tests: the second of two ranks has less to do, and at last nothing."""
    path = ROOT / "tests/unit/training/ranks.py"
    spec = importlib.util.spec_from_file_location("ranks", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ranks"] = module
    spec.loader.exec_module(module)
    return module


class Failing:
    """The objective, but for a loss that is no number in one step."""

    def __init__(self, objective: Any, step: int) -> None:
        self.objective, self.step = objective, step

    def prepare(self, batch: Any) -> tuple[Any, int]:
        return self.objective.prepare(batch), batch.step

    def backward(self, prepared: tuple[Any, int], device: torch.device, send: Any) -> Any:
        factor = math.nan if prepared[1] == self.step else 1.0
        return self.objective.backward(prepared[0], device, lambda loss, last: send(loss * factor, last))

    def tokens(self, prepared: tuple[Any, int]) -> tuple[int, int]:
        return self.objective.tokens(prepared[0])


def begin(ranks: Any, stage: int, directory: Path, state: str | None = None, cached: bool = True) -> tuple:
    """All three heads with dropout, activation checkpointing and an average, with GradCache or without."""
    case = ranks.CASES["all heads, cached"]
    execution = dataclasses.replace(
        case.execution, zero_stage=stage, activation_checkpointing=True, grad_cache=cached
    )  # fmt: skip
    config = dataclasses.replace(case, execution=execution)
    model, plan = ranks.tiny(), ranks.plan(directory)
    model.checkpointing = True
    saved = checkpoint.newest(state) if state else None
    reader = None
    if saved:
        with checkpoint.opened(saved.uri) as reader:
            reader.put_weights(model)
    tied = [model.backbone.embeddings.token_type_embeddings.weight]
    engine = new_engine(model, new_optimizer(model, config.optimizer), deepspeed_config(stage, False, 1.0), tied)
    average = Average(model, 0.7)
    if reader is not None:
        set_optimizer_state(engine, stage, reader)
        average.restore(lambda name: reader(name, checkpoint.AVERAGE))
    watched = Watched(Guard(5.0, saved.recent if saved else ()), average)
    objective = Contrastive(engine, config, plan, ranks.SPECIAL)
    return engine, watched, objective, plan, config, saved.step if saved else 0


def weights(engine: Any) -> dict[str, torch.Tensor]:
    return {name: whole(local(p), p).clone() for name, p in trained(engine.module).items()}


def run(ranks: Any, stage: int, directory: Path) -> dict[str, Any]:
    engine, watched, objective, plan, config, _ = begin(ranks, stage, directory)
    state = str(directory / f"state-{stage}")
    total, records = len(ranks.SLICES), []
    if distributed.get_rank() == 0:
        checkpoint.claim(state)
    distributed.barrier()
    owner = checkpoint.read_json(f"{state}/owner.json")["owner"]
    for record in train(engine, objective, plan, config, 0, total, watched):
        records.append(record)
        if record["step"] == 1:
            checkpoint.save(engine, state, owner, 1, records, list(watched.guard.recent), stage, 2, watched.average)
    result = {"losses": [r["loss"] for r in records], "norms": [r["grad_norm"] for r in records],
              "weights": weights(engine)}  # fmt: skip
    with watched.average.in_place():
        result["average"] = weights(engine)
        with whole_weights(engine.module, stage):
            result["exported"] = {name: p.detach().clone() for name, p in trained(engine.module).items()}
    assert all(torch.equal(tensor, result["weights"][name]) for name, tensor in weights(engine).items())

    engine, watched, objective, plan, config, done = begin(ranks, stage, directory, state)
    again = list(train(engine, objective, plan, config, done, total, watched))
    result["again"] = [(r["step"], r["loss"], r["grad_norm"]) for r in again]
    result["weights again"] = weights(engine)

    engine, watched, objective, plan, config, _ = begin(ranks, stage, directory, cached=False)
    result["uncached norms"] = [r["grad_norm"] for r in train(engine, objective, plan, config, 0, total, watched)]

    engine, watched, objective, plan, config, _ = begin(ranks, stage, directory)
    kept = {}
    try:
        for _ in train(engine, Failing(objective, 2), plan, config, 0, total, watched):
            kept = weights(engine)
    except InputError as error:
        result["error"] = str(error)
    result["weights kept"] = all(torch.equal(tensor, kept[name]) for name, tensor in weights(engine).items())
    return result


def pretrain(ranks: Any, stage: int, directory: Path) -> dict[str, Any]:
    config = PretrainConfig("", "", OPTIMIZER, seed=1, dtype="fp32", execution=TrainExecution(zero_stage=stage))
    module = RetroMAE(freeze_heads(ranks.tiny()), 1, 0.1)
    embeddings = module.model.backbone.embeddings
    tied = [embeddings.token_type_embeddings.weight, embeddings.word_embeddings.weight]
    engine = new_engine(module, new_optimizer(module, OPTIMIZER), deepspeed_config(stage, False, 1.0), tied)
    drawing = Drawing(1, 0.3, 0.5, ranks.VOCAB, ranks.VOCAB - 1, (*ranks.SPECIAL, ranks.VOCAB - 1))
    plan = Plan((PlanFile(str(directory / "texts.parquet"), 3),), 4, 58, 30, "", ranks.SOURCES)
    records = list(train(engine, Rebuild(engine, drawing, 40, ranks.SOURCES), plan, config, 0, 3, Watched(Guard(5.0))))
    return {"losses": [r["loss"] for r in records], "norms": [r["grad_norm"] for r in records],
            "weights": weights(engine)}  # fmt: skip


def write_texts(path: Path) -> None:
    """Three batches; of two ranks the second has less, and in the last batch nothing."""
    draw = np.random.default_rng(0)
    with pq.ParquetWriter(path, PLAN_TEXTS) as writer:
        for batch, slices in enumerate(([0, 0, 0, 1, 2], [0, 1, 1, 2, 2, 3], [0, 2, 2])):
            rows = []
            for row, part in enumerate(slices):
                ids = [0, *draw.integers(4, 58, draw.integers(5, 28)).tolist(), 2]
                rows.append({"epoch": 0, "batch": batch, "slice": part, "row": row, "passage_id": row, "offset": 0,
                             "source": "ab"[row % 2], "length": len(ids), "token_ids": ids})  # fmt: skip
            writer.write_table(pa.Table.from_pylist(rows, PLAN_TEXTS))


def run_rank(rank: int, directory: Path) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    store = distributed.FileStore(str(directory / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=100))
    ranks = load_ranks()
    found = {stage: {**run(ranks, stage, directory), "pretraining": pretrain(ranks, stage, directory)}
             for stage in STAGES}  # fmt: skip
    torch.save(found, directory / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("zero")
    load_ranks().write_plan(directory)
    write_texts(directory / "texts.parquet")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform"), "OMP_NUM_THREADS": "1"}
    running = []
    for rank in range(2):
        with open(directory / f"{rank}.log", "wb") as log:
            command = [sys.executable, __file__, str(rank), str(directory)]
            running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    codes = [process.wait(timeout=300) for process in running]
    assert codes == [0, 0], "\n".join((directory / f"{rank}.log").read_text()[-3000:] for rank in range(2))
    return torch.load(directory / "0.pt", weights_only=False)


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_to_the_bit(results: dict, stage: int) -> None:
    whole_run = results[stage]
    expected = list(zip((2, 3), whole_run["losses"][1:], whole_run["norms"][1:], strict=True))
    assert whole_run["again"] == expected
    assert all(torch.equal(whole_run["weights"][name], tensor) for name, tensor in whole_run["weights again"].items())


@pytest.mark.parametrize("stage", STAGES[1:])
def test_stages_differ_by_rounding(results: dict, stage: int) -> None:
    plain, sharded = results[0], results[stage]
    assert sharded["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    assert sharded["norms"] == pytest.approx(plain["norms"], rel=1e-4)
    for name, average in plain["average"].items():
        assert torch.equal(sharded["exported"][name], sharded["average"][name])
        # The softmax does not see a key's bias, so its gradient is rounding, by which Adam moves it as by any other.
        bound = 1e-2 if name.endswith("key.bias") else 1e-4
        assert float((sharded["average"][name] - average).abs().mean()) < bound, name


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_of_all_micro_batches_count_without_gradcache(results: dict, stage: int) -> None:
    assert results[stage]["uncached norms"] == pytest.approx(results[0]["norms"], rel=1e-4)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_pretraining_differs_by_rounding(results: dict, stage: int) -> None:
    plain, sharded = results[0]["pretraining"], results[stage]["pretraining"]
    assert sharded["losses"] == pytest.approx(plain["losses"], abs=1e-4)
    assert sharded["norms"] == pytest.approx(plain["norms"], rel=1e-4)
    for name, weight in plain["weights"].items():
        bound = 1e-2 if name.endswith("key.bias") else 1e-4
        assert float((sharded["weights"][name] - weight).abs().mean()) < bound, name


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_no_number_leaves_the_weights(results: dict, stage: int) -> None:
    assert results[stage]["error"].startswith("step 2 (epoch 0, batch 1, sources a, b): the gradient's norm is")
    assert results[stage]["weights kept"]


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
