"""The RetroMAE objective: a plan's batch becomes one loss a micro-batch, masks drawn ahead in the reader's thread.

Leaves out: the model (models/retromae.py), the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from chuxin.models.retromae import Drawing, Masks, draw_masks
from chuxin.training.finetune import Part
from chuxin.training.plan_reader import Batch, token_lists
from chuxin.training.step import all_max, all_sum, micro_batches


class TextBatch(NamedTuple):
    """A rank's share of a RetroMAE batch in micro-batches, and how many tokens it predicts."""

    micro: list[Masks]
    tokens: int
    masked: int
    predicted: int


class Rebuild:
    """Encoder's and decoder's cross-entropy, each a mean over its tokens of the global batch, summed.

    Args:
        forward: Masks → summed losses of encoder and decoder; a RetroMAE module or the engine around it.
        drawing: How masks are drawn.
        budget: Tokens of a micro-batch, padding included.
        equal_passes: Every rank must run equally many passes (ZeRO-2 and ZeRO-3 communicate in each).
    """

    def __init__(
        self, forward: Callable[[Masks], tuple[torch.Tensor, torch.Tensor]], drawing: Drawing, budget: int,
        equal_passes: bool,
    ) -> None:  # fmt: skip
        self.forward, self.drawing, self.budget, self.equal_passes = forward, drawing, budget, equal_passes

    def prepare(self, batch: Batch) -> TextBatch:
        """Cuts a plan's rows into micro-batches and draws their masks; runs in the reader's thread."""
        texts = token_lists(batch.table["token_ids"])
        places = [(batch.epoch, batch.step, row) for row in batch.table["row"].to_pylist()]
        lengths = [len(text) for text in texts]
        micro = [
            draw_masks([texts[i] for i in part], [places[i] for i in part], self.drawing)
            for part in micro_batches(lengths, self.budget)
        ]
        masked = sum(int(masks.masked_BL.sum()) for masks in micro)
        return TextBatch(micro, sum(lengths), masked, sum(int(masks.predicted_BL.sum()) for masks in micro))

    def parts(self, batch: TextBatch, device: torch.device) -> list[Part]:
        """Returns a loss for every micro-batch; they add up to the objective."""
        masked, predicted = all_sum([batch.masked, batch.predicted], device)
        micro = list(batch.micro)
        wanted = all_max(len(micro), device) if self.equal_passes else 1
        nothing = np.array([self.drawing.special_ids[0]])
        while len(micro) < max(wanted, 1):
            micro.append(draw_masks([nothing], [(0, 0, 0)], self.drawing))
        return [lambda masks=masks: self._loss(masks, device, masked, predicted) for masks in micro]

    def tokens(self, batch: TextBatch) -> tuple[int, int]:
        """Tokens of this rank's share, without padding and with it."""
        return batch.tokens, sum(masks.input_ids_BL.numel() for masks in batch.micro)

    def _loss(
        self, masks: Masks, device: torch.device, masked: float, predicted: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mlm, rebuilt = self.forward(masks.to(device))
        encoder, decoder = mlm / max(masked, 1.0), rebuilt / max(predicted, 1.0)
        loss = encoder + decoder
        return loss, {"loss": loss.detach(), "encoder_loss": encoder.detach(), "decoder_loss": decoder.detach()}
