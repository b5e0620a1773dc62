"""How much of the device's arithmetic a step uses: FLOPs of the model against the rate of plain matrix products.

MFU as Chowdhery et al. (2022, PaLM, appendix B) define it: FLOPs that the model needs, whatever was computed twice
(GradCache, activation checkpointing), over what the devices could have done in the time. The rate is measured here
and not taken from a data sheet. Leaves out: embeddings, logits over the vocabulary (pretraining's MFU is too low by
them) and losses.

Shapes: N texts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from chuxin.models.reranker import CrossEncoder
from chuxin.training.plan_reader import Batch

MEASURED_S, ROUNDS = 0.2, 10
"""Seconds that the rate is measured for, and in how many rounds."""


class Work(NamedTuple):
    """What a step's FLOPs follow from, and what one device can do."""

    linear: int
    """Parameters of the trained linear layers."""
    layers: int
    hidden: int
    rate: float
    """Floating-point operations a second in matrix products, of one device."""
    pairs: bool = False
    """Whether the model reads each query together with each of its passages."""

    def flops(self, lengths_of_ranks: Sequence[np.ndarray]) -> float:
        """FLOPs of forward and backward pass over texts of these lengths.

        6 for each parameter of a linear layer and token (2 forward, 4 backward), and for attention 12 × layers ×
        hidden × length² a text: PaLM's 12 · L · H · Q · T for each token. Positions attend to all others, so nothing
        is halved.
        """
        lengths_N = np.concatenate(lengths_of_ranks).astype(np.float64)
        attention = 12.0 * self.layers * self.hidden * float((lengths_N**2).sum())
        return 6.0 * self.linear * float(lengths_N.sum()) + attention

    def mfu(self, batch: Batch, seconds: float) -> float:
        """MFU of a step on a batch, 0 to 1: of its texts, or of its pairs if the model reads those."""
        return self.share(batch.pairs_of_ranks() if self.pairs else batch.lengths_of_ranks, seconds)

    def share(self, lengths_of_ranks: Sequence[np.ndarray], seconds: float) -> float:
        """MFU of a step on texts of these lengths that took `seconds` on as many devices as there are ranks, 0 to 1."""
        return self.flops(lengths_of_ranks) / (seconds * self.rate * len(lengths_of_ranks))


def measure_work(module: nn.Module, layers: int, hidden: int, dtype: torch.dtype) -> Work:
    """Counts a module's linear parameters and measures its device; before ZeRO-3 takes the weights away."""
    pairs = isinstance(module, CrossEncoder)
    read = module.roberta if pairs else module  # a cross-encoder's classifier sees the first token only
    trained = (inner.weight for inner in read.modules() if isinstance(inner, nn.Linear))
    linear = sum(weight.numel() for weight in trained if weight.requires_grad)
    return Work(linear, layers, hidden, matmul_rate(next(module.parameters()).device, dtype), pairs)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measures floating-point operations a second of square matrix products, large enough to fill the device.

    The fastest of ten rounds counts: whatever else the machine does must not make the device look slow and MFU high
    (2.7 was seen on two cores that ten processes used).
    """
    size = 8192 if device.type == "cuda" else 512
    generator = torch.Generator(device).manual_seed(1)
    # Random numbers, as weights are: a GPU multiplies constants faster, since fewer bits change.
    left, right = (torch.randn(size, size, device=device, dtype=dtype, generator=generator) for _ in range(2))

    def products(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    products(2)  # libraries load and choose their kernels
    count = max(1, round(MEASURED_S / ROUNDS / products(1)))
    return 2.0 * size**3 * count / min(products(count) for _ in range(ROUNDS))
