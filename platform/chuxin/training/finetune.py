"""The contrastive objective: a plan's batch becomes one loss over every rank's passages, in micro-batches.

Queries and passages are encoded together, sorted by length. Leaves out: what a batch is made of (group_batch.py), the
loss (tiles.py, contrast.py), how a micro-batch comes to its gradient (grad_cache.py), the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from chuxin.models.dropout import Dropout, token_keys
from chuxin.models.encoder import M3Model, Outputs
from chuxin.models.packed import Packed
from chuxin.training import grad_cache
from chuxin.training.config import FinetuneConfig
from chuxin.training.group_batch import GroupBatch, group_batch
from chuxin.training.micro import Part
from chuxin.training.objective import Sent, Terms
from chuxin.training.plan_reader import Batch, Plan
from chuxin.training.tiles import step_loss

Forward = Callable[[Packed, bool, Dropout | None], Outputs]
"""Packed texts, whether the heads are wanted, dropout → outputs: the model, or the engine around it."""


class Contrastive:
    """InfoNCE over the global batch, and what a config adds to it, for the dense vector or for all heads.

    Args:
        forward: Runs the model.
        config: The objective, and the micro-batches it runs in.
        plan: What will be trained on.
        special_ids: Of the tokenizer; these tokens have no sparse weight.
    """

    def __init__(self, forward: Forward, config: FinetuneConfig, plan: Plan, special_ids: Sequence[int]) -> None:
        self.forward, self.config, self.sources = forward, config, plan.sources
        self.special_ids = tuple(special_ids)

    def prepare(self, batch: Batch) -> GroupBatch:
        """Turns a plan's rows into arrays and micro-batches; runs in the reader's thread."""
        return group_batch(batch, self.sources, self.config.seed, self.config.execution.micro_batch_tokens)

    def tokens(self, batch: GroupBatch) -> tuple[int, int]:
        """Tokens of this rank's share, and those computed: the same, since nothing is padded."""
        return len(batch.ids_T), len(batch.ids_T)

    def backward(self, batch: GroupBatch, device: torch.device, send: Sent) -> Terms:
        """Computes the loss and sends every part of its gradient into the weights; collectives among ranks.

        Relations:
            With `execution.grad_cache` or without, whatever the micro-batches and the ranks, loss and summed gradients
            are those of one process that runs all texts at once.
        """
        config, keep_all = self.config, not self.config.execution.grad_cache
        return grad_cache.backward(
            batch.parts, self._compute,
            lambda cache: step_loss(batch, cache, config, self.special_ids, len(self.sources)),
            send, device, keep_all,
        )  # fmt: skip

    def _compute(self, part: Part) -> Outputs:
        dropout = None
        if self.config.dropout:
            lengths_N = part.packed.bounds_N1.diff().long()
            dropout = Dropout(self.config.dropout, token_keys(part.key_N, part.packed.position_T, lengths_N))
        return self.forward(part.packed, self.config.heads == "all", dropout)


def freeze_heads(model: M3Model) -> M3Model:
    """Freezes the two heads where only the dense vector is trained: AdamW would shrink them without a gradient."""
    for head in (model.sparse_linear, model.colbert_linear):
        head.requires_grad_(False)
    return model
