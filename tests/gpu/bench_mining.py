"""Encoding, exact search and reranking on one CUDA device at real size, FlagEmbedding beside them.

    PYTHONPATH=platform python3 tests/gpu/bench_mining.py           # writes results/gpu_mining.json
    PYTHONPATH=platform python3 tests/gpu/bench_mining.py --tiny    # the same code in seconds on a CPU; prints only

It needs what bench_training.py needs, and sentencepiece. Model and reranker have bge-m3's shape (24 layers of 1024)
and random weights. Texts are random characters of log-uniform lengths, both sides take the same, in turns; seconds
are wall seconds from texts to scores or vectors in memory. FlagEmbedding computes in fp16 as it is published, ours in
bf16; scores of the first 500 pairs are compared in fp32. The other side of `search` is the plain way, all scores of a
block through torch.topk, from the same memory-mapped file of fp16 vectors; its ids must be ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from chuxin.encoding.engine import Encoder
from chuxin.encoding.pairs import PairScorer
from chuxin.models.checkpoint import load_tokenizer, save_model
from chuxin.models.config import InitConfig
from chuxin.models.reranker import load_reranker, save_reranker
from chuxin.models.start import new_model, train_tokenizer
from chuxin.search.exact import top_k

RESULT = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "gpu_mining.json"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured."""

    layers: int = 24
    hidden: int = 1024
    heads: int = 16
    max_length: int = 512
    vocabulary: int = 4000
    texts: int = 8192
    queries: int = 64
    passages_of_a_query: int = 100
    searched: int = 1_000_000
    searching: int = 2048
    k: int = 200
    batch_tokens: int = 65_536
    their_batch: int = 256
    rounds: int = 3
    seed: int = 3


TINY = Sizes(layers=2, hidden=32, heads=4, max_length=128, vocabulary=1800, texts=40, queries=4, passages_of_a_query=5,
             searched=5000, searching=20, k=10, batch_tokens=4096, their_batch=16, rounds=1)  # fmt: skip


def main() -> None:
    """Measures all three and prints the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    sizes = TINY if parser.parse_args().tiny else Sizes()
    rng = np.random.default_rng(sizes.seed)
    with tempfile.TemporaryDirectory() as path:
        passages = draw_texts(rng, sizes.texts, 16, sizes.max_length - 80)
        write_models(path, passages, sizes)
        parts: dict[str, Any] = {}
        for name, measured in (("search", search), ("encode", encode), ("rerank", rerank)):
            parts[name] = measured(path, passages, sizes, rng)
            print(json.dumps({name: parts[name]}), flush=True)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    packages = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    record = {"name": "gpu_mining", "device": device, "settings": dataclasses.asdict(sizes), **parts,
              "packages": packages, "date": datetime.date.today().isoformat()}  # fmt: skip
    if sizes is not TINY:
        RESULT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record), flush=True)


def draw_texts(rng: np.random.Generator, count: int, low: int, high: int) -> list[str]:
    """Draws texts of random characters, a token each or nearly so."""
    lengths = np.exp(rng.uniform(np.log(low), np.log(high), count)).astype(int)
    return ["".join(map(chr, rng.integers(0x4E00, 0x4E00 + 1500, length))) for length in lengths]


def write_models(path: str, texts: list[str], sizes: Sizes) -> None:
    """Writes a model and, around its encoder, a reranker whose scores spread as a trained one's do."""
    tokenizer = train_tokenizer(texts[:2000], vocab_size=sizes.vocabulary, max_len=sizes.max_length)
    config = InitConfig(seed=sizes.seed, passages="none", max_texts=1, vocab_size=sizes.vocabulary,
                        layers=sizes.layers, hidden=sizes.hidden, heads=sizes.heads, intermediate=4 * sizes.hidden,
                        max_len=sizes.max_length)  # fmt: skip
    save_model(new_model(config, len(tokenizer)), tokenizer, f"{path}/model")
    reranker = load_reranker(f"{path}/model", seed=sizes.seed)
    reranker.classifier.out_proj.weight.data *= 20
    save_reranker(reranker, load_tokenizer(f"{path}/model"), f"{path}/reranker")


def in_turns(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Wall seconds of both sides, once each is warm."""
    times: tuple[list[float], list[float]] = [], []
    for turn in range(rounds + 1):
        for side in (0, 1)[:: 1 if turn % 2 == 0 else -1]:
            begun = time.perf_counter()
            (ours, theirs)[side]()
            if turn:
                times[side].append(time.perf_counter() - begun)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
            "ours": statistics.median(times[0]), "theirs": statistics.median(times[1]), "unit": "seconds"}  # fmt: skip


def search(path: str, _: list[str], sizes: Sizes, rng: np.random.Generator) -> dict[str, Any]:
    """Exact search in a memory-mapped file of fp16 vectors."""
    shape = (sizes.searched, sizes.hidden)
    file = np.lib.format.open_memmap(f"{path}/dense.npy", mode="w+", dtype=np.float16, shape=shape)
    for start in range(0, sizes.searched, 100_000):
        part = rng.standard_normal(file[start : start + 100_000].shape, np.float32)
        file[start : start + 100_000] = part / np.linalg.norm(part, axis=1, keepdims=True)
    file.flush()
    queries_QH = rng.standard_normal((sizes.searching, sizes.hidden), np.float32)
    queries_QH /= np.linalg.norm(queries_QH, axis=1, keepdims=True)
    passages_PH = np.load(f"{path}/dense.npy", mmap_mode="r")

    def ours() -> tuple[np.ndarray, np.ndarray]:
        return top_k(queries_QH, passages_PH, sizes.k, device=DEVICE)

    def plain(block: int = 8192) -> tuple[np.ndarray, np.ndarray]:
        queries = torch.from_numpy(queries_QH).to(DEVICE)
        scores, index = torch.empty(len(queries), 0, device=DEVICE), torch.empty(len(queries), 0, dtype=torch.int64,
                                                                                  device=DEVICE)  # fmt: skip
        for start in range(0, len(passages_PH), block):
            part = torch.from_numpy(np.array(passages_PH[start : start + block])).to(DEVICE).float()
            best = (queries @ part.T).topk(min(sizes.k, len(part)), dim=1)
            joined, places = torch.cat([scores, best.values], 1), torch.cat([index, best.indices + start], 1)
            scores, order = joined.topk(min(sizes.k, joined.shape[1]), dim=1)
            index = places.gather(1, order)
        return scores.cpu().numpy(), index.cpu().numpy()

    (scores, index), (other_scores, other_index) = ours(), plain()
    result = in_turns(ours, plain, sizes.rounds)
    pairs = sizes.searched * sizes.searching
    return result | {"ids_equal": float((index == other_index).mean()), "pairs_per_second": pairs / result["ours"],
                     "largest_difference": float(np.abs(scores - other_scores).max())}  # fmt: skip


def encode(path: str, texts: list[str], sizes: Sizes, _: np.random.Generator) -> dict[str, Any]:
    """Dense vectors of texts, against BGEM3FlagModel."""
    from FlagEmbedding import BGEM3FlagModel

    encoder = Encoder(f"{path}/model", sizes.max_length, sizes.batch_tokens,
                      "bfloat16" if DEVICE == "cuda" else "float32", DEVICE)  # fmt: skip
    other = BGEM3FlagModel(f"{path}/model", use_fp16=DEVICE == "cuda", devices=[DEVICE], batch_size=sizes.their_batch,
                           passage_max_length=sizes.max_length, return_sparse=False, return_colbert_vecs=False)
    vectors, theirs = encoder.encode(texts), np.asarray(other.encode(texts)["dense_vecs"], np.float32)
    result = in_turns(lambda: encoder.encode(texts), lambda: other.encode(texts), sizes.rounds)
    cosines = (vectors * theirs).sum(1) / np.linalg.norm(theirs, axis=1)
    return result | {"texts_per_second": len(texts) / result["ours"], "least_cosine": float(cosines.min())}


def rerank(path: str, texts: list[str], sizes: Sizes, rng: np.random.Generator) -> dict[str, Any]:
    """Scores of pairs, against FlagReranker."""
    from FlagEmbedding import FlagReranker

    queries = draw_texts(rng, sizes.queries, 6, 40)
    chosen = [rng.permutation(len(texts))[: sizes.passages_of_a_query] for _ in queries]
    index_N2 = np.array([[query, passage] for query, own in enumerate(chosen) for passage in own])
    pairs = [(queries[query], texts[passage]) for query, passage in index_N2.tolist()]
    scorer = PairScorer(f"{path}/reranker", 64, sizes.max_length - 64, sizes.batch_tokens,
                        "bfloat16" if DEVICE == "cuda" else "float32", DEVICE)  # fmt: skip
    other = FlagReranker(f"{path}/reranker", use_fp16=DEVICE == "cuda", devices=[DEVICE], max_length=sizes.max_length,
                         batch_size=sizes.their_batch)  # fmt: skip
    scores, theirs = scorer.score(queries, texts, index_N2), np.array(other.compute_score(pairs), np.float32)
    result = in_turns(lambda: scorer.score(queries, texts, index_N2), lambda: other.compute_score(pairs), sizes.rounds)
    exact = PairScorer(f"{path}/reranker", 64, sizes.max_length - 64, sizes.batch_tokens, "float32", DEVICE)
    other = FlagReranker(f"{path}/reranker", use_fp16=False, devices=[DEVICE], max_length=sizes.max_length)
    few = slice(0, 500)
    difference = exact.score(queries, texts, index_N2[few]) - np.array(other.compute_score(pairs[few]), np.float32)
    return result | {"pairs_per_second": len(pairs) / result["ours"], "spread": float(theirs.std()),
                     "correlation": float(np.corrcoef(scores, theirs)[0, 1]),
                     "largest_difference_fp32": float(np.abs(difference).max())}  # fmt: skip


if __name__ == "__main__":
    main()
