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
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from torch import distributed

from chuxin import telemetry
from chuxin.artifacts import Artifact
from chuxin.errors import InputError
from chuxin.files import filesystem, is_local, read_json, write_json
from chuxin.runner import Context
from chuxin.training import assembly, checkpoint, progress
from chuxin.training.assembly import Assembly
from chuxin.training.best import scored
from chuxin.training.config import FinetuneConfig, PretrainConfig, RerankerConfig, TrainingConfig
from chuxin.training.deepspeed import deepspeed_config, new_engine, whole_weights
from chuxin.training.ema import Average
from chuxin.training.guard import Guard
from chuxin.training.loop import DEV, Record, Watched, train, watch
from chuxin.training.optimizer import check_schedule, new_optimizer
from chuxin.training.plan_checks import check_serves
from chuxin.training.plan_reader import Plan, open_plan
from chuxin.training.records import Records
from chuxin.training.run import Run
from chuxin.training.shards import set_optimizer_state
from chuxin.training.step import rank, world_size

TOLD_EVERY = 10.0
"""Seconds between progress lines."""


class Trained(NamedTuple):
    """What a worker holds while it trains."""

    assembly: Assembly
    engine: Any
    watched: Watched
    records: Records
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
    check_schedule(config.optimizer, _total(config, plan), ctx.name)
    check_serves(plan, uri, config, ctx.name)
    model = ctx.resolve(config.model)
    model = os.path.abspath(model) if os.path.isdir(model) else model
    dev = None if isinstance(config, PretrainConfig) or config.dev is None else ctx.resolve(config.dev.benchmark)
    dev = _absolute(dev) if dev is not None else None
    elastic = execution.min_workers is not None and execution.min_workers < execution.num_workers
    owner = checkpoint.claim(state)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"run": Run(ctx.name, config, plan, uri, model, dev, state, owner)},
        scaling_config=ScalingConfig(
            num_workers=(least, execution.num_workers) if elastic else execution.num_workers,
            use_gpu=execution.use_gpu, resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=ctx.name, storage_path=f"{state}/ray",
            failure_config=FailureConfig(max_failures=execution.max_failures),
        ),
    )  # fmt: skip
    try:
        with progress.followed(state, owner, ctx.log):
            trainer.fit()
    except TrainingFailedError:
        if progress.error_left(state, owner) is None:
            raise  # else it failed because of an error that can be told better
    error = progress.error_left(state, owner)
    if error is not None:
        fs, path = filesystem(_metrics(state, owner))
        if fs.exists(path):
            ctx.log(f"the records up to here are in {path}")
        raise InputError(f"{ctx.name}: {error.where}", error.problem, error.remedy)


def _total(config: TrainingConfig, plan: Plan) -> int:
    return min(plan.batches, config.max_steps or plan.batches)


def _metrics(state: str, owner: str) -> str:
    return f"{progress.told(state, owner)}/{checkpoint.METRICS}"


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
    if progress.error_left(run.state, run.owner) is not None:
        return  # Ray Train tries again what such an error ended; the driver raises it
    try:
        trained = _start(run, _load(run))
        _loop(run, trained)
        _export(run, trained)
    except InputError as error:
        progress.leave_error(run.state, run.owner, rank(), error)
        if not progress.all_left_one(run.state, run.owner, world_size()):
            # It is this rank's alone: the others wait for it in a collective, for half an hour, if the group is not
            # ended, which is what Ray Train does with one that failed.
            raise


def _load(run: Run) -> Assembly:
    """Loads what is trained. Raises InputError on all ranks if one of them could not."""
    failed: InputError | None = None
    try:
        device = ray.train.torch.get_device()
        loaded = assembly.assemble(run.config, run.model, run.plan, run.plan_uri, run.dev, device)
    except InputError as error:
        failed = error
    if world_size() > 1:
        errors: list[InputError | None] = [None] * world_size()
        distributed.all_gather_object(errors, failed)
        failed = next((error for error in errors if error is not None), None)
    if failed is not None:
        raise failed
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
    done = saved.step if saved else 0
    checkpoint.drop_unreached(run.state, run.owner, done)
    watched = Watched(Guard(config.max_loss_ratio, saved.recent if saved else ()), average, loaded.work)
    known = checkpoint.read_records(f"{saved.uri}/{checkpoint.METRICS}") if saved else []
    records = Records(None if rank() else _metrics(run.state, run.owner), known)
    return Trained(loaded, engine, watched, records, done)


def _loop(run: Run, trained: Trained) -> None:
    """Trains to the end; adds to the records, writes checkpoints, tells the driver and the metrics."""
    config, execution = run.config, run.config.execution
    total = _total(config, run.plan)
    told = progress.Teller(run.state, run.owner)
    if rank() == 0:
        begin = f"continues after step {trained.done}" if trained.done else "begins"
        shared = f"{world_size()} worker{'s' * (world_size() > 1)} with {execution.cpus_per_worker} CPU each"
        told.line(f"{begin}: {total} steps, {shared}, ZeRO {execution.zero_stage}, {config.dtype}")

    def tell(record: Record) -> None:
        if rank() == 0:
            told.line(_line(record))

    try:
        _follow(run, trained, total, tell)
    finally:
        trained.records.write()  # also those before a loss that is no number


def _follow(run: Run, trained: Trained, total: int, tell: Callable[[Record], None]) -> None:
    execution, records = run.config.execution, trained.records
    seen = {name: records.all[-1][name] if records.all else 0 for name in ("rows_seen", "tokens_seen")}
    for record in watch(_steps(run, trained, total), total, TOLD_EVERY, tell):
        step = record["step"]
        seen = {"rows_seen": seen["rows_seen"] + record["rows"], "tokens_seen": seen["tokens_seen"] + record["tokens"]}
        at_checkpoint = step % execution.checkpoint_every == 0 or step == total
        if at_checkpoint or DEV in record or step % execution.log_every == 0:
            records.add({**record, **seen})
        if rank() == 0:
            _tell_metrics(run.stage, record)
        if at_checkpoint:
            watched = trained.watched
            checkpoint.save(
                trained.engine, run.state, run.owner, step, records.all, list(watched.guard.recent),
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
    records, module, average = trained.records.all, trained.assembly.module, trained.watched.average
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
