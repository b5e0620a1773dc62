"""FlagEmbedding's research RetroMAE, made anew from the description in its reference notes: collator, model, step.

The wheel holds no pretraining code and the research code needs transformers 4.46. What is described: masks drawn word
by word in Python, sample by sample; one of at most 128 shared masks copied for each position, all of them a list of
lists that becomes an int64 tensor; logits of the encoder at every token; one BERT layer with eager attention behind
it; logits of the decoder at every token. Left out in its favour: tokenising, padding, dropout, the hidden states of
all layers.

Shapes: L tokens, H hidden, V vocabulary, A heads, D width of a head.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import XLMRobertaForMaskedLM

SETS = 128
MOST = 512
"""Tokens masked at most, whatever the share: the cap of the mask it takes from transformers."""
ENCODER_SHARE, DECODER_SHARE = 0.3, 0.5


class Collated(NamedTuple):
    """A batch of one text."""

    encoder_ids: torch.Tensor
    """int64 [1, L]."""
    encoder_labels: torch.Tensor
    """int64 [1, L], -100 where nothing is masked."""
    ids: torch.Tensor
    """int64 [1, L]."""
    seen: torch.Tensor
    """int64 [1, L, L], 1 where the row's position sees the column's."""
    labels: torch.Tensor
    """int64 [1, L], -100 at both ends."""


class Collator:
    """Masks one text.

    Args:
        pieces: The vocabulary's strings.
        mask_id: What 80 % of the encoder's masked tokens become.
        special_ids: The encoder never masks them.
    """

    def __init__(self, pieces: Sequence[str], mask_id: int, special_ids: Sequence[int]) -> None:
        self.pieces, self.mask_id, self.special_ids = pieces, mask_id, torch.tensor(special_ids)

    def __call__(self, text: Sequence[int]) -> Collated:
        tokens = [self.pieces[number] for number in text]
        ids = torch.tensor([text])
        encoder_ids, encoder_labels = self._mask(ids, torch.tensor([whole_words(tokens, ENCODER_SHARE)]))
        sets = [whole_words(tokens, DECODER_SHARE) for _ in range(min(len(tokens), SETS))]
        rows = []
        for position in range(len(tokens)):
            row = copy.deepcopy(random.choice(sets))
            row[position] = 1
            rows.append(row)
        labels = ids.clone()
        labels[:, 0] = labels[:, -1] = -100
        return Collated(encoder_ids, encoder_labels, ids, 1 - torch.tensor([rows]), labels)

    def _mask(self, ids: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = chosen.bool() & ~torch.isin(ids, self.special_ids)
        shown, labels = ids.clone(), ids.masked_fill(~chosen, -100)
        hidden = torch.bernoulli(torch.full(ids.shape, 0.8)).bool() & chosen
        shown[hidden] = self.mask_id
        other = torch.bernoulli(torch.full(ids.shape, 0.5)).bool() & chosen & ~hidden
        shown[other] = torch.randint(len(self.pieces), ids.shape)[other]
        return shown, labels


def whole_words(tokens: Sequence[str], share: float) -> list[int]:
    """Marks words at random until a share of the tokens is marked; a word goes on at pieces that begin with ##."""
    words: list[list[int]] = []
    for place, token in enumerate(tokens):
        if token in ("[CLS]", "[SEP]"):
            continue
        if words and token.startswith("##"):
            words[-1].append(place)
        else:
            words.append([place])
    random.shuffle(words)
    wanted = min(MOST, max(1, int(round(len(tokens) * share))))
    marked: list[int] = []
    covered: set[int] = set()
    for word in words:
        if len(marked) >= wanted:
            break
        if len(marked) + len(word) > wanted or any(place in covered for place in word):
            continue
        for place in word:
            covered.add(place)
            marked.append(place)
    return [1 if place in covered else 0 for place in range(len(tokens))]


class Decoder(nn.Module):
    """A BERT layer whose query, key and value are given apart; attention by matmul and softmax."""

    def __init__(self, hidden: int, heads: int, intermediate: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(hidden, hidden) for _ in range(4))
        self.attention_norm = nn.LayerNorm(hidden, eps=epsilon)
        self.up, self.down = nn.Linear(hidden, intermediate), nn.Linear(intermediate, hidden)
        self.norm = nn.LayerNorm(hidden, eps=epsilon)

    def forward(self, query_BLH: torch.Tensor, memory_BLH: torch.Tensor, seen_BLL: torch.Tensor) -> torch.Tensor:
        def split(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
            return layer(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query, key, value = split(self.query, query_BLH), split(self.key, memory_BLH), split(self.value, memory_BLH)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        scores = scores + (1.0 - seen_BLL[:, None].float()) * torch.finfo(torch.float32).min
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(-2)
        states = self.attention_norm(query_BLH + self.output(mixed))
        return self.norm(states + self.down(functional.gelu(self.up(states))))


class Model(nn.Module):
    """A masked language model and the decoder behind its first token's state."""

    def __init__(self, lm: XLMRobertaForMaskedLM) -> None:
        super().__init__()
        config = lm.config
        self.lm = lm
        self.decoder = Decoder(
            config.hidden_size, config.num_attention_heads, config.intermediate_size, config.layer_norm_eps
        )

    def forward(self, batch: Collated) -> torch.Tensor:
        """Returns the sum of the two mean cross-entropies."""
        mask = torch.ones_like(batch.ids)
        out = self.lm(batch.encoder_ids, mask, labels=batch.encoder_labels, output_hidden_states=True)
        cls_B1H = out.hidden_states[-1][:, :1]
        embeddings = self.lm.roberta.embeddings
        query_BLH = embeddings(inputs_embeds=cls_B1H.expand(-1, batch.ids.shape[1], -1))
        memory_BLH = torch.cat([cls_B1H, embeddings(input_ids=batch.ids)[:, 1:]], 1)
        logits_BLV = self.lm.lm_head(self.decoder(query_BLH, memory_BLH, batch.seen))
        return out.loss + functional.cross_entropy(logits_BLV.flatten(0, 1), batch.labels.flatten())
