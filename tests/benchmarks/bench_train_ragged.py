"""A dense training step on texts of very unequal length: chuxin's objective against FlagEmbedding's with its collator.

16 queries with 4 passages each, passages log-normal as real ones are, cut at 512 tokens (the ratio) and at 1024. Each
side runs from what it reads while training to gradients: FlagEmbedding's collator tokenises and pads strings, ours
prepares the rows of a plan, tokenised when it was made. Real tokens are the same on both sides, so that tokens a
second compare as seconds do. Equal means: the loss and every gradient, element by element, within 1e-4.
"""

import functools
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import contrastive  # noqa: E402  (beside this file)
import run  # noqa: E402

SETTINGS = {
    "queries": 16, "group_size": 4, "query_tokens": [8, 32], "passage_tokens": "log-normal, median 220, sigma 0.9",
    "caps": [512, 1024], "vocabulary": contrastive.VOCABULARY, "layers": 4, "hidden": 256, "heads": 4,
    "temperature": 0.02, "micro_batch_tokens": 8192, "dropout": 0.0, "dtype": "float32", "threads": 1, "seed": 3,
    "unit_of_speed": "real tokens a CPU second",
}  # fmt: skip
CHARACTERS = 1500
"""Texts are drawn from so many; the tokenizer holds each and few pairs, so that a character is a token."""
LONGEST = max(SETTINGS["caps"])


@functools.cache
def texts() -> tuple[list[str], list[list[str]]]:
    """Queries and their passages, as strings."""
    rng = np.random.default_rng(SETTINGS["seed"])

    def drawn(characters: int) -> str:
        return "".join(map(chr, rng.integers(0x4E00, 0x4E00 + CHARACTERS, max(1, characters))))

    lengths = np.exp(rng.normal(np.log(220), 0.9, (SETTINGS["queries"], SETTINGS["group_size"]))).astype(int)
    queries = [drawn(n) for n in rng.integers(*SETTINGS["query_tokens"], SETTINGS["queries"])]
    return queries, [[drawn(n - 2) for n in group] for group in lengths]


@functools.cache
def tokenizer():
    from chuxin.models.start import train_tokenizer

    queries, groups = texts()
    return train_tokenizer([*queries, *sum(groups, [])], vocab_size=2200, max_len=LONGEST)


@functools.cache
def model():
    torch.set_num_threads(SETTINGS["threads"])
    return contrastive.new_model(
        SETTINGS["hidden"], SETTINGS["layers"], SETTINGS["heads"], LONGEST, SETTINGS["seed"]
    )


@functools.cache
def batch(cap: int):
    queries, groups = texts()

    def ids(strings: list[str], longest: int) -> list[list[int]]:
        return tokenizer()(strings, truncation=True, max_length=longest)["input_ids"]

    return contrastive.new_batch(ids(queries, SETTINGS["query_tokens"][1]), [ids(group, cap) for group in groups])


@functools.cache
def objective():
    budget, temperature = SETTINGS["micro_batch_tokens"], SETTINGS["temperature"]
    return contrastive.new_objective(model(), budget, grad_cache=False, temperature=temperature)


@functools.cache
def their_model():
    from FlagEmbedding.finetune.embedder.encoder_only.base.modeling import BiEncoderOnlyEmbedderModel

    # The same module: weights are the same, and gradients are thrown away before each step.
    return BiEncoderOnlyEmbedderModel(
        model().backbone, tokenizer=tokenizer(), temperature=SETTINGS["temperature"], normalize_embeddings=True
    ).train()


def ours(cap: int = 512) -> tuple[float, dict[str, torch.Tensor]]:
    loss, gradients = contrastive.step(model(), objective(), batch(cap))
    return loss, {name.removeprefix("backbone."): gradient for name, gradient in gradients.items()}


def theirs(cap: int = 512) -> tuple[float, dict[str, torch.Tensor]]:
    from FlagEmbedding.abc.finetune.embedder.AbsDataset import AbsEmbedderCollator

    collator = AbsEmbedderCollator(tokenizer(), query_max_len=SETTINGS["query_tokens"][1], passage_max_len=cap)
    their_model().zero_grad(set_to_none=True)
    queries, groups = texts()
    loss = their_model()(**collator([(query, group, None) for query, group in zip(queries, groups, strict=True)])).loss
    loss.backward()
    named = model().backbone.named_parameters()
    return float(loss.detach()), {name: parameter.grad for name, parameter in named if parameter.grad is not None}


equal = contrastive.close


def compare(cap: int, rounds: int) -> dict:
    """Compares the two sides at one cap; the first run of each, not timed, shows that they are equal."""
    same = equal(ours(cap), theirs(cap))
    seconds = {ours: [], theirs: []}
    for turn in range(rounds):
        for side in (ours, theirs)[:: 1 if turn % 2 == 0 else -1]:
            seconds[side].append(run.clocked(functools.partial(side, cap))[0])
    tokens = int(batch(cap).lengths_of_ranks[0].sum())
    ratios = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    speeds = [tokens / statistics.median(seconds[side]) for side in (ours, theirs)]
    return {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
            "ours": speeds[0], "theirs": speeds[1], "equal": same, "real_tokens": tokens, "rounds": rounds}


def measure(rounds: int) -> dict:
    short, long = SETTINGS["caps"]
    at_long, figures = compare(long, rounds), compare(short, rounds)
    both = figures["equal"] and at_long["equal"]
    return {**figures, "equal": both, "unit": "real tokens a CPU second", f"at_{long}": at_long, "settings": SETTINGS}
