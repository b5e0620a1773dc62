"""Candidates as flat columns, one entry a candidate of any group: what rerank and select compute on.

Leaves out: how candidates are found (find.py, join.py).

Shapes: Q groups, N candidates of all groups, M and G any entries.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chuxin.mining.inputs import passages_of
from chuxin.mining.join import MINERS, NO_RANK, locate


class Columns(NamedTuple):
    """Candidates of Q groups; scores are NaN and ranks NO_RANK where there are none."""

    row_N: np.ndarray
    """int64, the group; ascending."""
    id_N: np.ndarray
    hash_N: np.ndarray
    given_N: np.ndarray
    """bool, an own positive."""
    own_negative_N: np.ndarray
    """bool, an own negative (and no own positive)."""
    own_N: np.ndarray
    """int64, index among the groups' own passages (positives, then negatives), −1 for a mined one."""
    dense_N: np.ndarray
    rerank_N: np.ndarray
    rank: dict[str, np.ndarray]
    """int64 [N], by miner, and "best" of them."""
    relabel_N: np.ndarray
    """int8, 1 for "yes", −1 for "no", 0 for nothing."""


def read_columns(table: pa.Table) -> Columns:
    """Takes the candidates of a table of CANDIDATES apart."""
    row_N, flat = passages_of(table, "candidates")

    def floats(name: str) -> np.ndarray:
        return pc.fill_null(flat.field(name), np.nan).to_numpy(zero_copy_only=False)

    own_row, own = own_passages(table)
    hash_N = flat.field("text_hash").to_numpy(zero_copy_only=False)
    own_N = locate(row_N, hash_N, own_row, own["text_hash"].to_numpy())
    given_N = flat.field("given").to_numpy(zero_copy_only=False).astype(bool)
    rank = {miner: pc.fill_null(flat.field(f"{miner}_rank").cast(pa.int64()), NO_RANK).to_numpy(zero_copy_only=False)
            for miner in MINERS}  # fmt: skip
    rank["best"] = np.minimum.reduce(list(rank.values()))
    words = flat.field("relabel")
    yes, no = (pc.fill_null(pc.equal(words, word), False).to_numpy(zero_copy_only=False) for word in ("yes", "no"))
    return Columns(
        row_N, flat.field("passage_id").to_numpy(zero_copy_only=False), hash_N, given_N, (own_N >= 0) & ~given_N,
        own_N, floats("dense"), floats("rerank"), rank, yes.astype(np.int8) - no.astype(np.int8),
    )  # fmt: skip


def own_passages(table: pa.Table) -> tuple[np.ndarray, pa.Table]:
    """Returns the groups' own passages, positives and then negatives, and the row each belongs to."""
    rows, parts = [], []
    for side in ("positives", "negatives"):
        row, passages = passages_of(table, side)
        rows.append(row)
        parts.append(pa.Table.from_struct_array(passages))
    return np.concatenate(rows), pa.concat_tables(parts).combine_chunks()
