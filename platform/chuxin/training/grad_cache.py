"""GradCache: a loss over all texts of a batch in the memory of one micro-batch (Gao et al. 2021).

The outputs of all micro-batches are computed, most of them without a graph; the loss and its gradient with respect
to the outputs follow; then each micro-batch runs again with its graph and sends sum(output · gradient) backward.
Dropout follows from keys (models/dropout.py), so the second run drops what the first did and no generator's state
has to be kept. The loss sees plain leaves either way: with every graph kept this is a plain step, micro-batch by
micro-batch.
Leaves out: the loss (finetune.py), the micro-batches (micro.py).

Shapes: N texts, T their tokens, V their tokens but the first of each, H and D widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from chuxin.models.encoder import Outputs
from chuxin.training.micro import Part
from chuxin.training.objective import Sent


class Cached(NamedTuple):
    """The outputs of all texts in their order, or gradients with respect to them; fp32, without a graph."""

    dense_NH: torch.Tensor
    weight_T: torch.Tensor | None
    vector_VD: torch.Tensor | None

    def zeros(self) -> Cached:
        """Room to add gradients up in."""
        return Cached(*(None if one is None else torch.zeros_like(one) for one in self))

    def cut(self, text: int, text_end: int, token: int, token_end: int) -> Cached:
        """Returns views of texts text … text_end − 1, whose tokens are token … token_end − 1."""
        bounds = ((text, text_end), (token, token_end), (token - text, token_end - text_end))
        return Cached(*(None if one is None else one[a:b] for one, (a, b) in zip(self, bounds, strict=True)))

    def bytes(self) -> int:
        """Memory these tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self if tensor is not None)


Loss = Callable[[Cached], tuple[Cached, Any]]
"""Outputs → gradients of this rank's loss with respect to them, and whatever else is of interest."""


def backward(
    parts: Sequence[Part], compute: Callable[[Part], Outputs], loss: Loss, send: Sent, device: torch.device,
    keep_all: bool,
) -> Any:  # fmt: skip
    """Runs a step's forward and backward passes.

    Args:
        parts: Micro-batches of all texts, fillers included; at least one.
        compute: Runs the model on a part that is on `device`.
        loss: Called once, on the outputs of all texts.
        send: Called once a part, also for fillers, so that ranks with equally many parts stay in step.
        device: Where the model is.
        keep_all: Keep every part's graph, as a plain step does, instead of the last one's.

    Returns:
        What `loss` returned besides gradients.

    Relations:
        Loss and gradients equal those of one backward pass through `loss` of all outputs, whatever the parts, and
        with `keep_all` or without; without it, each part but the last is computed twice: 4/3 of the work.
    """
    kept: list[tuple[Part, Cached]] = []
    cache: Cached | None = None
    for index, part in enumerate(parts):
        part = part.to(device)
        with torch.set_grad_enabled(keep_all or index == len(parts) - 1):
            outputs = _without_firsts(compute(part), part)
        cache = cache or _room(parts, outputs)
        for place, output, whole in zip(_places(part), outputs, cache, strict=True):
            if whole is not None:
                # A filler has no place: what it computed is thrown away.
                whole[place] = output.detach()[: len(place)]
        if outputs.dense_NH.requires_grad:
            kept.append((part, outputs))
        del outputs, output
    gradients, result = loss(cache)
    del cache

    left = len(parts)
    while kept:
        part, outputs = kept.pop()
        left -= 1
        send(_surrogate(outputs, gradients, part), left == 0)
        del outputs
    for part in parts[:left]:
        part = part.to(device)
        left -= 1
        send(_surrogate(_without_firsts(compute(part), part), gradients, part), left == 0)
    return result


def _without_firsts(outputs: Outputs, part: Part) -> Cached:
    vector_TD = outputs.vector_TD
    return Cached(outputs.dense_NH, outputs.weight_T, None if vector_TD is None else vector_TD[part.later_V])


def _places(part: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return part.text_N, part.token_T, part.vector_V


def _room(parts: Sequence[Part], like: Cached) -> Cached:
    sizes = (sum(len(place) for place in places) for places in zip(*map(_places, parts), strict=True))
    rooms = zip(like, sizes, strict=True)
    return Cached(*(None if one is None else one.new_zeros((size, *one.shape[1:])) for one, size in rooms))


def _surrogate(outputs: Cached, gradients: Cached, part: Part) -> torch.Tensor:
    """A number whose gradient with respect to the weights is the loss's through this part's outputs."""
    total = outputs.dense_NH.new_zeros(())
    for place, output, gradient in zip(_places(part), outputs, gradients, strict=True):
        if output is not None:
            # A filler's outputs count nothing, but all of its graph is run.
            total = total + ((output * gradient[place]).sum() if len(place) else output.sum() * 0.0)
    return total
