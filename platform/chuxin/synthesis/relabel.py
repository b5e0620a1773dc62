"""Candidates that the reranker is unsure of → an LLM's yes or no (Gecko, Lee et al. 2024; RLHN asks likewise).

Only pairs of the first `top_k` whose raw reranker logit lies between the thresholds are asked about: what is clearly
good or bad costs nothing. Leaves out: what follows from the label (the select stage).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from chuxin.synthesis.asking import Ask
from chuxin.synthesis.calls import CallFailed
from chuxin.synthesis.config import RelabelConfig
from chuxin.synthesis.judge import yes
from chuxin.synthesis.parse import holds_fence

PROMPT = "answered"
"""The judge's question, so that an answer given there is not bought again."""


def uncertain(candidates: Iterable[Mapping[str, Any]], config: RelabelConfig) -> list[int]:
    """Returns the places of the candidates to ask about, among the first `top_k` of a query's.

    Raises:
        ValueError: A candidate has no reranker score.
    """
    places = []
    for place, candidate in enumerate(candidates):
        if place == config.top_k:
            break
        if candidate["rerank"] is None:
            raise ValueError("a candidate has no `rerank` score: give the rerank stage's artifact")
        if config.low <= candidate["rerank"] <= config.high:
            places.append(place)
    return places


async def relabel(
    row: Mapping[str, Any], places: list[int], texts: Mapping[int, str], ask: Ask, config: RelabelConfig
) -> list[str | None]:
    """Asks about the pairs of one row of CANDIDATES.

    Args:
        row: The row.
        places: Places of the candidates to ask about.
        texts: Passages by id; of a given one the row's own text counts.
        ask: The LLM.
        config: The threshold.

    Returns:
        For each place "yes", "no", or None where the call failed: the reranker's score then decides alone.
    """
    own = {p["passage_id"]: p["text"] for p in (*row["positives"], *row["negatives"])}

    async def one(place: int) -> str | None:
        identifier = row["candidates"][place]["passage_id"]
        text = own.get(identifier) or texts[identifier]
        if holds_fence(text):
            return None
        try:
            score, _ = await yes(PROMPT, ask, passage=text, query=row["query"])
        except CallFailed:
            return None
        return "yes" if score >= config.threshold else "no"

    return list(await asyncio.gather(*map(one, places)))
