"""nDCG@10 on a benchmark while training, by exact search: which weights are best is a question for retrieval.

The benchmark is tokenised once. Its texts are shared out among the ranks, all of which run equally many forward
passes (ZeRO 3 waits for every rank); rank 0 searches and all learn the score.
Leaves out: significance and other metrics (the evaluate stage), what is done with the score (worker.py).

Shapes: N texts, n of them a rank's, Q queries, P passages, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import distributed
from transformers import PreTrainedTokenizerFast

from chuxin import benchmark_folder
from chuxin.benchmark_folder import Benchmark
from chuxin.errors import InputError
from chuxin.models.packed import Packed, pack
from chuxin.models.reranker import pair_ids
from chuxin.search.exact import top_k
from chuxin.search.metrics import score
from chuxin.training.config import DevConfig
from chuxin.training.gather import gather, rows_of_ranks
from chuxin.training.micro import micro_batches, passes
from chuxin.training.step import rank, world_size

DEPTH = 10
"""Results a query: nDCG@10 looks no further."""
Forward = Callable[[Packed], torch.Tensor]
"""Packed texts → unit vectors [N, H]; packed pairs → scores [N]."""
Score = Callable[[Forward], float]
"""Scores the weights as they are now; all ranks call it."""


def dev_score(
    path: str, config: DevConfig, tokenizer: PreTrainedTokenizerFast, max_length: int, budget: int,
    device: torch.device,
) -> Score:  # fmt: skip
    """Prepares the score of a bi-encoder: every passage of the benchmark is searched.

    Args:
        path: Local folder of the benchmark.
        config: Lengths.
        tokenizer: Of the model.
        max_length: Most tokens the model takes.
        budget: Tokens of a forward pass.
        device: Where it runs.

    Raises:
        InputError: The folder is no benchmark, no query has a relevant passage, or the lengths are beyond the model's.
    """
    benchmark = _load(path, config, max_length)
    queries = _tokenise(tokenizer, benchmark.queries, config.query_max_len)
    passages = _tokenise(tokenizer, benchmark.corpus_texts, config.passage_max_len)

    def compute(embed: Forward) -> float:
        query_QH = on_all_ranks(queries, embed, budget, device)
        passage_PH = on_all_ranks(passages, embed, budget, device)
        return _from_rank_0(lambda: _ndcg(benchmark, top_k(query_QH, passage_PH, DEPTH)[1]), device)

    return compute


def rerank_score(
    path: str, config: DevConfig, tokenizer: PreTrainedTokenizerFast, max_length: int, budget: int,
    device: torch.device,
) -> Score:  # fmt: skip
    """Prepares the score of a cross-encoder: it sorts each query's judged passages.

    Arguments and errors as for `dev_score`.
    """
    benchmark = _load(path, config, max_length, config.query_max_len)
    place = {key: index for index, key in enumerate(benchmark.corpus_ids)}
    judged = [[place[key] for key in benchmark.qrels[query]] for query in benchmark.query_ids]
    queries = _tokenise(tokenizer, benchmark.queries, config.query_max_len)
    used = sorted({index for row in judged for index in row})
    texts = _tokenise(tokenizer, [benchmark.corpus_texts[index] for index in used], config.passage_max_len)
    passages = dict(zip(used, texts, strict=True))
    pairs = [pair_ids(query, passages[i]) for query, row in zip(queries, judged, strict=True) for i in row]

    def compute(judge: Forward) -> float:
        score_N = on_all_ranks(pairs, judge, budget, device)
        return _from_rank_0(lambda: _ndcg(benchmark, _sorted(judged, score_N)), device)

    return compute


def on_all_ranks(
    texts: Sequence[np.ndarray], compute: Forward, budget: int, device: torch.device
) -> np.ndarray:
    """Runs texts through a model, shared out among the ranks, and returns all results on every rank.

    Args:
        texts: Token ids of each text.
        compute: Packed texts → one row a text [n, …].
        budget: Tokens of a forward pass.
        device: Where it runs.

    Returns:
        float32 [N, …], in the texts' order.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    dealt = np.argsort(-lengths, kind="stable")
    shares = [dealt[start :: world_size()] for start in range(world_size())]
    wanted = passes([lengths[share] for share in shares], budget)
    own = shares[rank()]
    order, rows = [], []
    with torch.no_grad():
        for batch in micro_batches(lengths[own], budget):
            rows.append(compute(pack([texts[own[i]] for i in batch]).to(device)).float())
            order.append(own[batch])
        filler = pack([texts[0][:1]]).to(device)
        rows += [compute(filler).float()[:0] for _ in range(wanted - len(rows))]
    own_nX, order_n = torch.cat(rows), torch.from_numpy(np.concatenate([*order, np.zeros(0, np.int64)])).to(device)
    counts = rows_of_ranks(len(own_nX), device)
    all_NX, order_N = gather(own_nX, counts).cpu().numpy(), gather(order_n, counts).cpu().numpy()
    return all_NX[np.argsort(order_N)]


def _load(path: str, config: DevConfig, max_length: int, more: int = 0) -> Benchmark:
    longest = max(config.query_max_len, config.passage_max_len + more)
    if longest > max_length:
        problem = f"a text may have {longest} tokens, the model takes {max_length}"
        raise InputError("dev in the config", problem, "Lower query_max_len and passage_max_len")
    benchmark = benchmark_folder.load(path)
    if not benchmark.query_ids:
        raise InputError(path, "no query has a relevant passage in qrels", "Give some judgements scores above 0")
    return benchmark


def _tokenise(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
    settings = {"truncation": True, "max_length": max_length, "return_attention_mask": False, "verbose": False}
    return [np.array(ids, np.int32) for ids in tokenizer(list(texts), **settings)["input_ids"]]


def _sorted(judged: Sequence[Sequence[int]], score_N: np.ndarray) -> np.ndarray:
    """Each query's judged passages, best score first [Q, K]; −1 behind the last."""
    index_QK = np.full((len(judged), max(map(len, judged))), -1, np.int64)
    start = 0
    for row, passages in enumerate(judged):
        own = score_N[start : start + len(passages)]
        index_QK[row, : len(passages)] = np.array(passages)[np.argsort(-own, kind="stable")]
        start += len(passages)
    return index_QK


def _ndcg(benchmark: Benchmark, index_QK: np.ndarray) -> float:
    found = score(benchmark.qrels, benchmark.query_ids, benchmark.corpus_ids, index_QK)
    return float(found["ndcg_at_10"].mean(dtype=np.float64))


def _from_rank_0(compute: Callable[[], float], device: torch.device) -> float:
    """The ranks agree on one score, so that they agree on which weights are best."""
    value = torch.tensor([compute() if rank() == 0 else 0.0], dtype=torch.float64, device=device)
    if world_size() > 1:
        distributed.broadcast(value, 0)
    return float(value)
