"""The miner's exact search over memory-mapped float16 shards against brute force in numpy, on one CPU thread.

`ratio` is the share of queries whose results have the same ids in the same order, where scores within 1e-5 of each
other count as ties and may change places; `time_ratio` is numpy's CPU time over ours. Brute force scores all passages
at once and sorts every row. Equal means: `ratio` is 1.
"""

import functools
import statistics
import tempfile
import time
from typing import Any

import numpy as np

SETTINGS = {
    "queries": 500, "passages": 60_000, "shards": 3, "width": 256, "keep": 200, "block": 8192, "tie": 1e-5,
    "stored": "float16", "products": "float32", "threads": 1, "seed": 3,
}  # fmt: skip


@functools.cache
def folder() -> tempfile.TemporaryDirectory:
    """A folder that goes when this process ends."""
    return tempfile.TemporaryDirectory(prefix="bench-mine-exact-")


@functools.cache
def vectors() -> tuple[np.ndarray, list[np.ndarray]]:
    """Queries float32 [Q, H], and shards memory-mapped, float16; clusters, so that near neighbours are close."""
    rng = np.random.default_rng(SETTINGS["seed"])
    centres = rng.standard_normal((300, SETTINGS["width"]))

    def drawn(count: int) -> np.ndarray:
        own = centres[rng.integers(0, 300, count)] + 0.7 * rng.standard_normal((count, SETTINGS["width"]))
        return (own / np.linalg.norm(own, axis=1, keepdims=True)).astype(np.float32)

    shards = []
    for index, part in enumerate(np.array_split(drawn(SETTINGS["passages"]), SETTINGS["shards"])):
        np.save(f"{folder().name}/{index}.npy", part.astype(np.float16))
        shards.append(np.load(f"{folder().name}/{index}.npy", mmap_mode="r"))
    return drawn(SETTINGS["queries"]), shards


def ours() -> tuple[np.ndarray, np.ndarray]:
    import torch

    from chuxin.search.exact import merge_top_k, top_k

    torch.set_num_threads(SETTINGS["threads"])
    queries, shards = vectors()
    found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    start = 0
    for shard in shards:
        scores, index = top_k(queries, shard, SETTINGS["keep"], SETTINGS["block"])
        found = merge_top_k(found, (scores, index + start), SETTINGS["keep"])
        start += len(shard)
    return found


def theirs() -> tuple[np.ndarray, np.ndarray]:
    queries, shards = vectors()
    scores = queries @ np.concatenate(shards).astype(np.float32).T
    index = np.argsort(-scores, axis=1, kind="stable")[:, : SETTINGS["keep"]]
    return np.take_along_axis(scores, index, axis=1), index


def same(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Which queries have the same results, bool [Q]."""
    (our_scores, our_index), (their_scores, their_index) = a, b
    tie = SETTINGS["tie"]
    equal = []
    for row in range(len(our_index)):
        score = dict(zip(their_index[row].tolist(), their_scores[row].tolist(), strict=True))
        last = their_scores[row, -1]
        ranked = zip(our_index[row].tolist(), our_scores[row].tolist(), their_scores[row].tolist(), strict=True)
        near = [abs(score.get(i, last) - theirs) <= tie and abs(own - theirs) <= tie for i, own, theirs in ranked]
        equal.append(all(near) and len(set(our_index[row].tolist())) == our_index.shape[1])
    return np.array(equal)


def measure(rounds: int) -> dict[str, Any]:
    """Compares ids once, and the two times in turns."""
    share = float(same(ours(), theirs()).mean())
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(rounds):
        for side in (ours, theirs)[:: 1 if turn % 2 == 0 else -1]:
            started = time.process_time()
            side()
            times[side.__name__].append(time.process_time() - started)
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    return {"ratio": share, "unit": "share of queries with identical ids", "equal": share == 1.0, "rounds": rounds,
            "time_ratio": statistics.median(ratios), "ours": statistics.median(times["ours"]),
            "theirs": statistics.median(times["theirs"]), "settings": SETTINGS}  # fmt: skip
