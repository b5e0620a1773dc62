"""Inverted lists against a dictionary, and BM25 over several shards against one index over all texts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.search.bm25 import BM25
from chuxin.search.heads import Postings
from chuxin.search.postings import Lists, bm25_query, bm25_values, bm25_weights, count_terms, write_lists

TEXTS = ["老师在北京学习做菜", "医生在上海,上海的医生", "GPT4 与 gpt4", "", "学习学习学习", "茶", "北京的茶馆 北京",
         "医生"]  # fmt: skip
QUERIES = ["北京学习", "上海医生", "gpt4", "没有出现", "", "学习学习", "茶"]


def lists_of(folder: Path, texts: list[str]) -> Lists:
    write_lists(str(folder), *count_terms(texts))
    return Lists(str(folder))


@pytest.mark.parametrize("cut", [[], [3], [1, 4, 5]])
def test_bm25_over_shards_equals_one_index(tmp_path: Path, cut: list[int]) -> None:
    bounds = [0, *cut, len(TEXTS)]
    shards = [lists_of(tmp_path / str(a), TEXTS[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
    mean = sum(int(shard.length_P.sum()) for shard in shards) / len(TEXTS)
    queries = []
    for query in QUERIES:
        keys, counts = bm25_query(query)
        frequency = sum(shard.frequency(keys) for shard in shards)
        queries.append((keys, counts * bm25_weights(frequency, len(TEXTS))))
    found = [shard.search(queries, len(QUERIES), 8, bm25_values(shard, mean)) for shard in shards]
    scores, index = BM25(TEXTS).search(QUERIES, 8)
    for row in range(len(QUERIES)):
        ours = {bounds[s] + int(i): float(score) for s, part in enumerate(found)
                for score, i in zip(part[0][row], part[1][row], strict=True) if i >= 0}  # fmt: skip
        theirs = {int(i): float(score) for score, i in zip(scores[row], index[row], strict=True) if i >= 0}
        assert ours == pytest.approx(theirs, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), passages=st.integers(1, 20), k=st.integers(1, 6))
def test_search_equals_products_of_dictionaries(
    tmp_path_factory: pytest.TempPathFactory, seed: int, passages: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(9)[: rng.integers(0, 6)].tolist() for _ in range(passages)]
    vectors = [{key: float(rng.integers(1, 5)) for key in keys} for keys in chosen]
    sizes = np.array([len(vector) for vector in vectors], np.int32)
    flat = [(key, weight) for vector in vectors for key, weight in vector.items()]
    path = str(tmp_path_factory.mktemp("lists") / "own")
    owner = np.repeat(np.arange(passages, dtype=np.int32), sizes)
    key_N, weight_N = (np.array([entry[i] for entry in flat], kind) for i, kind in enumerate((np.int64, np.float32)))
    write_lists(path, key_N, owner, weight_N, sizes)
    lists = Lists(path)
    queries = [(np.arange(4), np.array([1, 2, 3, 4], np.float32)), (np.array([8, 77]), np.array([1, 1], np.float32))]
    scores_QK, index_QK = lists.search(queries, 2, k, lists.value_N)
    for row, (keys, weights) in enumerate(queries):
        pairs = list(zip(keys.tolist(), weights.tolist(), strict=True))
        products = [sum(weight * vector.get(key, 0) for key, weight in pairs) for vector in vectors]
        expected = sorted((i for i in range(passages) if products[i]), key=lambda i: -products[i])[:k]
        assert index_QK[row].tolist() == expected + [-1] * (k - len(expected))
        assert scores_QK[row].tolist() == [products[i] for i in expected] + [-np.inf] * (k - len(expected))
        memory = Postings([(np.array(list(v), np.int64), np.array(list(v.values()), np.float32)) for v in vectors])
        np.testing.assert_allclose(memory.scores((keys, weights)), products, rtol=1e-6)
    assert lists.frequency(np.arange(10)).tolist() == [sum(key in v for v in vectors) for key in range(10)]


def test_lists_of_texts_without_terms(tmp_path: Path) -> None:
    lists = lists_of(tmp_path / "empty", ["。", ""])
    assert lists.frequency(np.array([5])).tolist() == [0] and lists.length_P.tolist() == [0, 0]
    assert lists.search([bm25_query("茶")], 1, 2, bm25_values(lists, 0.0))[1].tolist() == [[-1, -1]]
