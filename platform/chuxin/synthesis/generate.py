"""Passage → queries: what is asked for is drawn, answers are read, unusable ones asked for again with another seed.

Every function sees one row; a row that fails is its own status. Leaves out: choosing passages and writing tables
(pipeline.py), pair rules and the judge.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

from chuxin.ids import hash63
from chuxin.schema import KEEP
from chuxin.synthesis import parse
from chuxin.synthesis.asking import Ask
from chuxin.synthesis.calls import Answer, Call, CallFailed, seed_of, writing
from chuxin.synthesis.config import SynthesizeConfig
from chuxin.synthesis.render import (
    CATEGORIES,
    KINDS,
    LENGTHS,
    describe,
    persona_schema,
    query_schema,
    rich_schema,
)  # fmt: skip
from chuxin.synthesis.render import (
    Ask as Wish,
)
from chuxin.synthesis.rules import strip

Option = TypeVar("Option", bound=str)


class Passage(NamedTuple):
    """A passage as the LLM sees it: cut already."""

    passage_id: int
    document_id: int
    source: str
    text: str
    text_hash: int
    whole_hash: int
    """Of the text before it was cut."""


@dataclass
class Written:
    """What became of one passage: the columns of schema.SYNTHETIC that writing fills."""

    seed: int = 0
    attempts: int = 0
    queries: list[dict[str, Any]] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    status: str = KEEP
    error: str = ""
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def took(self, answer: Answer) -> None:
        """Counts an answer, whether it was bought now or found in the store: a rerun writes the same row."""
        self.prompt_tokens += answer.prompt_tokens
        self.output_tokens += answer.output_tokens


def draw(passage_id: int, config: SynthesizeConfig) -> list[Wish]:
    """Draws what a passage's queries shall be, from the configured weights, by seed and passage.

    Kinds are drawn systematically (Madow 1949): shares of the queries are laid end to end in an order of the passage's
    own, and every query takes the kind that one random fraction further stands in. A kind whose share is 1.4 comes once
    or twice, and on average 1.4 times, however many kinds there are. Difficulties and lengths are drawn freely.
    """
    rng = random.Random(hash63("asks", config.seed, passage_id))
    order = [kind for kind, weight in config.kinds.items() if weight]
    rng.shuffle(order)
    scale = config.queries / sum(config.kinds.values())
    ends = list(accumulate(scale * config.kinds[kind] for kind in order))
    first = rng.random()
    # The last end may be rounded below the number of queries.
    kinds = [order[bisect.bisect(ends, first + place, hi=len(order) - 1)] for place in range(config.queries)]
    return [Wish(kind, _weighted(rng, config.difficulties), _weighted(rng, config.lengths)) for kind in kinds]


async def write(passage: Passage, ask: Ask, config: SynthesizeConfig) -> Written:
    """Writes the queries of one passage.

    Returns:
        The row; its status is "keep" if a query is, else the reason: "fence_in_passage", an answer's reason
        (parse.py) after all attempts, "crashes_engine", "llm_error" with the refusal in `error`.
    """
    row = Written()
    if parse.holds_fence(passage.text):
        row.status = "fence_in_passage"
        return row
    try:
        await (_rich if config.mode == "rich" else _faithful)(passage, ask, config, row)
    except CallFailed as error:
        row.status = "crashes_engine" if str(error) == "crashes_engine" else "llm_error"
        row.error = str(error)
    return row


async def _rich(passage: Passage, ask: Ask, config: SynthesizeConfig, row: Written) -> None:
    wishes = draw(passage.passage_id, config)

    def call(seed: int) -> Call:
        return writing("rich", passage.text, config.sampling, seed, rich_schema(len(wishes)), count=len(wishes),
                       asks=describe(wishes))  # fmt: skip

    def read(answer: Answer) -> parse.Parsed:
        found = parse.read_queries(answer.text, len(wishes), answer.finish)
        if found.value is None:
            return found
        orders = parse.injections(passage.text)
        asked = [{**wish._asdict(), "category": None, "role": None, "scene": None} for wish in wishes]
        return _queries(found.value, asked, orders)

    await _attempts("rich", passage, ask, config, row, call, read)


async def _faithful(passage: Passage, ask: Ask, config: SynthesizeConfig, row: Written) -> None:
    def persona_call(seed: int) -> Call:
        return writing("persona", passage.text, config.sampling, seed, persona_schema())

    persona = await _attempts(
        "persona", passage, ask, config, row, persona_call, lambda a: parse.read_persona(a.text, a.finish)
    )
    if persona is None:
        return
    kind = CATEGORIES[persona["category"]]

    def query_call(seed: int) -> Call:
        return writing("query", passage.text, config.sampling, seed, query_schema(), form=KINDS[kind], **persona)

    def read(answer: Answer) -> parse.Parsed:
        found = parse.read_query(answer.text, answer.finish)
        if found.value is None:
            return found
        asked = {"kind": kind, "difficulty": None, "length": None, **persona}
        return _queries([found.value], [asked], parse.injections(passage.text))

    await _attempts("query", passage, ask, config, row, query_call, read)


async def _attempts(
    name: str, passage: Passage, ask: Ask, config: SynthesizeConfig, row: Written, call: Callable[[int], Call],
    read: Callable[[Answer], parse.Parsed],
) -> Any | None:
    """Asks until an answer can be used; the others are kept with their reasons."""
    for attempt in range(config.attempts):
        row.seed = seed_of(config.seed, passage.passage_id, name, attempt)
        row.attempts += 1
        answer = await ask(call(row.seed)._replace(subject=passage.whole_hash))
        row.took(answer)
        found = read(answer)
        row.status = found.reason
        if found.reason != KEEP:
            row.rejected.append({"seed": row.seed, "reason": found.reason, "raw": answer.text})
        if isinstance(found.value, list):
            row.queries = [{**query, "seed": row.seed} for query in found.value]
        if found.reason == KEEP:
            return found.value
    return None


def _queries(texts: list[str], asked: list[dict[str, Any]], orders: list[str]) -> parse.Parsed:
    """Cleans an answer's queries; the answer is used if one of them is."""
    queries, seen = [], set()
    for text, wish in zip(texts, asked, strict=True):
        query, status = parse.clean_query(strip(text), wish["kind"])
        if status == KEEP and parse.holds_fence(query):
            status = "fence_in_query"
        if status == KEEP and parse.obeyed(query, orders):
            status = "obeyed_passage"
        if status == KEEP and query in seen:
            status = "repeated"
        seen.add(query)
        queries.append({"query": query, **wish, "status": status})
    kept = [q for q in queries if q["status"] == KEEP]
    return parse.Parsed(queries, KEEP if kept else queries[0]["status"])


def matches_length(query: str, length: str) -> bool:
    """True if a query is as long as was asked."""
    _, least, most = LENGTHS[length]  # type: ignore[index]
    return least <= len(query) <= most


def _weighted(rng: random.Random, weights: Mapping[Option, float]) -> Option:
    return rng.choices(list(weights), list(weights.values()))[0]
