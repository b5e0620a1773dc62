"""A tiny cross-encoder and the listwise objective's steps on a plan of groups, alone or as one of two gloo ranks.

    python pair_ranks.py RANK WORLD DIRECTORY    reads DIRECTORY/groups.parquet, writes RANK.pt

test_pair_ranks.py runs it as both. The plan is that of ranks.py, whose rows are unequally shared.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

from chuxin.errors import InputError
from chuxin.models.reranker import Classifier, CrossEncoder
from chuxin.training.config import OptimizerConfig, RerankerConfig, TrainExecution
from chuxin.training.plan_reader import read_batches
from chuxin.training.rerank import Listwise

sys.path.insert(0, str(Path(__file__).parent))  # run as a script and imported by the test alike
import processes  # noqa: E402
import ranks  # noqa: E402

BASE = RerankerConfig("", "", OptimizerConfig(learning_rate=1e-2, warmup_steps=1), seed=1, dtype="fp32",
                      execution=TrainExecution(micro_batch_tokens=150))  # fmt: skip
CASES = {
    "labels": BASE,
    "a teacher, dropout": replace(BASE, distill=0.5, teacher_temperature=2.0, dropout=0.2),
    "one group a pass": replace(BASE, execution=TrainExecution(micro_batch_tokens=1)),
}
TOO_LONG = 40
"""Tokens of a pair that only the first rank's rows go beyond."""


def tiny() -> CrossEncoder:
    model = CrossEncoder(ranks.tiny().backbone, Classifier(16))
    model.classifier.draw(3, 0.5)
    return model


def steps(config: RerankerConfig, directory: Path, rank: int = 0, world: int = 1) -> list[dict]:
    """Runs the objective's steps as the loop does; gradients are summed over ranks, weights stay."""
    model, results = tiny(), []
    calls: list[int] = []

    def forward(*arguments):
        calls.append(1)
        return model(*arguments)

    plan = ranks.plan(directory)
    objective = Listwise(forward, config, plan, 60)
    for batch in read_batches(plan, rank, world, 1, plan.batches):
        sent = []

        def send(loss: torch.Tensor, last: bool, sent: list[bool] = sent) -> None:
            sent.append(last)
            loss.backward()

        model.zero_grad()
        calls.clear()
        prepared = objective.prepare(batch)
        terms = objective.backward(prepared, torch.device("cpu"), send)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        means, by_source = {name: mean.double() for name, mean in terms.means.items()}, terms.by_source.double()
        if world > 1:
            for tensor in (*gradients.values(), *means.values(), by_source):
                distributed.all_reduce(tensor)
        results.append({"means": means, "by_source": by_source, "gradients": gradients, "send": sent,
                        "forward": len(calls), "own": sum(len(part.source_B) > 0 for part in prepared.passes),
                        "tokens": objective.tokens(prepared)[0]})  # fmt: skip
    return results


def refused(directory: Path, rank: int, world: int) -> str:
    """What the objective says to a pair that is too long, whichever rank holds it."""
    plan = ranks.plan(directory)
    objective = Listwise(tiny(), BASE, plan, TOO_LONG)
    batch = next(read_batches(plan, rank, world, 1, 1))
    try:
        objective.backward(objective.prepare(batch), torch.device("cpu"), lambda loss, last: None)
    except InputError as error:
        return str(error)
    return "nothing"


def run_as(rank: int, world: int, directory: Path) -> dict:
    with processes.group(rank, world, directory):
        found = {name: steps(config, directory, rank, world) for name, config in CASES.items()}
        return {**found, "refused": refused(directory, rank, world)}


if __name__ == "__main__":
    processes.main(run_as)
