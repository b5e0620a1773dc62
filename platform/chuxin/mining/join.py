"""Joins what spans and miners found into one list of candidates a query.

A passage that several miners found is one candidate with several ranks. What the group came with stands in too: its
positives as `given`, its negatives as candidates of their own, whether or not a miner found them. A passage of the
group that was cut for an LLM never comes back uncut. Ranks count what the miner found, the group's own passages and
what was left out included. Leaves out: scores of a cross-encoder, choosing (select.py).

Shapes: Q queries, K results a query, N candidates of all queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from chuxin.mining.find import Given, Hits
from chuxin.schema import CANDIDATE, CANDIDATES

MINERS = ("dense", "sparse", "bm25")
NO_RANK = np.iinfo(np.int32).max


def join_spans(parts: Sequence[Hits], keep: int) -> Hits:
    """Returns the best of all spans; of equal scores those of the earlier span stand before."""
    joined = Hits(*(np.concatenate(column, axis=1) for column in zip(*parts, strict=True)))
    order_QK = np.argsort(-joined.score_QK, axis=1, kind="stable")[:, :keep]
    return Hits(*(np.take_along_axis(column, order_QK, axis=1) for column in joined))


def join_miners(
    groups: pa.Table, given: Given, given_dense_G: np.ndarray, hits: Mapping[str, Hits]
) -> pa.Table:
    """Builds the table of candidates.

    Args:
        groups: Rows of GROUPS to keep.
        given: What they came with.
        given_dense_G: float32, its dense scores.
        hits: What each miner found over all spans.

    Returns:
        A table of CANDIDATES in the order of the groups. No candidate has the query's own text; one that has the
        text of an own positive *is* that positive; and a mined one of an own passage's id but of another text (the
        document uncut, which answers the query as well) is left out.
    """
    columns = _stack(given, given_dense_G, hits)
    # The group's own stand first within (query, text), so that a candidate goes by the id that the group knows.
    order = np.lexsort((columns["class"], columns["hash"], columns["query"]))
    columns = {name: column[order] for name, column in columns.items()}
    query, text = columns["query"], columns["hash"]
    first = np.flatnonzero(np.r_[True, (query[1:] != query[:-1]) | (text[1:] != text[:-1])]) if len(query) else \
        np.zeros(0, np.int64)  # fmt: skip
    found = {name: columns[name][first] for name in ("query", "hash", "id")}
    found["class"] = columns["class"][first]
    found["given"] = found["class"] == 0
    for miner in MINERS:
        found[miner] = _reduce(np.fmax, columns[miner], first)
        found[f"{miner}_rank"] = _reduce(np.minimum, columns[f"{miner}_rank"], first)
    own_hash = groups["query_hash"].to_numpy()
    known = locate(found["query"], found["id"], given.owner_G, given.id_G) >= 0
    kept = found["given"] | ((found["hash"] != own_hash[found["query"]]) & ~(known & (found["class"] == 2)))
    found = {name: column[kept] for name, column in found.items()}
    others = np.minimum(found["sparse_rank"], found["bm25_rank"])
    order = np.lexsort((found["hash"], others, found["dense_rank"], found["query"]))
    found = {name: column[order] for name, column in found.items()}
    bounds = np.searchsorted(found["query"], np.arange(len(groups) + 1)).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(bounds), _structs(found))
    return groups.append_column("candidates", lists).select(CANDIDATES.names).cast(CANDIDATES)


def locate(row_M: np.ndarray, value_M: np.ndarray, row_G: np.ndarray, value_G: np.ndarray) -> np.ndarray:
    """Returns where each (row, hash or id) first stands among others, int64 [M], −1 where it does not."""
    found_M = np.full(len(row_M), -1, np.int64)
    if not len(value_G):
        return found_M
    values, code_G = np.unique(value_G, return_inverse=True)
    key_G, first = np.unique(row_G * len(values) + code_G, return_index=True)
    code_M = np.minimum(np.searchsorted(values, value_M), len(values) - 1)
    held = np.flatnonzero(values[code_M] == value_M)  # few: the rest of the work is on them alone
    key = row_M[held] * len(values) + code_M[held]
    place = np.minimum(np.searchsorted(key_G, key), len(key_G) - 1)
    found_M[held] = np.where(key_G[place] == key, first[place], -1)
    return found_M


def _stack(given: Given, given_dense_G: np.ndarray, hits: Mapping[str, Hits]) -> dict[str, np.ndarray]:
    """All finds as rows: query, text, passage, class (0 own positive, 1 own negative, 2 mined), scores, ranks."""
    own = {"query": given.owner_G, "hash": given.hash_G, "id": given.id_G,
           "class": np.where(given.positive_G, 0, 1), "dense": given_dense_G}  # fmt: skip
    parts = [_filled(own)]
    for miner, found in hits.items():
        query_N, column_N = np.nonzero(found.id_QK >= 0)
        place = query_N, column_N
        rows = {"query": query_N, "hash": found.hash_QK[place], "id": found.id_QK[place],
                "class": np.full(len(query_N), 2), "dense": found.dense_QK[place]}  # fmt: skip
        rows |= {miner: found.score_QK[place], f"{miner}_rank": column_N + 1}
        parts.append(_filled(rows))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _filled(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    size = len(rows["query"])
    for miner in MINERS:
        rows.setdefault(miner, np.full(size, np.nan, np.float32))
        rows.setdefault(f"{miner}_rank", np.full(size, NO_RANK))
    return rows


def _reduce(function: np.ufunc, column: np.ndarray, first: np.ndarray) -> np.ndarray:
    return function.reduceat(column, first) if len(first) else column


def _structs(found: Mapping[str, np.ndarray]) -> pa.StructArray:
    size = len(found["query"])
    columns = {"passage_id": pa.array(found["id"], pa.int64()), "text_hash": pa.array(found["hash"], pa.int64()),
               "given": pa.array(found["given"], pa.bool_())}  # fmt: skip
    for miner in MINERS:
        score, rank = found[miner], found[f"{miner}_rank"]
        columns[miner] = pa.array(score, pa.float32(), mask=np.isnan(score))
        columns[f"{miner}_rank"] = pa.array(rank, pa.int32(), mask=rank == NO_RANK)
    for field in CANDIDATE:
        columns.setdefault(field.name, pa.nulls(size, field.type))
    return pa.StructArray.from_arrays([columns[field.name] for field in CANDIDATE], fields=list(CANDIDATE))
