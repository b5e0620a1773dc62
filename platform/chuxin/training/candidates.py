"""What scoring needs of some texts: their outputs in order, cut out as leaves, gathered over ranks, gradients added up.

A loss over many candidates is computed for a tile of queries at a time, so that no more than a tile's scores live;
each tile's gradient is added to that of the whole before the next begins.
Leaves out: the scores and the loss (contrast.py).

Shapes: N texts, T their tokens, V their tokens but the first of each, W ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from chuxin.training.gather import gather, send_home
from chuxin.training.grad_cache import Cached
from chuxin.training.step import rank


class Texts(NamedTuple):
    """N texts with their outputs; those of heads that are not trained are None."""

    lengths_N: np.ndarray
    """int64, tokens of each, on the host."""
    ids_T: torch.Tensor
    """int64 token ids."""
    outputs: Cached

    def cut(self, begin: int, end: int) -> Texts:
        """Returns texts begin … end − 1; tensors are views."""
        first, last = (int(self.lengths_N[:bound].sum()) for bound in (begin, end))
        outputs = self.outputs.cut(begin, end, first, last)
        return Texts(self.lengths_N[begin:end], self.ids_T[first:last], outputs)

    def leaves(self) -> Texts:
        """Returns the same texts with outputs that begin a graph."""
        outputs = (None if one is None else one.detach().requires_grad_() for one in self.outputs)
        return self._replace(outputs=Cached(*outputs))


class Joined:
    """Texts of all ranks in the order of ranks, as leaves of a loss, and the way back of the gradient.

    Args:
        own: This rank's.
        room: Where the gradients with respect to them are added up.
        lengths_of_ranks: int64, tokens of every rank's texts, which the plan tells; none at all to take this rank's
            alone, whatever the number of ranks.
    """

    def __init__(self, own: Texts, room: Cached, lengths_of_ranks: Sequence[np.ndarray]) -> None:
        self.own_room = self.room = room
        self.texts, self.first, self.counts = own, 0, ()
        if len(lengths_of_ranks) < 2:
            return
        texts, tokens = ([int(count(one)) for one in lengths_of_ranks] for count in (len, np.sum))
        vectors = [count - of for count, of in zip(tokens, texts, strict=True)]
        self.counts, self.first = (texts, tokens, vectors), sum(texts[: rank()])
        lengths_P = np.concatenate(lengths_of_ranks)
        outputs = zip(own.outputs, self.counts, strict=True)
        cache = Cached(*(None if one is None else gather(one, counts) for one, counts in outputs))
        self.texts = Texts(lengths_P, gather(own.ids_T, tokens), cache)
        self.room = cache.zeros()

    def join(self, tensor_N: torch.Tensor) -> torch.Tensor:
        """Joins what there is one of a text, in the same order; values only."""
        return gather(tensor_N, self.counts[0]) if self.counts else tensor_N

    def send_home(self) -> None:
        """Adds the gradients with respect to this rank's texts, summed over the losses of all ranks; a collective."""
        for mine, whole, counts in zip(self.own_room, self.room, self.counts or [()] * 3, strict=True):
            if whole is not None and counts:
                mine += send_home(whole, counts)

    def bytes(self) -> int:
        """Memory that the other ranks' outputs and the gradients with respect to all take."""
        return self.texts.outputs.bytes() + self.room.bytes() if self.counts else 0
