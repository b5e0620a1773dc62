"""The evaluate stage: every (task, system) is a partition of its own, so a kill loses one; then results.json.

A partition holds the scores of each query (schema EVAL). The summary is computed last, in this process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from chuxin.artifacts import Attempt, Draft, open_parquet
from chuxin.benchmark_folder import Benchmark
from chuxin.encoding.engine import Encoder
from chuxin.evaluation.config import EvaluateConfig
from chuxin.evaluation.metrics import METRICS, score
from chuxin.evaluation.results import ALL, collect, task_results
from chuxin.evaluation.tasks import load_task
from chuxin.runner import Context
from chuxin.schema import EVAL
from chuxin.search import bm25
from chuxin.search.exact import top_k

SUMMARY = "summary"
"""Key of the partition that holds results.json."""


def run(ctx: Context, config: EvaluateConfig) -> None:
    """Scores every system on every task and compares them."""
    paths = {name: ctx.resolve(ref) for name, ref in config.models.items()}
    work = {
        _key(task, system): {
            "task": task,
            "folder": ctx.resolve(ref),
            "system": system,
            "path": paths.get(system),
        }
        for task, ref in config.tasks.items()
        for system in config.systems()
    }
    execution = config.execution
    ctx.draft.map(work, partial(score_partition, config), name="evaluate", num_cpus=execution.num_cpus)
    tasks = {}
    for task in config.tasks:
        tasks[task] = _task(ctx.draft, task, config)
        ctx.log(_line(task, tasks[task], config.systems()))
    results = collect(tasks, config.systems(), config.bootstrap_samples, config.seed)
    # Quick and a function of the partitions alone, so a rerun computes it again.
    with (
        ctx.draft.attempt(SUMMARY) as attempt,
        open(attempt.path("results.json"), "w", encoding="utf-8") as file,
    ):
        json.dump(results, file, ensure_ascii=False, indent=1)


def score_partition(config: EvaluateConfig, key: str, item: Mapping[str, Any], attempt: Attempt) -> None:
    """Scores one system on one task and writes a row a query."""
    torch.set_num_threads(config.execution.threads)
    benchmark = load_task(item["folder"], config.max_queries, config.seed)
    started = time.perf_counter()
    index_QK = _search(benchmark, item["path"], config)
    seconds = time.perf_counter() - started
    found = score(benchmark.qrels, benchmark.query_ids, benchmark.corpus_ids, index_QK)
    n = len(benchmark.query_ids)
    table = pa.table(
        {
            "model": [item["system"]] * n,
            "task": [item["task"]] * n,
            "query_id": benchmark.query_ids,
            "kind": benchmark.kinds,
            **{metric: found[metric] for metric in METRICS},
        }
    )
    attempt.write("scores", [table], EVAL)
    facts = {"corpus": len(benchmark.corpus_ids), "queries": n, "search_seconds": round(seconds, 3)}
    attempt.count(rows_in=n, rows_out=n, facts={key: facts})


def _search(benchmark: Benchmark, path: str | None, config: EvaluateConfig) -> np.ndarray:
    """Index of the best passages, int64 [Q, K]; by BM25 where there is no model path."""
    if path is None:
        return bm25.BM25(benchmark.corpus_texts).search(benchmark.queries, config.top_k)[1]
    sides = ((benchmark.queries, config.query_max_len), (benchmark.corpus_texts, config.passage_max_len))
    execution = config.execution
    queries_QH, passages_PH = (
        Encoder(path, length, execution.batch_tokens, config.dtype, execution.device).encode(texts)
        for texts, length in sides
    )
    return top_k(queries_QH, passages_PH, config.top_k)[1]


def _task(draft: Draft, task: str, config: EvaluateConfig) -> dict[str, Any]:
    """A task's entry in results.json, from the scores of its partitions."""
    manifests = draft.committed()
    tables = {s: open_parquet(draft.part(_key(task, s), "scores")).read() for s in config.systems()}
    first = next(iter(tables.values()))
    for system, table in tables.items():
        if table["query_id"] != first["query_id"]:
            raise RuntimeError(f"{task}: {system} was scored on other queries than {config.systems()[0]}")
    values = {system: {m: table[m].to_numpy() for m in METRICS} for system, table in tables.items()}
    key = _key(task, config.systems()[0])
    corpus = manifests[key]["facts"][key]["corpus"]
    return task_results(values, first["kind"].to_pylist(), corpus, config.bootstrap_samples, config.seed)


def _key(task: str, system: str) -> str:
    return f"{task}@{system}"


def _line(task: str, entry: Mapping[str, Any], systems: list[str]) -> str:
    return f"{task}: nDCG@10 " + ", ".join(_phrases(entry["slices"][ALL], systems))


def _phrases(part: Mapping[str, Any], systems: list[str]) -> Iterator[str]:
    for system in systems:
        ndcg = part["scores"][system]["ndcg_at_10"]
        yield f"{system} {100 * ndcg['mean']:.1f} ({100 * ndcg['low']:.1f} to {100 * ndcg['high']:.1f})"
