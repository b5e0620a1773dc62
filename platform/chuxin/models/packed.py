"""The backbone without padding: texts stand one after another in one row, and each attends to itself alone.

It runs the modules of a Hugging Face XLM-R or BERT backbone, so weights, names and ZeRO's hooks stay theirs; only
the order of work is ours. Every linear layer, norm and embedding sees real tokens only. Attention: on CUDA
`varlen_attn` (fp16 and bf16), elsewhere one call a text. Attention weights are never dropped: the kernel has no
dropout. Leaves out: the heads (encoder.py), losses, poolers.

Shapes: N texts, T tokens of all texts, H width, A attention heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from chuxin.models.dropout import Dropout


class Packed(NamedTuple):
    """N texts without padding."""

    ids_T: torch.Tensor
    """int64, token ids of all texts, special tokens included."""
    position_T: torch.Tensor
    """int64, each token's place in its text, from 0."""
    bounds_N1: torch.Tensor
    """int32, where each text begins, and T (what attention kernels call cu_seqlens)."""
    lengths: tuple[int, ...]
    """Tokens of each text, on the host: nothing has to ask the device for them."""

    def to(self, device: torch.device | str) -> Packed:
        """Moves its tensors to a device."""
        moved = (tensor.to(device, non_blocking=True) for tensor in self[:3])
        return Packed(*moved, self.lengths)


def pack(texts: Sequence[Sequence[int] | np.ndarray]) -> Packed:
    """Packs token sequences, none of them empty, in their order."""
    lengths = tuple(len(text) for text in texts)
    ids = np.concatenate([np.asarray(text, np.int64) for text in texts]) if texts else np.zeros(0, np.int64)
    bounds = np.r_[0, np.cumsum(lengths, dtype=np.int64)]
    position = np.arange(len(ids)) - np.repeat(bounds[:-1], lengths)
    return Packed(
        torch.from_numpy(ids), torch.from_numpy(position), torch.from_numpy(bounds.astype(np.int32)), lengths
    )


def embed(backbone: PreTrainedModel, packed: Packed, dropout: Dropout | None = None) -> torch.Tensor:
    """Returns the embeddings [T, H] that the first layer reads: token + type + position, normalised."""
    table = backbone.embeddings
    return finish_embedding(backbone, table.word_embeddings(packed.ids_T), packed.position_T, dropout)


def finish_embedding(
    backbone: PreTrainedModel, token_TH: torch.Tensor, position_T: torch.Tensor, dropout: Dropout | None = None
) -> torch.Tensor:
    """Adds type and position to token vectors and normalises: the embeddings of other vectors than the table's."""
    table = backbone.embeddings
    kind_H = table.token_type_embeddings.weight[0]
    place_TH = table.position_embeddings(position_T + first_position(backbone))
    states_TH = table.LayerNorm(token_TH + kind_H + place_TH)
    return dropout(states_TH, 0) if dropout else states_TH


def first_position(backbone: PreTrainedModel) -> int:
    """The row of the position table that a text's first token takes: RoBERTa counts from padding_idx + 1."""
    return backbone.config.pad_token_id + 1 if backbone.config.model_type == "xlm-roberta" else 0


def encode(
    backbone: PreTrainedModel, packed: Packed, dropout: Dropout | None = None, checkpointing: bool = False
) -> torch.Tensor:
    """Runs the backbone.

    Args:
        backbone: `XLMRobertaModel` or `BertModel`, absolute positions.
        packed: Texts of at most the model's length.
        dropout: Of embeddings and of both branches of a layer; None drops nothing.
        checkpointing: Keep a layer's input only and compute the rest again in the backward pass.

    Returns:
        Last hidden states [T, H], equal to those of the padded Hugging Face model on real tokens (1e-5 in fp32).
    """
    states_TH = embed(backbone, packed, dropout)
    for index, layer in enumerate(backbone.encoder.layer):
        if checkpointing and torch.is_grad_enabled():
            states_TH = checkpoint(_layer, layer, states_TH, packed, dropout, index, use_reentrant=False)
        else:
            states_TH = _layer(layer, states_TH, packed, dropout, index)
    return states_TH


def _layer(
    layer: nn.Module, states_TH: torch.Tensor, packed: Packed, dropout: Dropout | None, index: int
) -> torch.Tensor:
    attention = layer.attention
    projections = (attention.self.query, attention.self.key, attention.self.value)
    heads = attention.self.num_attention_heads
    query, key, value = (linear(states_TH).unflatten(-1, (heads, -1)) for linear in projections)
    mixed_TH = attention.output.dense(attend(query, key, value, packed))
    mixed_TH = dropout(mixed_TH, 2 * index + 1) if dropout else mixed_TH
    states_TH = attention.output.LayerNorm(mixed_TH + states_TH)
    fed_TH = layer.output.dense(layer.intermediate.intermediate_act_fn(layer.intermediate.dense(states_TH)))
    fed_TH = dropout(fed_TH, 2 * index + 2) if dropout else fed_TH
    return layer.output.LayerNorm(fed_TH + states_TH)


def attend(query_TAD: torch.Tensor, key_TAD: torch.Tensor, value_TAD: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Softmax attention of each text to itself; returns [T, A·D]."""
    if query_TAD.is_cuda and query_TAD.dtype in (torch.float16, torch.bfloat16):
        from torch.nn.attention.varlen import varlen_attn

        longest = max(packed.lengths)
        bounds = packed.bounds_N1
        return varlen_attn(query_TAD, key_TAD, value_TAD, bounds, bounds, longest, longest).flatten(-2)
    parts = zip(*(tensor.split(packed.lengths) for tensor in (query_TAD, key_TAD, value_TAD)), strict=True)
    mixed = [
        functional.scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in text))[0].transpose(0, 1)
        for text in parts
    ]
    return torch.cat(mixed).flatten(-2)
