"""Curate, the half for labelled sets: groups are normalised, checked against the benchmarks and judged by
the rules.

The same two steps as for raw text: `map_groups` writes tables `groups-bNNN` by bucket of a group's key (its
query and its positives), `reduce_groups` finds the groups that repeat another and writes the final table
`groups`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chuxin.artifacts import checksum
from chuxin.corpus.config import CurateConfig
from chuxin.corpus.contents import contents_share
from chuxin.corpus.decontaminate import DISTRACTOR, GOLD, QUERY, BenchmarkIndex, open_index
from chuxin.corpus.dedup import duplicates
from chuxin.corpus.normalize import normalize, normalize_line
from chuxin.corpus.passages import FORGOTTEN, bucket_table, by_bucket, count_statuses, with_status
from chuxin.files import open_parquet
from chuxin.ids import hash63, text_hash
from chuxin.pairs.rules import Passage, judge
from chuxin.schema import GROUPS, KEEP

if TYPE_CHECKING:
    from chuxin.artifacts import Attempt

CONTAMINATED_QUERY, CONTAMINATED_POSITIVE = "contaminated_query", "contaminated_positive"
_MAPPED = GROUPS.append(pa.field("group_key", pa.int64()))

Row = dict[str, Any]


class _Normalised(NamedTuple):
    query: str
    query_hash: int
    positives: list[Passage]
    negatives: list[Passage]


def clean_groups(
    groups: Sequence[Row], config: CurateConfig, index: BenchmarkIndex, forgotten: Set[int] = frozenset()
) -> tuple[list[Row], dict[str, Any]]:
    """Cleans some groups.

    Args:
        groups: Rows of GROUPS, raw.
        config: Curate's.
        index: The benchmarks' texts.
        forgotten: Hashes of texts that no row may hold any more.

    Returns:
        The rows with their status and "group_key"; and counts by name: "passages_dropped" by reason, and by
        benchmark the groups "contaminated_query" and "contaminated_positive" and the passages
        "distractor_matches".
    """
    is_contents = partial(_is_contents, config.filters.max_contents_share)
    given = [_normalise(group, config) for group in groups]
    cleaned = [own._replace(positives=_without(own.positives, forgotten), negatives=_without(own.negatives, forgotten))
               for own in given]
    leaks, counts = _find_leaks(groups, given, index)
    gone = sum(len(own.positives) + len(own.negatives) for own in given)
    gone -= sum(len(own.positives) + len(own.negatives) for own in cleaned)
    rows, dropped = [], Counter[str]({FORGOTTEN: gone} if gone else {})
    for group, own, leak in zip(groups, cleaned, leaks, strict=True):
        judged = judge(*own, config.rules, is_contents)
        dropped += judged.dropped
        rows.append({
            **group, "query": own.query, "query_hash": own.query_hash, "status": leak or judged.status,
            "positives": [p._asdict() for p in judged.positives],
            "negatives": [p._asdict() for p in judged.negatives],
            "group_key": hash63(own.query_hash, *sorted(p.text_hash for p in judged.positives)),
        })
    return rows, {**counts, "passages_dropped": dict(dropped)}


def _normalise(group: Row, config: CurateConfig) -> _Normalised:
    query = normalize_line(group["query"], config.normalize)
    sides = []
    for passages in (group["positives"], group["negatives"]):
        texts = [normalize(passage["text"], config.normalize) for passage in passages]
        sides.append([Passage(passage["passage_id"], text, text_hash(text), passage["score"])
                      for passage, text in zip(passages, texts, strict=True)])
    return _Normalised(query, text_hash(query), *sides)


def _without(passages: Sequence[Passage], forgotten: Set[int]) -> list[Passage]:
    return [passage for passage in passages if passage.text_hash not in forgotten]


def _is_contents(limit: float, text: str) -> bool:
    return contents_share(text) > limit


def _find_leaks(
    groups: Sequence[Row], cleaned: Sequence[_Normalised], index: BenchmarkIndex
) -> tuple[list[str], dict[str, Any]]:
    """Returns each group's leak ("" for none) and the counts by benchmark; texts count as they came and as
    cleaned.
    """
    queries = _matches(index, QUERY, [g["query_hash"] for g in groups], [c.query_hash for c in cleaned])
    sides, owners = {}, {}
    for side in ("positives", "negatives"):
        raw = [p["text_hash"] for g in groups for p in g[side]]
        own = [p.text_hash for c in cleaned for p in getattr(c, side)]
        sides[side] = {role: _matches(index, role, raw, own) for role in (GOLD, DISTRACTOR)}
        owners[side] = np.repeat(np.arange(len(groups)), [len(g[side]) for g in groups])
    positives = np.full(len(groups), -1)
    np.maximum.at(positives, owners["positives"], sides["positives"][GOLD])
    distractors = Counter[str]()
    for found in sides.values():
        distractors += index.count(np.where(found[GOLD] < 0, found[DISTRACTOR], -1))
    leaks = np.where(positives >= 0, CONTAMINATED_POSITIVE, "")
    leaks = np.where(queries >= 0, CONTAMINATED_QUERY, leaks).tolist()
    counts = {CONTAMINATED_QUERY: index.count(queries), CONTAMINATED_POSITIVE: index.count(positives),
              "distractor_matches": distractors}
    return leaks, {name: dict(number) for name, number in counts.items()}


def _matches(index: BenchmarkIndex, role: str, raw: Sequence[int], own: Sequence[int]) -> np.ndarray:
    return np.maximum(index.match(role, np.array(raw, np.int64)), index.match(role, np.array(own, np.int64)))


def map_groups(
    config: CurateConfig, index_files: tuple[str, ...], forgotten: Set[int], key: str, item: Mapping[str, Any],
    attempt: Attempt,
) -> None:  # fmt: skip
    """Cleans the groups of some row groups (of Parquet) and writes them by bucket; see
    `passages.map_documents`.
    """
    index, file = open_index(index_files), open_parquet(item["file"])
    buckets: list[list[pa.Table]] = [[] for _ in range(config.buckets)]
    ids, rows_in, facts = [], 0, dict[str, Counter[str]]()
    for group in range(item["start"], item["end"]):
        raw = file.read_row_group(group)
        ids.append(raw["query_id"].to_numpy())
        rows_in += raw.num_rows
        rows, counts = clean_groups(raw.to_pylist(), config, index, forgotten)
        for name, number in counts.items():
            facts.setdefault(name, Counter()).update(number)
        for bucket, part in by_bucket(pa.Table.from_pylist(rows, _MAPPED), "group_key", config.buckets):
            buckets[bucket].append(part)
    for bucket, parts in enumerate(buckets):
        if parts:
            attempt.write(bucket_table("groups", bucket), [pa.concat_tables(parts)], _MAPPED, "query_id")
    totals = {name: dict(number) for name, number in facts.items()}
    attempt.count(rows_in=rows_in, facts={**totals, "ids_read": checksum(ids)})


def reduce_groups(
    maps: Sequence[tuple[str, frozenset[str]]], key: str, item: Mapping[str, Any], attempt: Attempt
) -> None:
    """Finds the groups of one bucket that repeat another and writes them; see `passages.reduce_passages`."""
    table = bucket_table("groups", item["bucket"])
    files = [f"{directory}/{table}.parquet" for directory, tables in maps if table in tables]
    columns = ["group_key", "query_id", "status"]
    heads = pa.concat_tables(open_parquet(file).read(columns=columns) for file in files)
    keep = heads["status"].to_numpy() == KEEP
    repeated = duplicates(heads["group_key"].to_numpy(), heads["query_id"].to_numpy(), keep)
    counts, bins = Counter[tuple[str, str]](), [list[int]()]
    rows = with_status(files, repeated, _query_chars, counts, bins)
    attempt.write("groups", rows, GROUPS, "query_id")
    count_statuses(attempt, counts, {"query_chars": bins[0]})


def _query_chars(groups: pa.Table) -> np.ndarray:
    return pc.utf8_length(groups["query"]).to_numpy()
