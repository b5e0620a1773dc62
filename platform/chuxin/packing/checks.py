"""What packing refuses, naming the row: rows that cannot be trained on and plans that their model could not take.

Leaves out: what is checked once a plan is opened for a model (training/plan_reader.py).

Shapes: N groups or texts of a chunk, P passages of the N groups.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chuxin.errors import InputError
from chuxin.models.location import local_directory

_FIX = "Give it one, or the row a status other than keep"


class Limits(NamedTuple):
    """What the model beside a tokenizer can take; None where there is no config.json."""

    path: str
    vocab_size: int | None
    positions: int | None


def model_limits(path: str) -> Limits:
    """Reads the rows of the two embedding tables from the config.json beside a tokenizer."""
    file = Path(local_directory(path)) / "config.json"
    if not file.is_file():
        return Limits(path, None, None)
    config = json.loads(file.read_text(encoding="utf-8"))
    positions = config.get("max_position_embeddings")
    if positions is not None and "roberta" in config.get("model_type", ""):
        positions -= config.get("pad_token_id", 1) + 1  # RoBERTa counts on from its padding id
    return Limits(path, config.get("vocab_size"), positions)


def check_lengths(limits: Limits, **lengths: int) -> None:
    """Raises InputError if a configured length is beyond the model's positions."""
    for name, length in lengths.items():
        if limits.positions is not None and length > limits.positions:
            problem = f"the model has {limits.positions} positions"
            remedy = f"Lower {name} to {limits.positions}, or name a model with more positions"
            raise InputError(f"{name} {length}: {limits.path}", problem, remedy)


def check_ids(limits: Limits, table: pa.Table, where: str) -> None:
    """Raises InputError, naming the row, if a token id of a token table is beyond the model's embeddings.

    Args:
        limits: The model's.
        table: A token table (tokens.py).
        where: Names the input's file.
    """
    if limits.vocab_size is None:
        return
    id_column = table.column_names[1]
    for name in ("token_ids", "query_ids", "positives", "negatives"):
        if name not in table.column_names:
            continue
        column = table[name].combine_chunks()
        owner = pc.list_parent_indices(column).to_numpy()
        flat = column.flatten()
        if pa.types.is_struct(flat.type):
            owner = owner[pc.list_parent_indices(flat.field("token_ids")).to_numpy()]
            flat = flat.field("token_ids").flatten()
        beyond = np.flatnonzero(flat.to_numpy() >= limits.vocab_size)
        if len(beyond):
            row = f"{id_column} {table[id_column][int(owner[beyond[0]])]}"
            problem = f"token id {flat[int(beyond[0])]} is beyond the {limits.vocab_size} embeddings of {limits.path}"
            raise InputError(f"{where}: {row}", problem, "Give the tokenizer and the config.json of one model")


def check_groups(query_id: pa.ChunkedArray, query: pa.Array, passages: Mapping[str, pa.ListArray], where: str) -> None:
    """Raises InputError, naming the row, for a group without a query, without a positive, or with an empty passage."""
    blank = np.flatnonzero(_blank(query))
    if len(blank):
        raise InputError(f"{where}: query_id {query_id[int(blank[0])]}", "the group has no query text", _FIX)
    empty = np.flatnonzero(pc.list_value_length(passages["positives"]).fill_null(0).to_numpy(zero_copy_only=False) == 0)
    if len(empty):
        remedy = "Give every group a positive, or a status other than keep"
        raise InputError(f"{where}: query_id {query_id[int(empty[0])]}", "the group has no positive", remedy)
    for name, column in passages.items():
        flat = column.flatten()
        blank = np.flatnonzero(_blank(flat.field("text")))
        if len(blank):
            group = int(pc.list_parent_indices(column)[int(blank[0])].as_py())
            row = f"query_id {query_id[group]}, passage_id {flat.field('passage_id')[int(blank[0])]}"
            raise InputError(f"{where}: {row}", f"one of the {name} has no text", _FIX)


def check_texts(passage_id: pa.ChunkedArray, text: pa.Array, where: str) -> None:
    """Raises InputError, naming the row, for a passage whose text is null."""
    null = np.flatnonzero(text.is_null().to_numpy(zero_copy_only=False))
    if len(null):
        raise InputError(f"{where}: passage_id {passage_id[int(null[0])]}", "the passage has no text", _FIX)


def _blank(text: pa.Array) -> np.ndarray:
    return (pc.utf8_length(pc.utf8_trim_whitespace(text)).fill_null(0).to_numpy(zero_copy_only=False)) == 0
