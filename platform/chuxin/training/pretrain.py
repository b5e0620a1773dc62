"""The RetroMAE objective: a plan's batch becomes one loss a micro-batch of packed texts.

Which tokens are maskable is found in the reader's thread; masks are drawn on the device, from keys that follow from
(seed, step, row). Leaves out: the model (models/retromae.py), the loop.

Shapes: N texts of a micro-batch, S sources of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from chuxin.models.packed import moved, pinned
from chuxin.models.retromae import Losses
from chuxin.models.retromae_masks import Drawing, Texts, lay_out
from chuxin.training.group_batch import text_keys
from chuxin.training.micro import micro_batches, passes
from chuxin.training.objective import Sent, Terms
from chuxin.training.plan_reader import Batch, token_lists
from chuxin.training.step import all_sum


class Part(NamedTuple):
    """One micro-batch."""

    texts: Texts
    source_N: torch.Tensor
    """int64, place of each text's source among the plan's; empty if the pass only fills up."""
    masked_N: torch.Tensor
    """fp32, tokens of each text that the encoder predicts, at least 1: what its sum of losses is divided by."""
    maskable_N: torch.Tensor
    """The same of the decoder."""


class TextBatch(NamedTuple):
    """A rank's share of a batch."""

    parts: list[Part]
    """As many on every rank."""
    tokens: int
    masked: int
    maskable: int


class Rebuild:
    """Encoder's and decoder's cross-entropy, each a mean over its tokens of the global batch, summed.

    Every rank runs equally many passes: ZeRO-2 and ZeRO-3 communicate in each.

    Args:
        forward: Texts → losses; a RetroMAE module or the engine around it.
        drawing: How masks are drawn; its seed decides dropout too.
        budget: Tokens of a micro-batch.
        sources: The plan's; losses are added up for each.
    """

    def __init__(
        self, forward: Callable[[Texts], Losses], drawing: Drawing, budget: int, sources: Sequence[str]
    ) -> None:
        self.forward, self.drawing, self.budget, self.sources = forward, drawing, budget, sources

    def prepare(self, batch: Batch) -> TextBatch:
        """Cuts a plan's rows into micro-batches; runs in the reader's thread."""
        table = batch.table
        texts = token_lists(table["token_ids"])
        lengths = [len(text) for text in texts]
        row_N = table["row"].to_numpy().astype(np.int64)
        keys_N = text_keys(self.drawing.seed, batch.step, row_N, np.zeros_like(row_N))
        source_N = pc.index_in(table["source"], pa.array(self.sources, pa.string())).to_numpy().astype(np.int64)
        parts = [
            self._part([texts[i] for i in chosen], keys_N[chosen], source_N[chosen])
            for chosen in micro_batches(lengths, self.budget)
        ]
        masked, maskable = (sum(sum(getattr(part.texts, name)) for part in parts) for name in ("masked", "maskable"))
        # A text of special tokens only: it predicts nothing, so its losses and gradients are exactly 0.
        nothing = [np.array(self.drawing.special_ids[:1])], np.zeros(1, np.int32), np.zeros(0, np.int64)
        wanted = passes(batch.lengths_of_ranks, self.budget)
        parts += [self._part(*nothing) for _ in range(wanted - len(parts))]
        return TextBatch(parts, sum(lengths), masked, maskable)

    def tokens(self, batch: TextBatch) -> tuple[int, int]:
        """Tokens of this rank's share, and those computed: the same, since nothing is padded."""
        return batch.tokens, batch.tokens

    def backward(self, batch: TextBatch, device: torch.device, send: Sent) -> Terms:
        """Computes the loss and sends it backward, micro-batch by micro-batch."""
        masked, maskable = (max(count, 1.0) for count in all_sum([batch.masked, batch.maskable], device))
        means = {name: torch.zeros((), device=device) for name in ("loss", "encoder_loss", "decoder_loss")}
        by_source = torch.zeros(len(self.sources), 2, device=device)
        for index, part in enumerate(batch.parts):
            part = moved(part, device)
            losses = self.forward(part.texts)
            encoder, decoder = losses.encoder / masked, losses.decoder / maskable
            send(encoder + decoder, index == len(batch.parts) - 1)
            for name, value in zip(means, (encoder + decoder, encoder, decoder), strict=True):
                means[name] += value.detach()
            if len(part.source_N):
                text_N = losses.encoder_N / part.masked_N + losses.decoder_N / part.maskable_N
                by_source.index_add_(0, part.source_N, torch.stack([text_N, torch.ones_like(text_N)], 1))
        return Terms(means, by_source)

    def _part(self, texts: list[np.ndarray], keys_N: np.ndarray, source_N: np.ndarray) -> Part:
        laid = lay_out(texts, keys_N, self.drawing)
        counts = (torch.tensor(count, dtype=torch.float32).clamp_(min=1.0) for count in (laid.masked, laid.maskable))
        return pinned(Part(laid, torch.from_numpy(source_N), *counts))
