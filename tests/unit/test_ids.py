"""Ids are stable across machines and releases; the match key is what "exact match" means."""

from __future__ import annotations

import pytest

from chuxin.ids import document_id, hash63, match_key, passage_id, text_hash


def test_ids_never_change() -> None:
    # Written down once: artifacts of earlier runs are found again only while these hold.
    assert document_id("wudao", "part-0.json", 3) == 1818755756076726663
    assert passage_id(5, 7) == 5741882099631375776
    assert text_hash("机器学习") == 2623270826584949210
    assert passage_id(1, 0) != passage_id(1, 1) != passage_id(2, 1)


def test_fields_are_separated() -> None:
    assert hash63("ab", "c") != hash63("a", "bc")
    assert 0 <= hash63("x") < 2**63


@pytest.mark.parametrize(("left", "right"), [
    ("机器 学习！", "机器学习"), ("ＡＢＣ１２３", "abc123"), ("機器學習", "机器学习"),
    ("“青霉素”的发现。", "青霉素的发现"),
    ("乾縣", "乾县"),
])
def test_equal_match_keys(left: str, right: str) -> None:
    assert match_key(left) == match_key(right) and text_hash(left) == text_hash(right)


@pytest.mark.parametrize(("left", "right"), [("北京", "南京"), ("鿏", ""), ("𠮷野家", "吉野家")])
def test_different_texts_have_different_keys(left: str, right: str) -> None:
    assert match_key(left) != match_key(right)
