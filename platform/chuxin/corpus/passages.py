"""Curate, the half for raw text: documents become passages, each with its measures and a status.

Two steps. `map_documents` cleans some documents and writes their passages by bucket of the text hash, into
tables `passages-bNNN`; `reduce_passages` reads one bucket of every map partition, finds the duplicates and
writes the final table `passages`. Memory: a map step holds its own output, a reduce step 17 bytes a passage.

Leaves out: which partitions there are and whether every row came through once (pipeline.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from chuxin.artifacts import add_bins, checksum
from chuxin.corpus.config import CurateConfig
from chuxin.corpus.decontaminate import BenchmarkIndex, open_index
from chuxin.corpus.dedup import duplicates
from chuxin.corpus.filters import measure, status
from chuxin.corpus.normalize import normalize, normalize_line
from chuxin.corpus.split import split
from chuxin.files import open_parquet
from chuxin.ids import hash63, match_key, passage_id
from chuxin.schema import KEEP, PASSAGES

if TYPE_CHECKING:
    from chuxin.artifacts import Attempt

# Whichever measures the schema has a column for are kept.
_COLUMNS = PASSAGES.names
BENCHMARK_GOLD, DUPLICATE, FORGOTTEN = "benchmark_gold", "duplicate", "forgotten"


def clean_document(
    document: Mapping[str, Any], config: CurateConfig, index: BenchmarkIndex, forgotten: Set[int] = frozenset()
) -> tuple[list[tuple], int]:
    """Cleans one document.

    Args:
        document: A row of DOCUMENTS.
        config: Curate's.
        index: The benchmarks' texts.
        forgotten: Hashes of texts that no row may hold any more.

    Returns:
        Its passages as tuples in the order of PASSAGES, and the benchmark whose gold passage it holds, or -1.
    """
    text = normalize(document["text"], config.normalize)
    title = normalize_line(document["title"], config.normalize)
    spans = list(split(text, config.split))
    texts = [text[start:end] for start, end in spans]
    keys = [match_key(passage) for passage in texts]
    # What lies between passages is blank, so their keys in a row are the document's key.
    gold = index.gold_inside("".join(keys))
    own, source, rows = document["document_id"], document["source"], []
    for (start, _), passage, key in zip(spans, texts, keys, strict=True):
        measures = measure(passage)
        reason = status(measures, config.filters)
        if reason == KEEP and gold >= 0 and config.drop_gold_from_raw:
            reason = BENCHMARK_GOLD
        values = {
            **measures._asdict(), "passage_id": passage_id(own, start), "document_id": own, "offset": start,
            "source": source, "title": title, "text": passage, "holds_gold": gold >= 0, "status": reason,
            "text_hash": hash63("text", key),  # ids.text_hash(passage), without computing the key again
        }
        if values["text_hash"] in forgotten:
            values |= {"title": "", "text": "", "status": FORGOTTEN}
        rows.append(tuple(values[name] for name in _COLUMNS))
    return rows, gold


def map_documents(
    config: CurateConfig, index_files: tuple[str, ...], forgotten: Set[int], key: str, item: Mapping[str, Any],
    attempt: Attempt,
) -> None:  # fmt: skip
    """Cleans the documents of some row groups and writes their passages by bucket.

    Args:
        config: Curate's.
        index_files: Tables of the benchmarks' texts.
        forgotten: Hashes of texts that no row may hold any more.
        key: The partition's key.
        item: "file", and the range "start" to "end" of its row groups.
        attempt: Where the rows go.
    """
    index = open_index(index_files)
    file = open_parquet(item["file"])
    buckets: list[list[pa.Table]] = [[] for _ in range(config.buckets)]
    ids, rows_in, empty, gold = [], 0, 0, Counter[str]()
    for group in range(item["start"], item["end"]):
        documents = file.read_row_group(group, columns=["document_id", "source", "title", "text"])
        ids.append(documents["document_id"].to_numpy())
        rows: list[tuple] = []
        for document in documents.to_pylist():
            passages, owner = clean_document(document, config, index, forgotten)
            rows += passages
            empty += not passages
            if owner >= 0:
                gold[index.names[owner]] += 1
        rows_in += documents.num_rows
        for bucket, part in by_bucket(to_table(rows, PASSAGES), "text_hash", config.buckets):
            buckets[bucket].append(part)
    for bucket, parts in enumerate(buckets):
        if parts:
            attempt.write(bucket_table("passages", bucket), [pa.concat_tables(parts)], PASSAGES, "passage_id")
    attempt.count(rows_in=rows_in, drops={"empty_document": empty} if empty else {},
                  facts={"ids_read": checksum(ids), "gold_documents": dict(gold)})


def reduce_passages(
    maps: Sequence[tuple[str, frozenset[str]]], key: str, item: Mapping[str, Any], attempt: Attempt
) -> None:
    """Finds the duplicates of one bucket and writes its passages.

    Args:
        maps: Directory and tables of every map partition, in order.
        key: The partition's key.
        item: "bucket".
        attempt: Where the rows go.
    """
    table = bucket_table("passages", item["bucket"])
    files = [f"{directory}/{table}.parquet" for directory, tables in maps if table in tables]
    columns = ["text_hash", "passage_id", "status"]
    heads = pa.concat_tables(open_parquet(file).read(columns=columns) for file in files)
    keep = heads["status"].to_numpy() == KEEP
    repeated = duplicates(heads["text_hash"].to_numpy(), heads["passage_id"].to_numpy(), keep)
    counts, bins = Counter[tuple[str, str]](), [list[int]()]
    rows = with_status(files, repeated, _passage_chars, counts, bins)
    attempt.write("passages", rows, PASSAGES, "passage_id")
    count_statuses(attempt, counts, {"passage_chars": bins[0]})


def _passage_chars(passages: pa.Table) -> np.ndarray:
    return passages["n_chars"].to_numpy()


def with_status(
    files: Sequence[str], repeated: np.ndarray, lengths_of: Callable[[pa.Table], np.ndarray],
    counts: Counter[tuple[str, str]], bins: list[list[int]],
) -> Iterator[pa.Table]:
    """Streams a bucket's rows with their final status, one row group at a time.

    Args:
        files: The map partitions' tables of the bucket.
        repeated: Which of all their rows repeat another, bool [N].
        lengths_of: The lengths that `bins` counts, of the rows that are kept.
        counts: Is filled with the rows by (source, status).
        bins: Its one element is replaced by the histogram.
    """
    start = 0
    for file in map(open_parquet, files):
        for group in range(file.num_row_groups):
            part = file.read_row_group(group)
            final = np.where(repeated[start:start + part.num_rows], DUPLICATE, part["status"].to_numpy())
            start += part.num_rows
            counts.update(zip(part["source"].to_pylist(), final.tolist(), strict=True))
            bins[0] = add_bins(bins[0], power_bins(lengths_of(part)[final == KEEP]))
            column = part.schema.get_field_index("status")
            yield part.set_column(column, "status", pa.array(final, pa.string()))


def to_table(rows: Sequence[tuple], schema: pa.Schema) -> pa.Table:
    """Turns tuples in the order of a schema into a table."""
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def by_bucket(table: pa.Table, column: str, buckets: int) -> Iterator[tuple[int, pa.Table]]:
    """Yields (bucket, rows) for the buckets that have rows; a row's bucket is `column` modulo `buckets`."""
    owner = table[column].to_numpy() % buckets
    order = np.argsort(owner, kind="stable")
    table, edges = table.take(order), np.searchsorted(owner[order], np.arange(buckets + 1))
    for bucket in range(buckets):
        if edges[bucket] < edges[bucket + 1]:
            yield bucket, table.slice(edges[bucket], edges[bucket + 1] - edges[bucket])


def bucket_table(name: str, bucket: int) -> str:
    """Returns the name of a map step's table for a bucket."""
    return f"{name}-b{bucket:03d}"


def power_bins(lengths: np.ndarray) -> list[int]:
    """Counts lengths by power of two: bin i holds the lengths in [2^i, 2^(i + 1))."""
    return np.bincount(np.frexp(lengths)[1] - 1).tolist() if len(lengths) else []


def count_statuses(
    attempt: Attempt, counts: Counter[tuple[str, str]], histograms: Mapping[str, Sequence[int]]
) -> None:
    """Notes the final rows: those kept go out, the others are drops by reason; and both by source."""
    drops, by_source = Counter[str](), dict[str, dict[str, int]]()
    for (source, reason), number in sorted(counts.items()):
        by_source.setdefault(source, {})[reason] = number
        if reason != KEEP:
            drops[reason] += number
    kept = sum(number for (_, reason), number in counts.items() if reason == KEEP)
    attempt.count(rows_out=kept, drops=drops, histograms=histograms, facts={"by_source": by_source})
