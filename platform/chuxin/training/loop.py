"""The training loop: batch by batch of the plan, backward, clip, step, record.

Neither Ray nor DeepSpeed is imported: the engine is given, and so is what happens to records and checkpoints.
Leaves out: how the loss is computed (finetune.py, pretrain.py, rerank.py), where the loop runs (worker.py), dev
scores (dev.py).

Shapes: S sources of the plan.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import torch
from torch import nn

from chuxin.errors import InputError
from chuxin.training.config import TrainingConfig
from chuxin.training.ema import Average
from chuxin.training.guard import Guard
from chuxin.training.objective import Objective, Terms
from chuxin.training.optimizer import learning_rate, set_learning_rate
from chuxin.training.plan_reader import Batch, Plan, ahead, read_batches
from chuxin.training.speed import Work
from chuxin.training.step import all_sum, rank, world_size

Record = dict[str, Any]
DEV = "dev_ndcg_at_10"
"""The dev score's name in records."""


class Engine(Protocol):
    """What the loop needs of DeepSpeed's engine."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Says whether the next backward pass is the step's last."""

    def backward(self, loss: torch.Tensor) -> torch.Tensor:
        """Adds gradients; averages them over ranks at the boundary."""

    def step(self) -> None:
        """Updates the weights and clears the gradients; from ZeRO 1 on not if their norm is no number."""

    def get_global_grad_norm(self) -> Any:
        """The norm before clipping, from ZeRO 1 on."""


class Watched(NamedTuple):
    """What goes along with the weights from step to step."""

    guard: Guard
    average: Average | None = None
    work: Work | None = None
    """Tells `mfu`."""


def train(
    engine: Engine, objective: Objective, plan: Plan, config: TrainingConfig, done: int, total: int, watched: Watched
) -> Iterator[Record]:
    """Trains steps done + 1 … total and yields each step's record, the same on every rank.

    Args:
        engine: Around the module that the objective runs.
        objective: Losses.
        plan: Batches.
        config: Rates, seed and execution.
        done: Steps that the weights have behind them.
        total: The run's last step; decides the learning rate's decay.
        watched: Guard, average and arithmetic; they change with every step.

    Raises:
        InputError: The loss or the gradient's norm is no number, or the loss exploded, or the plan is damaged; weights
            are those of the step before, the last checkpoint is untouched.
    """
    engine.module.train()
    batches = _read(plan, done + 1, total)
    started = time.perf_counter()
    for batch, prepared in ahead(batches, lambda batch: (batch, objective.prepare(batch))):
        rate = learning_rate(config.optimizer, batch.step, total)
        set_learning_rate(engine.optimizer, rate)
        record: Record = {"step": batch.step, "epoch": batch.epoch, "batch": batch.index, "rows": batch.rows}
        record |= _backward(engine, objective, prepared, plan.sources)
        where = _name(batch, record)
        watched.guard.check_loss(record["loss"], where, rate)
        record["grad_norm"] = _step(engine, config)
        watched.guard.check_norm(record["grad_norm"], where, rate)
        if watched.average is not None:
            watched.average.update()
        # From the end of the step before, so that waiting for the plan counts; what is done with records does not.
        seconds = time.perf_counter() - started
        record |= {"lr": rate, "seconds": round(seconds, 4), "tokens_per_second": round(record["tokens"] / seconds)}
        if watched.work is not None:
            record["mfu"] = round(watched.work.mfu(batch, seconds), 4)
        yield record
        started = time.perf_counter()


def watch(records: Iterator[Record], total: int, every: float, tell: Callable[[Record], None]) -> Iterator[Record]:
    """Passes records on and tells of one now and then, with the time elapsed and an estimate of the rest.

    Args:
        records: Of the steps.
        total: Steps of the whole run.
        every: Seconds between two that are told; the first, the last and those with a dev score always are.
        tell: Gets the record with `total`, `elapsed` and `remaining` (both in seconds) added.
    """
    started, told, first = time.monotonic(), -math.inf, None
    for record in records:
        now = time.monotonic()
        first = first if first is not None else record["step"] - 1
        if now - told >= every or record["step"] == total or DEV in record:
            told = now
            elapsed = now - started
            left = elapsed / (record["step"] - first) * (total - record["step"])
            tell({**record, "total": total, "elapsed": elapsed, "remaining": left})
        yield record


def _read(plan: Plan, first: int, last: int) -> Iterator[Batch]:
    """This rank's batches; what is damaged in the plan's files names the step and is not tried again."""
    step = first
    try:
        for batch in read_batches(plan, rank(), world_size(), first, last):
            yield batch
            step = batch.step + 1
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's or the network's, which may come back; Arrow's own have no number
        remedy = "Remove the artifact and pack again"
        raise InputError(f"step {step}", f"the plan cannot be read ({str(error).splitlines()[0]})", remedy) from error


def _backward(engine: Engine, objective: Objective, prepared: Any, sources: tuple[str, ...]) -> Record:
    def send(loss: torch.Tensor, last: bool) -> None:
        engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over ranks; the objective is their sum.
        engine.backward(loss * world_size())

    terms = objective.backward(prepared, engine.device, send)
    real, computed = objective.tokens(prepared)
    tensors = [*terms.means.values(), *(() if terms.by_source is None else (terms.by_source,))]
    summed = all_sum([real, computed, terms.cached_bytes], engine.device, tensors)
    return _figures(terms, summed, sources)


def _figures(terms: Terms, summed: list[float], sources: tuple[str, ...]) -> Record:
    (real, computed, cached), means = summed[:3], summed[3 : 3 + len(terms.means)]
    losses = summed[3 + len(means) :]
    record: Record = dict(zip(terms.means, means, strict=True))
    if terms.by_source is not None:
        rows = zip(sources, losses[::2], losses[1::2], strict=True)
        record["loss_by_source"] = {source: loss / count for source, loss, count in rows if count}
    record |= {"tokens": int(real), "padding_share": round(1 - real / max(computed, 1.0), 4)}
    return record | ({"cached_bytes": int(cached)} if cached else {})


def _step(engine: Engine, config: TrainingConfig) -> float:
    if config.execution.zero_stage:
        engine.step()
        return float(engine.get_global_grad_norm())
    limit = config.optimizer.max_grad_norm or math.inf
    norm = float(nn.utils.clip_grad_norm_(engine.module.parameters(), limit))
    if math.isfinite(norm):
        engine.step()
    return norm


def _name(batch: Batch, record: Record) -> str:
    where = f"step {batch.step} (epoch {batch.epoch}, batch {batch.index}"
    sources = sorted(record.get("loss_by_source", ()))
    return where + (f", source{'s' * (len(sources) > 1)} {', '.join(sources)})" if sources else ")")
