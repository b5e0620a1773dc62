"""Filters: measures of a passage, and the first reason for which it falls.

Measuring is separate from deciding: a threshold can change, and be looked at, without measuring anew.
Leaves out duplicates and benchmark leaks, which no passage shows by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from chuxin.corpus import characters as ch
from chuxin.corpus.config import FilterConfig
from chuxin.corpus.contents import contents_share, menu_share
from chuxin.schema import KEEP

_NGRAM = 4


class Measures(NamedTuple):
    """What is known of a passage from its text alone; shares are of its characters."""

    n_chars: int
    han_share: float
    kana_share: float
    mojibake_share: float
    repeat_share: float
    contents_share: float
    menu_share: float


def measure(text: str) -> Measures:
    """Measures a passage."""
    codes = ch.code_points(text)
    if not len(codes):
        return Measures(0, *[0.0] * 6)
    flags = ch.table()[codes]
    shares = (np.count_nonzero(flags & flag) / len(codes) for flag in (ch.HAN, ch.KANA, ch.MOJIBAKE))
    layout = contents_share(text), menu_share(text)
    return Measures(len(codes), *map(float, shares), repeat_share(codes), *layout)


def repeat_share(codes: np.ndarray) -> float:
    """Returns the share of 4-grams that occurred before: 0 where all differ, near 1 for one character
    repeated.
    """
    if len(codes) <= _NGRAM:
        return 0.0
    grams = window_hashes(codes, _NGRAM)
    grams.sort()
    return float(np.count_nonzero(grams[1:] == grams[:-1])) / len(grams)


def window_hashes(codes: np.ndarray, width: int) -> np.ndarray:
    """Hashes every window of `width` (a power of two) code points; uint64 [len - width + 1].

    Windows of 2, 4, 8 … are built from two halves, so the cost is log2(width) passes over the array.
    """
    hashes = codes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    size = 1
    while size < width:
        hashes ^= hashes >> np.uint64(29)
        hashes = hashes[:-size] * np.uint64(0xBF58476D1CE4E5B9 + 2 * size) + hashes[size:]
        size *= 2
    return hashes ^ (hashes >> np.uint64(32))


def status(measures: Measures, config: FilterConfig) -> str:
    """Returns "keep" or the first reason, in the order of how clear a reason is."""
    if measures.mojibake_share > config.max_mojibake_share:
        return "mojibake"
    if measures.n_chars < config.min_chars:
        return "too_short"
    if measures.contents_share > config.max_contents_share:
        return "table_of_contents"
    if measures.menu_share > config.max_menu_share:
        return "menu"
    if measures.han_share < config.min_han_share or measures.kana_share > config.max_kana_share:
        return "not_chinese"
    if measures.repeat_share > config.max_repeat_share:
        return "repetitive"
    return KEEP
