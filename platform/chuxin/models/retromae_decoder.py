"""RetroMAE's enhanced decoder: one transformer layer whose attention shows each position tokens of its own.

The mask differs from position to position, so no varlen kernel takes it; attention runs text by text through PyTorch's
`scaled_dot_product_attention`. A text of more than `TILE` predicted tokens is cut into tiles of positions, whose masks
are made when they are needed, in the backward pass again: at 8,192 tokens a mask of 8 MB lives at a time, instead of
64 MB (and 256 MB in fp32 inside the kernel). Attention weights are never dropped.
Leaves out: embeddings, masks (retromae_masks.py), the vocabulary projection.

Shapes: M predicted tokens and T read tokens of all texts, H width, A heads, D width of a head; m and W of one text.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from chuxin.models.dropout import Dropout
from chuxin.models.retromae_masks import Hidden, Texts, hide, visible

TILE = 1024
"""Positions of a tile. A text within it is not computed twice, which would take its attention half as long again:
2,046 positions, 4 heads of 16, one CPU thread: 101 ms in one piece, 149 ms in two, 186 ms in 16."""


class EnhancedDecoder(nn.Module):
    """One layer (post-norm, as BERT's) whose queries, keys and values come from different streams."""

    def __init__(self, hidden: int, heads: int, intermediate: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(hidden, hidden) for _ in range(4))
        self.attention_norm = nn.LayerNorm(hidden, eps=epsilon)
        self.up, self.down = nn.Linear(hidden, intermediate), nn.Linear(intermediate, hidden)
        self.norm = nn.LayerNorm(hidden, eps=epsilon)

    def forward(
        self, query_MH: torch.Tensor, memory_TH: torch.Tensor, texts: Texts, dropout: Dropout | None
    ) -> torch.Tensor:
        """Returns the decoded states [M, H]: a position attends to what its text's memory shows it.

        Args:
            query_MH: Of the predicted tokens.
            memory_TH: In the order of `texts.memory_T`.
            texts: What is predicted and read; its keys decide what is visible.
            dropout: Of both branches, with a key for each predicted token.
        """
        streams = ((self.query, query_MH), (self.key, memory_TH), (self.value, memory_TH))
        projected = (layer(stream).unflatten(-1, (self.heads, -1)) for layer, stream in streams)
        mixed_MH = self.output(self._attend(*projected, texts))
        states_MH = self.attention_norm(query_MH + (dropout(mixed_MH, 1) if dropout else mixed_MH))
        fed_MH = self.down(functional.gelu(self.up(states_MH)))
        return self.norm(states_MH + (dropout(fed_MH, 2) if dropout else fed_MH))

    def _attend(
        self, query_MAD: torch.Tensor, key_TAD: torch.Tensor, value_TAD: torch.Tensor, texts: Texts
    ) -> torch.Tensor:
        lengths, share = texts.packed.lengths, texts.drawing.decoder_probability
        # split, not slices: the gradient of each slice would be a whole [T, A, D] of zeros.
        parts = zip(query_MAD.split(texts.maskable), key_TAD.split(lengths), value_TAD.split(lengths), strict=True)
        mixed = []
        for place, (query, key, value) in enumerate(parts):
            if len(query):
                hidden = hide(texts.key_N[place], len(key), len(query), share)
                mixed += _attend_text(query, key, value, hidden)
        if not mixed:  # joins the three, so that each projection gets its (zero) gradient
            return (query_MAD + 0.0 * (key_TAD.sum(0) + value_TAD.sum(0))).flatten(-2)
        return torch.cat(mixed).flatten(-2)


def _attend_text(
    query_mAD: torch.Tensor, key_WAD: torch.Tensor, value_WAD: torch.Tensor, hidden: Hidden
) -> list[torch.Tensor]:
    """Returns the tiles of one text, which predicts at least one token."""
    again = len(query_mAD) > TILE and torch.is_grad_enabled()
    mixed = []
    for number, query_tAD in enumerate(query_mAD.split(TILE)):
        tile = query_tAD, key_WAD, value_WAD, hidden, number * TILE
        if again:
            mixed.append(checkpoint(_attend_tile, *tile, use_reentrant=False, preserve_rng_state=False))
        else:
            mixed.append(_attend_tile(*tile))
    return mixed


def _attend_tile(
    query_tAD: torch.Tensor, key_WAD: torch.Tensor, value_WAD: torch.Tensor, hidden: Hidden, start: int
) -> torch.Tensor:
    """Returns [t, A, D]: the maskable tokens from `start` on attend to what they see."""
    mask_tW = visible(hidden, start, start + len(query_tAD))
    query, key, value = (part.transpose(0, 1)[None] for part in (query_tAD, key_WAD, value_WAD))
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask_tW)
    return mixed[0].transpose(0, 1)
