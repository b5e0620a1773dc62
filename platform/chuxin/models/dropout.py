"""Dropout as a function of what is dropped, not of a generator's state.

Whether an element falls follows from (seed, step, row, text, position, place in the model, channel) by a hash, so
a forward pass that is run again (GradCache, activation checkpointing, a resumed run, another number of workers)
drops the same elements and no generator has to be saved or replayed.

Shapes: T tokens, H width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Dropout(NamedTuple):
    """What the draws of one packed batch depend on."""

    probability: float
    """Share of elements set to 0; the rest is divided by what remains."""
    key_T: torch.Tensor
    """int32, one a token; see `token_keys`."""

    def __call__(self, states_TH: torch.Tensor, place: int) -> torch.Tensor:
        """Drops elements of a tensor [T, H]; `place` numbers the dropout layers of a model."""
        channel_H = torch.arange(states_TH.shape[-1], dtype=torch.int32, device=states_TH.device)
        channel_H = mix32(channel_H + _wrap(place * 0x9E3779B9))
        draw_TH = mix32(self.key_T[:, None] ^ channel_H[None, :])
        limit = int(self.probability * 2**32) - 2**31
        # Kept for the backward pass: one byte an element.
        return states_TH.masked_fill(draw_TH < limit, 0.0) / (1.0 - self.probability)


def mix32(value: torch.Tensor) -> torch.Tensor:
    """Mixes int32 numbers; a bijection (MurmurHash3's finaliser, Appleby 2011)."""
    value = (value ^ _shift(value, 16)) * _wrap(0x85EBCA6B)
    value = (value ^ _shift(value, 13)) * _wrap(0xC2B2AE35)
    return value ^ _shift(value, 16)


def token_keys(text_key_N: torch.Tensor, position_T: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
    """Returns int32 keys [T] from one int32 key a text [N] and the tokens' positions [T]."""
    tokens = position_T.shape[0]  # given, since a device would have to be asked for the sum
    key_T = text_key_N.to(torch.int32).repeat_interleave(lengths_N, output_size=tokens)
    return mix32(key_T ^ mix32(position_T.to(torch.int32) + 1))


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    # Torch shifts int32 arithmetically: the copies of the sign have to go, or x ^ (x >> 16) would lose it.
    return (value >> bits) & ((1 << (32 - bits)) - 1)


def _wrap(value: int) -> int:
    """Two's complement of 32 bits."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
