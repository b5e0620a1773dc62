import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chuxin.encoding.sparse import text_weights

TOKEN = st.tuples(st.integers(0, 6), st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@given(st.lists(st.lists(TOKEN, max_size=8), max_size=6))
def test_equal_to_a_dictionary_a_text(texts: list[list[tuple[int, float]]]) -> None:
    ids = np.array([token for text in texts for token, _ in text], np.int64)
    weights = np.array([weight for text in texts for _, weight in text], np.float32)
    found = text_weights(ids, weights, [len(text) for text in texts], special_ids=(0, 2))
    expected = []
    for text in texts:
        largest: dict[int, float] = {}
        for token, weight in text:
            if token not in (0, 2) and weight > 0:
                largest[token] = max(weight, largest.get(token, 0.0))
        expected.append(sorted(largest.items()))
    assert [list(zip(*map(np.ndarray.tolist, vector), strict=True)) for vector in found] == expected
    assert all(vector.ids_K.dtype == np.int64 and vector.weight_K.dtype == np.float32 for vector in found)


@pytest.mark.parametrize("lengths", [[], [2, 1]])
def test_nothing_weighs(lengths: list[int]) -> None:
    tokens = sum(lengths)
    found = text_weights(np.arange(tokens), np.zeros(tokens, np.float32), lengths, ())
    assert [len(vector.ids_K) for vector in found] == [0] * len(lengths)
