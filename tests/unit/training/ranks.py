"""Trains a tiny model on two written plans, alone or as one of several gloo ranks; test_ranks.py runs it as both.

    python ranks.py RANK WORLD DIRECTORY    reads DIRECTORY/groups.parquet and texts.parquet, writes RANK.pt
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, nn
from transformers import XLMRobertaConfig, XLMRobertaModel

from chuxin.models.encoder import M3Model, new_heads
from chuxin.models.retromae import Drawing, RetroMAE
from chuxin.training.config import FinetuneConfig, OptimizerConfig, PretrainConfig
from chuxin.training.finetune import Contrastive, freeze_heads
from chuxin.training.loop import train
from chuxin.training.optimizer import new_optimizer
from chuxin.training.plan_reader import Plan, PlanFile
from chuxin.training.pretrain import Rebuild

VOCAB, BATCHES = 60, 3
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=1, weight_decay=0.1)


class PlainEngine:
    """What DeepSpeed's engine does at ZeRO 0, in ten lines: average gradients at the boundary, step, clear."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer, self.device = module, optimizer, torch.device("cpu")
        self.at_boundary = True

    def __call__(self, *inputs):
        return self.module(*inputs)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.at_boundary = is_boundary

    def backward(self, loss: torch.Tensor) -> torch.Tensor:
        loss.backward()
        if self.at_boundary and distributed.is_initialized():
            for parameter in self.module.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= distributed.get_world_size()
        return loss

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def tiny() -> M3Model:
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=40, pad_token_id=1, type_vocab_size=1, initializer_range=0.3,
    )  # fmt: skip
    return M3Model(XLMRobertaModel(config, add_pooling_layer=False), *new_heads(16, 16, 0.02), heads_trained=False)


def run(
    kind: str, directory: Path, equal_passes: bool = False, budget: int = 48, done: int = 0,
    weights: dict | None = None,
) -> dict:  # fmt: skip
    """Trains on every batch and returns records, the last step's gradients and the weights."""
    model = freeze_heads(tiny())
    model.load_state_dict(weights or model.state_dict())
    if kind == "groups":
        config = FinetuneConfig("", "", OPTIMIZER, seed=1, temperature=0.1, dtype="fp32")
        module = model
    else:
        config = PretrainConfig("", "", OPTIMIZER, seed=1, dtype="fp32")
        module = RetroMAE(model, 1, 0.0)
    for inner in module.modules():
        if isinstance(inner, nn.Dropout):
            inner.p = 0.0
    engine = PlainEngine(module, new_optimizer(module, OPTIMIZER))
    gradients: dict = {}

    def keep(*_) -> None:
        gradients.update({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})

    engine.optimizer.register_step_pre_hook(keep)
    if kind == "groups":
        objective = Contrastive(model, engine, 0.1, 1, budget, equal_passes)
    else:
        drawing = Drawing(1, 0.3, 0.5, VOCAB, VOCAB - 1, 1, (0, 1, 2, VOCAB - 1))
        objective = Rebuild(engine, drawing, budget, equal_passes)
    plan = Plan((PlanFile(str(directory / f"{kind}.parquet"), BATCHES),), 4, VOCAB - 1, 30, "")
    records = list(train(engine, objective, plan, config, done, BATCHES))
    return {"records": records, "gradients": gradients, "weights": module.state_dict()}


def run_all(directory: Path) -> dict:
    return {(kind, equal): run(kind, directory, equal) for kind in ("groups", "texts") for equal in (False, True)}


def run_as(rank: int, world: int, directory: Path) -> dict:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = distributed.FileStore(str(directory / "store"), world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=100))
    try:
        return run_all(directory)
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, world, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.save(run_as(rank, world, directory), directory / f"{rank}.pt")
