"""Pair rules against the published ones: difflib's decision, and the time they take."""

import difflib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.schema import KEEP
from chuxin.synthesis.config import PairRules
from chuxin.synthesis.rules import fault, is_contents, is_similar, strip

TEXT = st.text(alphabet="天地玄黄宇宙洪荒ab，", max_size=40)


@given(TEXT, TEXT, st.sampled_from([0.3, 0.5, 0.8]))
@settings(max_examples=500, deadline=None)
def test_similarity_decides_as_difflib_does(query: str, passage: str, threshold: float) -> None:
    ratio = difflib.SequenceMatcher(None, query, passage).ratio()
    assert is_similar(query, passage, threshold) == (ratio >= threshold)


def test_similarity_decides_as_difflib_does_on_copies_with_changes() -> None:
    rng = random.Random(1)
    decided = set()
    for _ in range(300):
        query = "".join(rng.choices("天地玄黄宇宙洪荒日月盈昃辰宿列张", k=rng.randint(4, 60)))
        kept = "".join(c for c in query if rng.random() < rng.random())
        passage = kept + "".join(rng.choices("寒来暑往秋收冬藏", k=rng.randint(0, 120)))
        expected = difflib.SequenceMatcher(None, query, passage).ratio() >= 0.5
        assert is_similar(query, passage, 0.5) == expected
        decided.add(expected)
    assert decided == {True, False}


def test_defect_difflib_on_whole_documents_is_quadratic() -> None:
    """Published: difflib.ratio() on whole documents. Ours asks it about four times the shorter text at most."""
    asked = []

    class Counted(difflib.SequenceMatcher):
        def __init__(self, junk, a, b, autojunk) -> None:
            asked.append(len(a) + len(b))
            super().__init__(junk, a, b, autojunk)

    import chuxin.synthesis.rules as rules

    original, rules.SequenceMatcher = rules.SequenceMatcher, Counted
    try:
        for n in (1, 10, 100, 1000, 10_000):
            fault("的一是在不了有和人这" * 6, "的一是在不了有和人这" * n, PairRules())
    finally:
        rules.SequenceMatcher = original
    assert asked and max(asked) <= 4 * 63


def test_defect_ordinary_text_and_rare_characters_stay() -> None:
    """Published: a pattern for escapes deletes "uface", a whitelist every Han character outside U+4E00..U+9FA5."""
    for text in ("uface人脸识别", r"\uface", "xu200b", "王䶮与李㛃", "𠮷野家的菜单", "元素鿏、鿔", "10²与㎡", "①②☆♂✓"):
        assert strip(text) == text


def test_controls_and_emoji_go() -> None:
    assert strip("甲\u200b乙\x07😀丙\ufeff🔥\n丁\t戊\U0001f1e8\U0001f1f3") == "甲乙丙 丁 戊"
    assert strip("👨\u200d👩\u200d👧一家") == "一家"


@given(st.text(max_size=50))
@settings(max_examples=200, deadline=None)
def test_stripping_twice_changes_nothing(text: str) -> None:
    assert strip(strip(text)) == strip(text)


PASSAGE = "云南省位于中国西南边陲，省会昆明，地势北高南低，民族众多。"


@pytest.mark.parametrize(
    ("query", "passage", "reason"),
    [("云", PASSAGE, "query_too_short"), ("云" * 64, PASSAGE * 9, "query_too_long"),
     ("云南省会在哪里呢朋友们", "昆明。", "passage_too_short"),
     ("云南的省会", "第一章 总则\n第二章 机构\n第三章 附录\n附则", "table_of_contents"),
     (PASSAGE[:25], PASSAGE, "similar"), ("云南的省会是哪里", PASSAGE, KEEP), ("云" * 63, PASSAGE * 9, KEEP),
     ("云南", PASSAGE, KEEP)],
)  # fmt: skip
def test_each_rule_has_its_reason(query: str, passage: str, reason: str) -> None:
    assert fault(query, passage, PairRules()) == reason


def test_contents_are_told_from_text() -> None:
    assert is_contents("一、概况……1\n二、方法……12\n三、结果……(30)\n")
    assert is_contents("Overview ........ 3\nMethods . . . . . 14\nResults ...... 20")
    assert not is_contents("第一章讲了什么？\n它讲的是总则，很长的一段话。\n正文继续，说到第三年。\n" * 3)
    assert not is_contents("." * 200_000 + "\n" + ". " * 100_000)  # in a moment; going back, in hours
