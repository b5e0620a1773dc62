"""WuDaoCorpus2.0: each file one JSON array of {"id", "uniqueKey", "titleUkey", "dataType", "title",
"content"}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chuxin.corpus.sources.plain import RawDocument
from chuxin.records import optional_text, rest, text_of

TEXT = "content"


def parse(value: Mapping[str, Any]) -> RawDocument:
    """Reads one element; the keys and the data type go to `meta`.

    Raises:
        Malformed: The content is missing, not a string or blank.
    """
    text, title = text_of(value, TEXT), optional_text(value, "title")
    return RawDocument(title, text, None, rest(value, (TEXT, "title")))
