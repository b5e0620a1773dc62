"""Chooses each group's positives and negatives among its scored candidates; a pure function of a table.

A score never leaves its candidate until it stands beside its passage: what is filtered are indices of candidates.
Groups that end without positives or negatives stay in the table, their status says why. Leaves out: finding and
scoring candidates.

Shapes: Q groups, N candidates of all groups, M chosen ones.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chuxin.errors import InputError
from chuxin.mining.columns import Columns, own_passages, read_columns
from chuxin.mining.config import SelectConfig
from chuxin.mining.draws import Filled, fill, mix
from chuxin.mining.join import NO_RANK
from chuxin.report.bins import score_bins
from chuxin.schema import GROUPS, KEEP, PASSAGE
from chuxin.search.store import PassageStore

FILLED = pa.schema([("query_id", pa.int64()), ("passage_id", pa.int64()), ("text_hash", pa.int64())])
"""Negatives that were drawn from the whole store to fill a group up."""
NO_POSITIVE, NO_NEGATIVE, ROUND_TRIP = "no_positive", "no_negative", "round_trip"


class Choice(NamedTuple):
    """Indices of the chosen candidates in the order of the groups, and why others fell."""

    positive_M: np.ndarray
    negative_M: np.ndarray
    reasons: Counter[str]


class Counts(NamedTuple):
    """Groups that are kept, the others by reason, by source, and the chosen passages' scores."""

    kept: int
    drops: Counter[str]
    by_source: dict[str, dict[str, int]]
    histograms: dict[str, list[int]]


def select_table(
    table: pa.Table, store: PassageStore, config: SelectConfig, where: str
) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    """Turns CANDIDATES into GROUPS.

    Args:
        table: CANDIDATES.
        store: Holds the texts of mined passages.
        config: The rules.
        where: The file, for messages.

    Returns:
        The groups, all of them and in their order; the rows of `FILLED`; and passages by what became of them.

    Raises:
        InputError: The config asks for scores of a reranker and the table has none.
    """
    columns = read_columns(table)
    if config.score == "rerank" and len(columns.row_N) and np.isnan(columns.rerank_N).all():
        remedy = "Give the rerank stage's artifact, or set select.score: dense and bounds that fit it"
        raise InputError(where, "no candidate has a score of a reranker", remedy)
    size = len(table)
    choice = choose(columns, table["query_id"].to_numpy(), config)
    status = _status(columns, choice, table, config)
    filled = fill(store, columns, table, choice.negative_M, config) if config.negatives.random_fill else None
    negatives = _counts(columns.row_N[choice.negative_M], size)
    if filled is not None:
        negatives = negatives + _counts(filled.row_M, size)
    status[(status == KEEP) & (negatives < config.min_negatives)] = NO_NEGATIVE
    sides = {"positives": _side(columns, choice.positive_M, table, store, config),
             "negatives": _side(columns, choice.negative_M, table, store, config, filled)}  # fmt: skip
    fixed = {name: table[name] for name in ("query_id", "query", "query_hash", "source", "lineage")}
    groups = pa.table({**fixed, **sides, "status": pa.array(status, pa.string())}).select(GROUPS.names).cast(GROUPS)
    marked = FILLED.empty_table()
    if filled is not None:
        query_id = table["query_id"].to_numpy()[filled.row_M]
        marked = pa.table([query_id, filled.id_M, filled.hash_M], schema=FILLED)
        choice.reasons["random_fill"] = len(marked)
    return groups, marked, dict(choice.reasons)


def choose(columns: Columns, query_id_Q: np.ndarray, config: SelectConfig) -> Choice:
    """Applies the rules to all candidates at once."""
    positive, negative = config.positives, config.negatives
    score_N = columns.rerank_N if config.score == "rerank" else columns.dense_N
    rank_N = columns.rank[config.rank_by]
    word_N = columns.relabel_N if config.use_relabel else np.zeros_like(columns.relabel_N)
    high_N = np.where(word_N == 0, _over(score_N, positive.above), word_N > 0)
    false_N = np.where(word_N == 0, _under(score_N, negative.below, strict=True), word_N < 0)
    low_N = false_N & ((word_N < 0) | ~_under(score_N, negative.at_least, strict=False))
    mined_N = columns.own_N < 0

    own_N = columns.given_N & high_N
    best_Q = _extreme(np.maximum, own_N, score_N, columns.row_N, len(query_id_Q))
    near_N = np.ones(len(score_N), bool)
    if positive.below_given is not None:
        near_N = ~(score_N < best_Q[columns.row_N] - positive.below_given)  # without an own one there is no bound
    found_N = (mined_N | (columns.own_negative_N & (word_N > 0))) & high_N & near_N & positive.mined
    found_N &= (rank_N >= positive.first_rank) & (rank_N <= positive.last_rank)
    order_N = np.where(np.isnan(score_N), np.inf, -score_N)
    positive_M = _first(np.flatnonzero(own_N | found_N), columns, (order_N, ~columns.given_N), positive.most)

    stayed_N = np.zeros(len(score_N), bool)
    stayed_N[positive_M] = True
    base_Q = _extreme(np.minimum, stayed_N & columns.given_N, columns.dense_N, columns.row_N, len(query_id_Q))
    mined_base_Q = _extreme(np.minimum, stayed_N, columns.dense_N, columns.row_N, len(query_id_Q))
    base_N = np.where(np.isnan(base_Q), mined_base_Q, base_Q)[columns.row_N]
    window_N = mined_N & (rank_N >= negative.first_rank) & (rank_N <= negative.last_rank) & ~stayed_N
    close_N = _within_margin(columns.dense_N, base_N, negative.relative_margin, negative.absolute_margin)
    # Without a bound nothing is known to be false: an own passage beyond `positives.most` is a true one.
    known_N = (word_N < 0) if negative.below is None else false_N
    false_positive_N = columns.given_N & known_N & ~stayed_N
    kind_N = np.full(len(score_N), 3)
    kind_N[window_N & low_N & ~close_N] = 2
    if negative.own:
        kind_N[columns.own_negative_N & low_N & ~stayed_N] = 1
    if negative.false_positives:
        kind_N[false_positive_N] = 0
    drawn_N = order_N.astype(np.float64)
    if negative.draw == "random":
        random = kind_N == 2
        drawn_N[random] = mix(config.seed, query_id_Q[columns.row_N[random]], columns.hash_N[random]) * 2.0**-64
    negative_M = _first(np.flatnonzero(kind_N < 3), columns, (drawn_N, kind_N), negative.most)
    reasons = Counter({
        "own_positive": int((stayed_N & columns.given_N).sum()), "mined_positive": int((stayed_N & mined_N).sum()),
        "false_positive": int(false_positive_N.sum()), "negative": len(negative_M),
        "own_positive_between_bounds": int((columns.given_N & ~high_N & ~known_N).sum()),
        "negative_out_of_bounds": int((window_N & ~low_N & ~np.isnan(score_N)).sum()),
        "not_scored": int((window_N & ~low_N & np.isnan(score_N)).sum()),
        "negative_within_margin": int((window_N & low_N & close_N).sum()),
    })  # fmt: skip
    return Choice(positive_M, negative_M, reasons)


def count_selected(groups: pa.Table, score: str) -> Counts:
    """Counts the selected groups; `score` is the config's: what the scores are."""
    by_source: dict[str, dict[str, int]] = {}
    drops: Counter[str] = Counter()
    pairs = groups.group_by(["source", "status"], use_threads=False).aggregate([([], "count_all")]).to_pylist()
    for row in pairs:
        by_source.setdefault(row["source"], {})[row["status"]] = row["count_all"]
        if row["status"] != KEEP:
            drops[row["status"]] += row["count_all"]
    kept = groups.filter(pc.equal(groups["status"], KEEP))
    histograms = {}
    for side in ("positives", "negatives"):
        scores = kept[side].combine_chunks().flatten().field("score") if len(kept) else pa.nulls(0, pa.float32())
        scores = scores.combine_chunks() if isinstance(scores, pa.ChunkedArray) else scores
        kind = "logit" if score == "rerank" else "cosine"
        scores_N = pc.fill_null(scores, np.nan).to_numpy(zero_copy_only=False)
        histograms[f"{kind}_{side}"] = score_bins(kind, scores_N)
    return Counts(len(kept), drops, by_source, histograms)


def _over(score_N: np.ndarray, bound: float | None) -> np.ndarray:
    return np.ones(len(score_N), bool) if bound is None else score_N > bound


def _under(score_N: np.ndarray, bound: float | None, strict: bool) -> np.ndarray:
    """Which scores lie under a bound; without one all do if it is an upper bound (strict), none if a lower one."""
    return np.full(len(score_N), strict) if bound is None else score_N < bound


def _within_margin(
    dense_N: np.ndarray, base_N: np.ndarray, relative: float | None, absolute: float | None
) -> np.ndarray:
    """Whether a dense score is too near the positive's; with no score to compare, it is not known to be far."""
    near_N = np.zeros(len(dense_N), bool)
    if relative is not None:
        near_N |= ~(dense_N < base_N - (1 - relative) * np.abs(base_N))
    if absolute is not None:
        near_N |= ~(dense_N <= base_N - absolute)
    return near_N


def _extreme(function: np.ufunc, chosen_N: np.ndarray, value_N: np.ndarray, row_N: np.ndarray, size: int) -> np.ndarray:
    """The extreme of each row's chosen values, float32 [Q]; NaN where there are none."""
    start = -np.inf if function is np.maximum else np.inf
    extreme_Q = np.full(size, start, np.float32)
    real_N = chosen_N & ~np.isnan(value_N)
    function.at(extreme_Q, row_N[real_N], value_N[real_N])
    return np.where(np.isinf(extreme_Q), np.nan, extreme_Q)


def _first(index_M: np.ndarray, columns: Columns, keys: tuple[np.ndarray, ...], most: int) -> np.ndarray:
    """The first `most` of each row in the order of the keys, the last key first; equal ones by hash."""
    row_M = columns.row_N[index_M]
    order = np.lexsort((columns.hash_N[index_M], *(key[index_M] for key in keys), row_M))
    place = np.arange(len(order)) - np.searchsorted(row_M[order], row_M[order])
    return index_M[order[place < most]]


def _counts(row_M: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(row_M, minlength=size)


def _status(columns: Columns, choice: Choice, table: pa.Table, config: SelectConfig) -> np.ndarray:
    status = np.full(len(table), KEEP, object)
    status[_counts(columns.row_N[choice.positive_M], len(table)) < config.min_positives] = NO_POSITIVE
    asked = pc.starts_with(table["source"], config.round_trip_sources).to_numpy()
    for miner, within in config.round_trip.items():
        back = columns.given_N & (columns.rank[miner] <= min(within, NO_RANK - 1))
        status[asked & (_counts(columns.row_N[back], len(table)) == 0)] = ROUND_TRIP
    return status


def _side(
    columns: Columns, chosen_M: np.ndarray, table: pa.Table, store: PassageStore, config: SelectConfig,
    filled: Filled | None = None,
) -> pa.ListArray:  # fmt: skip
    """One list of passages a group: text, hash, id and score of the same candidate."""
    own_M, score_N = columns.own_N[chosen_M], columns.rerank_N if config.score == "rerank" else columns.dense_N
    texts = np.empty(len(chosen_M), object)
    texts[own_M >= 0] = own_passages(table)[1]["text"].take(pa.array(own_M[own_M >= 0])).to_pylist()
    texts[own_M < 0] = store.texts(columns.hash_N[chosen_M[own_M < 0]])
    parts = [(columns.row_N[chosen_M], columns.id_N[chosen_M], texts, columns.hash_N[chosen_M], score_N[chosen_M])]
    if filled is not None:
        unscored = np.full(len(filled.row_M), np.nan, np.float32)
        drawn = np.array(store.texts(filled.hash_M), object)
        parts.append((filled.row_M, filled.id_M, drawn, filled.hash_M, unscored))
    row_M, id_M, texts, hash_M, score_M = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(row_M, kind="stable")
    arrays = [pa.array(id_M[order]), pa.array(texts[order], pa.string()), pa.array(hash_M[order]),
              pa.array(score_M[order], pa.float32(), mask=np.isnan(score_M[order]))]  # fmt: skip
    bounds = np.r_[0, np.cumsum(_counts(row_M, len(table)))].astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(bounds), pa.StructArray.from_arrays(arrays, fields=list(PASSAGE)))

