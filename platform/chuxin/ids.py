"""Identifiers: every row's id is a function of where the row came from, so a rerun gives the same ids.

An id is the lower 63 bits of XXH3-64 (never negative, so it fits Arrow's int64). At 10^8 rows the chance
that any two collide is n^2 / 2^64 = 5e-4; the artifacts check ids by sums and would show it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable

import xxhash

MASK_63 = (1 << 63) - 1
# Everything that is not a letter, a mark or a digit: blanks, punctuation, symbols, controls.
_IGNORED = re.compile(r"[\W_]+")


def hash63(*fields: str | int) -> int:
    """Hashes fields to an int in [0, 2^63). Fields are separated by U+001F, so ("ab", "c") != ("a", "bc")."""
    return xxhash.xxh3_64_intdigest("\x1f".join(map(str, fields)).encode()) & MASK_63


def document_id(source: str, file: str, position: int) -> int:
    """Returns the id of a raw row.

    Args:
        source: The source's name in the config.
        file: Path relative to the source's root, never a machine's path.
        position: Byte offset of the line in the uncompressed file, or index of the element or row.
    """
    return hash63("document", source, file, position)


def passage_id(document_id: int, offset: int) -> int:
    """Returns the id of a passage that starts `offset` code points into its document."""
    return hash63("passage", document_id, offset)


@functools.cache
def _to_simplified() -> Callable[[str], str]:
    import opencc

    return opencc.OpenCC("t2s").convert


def match_key(text: str) -> str:
    """Reduces a text to what an "exact match" compares: NFKC, lower case, simplified, letters and digits only.

    Two texts that differ in width, case, script (traditional or simplified), punctuation or blanks are equal; so are
    those that only signs tell apart, such as C++ and C#, −5 and 5, 3.5 and 35.
    """
    folded = _IGNORED.sub("", unicodedata.normalize("NFKC", text).lower())
    if folded.isascii():
        return folded
    # Twice: phrases are simplified by context, so 乾縣 gives 乾县 at first and 干县, as 乾县 does, only then.
    simplify = _to_simplified()
    return simplify(simplify(folded))


def text_hash(text: str) -> int:
    """Returns the hash of a text's match key: equal for exact duplicates in the sense of `match_key`."""
    return hash63("text", match_key(text))
