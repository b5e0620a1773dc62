"""Exact search on a CUDA device against brute force in NumPy, its vectors mapped or resident there.

    PYTHONPATH=platform python3 -m pytest -c /dev/null tests/gpu

Ids are those of NumPy's scores, ties within 1e-5 aside, and those of the CPU where every product is exact.
"""

from pathlib import Path

import numpy as np
import torch

from chuxin.search.exact import merge_top_k, resident, top_k

WIDTH, K = 256, 100


def vectors(count: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_a_memory_mapped_file_of_halves_gives_brute_force_s_ids(tmp_path: Path) -> None:
    assert torch.cuda.is_available(), "these tests need a CUDA device"
    np.save(tmp_path / "dense.npy", vectors(50_001, 1).astype(np.float16))
    passages_PH, queries_QH = np.load(tmp_path / "dense.npy", mmap_mode="r"), vectors(300, 2)
    scores_QK, index_QK = top_k(queries_QH, passages_PH, K, device="cuda")
    exact_QP = queries_QH.astype(np.float64) @ np.asarray(passages_PH, np.float64).T
    best_QK = np.argsort(-exact_QP, axis=1, kind="stable")[:, :K]
    np.testing.assert_allclose(scores_QK, np.take_along_axis(exact_QP, index_QK, axis=1), atol=1e-5)
    np.testing.assert_allclose(scores_QK, np.take_along_axis(exact_QP, best_QK, axis=1), atol=1e-5)
    again = top_k(queries_QH, passages_PH, K, device="cuda")
    np.testing.assert_array_equal(again[0], scores_QK)
    np.testing.assert_array_equal(again[1], index_QK)


def test_ties_and_shards_are_the_cpu_s() -> None:
    rng = np.random.default_rng(3)
    queries_QH, passages_PH = (rng.integers(-3, 4, (count, 3)).astype(np.float16) for count in (300, 20_000))
    on_cpu = top_k(queries_QH, passages_PH, K)
    whole = top_k(queries_QH, passages_PH, K, block=777, device="cuda")
    parts = [top_k(queries_QH, passages_PH[start : start + 10_000], K, device="cuda") for start in (0, 10_000)]
    merged = merge_top_k(parts[0], (parts[1][0], parts[1][1] + 10_000), K)
    for found in (whole, merged):
        np.testing.assert_array_equal(found[0], on_cpu[0])
        np.testing.assert_array_equal(found[1], on_cpu[1])


def test_resident_vectors_give_the_same_bits(tmp_path: Path) -> None:
    np.save(tmp_path / "dense.npy", vectors(50_001, 1).astype(np.float16))
    mapped_PH, queries_QH = np.load(tmp_path / "dense.npy", mmap_mode="r"), vectors(300, 2)
    most = torch.cuda.mem_get_info()[0] - 8 * (1 << 30)
    other = torch.empty(most, dtype=torch.uint8, device="cuda")  # earlier vectors: gone, their memory is to be had
    del other
    (held_PH,) = resident([mapped_PH], "cuda", 8192)
    assert isinstance(held_PH, torch.Tensor) and held_PH.is_cuda
    for ours, theirs in zip(*(top_k(queries_QH, one, K, device="cuda") for one in (held_PH, mapped_PH)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
