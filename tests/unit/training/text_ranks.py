"""A tiny RetroMAE, a small written plan of texts, and the objective's steps on it, alone or as one of two gloo ranks.

    python text_ranks.py RANK WORLD DIRECTORY BUDGET    reads DIRECTORY/texts.parquet, writes RANK.pt

test_pretrain.py runs it as both.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from transformers import XLMRobertaConfig, XLMRobertaModel

from chuxin.models.encoder import M3Model, new_heads
from chuxin.models.retromae import RetroMAE
from chuxin.models.retromae_masks import Drawing
from chuxin.schema import PLAN_TEXTS
from chuxin.training.plan_reader import Plan, PlanFile, read_batches
from chuxin.training.pretrain import Rebuild

sys.path.insert(0, str(Path(__file__).parent))  # run as a script, imported by tests and by other scripts alike
import processes  # noqa: E402

VOCAB, SOURCES = 60, ("a", "b")
DRAWING = Drawing(1, 0.3, 0.5, VOCAB, VOCAB - 1, (0, 1, 2, VOCAB - 1))
# Slices of the rows of each batch. Of two ranks the second takes the odd slices: fewer rows, and none in the last.
SLICES = [[0, 1, 2, 0, 2, 0, 3], [0, 1, 2, 3, 0, 1], [0, 2, 0]]


def tiny(dropout: float = 0.2) -> RetroMAE:
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=60, pad_token_id=1, type_vocab_size=1, initializer_range=0.3,
    )  # fmt: skip
    model = M3Model(XLMRobertaModel(config, add_pooling_layer=False), *new_heads(16, 16, 0.5), heads_trained=False)
    return RetroMAE(model, seed=2, dropout=dropout).train()


def write_plan(directory: Path) -> None:
    """Texts of even slices are long, so that the first of two ranks has more to do; one has special tokens only."""
    draw = np.random.default_rng(0)
    rows = []
    for batch, slices in enumerate(SLICES):
        for row, part in enumerate(slices):
            ids = [0, *draw.integers(4, VOCAB - 1, draw.integers(1, 10 if part % 2 else 50)).tolist(), 2]
            ids = [0, 2] if (batch, row) == (1, 1) else ids
            rows.append({"epoch": 0, "batch": batch, "slice": part, "row": row, "passage_id": row, "offset": 0,
                         "source": SOURCES[row % 2], "length": len(ids), "token_ids": ids})  # fmt: skip
    processes.write_slices(directory / "texts.parquet", PLAN_TEXTS, rows, SLICES)


def plan(directory: Path) -> Plan:
    return Plan((PlanFile(str(directory / "texts.parquet"), len(SLICES)),), 4, VOCAB - 1, 52, "", SOURCES)


def steps(directory: Path, budget: int, rank: int = 0, world: int = 1) -> list[dict]:
    """Runs the objective's steps as the loop does; gradients are summed over ranks, weights stay."""
    module, results = tiny(), []
    for batch in read_batches(plan(directory), rank, world, 1, len(SLICES)):
        sent = []

        def send(loss: torch.Tensor, last: bool, sent: list[bool] = sent) -> None:
            sent.append(last)
            loss.backward()

        module.zero_grad()
        objective = Rebuild(module, DRAWING, budget, SOURCES)
        prepared = objective.prepare(batch)
        terms = objective.backward(prepared, torch.device("cpu"), send)
        gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        means, by_source = {name: mean.double() for name, mean in terms.means.items()}, terms.by_source.double()
        if world > 1:
            flat = torch.cat([gradient.flatten() for gradient in gradients.values()])
            for tensor in (flat, *means.values(), by_source):
                distributed.all_reduce(tensor)
            parts = flat.split([gradient.numel() for gradient in gradients.values()])
            gradients = {n: part.view_as(gradients[n]) for n, part in zip(gradients, parts, strict=True)}
        results.append({"means": means, "by_source": by_source, "gradients": gradients, "sent": sent,
                        "rows": batch.table.num_rows, "tokens": objective.tokens(prepared)})  # fmt: skip
    return results


def run_as(rank: int, world: int, directory: Path, budget: int) -> list[dict]:
    with processes.group(rank, world, directory):
        return steps(directory, budget, rank, world)


if __name__ == "__main__":
    processes.main(run_as)
