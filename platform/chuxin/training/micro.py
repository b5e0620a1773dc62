"""Micro-batches: a rank's texts sorted by length and cut at a budget of real tokens, each packed without padding.

Queries and passages go together. Ranks run equally many forward passes, or ZeRO-3 waits for ever: the plan knows the
lengths of all ranks' texts, so the number follows without asking, and a short rank fills up with passes over one
token whose outputs are thrown away.
Leaves out: the forward pass (models), the order of passes (grad_cache.py).

Shapes: N texts, T their tokens, V their tokens but the first of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from chuxin.models.packed import Packed, moved, pack, pinned


class Part(NamedTuple):
    """One micro-batch, and where its outputs stand among those of all this rank's texts."""

    packed: Packed
    key_N: torch.Tensor
    """int32, one a text, from which its dropout follows."""
    text_N: torch.Tensor
    """int64, place of each text; empty if the pass only fills up."""
    token_T: torch.Tensor
    """int64, place of each token among all texts' tokens; empty likewise."""
    vector_V: torch.Tensor
    """int64, place of each token but the firsts among all texts' such tokens."""
    later_V: torch.Tensor
    """int64, those tokens in this micro-batch."""

    def to(self, device: torch.device) -> Part:
        """Moves everything to a device."""
        return moved(self, device)


def micro_batches(lengths: Sequence[int] | np.ndarray, budget: int) -> list[np.ndarray]:
    """Cuts texts into batches of similar length within a budget of real tokens.

    Args:
        lengths: Tokens of each text.
        budget: Most tokens of a batch; a longer text makes a batch of its own.

    Returns:
        Text indices of each batch, none empty, longest texts first: running out of memory comes first too.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    total = np.cumsum(np.asarray(lengths, np.int64)[order])
    batches, start = [], 0
    while start < len(order):
        used = int(total[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(total, used + budget, side="right")))
        batches.append(order[start:end])
        start = end
    return batches


def passes(lengths_of_ranks: Sequence[Sequence[int] | np.ndarray], budget: int) -> int:
    """Forward passes that every rank runs: the most micro-batches any of them has, and at least one.

    Args:
        lengths_of_ranks: Tokens of each text, for every rank.
        budget: As for `micro_batches`.
    """
    return max([1, *(len(micro_batches(lengths, budget)) for lengths in lengths_of_ranks)])


def parts(texts: Sequence[np.ndarray], keys_N: np.ndarray, budget: int, wanted: int) -> list[Part]:
    """Packs texts into micro-batches, and as many empty ones behind them as are wanted.

    Args:
        texts: Token ids of each text; may be none at all.
        keys_N: One dropout key a text, int32.
        budget: As for `micro_batches`.
        wanted: Passes to run, from `passes`.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    start_N = np.cumsum(lengths) - lengths
    made = []
    for batch in micro_batches(lengths, budget):
        packed = pack([texts[i] for i in batch])
        position, repeated = packed.position_T.numpy(), np.repeat(batch, lengths[batch])
        token_T = start_N[repeated] + position
        later_V = np.flatnonzero(position)
        # Each text before a token, its own included, has one token that is left out.
        vector_V = (token_T - repeated - 1)[later_V]
        places = (keys_N[batch].astype(np.int32), batch, token_T, vector_V, later_V)
        made.append(pinned(Part(packed, *(torch.from_numpy(np.ascontiguousarray(place)) for place in places))))
    return made + [_filler()] * (wanted - len(made))


def _filler() -> Part:
    nothing = torch.zeros(0, dtype=torch.int64)
    return Part(pack([np.zeros(1, np.int64)]), torch.zeros(1, dtype=torch.int32), *[nothing] * 4)
