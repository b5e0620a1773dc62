"""The evaluate stage: every (task, model) is a partition of its own, so a kill loses one; then results.json.

A partition holds the scores of each query (schema EVAL), for each output of its model; BM25 and rerankers count as
models. The summary is computed last, in this process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from chuxin.artifacts import Attempt, Draft
from chuxin.benchmark_folder import Benchmark
from chuxin.evaluation.config import BM25, EvaluateConfig
from chuxin.evaluation.rankings import by_bm25, by_model, by_reranker
from chuxin.evaluation.results import ALL, collect, task_results
from chuxin.evaluation.tasks import load_task
from chuxin.files import open_parquet
from chuxin.runner import Context
from chuxin.schema import EVAL
from chuxin.search.metrics import METRICS, score

SUMMARY = "summary"
"""Key of the partition that holds results.json."""


def run(ctx: Context, config: EvaluateConfig) -> None:
    """Scores every system on every task and compares them."""
    paths = {name: ctx.resolve(ref) for name, ref in config.models.items()}
    paths |= {name: ctx.resolve(reranking.model) for name, reranking in config.rerankers.items()}
    firsts = {name: paths[reranking.first] for name, reranking in config.rerankers.items()}
    work = {
        _key(task, model): {
            "task": task,
            "folder": ctx.resolve(ref),
            "model": model,
            "path": paths.get(model),
            "first": firsts.get(model),
        }
        for task, ref in config.tasks.items()
        for model in _models(config)
    }
    execution = config.execution
    ctx.draft.map(work, partial(score_partition, config), name="evaluate", num_cpus=execution.num_cpus)
    tasks = {}
    for task in config.tasks:
        tasks[task] = _task(ctx.draft, task, config)
        ctx.log(_line(task, tasks[task], config.systems()))
    results = collect(tasks, config.systems(), config.bases(), config.bootstrap_samples, config.seed)
    # Quick and a function of the partitions alone, so a rerun computes it again.
    with (
        ctx.draft.attempt(SUMMARY) as attempt,
        open(attempt.path("results.json"), "w", encoding="utf-8") as file,
    ):
        json.dump(results, file, ensure_ascii=False, indent=1)


def score_partition(config: EvaluateConfig, key: str, item: Mapping[str, Any], attempt: Attempt) -> None:
    """Scores one model on one task and writes a row a query and system."""
    torch.set_num_threads(config.execution.threads)
    benchmark = load_task(item["folder"], config.max_queries, config.seed)
    started = time.perf_counter()
    rankings = _rankings(benchmark, item, config)
    seconds = time.perf_counter() - started
    n = len(benchmark.query_ids)
    tables = []
    for system, index_QK in rankings.items():
        found = score(benchmark.qrels, benchmark.query_ids, benchmark.corpus_ids, index_QK)
        columns = {
            "model": [system] * n,
            "task": [item["task"]] * n,
            "query_id": benchmark.query_ids,
            "kind": benchmark.kinds,
            **{metric: found[metric] for metric in METRICS},
        }
        tables.append(pa.table(columns))
    attempt.write("scores", tables, EVAL)
    facts = {"corpus": len(benchmark.corpus_ids), "queries": n, "search_seconds": round(seconds, 3)}
    attempt.count(rows_in=n, rows_out=n, facts={key: facts})


def _models(config: EvaluateConfig) -> list[str]:
    return [*([BM25] if config.bm25 else []), *config.models, *config.rerankers]


def _rankings(benchmark: Benchmark, item: Mapping[str, Any], config: EvaluateConfig) -> dict[str, np.ndarray]:
    """Index of the best passages, int64 [Q, K], by system."""
    model = item["model"]
    if item["path"] is None:
        return {model: by_bm25(benchmark, config)}
    if item["first"] is not None:
        return {model: by_reranker(config.rerankers[model], item["path"], item["first"], benchmark, config)}
    outputs = config.outputs_of(model)
    found = by_model(item["path"], benchmark, config, tuple(outputs.values()))
    return {system: found[output] for system, output in outputs.items()}


def _task(draft: Draft, task: str, config: EvaluateConfig) -> dict[str, Any]:
    """A task's entry in results.json, from the scores of its partitions."""
    manifests = draft.committed()
    scores = pa.concat_tables([open_parquet(draft.part(_key(task, m), "scores")).read() for m in _models(config)])
    tables = {system: scores.filter(pc.field("model") == system) for system in config.systems()}
    first = next(iter(tables.values()))
    for system, table in tables.items():
        if table["query_id"] != first["query_id"]:
            raise RuntimeError(f"{task}: {system} was scored on other queries than {config.systems()[0]}")
    values = {system: {m: table[m].to_numpy() for m in METRICS} for system, table in tables.items()}
    key = _key(task, _models(config)[0])
    corpus = manifests[key]["facts"][key]["corpus"]
    return task_results(values, first["kind"].to_pylist(), corpus, config.bootstrap_samples, config.seed)


def _key(task: str, model: str) -> str:
    return f"{task}@{model}"


def _line(task: str, entry: Mapping[str, Any], systems: list[str]) -> str:
    return f"{task}: nDCG@10 " + ", ".join(_phrases(entry["slices"][ALL], systems))


def _phrases(part: Mapping[str, Any], systems: list[str]) -> Iterator[str]:
    for system in systems:
        ndcg = part["scores"][system]["ndcg_at_10"]
        yield f"{system} {100 * ndcg['mean']:.1f} ({100 * ndcg['low']:.1f} to {100 * ndcg['high']:.1f})"
