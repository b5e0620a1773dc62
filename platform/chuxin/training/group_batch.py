"""A rank's share of a contrastive batch, made ready to encode in the reader's thread.

Leaves out: the plan's file (plan_reader.py), the loss (tiles.py).

Shapes: B queries of this rank, N passages of this rank, T tokens of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from chuxin.models.packed import pinned
from chuxin.training.micro import Part, parts, passes
from chuxin.training.plan_reader import Batch, token_lists


class GroupBatch(NamedTuple):
    """Queries first, then the passages of all groups in their order."""

    step: int
    rows: int
    """Queries of all ranks."""
    parts: list[Part]
    lengths: np.ndarray
    """int64, tokens of each text."""
    ids_T: torch.Tensor
    count_B: np.ndarray
    """int64, passages of each group; the first is the positive."""
    query_hash_B: torch.Tensor
    passage_hash_N: torch.Tensor
    score_N: torch.Tensor
    """fp32, the teacher's; NaN where it gave none."""
    source_B: torch.Tensor
    """int64, the place of each query's source among the plan's; -1 if it is not among them."""
    queries_of_ranks: tuple[np.ndarray, ...]
    """int64, tokens of every rank's queries."""
    passages_of_ranks: tuple[np.ndarray, ...]
    """The same of passages."""


def group_batch(batch: Batch, sources: Sequence[str], seed: int, budget: int) -> GroupBatch:
    """Turns a plan's rows into arrays and micro-batches.

    Args:
        batch: This rank's rows, PLAN_GROUPS.
        sources: The plan's.
        seed: Of dropout.
        budget: Tokens of a micro-batch.
    """
    table = batch.table
    count_B = _numpy(pc.list_value_length(table["passages"]), np.int64)
    passages = pc.list_flatten(table["passages"])
    texts = token_lists(table["query_ids"]) + token_lists(pc.struct_field(passages, "token_ids"))
    row_B = _numpy(table["row"], np.int64)
    place_N = np.arange(count_B.sum()) - np.repeat(np.cumsum(count_B) - count_B, count_B) + 1
    keys = text_keys(seed, batch.step, np.r_[row_B, np.repeat(row_B, count_B)], np.r_[0 * row_B, place_N])
    source_B = pc.fill_null(pc.index_in(table["source"], pa.array(sources, pa.string())), -1)
    made = GroupBatch(
        batch.step, batch.rows, parts(texts, keys, budget, passes(batch.lengths_of_ranks, budget)),
        np.array([len(text) for text in texts], np.int64),
        torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *texts]).astype(np.int64)),
        count_B, _tensor(table["query_hash"], np.int64), _tensor(pc.struct_field(passages, "text_hash"), np.int64),
        _tensor(pc.fill_null(pc.struct_field(passages, "score"), float("nan")), np.float32),
        _tensor(source_B, np.int64), *zip(*batch.sides_of_ranks(), strict=True),
    )  # fmt: skip
    return pinned(made)


def text_keys(seed: int, step: int, row_N: np.ndarray, place_N: np.ndarray) -> np.ndarray:
    """Returns the int32 keys from which texts' dropout follows: the same for any worker count and on any rerun.

    Args:
        seed: Of the training.
        step: From 1.
        row_N: int64, the text's row in the global batch.
        place_N: int64, its place in the row: 0 the query, passages from 1.
    """
    key_N = np.zeros(len(row_N), np.uint64)
    with np.errstate(over="ignore"):
        for number in (np.uint64(seed), np.uint64(step), row_N.astype(np.uint64), place_N.astype(np.uint64)):
            # SplitMix64 (Steele et al. 2014): a bijection of 64 bits after each number.
            key_N = (key_N ^ number) + np.uint64(0x9E3779B97F4A7C15)
            key_N = (key_N ^ (key_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            key_N = (key_N ^ (key_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            key_N ^= key_N >> np.uint64(31)
    return (key_N >> np.uint64(32)).astype(np.uint32).view(np.int32)


def _numpy(column: pa.Array | pa.ChunkedArray, dtype: type) -> np.ndarray:
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column.to_numpy(zero_copy_only=False).astype(dtype)


def _tensor(column: pa.Array | pa.ChunkedArray, dtype: type) -> torch.Tensor:
    return torch.from_numpy(_numpy(column, dtype))
