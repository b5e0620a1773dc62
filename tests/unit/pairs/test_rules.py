"""rules.py: which passages and groups fall, and why."""

import time

import pytest

from chuxin.ids import text_hash
from chuxin.pairs.config import PairRules
from chuxin.pairs.rules import Passage, judge


def _judge(query, positives, negatives=(), rules=None):
    sides = [[Passage(i, text, text_hash(text), None) for i, text in enumerate(texts)]
             for texts in (positives, negatives)]
    return judge(query, text_hash(query), *sides, rules or PairRules(), lambda text: text.startswith("目录"))


@pytest.mark.parametrize(("query", "positives", "status"), [
    ("问题", ["答案"], "keep"), ("问", ["答案"], "query_too_short"), ("", ["答案"], "query_too_short"),
    ("问" * 63, ["答案"], "keep"), ("问" * 64, ["答案"], "query_too_long"), ("问题", [], "no_positive"),
    ("问题", ["问题。"], "passage_equals_query"), ("问题", ["目录一"], "table_of_contents"),
    ("问题", [""], "empty_passage"), ("问题", ["问题", "答案"], "keep"),
])
def test_status(query: str, positives: list[str], status: str) -> None:
    assert _judge(query, positives).status == status


def test_passages_fall_without_their_group() -> None:
    found = _judge("问题", ["答案甲", "问 题", "答案甲！", "目录"], ["答案乙", "答案甲", "问题", "答案乙", "答案丙"])
    assert [p.text for p in found.positives] == ["答案甲"]
    assert [p.text for p in found.negatives] == ["答案乙", "答案丙"]
    assert [p.passage_id for p in found.negatives] == [0, 4]
    assert found.dropped == {"passage_equals_query": 2, "table_of_contents": 1, "negative_is_positive": 1,
                             "repeated_passage": 2}


def test_limits_are_the_configs() -> None:
    assert _judge("问", ["答案"], rules=PairRules(min_query_chars=1)).status == "keep"
    assert _judge("问题", ["目录一"], rules=PairRules(drop_contents=False)).status == "keep"


def test_long_documents_cost_linear_time() -> None:
    # A published script compared whole documents with difflib, which is quadratic.
    started = time.process_time()
    _judge("问题", ["甲乙丙丁" * 100_000], ["丁丙乙甲" * 100_000])
    assert time.process_time() - started < 2
