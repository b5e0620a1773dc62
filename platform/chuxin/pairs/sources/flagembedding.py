"""FlagEmbedding's training lines: {"query", "pos", "neg"} with optional pos_scores and neg_scores (floats).

A score is tied to its passage here, once; lists of different lengths are refused, because nobody can tell
which passage a surplus score belonged to. `prompt`, `type` and other fields are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chuxin.pairs.sources import mtp
from chuxin.records import Malformed


def parse(value: Mapping[str, Any]) -> mtp.Labelled:
    """Reads one line.

    Raises:
        Malformed: A field is missing or of the wrong type, or scores and passages differ in number.
    """
    plain = mtp.parse(value)
    return plain._replace(positive_scores=_scores(value, "pos_scores", len(plain.positives)),
                          negative_scores=_scores(value, "neg_scores", len(plain.negatives)))


def _scores(value: Mapping[str, Any], field: str, passages: int) -> list[float] | None:
    scores = value.get(field)
    if scores is None:
        return None
    if not isinstance(scores, list) or not all(isinstance(s, (int, float)) for s in scores):
        raise Malformed("not_numbers", field)
    if len(scores) != passages:
        raise Malformed("score_mismatch", f"{field} has {len(scores)} scores for {passages} passages")
    return [float(s) for s in scores]
