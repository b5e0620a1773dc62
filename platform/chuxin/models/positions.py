"""More positions for a model with a learned table, so that it reads longer texts.

The rows learned are repeated until the table is long enough, as Longformer does (Beltagy et al. 2020, section 5):
attention learned to look at neighbours by position, and repetition keeps every neighbourhood but those at the seams.
Drawn rows lose it: with them the paper's base model began at 10.299 bits a character where repetition gave 1.957 and
RoBERTa at its own length has 1.846 (table 5). How BGE-M3 filled the rows from 512 to 8192 is not published.
Leaves out: training them (the pretrain stage does), rotary and interpolated positions.
"""

from __future__ import annotations

import torch

from chuxin.errors import InputError
from chuxin.models.encoder import M3Model
from chuxin.models.packed import first_position


def extend_positions(model: M3Model, max_len: int, where: str) -> None:
    """Lets a model take texts of `max_len` tokens, in place; what it says of texts it could read stays the same.

    Row i of the new table is learned row i modulo the old length. The rows in front that RoBERTa's counting from
    padding_idx + 1 never reaches keep their place and are not repeated.

    Args:
        model: Any model with a table of absolute positions.
        max_len: Most tokens of a text, special ones included; the length it has changes nothing.
        where: Names the setting, for the error.

    Raises:
        InputError: The model is longer already.
    """
    old = model.max_length
    if max_len < old:
        remedy = "Leave it out: later stages cut texts by their own limits"
        raise InputError(where, f"{max_len} tokens are fewer than the {old} that the model takes", remedy)
    backbone, first = model.backbone, first_position(model.backbone)
    embeddings = backbone.embeddings
    table_PH = embeddings.position_embeddings.weight
    rows = torch.arange(max_len, device=table_PH.device) % old + first
    with torch.no_grad():
        longer_PH = torch.cat([table_PH[:first], table_PH[rows]])
    embeddings.position_embeddings.weight = torch.nn.Parameter(longer_PH, requires_grad=table_PH.requires_grad)
    embeddings.position_embeddings.num_embeddings = len(longer_PH)
    backbone.config.max_position_embeddings = len(longer_PH)
    # Hugging Face's own forward pass reads these two; they are no part of a checkpoint.
    embeddings.position_ids = torch.arange(len(longer_PH), device=table_PH.device)[None]
    embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)
