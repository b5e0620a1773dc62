"""Pieces of a text: they join to it, fit, and end where sentences do wherever a sentence fits."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.packing.pieces import cut, sentence_ends


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("他说：“好。”我走了！真的？", ["他说：“好。”", "我走了！", "真的？"]),
        ("一行\n\n两行\n", ["一行\n\n", "两行\n"]),
        ("It is 3.14 in a.txt. Yes! (No?) 好", ["It is 3.14 in a.txt. ", "Yes! ", "(No?) ", "好"]),
        ("本文研究了.结果表明……有效；如下", ["本文研究了.", "结果表明……", "有效；", "如下"]),
        ("没有句号", ["没有句号"]),
    ],
)
def test_where_sentences_end(text: str, sentences: list[str]) -> None:
    ends = sentence_ends(text, np.arange(1, len(text) + 1))
    assert [text[a:b] for a, b in itertools.pairwise([0, *ends.tolist(), len(text)])] == sentences


def test_tokens_are_not_cut_within_and_bytes_of_a_character_stay_together() -> None:
    # Tokens of 2, 1 (three bytes of one character), 2 and 1 code points; the mark is the end of the second.
    assert sentence_ends("你好。我在家", np.array([2, 3, 3, 3, 5, 6])).tolist() == [4]
    # A token reaches over the end of the sentence: the cut comes before it.
    assert sentence_ends("你好。我在家", np.array([1, 2, 4, 6])).tolist() == [2]


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 120), st.sets(st.integers(1, 119)), st.integers(1, 30))
def test_pieces_join_fit_and_end_at_sentence_ends(length: int, ends: set[int], most: int) -> None:
    ends_E = np.array(sorted(end for end in ends if end < length), np.int64)
    bounds = cut(length, ends_E, most)
    assert bounds[0] == 0 and bounds[-1] == length
    sizes = np.diff(bounds)
    assert (sizes > 0).all() and (sizes <= most).all()
    for start, stop in itertools.pairwise(bounds):
        if stop != length and stop not in ends:  # cut within a sentence: it does not fit
            assert not any(start < end <= start + most for end in ends)
            following = min(end for end in (*ends_E.tolist(), length) if end > start)
            assert following - start > most


def test_pieces_are_balanced() -> None:
    every_five = np.arange(5, 1000, 5)
    assert np.diff(cut(210, every_five, 100)).tolist() == [70, 70, 70]  # filling greedily leaves 100, 100, 10
    assert np.diff(cut(210, np.zeros(0, np.int64), 100)).tolist() == [70, 70, 70]
    assert np.diff(cut(180, np.array([100]), 100)).tolist() == [100, 80]
