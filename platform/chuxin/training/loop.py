"""The training loop: batch by batch of the plan, backward, clip, step; records, checkpoints and the check for NaN.

Neither Ray nor DeepSpeed is imported: the engine is given, and so is what happens to records and checkpoints.
Leaves out: how the loss is computed (pretrain.py, finetune.py), where the loop runs (worker.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

from chuxin.errors import InputError
from chuxin.training.config import FinetuneConfig, PretrainConfig
from chuxin.training.finetune import Part
from chuxin.training.optimizer import learning_rate, set_learning_rate
from chuxin.training.plan_reader import Batch, Plan, ahead, read_batches
from chuxin.training.step import all_sum, rank, world_size

Record = dict[str, Any]


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
        """Updates the weights and clears the gradients."""

    def get_global_grad_norm(self) -> Any:
        """The norm before clipping, from ZeRO 1 on."""


class Objective(Protocol):
    """What the loop needs of an objective."""

    def prepare(self, batch: Batch) -> Any:
        """Turns a plan's rows into tensors, in the reader's thread."""

    def parts(self, prepared: Any, device: torch.device) -> list[Part]:
        """Returns the losses of a step, which sum over parts and ranks to the objective."""

    def tokens(self, prepared: Any) -> tuple[int, int]:
        """Tokens of this rank's share, without padding and with it."""


def train(
    engine: Engine, objective: Objective, plan: Plan, config: PretrainConfig | FinetuneConfig, done: int, total: int
) -> Iterator[Record]:
    """Trains steps done + 1 … total and yields each step's record, the same on every rank.

    Args:
        engine: Around the module that the objective runs.
        objective: Losses.
        plan: Batches.
        config: Rates, seed and execution.
        done: Steps that the weights have behind them.
        total: The run's last step; decides the learning rate's decay.

    Raises:
        InputError: The loss or the gradient is not finite; weights are those of the step before (with ZeRO of this
            step), the last checkpoint is untouched.
    """
    engine.module.train()
    batches = read_batches(plan, rank(), world_size(), done + 1, total)
    for batch, prepared in ahead(batches, lambda batch: (batch, objective.prepare(batch))):
        started = time.perf_counter()
        rate = learning_rate(config.optimizer, batch.step, total)
        set_learning_rate(engine.optimizer, rate)
        if config.dropout:
            torch.manual_seed(hash((config.seed, batch.step, rank())))
        record: Record = {"step": batch.step, "epoch": batch.epoch, "batch": batch.index, "rows": batch.rows}
        record |= _backward(engine, objective, prepared)
        if not math.isfinite(record["loss"]):
            raise _diverged(f"the loss is {record['loss']}", batch, rate)
        record["grad_norm"] = _step(engine, config)
        if not math.isfinite(record["grad_norm"]):
            raise _diverged(f"the gradient's norm is {record['grad_norm']}", batch, rate)
        seconds = time.perf_counter() - started
        record |= {"lr": rate, "seconds": round(seconds, 4), "tokens_per_second": round(record["tokens"] / seconds)}
        if "source" in batch.table.column_names and batch.table.num_rows:
            sources = set(batch.table["source"].to_pylist())
            record |= {"source": sources.pop()} if len(sources) == 1 else {}
        yield record


def set_dropout(module: nn.Module, probability: float) -> None:
    """Sets every dropout of a module, whatever its checkpoint's config says."""
    for inner in module.modules():
        if isinstance(inner, nn.Dropout):
            inner.p = probability


def watch(records: Iterator[Record], total: int, every: float, tell: Callable[[Record], None]) -> Iterator[Record]:
    """Passes records on and tells of one now and then, with the time elapsed and an estimate of the rest.

    Args:
        records: Of the steps.
        total: Steps of the whole run.
        every: Seconds between two that are told; the first and the last always are.
        tell: Gets the record with `total`, `elapsed` and `remaining` (both in seconds) added.
    """
    started, told, first = time.monotonic(), -math.inf, None
    for record in records:
        now = time.monotonic()
        first = first if first is not None else record["step"] - 1
        if now - told >= every or record["step"] == total:
            told = now
            elapsed = now - started
            left = elapsed / (record["step"] - first) * (total - record["step"])
            tell({**record, "total": total, "elapsed": elapsed, "remaining": left})
        yield record


def _backward(engine: Engine, objective: Objective, prepared: Any) -> Record:
    parts = objective.parts(prepared, engine.device)
    terms: dict[str, torch.Tensor] = {}
    for index, part in enumerate(parts):
        engine.set_gradient_accumulation_boundary(index == len(parts) - 1)
        loss, own = part()
        # DeepSpeed averages gradients over ranks; the objective is their sum.
        engine.backward(loss * world_size())
        terms = {name: terms[name] + value if terms else value for name, value in own.items()}
    tokens, padded = objective.tokens(prepared)
    summed = all_sum([*(float(value) for value in terms.values()), tokens, padded], engine.device)
    record: Record = dict(zip(terms, summed[:-2], strict=True))
    return record | {"tokens": int(summed[-2]), "padding_share": round(1 - summed[-2] / max(summed[-1], 1), 4)}


def _step(engine: Engine, config: PretrainConfig | FinetuneConfig) -> float:
    if config.execution.zero_stage:
        engine.step()
        return float(engine.get_global_grad_norm())
    limit = config.optimizer.max_grad_norm or math.inf
    norm = float(nn.utils.clip_grad_norm_(engine.module.parameters(), limit))
    if math.isfinite(norm):
        engine.step()
    return norm


def _diverged(problem: str, batch: Batch, rate: float) -> InputError:
    where = f"step {batch.step} (epoch {batch.epoch}, batch {batch.index})"
    remedy = f"Lower optimizer.learning_rate (it was {rate:.3g}) or look at this batch; the last checkpoint is kept"
    return InputError(where, problem, remedy)
