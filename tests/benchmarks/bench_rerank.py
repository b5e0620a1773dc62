"""Scores of a cross-encoder on one CPU thread in fp32: chuxin's PairScorer against FlagEmbedding's FlagReranker.

A 6-layer, 384-wide XLM-R with random weights; every query is paired with as many passages of one pool, whose lengths
are very unequal, as passages are. All pairs are distinct and shorter than the limits. `ratio` is for the scores;
`tokenise` compares making the token ids alone, where theirs is compute_score's loop up to the forward pass. Equal
means: every score is within 1e-4, and the token ids are identical.
"""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SETTINGS = {
    "queries": 16, "passages": 64, "each": 32, "query_characters": [4, 20], "passage_characters": [10, 300],
    "max_length": 512, "batch_size": 128, "batch_tokens": 8192, "vocabulary": 4000, "layers": 6, "hidden": 384,
    "heads": 6, "classifier_scale": 20, "dtype": "float32", "threads": 1, "seed": 3,
}  # fmt: skip


@functools.cache
def texts() -> tuple[list[str], list[str], np.ndarray]:
    """Queries, passages and the pairs' indices [N, 2]."""
    rng = np.random.default_rng(SETTINGS["seed"])

    def drawn(count: int, low: int, high: int) -> list[str]:
        lengths = np.exp(rng.uniform(np.log(low), np.log(high), count)).astype(int)
        return ["".join(map(chr, rng.integers(0x4E00, 0x4E00 + 1500, n))) for n in lengths]

    queries = drawn(SETTINGS["queries"], *SETTINGS["query_characters"])
    passages = drawn(SETTINGS["passages"], *SETTINGS["passage_characters"])
    chosen = [rng.permutation(len(passages))[: SETTINGS["each"]] for _ in queries]
    return queries, passages, np.array([[q, p] for q, own in enumerate(chosen) for p in own])


@functools.cache
def folder() -> tempfile.TemporaryDirectory:
    """A folder that goes when this process ends."""
    return tempfile.TemporaryDirectory(prefix="bench-rerank-")


@functools.cache
def directory() -> str:
    """Writes the model once: its classifier is scaled so that scores spread as a trained one's do."""
    import torch

    from chuxin.models.checkpoint import load_tokenizer, save_model
    from chuxin.models.config import InitConfig
    from chuxin.models.reranker import load_reranker, save_reranker
    from chuxin.models.start import new_model, train_tokenizer

    torch.set_num_threads(SETTINGS["threads"])
    queries, passages, _ = texts()
    size = SETTINGS["max_length"]
    tokenizer = train_tokenizer([*queries, *passages], vocab_size=SETTINGS["vocabulary"], max_len=size)
    config = InitConfig(seed=SETTINGS["seed"], passages="none", max_texts=1, vocab_size=SETTINGS["vocabulary"],
                        layers=SETTINGS["layers"], hidden=SETTINGS["hidden"], heads=SETTINGS["heads"],
                        intermediate=4 * SETTINGS["hidden"], max_len=size)  # fmt: skip
    save_model(new_model(config, len(tokenizer)), tokenizer, f"{folder().name}/encoder")
    model = load_reranker(f"{folder().name}/encoder", seed=SETTINGS["seed"])
    model.classifier.out_proj.weight.data *= SETTINGS["classifier_scale"]
    save_reranker(model, load_tokenizer(f"{folder().name}/encoder"), f"{folder().name}/reranker")
    return f"{folder().name}/reranker"


@functools.cache
def scorer():
    from chuxin.encoding.pairs import PairScorer

    return PairScorer(directory(), 64, SETTINGS["max_length"] - 64, SETTINGS["batch_tokens"])


@functools.cache
def flag_reranker():
    from FlagEmbedding import FlagReranker

    return FlagReranker(directory(), use_fp16=False, devices=["cpu"], batch_size=SETTINGS["batch_size"],
                        max_length=SETTINGS["max_length"])  # fmt: skip


def pairs() -> list[tuple[str, str]]:
    """The pairs' texts."""
    queries, passages, index = texts()
    return [(queries[q], passages[p]) for q, p in index.tolist()]


def ours() -> np.ndarray:
    return scorer().score(*texts())


def theirs() -> np.ndarray:
    return np.array(flag_reranker().compute_score(pairs()), np.float32)


def our_ids() -> list[list[int]]:
    return scorer().tokenise(*texts())


def their_ids() -> list[list[int]]:
    from FlagEmbedding.utils.tokenizer_compat import prepare_for_model_compat

    tokenizer, longest, made = flag_reranker().tokenizer, SETTINGS["max_length"], []
    wanted = pairs()
    for start in range(0, len(wanted), SETTINGS["batch_size"]):
        batch = wanted[start : start + SETTINGS["batch_size"]]
        sides = [tokenizer([pair[side] for pair in batch], add_special_tokens=False, max_length=limit,
                           truncation=True)["input_ids"] for side, limit in ((0, longest * 3 // 4), (1, longest))]
        made += [prepare_for_model_compat(tokenizer, query, passage, truncation="only_second", max_length=longest,
                                          padding=False)["input_ids"] for query, passage in zip(*sides, strict=True)]
    return made


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    same_ids = all(list(x) == list(y) for x, y in zip(our_ids(), their_ids(), strict=True))
    return a.shape == b.shape and bool(np.abs(a - b).max() < 1e-4) and same_ids


def in_turns(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """CPU seconds of two sides and the ratio second / first."""
    times: tuple[list[float], list[float]] = [], []
    for turn in range(rounds):
        for side in (0, 1)[:: 1 if turn % 2 == 0 else -1]:
            started = time.process_time()
            (first, second)[side]()
            times[side].append(time.process_time() - started)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
            "ours": statistics.median(times[0]), "theirs": statistics.median(times[1])}  # fmt: skip


def measure(rounds: int) -> dict[str, Any]:
    """Compares the scores, then the token ids alone."""
    first, second = ours(), theirs()
    same, spread = equal(first, second), float(np.std(second))
    return {**in_turns(ours, theirs, rounds), "tokenise": in_turns(our_ids, their_ids, rounds), "equal": same,
            "unit": "CPU seconds", "rounds": rounds, "settings": SETTINGS, "score_spread": spread,
            "largest_difference": float(np.abs(first - second).max())}  # fmt: skip
