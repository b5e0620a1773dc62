"""Scores reach their candidates: each distinct pair once, whatever the chunks; which are scored; the histograms."""

from pathlib import Path

import numpy as np
import pytest

from chuxin.ids import hash63
from chuxin.mining.rerank import rerank_table

from .world import candidate, candidates_table, group, passage, store


class HashScorer:
    """Scores a pair by a hash of its texts and remembers it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def score(self, queries: list[str], passages: list[str], index_N2: np.ndarray) -> np.ndarray:
        pairs = [(queries[q], passages[p]) for q, p in index_N2.tolist()]
        self.asked += pairs
        return np.array([value(*pair) for pair in pairs], np.float32)


def value(query: str, text: str) -> np.float32:
    return np.float32(hash63(query, text) / 2**60 - 4)


@pytest.fixture
def rows() -> list[dict]:
    """Three groups; 0 and 2 ask the same query, and share the passages 3 and 4; 0 has its own wording of 1."""
    own = [candidate(1, given=True, dense_rank=4), *(candidate(i, dense_rank=i - 1) for i in (2, 3, 4)),
           candidate(5, bm25_rank=1), candidate(6)]  # fmt: skip
    first = group(0, "甲", [passage(1, "P1。")], [passage(6, "p6")], candidates=own)
    second = group(1, "乙", [passage(1, "p1")], [], candidates=[candidate(3, dense_rank=1), candidate(1, given=True)])
    third = group(2, "甲", [passage(7, "p7")], [], candidates=[candidate(i, dense_rank=i) for i in (3, 4)])
    return [first, second, third]


@pytest.mark.parametrize("chunk_pairs", [1, 5, 100])
def test_each_distinct_pair_is_scored_once(rows: list[dict], tmp_path: Path, chunk_pairs: int) -> None:
    scorer = HashScorer()
    held = store(tmp_path, [1, 2, 3, 4, 5, 6, 7])
    table, pairs = rerank_table(candidates_table(rows), held, scorer, None, chunk_pairs)
    assert pairs == len(scorer.asked) == len(set(scorer.asked)) == 8
    for row in table.to_pylist():
        own = {p["text_hash"]: p["text"] for side in ("negatives", "positives") for p in row[side]}
        for found in row["candidates"]:
            text = own.get(found["text_hash"], f"p{found['passage_id']}")
            assert found["rerank"] == value(row["query"], text)
    assert ("甲", "P1。") in scorer.asked and ("乙", "p1") in scorer.asked


def test_the_best_ranks_of_any_miner_are_scored_and_the_groups_own_always(rows: list[dict], tmp_path: Path) -> None:
    table, _ = rerank_table(candidates_table(rows), store(tmp_path, [*range(1, 8)]), HashScorer(), 2, 100)
    scored = [{c["passage_id"] for c in row["candidates"] if c["rerank"] is not None} for row in table.to_pylist()]
    assert scored == [{1, 2, 5, 6}, {1, 3}, {3, 4}]


def test_nothing_to_score(tmp_path: Path) -> None:
    table, pairs = rerank_table(candidates_table([]), store(tmp_path, [1]), HashScorer(), None, 10)
    assert len(table) == pairs == 0
