"""A tiny regression under the loop's protocols, and an engine that does what DeepSpeed's does at ZeRO 0.

    python engines.py RANK WORLD DIRECTORY    trains DIRECTORY/plan.parquet as one of several ranks, writes RANK.pt
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import distributed, nn

from chuxin.models.packed import Packed
from chuxin.schema import PLAN_TEXTS
from chuxin.training.config import OptimizerConfig, PretrainConfig, TrainExecution
from chuxin.training.dev import on_all_ranks
from chuxin.training.ema import Average
from chuxin.training.guard import Guard
from chuxin.training.loop import Watched, train
from chuxin.training.objective import Sent, Terms
from chuxin.training.optimizer import new_optimizer
from chuxin.training.plan_reader import Batch, Plan, PlanFile, token_lists
from chuxin.training.speed import Work
from chuxin.training.step import world_size

sys.path.insert(0, str(Path(__file__).parent))  # run as a script, imported by tests and by other scripts alike
import processes  # noqa: E402

STEPS = 8
TEXTS = [np.arange(length) for length in (3, 7, 1, 5, 5, 2, 9)]
SOURCES = ("a", "b")
WORK = Work(linear=100, layers=1, hidden=8, rate=1e9)


def config(**changes) -> PretrainConfig:
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, weight_decay=0.1)
    return PretrainConfig("", "", optimizer, seed=1, dtype="fp32", execution=TrainExecution(), **changes)


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 1))


def write_plan(path: Path) -> Plan:
    """Batches of 6 texts in 2 slices, from two sources."""
    draw = np.random.default_rng(0)
    rows = []
    for batch in range(STEPS):
        for row in range(6):
            ids = draw.integers(0, 50, draw.integers(2, 9)).tolist()
            rows.append({"epoch": 0, "batch": batch, "slice": row % 2, "row": row,
                         "passage_id": row, "offset": 0, "source": SOURCES[row % 3 > 0], "length": len(ids),
                         "token_ids": ids})  # fmt: skip
    table = pa.Table.from_pylist(rows, PLAN_TEXTS)
    with pq.ParquetWriter(path, PLAN_TEXTS) as writer:
        for batch in range(STEPS):
            writer.write_table(table.slice(6 * batch, 6))
    return plan_at(path)


def plan_at(path: Path) -> Plan:
    return Plan((PlanFile(str(path), STEPS),), 2, 49, 8, "", SOURCES)


class Part(NamedTuple):
    """What the objective needs of a batch."""

    texts: list[np.ndarray]
    sources: list[str]
    rows: int


class Squares:
    """Mean over a batch's texts of (output of the mean embedding − 1)², in one part a text."""

    def __init__(self, forward, fail_at: dict[int, float] | None = None) -> None:
        self.forward, self.fail_at, self.calls = forward, fail_at or {}, 0

    def prepare(self, batch: Batch) -> tuple[Part, int]:
        texts = token_lists(batch.table["token_ids"])
        return Part(texts, batch.table["source"].to_pylist(), batch.rows), batch.step

    def backward(self, prepared: tuple[Part, int], device: torch.device, send: Sent) -> Terms:
        part, step = prepared
        by_source, total = torch.zeros(len(SOURCES), 2), torch.zeros(())
        for index, (text, source) in enumerate(zip(part.texts, part.sources, strict=True)):
            loss = (self.forward(torch.tensor(text.tolist())).mean() - 1) ** 2 * self.fail_at.get(step, 1.0)
            send(loss / part.rows, index == len(part.texts) - 1)
            by_source[SOURCES.index(source)] += torch.tensor([loss.item(), 1.0])
            total += loss.detach() / part.rows
        return Terms({"loss": total, "half": total / 2}, by_source, 100)

    def tokens(self, prepared: tuple[Part, int]) -> tuple[int, int]:
        lengths = [len(text) for text in prepared[0].texts]
        return sum(lengths), 8 * len(lengths)


class PlainEngine:
    """Averages gradients at the boundary, steps, clears."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer, self.device = module, optimizer, torch.device("cpu")
        self.at_boundary = True

    def __call__(self, *inputs):
        return self.module(*inputs)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.at_boundary = is_boundary

    def backward(self, loss: torch.Tensor) -> torch.Tensor:
        loss.backward()
        for parameter in self.module.parameters() if self.at_boundary and world_size() > 1 else ():
            distributed.all_reduce(parameter.grad)
            parameter.grad /= world_size()
        return loss

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def get_global_grad_norm(self) -> None:
        return None


def run(plan: Plan, settings=None, fail_at=None, done=0, state=None, recent=()) -> tuple:
    """Returns the engine, what is watched, and the records to come."""
    settings = settings or config()
    inner = module()
    engine = PlainEngine(inner, new_optimizer(inner, settings.optimizer))
    if state is not None:
        inner.load_state_dict(state[0])
        engine.optimizer.load_state_dict(state[1])
    watched = Watched(Guard(settings.max_loss_ratio, recent), Average(inner, 0.9), WORK)
    return engine, watched, train(engine, Squares(engine, fail_at), plan, settings, done, STEPS, watched)


def text_sums(packed: Packed) -> torch.Tensor:
    """One row a text: its sum of ids and its length."""
    return torch.tensor([[float(text.sum()), len(text)] for text in packed.ids_T.split(packed.lengths)])


def run_as(rank: int, world: int, directory: Path) -> tuple:
    with processes.group(rank, world, directory):
        engine, watched, records = run(plan_at(directory / "plan.parquet"))
        records = list(records)
        # Dev texts: more than one micro-batch, and fewer texts than ranks.
        sums = [on_all_ranks(texts, text_sums, 12, torch.device("cpu")) for texts in (TEXTS, TEXTS[:1])]
        return records, engine.module.state_dict(), watched.average.held, sums


if __name__ == "__main__":
    processes.main(run_as)
