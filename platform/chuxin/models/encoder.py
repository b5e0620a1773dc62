"""The M3 encoder: an XLM-R or BERT backbone with a dense, a sparse and a multi-vector output, on packed texts.

Leaves out: losses, how the backbone runs without padding (packed.py), more positions (positions.py).

Shapes: N texts, T tokens of all texts, H hidden width, D width of a multi-vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from chuxin.models import packed as packing
from chuxin.models.dropout import Dropout
from chuxin.models.packed import Packed


class Outputs(NamedTuple):
    """What M3 says about N packed texts, all in fp32."""

    dense_NH: torch.Tensor
    """Vectors of length 1, from each text's first token."""
    weight_T: torch.Tensor | None
    """Sparse weights >= 0, special tokens not yet left out; None unless the heads were asked for."""
    vector_TD: torch.Tensor | None
    """Multi-vectors of length 1, first tokens not yet left out; None likewise."""


def new_heads(hidden: int, colbert_dim: int, std: float) -> tuple[nn.Linear, nn.Linear]:
    """Draws the sparse and the multi-vector head from a fixed seed, leaving torch's global generator alone.

    Args:
        hidden: Width H of the backbone.
        colbert_dim: Width D of one multi-vector.
        std: Standard deviation of the weights (the backbone's `initializer_range`).

    Returns:
        The sparse head [1, H] and the multi-vector head [D, H], biases zero.
    """
    generator = torch.Generator().manual_seed(0)
    sparse, colbert = nn.Linear(hidden, 1), nn.Linear(hidden, colbert_dim)
    with torch.no_grad():
        for head in (sparse, colbert):
            head.weight.normal_(0.0, std, generator=generator)
            head.bias.zero_()
    return sparse, colbert


class M3Model(nn.Module):
    """A backbone and the two linear heads of BGE-M3 (Chen et al. 2024, section 3.2).

    Args:
        backbone: `XLMRobertaModel` or `BertModel` without its pooling layer.
        sparse_linear: H → 1, the weight of a token.
        colbert_linear: H → D, one vector a token.
        heads_trained: Whether the two heads have been trained. Drawn heads give meaningless weights.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        sparse_linear: nn.Linear,
        colbert_linear: nn.Linear,
        heads_trained: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sparse_linear = sparse_linear
        self.colbert_linear = colbert_linear
        self.heads_trained = heads_trained
        self.checkpointing = False
        """Compute activations again in the backward pass instead of keeping them."""

    @property
    def hidden(self) -> int:
        """Width H of the dense vector."""
        return self.backbone.config.hidden_size

    @property
    def max_length(self) -> int:
        """The most tokens a text may have, special tokens included."""
        return packing.position_count(self.backbone)

    def forward(self, packed: Packed, heads: bool = False, dropout: Dropout | None = None) -> Outputs:
        """Returns the three outputs of packed texts, or the dense one alone.

        The heads compute in fp32 under autocast too: at BGE-M3's size they are 0.4 % of the multiplications, and sparse
        weights are added up.
        """
        hidden_TH = self.encode(packed, dropout)
        first_N = packed.bounds_N1[:-1].long()
        dense_NH = functional.normalize(hidden_TH[first_N].float(), dim=-1)
        if not heads:
            return Outputs(dense_NH, None, None)
        with torch.autocast(hidden_TH.device.type, enabled=False):
            states_TH = hidden_TH.to(self.sparse_linear.weight.dtype)
            weight_T = functional.relu(self.sparse_linear(states_TH)).squeeze(-1).float()
            vector_TD = functional.normalize(self.colbert_linear(states_TH).float(), dim=-1)
        return Outputs(dense_NH, weight_T, vector_TD)

    def dense(self, packed: Packed) -> torch.Tensor:
        """Returns the dense vectors [N, H] of packed texts alone, for inference: see `packed.encode_first`."""
        return functional.normalize(packing.encode_first(self.backbone, packed).float(), dim=-1)

    def encode(self, packed: Packed, dropout: Dropout | None = None) -> torch.Tensor:
        """Returns the last hidden states [T, H] of packed texts."""
        return packing.encode(self.backbone, packed, dropout, self.checkpointing)
