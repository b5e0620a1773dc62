"""Any labelled JSON lines or Parquet: the config names the fields, each a string or a list of strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chuxin.pairs.sources.mtp import Labelled, texts_of
from chuxin.records import text_of


def parse(
    value: Mapping[str, Any], query_field: str, positive_field: str, negative_field: str | None
) -> Labelled:
    """Reads one row."""
    negatives = texts_of(value, negative_field, required=False) if negative_field else []
    return Labelled(text_of(value, query_field), texts_of(value, positive_field), negatives)
