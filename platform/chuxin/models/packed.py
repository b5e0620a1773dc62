"""The backbone without padding: texts stand one after another in one row, and each attends to itself alone.

It runs the modules of a Hugging Face XLM-R or BERT backbone, so weights, names and ZeRO's hooks stay theirs; only
the order of work is ours. Every linear layer, norm and embedding sees real tokens only. Attention weights are never
dropped: the kernel has no dropout. Leaves out: the heads (encoder.py), losses, poolers, checking token ids against
the vocabulary (whoever reads them does, on the host; a device could only abort).

Shapes: N texts, T tokens of all texts, H width, A attention heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from chuxin.models.dropout import Dropout

Named = TypeVar("Named", bound=tuple)


class Packed(NamedTuple):
    """N texts without padding."""

    ids_T: torch.Tensor
    """int64, token ids of all texts, special tokens included."""
    position_T: torch.Tensor
    """int64, each token's place in its text, from 0. A `<pad>` that a text spells out counts as any other token;
    Hugging Face's XLM-R would give it the padding row and not count it."""
    bounds_N1: torch.Tensor
    """int32, where each text begins, and T (what attention kernels call cu_seqlens)."""
    lengths: tuple[int, ...]
    """Tokens of each text, on the host: nothing has to ask the device for them."""

    def to(self, device: torch.device | str) -> Packed:
        """Moves its tensors to a device."""
        return moved(self, device)


def moved(batch: Named, device: torch.device | str) -> Named:
    """Returns a named tuple with its tensors, and those of named tuples in it, on a device."""
    return _with_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(batch: Named) -> Named:
    """Returns a named tuple with its tensors in page-locked memory, where CUDA is at work; else as it is.

    From such memory `moved` copies while the device computes; from any other the host waits for the device. For the
    thread that reads ahead.
    """
    if not torch.cuda.is_initialized():
        return batch
    return _with_tensors(batch, lambda tensor: tensor.pin_memory() if tensor.numel() else tensor)


def _with_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_with_tensors(field, change) for field in value))
    return value


def pack(texts: Sequence[Sequence[int] | np.ndarray]) -> Packed:
    """Packs token sequences in their order.

    No text at all is allowed: a rank that has run out of micro-batches still has to take part in ZeRO's collectives.

    Raises:
        ValueError: A text is empty (it would take its neighbour's first token for its own), or there are more
            tokens than the bounds' int32 counts.
    """
    lengths = tuple(len(text) for text in texts)
    if not all(lengths):
        raise ValueError(f"text {lengths.index(0)} of {len(lengths)} has no token")
    bounds_N1 = np.r_[0, np.cumsum(lengths, dtype=np.int64)]
    if bounds_N1[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{bounds_N1[-1]} tokens in one pack; attention kernels count in int32")
    ids_T = np.concatenate([np.asarray(text, np.int64) for text in texts]) if lengths else np.zeros(0, np.int64)
    position_T = np.arange(len(ids_T)) - np.repeat(bounds_N1[:-1], lengths)
    arrays = ids_T, position_T, bounds_N1.astype(np.int32)
    return Packed(*map(torch.from_numpy, arrays), lengths)


def embed(backbone: PreTrainedModel, packed: Packed, dropout: Dropout | None = None) -> torch.Tensor:
    """Returns the embeddings [T, H] that the first layer reads: token + type + position, normalised."""
    table = backbone.embeddings
    return finish_embedding(backbone, table.word_embeddings(packed.ids_T), packed.position_T, dropout)


def finish_embedding(
    backbone: PreTrainedModel, token_TH: torch.Tensor, position_T: torch.Tensor, dropout: Dropout | None = None
) -> torch.Tensor:
    """Adds type and position to token vectors and normalises: the embeddings of other vectors than the table's."""
    table = backbone.embeddings
    # Called, not read: ZeRO-3 gathers a weight when the module that owns it runs.
    kind_1H = table.token_type_embeddings(position_T.new_zeros(1))
    place_TH = table.position_embeddings(position_T + first_position(backbone))
    states_TH = table.LayerNorm(token_TH + kind_1H + place_TH)
    return dropout(states_TH, 0) if dropout else states_TH


def first_position(backbone: PreTrainedModel) -> int:
    """The row of the position table that a text's first token takes: RoBERTa counts from padding_idx + 1."""
    return backbone.config.pad_token_id + 1 if backbone.config.model_type == "xlm-roberta" else 0


def position_count(backbone: PreTrainedModel) -> int:
    """The most tokens a text may have: the rows of the position table that RoBERTa never reaches do not count."""
    return backbone.config.max_position_embeddings - first_position(backbone)


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
        Last hidden states [T, H], equal to those of the padded Hugging Face model on real tokens, gradients too
        (1e-5 in fp32). Under bf16 autocast norms and the residual stream stay fp32, as they do there.

    Raises:
        ValueError: A text has more tokens than the model has positions. (On CUDA the table's own check would abort
            the process.)
    """
    _require_positions(backbone, packed)
    states_TH = embed(backbone, packed, dropout)
    for index, layer in enumerate(backbone.encoder.layer):
        if checkpointing and torch.is_grad_enabled():
            states_TH = checkpoint(_layer, layer, states_TH, packed, dropout, index, use_reentrant=False)
        else:
            states_TH = _layer(layer, states_TH, packed, dropout, index)
    return states_TH


def encode_first(backbone: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """Runs the backbone for the first token of each text alone; returns its last hidden states [N, H].

    The last layer then needs only keys and values of all tokens, a sixth of its products: of two layers 0.42 are saved,
    of 24 0.035. For inference; training computes what the other heads read too.

    *Relations*: equal to the first rows of `encode` (1e-5 in fp32).
    """
    _require_positions(backbone, packed)
    states_TH = embed(backbone, packed)
    *layers, last = backbone.encoder.layer
    for index, layer in enumerate(layers):
        states_TH = _layer(layer, states_TH, packed, None, index)
    own = last.attention.self
    first_NH = states_TH[packed.bounds_N1[:-1].long()]
    query_NAD, key_TAD, value_TAD = (
        linear(states).unflatten(-1, (own.num_attention_heads, -1))
        for linear, states in ((own.query, first_NH), (own.key, states_TH), (own.value, states_TH))
    )
    return _finish(last, attend_first(query_NAD, key_TAD, value_TAD, packed), first_NH, None, 0)


def _require_positions(backbone: PreTrainedModel, packed: Packed) -> None:
    longest = max(packed.lengths, default=0)
    if longest > position_count(backbone):
        raise ValueError(f"a text of {longest} tokens; the model has {position_count(backbone)} positions")


def _layer(
    layer: nn.Module, states_TH: torch.Tensor, packed: Packed, dropout: Dropout | None, index: int
) -> torch.Tensor:
    attention = layer.attention
    projections = (attention.self.query, attention.self.key, attention.self.value)
    heads = attention.self.num_attention_heads
    read_TH = _in_autocast_dtype(states_TH)
    query, key, value = (linear(read_TH).unflatten(-1, (heads, -1)) for linear in projections)
    return _finish(layer, attend(query, key, value, packed), states_TH, dropout, index)


def _in_autocast_dtype(states_TH: torch.Tensor) -> torch.Tensor:
    """The states [T, H] in the dtype that autocast would give each of three layers, or as they are without it.

    Made once, they are kept once for the backward pass: at BGE-M3's size and 33,000 tokens 3 of 36 GiB less (H100).
    """
    kind = states_TH.device.type
    return states_TH.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states_TH


def _finish(
    layer: nn.Module, mixed_TH: torch.Tensor, states_TH: torch.Tensor, dropout: Dropout | None, index: int
) -> torch.Tensor:
    """What a layer does after its attention, token by token."""
    attention = layer.attention
    mixed_TH = attention.output.dense(mixed_TH)
    mixed_TH = dropout(mixed_TH, 2 * index + 1) if dropout else mixed_TH
    states_TH = attention.output.LayerNorm(mixed_TH + states_TH)
    fed_TH = layer.output.dense(layer.intermediate.intermediate_act_fn(layer.intermediate.dense(states_TH)))
    fed_TH = dropout(fed_TH, 2 * index + 2) if dropout else fed_TH
    return layer.output.LayerNorm(fed_TH + states_TH)


def attend(query_TAD: torch.Tensor, key_TAD: torch.Tensor, value_TAD: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Softmax attention of each text to itself; returns [T, A·D].

    On CUDA in fp16 and bf16 one FlashAttention kernel takes all texts. It takes no other dtype and no CPU: there
    neighbours of equal length share a call of PyTorch's attention. fp32 on CUDA takes that way too, since only
    checks compute so; nested tensors would save them launches, at the price of a prototype. So do texts that are all of
    one length: a step of four texts of 8,192 tokens took 0.41 s instead of 0.54 (H100, where cuDNN computes it).
    """
    if not packed.lengths:  # joins the three, so that each projection gets its (empty) gradient
        return (query_TAD + key_TAD + value_TAD).flatten(-2)
    half = query_TAD.dtype in (torch.float16, torch.bfloat16)
    # A text alone takes the kernel too: cuDNN plans anew for every length.
    if query_TAD.is_cuda and half and (len(packed.lengths) == 1 or len(set(packed.lengths)) > 1):
        from torch.nn.attention.varlen import varlen_attn

        bounds_N1, longest = packed.bounds_N1, max(packed.lengths)
        return varlen_attn(query_TAD, key_TAD, value_TAD, bounds_N1, bounds_N1, longest, longest).flatten(-2)
    runs = [(length, len(list(run))) for length, run in groupby(packed.lengths)]
    # split, not slices: the gradient of each slice would be a whole [T, A, D] of zeros.
    tokens = [length * texts for length, texts in runs]
    parts = zip(*(tensor.split(tokens) for tensor in (query_TAD, key_TAD, value_TAD)), strict=True)
    mixed = []
    for (length, texts), part in zip(runs, parts, strict=True):
        query, key, value = (tensor.unflatten(0, (texts, length)).transpose(1, 2) for tensor in part)
        mixed_NALD = functional.scaled_dot_product_attention(query, key, value)
        mixed.append(mixed_NALD.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(mixed) if len(mixed) > 1 else mixed[0]


def attend_first(
    query_NAD: torch.Tensor, key_TAD: torch.Tensor, value_TAD: torch.Tensor, packed: Packed
) -> torch.Tensor:
    """Softmax attention of one token of each text to all of that text; returns [N, A·D]."""
    if not packed.lengths:
        return query_NAD.flatten(-2)
    if query_NAD.is_cuda and query_NAD.dtype in (torch.float16, torch.bfloat16):
        from torch.nn.attention.varlen import varlen_attn

        each_N1 = torch.arange(len(packed.lengths) + 1, dtype=torch.int32, device=query_NAD.device)
        longest = max(packed.lengths)
        return varlen_attn(query_NAD, key_TAD, value_TAD, each_N1, packed.bounds_N1, 1, longest).flatten(-2)
    runs = [(length, len(list(run))) for length, run in groupby(packed.lengths)]
    queries = query_NAD.split([texts for _, texts in runs])
    keys, values = (tensor.split([length * texts for length, texts in runs]) for tensor in (key_TAD, value_TAD))
    mixed = []
    for (length, texts), query, key, value in zip(runs, queries, keys, values, strict=True):
        key, value = (tensor.unflatten(0, (texts, length)).transpose(1, 2) for tensor in (key, value))
        mixed_NA1D = functional.scaled_dot_product_attention(query.unsqueeze(2), key, value)
        mixed.append(mixed_NA1D.flatten(1))
    return torch.cat(mixed)
