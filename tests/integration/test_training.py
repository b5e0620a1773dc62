"""The real training loop on a real Ray: killed in several ways, run again with other workers, and losing one.

As a script it is the driver of some runs, which the tests start in a process group of its own:

    python tests/integration/test_training.py INPUTS WORKSPACE RUNS    RUNS: JSON list of [name, changes, kill] triples

`changes` to the base config's execution, or of it; with `kill` the driver kills one worker behind step 6.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from chuxin.runner import Stage
from chuxin.training.config import (
    DevConfig,
    FinetuneConfig,
    OptimizerConfig,
    RerankerConfig,
    TrainExecution,
)

ROOT = Path(__file__).resolve().parents[2]
STEPS, KILL_AT = 12, 6
MARK = f"*/state/checkpoints/step-{KILL_AT:08d}-*/complete.json"
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, schedule="wsd", decay_steps=4)
Runs = list[tuple[str, dict, bool]]
pytestmark = pytest.mark.integration


@dataclasses.dataclass(frozen=True)
class OneStage:
    """A recipe of nothing but a training."""

    workspace: str
    finetune: FinetuneConfig | None = None
    reranker: RerankerConfig | None = None


def recipe(inputs: str, workspace: str, name: str, changes: dict) -> OneStage:
    execution = TrainExecution(**{"checkpoint_every": KILL_AT, **changes.pop("execution", {})})
    start = (f"{inputs}/plan", f"{inputs}/model", OPTIMIZER, 1)
    if changes.pop("stage", "finetune") == "reranker":
        config = RerankerConfig(*start, dtype="fp32", max_steps=2, execution=execution)
        return OneStage(f"{workspace}/{name}", reranker=config)
    dev = DevConfig(f"{inputs}/benchmark", 4, 16, 64) if changes.pop("dev", False) else None
    config = FinetuneConfig(*start, temperature=0.05, dtype="fp32", dropout=0.1, ema_decay=0.8, dev=dev,
                            execution=execution, **changes)  # fmt: skip
    return OneStage(f"{workspace}/{name}", config)


def drive(inputs: str, workspace: str, runs: Runs) -> None:
    """Trains once for every run, each with its own workspace, in one Ray session."""
    import ray

    from chuxin import runner

    environment = {"env_vars": {"PYTHONPATH": str(ROOT / "platform")}}
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="warning",
             object_store_memory=100 * 2**20, runtime_env=environment)  # fmt: skip
    for name, changes, kill in runs:
        made = recipe(inputs, workspace, name, dict(changes))
        stage, = (f.name for f in dataclasses.fields(made) if f.name != "workspace" and getattr(made, f.name))
        if kill:
            threading.Thread(target=kill_worker, args=(Path(workspace) / name,), daemon=True).start()
        bound, = runner.bind(made, tuple(
            Stage(one, "finetune", f"chuxin.training.worker:{one}", 1) for one in ("finetune", "reranker")
        ))  # fmt: skip
        started = time.time()
        runner.run_here(bound, made)
        print(f"{name}: {stage} took {time.time() - started:.1f} s", flush=True)
    ray.shutdown()


def kill_worker(workspace: Path) -> None:
    """Kills a training worker of this driver once the checkpoint is complete."""
    while not list(workspace.glob(MARK)):
        time.sleep(0.01)
    worker = next(pid for pid in descendants(os.getpid()) if b"RayTrainWorker" in command(pid))
    os.kill(worker, signal.SIGKILL)
    print(f"killed worker {worker}", flush=True)


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
    """Kills a driver, alone or with everything Ray started for it."""
    for pid in {process.pid} | (descendants(process.pid) if everything else set()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 2 × 96, a plan of 12 batches of 40 groups of two or three passages, and a benchmark."""
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

    def row(batch: int, index: int, part: int) -> dict:
        key = 1000 * batch + 10 * index
        passages = [{"passage_id": key + n, "text_hash": key + n, "token_ids": text(60, 100), "score": None}
                    for n in range(2 + index % 2)]  # fmt: skip
        query = [0, *passages[0]["token_ids"][1:12], 2]  # so that there is something to learn
        return {"epoch": 0, "batch": batch, "slice": part, "row": index, "query_id": key, "query_hash": 10**6 + key,
                "source": "ab"[index % 2], "query_ids": query, "passages": passages,
                "lengths": [len(query), *(len(passage["token_ids"]) for passage in passages)]}  # fmt: skip

    slices = [[row(batch, index, part) for index in range(40) if index % 4 == part]
              for batch in range(STEPS) for part in range(4)]  # fmt: skip
    facts = {"batches": STEPS, "slices": 4, "vocabulary": vocabulary, "max_token_id": ids - 2, "max_row": "",
             "longest": 101, "longest_row": "", "sources": ["a", "b"], "without_negatives": None}  # fmt: skip
    draft = Draft(uri, "f" * 32, {}, print)
    with draft.attempt("epoch000-bucket0000") as attempt:
        attempt.write("plan", (pa.Table.from_pylist(rows, PLAN_GROUPS) for rows in slices), PLAN_GROUPS)
        attempt.count(facts=facts)
    draft.close()


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
    wider      the same death; run again with 2 workers and ZeRO 3
    narrower   2 workers and ZeRO 2 whose driver dies; run again with 1 worker and ZeRO 0
    lost       1 to 2 workers, of which one dies; with a dev benchmark
    reranker   2 steps of a cross-encoder
    """
    space = tmp_path_factory.mktemp("runs") / "space"
    two = {"execution": {"num_workers": 2, "zero_stage": 2}}
    doomed = {name: start(inputs, space, [(name, changes, False)])
              for name, changes in (("killed", {}), ("narrower", two))}  # fmt: skip
    deadline = time.monotonic() + 250
    while doomed:
        for name, process in list(doomed.items()):
            assert process.poll() is None and time.monotonic() < deadline, f"{name} ended too early"
            if list((space / name).glob(MARK)):
                kill(doomed.pop(name), everything=name == "killed")
                assert not list((space / name).glob("finetune-*/state/export.json")), f"{name} was killed too late"
        time.sleep(0.01)
    shutil.copytree(space / "killed", space / "wider")
    lost = {"dev": True, "execution": {"num_workers": 2, "min_workers": 1, "zero_stage": 1}}
    runs: Runs = [
        ("killed", {}, False), ("whole", {}, False), ("narrower", {}, False),
        ("wider", {"execution": {"num_workers": 2, "zero_stage": 3}}, False), ("lost", lost, True),
        ("reranker", {"stage": "reranker", "execution": {"num_workers": 2}}, False),
    ]  # fmt: skip
    driver = start(inputs, space, runs)
    try:
        assert driver.wait(timeout=500) == 0, log(space)
    finally:
        kill(driver, everything=True)
    return space


def log(workspace: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(workspace.parent.glob("space-*.log")))


def result(workspace: Path, name: str) -> tuple[dict, Path, list[dict]]:
    file, = (workspace / name).glob("*/manifest.json")
    artifact, manifest = file.parent, json.loads(file.read_text())
    directory = artifact / "parts" / manifest["partitions"][0]["directory"]
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return manifest, directory, records


def test_killed_and_run_again_gives_the_same_weights_to_the_bit(workspace: Path) -> None:
    (whole, expected, records), (manifest, found, again) = (result(workspace, name) for name in ("whole", "killed"))
    assert (found / "model/model.safetensors").read_bytes() == (expected / "model/model.safetensors").read_bytes()
    timed = {"seconds", "tokens_per_second", "mfu"}
    plain, other = ([{k: v for k, v in r.items() if k not in timed} for r in rows] for rows in (records, again))
    assert plain == other and [record["step"] for record in again] == list(range(1, STEPS + 1))
    assert set(records[0]) >= {"loss", "loss_by_source", "grad_norm", "lr", "accuracy", "padding_share", *timed}
    assert manifest["facts"] == whole["facts"] and manifest["rows_in"] == sum(r["rows"] for r in records)
    assert log(workspace).count(f"continues after step {KILL_AT}") == 4


@pytest.mark.parametrize("name", ["wider", "narrower", "lost"])
def test_other_workers_and_stages_lose_alike(workspace: Path, name: str) -> None:
    (_, expected, one), (manifest, directory, other) = (result(workspace, run) for run in ("whole", name))
    assert [record["step"] for record in other] == list(range(1, STEPS + 1))
    for record, again in zip(one, other, strict=True):
        assert again["loss"] == pytest.approx(record["loss"], abs=1e-5)
        assert again["loss_by_source"] == pytest.approx(record["loss_by_source"], abs=1e-5)
        assert again["grad_norm"] == pytest.approx(record["grad_norm"], rel=1e-3)
        for same in ("rows", "tokens", "rows_seen", "tokens_seen", "lr", "epoch", "batch"):
            assert again[same] == record[same], same
    assert manifest["facts"]["steps"] == STEPS and (directory / "model/sparse_linear.pt").is_file()
    if name == "lost":
        return  # exports its best weights, not the last
    weights, others = (load_file(path / "model/model.safetensors") for path in (expected, directory))
    assert weights.keys() == others.keys()
    # Adam divides a gradient by its own size, so rounding is as large as a step where a gradient is nearly zero.
    distance = sum(float((weights[key] - others[key]).abs().sum()) for key in weights)
    assert distance < 1e-5 * sum(weight.numel() for weight in weights.values())


def test_a_lost_worker_is_replaced_and_the_best_weights_are_kept(workspace: Path) -> None:
    manifest, _, records = result(workspace, "lost")
    assert "killed worker" in log(workspace)
    scores = {r["step"]: r["dev_ndcg_at_10"] for r in records if "dev_ndcg_at_10" in r}
    assert list(scores) == [4, 8, 12] and all(0 <= score <= 1 for score in scores.values())
    best = max(scores, key=lambda step: (scores[step], -step))
    assert manifest["facts"]["best_step"] == best
    assert manifest["facts"]["dev_ndcg_at_10"] == pytest.approx(scores[best], abs=1e-6)


def test_a_reranker_trains_in_the_same_loop(workspace: Path) -> None:
    _, directory, records = result(workspace, "reranker")
    assert len(records) == 2 and "classifier.dense.weight" in load_file(directory / "model/model.safetensors")


def test_the_weights_learned_and_the_state_is_gone(workspace: Path) -> None:
    _, directory, records = result(workspace, "whole")
    assert records[-1]["loss"] < records[0]["loss"]
    assert not (directory.parents[1] / "state").exists()


if __name__ == "__main__":
    drive(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
