"""The training stages: Ray Train starts the workers, DeepSpeed wraps the model, the loop trains, the driver commits.

A run's state is in `ctx.draft.state`: checkpoints (checkpoint.py) and, at the end, the export. A run that is killed,
driver included, continues from the newest complete checkpoint when the stage is run again, with whatever workers and
ZeRO stage it then has; a lost worker is replaced by Ray Train, or with `min_workers` done without, and the group
continues likewise. Leaves out: objectives and loop, which know nothing of Ray.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import distributed

from chuxin import telemetry
from chuxin.artifacts import Artifact, filesystem, is_local, read_json, write_json
from chuxin.errors import InputError
from chuxin.runner import Context
from chuxin.training import assembly, checkpoint, progress
from chuxin.training.assembly import Assembly
from chuxin.training.best import scored
from chuxin.training.config import FinetuneConfig, PretrainConfig, RerankerConfig, TrainingConfig
from chuxin.training.deepspeed import deepspeed_config, new_engine, whole_weights
from chuxin.training.ema import Average
from chuxin.training.guard import Guard
from chuxin.training.loop import DEV, Record, Watched, train, watch
from chuxin.training.optimizer import new_optimizer
from chuxin.training.plan_reader import Plan, open_plan
from chuxin.training.run import Run
from chuxin.training.shards import set_optimizer_state
from chuxin.training.step import all_max, rank, world_size

TOLD_EVERY = 10.0
"""Seconds between progress lines."""


class Trained(NamedTuple):
    """What a worker holds while it trains."""

    assembly: Assembly
    engine: Any
    watched: Watched
    records: list[Record]
    done: int
    """Steps that the weights have behind them when the worker begins."""


def pretrain(ctx: Context, config: PretrainConfig) -> None:
    """Pretrains the model by RetroMAE. The artifact holds model/ (with retromae.pt) and metrics.jsonl.

    Raises:
        InputError: The plan does not fit the model, or the loss is no number or exploded.
    """
    _run(ctx, config)


def finetune(ctx: Context, config: FinetuneConfig) -> None:
    """Trains the dense vector or all heads contrastively. The artifact holds model/ and metrics.jsonl.

    Raises:
        InputError: Plan, model and benchmark do not fit, or the loss is no number or exploded.
    """
    _run(ctx, config)


def refine(ctx: Context, config: FinetuneConfig) -> None:
    """Trains a finetuned model further: the same work under another config, plan and name. Raises as `finetune`."""
    _run(ctx, config)


def reranker(ctx: Context, config: RerankerConfig) -> None:
    """Trains a cross-encoder. The artifact holds model/ and metrics.jsonl. Raises as `finetune`."""
    _run(ctx, config)


def _run(ctx: Context, config: TrainingConfig) -> None:
    state = _absolute(ctx.draft.state)
    head = config.plan.partition(":")[0]
    artifact = ctx.inputs[head] if head in ctx.inputs else Artifact(config.plan)
    uri = _absolute(artifact.uri)
    files = [_absolute(file) for file in artifact.parts("plan")]
    plan = open_plan(uri, artifact.partitions(), files)
    done = read_json(f"{state}/export.json")
    if done is None:
        _fit(ctx, config, plan, uri, state)
        done = read_json(f"{state}/export.json")
    export = f"{state}/{done['directory']}"
    with ctx.draft.attempt("model") as attempt:
        _fetch(f"{export}/model", attempt.path("model"))
        _fetch(f"{export}/{checkpoint.METRICS}", attempt.path(checkpoint.METRICS))
        attempt.count(rows_in=done["rows"], rows_out=done["rows"], facts=done["facts"])


def _fit(ctx: Context, config: TrainingConfig, plan: Plan, uri: str, state: str) -> None:
    execution = config.execution
    gpus = ray.cluster_resources().get("GPU", 0)
    least = execution.min_workers or execution.num_workers
    if execution.use_gpu and gpus < least:
        problem = f"it needs {least} GPUs and the cluster has {gpus:g}"
        raise InputError(f"{ctx.name}.execution", problem, "Lower num_workers, or set use_gpu to false")
    resources = {"CPU": float(execution.cpus_per_worker), **({"GPU": 1.0} if execution.use_gpu else {})}
    model = ctx.resolve(config.model)
    model = os.path.abspath(model) if os.path.isdir(model) else model
    dev = None if isinstance(config, PretrainConfig) or config.dev is None else ctx.resolve(config.dev.benchmark)
    dev = _absolute(dev) if dev is not None else None
    elastic = execution.min_workers is not None and execution.min_workers < execution.num_workers
    trainer = TorchTrainer(
        _work,
        train_loop_config={"run": Run(ctx.name, config, plan, uri, model, dev, state, checkpoint.claim(state))},
        scaling_config=ScalingConfig(
            num_workers=(least, execution.num_workers) if elastic else execution.num_workers,
            use_gpu=execution.use_gpu, resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=ctx.name, storage_path=f"{state}/ray",
            failure_config=FailureConfig(max_failures=execution.max_failures),
        ),
    )  # fmt: skip
    progress.take_error(state)  # of a driver that was killed before it could raise it
    with progress.followed(state, ctx.log):
        trainer.fit()
    error = progress.take_error(state)
    if error is not None:
        raise InputError(f"{ctx.name}: {error.where}", error.problem, error.remedy)


def _line(record: Record) -> str:
    elapsed, left = (f"{int(record[key]) // 60}:{int(record[key]) % 60:02d}" for key in ("elapsed", "remaining"))
    dev = f"dev nDCG@10 {100 * record[DEV]:.1f}, " if DEV in record else ""
    return (
        f"step {record['step']}/{record['total']}, epoch {record['epoch']}, loss {record['loss']:.3f}, {dev}"
        f"lr {record['lr']:.2g}, {record['tokens_per_second']:,} tokens/s, {elapsed} elapsed, about {left} left"
    )


def _work(settings: dict[str, Run]) -> None:
    """Runs in each worker."""
    run = settings["run"]
    torch.set_num_threads(run.config.execution.cpus_per_worker)
    try:
        loaded = _load(run)
        if loaded is not None:
            trained = _start(run, loaded)
            _loop(run, trained)
            _export(run, trained)
    except InputError as error:
        # Not for Ray Train to try again: the driver raises it.
        progress.leave_error(run.state, error)


def _load(run: Run) -> Assembly | None:
    """Loads what is trained; None if another worker could not.

    Without agreement the others would wait for the failed one in DeepSpeed's first collective, for half an hour.
    """
    device = ray.train.torch.get_device()
    failed: InputError | None = None
    try:
        loaded = assembly.assemble(run.config, run.model, run.plan, run.plan_uri, run.dev, device)
    except InputError as error:
        failed = error
    if all_max(int(failed is not None), device):
        if failed is not None:
            raise failed
        return None
    return loaded


def _start(run: Run, loaded: Assembly) -> Trained:
    """Puts the engine around the model, both as the newest checkpoint has them."""
    config = run.config
    stage = config.execution.zero_stage
    found = [checkpoint.newest(run.state)]
    if world_size() > 1:
        # A run that was killed may just be finishing a checkpoint: all take the one that rank 0 saw.
        distributed.broadcast_object_list(found)
    saved, = found
    settings = deepspeed_config(stage, config.dtype == "bf16", config.optimizer.max_grad_norm)
    with checkpoint.opened(saved.uri) if saved else contextlib.nullcontext() as reader:
        if reader is not None:
            reader.put_weights(loaded.module)
        engine = new_engine(loaded.module, new_optimizer(loaded.module, config.optimizer), settings, loaded.tied())
        average = Average(loaded.module, config.ema_decay) if config.ema_decay is not None else None
        if reader is not None:
            set_optimizer_state(engine, stage, reader)
            if average is not None:
                average.restore(lambda name: reader(name, checkpoint.AVERAGE))
    watched = Watched(Guard(config.max_loss_ratio, saved.recent if saved else ()), average, loaded.work)
    records = checkpoint.read_records(f"{saved.uri}/{checkpoint.METRICS}") if saved else []
    return Trained(loaded, engine, watched, records, saved.step if saved else 0)


def _loop(run: Run, trained: Trained) -> None:
    """Trains to the end; adds to the records, writes checkpoints, tells the driver and the metrics."""
    config, execution, records = run.config, run.config.execution, trained.records
    total = min(run.plan.batches, config.max_steps or run.plan.batches)
    told = progress.Teller(run.state)
    if rank() == 0:
        begin = f"continues after step {trained.done}" if trained.done else "begins"
        shared = f"{world_size()} worker{'s' * (world_size() > 1)} with {execution.cpus_per_worker} CPU each"
        told.line(f"{begin}: {total} steps, {shared}, ZeRO {execution.zero_stage}, {config.dtype}")

    def tell(record: Record) -> None:
        if rank() == 0:
            told.line(_line(record))

    seen = {name: records[-1][name] if records else 0 for name in ("rows_seen", "tokens_seen")}
    for record in watch(_steps(run, trained, total), total, TOLD_EVERY, tell):
        step = record["step"]
        seen = {"rows_seen": seen["rows_seen"] + record["rows"], "tokens_seen": seen["tokens_seen"] + record["tokens"]}
        at_checkpoint = step % execution.checkpoint_every == 0 or step == total
        if at_checkpoint or DEV in record or step % execution.log_every == 0:
            records.append({**record, **seen})
        if rank() == 0:
            _tell_metrics(run.stage, record)
        if at_checkpoint:
            watched = trained.watched
            checkpoint.save(
                trained.engine, run.state, run.owner, step, records, list(watched.guard.recent),
                execution.zero_stage, execution.keep_checkpoints, watched.average,
            )  # fmt: skip
            ray.train.report({key: record[key] for key in ("step", "epoch", "loss", "grad_norm", "lr")})


def _steps(run: Run, trained: Trained, total: int) -> Iterator[Record]:
    """The records of the steps still to take, with dev scores."""
    config, loaded, engine = run.config, trained.assembly, trained.engine
    objective = assembly.new_objective(config, loaded, engine, run.plan)
    records = train(engine, objective, run.plan, config, trained.done, total, trained.watched)
    if loaded.score is None:
        return records
    forward = assembly.scored_output(config, engine)
    return scored(
        records, lambda: loaded.score(forward), config.dev.every, total, loaded.module, trained.watched.average,
        run.state, run.owner, trained.done,
    )  # fmt: skip


def _tell_metrics(stage: str, record: Record) -> None:
    for name, value in record.items():
        if isinstance(value, (int, float)):
            telemetry.gauge(f"train_{name}", float(value), {"stage": stage})
    for source, loss in record.get("loss_by_source", {}).items():
        telemetry.gauge("train_loss_by_source", loss, {"stage": stage, "source": source})


def _export(run: Run, trained: Trained) -> None:
    """Writes the model: the best weights if they were scored, else their average, else the last."""
    checkpoint.require_owner(run.state, run.owner)
    records, module, average = trained.records, trained.assembly.module, trained.watched.average
    last = records[-1]
    best = checkpoint.best(run.state, last["step"]) if run.dev is not None else None
    directory = f"export-{run.owner}"
    target = f"{run.state}/{directory}"
    averaged = average.in_place() if average is not None and best is None else contextlib.nullcontext()
    with averaged, whole_weights(module, run.config.execution.zero_stage):
        if rank() == 0:
            fs, path = filesystem(target)
            fs.makedirs(path, exist_ok=True)
            if best is not None:
                with checkpoint.opened(best.uri) as reader:
                    reader.put_weights(module)
            assembly.export(trained.assembly, f"{target}/model")
    if rank():
        return
    checkpoint.write_records(f"{target}/{checkpoint.METRICS}", records)
    final = {f"final_{key}": value for key, value in last.items() if key == "accuracy" or key.endswith("loss")}
    facts = {"steps": last["step"], **final, "rows": last["rows_seen"], "tokens": last["tokens_seen"]}
    if best is not None:
        facts |= {"best_step": best.step, DEV: best.score}
    checkpoint.require_owner(run.state, run.owner)
    write_json(f"{run.state}/export.json", {"directory": directory, "rows": last["rows_seen"], "facts": facts})


def _fetch(uri: str, target: str) -> None:
    """Copies a file or directory, local or not, to a local path."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.get(path, target, recursive=True)
    elif os.path.isdir(path):
        shutil.copytree(path, target)
    else:
        shutil.copyfile(path, target)


def _absolute(uri: str) -> str:
    # Ray Train's workers run in a directory of their own.
    return os.path.abspath(filesystem(uri)[1]) if is_local(uri) else uri
