"""Exact search against brute force: scores, order, ties, blocks that do not divide the passages, shards."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.search.exact import DEVICE_QUERY_BLOCK, QUERY_BLOCK, SCORE_BYTES, merge_top_k, resident, top_k, top_k_row


def brute_force(queries_QH: np.ndarray, passages_PH: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All scores at once, each row sorted by (−score, index)."""
    scores_QP = queries_QH.astype(np.float32) @ passages_PH.astype(np.float32).T
    index_QK = np.stack([np.lexsort((np.arange(len(row)), -row))[:k] for row in scores_QP])
    return np.take_along_axis(scores_QP, index_QK, axis=1), index_QK


def integers(shape: tuple[int, int], seed: int, high: int = 3) -> np.ndarray:
    """Small integers as float32: every product and sum is exact, so scores tie often and bits agree."""
    return np.random.default_rng(seed).integers(-high, high + 1, shape).astype(np.float32)


@settings(max_examples=60)
@given(
    n_queries=st.integers(1, 5),
    n_passages=st.integers(1, 40),
    k=st.integers(1, 45),
    block=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
def test_equals_brute_force_with_many_ties(
    n_queries: int, n_passages: int, k: int, block: int, seed: int
) -> None:
    queries, passages = integers((n_queries, 3), seed), integers((n_passages, 3), seed + 1)
    scores, index = top_k(queries, passages, k, block=block)
    expected_scores, expected_index = brute_force(queries, passages, k)
    assert scores.dtype == np.float32 and index.dtype == np.int64
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(index, expected_index)


def test_equals_brute_force_on_real_numbers_over_query_blocks() -> None:
    draw = np.random.default_rng(7)
    queries = draw.standard_normal((QUERY_BLOCK + 3, 16), dtype=np.float32)
    passages = draw.standard_normal((1000, 16), dtype=np.float32)
    scores, index = top_k(queries, passages, 10, block=300)
    expected_scores, expected_index = brute_force(queries, passages, 10)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(index, expected_index)


def test_tie_across_blocks_goes_to_the_lower_index() -> None:
    passages = np.ones((10, 2), np.float32)
    _, index = top_k(np.ones((1, 2), np.float32), passages, 4, block=3)
    assert index.tolist() == [[0, 1, 2, 3]]


def test_negative_scores_and_negative_zero_are_in_order() -> None:
    passages = np.array([[-3.0], [-0.0], [-1.0], [0.0], [2.0]], np.float32)
    scores, index = top_k(np.ones((1, 1), np.float32), passages, 5)
    assert index.tolist() == [[4, 1, 3, 2, 0]]
    assert scores.tolist() == [[2.0, 0.0, 0.0, -1.0, -3.0]]


def test_half_precision_read_only_and_strided_inputs() -> None:
    queries, passages = integers((4, 8), 1), integers((20, 8), 2)
    half = passages.astype(np.float16)
    half.flags.writeable = False
    strided = np.repeat(queries, 2, axis=0)[::2]
    np.testing.assert_array_equal(top_k(strided, half, 5)[1], brute_force(queries, passages, 5)[1])


def test_no_queries_and_no_passages() -> None:
    assert top_k(np.empty((0, 4)), np.ones((3, 4)), 2)[1].shape == (0, 2)
    assert top_k(np.ones((3, 4)), np.empty((0, 4)), 2)[1].shape == (3, 0)


@pytest.mark.parametrize(
    ("queries", "passages", "k", "block"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), 1, 8),
        (np.ones((2, 3)), np.ones((2, 3)), 0, 8),
        (np.ones((2, 3)), np.ones((2, 3)), 1, 0),
        (np.ones((2, 3)), np.array([[1.0, np.nan, 0.0]]), 1, 8),
    ],
)
def test_refuses_what_has_no_order(queries: np.ndarray, passages: np.ndarray, k: int, block: int) -> None:
    with pytest.raises(ValueError, match="width|at least 1|finite"):
        top_k(queries, passages, k, block=block)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(1, 35))
def test_one_row_equals_a_stable_sort(values: list[int], k: int) -> None:
    row = np.array(values, np.float32)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert top_k_row(row, k).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=5), k=st.integers(1, 20), seed=st.integers(0, 1000))
def test_merging_shards_in_order_equals_the_whole(sizes: list[int], k: int, seed: int) -> None:
    queries, passages = integers((4, 3), seed), integers((sum(sizes), 3), seed + 1)
    merged, start = (np.empty((4, 0), np.float32), np.empty((4, 0), np.int64)), 0
    for size in sizes:
        scores, index = top_k(queries, passages[start : start + size], k, block=5)
        merged = merge_top_k(merged, (scores, index + start), k)
        start += size
    for ours, theirs in zip(merged, top_k(queries, passages, k), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_many_blocks_whose_later_scores_seldom_enter() -> None:
    draw = np.random.default_rng(3)
    queries, passages = (draw.standard_normal((size, 8), dtype=np.float32) for size in (9, 5000))
    passages[4321] *= 100
    scores, index = top_k(queries, passages, 7, block=64)
    expected_scores, expected_index = brute_force(queries, passages, 7)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(index, expected_index)


def test_a_memory_mapped_file_of_half_precision(tmp_path: Path) -> None:
    queries, passages = integers((4, 8), 1), integers((50, 8), 2)
    np.save(tmp_path / "p.npy", passages.astype(np.float16))
    mapped = np.load(tmp_path / "p.npy", mmap_mode="r")
    for ours, theirs in zip(top_k(queries, mapped, 5, block=7), brute_force(queries, passages, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_vectors_move_to_a_device_while_they_leave_it_room(tmp_path: Path) -> None:
    parts = [integers((70_000, 2), seed).astype(np.float16) for seed in range(3)]
    for number, part in enumerate(parts):
        np.save(tmp_path / f"{number}.npy", part)
    mapped = [np.load(tmp_path / f"{number}.npy", mmap_mode="r") for number in range(3)]
    room = DEVICE_QUERY_BLOCK * 5 * SCORE_BYTES + (512 << 20)
    left = [room + 2 * parts[0].nbytes, room + parts[0].nbytes, room]
    held = resident(mapped, "cpu", 5, lambda: left.pop(0))
    assert [type(one) for one in held] == [torch.Tensor, torch.Tensor, np.memmap] and held[2] is mapped[2]
    queries = integers((3, 2), 9)
    for one, part in zip(held, parts, strict=True):
        for ours, theirs in zip(top_k(queries, one, 5), top_k(queries, part, 5), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert all(one is array for one, array in zip(resident(mapped, "cpu", 5), mapped, strict=True))
