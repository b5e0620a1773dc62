"""Configs of labelled sets: where the pairs are and which rules a group must keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chuxin.config import Ref


@dataclass(frozen=True)
class PairSource:
    """A labelled set: queries with their positives and negatives."""

    name: str
    """Letters, digits, `_`, `.`, `-`. It is part of every query's id, and a training batch holds one source
    only."""
    format: Literal["mtp", "flagembedding", "jsonl", "parquet"]
    """mtp: {query, pos, neg} lines; flagembedding: the same with pos_scores and neg_scores; jsonl and
    parquet: the fields named below, a string or a list of strings each."""
    path: Ref
    """File, folder, glob or URI."""
    query_field: str = "query"
    """Field with the query, for jsonl and parquet."""
    positive_field: str = "pos"
    """Field with the positive or the list of positives, for jsonl and parquet."""
    negative_field: str | None = None
    """Field with the negatives, for jsonl and parquet; null if there are none."""

    def __post_init__(self) -> None:
        own = self.format in ("jsonl", "parquet")
        if not own and (self.query_field, self.positive_field, self.negative_field) != ("query", "pos", None):
            raise ValueError(f"the format {self.format} fixes its fields; `*_field` fit jsonl and parquet")


@dataclass(frozen=True)
class PairRules:
    """Which groups are kept. Lengths are in characters, after normalisation."""

    min_query_chars: int = 2
    """Shortest query. Chuxin-Embedding kept queries of 2 to 63 characters (its published rules)."""
    max_query_chars: int = 63
    """Longest query."""
    drop_contents: bool = True
    """Take passages that are tables of contents out of their groups."""
