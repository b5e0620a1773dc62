"""results.json: means, intervals and paired differences of every task, from the scores of its queries.

    {"metrics": {"ndcg_at_10": "…", "recall_at_100": "…"},           what each number means
     "bootstrap": {"samples", "seed", "level", "min_queries"},
     "systems": ["BM25", "pretrained", "refined", "refined-hybrid"], display order
     "bases": {"refined-hybrid": "refined"},                         systems made from another's vectors or results
     "tasks": {TASK: {
        "queries": 3802, "corpus": 48110,
        "slices": {"all" | KIND: {                                   kinds only where the benchmark names them
            "n": 3802,
            "scores": {SYSTEM: {METRIC: {"mean", "low", "high"}}},   low and high: the 95 % interval
            "differences": [{"system", "baseline", METRIC: {"mean", "low", "high", "significant"}}]}}}}}

Values are shares of 1. A difference is system − baseline, for every pair of systems in display order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from chuxin.evaluation.significance import LEVEL, MIN_QUERIES, interval, is_significant, resample_means
from chuxin.search.metrics import METRICS

ALL = "all"

_MEANING = {
    "ndcg_at_10": "nDCG of the first 10 results, linear gain as in trec_eval, mean over queries",
    "recall_at_100": "share of a query's relevant passages among its first 100 results, mean over queries",
}


def collect(
    tasks: Mapping[str, Mapping[str, Any]], systems: Sequence[str], bases: Mapping[str, str], samples: int, seed: int
) -> dict[str, Any]:
    """Returns the whole of results.json from `task_results` by task."""
    return {
        "metrics": _MEANING,
        "bootstrap": {"samples": samples, "seed": seed, "level": LEVEL, "min_queries": MIN_QUERIES},
        "systems": list(systems),
        "bases": dict(bases),
        "tasks": dict(tasks),
    }


def task_results(
    values: Mapping[str, Mapping[str, np.ndarray]], kinds: Sequence[str], corpus: int, samples: int, seed: int
) -> dict[str, Any]:
    """Returns one task's entry.

    Args:
        values: arrays [Q] by system and metric, all in the same order of queries.
        kinds: Q kinds of query, "" where the benchmark gives none; slices stand in the order of appearance.
        corpus: passages of the benchmark.
        samples: resamples of the bootstrap.
        seed: of the bootstrap.
    """
    kinds_Q = np.array(kinds, dtype=object)
    slices = {ALL: np.ones(len(kinds_Q), bool)}
    slices |= {kind: kinds_Q == kind for kind in dict.fromkeys(kinds) if kind}
    return {
        "queries": len(kinds_Q),
        "corpus": corpus,
        "slices": {name: _slice(values, mask_Q, samples, seed) for name, mask_Q in slices.items()},
    }


def _slice(
    values: Mapping[str, Mapping[str, np.ndarray]], mask_Q: np.ndarray, samples: int, seed: int
) -> dict[str, Any]:
    columns = [(system, metric) for system in values for metric in METRICS]
    values_QC = np.stack([values[system][metric][mask_Q] for system, metric in columns], axis=1)
    means_SC = resample_means(values_QC, samples, seed)
    at = {column: position for position, column in enumerate(columns)}
    n = len(values_QC)

    def score(system: str, metric: str) -> dict[str, float]:
        column = at[system, metric]
        return interval(values_QC[:, column], means_SC[:, column])._asdict()

    def difference(system: str, baseline: str, metric: str) -> dict[str, float | bool]:
        left, right = at[system, metric], at[baseline, metric]
        found = interval(values_QC[:, left] - values_QC[:, right], means_SC[:, left] - means_SC[:, right])
        return {**found._asdict(), "significant": is_significant(found, n)}

    return {
        "n": n,
        "scores": {system: {metric: score(system, metric) for metric in METRICS} for system in values},
        "differences": [
            {"system": later, "baseline": earlier, **{m: difference(later, earlier, m) for m in METRICS}}
            for earlier, later in combinations(values, 2)
        ],
    }
