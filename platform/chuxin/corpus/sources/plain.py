"""Any JSON lines or Parquet with one text a row: the config names the fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from chuxin.records import optional_text, rest, text_of


class RawDocument(NamedTuple):
    """What an adapter reads from one row; `meta` is a JSON object of everything else."""

    title: str
    text: str
    url: str | None
    meta: str


def parse(value: Mapping[str, Any], text_field: str, title_field: str | None) -> RawDocument:
    """Reads one row.

    Raises:
        Malformed: The text is missing, not a string or blank.
    """
    text, title = text_of(value, text_field), optional_text(value, title_field)
    meta = rest(value, (text_field, title_field, "url"))
    return RawDocument(title, text, optional_text(value, "url") or None, meta)
