"""The real training loop on a real Ray: killed with everything it started and run again, and shared by two workers.

As a script it is the driver of one run, which the tests start in a process group of its own:

    python tests/integration/test_training.py INPUTS WORKSPACE RUNS    RUNS: JSON list of [name, execution] pairs
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from chuxin.runner import Stage
from chuxin.training.config import FinetuneConfig, OptimizerConfig, TrainExecution

ROOT = Path(__file__).resolve().parents[2]
STEPS, KILL_AT = 12, 6
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=2)
pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class OneStage:
    """A recipe of nothing but a training."""

    workspace: str
    finetune: FinetuneConfig


def drive(inputs: str, workspace: str, runs: list[tuple[str, dict]]) -> None:
    """Trains once for every run, each with its own workspace, in one Ray session."""
    import ray

    from chuxin import runner

    stage = Stage("finetune", "finetune", "chuxin.training.worker:finetune", 1)
    environment = {"env_vars": {"PYTHONPATH": str(ROOT / "platform")}}
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="warning",
             object_store_memory=100 * 2**20, runtime_env=environment)  # fmt: skip
    for name, execution in runs:
        config = FinetuneConfig(
            f"{inputs}/plan", f"{inputs}/model", OPTIMIZER, seed=1, temperature=0.05, dtype="fp32",
            execution=TrainExecution(**execution),
        )  # fmt: skip
        recipe = OneStage(f"{workspace}/{name}", config)
        runner.run_here(runner.bind(recipe, (stage,))[0], recipe)
    ray.shutdown()


def start(inputs: Path, workspace: Path, runs: list[tuple[str, dict]]) -> subprocess.Popen:
    command = [sys.executable, __file__, str(inputs), str(workspace), json.dumps(runs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform"), "OMP_NUM_THREADS": "1"}
    with open(f"{workspace}-{time.time_ns()}.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def kill_with_descendants(process: subprocess.Popen) -> None:
    """Kills a driver with everything Ray started for it, which is in process groups of its own."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    doomed, found = {process.pid}, True
    while found:
        found = {pid for pid, parent in parents.items() if parent in doomed} - doomed
        doomed |= found
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 2 × 96 and a plan of 12 batches, made by the package itself."""
    import numpy as np

    from chuxin.artifacts import Draft
    from chuxin.models.checkpoint import save_model
    from chuxin.models.config import InitConfig
    from chuxin.models.start import new_model, train_tokenizer
    from chuxin.models.vocabulary import vocabulary_fingerprint
    from chuxin.packing.plan import plan_groups
    from chuxin.packing.tokens import TOKEN_GROUPS, as_groups
    from chuxin.packing.write import Figures, group_slices
    from chuxin.schema import PLAN_GROUPS

    directory = tmp_path_factory.mktemp("inputs")
    tokenizer = train_tokenizer([f"第{n}个句子说的是{n * 7}件事" for n in range(200)], vocab_size=400, max_len=128)
    shape = InitConfig(seed=3, passages="none", max_texts=1, vocab_size=400, layers=2, hidden=96, heads=4,
                       intermediate=384, max_len=128, dropout=0.1)  # fmt: skip
    save_model(new_model(shape, len(tokenizer)), tokenizer, str(directory / "model"))

    draw = np.random.default_rng(0)

    def ids(low: int, high: int) -> list[int]:
        return [0, *draw.integers(4, len(tokenizer) - 1, draw.integers(low, high)).tolist(), 2]

    def passages(first: int, count: int) -> list[dict]:
        return [{"passage_id": first + n, "text_hash": first + n, "token_ids": ids(60, 120), "score": None}
                for n in range(count)]  # fmt: skip

    import pyarrow as pa

    table = pa.Table.from_pylist([
        {"bucket": 0, "query_id": i, "query_hash": 10**6 + i, "source": "ab"[i % 2], "query_ids": ids(5, 20),
         "positives": passages(10 * i, 1), "negatives": passages(10 * i + 1, i % 3)} for i in range(40 * STEPS)
    ], TOKEN_GROUPS)  # fmt: skip
    groups = as_groups(table, {})
    plan = plan_groups(groups, group_size=2, batch_size=40, seed=1, epoch=0, bucket=0)
    assert len(plan.batches) == STEPS
    draft = Draft(str(directory / "plan"), "f" * 32, {}, print)
    with draft.attempt("epoch000-bucket0000") as attempt:
        figures = Figures()
        attempt.write("plan", figures.watch(group_slices(table, groups, plan.batches, 0, 4)), PLAN_GROUPS)
        figures = {**figures.facts(STEPS), "slices": 4, "vocabulary": vocabulary_fingerprint(tokenizer)}
        attempt.count(facts=figures)
    draft.close()
    return directory


@pytest.fixture(scope="module")
def workspace(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: `whole` is left alone, `killed` dies behind step 6 and is run again, `two` has two workers."""
    space = tmp_path_factory.mktemp("runs") / "space"
    undisturbed = start(inputs, space, [("whole", {"checkpoint_every": KILL_AT}),
                                        ("two", {"num_workers": 2, "zero_stage": 3})])  # fmt: skip
    killed = [("killed", {"checkpoint_every": KILL_AT})]
    first = start(inputs, space, killed)
    mark = f"killed/finetune-*/state/checkpoints/step-{KILL_AT:08d}-*/complete.json"
    deadline = time.monotonic() + 250
    while not list(space.glob(mark)):
        assert first.poll() is None and time.monotonic() < deadline, "the run to kill ended too early"
        time.sleep(0.02)
    kill_with_descendants(first)
    assert not list(space.glob("killed/finetune-*/state/export.json")), "killed too late"
    assert [process.wait(timeout=300) for process in (start(inputs, space, killed), undisturbed)] == [0, 0]
    return space


def result(workspace: Path, name: str) -> tuple[dict, Path, list[dict]]:
    artifact, = (workspace / name).glob("finetune-*")
    manifest = json.loads((artifact / "manifest.json").read_text())
    directory = artifact / "parts" / manifest["partitions"][0]["directory"]
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return manifest, directory, records


def test_killed_and_run_again_gives_the_same_weights_to_the_bit(workspace: Path) -> None:
    (whole, expected, records), (manifest, found, again) = (result(workspace, name) for name in ("whole", "killed"))
    assert (found / "model/model.safetensors").read_bytes() == (expected / "model/model.safetensors").read_bytes()
    assert [record["step"] for record in again] == list(range(1, STEPS + 1))
    for name in ("loss", "grad_norm", "lr", "rows_seen", "tokens_seen", "accuracy"):
        assert [record[name] for record in again] == [record[name] for record in records], name
    assert manifest["facts"] == whole["facts"] and manifest["rows_in"] == sum(r["rows"] for r in records)
    logs = [path.read_text() for path in workspace.parent.glob("space-*.log")]
    assert sum(f"continues after step {KILL_AT}" in log for log in logs) == 1


def test_two_workers_with_sharded_state_lose_alike(workspace: Path) -> None:
    (_, expected, one), (manifest, directory, two) = (result(workspace, name) for name in ("whole", "two"))
    for record, other in zip(one, two, strict=True):
        assert record["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert record["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert (record["rows"], record["tokens"]) == (other["rows"], other["tokens"])
    assert manifest["facts"]["steps"] == STEPS and (directory / "model/sparse_linear.pt").is_file()
    weights, others = (load_file(path / "model/model.safetensors") for path in (expected, directory))
    assert weights.keys() == others.keys()
    # Adam divides a gradient by its own size, so rounding is as large as a step where a gradient is nearly zero.
    distance = sum(float((weights[key] - others[key]).abs().sum()) for key in weights)
    assert distance < 1e-4 * sum(weight.numel() for weight in weights.values())


def test_the_weights_learned_and_the_state_is_gone(workspace: Path) -> None:
    _, directory, records = result(workspace, "whole")
    assert records[-1]["loss"] < records[0]["loss"]
    assert not (directory.parents[1] / "state").exists()


if __name__ == "__main__":
    drive(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
