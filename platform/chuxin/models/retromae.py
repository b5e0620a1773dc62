"""RetroMAE: a one-layer decoder must rebuild a text from its CLS vector, so that the vector has to hold the text.

The enhanced decoder of Xiao & Shao 2022 (section 3.3), in the form FlagEmbedding trains: the queries of its one
attention are CLS + position, keys and values are the unmasked text's embeddings behind CLS, and every token is
predicted from CLS and a random half of the other tokens. Embeddings and vocabulary projection are the encoder's own.
Texts are packed; the decoder computes only positions that are predicted, and logits exist only where there is loss
and only in tiles (losses/linear_cross_entropy.py), at any length.
Unlike FlagEmbedding's collator the shares masked are exact at every length and special tokens are always visible
(retromae_masks.py). Leaves out: the division by tokens (training/pretrain.py).

Shapes: N texts, T tokens of all texts, H hidden, V vocabulary, M predicted tokens, K tokens the encoder predicts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from chuxin.losses.linear_cross_entropy import linear_cross_entropy
from chuxin.models import packed as packing
from chuxin.models.dropout import Dropout, mix32, token_keys
from chuxin.models.encoder import M3Model
from chuxin.models.retromae_decoder import EnhancedDecoder
from chuxin.models.retromae_masks import Texts, mask_encoder

# The decoder's two streams drop other elements than the encoder does at the same tokens.
_QUERY_KEY, _MEMORY_KEY = 0x2545F491, 0x4F6CDD1D


class Losses(NamedTuple):
    """Cross-entropies of N texts in fp32; divide by the tokens of the whole batch to get the objective's two terms."""

    encoder: torch.Tensor
    """Sum over the masked tokens."""
    decoder: torch.Tensor
    """Sum over all maskable tokens."""
    encoder_N: torch.Tensor
    """The same sum of each text, without a gradient."""
    decoder_N: torch.Tensor


class LanguageHead(nn.Module):
    """States to the vocabulary as XLM-R has it: dense, GELU, norm, the embedding table, a bias."""

    def __init__(self, hidden: int, vocab_size: int, epsilon: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.layer_norm = nn.LayerNorm(hidden, eps=epsilon)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(
        self, states_KH: torch.Tensor, table_VH: torch.Tensor, target_K: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the summed cross-entropy and, without a gradient, each token's [K]."""
        ready_KH = self.layer_norm(functional.gelu(self.dense(states_KH)))
        return linear_cross_entropy(ready_KH, table_VH, self.bias, target_K)


class RetroMAE(nn.Module):
    """An M3 model with the decoder and the head that pretrain its CLS vector; both are newly drawn.

    Args:
        model: Its embeddings serve the decoder and the head too.
        seed: Of the decoder's and the head's weights.
        dropout: Of embeddings and of both branches of every layer, encoder and decoder, while training.
    """

    def __init__(self, model: M3Model, seed: int, dropout: float) -> None:
        super().__init__()
        config = model.backbone.config
        self.model, self.dropout = model, dropout
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.decoder = EnhancedDecoder(width, config.num_attention_heads, config.intermediate_size, epsilon)
        self.head = LanguageHead(width, config.vocab_size, epsilon)
        generator = torch.Generator().manual_seed(seed)
        for module in (*self.decoder.modules(), *self.head.modules()):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, config.initializer_range, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(self, texts: Texts) -> Losses:
        """Returns the summed cross-entropies of encoder and decoder; masks are drawn here, on the texts' device."""
        backbone, packed = self.model.backbone, texts.packed
        table_VH = backbone.embeddings.word_embeddings.weight
        encoder_drop, query_drop, memory_drop = self._dropouts(texts)
        shown_T, masked_K = mask_encoder(texts)
        states_TH = self.model.encode(packed._replace(ids_T=shown_T), encoder_drop)
        encoder, encoder_K = self.head(states_TH[masked_K], table_VH, packed.ids_T[masked_K])

        cls_NH = states_TH[packed.bounds_N1[:-1].long()]
        position_M = packed.position_T[texts.maskable_M]
        query_MH = packing.finish_embedding(backbone, cls_NH[texts.owner_M], position_M, query_drop)
        read_TH = packing.embed(backbone, packed, memory_drop)
        memory_TH = torch.cat([read_TH, cls_NH.to(read_TH.dtype)])[texts.memory_T]
        decoded_MH = self.decoder(query_MH, memory_TH, texts, query_drop)
        decoder, decoder_M = self.head(decoded_MH, table_VH, packed.ids_T[texts.maskable_M])
        owner_K = texts.owner_M[texts.drawn_K]  # masked tokens stand text by text
        parts = ((encoder_K, owner_K), (decoder_M, texts.owner_M))
        sums = (losses.new_zeros(len(texts.maskable)).index_add_(0, owner, losses) for losses, owner in parts)
        return Losses(encoder, decoder, *sums)

    def extra_state_dict(self) -> dict[str, torch.Tensor]:
        """The weights that are not the M3 model's: what a released encoder leaves out."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("model.")}

    def load_extra_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Takes over the decoder and the head of an earlier pretraining, so that it goes on from there."""
        own = {key: value for key, value in self.state_dict().items() if key.startswith("model.")}
        self.load_state_dict({**own, **state})

    def _dropouts(self, texts: Texts) -> tuple[Dropout | None, Dropout | None, Dropout | None]:
        """Of the encoder, of the decoder's predicted tokens and of its memory."""
        if not self.training or not self.dropout:
            return None, None, None
        packed = texts.packed
        key_T = token_keys(texts.key_N, packed.position_T, packed.bounds_N1.diff().long())
        keys = (key_T, mix32(key_T ^ _QUERY_KEY)[texts.maskable_M], mix32(key_T ^ _MEMORY_KEY))
        return tuple(Dropout(self.dropout, key) for key in keys)
