"""Ingest, one partition: a part of a raw file becomes rows of `documents` or `groups`, and `rejects`.

A malformed row is set aside with its line and reason and is counted; a file that is broken as a whole, or
lacks the field its source must have, stops the job. Leaves out: which parts there are, and the share of
malformed rows over all of them (pipeline.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from chuxin.corpus.config import DocumentSource
from chuxin.corpus.sources import chinesewebtext, plain, wudao
from chuxin.errors import InputError
from chuxin.ids import document_id, passage_id, text_hash
from chuxin.pairs.config import PairSource
from chuxin.pairs.sources import flagembedding, mtp
from chuxin.pairs.sources import plain as plain_pairs
from chuxin.records import Malformed, Part, Record, lines_before, raw_text, read, require_field
from chuxin.schema import DOCUMENTS, GROUPS, KEEP, REJECTS

if TYPE_CHECKING:
    from chuxin.artifacts import Attempt

_BATCH_CHARS = 2 << 20
_EARLY_ROWS = 1000
_EARLY_FACTOR = 10

Row = dict[str, Any]


class Reader:
    """Reads one part row by row; good rows come out as table rows, the others gather in `rejects`."""

    def __init__(self, source: DocumentSource | PairSource, part: Part, max_malformed_share: float) -> None:
        self.source, self.part, self._max_share = source, part, max_malformed_share
        documents = isinstance(source, DocumentSource)
        adapter = _document_adapter if documents else _pair_adapter
        self._parse, self._field, self._columns = adapter(source)
        self._row = _document if documents else _group
        self.rows_in = self.rows_out = 0
        self.rejects: list[Row] = []
        self.drops: Counter[str] = Counter()
        self._lines_before: int | None = None

    def rows(self) -> Iterator[Row]:
        """Yields the rows of the source's table.

        Raises:
            InputError: The file is broken, has no such field, or is malformed far beyond what the config
                allows.
        """
        records = read(self.part, self._columns)
        if self.part.start == 0:
            records = require_field(records, self._field, self.part.path)
        for record in records:
            self.rows_in += 1
            try:
                if record.error:
                    raise Malformed(record.error)
                if not isinstance(record.value, dict):
                    raise Malformed("not_an_object", type(record.value).__name__)
                row = self._row(self.source, self.part.file, record.position, self._parse(record.value))
            except Malformed as fault:
                self._set_aside(record, fault)
                continue
            self.rows_out += 1
            yield row

    def first_reject(self) -> str:
        """Returns "file:line: reason" of the first malformed row, or ""."""
        if not self.rejects:
            return ""
        first = self.rejects[0]
        return f"{self.part.path}:{first['line']}: {first['reason']}"

    def _set_aside(self, record: Record, fault: Malformed) -> None:
        if self._lines_before is None:
            self._lines_before = lines_before(self.part)
        reason = f"{fault.reason}: {fault.detail}" if fault.detail else fault.reason
        self.rejects.append({
            "source": self.source.name, "file": self.part.file, "line": record.line + self._lines_before,
            "position": record.position, "reason": reason, "raw": raw_text(record),
        })
        self.drops[fault.reason] += 1
        if self.rows_in >= _EARLY_ROWS and len(self.rejects) > _EARLY_FACTOR * self._max_share * self.rows_in:
            raise malformed_error(self.first_reject(), len(self.rejects), self.rows_in, self._max_share)


def malformed_error(first: str, malformed: int, rows: int, allowed: float) -> InputError:
    """The error of an input with too many malformed rows; `first` is "file:line: reason"."""
    where, _, reason = first.partition(": ")
    problem = f"{malformed:,} of {rows:,} rows are malformed ({allowed:.2%} may be); the first: {reason}"
    remedy = "Correct the file or the source's format, or raise execution.max_malformed_share"
    return InputError(where, problem, remedy)


def ingest_part(
    max_malformed_share: float, sources: dict[str, Any], key: str, item: Row, attempt: Attempt
) -> None:
    """Computes one partition of ingest.

    Args:
        max_malformed_share: See IngestExecution.
        sources: The config's sources by name.
        key: The partition's key.
        item: "source" (a name) and the fields of a Part.
        attempt: Where the rows go.
    """
    source = sources[item["source"]]
    part = Part(**{name: item[name] for name in Part._fields})
    reader = Reader(source, part, max_malformed_share)
    documents = isinstance(source, DocumentSource)
    target = ("documents", DOCUMENTS, "document_id") if documents else ("groups", GROUPS, "query_id")
    table, schema, id_column = target
    attempt.write(table, _batches(reader.rows(), schema), schema, id_column)
    if reader.rejects:
        attempt.write("rejects", [pa.Table.from_pylist(reader.rejects, REJECTS)], REJECTS)
    facts = {"first_reject": reader.first_reject()}
    attempt.count(reader.rows_in, reader.rows_out, reader.drops, facts=facts)


def _batches(rows: Iterator[Row], schema: pa.Schema) -> Iterator[pa.Table]:
    """Gathers rows into tables of about 2 M characters, so that memory does not depend on the file."""
    held: list[Row] = []
    chars = 0
    for row in rows:
        held.append(row)
        chars += len(row["text"]) if "text" in row else _group_chars(row)
        if chars >= _BATCH_CHARS:
            yield pa.Table.from_pylist(held, schema)
            held, chars = [], 0
    if held:
        yield pa.Table.from_pylist(held, schema)


def _group_chars(row: Row) -> int:
    return 200 + sum(len(p["text"]) for p in (*row["positives"], *row["negatives"]))


def _document_adapter(source: DocumentSource) -> tuple[Callable[[Row], Any], str, tuple[str, ...]]:
    """Returns how a source's row is read, the field it must have, and the columns wanted of a Parquet
    file.
    """
    match source.format:
        case "chinesewebtext":
            return chinesewebtext.parse, chinesewebtext.TEXT, ()
        case "wudao":
            return wudao.parse, wudao.TEXT, ()
    fields = (source.text_field, *([source.title_field] if source.title_field else []), "url")
    parse = partial(plain.parse, text_field=source.text_field, title_field=source.title_field)
    return parse, source.text_field, fields if source.format == "parquet" else ()


def _pair_adapter(source: PairSource) -> tuple[Callable[[Row], Any], str, tuple[str, ...]]:
    match source.format:
        case "mtp":
            return mtp.parse, "query", ()
        case "flagembedding":
            return flagembedding.parse, "query", ()
    fields = (source.query_field, source.positive_field, source.negative_field)
    names = ("query_field", "positive_field", "negative_field")
    parse = partial(plain_pairs.parse, **dict(zip(names, fields, strict=True)))
    return parse, source.query_field, tuple(f for f in fields if f)


def _document(source: DocumentSource, file: str, position: int, raw: plain.RawDocument) -> Row:
    return {"document_id": document_id(source.name, file, position), "source": source.name, "file": file,
            "position": position, **raw._asdict(), "license": source.license}


def _group(source: PairSource, file: str, position: int, raw: mtp.Labelled) -> Row:
    query_id = document_id(source.name, file, position)
    texts = [*raw.positives, *raw.negatives]
    scores = [*(raw.positive_scores or [None] * len(raw.positives)),
              *(raw.negative_scores or [None] * len(raw.negatives))]
    passages = [
        {"passage_id": passage_id(query_id, i), "text": text, "text_hash": text_hash(text), "score": score}
        for i, (text, score) in enumerate(zip(texts, scores, strict=True))
    ]
    cut = len(raw.positives)
    return {"query_id": query_id, "query": raw.query, "query_hash": text_hash(raw.query),
            "positives": passages[:cut], "negatives": passages[cut:], "source": source.name, "status": KEEP,
            "lineage": {"file": file, "position": position, "passage_id": None}}
