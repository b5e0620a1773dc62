"""RetroMAE's masks: which tokens the encoder does not see, and which the decoder sees at each position.

Every draw is a hash of the text's key and a place (dropout.py), so a text's masks are the same on a CPU and on CUDA,
beside any neighbours, in any micro-batch, on any rank and when they are drawn again. Shares are exact at every
length, special tokens are never masked and always visible. The host decides how many tokens are drawn and the device
which, so a device never has to be asked.

The decoder's sets come, as RetroMAE's own collator does it, from a pool of random sets from which each position takes
one; here a set is over the *other* tokens, so that with the position itself it has exactly the share's size. A tile
[t, W] of visible tokens is then pure copying: of a [W, W] matrix, row after row, the elements off the diagonal are the
positions' sets one after another. At 512 tokens that is 262 kB copied instead of 262 thousand draws.
Leaves out: what is computed with them (retromae.py, retromae_decoder.py).

Shapes: N texts, T tokens of all texts, M maskable and K masked tokens of all texts; of one text: W tokens that the
decoder reads, P sets of the pool, t positions of a tile.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from chuxin.models.dropout import mix32
from chuxin.models.packed import Packed, moved, pack

POOL = 128
"""Sets a text's positions share (128 in FlagEmbedding's collator, 256 in the authors' own)."""
_PLACE_BITS = 14
_LONGEST = 1 << _PLACE_BITS
# Of 2^32 fates of a masked token so many lie below 0.8 and 0.9.
_TO_MASK, _TO_OTHER = (int(share * 2**32) for share in (0.8, 0.9))
# Hashed is place × stride + key: streams of keys that follow each other have nothing in common (2^32 / golden ratio).
_STRIDE = 0x9E3779B9 - (1 << 32)
# Of the draws: each makes a stream of its own.
_CHOSEN, _FATE, _POOL = (0x51ED270B * n & 0x7FFFFFFF for n in range(1, 4))


class Drawing(NamedTuple):
    """What masks are drawn with, the same for every text."""

    seed: int
    encoder_probability: float
    decoder_probability: float
    vocab_size: int
    mask_id: int
    special_ids: tuple[int, ...]
    """Never masked, never hidden, and never what a token is replaced by; the mask's id is one of them."""


class Texts(NamedTuple):
    """N packed texts and where what is drawn of them stands."""

    packed: Packed
    key_N: torch.Tensor
    """int32, decides all draws of a text."""
    maskable_M: torch.Tensor
    """int64, the maskable tokens among the T, text by text: what the decoder predicts."""
    owner_M: torch.Tensor
    """int64, the text of each."""
    memory_T: torch.Tensor
    """int64, what the decoder reads, text by text: special tokens, then the maskable ones. T + n is text n's vector
    in place of its first token."""
    drawn_K: torch.Tensor
    """int64, with each text's maskable tokens in a random order: the places of the masked ones among the M."""
    maskable: tuple[int, ...]
    """Of each text, on the host."""
    masked: tuple[int, ...]
    drawing: Drawing

    def to(self, device: torch.device | str) -> Texts:
        """Moves its tensors to a device."""
        return moved(self, device)


class Hidden(NamedTuple):
    """What the decoder sees of one text, position by position; `visible` makes it a matrix."""

    visible_PW: torch.Tensor
    """bool [P, W - 1], the pool: the other tokens that are visible, special tokens first."""
    choice_M: torch.Tensor
    """int64, the set of each maskable token of the text."""
    special: int
    """Special tokens: a maskable token's place is so much later among the W."""


def lay_out(texts: Sequence[np.ndarray], key_N: np.ndarray | torch.Tensor, drawing: Drawing) -> Texts:
    """Packs texts and finds their maskable tokens: all but special tokens and the first, which is the text's vector.

    Args:
        texts: int token ids of each text, special tokens included.
        key_N: int32, from (seed, step, row) of each.
        drawing: Probabilities and ids.

    Returns:
        Texts on the CPU.

    Raises:
        ValueError: A text is longer than 16,384 tokens: draws are told apart by 14 bits of position.
    """
    packed = pack(texts)
    if max(packed.lengths, default=0) > _LONGEST:
        raise ValueError(f"a text of {max(packed.lengths)} tokens; masks can be drawn for {_LONGEST}")
    ids_T, position_T = packed.ids_T.numpy(), packed.position_T.numpy()
    owner_T = np.repeat(np.arange(len(texts)), packed.lengths)
    free_T = ~np.isin(ids_T, drawing.special_ids) & (position_T > 0)
    maskable = np.bincount(owner_T[free_T], minlength=len(texts))
    masked = np.array([count_masked(int(count), drawing.encoder_probability) for count in maskable], np.int64)
    place_T = np.where(position_T == 0, len(ids_T) + owner_T, np.arange(len(ids_T)))
    memory_T = place_T[np.lexsort((free_T, owner_T))]
    rank_M = np.arange(maskable.sum()) - np.repeat(np.cumsum(maskable) - maskable, maskable)
    drawn_K = np.flatnonzero(rank_M < np.repeat(masked, maskable))
    arrays = (np.flatnonzero(free_T), owner_T[free_T], memory_T, drawn_K)
    keys = torch.as_tensor(key_N, dtype=torch.int32)
    counts = tuple(maskable.tolist()), tuple(masked.tolist())
    return Texts(packed, keys, *map(torch.from_numpy, arrays), *counts, drawing)


def count_masked(tokens: int, probability: float) -> int:
    """The number of tokens masked of so many: the share rounded, and at least one, where there is one."""
    return min(tokens, max(1, round(tokens * probability)))


def mask_encoder(texts: Texts) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks each text's share of its maskable tokens.

    Returns:
        The ids [T] the encoder reads: of the masked, 80 % the mask, 10 % any token that is not special, 10 % as they
        were (Devlin et al. 2019); and the masked tokens' indices [K] among the T, text by text.
    """
    drawing, packed = texts.drawing, texts.packed
    number_M = packed.position_T[texts.maskable_M].to(torch.int32) * _STRIDE + texts.key_N[texts.owner_M]
    draw_M, fate_M = _unsigned(mix32(torch.stack([number_M ^ _CHOSEN, number_M ^ _FATE])))
    order_M = torch.argsort((texts.owner_M << 32) | draw_M, stable=True)
    place_K = order_M[texts.drawn_K]
    masked_K, fate_K = texts.maskable_M[place_K], fate_M[place_K]
    # Between 0.8 and 0.9 the fate says by which token too: the n-th id that is not special. As many special ids lie
    # below it as have at most n others below themselves.
    below = _below(drawing.special_ids, fate_K.device)
    other_K = (fate_K - _TO_MASK) * (drawing.vocab_size - len(below)) // (_TO_OTHER - _TO_MASK)
    other_K = other_K + torch.searchsorted(below, other_K, right=True)
    shown_K = torch.where(fate_K < _TO_OTHER, other_K, packed.ids_T[masked_K])
    shown_K = shown_K.masked_fill(fate_K < _TO_MASK, drawing.mask_id)
    return packed.ids_T.index_copy(0, masked_K, shown_K), masked_K


def hide(key: torch.Tensor, length: int, maskable: int, probability: float) -> Hidden:
    """Draws the pool of one text and each position's set.

    Args:
        key: int32 scalar, of the text.
        length: Tokens W that the decoder reads, the special ones first.
        maskable: Of these the last so many, at least 1, can be hidden.
        probability: Share of them hidden at each position, itself among them.
    """
    device, others = key.device, maskable - 1
    hidden = count_masked(maskable, probability) - 1
    sets, special = min(POOL, maskable), length - maskable
    visible_PW = torch.ones(sets, length - 1, dtype=torch.bool, device=device)
    # One stream of numbers for all that is drawn.
    counts = (sets, (others + 1) // 2, maskable)
    place_X = torch.arange(sum(counts), dtype=torch.int32, device=device)
    set_P, column_C, pick_M = mix32((place_X * _STRIDE + key) ^ _POOL).split(counts)
    if hidden:
        # Two draws of 16 bits out of each hash of 32.
        draw_PO = mix32(set_P[:, None] ^ column_C).view(torch.int16)[:, :others].to(torch.int32)
        # With the place below the draw no two numbers of a row are equal: exactly so many are at most the hidden-th
        # smallest. Of equal draws at that threshold (one row in eight has some at 8,192 tokens) the first are hidden.
        draw_PO.bitwise_left_shift_(_PLACE_BITS).bitwise_or_(place_X[:others])
        visible_PW[:, special:] = draw_PO > _smallest(draw_PO, hidden)[:, None]
    choice_M = _unsigned(pick_M) * sets >> 32
    return Hidden(visible_PW, choice_M, special)


def visible(hidden: Hidden, start: int, stop: int) -> torch.Tensor:
    """Returns what the maskable tokens start … stop see of the W tokens, bool [t, W]; none sees itself."""
    rows, others = stop - start, hidden.visible_PW.shape[1]
    taken = hidden.visible_PW.index_select(0, hidden.choice_M[start:stop]).view(-1)
    first = hidden.special + start  # place of the first diagonal element; the next ones follow every W + 1
    whole = taken.new_empty(rows * (others + 1))
    blocks = whole[first : first + (rows - 1) * (others + 2)].view(rows - 1, others + 2)
    last = whole[first + (rows - 1) * (others + 2) :]
    whole[:first] = taken[:first]
    blocks[:, 0], last[0] = False, False
    blocks[:, 1:] = taken[first : first + (rows - 1) * (others + 1)].view(rows - 1, others + 1)
    last[1:] = taken[first + (rows - 1) * (others + 1) :]
    return whole.view(rows, others + 1)


@functools.lru_cache(maxsize=8)
def _below(special_ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Ids below each special id that are not special; kept, so that no step has to copy them to the device."""
    numbers = [number - rank for rank, number in enumerate(sorted(set(special_ids)))]
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def _smallest(draw_PO: torch.Tensor, rank: int) -> torch.Tensor:
    """Returns the rank-th smallest of each row, from 1."""
    if draw_PO.is_cuda:
        return draw_PO.kthvalue(rank, dim=1).values
    # NumPy's partition is vectorised: 0.04 ms for 128 × 509 numbers, torch's kthvalue 0.74, topk 0.60, sort 2.3.
    return torch.from_numpy(np.partition(draw_PO.numpy(), rank - 1, axis=1)[:, rank - 1].copy())


def _unsigned(value: torch.Tensor) -> torch.Tensor:
    return value.long() & 0xFFFFFFFF
