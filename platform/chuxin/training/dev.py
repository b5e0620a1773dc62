"""nDCG@10 on a benchmark while training, by exact search: which weights are best is a question for retrieval.

The benchmark is tokenised once. Its texts are shared out among the ranks, all of which run equally many forward
passes (ZeRO 3 waits for every rank); rank 0 searches and all learn the score. A cross-encoder sorts each query's
judged passages among those that BM25 puts first: most benchmarks judge relevant passages only, and sorting these
alone is always perfect.
Leaves out: significance and other metrics (the evaluate stage), what is done with the score (worker.py).

Shapes: N texts, n of them a rank's, Q queries, P passages, C candidates of a query, K results, H width.
"""

from __future__ import annotations

import itertools
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
from chuxin.search.bm25 import BM25
from chuxin.search.exact import top_k
from chuxin.search.metrics import score
from chuxin.training.config import DevConfig
from chuxin.training.gather import gather
from chuxin.training.micro import micro_batches
from chuxin.training.step import rank, world_size

DEPTH = 10
"""Results a query: nDCG@10 looks no further."""
TOKENISED = 4096
"""Texts tokenised at a time."""
CANDIDATES = 20
"""Passages that a cross-encoder sorts for each query beside the judged ones."""
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
        InputError: The folder is no benchmark, no query has a relevant passage, or the lengths are beyond the model's;
            later, when it is computed: a vector is no number.
    """
    benchmark = _load(path, config, max_length)
    queries = _tokenise(tokenizer, benchmark.queries, config.query_max_len)
    passages = _tokenise(tokenizer, benchmark.corpus_texts, config.passage_max_len)

    def compute(embed: Forward) -> float:
        query_QH = on_all_ranks(queries, embed, budget, device)
        passage_PH = on_all_ranks(passages, embed, budget, device)
        for kind, ids, vector_NH in (("query", benchmark.query_ids, query_QH),
                                     ("passage", benchmark.corpus_ids, passage_PH)):  # fmt: skip
            bad = np.flatnonzero(~np.isfinite(vector_NH).all(1))
            if len(bad):
                raise _no_number(path, f"{kind} {ids[bad[0]]}", "the vector")
        return _from_rank_0(lambda: _ndcg(benchmark, top_k(query_QH, passage_PH, DEPTH)[1]), device)

    return compute


def rerank_score(
    path: str, config: DevConfig, tokenizer: PreTrainedTokenizerFast, max_length: int, budget: int,
    device: torch.device,
) -> Score:  # fmt: skip
    """Prepares the score of a cross-encoder: it sorts each query's judged passages and `CANDIDATES` others.

    Others are BM25's first that are not judged, filled up with the corpus' first; they count as not relevant. Equal
    scores are ordered against the model: a constant one scores no better than the worst.
    Arguments and errors as for `dev_score`.
    """
    benchmark = _load(path, config, max_length, config.query_max_len)
    candidates, grades = _candidates(benchmark)
    queries = _tokenise(tokenizer, benchmark.queries, config.query_max_len)
    used = sorted({index for row in candidates for index in row})
    texts = _tokenise(tokenizer, [benchmark.corpus_texts[index] for index in used], config.passage_max_len)
    passages = dict(zip(used, texts, strict=True))
    pairs = [pair_ids(query, passages[i]) for query, row in zip(queries, candidates, strict=True) for i in row]

    def compute(judge: Forward) -> float:
        score_N = on_all_ranks(pairs, judge, budget, device)
        bad = np.flatnonzero(~np.isfinite(score_N))
        if len(bad):
            owner_N = np.repeat(np.arange(len(candidates)), [len(row) for row in candidates])
            raise _no_number(path, f"query {benchmark.query_ids[owner_N[bad[0]]]}", "a passage's score")
        return _from_rank_0(lambda: _ndcg(benchmark, _sorted(candidates, grades, score_N)), device)

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
    # Every rank knows which texts each of them runs, and in which order.
    batches = [[share[batch] for batch in micro_batches(lengths[share], budget)] for share in shares]
    wanted, rows = max(1, *map(len, batches)), []
    with torch.no_grad():
        for batch in batches[rank()]:
            rows.append(compute(pack([texts[i] for i in batch]).to(device)).float())
        filler = pack([texts[0][:1]]).to(device)
        rows += [compute(filler).float()[:0] for _ in range(wanted - len(rows))]
    all_NX = gather(torch.cat(rows), [len(share) for share in shares]).cpu().numpy()
    return all_NX[np.argsort(np.concatenate(sum(batches, [])))]


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
    found: list[np.ndarray] = []
    for start in range(0, len(texts), TOKENISED):  # Python's integers of a whole corpus would take gigabytes
        ids_of_texts = tokenizer(list(texts[start : start + TOKENISED]), **settings)["input_ids"]
        found += (np.array(ids, np.int32) for ids in ids_of_texts)
    return found


def _candidates(benchmark: Benchmark) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the passages C that are sorted for each query, and their grades: the same on every rank."""
    place = {key: index for index, key in enumerate(benchmark.corpus_ids)}
    judged = [{place[key]: grade for key, grade in benchmark.qrels[q].items()} for q in benchmark.query_ids]
    most = max(map(len, judged))
    # As many results more as there are judged passages among them at most.
    found_QK = BM25(benchmark.corpus_texts).search(benchmark.queries, CANDIDATES + most)[1]
    first = range(min(len(place), 2 * CANDIDATES + most))
    candidates, grades = [], []
    for own, found in zip(judged, found_QK.tolist(), strict=True):
        others = dict.fromkeys(index for index in (*found, *first) if index >= 0 and index not in own)
        row = [*own, *itertools.islice(others, CANDIDATES)]
        candidates.append(row)
        grades.append([own.get(index, 0) for index in row])
    return candidates, grades


def _sorted(
    candidates: Sequence[Sequence[int]], grades: Sequence[Sequence[int]], score_N: np.ndarray
) -> np.ndarray:
    """Each query's passages, best score first and of equal scores the worse grade first [Q, K]; −1 behind the last."""
    index_QK = np.full((len(candidates), max(map(len, candidates))), -1, np.int64)
    start = 0
    for row, (passages, grade_C) in enumerate(zip(candidates, grades, strict=True)):
        score_C = score_N[start : start + len(passages)]
        index_QK[row, : len(passages)] = np.array(passages)[np.lexsort((grade_C, -score_C))]
        start += len(passages)
    return index_QK


def _no_number(path: str, where: str, what: str) -> InputError:
    remedy = "Lower the learning rate, or start from weights that are finite"
    return InputError(f"dev benchmark {path}: {where}", f"{what} is no finite number", remedy)


def _ndcg(benchmark: Benchmark, index_QK: np.ndarray) -> float:
    found = score(benchmark.qrels, benchmark.query_ids, benchmark.corpus_ids, index_QK)
    return float(found["ndcg_at_10"].mean(dtype=np.float64))


def _from_rank_0(compute: Callable[[], float], device: torch.device) -> float:
    """The ranks agree on one score, so that they agree on which weights are best."""
    value = torch.tensor([compute() if rank() == 0 else 0.0], dtype=torch.float64, device=device)
    if world_size() > 1:
        distributed.broadcast(value, 0)
    return float(value)
