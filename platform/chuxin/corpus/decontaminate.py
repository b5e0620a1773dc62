"""Decontamination: which texts of the benchmarks occur in training data, by exact match (ids.match_key).

A benchmark's texts have three roles. A training query that equals a benchmark's *query*, and a training
positive that equals its *gold* passage, are leaks; one that equals a *distractor* is only counted, because
shared corpora are normal. Raw text leaks where a document contains a gold passage whole.

Texts are compared as they came and as normalised here, gold passages with and without their title. Leaves
out near duplicates.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chuxin.benchmark_folder import Benchmark
from chuxin.corpus.characters import code_points
from chuxin.corpus.filters import window_hashes
from chuxin.files import open_parquet
from chuxin.ids import match_key, text_hash

QUERY, GOLD, DISTRACTOR = "query", "gold", "distractor"
ANCHOR = 16
"""Characters of a gold passage's beginning that are looked up at every place of a document."""

BENCHMARK_TEXTS = pa.schema([
    ("benchmark", pa.string()), ("role", pa.string()), ("hash", pa.int64()), ("gold_key", pa.string()),
])
"""One row a form of a text; `gold_key` is the match key of a gold passage that is long enough to be looked
for."""


def benchmark_texts(benchmark: Benchmark, normalise: Callable[[str], str], min_gold_chars: int) -> pa.Table:
    """Lists a benchmark's texts as BENCHMARK_TEXTS, each form once."""
    gold = benchmark.gold()
    rows: dict[tuple[str, int], str | None] = {}
    for query in benchmark.queries:
        rows.update({(QUERY, value): None for value in _hashes((query, normalise(query)))})
    for index, passage in enumerate(benchmark.corpus_ids):
        whole, body = benchmark.corpus_texts[index], benchmark.body(index)
        role = GOLD if passage in gold else DISTRACTOR
        for value in _hashes(dict.fromkeys((whole, body, normalise(whole), normalise(body)))):
            rows.setdefault((role, value), None)
        key = match_key(normalise(body)) if role == GOLD else ""
        if len(key) >= min_gold_chars:
            rows[role, text_hash(key)] = key
    return pa.table([
        pa.array([benchmark.name] * len(rows)), pa.array([role for role, _ in rows], pa.string()),
        pa.array([value for _, value in rows], pa.int64()), pa.array(list(rows.values()), pa.string()),
    ], schema=BENCHMARK_TEXTS)


def _hashes(texts: Iterable[str]) -> list[int]:
    # A text of punctuation alone has an empty key, which would equal every other such text.
    return [text_hash(text) for text in texts if match_key(text)]


class BenchmarkIndex:
    """The texts of all benchmarks, to be asked about many hashes or about one document at a time."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self.names = [str(table["benchmark"][0]) for table in tables if table.num_rows]
        hashes, owners, keys = {}, {}, []
        for role in (QUERY, GOLD, DISTRACTOR):
            found = [t.filter(pc.equal(t["role"], role)) for t in tables if t.num_rows]
            hashes[role] = np.concatenate([t["hash"].to_numpy() for t in found] or [np.zeros(0, np.int64)])
            owners[role] = np.repeat(np.arange(len(found)), [t.num_rows for t in found])
            order = np.argsort(hashes[role], kind="stable")
            hashes[role], owners[role] = hashes[role][order], owners[role][order]
            for owner, table in enumerate(found):
                keys += [(key, owner) for key in table["gold_key"].drop_null().to_pylist()]
        self._hashes, self._owners = hashes, owners
        self._gold = sorted((int(_anchors(key[:ANCHOR])[0]), key, owner) for key, owner in keys)
        self._anchors = np.array([anchor for anchor, _, _ in self._gold], dtype=np.uint64)
        # One bit in 64 set at most, so that nearly every place of a document is dismissed by one look-up.
        bits = max(16, (64 * len(self._gold)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._maybe = np.zeros(1 << bits, dtype=bool)
        self._maybe[self._anchors >> self._shift] = True

    def match(self, role: str, hashes: np.ndarray) -> np.ndarray:
        """Returns the benchmark (index into `names`) that has each text hash in a role, or -1; int64 [N]."""
        known, owners = self._hashes[role], self._owners[role]
        if not len(known):
            return np.full(len(hashes), -1)
        place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        return np.where(known[place] == hashes, owners[place], -1)

    def gold_inside(self, key: str) -> int:
        """Returns the benchmark that has a gold passage inside a document's match key, or -1."""
        if not self._gold or len(key) < ANCHOR:
            return -1
        anchors = _anchors(key)
        for place in np.flatnonzero(self._maybe[anchors >> self._shift]):
            at = int(np.searchsorted(self._anchors, anchors[place]))
            while at < len(self._gold) and self._anchors[at] == anchors[place]:
                if key.startswith(self._gold[at][1], place):
                    return self._gold[at][2]
                at += 1
        return -1

    def count(self, found: np.ndarray) -> Counter[str]:
        """Counts the matches of `match` by the benchmark's name."""
        return Counter(self.names[owner] for owner in found if owner >= 0)


def _anchors(text: str) -> np.ndarray:
    return window_hashes(code_points(text), ANCHOR)


@functools.lru_cache(maxsize=1)
def open_index(files: tuple[str, ...]) -> BenchmarkIndex:
    """Reads the tables of BENCHMARK_TEXTS; once a process, since every task of a stage asks for the same."""
    return BenchmarkIndex([open_parquet(file).read() for file in files])
