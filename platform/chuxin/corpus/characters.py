"""Character classes: one table over all code points, so that a text's needs and measures are array look-ups.

Reading a 400-character passage through the table costs about 4 ns a character; a regular expression a class
costs 2 to 40 ns a character each. Leaves out: what is done about the characters (normalize.py, filters.py).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable

import numpy as np

FOLD, DROP, EMOJI, BREAK, SPACE, TRADITIONAL, HAN, KANA, MOJIBAKE = (1 << bit for bit in range(9))

Ranges = tuple[tuple[int, int], ...]

HAN_RANGES: Ranges = (
    (0x2E80, 0x2FD5), (0x3005, 0x3007), (0x3021, 0x3029), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x323AF),
)
"""The script Han: all extensions, radicals, 々 and 〇. Chemistry, medicine and names use them."""

FOLD_RANGES: Ranges = (
    (0x2E9F, 0x2E9F), (0x2EF3, 0x2EF3), (0x2F00, 0x2FD5),  # radicals printed instead of characters
    (0xFB00, 0xFB06),  # Latin ligatures
    (0xFE10, 0xFE19), (0xFE30, 0xFE4F), (0xFE50, 0xFE6B),  # vertical and small forms of punctuation
    (0xFF03, 0xFF06), (0xFF0A, 0xFF0B), (0xFF0D, 0xFF19), (0xFF1C, 0xFF1E), (0xFF20, 0xFF3A),
    (0xFF3C, 0xFF3C), (0xFF3F, 0xFF3F), (0xFF41, 0xFF5A), (0xFF5C, 0xFF5C),  # full-width letters, signs
    (0xFF61, 0xFFDC),  # half-width katakana and Hangul
    (0x1D400, 0x1D7FF),  # letters in mathematical type
)
"""What NFKC is applied to. Not to full-width Chinese punctuation （，：！？；～）, which is right as it is,
and not where NFKC changes the meaning: 10² would become 102, ①2 would become 12, ½ 1⁄2, ㎡ m2."""

DROP_RANGES: Ranges = (
    (0x00, 0x08), (0x0E, 0x1F), (0x7F, 0x84), (0x86, 0x9F), (0xAD, 0xAD), (0x034F, 0x034F),
    (0x061C, 0x061C), (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F),
    (0xD800, 0xDFFF), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFF0, 0xFFFB), (0xFFFE, 0xFFFF),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)
"""Controls, zero-width characters, direction marks, variation selectors, tags, halves of surrogate pairs."""

EMOJI_RANGES: Ranges = (
    (0x20E3, 0x20E3), (0x231A, 0x231B), (0x23E9, 0x23F3), (0x25FD, 0x25FE), (0x2614, 0x2615),
    (0x2648, 0x2653), (0x267F, 0x267F), (0x2693, 0x2693), (0x26A1, 0x26A1), (0x26AA, 0x26AB),
    (0x26BD, 0x26BE), (0x26C4, 0x26C5), (0x26CE, 0x26CE), (0x26D4, 0x26D4), (0x26EA, 0x26EA),
    (0x26F2, 0x26F3), (0x26F5, 0x26F5), (0x26FA, 0x26FA), (0x26FD, 0x26FD), (0x2705, 0x2705),
    (0x270A, 0x270B), (0x2728, 0x2728), (0x274C, 0x274C), (0x274E, 0x274E), (0x2753, 0x2755),
    (0x2757, 0x2757), (0x2764, 0x2764), (0x2795, 0x2797), (0x27B0, 0x27B0), (0x27BF, 0x27BF),
    (0x2B1B, 0x2B1C), (0x2B50, 0x2B50), (0x2B55, 0x2B55), (0x1F000, 0x1F0FF), (0x1F18E, 0x1F18E),
    (0x1F191, 0x1F19A), (0x1F1E6, 0x1F1FF), (0x1F201, 0x1F201), (0x1F21A, 0x1F21A), (0x1F22F, 0x1F22F),
    (0x1F232, 0x1F23A), (0x1F250, 0x1F251), (0x1F300, 0x1FAFF),
)
"""Characters that are shown as pictures (Unicode's Emoji_Presentation, tiles, cards). ☆, ★, ♂, ✓ stay."""

BREAK_RANGES: Ranges = ((0x0B, 0x0D), (0x85, 0x85), (0x2028, 0x2029))
SPACE_RANGES: Ranges = (
    (0x09, 0x09), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x202F, 0x202F), (0x205F, 0x205F),
    (0x3000, 0x3000),
)
"""Blanks other than the space itself."""

KANA_RANGES: Ranges = ((0x3041, 0x309F), (0x30A1, 0x30FA), (0x31F0, 0x31FF))
"""Japanese syllables, without the middle dot ・ and the long mark ー."""

LATIN_1: Ranges = ((0x80, 0xA6), (0xA8, 0xAF), (0xB2, 0xB6), (0xB8, 0xD6), (0xD8, 0xF6), (0xF8, 0xFF))
"""What UTF-8 or GBK bytes become when read as Latin-1; §, °, ±, ·, ×, ÷ belong in Chinese text."""

UTF8_READ_AS_GBK = (
    "锛涓紝銆浜鏈殑鐨鍏屽鍙澶浠瀹屾鍒鍚鏃佸鍗浣鍔杩傚鏂鍦涔鐢缁骞鍥屼鏄浼竴細鏉勫璁灏鎴琛ㄥ璇鍖佹傛灞岃哄鍐姘氬嶅佷岀鐩佺瀛"
    "锟斤拷"
)
"""The commonest characters of Chinese UTF-8 read as GBK: a fifth of such text, 4e-5 of real text."""

# Characters that t2s changes when they stand alone and keeps inside some phrase (乾隆, 宫商角徵羽, 毕昇):
# they occur in simplified text too, so they do not show that a text is traditional. From OpenCC 1.4.2's
# TSPhrases.
KEPT_IN_PHRASES = "乾剋劄吒徵扞於昇氾濛祕脩蒐薹袷谿釐陞麽"


def pattern(*groups: Ranges) -> re.Pattern[str]:
    """Returns an expression for runs of the characters in some ranges."""
    inner = "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for ranges in groups for a, b in ranges)
    return re.compile(f"[{inner}]+")


def code_points(text: str) -> np.ndarray:
    """Returns a text's code points, uint32 [characters]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


@functools.cache
def table() -> np.ndarray:
    """Returns the flags of every code point, uint16 [0x110000]; built once a process in about 0.1 s."""
    flags = np.zeros(0x110000, dtype=np.uint16)
    classes = (
        (FOLD, FOLD_RANGES), (DROP, DROP_RANGES), (EMOJI, EMOJI_RANGES), (BREAK, BREAK_RANGES),
        (SPACE, SPACE_RANGES), (HAN, HAN_RANGES), (KANA, KANA_RANGES),
        (MOJIBAKE, (*LATIN_1, (0xFFFD, 0xFFFD))),
    )
    for flag, ranges in classes:
        for first, last in ranges:
            flags[first:last + 1] |= flag
    for flag, characters in ((MOJIBAKE, UTF8_READ_AS_GBK), (TRADITIONAL, _traditional_only())):
        flags[[ord(c) for c in characters]] |= flag
    return flags


@functools.cache
def _converter() -> Callable[[str], str]:
    import opencc

    return opencc.OpenCC("t2s").convert


def simplify(text: str) -> str:
    """Turns traditional characters into simplified ones, phrase by phrase.

    Meant for text that holds a TRADITIONAL character: OpenCC also changes characters that simplified text
    uses on purpose (its own 乾县, from 乾縣, becomes 干县 on a second pass).
    """
    # OpenCC 1.4.2 leaves one traditional character in one of its phrases (不可貲計).
    return _converter()(text).replace("計", "计")


def _traditional_only() -> Iterable[str]:
    every = [chr(c) for first, last in HAN_RANGES for c in range(first, last + 1)]
    simplified = _converter()("\n".join(every)).split("\n")
    written = {*simplified, *KEPT_IN_PHRASES}
    return [a for a, b in zip(every, simplified, strict=True) if a != b and a not in written]
