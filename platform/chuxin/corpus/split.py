"""Splitting: a document's text into passages at paragraph and sentence ends, none longer than the limit.

A passage is a span of the normalised text without blanks at its ends, so passage == text[offset:offset +
length] and what lies between two passages is blank: nothing is lost, nothing occurs twice. Leaves out:
overlap.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from chuxin.corpus.config import SplitConfig

# A full stop ends a sentence before a blank or a Han character (as Chinese abstracts write it), not in 3.14
# or a.txt.
_SENTENCE_END = re.compile(r"(?:[。！？!?；;…]+|\.(?=[\s\u3400-\u9fff]))[”’」』）)\]】》\"]*\n?")
_CLAUSE_END = re.compile(r"[，,、：:—]+|\s")


def split(text: str, config: SplitConfig) -> Iterator[tuple[int, int]]:
    """Yields the (start, end) of each passage, in code points.

    A passage ends at the last blank line in the second half of its room, else at the last sentence end
    there (one that also ends a line first), else at a line end, a clause end or a blank, else where the
    room ends.

    Args:
        text: A normalised text.
        config: Longest passage, and the least that is left for the last one.
    """
    start, stop = _trim(text, 0, len(text))
    while stop - start > config.max_chars:
        limit = min(start + config.max_chars, stop - config.min_chars)
        end = _cut(text, start, limit)
        yield _trim(text, start, end)
        start, stop = _trim(text, end, stop)
    if start < stop:
        yield start, stop


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _cut(text: str, start: int, limit: int) -> int:
    low = start + (limit - start) // 2
    if (blank_line := text.rfind("\n\n", low, limit)) >= 0:
        return blank_line + 2
    sentence = line = 0
    for found in _SENTENCE_END.finditer(text, low, limit):
        sentence = found.end()
        line = sentence if text[sentence - 1] == "\n" else line
    if line or sentence:
        return line or sentence
    if (line_end := text.rfind("\n", low, limit)) >= 0:
        return line_end + 1
    clause = 0
    for found in _CLAUSE_END.finditer(text, low, limit):
        clause = found.end()
    return clause or limit
