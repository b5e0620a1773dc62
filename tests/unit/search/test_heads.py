"""Sparse and late-interaction scores against the plain definition."""

import numpy as np
import pytest

from chuxin.search.heads import Postings, best_of, late_interaction, reorder


@pytest.fixture
def vectors() -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(0)
    sizes = [0, *draw.integers(1, 12, 30)]
    return [(np.sort(draw.choice(40, size, replace=False)), draw.random(size).astype(np.float32)) for size in sizes]


def product(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    weights = dict(zip(*(part.tolist() for part in other), strict=True))
    return sum(weight * weights.get(token, 0.0) for token, weight in zip(*(p.tolist() for p in one), strict=True))


def test_products_of_sparse_vectors(vectors: list[tuple[np.ndarray, np.ndarray]]) -> None:
    postings = Postings(vectors[:20])
    for query in [*vectors[20:], vectors[0], (np.array([3, 99]), np.ones(2, np.float32))]:
        expected = [product(query, passage) for passage in vectors[:20]]
        np.testing.assert_allclose(postings.scores(query), expected, rtol=1e-6)


def test_no_passage_and_no_weight() -> None:
    nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
    assert Postings([]).scores((np.array([1]), np.ones(1, np.float32))).shape == (0,)
    assert Postings([nothing, nothing]).scores((np.array([1]), np.ones(1, np.float32))).tolist() == [0, 0]


def test_a_passage_without_a_shared_token_is_no_result() -> None:
    assert best_of(np.array([0, 0.5, 0, 0.5, 0.9], np.float32), 4).tolist() == [4, 1, 3, -1]
    assert best_of(np.array([0.1, 0.5, 0.2], np.float32), 2).tolist() == [1, 2]


def test_late_interaction_is_the_mean_of_the_best() -> None:
    draw = np.random.default_rng(1)
    queries = [draw.normal(size=(length, 8)).astype(np.float32) for length in (3, 1, 5)]
    passages = [draw.normal(size=(length, 8)).astype(np.float32) for length in (6, 2, 4)]
    wanted = [np.array([2, 0]), np.zeros(0, int), np.array([1, 1, 0])]
    found = late_interaction(queries, passages, wanted)
    for passage, chosen, scores in zip(passages, wanted, found, strict=True):
        expected = [(queries[q] @ passage.T).max(1).mean() for q in chosen]
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_candidates_in_another_order() -> None:
    index, scores = np.array([[7, 8, 9], [1, 2, 3]]), np.array([[0.1, 0.3, 0.2], [0.5, 0.5, 0.6]])
    assert reorder(index, scores).tolist() == [[8, 9, 7], [3, 1, 2]]
