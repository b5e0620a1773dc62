"""Written queries → verdicts: rules first, then an LLM, criterion by criterion; every verdict is a record.

The whole query and the whole passage reach the prompt, nothing is cut after formatting. Leaves out: tables
(pipeline.py), the rules themselves (rules.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chuxin.ids import hash63, text_hash
from chuxin.schema import KEEP
from chuxin.synthesis.asking import Ask, together
from chuxin.synthesis.calls import CallFailed, verdict
from chuxin.synthesis.config import JudgeConfig
from chuxin.synthesis.parse import holds_fence
from chuxin.synthesis.render import DOCUMENT_PROMPTS, prompt_hash
from chuxin.synthesis.rules import fault

SOURCE_PREFIX = "synthetic-"
"""Stands before the passage's source in a group's: batches from one source then stay of one kind."""


def query_id(passage_id: int, prompts: str, model: str, seed: int, index: int) -> int:
    """Returns the id of a written query.

    Args:
        passage_id: Of its passage.
        prompts: `prompt_hash` of its row.
        model: Identity of the LLM.
        seed: Of the answer it stands in: two syntheses of the same passages by different seeds do not share ids.
        index: Place in its row's queries.
    """
    return hash63("synthetic", passage_id, prompts, model, seed, index)


async def decide(row: Mapping[str, Any], ask: Ask, config: JudgeConfig) -> list[dict[str, Any]]:
    """Judges the queries of one row of SYNTHETIC.

    Returns:
        Rows of schema.VERDICT: one for each query that fell before the LLM (`criterion` is the rule's name), else one
        for each criterion, whose `reason` is "keep", the criterion it fails, or "llm_error". A query is accepted if
        all its verdicts keep it.
    """
    tasks = [_query(row, index, written, ask, config) for index, written in enumerate(row["queries"] or ())]
    return [entry for entries in await together(tasks) for entry in entries]


async def _query(
    row: Mapping[str, Any], index: int, written: Mapping[str, Any], ask: Ask, config: JudgeConfig
) -> list[dict[str, Any]]:
    query = written["query"]
    base = {
        "query_id": query_id(row["passage_id"], row["prompt_hash"], row["model"], written["seed"], index),
        "query": query, "kind": written["kind"], "score": None, "verdict": "", "prompt_hash": "",
    }  # fmt: skip
    reason = written["status"]
    if reason == KEEP:
        reason = fault(query, row["text"], config.rules)
    if reason == KEEP and (holds_fence(query) or holds_fence(row["text"])):
        reason = "fence"
    if reason != KEEP or not config.criteria:
        return [{**base, "criterion": "" if reason == KEEP else reason, "reason": reason}]
    verdicts = [_criterion(base, name, row, ask, config.threshold) for name in config.criteria]
    return await together(verdicts)


async def _criterion(
    base: dict[str, Any], name: str, row: Mapping[str, Any], ask: Ask, threshold: float
) -> dict[str, Any]:
    entry = {**base, "criterion": name, "prompt_hash": prompt_hash(name)}
    try:
        score, said = await yes(name, ask, row["text"], row["text_hash"], query=base["query"])
    except CallFailed as error:
        return {**entry, "reason": "crashes_engine" if str(error) == "crashes_engine" else "llm_error"}
    return {**entry, "verdict": said, "score": score, "reason": KEEP if score >= threshold else name}


async def yes(name: str, ask: Ask, passage: str, subject: int, **fields: str) -> tuple[float, str]:
    """Asks for a verdict about a passage whose text has the hash `subject`, or about a query that was made of it.

    Returns:
        The probability of "yes", and the answer itself.

    Raises:
        CallFailed: The call failed, or its answer has no log-probabilities.
    """
    answer = await ask(verdict(name, passage if name in DOCUMENT_PROMPTS else "", subject, **fields))
    return answer.score, answer.text


def accepted(row: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the groups (schema.GROUPS) of the queries that all their verdicts keep: one positive, no negatives.

    A query that a row holds twice counts once.
    """
    fallen = {v["query_id"] for v in verdicts if v["reason"] != KEEP}
    kept = {v["query_id"]: v["query"] for v in verdicts if v["query_id"] not in fallen}
    positive = {"passage_id": row["passage_id"], "text": row["text"], "text_hash": row["text_hash"], "score": None}
    lineage = {"file": None, "position": None, "passage_id": row["passage_id"]}
    groups: dict[int, dict[str, Any]] = {}
    for identifier, query in kept.items():
        hashed = text_hash(query)
        groups.setdefault(hashed, {
            "query_id": identifier, "query": query, "query_hash": hashed, "positives": [positive], "negatives": [],
            "source": SOURCE_PREFIX + row["source"], "status": KEEP, "lineage": lineage,
        })  # fmt: skip
    return list(groups.values())
