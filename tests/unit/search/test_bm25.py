"""BM25 against the formula written out, and its terms and edges."""

import math

import numpy as np
import pytest

from chuxin.search.bm25 import BM25, terms

TEXTS = [
    "北京的春天干燥多风，沙尘天气较多。",
    "上海的春天潮湿，常有小雨。",
    "Transformer 模型由编码器与解码器组成",
    "",
    "北京烤鸭是北京的名菜，北京人常吃。",
    "北京的春天干燥多风，沙尘天气较多。",
]


def formula(query: str, texts: list[str], k1: float, b: float) -> list[float]:
    """Lucene's BM25, term by term."""
    documents = [list(terms(text)) for text in texts]
    mean_length = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for term in terms(query):
            df = sum(term in other for other in documents)
            tf = document.count(term)
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean_length))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75)])
@pytest.mark.parametrize("query", ["北京的春天", "北京北京", "transformer 编码器", "小雨"])
def test_scores_equal_the_formula(query: str, k1: float, b: float) -> None:
    scores, index = BM25(TEXTS, k1, b).search([query], len(TEXTS))
    expected = formula(query, TEXTS, k1, b)
    order = [i for i in sorted(range(len(TEXTS)), key=lambda i: (-expected[i], i)) if expected[i] > 0]
    assert index[0, : len(order)].tolist() == order
    np.testing.assert_allclose(scores[0, : len(order)], [expected[i] for i in order], rtol=1e-5)
    assert (index[0, len(order) :] == -1).all() and (scores[0, len(order) :] == 0).all()


def test_equal_texts_come_in_index_order_and_k_cuts() -> None:
    scores, index = BM25(TEXTS).search(["沙尘天气", "名菜"], 2)
    assert index.tolist() == [[0, 5], [4, -1]]
    assert scores.dtype == np.float32 and index.dtype == np.int64
    assert scores[0, 0] == scores[0, 1]


def test_terms_are_bigrams_words_and_lone_characters() -> None:
    assert list(terms("ＧＰＴ4的价格，贵！")) == ["gpt4", "的价", "价格", "贵"]
    assert list(terms("A-股 2024年")) == ["a", "股", "2024", "年"]
    assert list(terms("　，。!")) == []
    assert list(terms("𠮷野家")) == ["𠮷野", "野家"]


def test_nothing_to_find() -> None:
    for texts in ([], [""], ["，。"], TEXTS):
        scores, index = BM25(texts).search(["量子", ""], 3)
        assert (index == -1).all() and (scores == 0).all() and index.shape == (2, 3)
