"""Tables of contents and menus: how much of a text their entries make up. They match every query and answer
none.

A table of contents has three forms: a title, leader dots and a page number (also many of them on one line); a
numbered title with a page number at its line's end; a short line "第…章 …" without a sentence's punctuation.
A menu is many short lines without any punctuation. Both in time linear in the text's length.
"""

from __future__ import annotations

import re

_DOT = ".．·…‥⋯"
# Possessive, and never begun inside a run of dots, so that long runs cost linear time.
_LEADER = re.compile(rf"(?<![{_DOT}])(?<![{_DOT}] )[{_DOT}](?:[ ]?[{_DOT}])++[ ]*+[(（]?\d{{1,4}}(?!\d)")
_HAN_DIGITS = "一二三四五六七八九十百千零〇两"
_CHAPTER = re.compile(rf"(?:第[{_HAN_DIGITS}\d]{{1,6}}[章节编篇回部卷讲课]|附录|附则)[^。！？；!?;]{{0,30}}")
_NUMBER = rf"(?:\d{{1,3}}(?:\.\d{{1,3}})*|[{_HAN_DIGITS}]{{1,3}})"
_NUMBERED = re.compile(rf"{_NUMBER}[.、 ][^。！？；!?;]{{1,40}} \d{{1,4}}")
_LONGEST_ENTRY = 60
_FEWEST_ENTRIES = 3
_MARK = re.compile("[。！？；，、：,.!?;:…]")
_LONGEST_MENU_LINE = 9
_FEWEST_MENU_LINES = 4


def contents_share(text: str) -> float:
    """Returns the share of characters that stand in entries of a table of contents, 0 if there are fewer
    than three.
    """
    entries, covered = 0, 0
    for line in text.split("\n"):
        end = 0
        for found in _LEADER.finditer(line):
            entries, covered = entries + 1, covered + min(found.end() - end, _LONGEST_ENTRY)
            end = found.end()
        short = not end and len(line) <= _LONGEST_ENTRY
        if short and (_CHAPTER.fullmatch(line) or _NUMBERED.fullmatch(line)):
            entries, covered = entries + 1, covered + len(line)
    letters = len(text) - text.count("\n")
    return covered / letters if entries >= _FEWEST_ENTRIES else 0.0


def menu_share(text: str) -> float:
    """Returns the share of characters in lines of at most nine characters without punctuation, 0 if the text
    has fewer than four lines.
    """
    lines = text.split("\n")
    if len(lines) < _FEWEST_MENU_LINES:
        return 0.0
    short = sum(len(line) for line in lines if len(line) <= _LONGEST_MENU_LINE and not _MARK.search(line))
    return short / max(len(text) - len(lines) + 1, 1)
