"""The training stages: Ray Train starts the workers, DeepSpeed wraps the model, the loop trains, the driver commits.

A run's state is in `ctx.draft.state`: checkpoints (checkpoint.py) and, at the end, the export. A run that is killed,
driver included, continues from the newest complete checkpoint when the stage is run again; a lost worker is replaced
by Ray Train and the group continues likewise. Leaves out: objectives and loop, which know nothing of Ray.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from chuxin import telemetry
from chuxin.artifacts import Artifact, filesystem, is_local, read_json, write_json
from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer, save_model
from chuxin.models.encoder import M3Model
from chuxin.models.location import local_directory
from chuxin.models.retromae import Drawing, RetroMAE
from chuxin.models.vocabulary import require_special_tokens, vocabulary_fingerprint
from chuxin.runner import Context
from chuxin.training import checkpoint, progress
from chuxin.training.config import FinetuneConfig, PretrainConfig
from chuxin.training.deepspeed import deepspeed_config, new_engine, whole_weights
from chuxin.training.finetune import Contrastive, freeze_heads
from chuxin.training.loop import Objective, Record, set_dropout, train, watch
from chuxin.training.optimizer import new_optimizer
from chuxin.training.plan_reader import Plan, check_fits, open_plan
from chuxin.training.pretrain import Rebuild
from chuxin.training.step import all_max, rank, world_size

EXTRA_FILE = "retromae.pt"
"""Decoder and head of a pretraining, beside the model they were trained with."""
TOLD_EVERY = 10.0
"""Seconds between progress lines."""
THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait sleep. Spinning, two of them took 26 s for a step of 1.8 s on two cores that others used too."""
GAUGES = ("loss", "encoder_loss", "decoder_loss", "accuracy", "lr", "grad_norm", "tokens_per_second", "step")


class Run(NamedTuple):
    """All that a worker is told."""

    stage: str
    config: PretrainConfig | FinetuneConfig
    plan: Plan
    plan_uri: str
    model: str
    state: str
    owner: str


def pretrain(ctx: Context, config: PretrainConfig) -> None:
    """Pretrains the model by RetroMAE. The artifact holds model/ (with retromae.pt) and metrics.jsonl.

    Raises:
        InputError: The plan does not fit the model, or the loss is not finite.
    """
    _run(ctx, config)


def finetune(ctx: Context, config: FinetuneConfig) -> None:
    """Trains the dense vector contrastively. The artifact holds model/ and metrics.jsonl.

    Raises:
        InputError: The plan does not fit the model, or the loss is not finite.
    """
    _run(ctx, config)


def _run(ctx: Context, config: PretrainConfig | FinetuneConfig) -> None:
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


def _fit(ctx: Context, config: PretrainConfig | FinetuneConfig, plan: Plan, uri: str, state: str) -> None:
    execution = config.execution
    gpus = ray.cluster_resources().get("GPU", 0)
    if execution.use_gpu and gpus < execution.num_workers:
        problem = f"it needs {execution.num_workers} GPUs and the cluster has {gpus:g}"
        raise InputError(f"{ctx.name}.execution", problem, "Lower num_workers, or set use_gpu to false")
    resources = {"CPU": float(execution.cpus_per_worker), **({"GPU": 1.0} if execution.use_gpu else {})}
    model = ctx.resolve(config.model)
    model = os.path.abspath(model) if os.path.isdir(model) else model
    trainer = TorchTrainer(
        _work,
        train_loop_config={"run": Run(ctx.name, config, plan, uri, model, state, checkpoint.claim(state))},
        scaling_config=ScalingConfig(
            num_workers=execution.num_workers, use_gpu=execution.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=ctx.name, storage_path=f"{state}/ray",
            failure_config=FailureConfig(max_failures=execution.max_failures),
            worker_runtime_env={"env_vars": THREADS},
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
    return (
        f"step {record['step']}/{record['total']}, epoch {record['epoch']}, loss {record['loss']:.3f}, "
        f"lr {record['lr']:.2g}, {record['tokens_per_second']:,} tokens/s, {elapsed} elapsed, about {left} left"
    )


def _work(settings: dict[str, Run]) -> None:
    """Runs in each worker."""
    run = settings["run"]
    torch.set_num_threads(run.config.execution.cpus_per_worker)
    try:
        _train(run)
    except InputError as error:
        # Not for Ray Train to try again: the driver raises it.
        progress.leave_error(run.state, error)


def _train(run: Run) -> None:
    config, execution = run.config, run.config.execution
    loaded = _load(run)
    if loaded is None:
        return
    model, tokenizer = loaded
    module = _new_retromae(run, model) if isinstance(config, PretrainConfig) else model
    set_dropout(module, config.dropout)
    settings = deepspeed_config(execution.zero_stage, config.dtype == "bf16", config.optimizer.max_grad_norm)
    tied = [model.backbone.embeddings.word_embeddings.weight] if isinstance(module, RetroMAE) else []
    engine = new_engine(module, new_optimizer(module, config.optimizer), settings, tied)
    objective = _new_objective(config, model, engine, tokenizer)

    saved = checkpoint.newest(run.state)
    records = checkpoint.restore(engine, saved, execution.zero_stage) if saved else []
    _loop(run, engine, objective, records, saved.step if saved else 0)
    _export(run, model, module, tokenizer, records)


def _load(run: Run) -> tuple[M3Model, Any] | None:
    """Loads the model and checks that the plan fits it; None if another worker could not.

    Without agreement the others would wait for the failed one in DeepSpeed's first collective, for half an hour.
    """
    device = ray.train.torch.get_device()
    failed: InputError | None = None
    try:
        model, tokenizer = load_model(run.model, device=device), load_tokenizer(run.model)
        require_special_tokens(tokenizer, run.model)
        vocab_size, vocabulary = model.backbone.config.vocab_size, vocabulary_fingerprint(tokenizer)
        check_fits(run.plan, run.plan_uri, vocabulary, vocab_size, model.max_length, world_size())
    except InputError as error:
        failed = error
    if all_max(int(failed is not None), device):
        if failed is not None:
            raise failed
        return None
    return freeze_heads(model), tokenizer


def _loop(run: Run, engine: Any, objective: Objective, records: list[Record], done: int) -> None:
    """Trains to the end; adds to the records, writes checkpoints, tells the driver and the metrics."""
    config, execution = run.config, run.config.execution
    total = min(run.plan.batches, config.max_steps or run.plan.batches)
    told = progress.Teller(run.state)
    if rank() == 0:
        begin = f"continues after step {done}" if done else "begins"
        shared = f"{world_size()} worker{'s' * (world_size() > 1)} with {execution.cpus_per_worker} CPU each"
        told.line(f"{begin}: {total} steps, {shared}, ZeRO {execution.zero_stage}, {config.dtype}")

    def tell(record: Record) -> None:
        if rank() == 0:
            told.line(_line(record))

    seen = {name: records[-1][name] if records else 0 for name in ("rows_seen", "tokens_seen")}
    for record in watch(train(engine, objective, run.plan, config, done, total), total, TOLD_EVERY, tell):
        step = record["step"]
        seen = {"rows_seen": seen["rows_seen"] + record["rows"], "tokens_seen": seen["tokens_seen"] + record["tokens"]}
        at_checkpoint = step % execution.checkpoint_every == 0 or step == total
        if at_checkpoint or step % execution.log_every == 0:
            records.append({**record, **seen})
        if rank() == 0:
            for name in set(GAUGES) & set(record):
                telemetry.gauge(f"train_{name}", float(record[name]), {"stage": run.stage})
        if at_checkpoint:
            checkpoint.save(
                engine, run.state, run.owner, step, records, execution.zero_stage, execution.keep_checkpoints
            )
            ray.train.report({key: record[key] for key in ("step", "epoch", "loss", "grad_norm", "lr")})


def _new_retromae(run: Run, model: M3Model) -> RetroMAE:
    module = RetroMAE(model, run.config.seed, run.config.dropout)
    extra = Path(local_directory(run.model)) / EXTRA_FILE
    if extra.is_file():
        module.load_extra_state_dict(torch.load(extra, map_location="cpu", weights_only=True))
    return module.to(next(model.parameters()).device)


def _new_objective(config: PretrainConfig | FinetuneConfig, model: M3Model, engine: Any, tokenizer: Any) -> Objective:
    execution = config.execution
    if isinstance(config, FinetuneConfig):
        return Contrastive(
            model, engine, config.temperature, tokenizer.pad_token_id, execution.micro_batch_tokens,
            equal_passes=execution.zero_stage == 3,
        )  # fmt: skip
    require_special_tokens(tokenizer, tokenizer.name_or_path, ("mask",))
    drawing = Drawing(
        config.seed, config.encoder_mlm_probability, config.decoder_mlm_probability,
        model.backbone.config.vocab_size, tokenizer.mask_token_id, tokenizer.pad_token_id,
        tuple(sorted(tokenizer.all_special_ids)),
    )  # fmt: skip
    return Rebuild(engine, drawing, execution.micro_batch_tokens, equal_passes=execution.zero_stage >= 2)


def _export(
    run: Run, model: M3Model, module: torch.nn.Module, tokenizer: Any, records: list[Record]
) -> None:
    checkpoint.require_owner(run.state, run.owner)
    directory = f"export-{run.owner}"
    export = f"{run.state}/{directory}"
    with whole_weights(module, run.config.execution.zero_stage):
        if rank():
            return
        fs, path = filesystem(export)
        fs.makedirs(path, exist_ok=True)
        save_model(model, tokenizer, f"{export}/model")
        if isinstance(module, RetroMAE):
            with fs.open(f"{path}/model/{EXTRA_FILE}", "wb") as file:
                torch.save({key: value.cpu() for key, value in module.extra_state_dict().items()}, file)
    checkpoint.write_records(f"{export}/{checkpoint.METRICS}", records)
    last = records[-1]
    losses = {f"final_{key}": last[key] for key in ("loss", "encoder_loss", "decoder_loss", "accuracy") if key in last}
    facts = {"steps": last["step"], **losses, "rows": last["rows_seen"], "tokens": last["tokens_seen"]}
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
