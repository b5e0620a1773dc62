"""split.py: nothing lost, true offsets, no passage too long, ends at sentences."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.corpus.config import NormalizeConfig, SplitConfig
from chuxin.corpus.normalize import normalize
from chuxin.corpus.split import split

TEXTS = st.lists(st.sampled_from([
    "春眠不觉晓", "处处闻啼鸟", "夜来风雨声", "，", "。", "！”", "\n", "\n\n", " ", "3.14", "word ",
    "https://example.com/a.b", "……", "𠮷", "字" * 50, "a" * 40,
]), max_size=80).map("".join)


@settings(max_examples=150)
@given(TEXTS, st.integers(2, 60), st.integers(1, 30))
def test_spans_cover_everything_but_blanks(text: str, max_chars: int, min_chars: int) -> None:
    config = SplitConfig(max_chars, min(min_chars, max_chars // 2))
    spans = list(split(text, config))
    position = 0
    for start, end in spans:
        assert position <= start < end and end - start <= max_chars
        assert not text[position:start].strip()
        assert text[start:end] == text[start:end].strip()
        position = end
    assert not text[position:].strip()


@settings(max_examples=100)
@given(TEXTS)
def test_the_last_passage_is_not_a_scrap(text: str) -> None:
    text = normalize(text, NormalizeConfig())
    passages = [text[a:b] for a, b in split(text, SplitConfig(60, 20))]
    if len(passages) > 1:  # blanks trimmed at the cut may cost up to two characters
        assert len(passages[-1]) >= 18


@pytest.mark.parametrize(("text", "passages"), [
    ("一二三四五。六七八九十。甲乙丙丁。", ["一二三四五。六七八九十。", "甲乙丙丁。"]),
    ("他说：“一二三四五。”六七八九十甲乙", ["他说：“一二三四五。”", "六七八九十甲乙"]),
    ("一二三四五六。\n七八九。十甲乙丙丁", ["一二三四五六。", "七八九。十甲乙丙丁"]),
    ("一二三四五六七八，九十甲乙丙丁戊己", ["一二三四五六七八，", "九十甲乙丙丁戊己"]),
    ("圆周率约为3.14159265358979", ["圆周率约为3.141592", "65358979"]),
    ("结果表明.影响不大.结论成立.", ["结果表明.影响不大.", "结论成立."]),
    ("短", ["短"]), ("", []), (" \n ", []),
])
def test_where_passages_end(text: str, passages: list[str]) -> None:
    assert [text[a:b] for a, b in split(text, SplitConfig(13, 3))] == passages


def test_a_blank_line_goes_before_a_later_sentence_end() -> None:
    text = "一二三四五六七。\n\n八九十。甲乙丙丁戊己庚辛"
    assert [text[a:b] for a, b in split(text, SplitConfig(15, 3))] == ["一二三四五六七。", "八九十。甲乙丙丁戊己庚辛"]


def test_min_chars_must_fit() -> None:
    with pytest.raises(ValueError, match="min_chars"):
        SplitConfig(10, 6)
