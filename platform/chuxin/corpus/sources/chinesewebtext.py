"""ChineseWebText: JSON lines {"title", "score" (quality, 0 to 1), "text", "url", "source_domain"}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chuxin.corpus.sources.plain import RawDocument
from chuxin.records import optional_text, rest, text_of

TEXT = "text"


def parse(value: Mapping[str, Any]) -> RawDocument:
    """Reads one line; score and source_domain go to `meta`.

    Raises:
        Malformed: The text is missing, not a string or blank.
    """
    text, title = text_of(value, TEXT), optional_text(value, "title")
    return RawDocument(title, text, optional_text(value, "url") or None, rest(value, (TEXT, "title", "url")))
