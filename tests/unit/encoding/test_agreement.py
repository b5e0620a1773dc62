import numpy as np
import pytest

from chuxin.encoding.agreement import LEAST_COSINE, PROBES, require_agreement
from chuxin.errors import InputError


@pytest.fixture
def vectors() -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(len(PROBES), 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_the_smallest_cosine_counts(vectors: np.ndarray) -> None:
    assert require_agreement(vectors, vectors * 3, "x") == pytest.approx(1)
    near = vectors.copy()
    near[4] += 0.01 * vectors[5]
    expected = near[4] @ vectors[4] / np.linalg.norm(near[4])
    assert LEAST_COSINE < expected < 1
    assert require_agreement(vectors, near, "x") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spoil", [0.1, np.nan])
def test_one_wrong_vector_is_enough(vectors: np.ndarray, spoil: float) -> None:
    wrong = vectors.copy()
    wrong[2] += spoil * vectors[3]
    with pytest.raises(InputError, match="reader: cosine .* on '这座桥"):
        require_agreement(vectors, wrong, "reader")


def test_another_shape_is_refused(vectors: np.ndarray) -> None:
    with pytest.raises(InputError, match="shape"):
        require_agreement(vectors, vectors[:, :8], "reader")
