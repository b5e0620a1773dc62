"""The contrastive objective: a plan's batch becomes one InfoNCE loss over every rank's passages.

Leaves out: the sparse and multi-vector heads (they stay as they are), teacher scores, the loop.

Shapes: B queries of this rank, N passages of this rank, P of all ranks, H width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch

from chuxin.losses.infonce import infonce, same_text
from chuxin.models.encoder import M3Model
from chuxin.training.plan_reader import Batch, token_lists
from chuxin.training.step import all_max, encode, gather, micro_batches, padded_tokens

Part = Callable[[], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""Computes one loss to run backward, already divided by global counts, and its terms to log."""


class GroupBatch(NamedTuple):
    """A rank's share of a contrastive batch, ready to encode: queries first, then passages."""

    texts: list[np.ndarray]
    queries: int
    rows: int
    """Queries of all ranks."""
    positive_B: torch.Tensor
    """int64, each query's positive among this rank's passages."""
    query_hash_B: torch.Tensor
    passage_hash_N: torch.Tensor


class Contrastive:
    """InfoNCE with in-batch and given negatives over the global batch.

    Args:
        model: Its dense vector is trained.
        forward: Runs the model's forward pass; the model itself, or the engine around it.
        temperature: Of the loss.
        pad_id: Of the tokenizer.
        budget: Tokens of a micro-batch.
        equal_passes: Every rank must run equally many forward passes (ZeRO-3).
    """

    def __init__(
        self, model: M3Model, forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], temperature: float,
        pad_id: int, budget: int, equal_passes: bool,
    ) -> None:  # fmt: skip
        self.model, self.forward, self.temperature = model, forward, temperature
        self.pad_id, self.budget, self.equal_passes = pad_id, budget, equal_passes

    def prepare(self, batch: Batch) -> GroupBatch:
        """Turns a plan's rows into arrays; runs in the reader's thread."""
        table = batch.table
        counts = pc.list_value_length(table["passages"]).to_numpy().astype(np.int64)
        passages = pc.list_flatten(table["passages"])
        texts = token_lists(table["query_ids"]) + token_lists(pc.struct_field(passages, "token_ids"))
        return GroupBatch(
            texts, table.num_rows, batch.rows, torch.from_numpy(np.cumsum(counts) - counts),
            torch.from_numpy(table["query_hash"].to_numpy().copy()),
            torch.from_numpy(pc.struct_field(passages, "text_hash").to_numpy().copy()),
        )  # fmt: skip

    def parts(self, batch: GroupBatch, device: torch.device) -> list[Part]:
        """Returns the one loss of a step."""
        return [lambda: self._loss(batch, device)]

    def tokens(self, batch: GroupBatch) -> tuple[int, int]:
        """Tokens of this rank's share, without padding and with it."""
        lengths = [len(text) for text in batch.texts]
        return sum(lengths), padded_tokens(lengths, self.budget)

    def _loss(self, batch: GroupBatch, device: torch.device) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        extra = 0
        if self.equal_passes:
            own = max(1, len(micro_batches([len(text) for text in batch.texts], self.budget)))
            extra = all_max(own, device) - own + (not batch.texts)
        vectors = encode(batch.texts, self._embed, self.budget, self.pad_id, device, extra)
        query_BH, own_NH = vectors[: batch.queries], vectors[batch.queries :]
        passage_PH, start = gather(own_NH)
        passage_hash_P, _ = gather(batch.passage_hash_N.to(device))
        positive_B = batch.positive_B.to(device) + start
        excluded_BP = same_text(batch.query_hash_B.to(device), passage_hash_P[positive_B], passage_hash_P)
        losses_B = infonce(query_BH, passage_PH, positive_B, self.temperature, excluded_BP)
        # A rank without queries still owes the others its part in the gather's backward pass.
        loss = losses_B.sum() / batch.rows + 0.0 * passage_PH.sum()
        with torch.no_grad():
            correct = (query_BH @ passage_PH.T).argmax(1) == positive_B if batch.queries else losses_B
            accuracy = correct.sum() / batch.rows
        return loss, {"loss": loss.detach(), "accuracy": accuracy}

    def _embed(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        return self.model.dense(self.forward(ids_BL, mask_BL))


def freeze_heads(model: M3Model) -> M3Model:
    """Freezes the two heads, which no objective here trains: AdamW's decay would shrink them without a gradient."""
    for head in (model.sparse_linear, model.colbert_linear):
        head.requires_grad_(False)
    return model
