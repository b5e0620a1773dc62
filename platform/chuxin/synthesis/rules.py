"""Rules of (query, passage) pairs that an LLM wrote, before any LLM judges: the published ones, in linear time.

Their reference is the published scripts' intent, not their accidents: a text like "uface" and Han characters outside
U+4E00..U+9FA5 stay. Leaves out: what an answer is (parse.py), duplicates between groups (packing's business).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from difflib import SequenceMatcher

from chuxin.schema import KEEP
from chuxin.synthesis.config import PairRules

# Shown as pictures: Unicode's Emoji_Presentation, selectors, joiners, keycaps and flags. ☆, ♂ and ✓ stay.
_EMOJI = re.compile(
    "[\U0001f000-\U0001faff\u231a\u231b\u23e9-\u23f3\u25fd\u25fe\u2614\u2615\u2648-\u2653\u267f\u2693\u26a1\u26aa\u26ab"
    "\u26bd\u26be\u26c4\u26c5\u26ce\u26d4\u26ea\u26f2\u26f3\u26f5\u26fa\u26fd\u2705\u270a\u270b\u2728\u274c\u274e"
    "\u2753-\u2755\u2757\u2764\u2795-\u2797\u27b0\u27bf\u2b1b\u2b1c\u2b50\u2b55\u20e3\ufe0e\ufe0f]+"
)
# Cc controls, Cf zero-width and direction marks, Cs halves of surrogate pairs.
_CONTROLS = {"Cc", "Cf", "Cs"}
_BLANKS = "\t\n\r\v\f"
_LEADER = re.compile(r"[.．·…‥⋯]{2,}\s*[(（]?\d{1,4}[)）]?\s*$|(?:[.．·…]\s){3,}\s*\d{1,4}\s*$")
_CHAPTER = re.compile(r"(?:第[一二三四五六七八九十百零〇\d]{1,6}[章节编篇回部卷讲课]|附录|附则)[^。！？；]{0,30}")
_FEWEST_ENTRIES = 3


def strip(text: str) -> str:
    """Removes control characters and emoji; line breaks and tabs become blanks, runs of blanks one."""
    kept = "".join(c for c in text if c in _BLANKS or unicodedata.category(c) not in _CONTROLS)
    return " ".join(_EMOJI.sub("", kept).split())


def is_contents(text: str) -> bool:
    """True for a table of contents: at least three lines, and half of all, are entries."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    entries = sum(1 for line in lines if _LEADER.search(line[-60:]) or _CHAPTER.fullmatch(line))
    return entries >= _FEWEST_ENTRIES and 2 * entries >= len(lines)


def is_similar(query: str, passage: str, threshold: float) -> bool:
    """Decides `difflib.SequenceMatcher(None, query, passage).ratio() >= threshold` without its quadratic time.

    The ratio is 2 M / T for M matching of T characters, and M is at most the shorter text's length and at most what
    both texts have in common as multisets. The first bound takes no time and leaves only passages of at most
    (2 / threshold − 1) times the query's length: 189 characters at 0.5 and 63. The second is linear; on what it
    leaves difflib itself decides, over lengths that the first bound has limited.
    """
    total = len(query) + len(passage)
    if not total or 2 * min(len(query), len(passage)) < threshold * total:
        return not total
    common = sum((Counter(query) & Counter(passage)).values())
    if 2 * common < threshold * total:
        return False
    return SequenceMatcher(None, query, passage, autojunk=False).ratio() >= threshold


def fault(query: str, passage: str, rules: PairRules) -> str:
    """Returns "keep", or the first rule that a pair breaks.

    Args:
        query: Stripped.
        passage: As the LLM saw it.
        rules: Limits.
    """
    if len(query) < rules.min_query_chars:
        return "query_too_short"
    if len(query) > rules.max_query_chars:
        return "query_too_long"
    if len(passage) < rules.min_passage_ratio * len(query):
        return "passage_too_short"
    if rules.drop_contents and is_contents(passage):
        return "table_of_contents"
    # Behind the length rules: a query is 63 characters here at most, which is what makes the next line linear.
    return "similar" if is_similar(query, passage, rules.max_similarity) else KEEP
