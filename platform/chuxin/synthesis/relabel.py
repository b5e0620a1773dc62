"""Candidates that the reranker is unsure of → an LLM's yes or no (Gecko, Lee et al. 2024; RLHN asks likewise).

Only pairs of the reranker's first `top_k` whose raw logit lies between the thresholds are asked about: what is clearly
good or bad costs nothing. Leaves out: what follows from the label (the select stage).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chuxin.synthesis.asking import Ask, together
from chuxin.synthesis.calls import CallFailed
from chuxin.synthesis.config import RelabelConfig
from chuxin.synthesis.judge import yes
from chuxin.synthesis.parse import holds_fence

PROMPT = "answered"
"""The judge's question, so that an answer given there is not bought again."""


def uncertain(candidates: Sequence[Mapping[str, Any]], config: RelabelConfig) -> list[int]:
    """Returns the places of the candidates to ask about: those of the band among the `top_k` of best score.

    Candidates without a score (the rerank stage scores only so many) are not among them.
    """
    scored = [place for place, candidate in enumerate(candidates) if candidate["rerank"] is not None]
    best = sorted(scored, key=lambda place: -candidates[place]["rerank"])[: config.top_k]
    return [place for place in best if config.low <= candidates[place]["rerank"] <= config.high]


async def relabel(
    row: Mapping[str, Any], places: list[int], texts: Mapping[int, str], ask: Ask, config: RelabelConfig
) -> list[str | None]:
    """Asks about the pairs of one row of CANDIDATES.

    Args:
        row: The row.
        places: Places of the candidates to ask about.
        texts: Passages by text_hash, cut.
        ask: The LLM.
        config: The threshold.

    Returns:
        For each place "yes", "no", or None where the pair cannot be shown or was refused: the reranker's score then
        decides alone.
    """

    async def one(place: int) -> str | None:
        candidate = row["candidates"][place]
        text = texts[candidate["text_hash"]]
        if holds_fence(text) or holds_fence(row["query"]):
            return None
        try:
            score, _ = await yes(PROMPT, ask, text, candidate["text_hash"], query=row["query"])
        except CallFailed:
            return None
        return "yes" if score >= config.threshold else "no"

    return await together(map(one, places))
