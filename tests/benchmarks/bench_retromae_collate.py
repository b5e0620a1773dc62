"""RetroMAE's masks of one text on one CPU thread: chuxin's against the research collator (research_retromae.py).

Both sides make what a step needs: the ids the encoder reads, what it predicts, and for each position which tokens the
decoder sees, as one matrix (chuxin's step itself makes tiles of it). `ratio` is the smaller of the two lengths'.
Equal means the same distribution: ratios, replacements, nobody sees itself. Where the research collator differs, ours
is right by the objective: it masks at most 512 tokens, so at 2,048 too few, and it hides special tokens from XLM-R's
decoder.
"""

import functools
import random
import statistics
from typing import Any

import numpy as np
import torch
from research_retromae import DECODER_SHARE, ENCODER_SHARE, MOST, Collated, Collator
from run import clocked

from chuxin.models.retromae_masks import Drawing, count_masked, hide, lay_out, mask_encoder, visible

SETTINGS = {
    "tokens": [512, 2048], "texts": 1, "vocabulary": 250_002, "encoder_share": ENCODER_SHARE,
    "decoder_share": DECODER_SHARE, "threads": 1, "seed": 3, "recorded_ms_of_512": 133,
}  # fmt: skip
SPECIAL = (0, 1, 2, 3, 250_001)
DRAWING = Drawing(3, ENCODER_SHARE, DECODER_SHARE, SETTINGS["vocabulary"], 250_001, SPECIAL)
OURS_A_ROUND = 50
"""A millisecond alone would be measured badly."""


@functools.cache
def text(tokens: int) -> np.ndarray:
    torch.set_num_threads(SETTINGS["threads"])
    random.seed(SETTINGS["seed"])
    torch.manual_seed(SETTINGS["seed"])
    return np.r_[0, np.random.default_rng(SETTINGS["seed"]).integers(4, 250_001, tokens - 2), 2].astype(np.int32)


@functools.cache
def collator() -> Collator:
    return Collator([f"▁{number}" for number in range(SETTINGS["vocabulary"])], 250_001, SPECIAL)


def ours(tokens: int, key: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the encoder's ids [L], the places it predicts [K] and what is seen [M, L], special tokens first."""
    texts = lay_out([text(tokens)], np.array([key], np.int32), DRAWING)
    shown, masked = mask_encoder(texts)
    hidden = hide(texts.key_N[0], tokens, texts.maskable[0], DECODER_SHARE)
    return shown, masked, visible(hidden, 0, texts.maskable[0])


def theirs(tokens: int) -> Collated:
    return collator()(text(tokens).tolist())


def equal(tokens: int) -> bool:
    """Compares 20 draws (5 of 2,048 tokens) of each side."""
    draws = 20 if tokens <= 512 else 5
    ids, maskable = torch.from_numpy(text(tokens)).long(), tokens - 2
    mine = [ours(tokens, key) for key in range(draws)]
    other = [theirs(tokens) for _ in range(draws)]
    exact = all(
        len(masked) == count_masked(maskable, ENCODER_SHARE)
        and bool(((~seen).sum(1) == count_masked(maskable, DECODER_SHARE)).all())
        and not seen[:, 2:].diagonal().any() and bool(seen[:, :2].all()) and seen.shape == (maskable, tokens)
        and 0 not in masked and tokens - 1 not in masked
        for _, masked, seen in mine
    )  # fmt: skip
    # Theirs: a share of all tokens, so up to two more or fewer; capped.
    masked = [int((batch.encoder_labels >= 0).sum()) for batch in other]
    hidden = torch.stack([(1 - batch.seen[0]).sum(1) for batch in other])
    wanted = [min(MOST, round(share * tokens)) for share in (ENCODER_SHARE, DECODER_SHARE)]
    described = all(wanted[0] - 2 <= count <= wanted[0] for count in masked)
    described &= bool(((hidden == wanted[1]) | (hidden == wanted[1] + 1)).all())
    described &= not any(batch.seen[0].diagonal().any() for batch in other)
    kinds = _kinds([(shown[masked], ids[masked]) for shown, masked, _ in mine])
    chosen = [(batch.encoder_ids[0], batch.encoder_labels[0] >= 0) for batch in other]
    near = np.abs(kinds - _kinds([(shown[where], ids[where]) for shown, where in chosen])).max() < 0.05
    return bool(exact and described and near)


def measure(rounds: int) -> dict[str, Any]:
    """Runs both lengths; the figures of each stand beside the smaller one's."""
    results = [_measure(tokens, rounds) for tokens in SETTINGS["tokens"]]
    worst = min(results, key=lambda result: result["ratio"])
    same = all(result["equal"] for result in results)
    return {**worst, "equal": same, "rounds": rounds, "settings": SETTINGS, "lengths": results}


def _measure(tokens: int, rounds: int) -> dict[str, Any]:
    same = equal(tokens)
    mine, other = [], []
    for _ in range(rounds):
        mine.append(clocked(lambda: [ours(tokens, key) for key in range(OURS_A_ROUND)])[0] / OURS_A_ROUND)
        other.append(clocked(lambda: theirs(tokens))[0])
    ratios = [b / a for a, b in zip(mine, other, strict=True)]
    return {"tokens": tokens, "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
            "ours": statistics.median(mine), "theirs": statistics.median(other), "unit": "CPU seconds a text",
            "equal": same}  # fmt: skip


def _kinds(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> np.ndarray:
    """Shares of masked tokens that became the mask, stayed, and became others."""
    shown, own = (torch.cat(column) for column in zip(*pairs, strict=True))
    mask, kept = (shown == 250_001).float().mean(), (shown == own).float().mean()
    return np.array([mask, kept, 1 - mask - kept])
