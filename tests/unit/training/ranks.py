"""A tiny model, a small written plan of groups, and the objective's steps on it, alone or as one of two gloo ranks.

    python ranks.py RANK WORLD DIRECTORY    reads DIRECTORY/groups.parquet, writes RANK.pt

test_ranks.py runs it as both; test_finetune.py and test_grad_cache.py take model and plan from here.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from transformers import XLMRobertaConfig, XLMRobertaModel

from chuxin.models.encoder import M3Model, new_heads
from chuxin.schema import PLAN_GROUPS
from chuxin.training.config import FinetuneConfig, OptimizerConfig, TrainExecution
from chuxin.training.finetune import Contrastive
from chuxin.training.plan_reader import Batch, Plan, PlanFile, read_batches

sys.path.insert(0, str(Path(__file__).parent))  # run as a script, imported by tests and by other scripts alike
import processes  # noqa: E402

VOCAB, SPECIAL = 60, (0, 1, 2, 3)
SOURCES = ("a", "b")
# Slices of the rows of each batch. Of two ranks the second takes the odd slices: fewer rows, and none in the last.
SLICES = [[0, 1, 2, 0, 2, 0, 3], [0, 1, 2, 3, 0, 1], [0, 2, 0]]
BASE = FinetuneConfig("", "", OptimizerConfig(learning_rate=1e-2, warmup_steps=1), seed=1, temperature=0.1,
                      dtype="fp32", execution=TrainExecution(micro_batch_tokens=80))  # fmt: skip
CACHED = replace(BASE.execution, grad_cache=True)
CASES = {
    "dense": BASE,
    "dense, cached": replace(BASE, execution=CACHED, dropout=0.2),
    "dense, all options": replace(
        BASE, execution=CACHED, distill="kl_div", teacher_temperature=2.0, false_negative_margin=0.5,
        query_to_query=True, passage_to_passage=True, matryoshka_dims=(8, 16), hardness=3.0,
    ),
    "all heads": replace(BASE, heads="all"),
    "all heads, cached": replace(
        BASE, heads="all", self_distill_from=2, distill="m3_kd_loss", execution=CACHED, dropout=0.2,
        query_to_query=True,
    ),
    "own negatives": replace(BASE, heads="all", self_distill_from=1, in_batch_negatives=False, execution=CACHED),
}  # fmt: skip


def tiny() -> M3Model:
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=60, pad_token_id=1, type_vocab_size=1, initializer_range=0.3,
    )  # fmt: skip
    return M3Model(XLMRobertaModel(config, add_pooling_layer=False), *new_heads(16, 16, 0.5), heads_trained=True)


def write_plan(directory: Path) -> None:
    """Groups of 2 to 4 passages; passages of even slices are long, so that the first of two ranks has more to do."""
    draw = np.random.default_rng(0)

    def ids(longest: int) -> list[int]:
        return [0, *draw.integers(4, VOCAB, draw.integers(1, longest)).tolist(), 2]

    groups: list[dict] = []
    for batch, slices in enumerate(SLICES):
        for row, part in enumerate(slices):
            scores = draw.normal(size=4).round(3).tolist() if row % 3 else [None] * 4
            passages = [
                {"passage_id": 9, "text_hash": 1000 * batch + 10 * row + n,
                 "token_ids": ids(8 if part % 2 else 40), "score": scores[n]}
                for n in range(2 + row % 3)
            ]  # fmt: skip
            texts = [ids(6), *(passage["token_ids"] for passage in passages)]
            groups.append({
                "epoch": 0, "batch": batch, "slice": part, "row": row, "source": SOURCES[row % 2],
                "query_id": 100 + row, "query_hash": 9000 + row, "query_ids": texts[0],
                "lengths": [len(text) for text in texts], "passages": passages,
            })  # fmt: skip
    # False negatives by text: another query's positive, or negative, has the hash of this one's positive.
    groups[1]["passages"][0]["text_hash"] = groups[0]["passages"][0]["text_hash"]
    groups[-1]["passages"][1]["text_hash"] = groups[-2]["passages"][0]["text_hash"]
    processes.write_slices(directory / "groups.parquet", PLAN_GROUPS, groups, SLICES)


def plan(directory: Path) -> Plan:
    return Plan((PlanFile(str(directory / "groups.parquet"), len(SLICES)),), 4, VOCAB - 1, 40, "", SOURCES)


def step(model: M3Model, config: FinetuneConfig, batch: Batch, world: int = 1) -> dict:
    """Runs one step of the objective as the loop does; gradients are summed over ranks, weights stay."""
    calls = {"forward": 0, "send": []}

    def forward(*arguments):
        calls["forward"] += 1
        return model(*arguments)

    def send(loss: torch.Tensor, last: bool) -> None:
        calls["send"].append(last)
        loss.backward()

    model.zero_grad()
    objective = Contrastive(forward, config, Plan((), 4, 0, 0, "", SOURCES), SPECIAL)
    prepared = objective.prepare(batch)
    terms = objective.backward(prepared, torch.device("cpu"), send)
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    means, by_source = {name: mean.double() for name, mean in terms.means.items()}, terms.by_source.double()
    if world > 1:
        for tensor in (*gradients.values(), *means.values(), by_source):
            distributed.all_reduce(tensor)
    return {"means": means, "by_source": by_source, "gradients": gradients, "cached_bytes": terms.cached_bytes,
            "parts": len(prepared.parts), "own_parts": sum(len(part.text_N) > 0 for part in prepared.parts), **calls}


def steps(config: FinetuneConfig, directory: Path, rank: int = 0, world: int = 1) -> list[dict]:
    model = tiny()
    return [step(model, config, batch, world)
            for batch in read_batches(plan(directory), rank, world, 1, len(SLICES))]  # fmt: skip


def run_as(rank: int, world: int, directory: Path) -> dict:
    with processes.group(rank, world, directory):
        return {name: steps(config, directory, rank, world) for name, config in CASES.items()}


if __name__ == "__main__":
    processes.main(run_as)
