"""Benchmark folders: a corpus, queries and relevance judgements in BEIR's layout, read and checked.

    corpus.jsonl[.gz]    {"_id" or "id", "title" (optional), "text"}
    queries.jsonl[.gz]   {"_id" or "id", "text", "kind" (optional, also inside "metadata")}
    qrels/test.tsv       query id TAB corpus id TAB score, after a header line; or qrels.tsv, with or
    without one

Used by curate (what must not be trained on) and evaluate (what is measured).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chuxin.errors import InputError
from chuxin.records import Part, read

_HEADER = ["query-id", "corpus-id", "score"]


@dataclass(frozen=True)
class Benchmark:
    """A retrieval task in memory; queries without a relevant passage are left out."""

    name: str
    """The folder's name."""
    corpus_ids: list[str]
    corpus_texts: list[str]
    """Title and text with a blank between, or the text alone where there is no title."""
    titles: list[str]
    """"" where there is none."""
    query_ids: list[str]
    queries: list[str]
    kinds: list[str]
    """A label of the query, such as "keyword" or "paraphrase"; "" where there is none."""
    qrels: dict[str, dict[str, int]]
    """Query id → corpus id → score; a score above 0 is relevant."""

    def body(self, index: int) -> str:
        """Returns a corpus text without its title."""
        title = self.titles[index]
        return self.corpus_texts[index][len(title) + 1:] if title else self.corpus_texts[index]

    def gold(self) -> set[str]:
        """Returns the ids of the passages that are relevant to any query."""
        return {passage for judged in self.qrels.values() for passage, score in judged.items() if score > 0}


def load(path: str) -> Benchmark:
    """Reads a local benchmark folder.

    Raises:
        InputError: A file is missing, a line is bad, an id occurs twice, or a judgement names an unknown
            id; names the file and line.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(path, "there is no such benchmark folder", "Correct the path")
    corpus_file, queries_file = _find(root, "corpus.jsonl"), _find(root, "queries.jsonl")
    corpus = _rows(corpus_file)
    queries = _rows(queries_file)
    qrels = _read_qrels(_find_qrels(root), set(queries), set(corpus))
    judged = [q for q in queries if any(score > 0 for score in qrels.get(q, {}).values())]
    titles = [_optional(row, "title") for row in corpus.values()]
    texts = [f"{title} {row['text']}" if title else row["text"]
             for title, row in zip(titles, corpus.values(), strict=True)]
    return Benchmark(
        name=root.resolve().name, corpus_ids=list(corpus), corpus_texts=texts, titles=titles,
        query_ids=judged, queries=[queries[q]["text"] for q in judged],
        kinds=[_kind(queries[q]) for q in judged],
        qrels={q: qrels[q] for q in judged},
    )


def _find(root: Path, name: str) -> Path:
    for candidate in (root / name, root / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise InputError(str(root / name), "the benchmark folder has no such file (nor with .gz)",
                     "Lay the folder out as BEIR does: corpus.jsonl, queries.jsonl, qrels/test.tsv")


def _find_qrels(root: Path) -> Path:
    for candidate in (root / "qrels" / "test.tsv", root / "qrels.tsv"):
        if candidate.is_file():
            return candidate
    raise InputError(str(root / "qrels/test.tsv"), "the benchmark folder has no such file (nor qrels.tsv)",
                     "Add the relevance judgements: query id, corpus id and score, separated by tabs")


def _rows(file: Path) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for record in read(Part(str(file), file.name, "lines", 0, file.stat().st_size)):
        where, row = f"{file}:{record.line}", record.value
        if record.error or not isinstance(row, dict):
            raise InputError(where, "this line is not a JSON object", "Correct the line")
        key = row.get("_id", row.get("id"))
        if key is None or not isinstance(row.get("text"), str):
            raise InputError(where, "a line needs `_id` (or `id`) and a string `text`", "Correct the line")
        if str(key) in rows:
            raise InputError(where, f"the id {key} occurs a second time", "Make the ids unique")
        rows[str(key)] = row
    return rows


def _read_qrels(file: Path, queries: set[str], corpus: set[str]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
        where, fields = f"{file}:{number}", line.split("\t")
        if not line.strip() or (number == 1 and fields == _HEADER):
            continue
        if len(fields) != 3 or not fields[2].strip().lstrip("-").isdigit():
            problem = "a judgement is query id, corpus id and an integer score, separated by tabs"
            raise InputError(where, problem, "Correct the line")
        query, passage, score = fields
        for kind, key, known in (("query", query, queries), ("passage", passage, corpus)):
            if key not in known:
                raise InputError(where, f"there is no {kind} with the id {key}", "Correct it, or add the row")
        qrels.setdefault(query, {})[passage] = int(score)
    if not qrels:
        raise InputError(str(file), "it holds no judgement", "Add lines: query id, corpus id, score")
    return qrels


def _optional(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    return value.strip() if isinstance(value, str) else ""


def _kind(row: dict[str, Any]) -> str:
    metadata = row.get("metadata")
    return _optional(row, "kind") or (_optional(metadata, "kind") if isinstance(metadata, dict) else "")
