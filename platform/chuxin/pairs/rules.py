"""Rules of pairs: what makes a group unfit to train on, in time linear in its texts.

A passage may fall out of its group (it equals the query, is a table of contents, is empty, or stands among
the negatives though it is a positive); the group falls with the last positive, and its status is that
passage's reason. Leaves out similarity rules (they fit synthesised queries, and would delete every
paraphrase set) and benchmark leaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from chuxin.pairs.config import PairRules
from chuxin.schema import KEEP


class Passage(NamedTuple):
    """A normalised passage of a group; the fields of schema.PASSAGE."""

    passage_id: int
    text: str
    text_hash: int
    score: float | None


class Judged(NamedTuple):
    """A group after the rules; `dropped` counts passages by the reason they fell."""

    positives: list[Passage]
    negatives: list[Passage]
    status: str
    dropped: Counter[str]


def judge(
    query: str, query_hash: int, positives: Sequence[Passage], negatives: Sequence[Passage], rules: PairRules,
    is_contents: Callable[[str], bool],
) -> Judged:
    """Applies the rules to one group.

    Args:
        query: Normalised.
        query_hash: Hash of the query's match key.
        positives: Normalised.
        negatives: Normalised.
        rules: Limits.
        is_contents: Whether a text is a table of contents.
    """
    def fault(passage: Passage) -> str:
        if not passage.text:
            return "empty_passage"
        if passage.text_hash == query_hash:
            return "passage_equals_query"
        return "table_of_contents" if rules.drop_contents and is_contents(passage.text) else ""

    faults = [fault(passage) for passage in positives]
    kept_positives = _without_faults(positives, faults)
    relevant = {p.text_hash for p in positives}
    negative_faults = [fault(p) or ("negative_is_positive" if p.text_hash in relevant else "") for p in negatives]
    kept_negatives = _without_faults(negatives, negative_faults)
    dropped = Counter(reason for reason in (*faults, *negative_faults) if reason)
    left = len(kept_positives) + len(kept_negatives)
    repeated = len(positives) + len(negatives) - left - dropped.total()
    if repeated:
        dropped["repeated_passage"] = repeated
    return Judged(kept_positives, kept_negatives, _status(query, kept_positives, faults, rules), dropped)


def _status(query: str, kept: Sequence[Passage], faults: Sequence[str], rules: PairRules) -> str:
    if len(query) < rules.min_query_chars:
        return "query_too_short"
    if len(query) > rules.max_query_chars:
        return "query_too_long"
    if not kept:
        return faults[0] if faults else "no_positive"
    return KEEP


def _without_faults(passages: Sequence[Passage], faults: Sequence[str]) -> list[Passage]:
    """Keeps the passages without a fault, of those with one text the first."""
    first: dict[int, Passage] = {}
    for passage, reason in zip(passages, faults, strict=True):
        if not reason:
            first.setdefault(passage.text_hash, passage)
    return list(first.values())
