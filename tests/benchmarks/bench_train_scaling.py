"""CPU time a token of a training step as the global batch grows: 1, 4 and 16 times as many queries.

Flat is the aim: micro-batches are full at every size, so what grows faster than the batch (scores of every query
against every passage) must stay small beside the encoder. `ratio` is the worst of the sizes over the best, by median
over the rounds, for the plain step; `grad_cache` holds the same for GradCache, which runs all micro-batches but one
twice, so that the smallest batch, of four, has 6 % less to do a token. Equal means: the first size's loss and every
gradient are the same, within 1e-4, by micro-batches of half the tokens.
"""

import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import contrastive  # noqa: E402  (beside this file)
import run  # noqa: E402

SETTINGS = {
    "queries": [32, 128, 512], "group_size": 4, "query_tokens": 16, "passage_tokens": 64,
    "vocabulary": contrastive.VOCABULARY, "layers": 4, "hidden": 64, "heads": 4, "micro_batch_tokens": 2176,
    "temperature": 0.02, "loss": "dense", "dropout": 0.0, "dtype": "float32", "threads": 1, "seed": 3,
}  # fmt: skip


def batch(queries: int):
    """Texts of fixed lengths, so that micro-batches are full at every size."""
    rng = np.random.default_rng(SETTINGS["seed"])
    words = np.arange(4, SETTINGS["vocabulary"])
    sizes = [SETTINGS["query_tokens"], *[SETTINGS["passage_tokens"]] * SETTINGS["group_size"]]
    drawn = [[contrastive.drawn_ids(rng, size, words) for size in sizes] for _ in range(queries)]
    return contrastive.new_batch([texts[0] for texts in drawn], [texts[1:] for texts in drawn])


def model():
    import torch

    torch.set_num_threads(SETTINGS["threads"])
    sizes = (SETTINGS["hidden"], SETTINGS["layers"], SETTINGS["heads"], SETTINGS["passage_tokens"])
    return contrastive.new_model(*sizes, SETTINGS["seed"])


def compare(module, batches: list, grad_cache: bool, rounds: int) -> dict:
    """Returns the worst size's median CPU time a token over the best's, and all of them in microseconds."""
    objective = contrastive.new_objective(
        module, SETTINGS["micro_batch_tokens"], grad_cache, temperature=SETTINGS["temperature"]
    )
    times: list[list[float]] = [[] for _ in batches]
    for _ in range(rounds):
        for batch, seconds in zip(batches, times, strict=True):
            # A small batch is run several times, so that all sizes are looked at for equally long.
            turns = max(1, len(batches[-1].table) // len(batch.table) // 4)
            tokens = turns * int(batch.lengths_of_ranks[0].sum())
            cpu, _ = run.clocked(lambda: [contrastive.step(module, objective, batch) for _ in range(turns)])  # noqa: B023
            seconds.append(1e6 * cpu / tokens)
    medians = [statistics.median(seconds) for seconds in times]
    by_round = [max(row) / min(row) for row in zip(*times, strict=True)]
    return {"ratio": max(medians) / min(medians), "ratio_min": min(by_round), "ratio_max": max(by_round),
            "microseconds_a_token": dict(zip(SETTINGS["queries"], medians, strict=True))}


def measure(rounds: int) -> dict:
    module, batches = model(), [batch(queries) for queries in SETTINGS["queries"]]
    halves, whole = (
        contrastive.step(
            module, contrastive.new_objective(module, budget, False, temperature=SETTINGS["temperature"]), batches[0]
        )
        for budget in (SETTINGS["micro_batch_tokens"] // 2, SETTINGS["micro_batch_tokens"])
    )
    figures = compare(module, batches, False, rounds)
    by_size = list(figures["microseconds_a_token"].values())
    return {
        **figures, "ours": max(by_size), "theirs": min(by_size),
        "unit": "CPU microseconds a token, worst and best size",
        "equal": contrastive.close(halves, whole), "rounds": rounds,
        "grad_cache": compare(module, batches, True, rounds), "settings": SETTINGS,
    }  # fmt: skip
