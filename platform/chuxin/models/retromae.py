"""RetroMAE: a one-layer decoder must rebuild a text from its CLS vector, so that the vector has to hold the text.

The enhanced decoder of Xiao & Shao 2022 (section 3.3), in the form FlagEmbedding trains: the queries of its one
attention are CLS + position, keys and values are the unmasked text's embeddings behind CLS, and every token is
predicted from CLS and a random half of the other tokens. Embeddings and vocabulary projection are the encoder's own.
Unlike FlagEmbedding's collator the shares masked are exact at every length, special tokens are always visible,
masks are drawn without an [L, L] Python list, and encoder logits exist only where there is a loss.
Leaves out: tiling of the vocabulary projection and of the decoder's attention for texts of thousands of tokens.

Shapes: B rows, L tokens, H hidden, V vocabulary, N predicted tokens, M = maskable tokens of one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from chuxin.models.encoder import M3Model

# Positions of one row drawn at a time: 256 × 8192 draws are 8 MB.
_ROWS = 256


class Masks(NamedTuple):
    """What RetroMAE needs of B texts, padded to the longest."""

    input_ids_BL: torch.Tensor
    """int64, the text."""
    attention_BL: torch.Tensor
    """int64, 1 on real tokens."""
    encoder_ids_BL: torch.Tensor
    """int64, the text with masked tokens replaced."""
    masked_BL: torch.Tensor
    """bool, tokens the encoder predicts."""
    predicted_BL: torch.Tensor
    """bool, tokens the decoder predicts: all but special tokens and padding."""
    visible_BLL: torch.Tensor
    """bool, [row, predicted position, position seen]; position 0 is CLS."""

    def to(self, device: torch.device) -> Masks:
        """Moves all of it to a device."""
        return Masks(*(tensor.to(device, non_blocking=True) for tensor in self))


class Drawing(NamedTuple):
    """What masks are drawn with, the same for every row."""

    seed: int
    encoder_probability: float
    decoder_probability: float
    vocab_size: int
    mask_id: int
    pad_id: int
    special_ids: tuple[int, ...]


def draw_masks(texts: Sequence[np.ndarray], places: Sequence[tuple[int, int, int]], drawing: Drawing) -> Masks:
    """Draws masks of B texts; a text's masks do not depend on what stands beside it.

    Args:
        texts: int token ids of each text, special tokens included.
        places: (epoch, batch, row) of each text: with the seed it decides all draws of the text.
        drawing: Probabilities and ids.

    Returns:
        Masks on the CPU.
    """
    rows, longest = len(texts), max(len(text) for text in texts)
    ids = np.full((rows, longest), drawing.pad_id, np.int64)
    encoder_ids = ids.copy()
    masked, predicted = np.zeros((rows, longest), bool), np.zeros((rows, longest), bool)
    visible = np.zeros((rows, longest, longest), bool)
    visible[:, :, 0] = True  # rows of padding see CLS too: a softmax over nothing would be NaN
    attention = np.zeros((rows, longest), np.int64)
    for index, (text, place) in enumerate(zip(texts, places, strict=True)):
        size = len(text)
        ids[index, :size], attention[index, :size] = text, 1
        maskable = np.flatnonzero(~np.isin(text, drawing.special_ids))
        generator = np.random.Generator(np.random.Philox(key=[drawing.seed, 0], counter=[0, *reversed(place)]))
        encoder_ids[index, :size], chosen = _mask_encoder(text, maskable, drawing, generator)
        masked[index, chosen] = True
        predicted[index, maskable] = True
        visible[index, :size, :size] = True
        for start in range(0, len(maskable), _ROWS):
            part = maskable[start : start + _ROWS]
            hidden = _hidden(start, len(part), len(maskable), drawing.decoder_probability, generator)
            visible[index, part[:, None], maskable[None, :]] = ~hidden
    arrays = (ids, attention, encoder_ids, masked, predicted, visible)
    return Masks(*(torch.from_numpy(array) for array in arrays))


def count_masked(tokens: int, probability: float) -> int:
    """The number of tokens masked of so many: the share rounded, and at least one, where there is one."""
    return min(tokens, max(1, round(tokens * probability)))


class EnhancedDecoder(nn.Module):
    """One transformer layer (post-norm, as BERT's) whose queries, keys and values come from different streams."""

    def __init__(self, hidden: int, heads: int, intermediate: int, epsilon: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.output = (nn.Linear(hidden, hidden) for _ in range(4))
        self.attention_norm = nn.LayerNorm(hidden, eps=epsilon)
        self.up, self.down = nn.Linear(hidden, intermediate), nn.Linear(intermediate, hidden)
        self.norm = nn.LayerNorm(hidden, eps=epsilon)

    def forward(self, query_BLH: torch.Tensor, memory_BLH: torch.Tensor, visible_BLL: torch.Tensor) -> torch.Tensor:
        """Returns the decoded states [B, L, H]: position i attends to the positions of memory visible to it."""
        rows, length, hidden = query_BLH.shape
        heads = (
            layer(stream).view(rows, length, self.heads, hidden // self.heads).transpose(1, 2)
            for layer, stream in ((self.query, query_BLH), (self.key, memory_BLH), (self.value, memory_BLH))
        )
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(*heads, attn_mask=visible_BLL[:, None], dropout_p=dropout)
        mixed = self.output(mixed.transpose(1, 2).reshape(rows, length, hidden))
        states = self.attention_norm(query_BLH + functional.dropout(mixed, self.dropout, self.training))
        fed = self.down(functional.gelu(self.up(states)))
        return self.norm(states + functional.dropout(fed, self.dropout, self.training))


class LanguageHead(nn.Module):
    """States to vocabulary logits as XLM-R has it: dense, GELU, norm, the embedding table, a bias."""

    def __init__(self, hidden: int, vocab_size: int, epsilon: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.layer_norm = nn.LayerNorm(hidden, eps=epsilon)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, states_NH: torch.Tensor, embedding_VH: torch.Tensor) -> torch.Tensor:
        """Returns logits [N, V]."""
        return functional.linear(self.layer_norm(functional.gelu(self.dense(states_NH))), embedding_VH, self.bias)


class RetroMAE(nn.Module):
    """An M3 model with the decoder and the head that pretrain its CLS vector; both are newly drawn.

    Args:
        model: Its embeddings serve the decoder and the head too.
        seed: Of the decoder's and the head's weights.
        dropout: In the decoder's layer.
    """

    def __init__(self, model: M3Model, seed: int, dropout: float) -> None:
        super().__init__()
        config = model.backbone.config
        self.model = model
        epsilon = config.layer_norm_eps
        self.decoder = EnhancedDecoder(
            config.hidden_size, config.num_attention_heads, config.intermediate_size, epsilon, dropout
        )
        self.head = LanguageHead(config.hidden_size, config.vocab_size, epsilon)
        generator = torch.Generator().manual_seed(seed)
        for module in (*self.decoder.modules(), *self.head.modules()):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, config.initializer_range, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(self, masks: Masks) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the summed cross-entropies of encoder and decoder, fp32 scalars.

        Divide by the number of `masked_BL` and `predicted_BL` of the whole batch to get the objective's two terms.
        """
        embeddings = self.model.backbone.embeddings
        table_VH = embeddings.word_embeddings.weight
        states_BLH = self.model(masks.encoder_ids_BL, masks.attention_BL)
        mlm = self._loss(states_BLH[masks.masked_BL], masks.input_ids_BL[masks.masked_BL], table_VH)

        cls_B1H = states_BLH[:, :1]
        query_BLH = embeddings(inputs_embeds=cls_B1H.expand(-1, states_BLH.shape[1], -1))
        memory_BLH = torch.cat([cls_B1H, embeddings(input_ids=masks.input_ids_BL)[:, 1:]], dim=1)
        decoded_BLH = self.decoder(query_BLH, memory_BLH.to(query_BLH.dtype), masks.visible_BLL)
        rebuilt = self._loss(decoded_BLH[masks.predicted_BL], masks.input_ids_BL[masks.predicted_BL], table_VH)
        return mlm, rebuilt

    def extra_state_dict(self) -> dict[str, torch.Tensor]:
        """The weights that are not the M3 model's: what a released encoder leaves out."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("model.")}

    def load_extra_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Takes over the decoder and the head of an earlier pretraining, so that it goes on from there."""
        own = {key: value for key, value in self.state_dict().items() if key.startswith("model.")}
        self.load_state_dict({**own, **state})

    def _loss(self, states_NH: torch.Tensor, target_N: torch.Tensor, table_VH: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.head(states_NH, table_VH).float(), target_N, reduction="sum")


def _mask_encoder(
    text: np.ndarray, maskable: np.ndarray, drawing: Drawing, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the encoder's masked tokens and replaces 80 % by mask, 10 % by any token (Devlin et al. 2019)."""
    replaced = text.astype(np.int64)
    draw = generator.random((2, len(maskable)), dtype=np.float32)
    anything = generator.integers(0, drawing.vocab_size, len(maskable))
    if not len(maskable):
        return replaced, maskable
    chosen = np.argsort(draw[0], kind="stable")[: count_masked(len(maskable), drawing.encoder_probability)]
    fate = draw[1, chosen]
    place = maskable[chosen]
    replaced[place[fate < 0.8]] = drawing.mask_id
    random = (fate >= 0.8) & (fate < 0.9)
    replaced[place[random]] = anything[chosen[random]]
    return replaced, place


def _hidden(start: int, rows: int, tokens: int, probability: float, generator: np.random.Generator) -> np.ndarray:
    """Bool [rows, M]: for maskable tokens start … start + rows, which maskable ones are hidden, itself always."""
    key = generator.random((rows, tokens), dtype=np.float32)
    key[np.arange(rows), start + np.arange(rows)] = -1.0
    count = count_masked(tokens, probability)
    hidden = np.zeros((rows, tokens), bool)
    if count == tokens:
        hidden[:] = True
    else:
        np.put_along_axis(hidden, np.argpartition(key, count, axis=1)[:, :count], True, axis=1)
    return hidden
