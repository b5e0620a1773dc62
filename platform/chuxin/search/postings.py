"""Inverted lists on disk, and BM25 on them: for each key the passages that hold it, each with a value.

A key is a token id of the sparse output, or the hash of a lexical term, so that lists of several shards need no common
dictionary. Statistics of BM25 (document frequencies, the mean length) are summed over shards before the scores are
taken: the scores are those of one index over all of them. Leaves out: the terms of a text (bm25.py), who searches what.

Shapes: P passages, N entries of all lists, U distinct keys, K results a query.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from chuxin.ids import hash63
from chuxin.search.bm25 import terms
from chuxin.search.heads import best_of

K1, B = 0.9, 0.4
"""Saturation and length normalisation: those of bm25.BM25."""

Query = tuple[np.ndarray, np.ndarray]
"""int64 keys, each once, and their float32 weights."""


def write_lists(path: str, key_N: np.ndarray, passage_N: np.ndarray, value_N: np.ndarray, length_P: np.ndarray) -> None:
    """Writes the lists of P passages into a new directory.

    Args:
        path: The directory.
        key_N: int64; a passage holds a key once.
        passage_N: int32 in [0, P).
        value_N: float32 weights or uint16 counts.
        length_P: int32, what BM25 takes as a passage's length.
    """
    order = np.argsort(key_N, kind="stable")
    key_U, start_U = np.unique(key_N[order], return_index=True)
    arrays = {"key": key_U, "start": np.append(start_U, len(key_N)), "passage": passage_N[order],
              "value": value_N[order], "length": length_P}  # fmt: skip
    Path(path).mkdir(parents=True)
    for name, array in arrays.items():
        np.save(f"{path}/{name}.npy", array)


class Lists:
    """Inverted lists as `write_lists` left them, memory-mapped."""

    def __init__(self, path: str) -> None:
        self.key_U, self.start_U, self.passage_N, self.value_N, self.length_P = (
            np.load(f"{path}/{name}.npy", mmap_mode="r") for name in ("key", "start", "passage", "value", "length")
        )

    def frequency(self, keys: np.ndarray) -> np.ndarray:
        """Returns in how many passages each key stands, int64."""
        place = np.searchsorted(self.key_U, keys)
        place_or_last = np.minimum(place, max(len(self.key_U) - 1, 0))
        if not len(self.key_U):
            return np.zeros(len(keys), np.int64)
        return np.where(self.key_U[place_or_last] == keys, np.diff(self.start_U)[place_or_last], 0)

    def search(
        self, queries: Iterable[Query], count: int, k: int, value_N: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns each query's best passages by the sum of weight · value over the keys they share.

        Args:
            queries: Their keys and weights.
            count: Q, the number of queries.
            k: Results a query.
            value_N: float32, what a list's entry counts: `value_N` of the lists, or what `bm25_values` makes of it.

        Returns:
            scores_QK float32 in descending order, −inf where there is no further result, and index_QK int64, −1 there.
        """
        scores_QK = np.full((count, k), -np.inf, np.float32)
        index_QK = np.full((count, k), -1, np.int64)
        scores_P = np.zeros(len(self.length_P), np.float32)
        for row, (keys, weights) in enumerate(queries):
            found = np.searchsorted(self.key_U, keys)
            touched = []
            for key, place, weight in zip(keys.tolist(), found.tolist(), weights, strict=True):
                if place < len(self.key_U) and self.key_U[place] == key:
                    entries = slice(self.start_U[place], self.start_U[place + 1])
                    passages = self.passage_N[entries]
                    scores_P[passages] += weight * value_N[entries]  # a passage has a key once
                    touched.append(passages)
            best = best_of(scores_P, k)
            index_QK[row], hits = best, best >= 0
            scores_QK[row, hits] = scores_P[best[hits]]
            for passages in touched:
                scores_P[passages] = 0.0
        return scores_QK, index_QK


def term_key(term: str) -> int:
    """Returns the key of a lexical term."""
    return hash63("term", term)


def count_terms(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts the terms of P passages.

    Returns:
        key_N int64, passage_N int32, count_N uint16 (65,535 for more) and length_P int32, the terms of each passage.
    """
    number: dict[str, int] = {}
    ids = [[number.setdefault(term, len(number)) for term in terms(text)] for text in texts]
    length_P = np.fromiter(map(len, ids), np.int32, len(ids))
    flat = np.fromiter((i for own in ids for i in own), np.int64, int(length_P.sum()))
    owner = np.repeat(np.arange(len(ids), dtype=np.int64), length_P)
    size = max(len(number), 1)
    joint, counts = np.unique(owner * size + flat, return_counts=True)
    key = np.fromiter(map(term_key, number), np.int64, len(number))
    counts = np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16)
    return key[joint % size], (joint // size).astype(np.int32), counts, length_P


def bm25_values(lists: Lists, mean_length: float) -> np.ndarray:
    """Returns Lucene's share of each count, float32 [N]: count / (count + k1 · (1 − b + b · length / mean))."""
    norm_P = (K1 * (1 - B + B * lists.length_P.astype(np.float64) / max(mean_length, 1e-9))).astype(np.float32)
    counts = lists.value_N.astype(np.float32)
    return counts / (counts + norm_P[lists.passage_N])


def bm25_query(text: str) -> Query:
    """Returns the keys of a query's terms and how often each stands there, float32."""
    keys = np.fromiter(map(term_key, terms(text)), np.int64)
    found, counts = np.unique(keys, return_counts=True)
    return found, counts.astype(np.float32)


def bm25_weights(frequency_U: np.ndarray, passages: int) -> np.ndarray:
    """Returns the weight of terms that stand in so many of the passages, float32 [U]: Lucene's idf."""
    return np.log1p((passages - frequency_U + 0.5) / (frequency_U + 0.5)).astype(np.float32)
