"""The real training loop on a real Ray: killed in several ways, run again with other workers, and losing one.

As a script it is the driver of some runs, which the tests start in a process group of its own:

    python tests/integration/test_training.py INPUTS WORKSPACE RUNS    RUNS: JSON list of [name, changes, loses] triples

`changes` to the base config's execution, or of it. Behind step 6 the run loses what `loses` says: nothing, a worker
(the driver kills one), a node (it runs on two nodes of one CPU each, and the second goes) or its driver (which the
tests kill). The last file of its plan cannot be opened until then, so that it waits at step 8, however late the kill.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from chuxin.errors import InputError
from chuxin.runner import Stage
from chuxin.training import checkpoint
from chuxin.training.config import (
    DevConfig,
    FinetuneConfig,
    OptimizerConfig,
    RerankerConfig,
    TrainExecution,
)

ROOT = Path(__file__).resolve().parents[2]
STEPS, FIRST_FILE, KILL_AT = 12, 8, 6
MARK = f"*/state/checkpoints/step-{KILL_AT:08d}-*/complete.json"
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, schedule="wsd", decay_steps=4)
TIMED = {"seconds", "tokens_per_second", "mfu"}
Runs = list[tuple[str, dict, str]]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]  # nine runs one after another


@dataclasses.dataclass(frozen=True)
class OneStage:
    """A recipe of nothing but a training."""

    workspace: str
    finetune: FinetuneConfig | None = None
    reranker: RerankerConfig | None = None


def recipe(inputs: str, workspace: str, name: str, changes: dict) -> OneStage:
    execution = TrainExecution(**{"checkpoint_every": KILL_AT, **changes.pop("execution", {})})
    start = (f"{inputs}/{changes.pop('plan', 'plan')}", f"{inputs}/model", OPTIMIZER, 1)
    if changes.pop("stage", "finetune") == "reranker":
        optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=1)
        config = RerankerConfig(*start[:2], optimizer, 1, dtype="fp32", max_steps=2, execution=execution)
        return OneStage(f"{workspace}/{name}", reranker=config)
    dev = DevConfig(f"{inputs}/benchmark", 4, 16, 64) if changes.pop("dev", False) else None
    config = FinetuneConfig(*start, temperature=0.05, dtype="fp32", dropout=0.1, ema_decay=0.8, dev=dev,
                            execution=execution, **changes)  # fmt: skip
    return OneStage(f"{workspace}/{name}", config)


def drive(inputs: str, workspace: str, runs: Runs) -> None:
    """Trains once for every run, each with its own workspace, in one Ray session."""
    import ray

    from chuxin import runner

    options = {"log_to_driver": False, "logging_level": "warning",
               "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT / "platform")}}}  # fmt: skip
    nodes = None
    if any(loses == "node" for *_, loses in runs):
        nodes = two_nodes()
        ray.init(address=nodes[0].address, **options)
    else:
        ray.init("local", num_cpus=3, include_dashboard=False, object_store_memory=100 * 2**20, **options)
    for name, changes, loses in runs:
        print(f"{name}: begins", flush=True)
        if loses:  # inputs are known by their content, so that a copy of the plan makes no other run
            plan = Path(shutil.copytree(f"{inputs}/plan", f"{inputs}/plan-{name}"))
            changes = {**changes, "plan": plan.name}
        made = recipe(inputs, workspace, name, dict(changes))
        stage, = (f.name for f in dataclasses.fields(made) if f.name != "workspace" and getattr(made, f.name))
        bound, = runner.bind(made, tuple(
            Stage(one, "finetune", f"chuxin.training.worker:{one}", 1) for one in ("finetune", "reranker")
        ))  # fmt: skip
        if loses:
            close(plan)
        if loses in ("worker", "node"):
            given = (plan, Path(workspace) / name, *(nodes or ()))
            threading.Thread(target=lose, args=given, daemon=True).start()
        started = time.time()
        try:
            runner.run_here(bound, made)
        except InputError as error:  # exit code 2 of a job
            print(f"refused: {error}", flush=True)
        print(f"{name}: {stage} took {time.time() - started:.1f} s", flush=True)
    ray.shutdown()
    if nodes is not None:
        nodes[0].shutdown()


def lose(plan: Path, workspace: Path, cluster: Any = None, node: Any = None) -> None:
    """Ends a training worker of this driver once the checkpoint is complete, or a node with the worker on it."""
    workers: set[int] = set()
    while len(workers) < 2:
        time.sleep(0.1)
        workers = {pid for pid in descendants(os.getpid()) if b"RayTrainWorker" in command(pid)}
    lost = {min(workers)} if node is None else workers & descendants(node.all_processes["raylet"][0].process.pid)
    assert len(lost) == 1
    while not list(workspace.glob(MARK)):
        time.sleep(0.01)
    for pid in workers:  # so that none goes on when the plan is whole again, which it is before they are replaced
        os.kill(pid, signal.SIGSTOP)
    reopen(plan)
    if node is not None:
        cluster.remove_node(node, allow_graceful=False)
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if pid in lost else signal.SIGCONT)
    print(f"lost {'a worker' if node is None else 'a node'}", flush=True)


def close(plan: Path) -> None:
    """Puts a pipe in the place of a plan's last file: who opens it waits for a writer that never comes."""
    last = max(plan.glob("parts/*/plan.parquet"))
    last.rename(f"{last}.held")
    os.mkfifo(last)


def reopen(plan: Path) -> None:
    """Puts the file back, for those who have not opened the pipe yet."""
    held, = plan.glob("parts/*/plan.parquet.held")
    held.replace(held.with_suffix(""))


def two_nodes() -> tuple:
    """A cluster of two nodes of one CPU each: of two workers one runs on each."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 100 * 2**20}
    # A lost node refuses connections at once; by default Ray asks five times, every 3 s, before it believes that.
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": {"health_check_period_ms": 500}, **memory}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    return cluster, cluster.add_node(num_cpus=1, **memory)


def start(inputs: Path, workspace: Path, runs: Runs) -> subprocess.Popen:
    arguments = [sys.executable, __file__, str(inputs), str(workspace), json.dumps(runs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform"), "OMP_NUM_THREADS": "1",
                   "RAY_AUTH_MODE": "disabled", "RAY_raylet_death_check_interval_milliseconds": "1000"}
    with open(f"{workspace}-{time.time_ns()}.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, start_new_session=True)


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def descendants(root: int) -> set[int]:
    """All processes below one; Ray's are in process groups of their own."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    below, found = set(), {root}
    while found:
        found = {pid for pid, parent in parents.items() if parent in found}
        below |= found
    return below


def kill(process: subprocess.Popen, everything: bool) -> None:
    """Kills a driver, alone or with everything Ray started for it, by SIGKILL."""
    for pid in {process.pid} | (descendants(process.pid) if everything else set()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 2 × 96, a plan of 12 batches of 40 groups of two or three passages in two files, a benchmark."""
    from chuxin.models.checkpoint import save_model
    from chuxin.models.config import InitConfig
    from chuxin.models.start import new_model, train_tokenizer
    from chuxin.models.vocabulary import vocabulary_fingerprint

    directory = tmp_path_factory.mktemp("inputs")
    sentences = [f"第{n}个句子说的是{n * 7}件事" for n in range(200)]
    tokenizer = train_tokenizer(sentences, vocab_size=400, max_len=128)
    shape = InitConfig(seed=3, passages="none", max_texts=1, vocab_size=400, layers=2, hidden=96, heads=4,
                       intermediate=384, max_len=160, dropout=0.1)  # fmt: skip
    save_model(new_model(shape, len(tokenizer)), tokenizer, str(directory / "model"))
    write_plan(str(directory / "plan"), len(tokenizer), vocabulary_fingerprint(tokenizer))
    shutil.copytree(directory / "plan", directory / "damaged")
    damage(min((directory / "damaged").glob("parts/*/plan.parquet")))
    write_benchmark(directory / "benchmark", sentences)
    return directory


def write_plan(uri: str, ids: int, vocabulary: str) -> None:
    import numpy as np
    import pyarrow as pa

    from chuxin.artifacts import Draft
    from chuxin.schema import PLAN_GROUPS

    draw = np.random.default_rng(0)

    def text(low: int, high: int) -> list[int]:
        return [0, *draw.integers(4, ids - 1, draw.integers(low, high)).tolist(), 2]

    def row(bucket: int, batch: int, index: int, part: int) -> dict:
        key = 100_000 * bucket + 1000 * batch + 10 * index
        passages = [{"passage_id": key + n, "text_hash": key + n, "token_ids": text(60, 100), "score": None}
                    for n in range(2 + index % 2)]  # fmt: skip
        query = [0, *passages[0]["token_ids"][1:12], 2]  # so that there is something to learn
        return {"epoch": 0, "batch": batch, "slice": part, "row": index, "query_id": key, "query_hash": 10**6 + key,
                "source": "ab"[index % 2], "query_ids": query, "passages": passages,
                "lengths": [len(query), *(len(passage["token_ids"]) for passage in passages)]}  # fmt: skip

    facts = {"slices": 4, "vocabulary": vocabulary, "max_token_id": ids - 2, "max_row": "", "longest": 101,
             "longest_row": "", "sources": ["a", "b"], "without_negatives": None}  # fmt: skip
    draft = Draft(uri, "f" * 32, {}, print)
    for bucket, batches in enumerate((FIRST_FILE, STEPS - FIRST_FILE)):
        slices = [[row(bucket, batch, index, part) for index in range(40) if index % 4 == part]
                  for batch in range(batches) for part in range(4)]  # fmt: skip
        with draft.attempt(f"epoch000-bucket{bucket:04d}") as attempt:
            attempt.write("plan", (pa.Table.from_pylist(rows, PLAN_GROUPS) for rows in slices), PLAN_GROUPS)
            attempt.count(facts={"batches": batches, **facts})
    draft.close()


def damage(file: Path) -> None:
    """Overwrites what only the second of two ranks reads of batch 3: the queries' ids in slice 1."""
    import pyarrow.parquet as pq

    group = pq.ParquetFile(file).metadata.row_group(4 * 3 + 1)
    columns = (group.column(index) for index in range(group.num_columns))
    chunk = next(column for column in columns if column.path_in_schema.startswith("query_ids"))
    with open(file, "r+b") as opened:
        opened.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
        opened.write(bytes(chunk.total_compressed_size))


def write_benchmark(directory: Path, sentences: list[str]) -> None:
    (directory / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", sentences), ("queries", [sentence[:5] for sentence in sentences[:30]])):
        rows = (json.dumps({"_id": str(n), "text": text}) for n, text in enumerate(texts))
        (directory / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (directory / "qrels/test.tsv").write_text("".join(f"{n}\t{n}\t1\n" for n in range(30)), encoding="utf-8")


@pytest.fixture(scope="module")
def workspace(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, all of one config but for `execution`:

    whole      left alone: 1 worker, ZeRO 0
    killed     dies behind step 6 with everything Ray started; run again as it was
    driverless its driver alone dies there; run again as it was
    wider      as killed; run again with 2 workers and ZeRO 3
    narrower   2 workers and ZeRO 2 whose driver dies; run again with 1 worker and ZeRO 0
    pair       left alone: 2 workers, ZeRO 1, with a dev benchmark
    lost       the same, but one of the workers dies
    damaged    2 workers, of which the second cannot read batch 3 of its plan
    reranker   2 steps of a cross-encoder
    """
    space = tmp_path_factory.mktemp("runs") / "space"
    two = {"execution": {"num_workers": 2, "zero_stage": 2}}
    doomed = {name: start(inputs, space, [(name, changes, "driver")])
              for name, changes in (("killed", {}), ("driverless", {}), ("narrower", two))}  # fmt: skip
    deadline = time.monotonic() + 300
    for name, process in doomed.items():
        while not (marks := list((space / name).glob(MARK))):
            assert process.poll() is None and time.monotonic() < deadline, f"{name} ended too early\n{log(space)}"
            time.sleep(0.05)
        kill(process, everything=name == "killed")
        assert checkpoint.newest(str(marks[0].parents[2])).step == KILL_AT, name
    shutil.copytree(space / "killed", space / "wider")
    pair = {"dev": True, "execution": {"num_workers": 2, "zero_stage": 1}}
    finish(inputs, space, [
        ("killed", {}, ""), ("driverless", {}, ""), ("whole", {}, ""), ("narrower", {}, ""),
        ("wider", {"execution": {"num_workers": 2, "zero_stage": 3}}, ""), ("pair", pair, ""), ("lost", pair, "worker"),
        ("damaged", {"plan": "damaged", "execution": {"num_workers": 2}}, ""),
        ("reranker", {"stage": "reranker", "execution": {"num_workers": 2}}, ""),
    ])  # fmt: skip
    return space


def finish(inputs: Path, workspace: Path, runs: Runs) -> None:
    driver = start(inputs, workspace, runs)
    try:
        assert driver.wait(timeout=800) == 0, log(workspace)
    finally:
        kill(driver, everything=True)


def log(workspace: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(workspace.parent.glob("space-*.log")))


def told(workspace: Path, name: str) -> str:
    """What the driver that finished a run printed of it."""
    return log(workspace).rpartition(f"{name}: begins\n")[2].partition(f"\n{name}: ")[0]


def continued(workspace: Path, name: str) -> list[tuple[int, int]]:
    """Steps that a run's parts went on from, with the number of workers each had; 0 is a beginning."""
    lines = re.findall(r"(?:begins|continues after step (\d+)): \d+ steps, (\d+) worker", told(workspace, name))
    return [(int(step or 0), int(workers)) for step, workers in lines]


def untimed(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key not in TIMED} for record in records]


def result(workspace: Path, name: str) -> tuple[dict, Path, list[dict]]:
    file, = (workspace / name).glob("*/manifest.json")
    artifact, manifest = file.parent, json.loads(file.read_text())
    directory = artifact / "parts" / manifest["partitions"][0]["directory"]
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return manifest, directory, records


@pytest.mark.parametrize("name", ["killed", "driverless"])
def test_killed_and_run_again_gives_the_same_weights_to_the_bit(workspace: Path, name: str) -> None:
    (whole, expected, records), (manifest, found, again) = (result(workspace, run) for run in ("whole", name))
    assert (found / "model/model.safetensors").read_bytes() == (expected / "model/model.safetensors").read_bytes()
    assert untimed(records) == untimed(again) and [record["step"] for record in again] == list(range(1, STEPS + 1))
    assert set(records[0]) >= {"loss", "loss_by_source", "grad_norm", "lr", "accuracy", "padding_share", *TIMED}
    assert manifest["facts"] == whole["facts"] and manifest["rows_in"] == sum(r["rows"] for r in records)
    assert continued(workspace, "whole") == [(0, 1)] and continued(workspace, name) == [(KILL_AT, 1)]


def test_a_lost_worker_is_replaced_and_gives_the_same_weights_to_the_bit(workspace: Path) -> None:
    (whole, expected, records), (manifest, found, again) = (result(workspace, name) for name in ("pair", "lost"))
    assert "lost a worker" in told(workspace, "lost")
    assert continued(workspace, "pair") == [(0, 2)] and continued(workspace, "lost") == [(0, 2), (KILL_AT, 2)]
    assert (found / "model/model.safetensors").read_bytes() == (expected / "model/model.safetensors").read_bytes()
    assert untimed(records) == untimed(again) and manifest["facts"] == whole["facts"]


@pytest.mark.parametrize("name", ["wider", "narrower", "pair"])
def test_other_workers_and_stages_lose_alike(workspace: Path, name: str) -> None:
    (_, expected, one), (manifest, directory, other) = (result(workspace, run) for run in ("whole", name))
    parts = {"wider": [(KILL_AT, 2)], "narrower": [(KILL_AT, 1)], "pair": [(0, 2)]}
    assert continued(workspace, name) == parts[name]
    assert [record["step"] for record in other] == list(range(1, STEPS + 1))
    for record, again in zip(one, other, strict=True):
        assert again["loss"] == pytest.approx(record["loss"], abs=1e-5)
        assert again["loss_by_source"] == pytest.approx(record["loss_by_source"], abs=1e-5)
        assert again["grad_norm"] == pytest.approx(record["grad_norm"], rel=1e-3)
        for same in ("rows", "tokens", "rows_seen", "tokens_seen", "lr", "epoch", "batch"):
            assert again[same] == record[same], same
    assert manifest["facts"]["steps"] == STEPS and (directory / "model/sparse_linear.pt").is_file()
    if name == "pair":
        return  # exports its best weights, not the last
    weights, others = (load_file(path / "model/model.safetensors") for path in (expected, directory))
    assert weights.keys() == others.keys()
    # Adam divides a gradient by its own size, so rounding is as large as a step where a gradient is nearly zero.
    distance = sum(float((weights[key] - others[key]).abs().sum()) for key in weights)
    assert distance < 1e-5 * sum(weight.numel() for weight in weights.values())


@pytest.mark.parametrize("name", ["pair", "lost"])
def test_the_best_weights_are_kept(workspace: Path, name: str) -> None:
    manifest, _, records = result(workspace, name)
    scores = {r["step"]: r["dev_ndcg_at_10"] for r in records if "dev_ndcg_at_10" in r}
    assert list(scores) == [4, 8, 12] and all(0 <= score <= 1 for score in scores.values())
    best = max(scores, key=lambda step: (scores[step], -step))
    assert manifest["facts"]["best_step"] == best
    assert manifest["facts"]["dev_ndcg_at_10"] == pytest.approx(scores[best], abs=1e-6)


def test_an_error_of_one_rank_ends_the_run_with_its_message_and_records(workspace: Path) -> None:
    """The other rank waits for it in a collective, half an hour if nothing ends it; so would this test."""
    lines = told(workspace, "damaged")
    assert re.search(r"^refused: finetune: step 4: the plan cannot be read \(.+\)\. Remove the artifact", lines, re.M)
    records = checkpoint.read_records(re.search(r"the records up to here are in (\S+)", lines)[1])
    assert [record["step"] for record in records] == [1, 2, 3]
    assert records[0]["loss"] == pytest.approx(result(workspace, "whole")[2][0]["loss"], abs=1e-5)


def test_a_group_goes_on_with_fewer_workers_when_a_node_is_lost(workspace: Path, inputs: Path) -> None:
    execution = {"num_workers": 2, "min_workers": 1, "zero_stage": 1}
    finish(inputs, workspace, [("shrunk", {"execution": execution}, "node")])
    assert "lost a node" in told(workspace, "shrunk")
    assert continued(workspace, "shrunk") == [(0, 2), (KILL_AT, 1)]
    (_, _, one), (_, _, other) = (result(workspace, run) for run in ("whole", "shrunk"))
    assert [record["step"] for record in other] == list(range(1, STEPS + 1))
    assert [record["loss"] for record in other] == pytest.approx([record["loss"] for record in one], abs=1e-5)


def test_a_reranker_trains_in_the_same_loop(workspace: Path) -> None:
    _, directory, records = result(workspace, "reranker")
    assert len(records) == 2 and "classifier.dense.weight" in load_file(directory / "model/model.safetensors")


def test_the_weights_learned_and_the_state_is_gone(workspace: Path) -> None:
    _, directory, records = result(workspace, "whole")
    assert records[-1]["loss"] < records[0]["loss"]
    assert not (directory.parents[1] / "state").exists()


if __name__ == "__main__":
    drive(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
