"""Metrics against their formulas written out, and the order that is measured."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.search.metrics import score

CORPUS = [f"p{i}" for i in range(150)]


def ndcg_at_10(results: list[str], grades: dict[str, int]) -> float:
    gained = sum(max(grades.get(p, 0), 0) / math.log2(rank + 2) for rank, p in enumerate(results[:10]))
    ideal = sorted((g for g in grades.values() if g > 0), reverse=True)[:10]
    return gained / sum(g / math.log2(rank + 2) for rank, g in enumerate(ideal))


def recall_at_100(results: list[str], grades: dict[str, int]) -> float:
    relevant = {p for p, g in grades.items() if g > 0}
    return len(relevant & set(results[:100])) / len(relevant)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 120), st.integers(1, 30))
def test_equal_the_formulas_on_graded_judgements(seed: int, width: int, n_judged: int) -> None:
    draw = np.random.default_rng(seed)
    index = np.stack([draw.permutation(150)[:width] for _ in range(3)])
    qrels = {
        f"q{i}": {CORPUS[p]: int(draw.integers(0, 5)) for p in draw.permutation(150)[:n_judged]} | {"p3": 2}
        for i in range(3)
    }
    found = score(qrels, ["q0", "q1", "q2"], CORPUS, index)
    for row in range(3):
        results = [CORPUS[i] for i in index[row]]
        grades = qrels[f"q{row}"]
        assert found["ndcg_at_10"][row] == pytest.approx(ndcg_at_10(results, grades), abs=1e-6)
        assert found["recall_at_100"][row] == pytest.approx(recall_at_100(results, grades), abs=1e-6)


def test_the_order_of_the_search_counts_not_the_ids() -> None:
    # Were tied scores handed to trec_eval, it would put the passage with the larger id first.
    forward = score({"q": {"a": 1}}, ["q"], ["a", "b"], np.array([[0, 1]]))
    backward = score({"q": {"a": 1}}, ["q"], ["a", "b"], np.array([[1, 0]]))
    assert forward["ndcg_at_10"].tolist() == [1.0]
    assert backward["ndcg_at_10"][0] == pytest.approx(1 / math.log2(3))


def test_recall_stops_at_100_and_ndcg_at_10() -> None:
    found = score({"q": {"p10": 1, "p99": 1, "p100": 1}}, ["q"], CORPUS, np.arange(150)[None])
    assert found["ndcg_at_10"].tolist() == [0.0]
    assert found["recall_at_100"][0] == pytest.approx(2 / 3)


def test_missing_results_score_zero_and_any_id_is_taken() -> None:
    qrels = {"查询 1": {"段落 甲": 3}, "q2": {"b": 1}, "q3": {"b": 1, "not in the corpus": 1}}
    index = np.array([[0, -1], [-1, -1], [1, -1]])
    found = score(qrels, ["查询 1", "q2", "q3"], ["段落 甲", "b"], index)
    assert found["ndcg_at_10"].tolist() == pytest.approx([1.0, 0.0, 1 / (1 + 1 / math.log2(3))])
    assert found["recall_at_100"].tolist() == [1.0, 0.0, 0.5]
    assert found["ndcg_at_10"].dtype == np.float32


def test_a_query_without_a_relevant_passage_is_refused() -> None:
    with pytest.raises(ValueError, match="q has no relevant passage"):
        score({"q": {"a": 0}}, ["q"], ["a"], np.array([[0]]))
