"""Configs of ingest and curate: which files are read, how text is cleaned and cut, which rows fall."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from chuxin.config import Ref
from chuxin.pairs.config import PairRules, PairSource

SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class DocumentSource:
    """A raw corpus: files of one format."""

    name: str
    """Letters, digits, `_`, `.`, `-`. It is part of every document's id: renaming a source renames its
    rows."""
    format: Literal["chinesewebtext", "wudao", "jsonl", "parquet"]
    """ChineseWebText's JSON lines, WuDao's JSON arrays, or any JSON lines (.jsonl, .gz, .zst) or Parquet."""
    path: Ref
    """File, folder, glob or URI."""
    text_field: str = "text"
    """Field with the text, for jsonl and parquet."""
    title_field: str | None = None
    """Field with the title, for jsonl and parquet."""
    license: str = ""
    """Kept in every row."""

    def __post_init__(self) -> None:
        own = self.format in ("jsonl", "parquet")
        if not own and (self.text_field != "text" or self.title_field is not None):
            raise ValueError(f"the format {self.format} fixes its fields; `*_field` fit jsonl and parquet")


@dataclass(frozen=True)
class IngestExecution:
    """How ingest runs; changes nothing in its rows."""

    max_malformed_share: float = 0.01
    """Share of malformed rows (over all sources) past which the job stops. They are kept aside in
    `rejects`."""
    num_cpus: float = 1
    """CPUs of one task."""


@dataclass(frozen=True)
class IngestConfig:
    """Raw files become the tables `documents`, `groups` and `rejects`, nothing cleaned yet."""

    documents: tuple[DocumentSource, ...] = ()
    """Raw corpora."""
    pairs: tuple[PairSource, ...] = ()
    """Labelled sets."""
    partition_bytes: int = 64 << 20
    """Bytes of a plain file that one task reads; compressed files and JSON arrays are not cut."""
    execution: IngestExecution = field(default_factory=IngestExecution)

    def __post_init__(self) -> None:
        names = [s.name for s in (*self.documents, *self.pairs)]
        if not names:
            raise ValueError("ingest needs at least one source in `documents` or `pairs`")
        for name in names:
            if not SOURCE_NAME.fullmatch(name):
                raise ValueError(f"the source name `{name}` may hold only letters, digits, `_`, `.` and `-`")
            if names.count(name) > 1:
                raise ValueError(f"two sources are called `{name}`")


@dataclass(frozen=True)
class NormalizeConfig:
    """What normalisation does beyond Unicode form, invisible characters and blanks (see normalize.py)."""

    strip_html: bool = True
    """Remove HTML tags, scripts and comments, decode entities."""
    strip_emoji: bool = True
    """Remove characters that are shown as pictures."""
    simplify: bool = True
    """Turn traditional characters into simplified ones (OpenCC's t2s), in texts that hold any."""


@dataclass(frozen=True)
class SplitConfig:
    """Documents are cut into passages at paragraph and sentence ends."""

    max_chars: int
    """Longest passage."""
    min_chars: int
    """A document's last passage is made at least this long by taking from the one before."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_chars <= self.max_chars // 2:
            raise ValueError("`min_chars` must be between 1 and half of `max_chars`")


@dataclass(frozen=True)
class FilterConfig:
    """Thresholds on the measures of a passage; one that fails keeps its row, with the reason as status.

    Shares were measured on 400-character windows of 16 real Chinese corpora (news, law, reviews, papers,
    verse …).
    """

    min_chars: int = 16
    """A shorter passage says too little to be found by: headlines and text messages end here."""
    min_han_share: float = 0.3
    """Han characters among all. Under 2 % of the windows of every corpus of prose fall below it, 55 % of
    Markdown with code do."""
    max_kana_share: float = 0.1
    """Japanese syllables: half of Japanese prose, which has Han characters enough to pass the rule above."""
    max_mojibake_share: float = 0.1
    """Characters that a wrong decoding leaves. The most in any right window was 0.05; UTF-8 read as GBK has
    0.2."""
    max_repeat_share: float = 0.5
    """Character 4-grams seen before in the passage. Statutes, the most repetitive prose, have 0.37 at their
    99 % quantile; above 0.5 stand drawn lines, padding, pasted advertisements and lists of amendment
    dates."""
    max_contents_share: float = 0.5
    """Share of the passage that table-of-contents entries make up."""
    max_menu_share: float = 0.5
    """Share of the passage that short lines without punctuation make up; 2 of 47,000 right passages are above."""


@dataclass(frozen=True)
class CurateExecution:
    """How curate runs; changes nothing in its rows."""

    num_cpus: float = 1
    """CPUs of one task."""


@dataclass(frozen=True)
class CurateConfig:
    """Documents become passages and groups are cleaned: each row with a status, none deleted."""

    documents: Ref
    """The ingest stage (or the directory of its artifact)."""
    split: SplitConfig
    benchmarks: tuple[Ref, ...] = ()
    """Benchmark folders (BEIR's layout) whose queries and gold passages must not be trained on."""
    drop_gold_from_raw: bool = True
    """Give passages of documents that hold a benchmark's gold passage the status "benchmark_gold"."""
    min_gold_chars: int = 32
    """A shorter gold passage (letters and digits counted) is not looked for inside documents: titles and
    phrases occur in any text without telling anything."""
    normalize: NormalizeConfig = field(default_factory=NormalizeConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    rules: PairRules = field(default_factory=PairRules)
    forgotten: Ref | None = None
    """A text file of passages that must be forgotten, one a line: its id and its text's hash. jobs/forget.py writes
    it; passages of that text lose it and get the status "forgotten", groups lose them."""
    buckets: int = 16
    """Shuffle partitions of dedup. One holds 17 bytes a passage in memory, and a file of every map task is
    read."""
    partition_bytes: int = 64 << 20
    """Bytes of documents that one map task cleans in memory."""
    execution: CurateExecution = field(default_factory=CurateExecution)

    def __post_init__(self) -> None:
        if not 1 <= self.buckets <= 1000:
            raise ValueError("`buckets` must be between 1 and 1000")
        if self.min_gold_chars < 16:
            raise ValueError("`min_gold_chars` must be at least 16, the window that is looked up")
