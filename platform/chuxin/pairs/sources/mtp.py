"""BAAI-MTP's massive pairs: JSON lines {"query": str, "pos": [str], "neg": [str]}, `neg` may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from chuxin.records import Malformed, text_of


class Labelled(NamedTuple):
    """A query with its labelled passages; scores are a teacher's, one a passage, or None where there are
    none.
    """

    query: str
    positives: list[str]
    negatives: list[str]
    positive_scores: list[float] | None = None
    negative_scores: list[float] | None = None


def texts_of(value: Mapping[str, Any], field: str, required: bool = True) -> list[str]:
    """Returns a field as a list of strings; one string counts as a list of one.

    Raises:
        Malformed: It is missing though required, or holds something that is no string.
    """
    if value.get(field) is None:
        if required:
            raise Malformed("missing_field", field)
        return []
    texts = [value[field]] if isinstance(value[field], str) else value[field]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Malformed("not_strings", field)
    return texts


def parse(value: Mapping[str, Any]) -> Labelled:
    """Reads one line. An empty `pos` is no fault of the line: curate gives such a group its status."""
    return Labelled(text_of(value, "query"), texts_of(value, "pos"), texts_of(value, "neg", required=False))
