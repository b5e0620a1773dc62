"""What each system finds: the best passages of every query, by BM25, by outputs of a model, or by a reranker.

The sparse output searches the whole corpus. The multi-vector output and the hybrid (dense + 0.3 sparse + multi-vector)
order the dense output's results anew, and so does a reranker with the first of them: recall@100 of these three is the
dense one's. Leaves out: scoring (search/metrics.py).

Shapes: Q queries, P passages, K results a query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chuxin.benchmark_folder import Benchmark
from chuxin.encoding.engine import CHUNK, Encoder
from chuxin.encoding.pairs import PairScorer
from chuxin.errors import InputError
from chuxin.evaluation.config import EvaluateConfig, Reranking
from chuxin.search import bm25
from chuxin.search.exact import top_k
from chuxin.search.heads import WEIGHTS, Postings, best_of, late_interaction, reorder


def by_bm25(benchmark: Benchmark, config: EvaluateConfig) -> np.ndarray:
    """Returns the index of the best passages, int64 [Q, K]."""
    return bm25.BM25(benchmark.corpus_texts).search(benchmark.queries, config.top_k)[1]


def by_model(
    path: str, benchmark: Benchmark, config: EvaluateConfig, outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    """Returns the index of the best passages, int64 [Q, K], for each output.

    Raises:
        InputError: An output is asked for whose head was never trained.
    """
    query_encoder, passage_encoder = encoders = _encoders(path, config)
    if tuple(outputs) == ("dense",):
        sides = zip(encoders, (benchmark.queries, benchmark.corpus_texts), strict=True)
        return {"dense": top_k(*(encoder.encode(texts) for encoder, texts in sides), config.top_k)[1]}
    if not passage_encoder.model.heads_trained:
        problem = f"its {next(output for output in outputs if output != 'dense')} output was never trained"
        raise InputError(path, problem, "Leave the model out of evaluate.outputs, or train it with heads: all")
    queries = query_encoder.encode_all(benchmark.queries)
    dense, sparse = [], []
    for start in range(0, len(benchmark.corpus_texts), CHUNK):
        part = passage_encoder.encode_all(benchmark.corpus_texts[start : start + CHUNK])
        dense.append(part.dense_NH)
        sparse += part.sparse
    dense_QK, index_QK = top_k(queries.dense_NH, np.concatenate(dense), config.top_k)
    postings = Postings(sparse)
    sparse_QK, best = np.empty_like(dense_QK), []
    for row, query in enumerate(queries.sparse):
        scores_P = postings.scores(query)
        sparse_QK[row] = scores_P[index_QK[row]]
        best.append(best_of(scores_P, config.top_k))
    found = {"dense": index_QK, "sparse": np.stack(best)}
    if {"multivector", "hybrid"} & set(outputs):
        multi_QK = _multivector(queries.multi_vector, passage_encoder, benchmark, index_QK)
        found["multivector"] = reorder(index_QK, multi_QK)
        parts = zip(WEIGHTS, (dense_QK, sparse_QK, multi_QK), strict=True)
        found["hybrid"] = reorder(index_QK, sum(weight * scores_QK for weight, scores_QK in parts))
    return {output: found[output] for output in outputs}


def by_reranker(
    reranking: Reranking, path: str, first_path: str, benchmark: Benchmark, config: EvaluateConfig
) -> np.ndarray:
    """Returns the results of the first model, int64 [Q, K], their first `reranking.top_k` in the reranker's order."""
    index_QK = by_model(first_path, benchmark, config, ("dense",))["dense"]
    head_QK = index_QK[:, : reranking.top_k]
    execution = config.execution
    scorer = PairScorer(
        path, config.query_max_len, config.passage_max_len, execution.batch_tokens, config.dtype, execution.device
    )
    rows_QK = np.broadcast_to(np.arange(len(head_QK))[:, None], head_QK.shape)
    pairs_N2 = np.stack([rows_QK.ravel(), head_QK.ravel()], axis=1)
    scores_N = scorer.score(benchmark.queries, benchmark.corpus_texts, pairs_N2)
    ordered_QK = reorder(head_QK, scores_N.reshape(head_QK.shape))
    return np.concatenate([ordered_QK, index_QK[:, reranking.top_k :]], axis=1)


def _encoders(path: str, config: EvaluateConfig) -> tuple[Encoder, Encoder]:
    execution = config.execution
    lengths = (config.query_max_len, config.passage_max_len)
    query, passage = (
        Encoder(path, length, execution.batch_tokens, config.dtype, execution.device) for length in lengths
    )
    return query, passage


def _multivector(
    queries: Sequence[np.ndarray], encoder: Encoder, benchmark: Benchmark, index_QK: np.ndarray
) -> np.ndarray:
    """Scores of the candidates, float32 [Q, K]; multi-vectors of one chunk of passages are held at a time."""
    scores_QK = np.empty(index_QK.shape, np.float32)
    flat = np.argsort(index_QK, axis=None, kind="stable")
    passages, first = np.unique(index_QK.ravel()[flat], return_index=True)
    places = np.split(flat, first[1:])
    for start in range(0, len(passages), CHUNK):
        part = slice(start, start + CHUNK)
        vectors = encoder.encode_all([benchmark.corpus_texts[i] for i in passages[part].tolist()]).multi_vector
        rows = [place // index_QK.shape[1] for place in places[part]]
        for place, scores in zip(places[part], late_interaction(queries, vectors, rows), strict=True):
            scores_QK.flat[place] = scores
    return scores_QK
