"""The M3 encoder: an XLM-R or BERT backbone with a dense, a sparse and a multi-vector output.

Leaves out: losses, packed batches without padding, positions beyond the checkpoint's own.

Shapes: B texts, L tokens, H hidden width, D width of a multi-vector.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel


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

    @property
    def hidden(self) -> int:
        """Width H of the dense vector."""
        return self.backbone.config.hidden_size

    @property
    def max_length(self) -> int:
        """The most tokens a text may have, special tokens included.

        RoBERTa counts positions from padding_idx + 1, so two rows of its table are never reached.
        """
        config = self.backbone.config
        reserved = config.pad_token_id + 1 if config.model_type == "xlm-roberta" else 0
        return config.max_position_embeddings - reserved

    def forward(self, input_ids_BL: torch.Tensor, attention_mask_BL: torch.Tensor) -> torch.Tensor:
        """Returns the last hidden states [B, L, H] of token ids [B, L]; the mask is 1 on real tokens."""
        return self.backbone(input_ids=input_ids_BL, attention_mask=attention_mask_BL).last_hidden_state

    def dense(self, hidden_BLH: torch.Tensor) -> torch.Tensor:
        """Returns the dense vectors [B, H]: the first token's state in fp32, of length 1."""
        return nn.functional.normalize(hidden_BLH[:, 0].float(), dim=-1)
