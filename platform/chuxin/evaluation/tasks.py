"""Tasks: a benchmark folder, cut down to the queries that are scored.

Leaves out: the layouts of folders, which are benchmark_folder.py's business.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from chuxin import benchmark_folder
from chuxin.benchmark_folder import Benchmark
from chuxin.errors import InputError


def load_task(folder: str, max_queries: int | None, seed: int) -> Benchmark:
    """Returns a benchmark whose queries all have a relevant passage.

    Args:
        folder: local folder of a benchmark.
        max_queries: keep a random sample of this many, in their order in the file; None keeps all.
        seed: of the sample; the same seed and folder give the same queries for every model.

    Raises:
        InputError: the folder is no benchmark, or no query has a relevant passage.
    """
    benchmark = benchmark_folder.load(folder)
    count = len(benchmark.query_ids)
    if not count:
        raise InputError(
            folder, "no query has a relevant passage in qrels", "Give some judgements scores above 0"
        )
    if max_queries is None or max_queries >= count:
        return benchmark
    kept = sorted(np.random.default_rng(seed).choice(count, max_queries, replace=False).tolist())
    return dataclasses.replace(
        benchmark,
        query_ids=[benchmark.query_ids[row] for row in kept],
        queries=[benchmark.queries[row] for row in kept],
        kinds=[benchmark.kinds[row] for row in kept],
    )
