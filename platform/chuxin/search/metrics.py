"""nDCG@10 and recall@100 of each query, computed by trec_eval itself (pytrec_eval).

trec_eval's nDCG has *linear* gain: a passage of grade g adds g / log2(rank + 1). Papers that use gain 2^g − 1
report the same value on binary qrels and slightly different ones on graded qrels (0.2 points on cMedIR). A
passage without a judgement has grade 0. Means and intervals are in significance.py.

Shapes: Q queries, K results a query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytrec_eval

METRICS = ("ndcg_at_10", "recall_at_100")
"""Column names, in the order in which tables show them."""


def score(
    qrels: Mapping[str, Mapping[str, int]],
    query_ids: Sequence[str],
    corpus_ids: Sequence[str],
    index_QK: np.ndarray,
) -> dict[str, np.ndarray]:
    """Returns the value of each metric for each query.

    trec_eval sorts by score and, within equal scores, by passage id; it is given ranks instead of scores, so
    that what is measured is the order which the search returned.

    Args:
        qrels: grades by query id and corpus id; a grade above 0 is relevant.
        query_ids: Q ids.
        corpus_ids: ids of the passages that index_QK points into.
        index_QK: integers, best first; −1 stands for "no further result".

    Returns:
        A float32 array [Q] for each name in METRICS, values 0 to 1. A query without results scores 0.

    Raises:
        ValueError: a query has no relevant passage, so that it has no nDCG.
    """
    width = index_QK.shape[1]
    run, judged = {}, {}
    for row, (query_id, best) in enumerate(zip(query_ids, index_QK.tolist(), strict=True)):
        grades = {str(passage): int(grade) for passage, grade in qrels.get(query_id, {}).items()}
        if not any(grade > 0 for grade in grades.values()):
            raise ValueError(f"query {query_id} has no relevant passage")
        # Keyed by row: ids may hold anything, and need not be unique for this to be right.
        judged[str(row)] = grades
        run[str(row)] = {corpus_ids[i]: float(width - rank) for rank, i in enumerate(best) if i >= 0}
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.100"})
    found = evaluator.evaluate(run)
    rows = [found.get(str(row), {}) for row in range(len(query_ids))]
    return {
        "ndcg_at_10": np.array([row.get("ndcg_cut_10", 0.0) for row in rows], np.float32),
        "recall_at_100": np.array([row.get("recall_100", 0.0) for row in rows], np.float32),
    }
