"""What the evaluate section refuses."""

import dataclasses

import pytest

from chuxin.evaluation.config import EvaluateConfig

GOOD = EvaluateConfig(
    models={"pretrained": "pretrain", "finetuned": "finetune"},
    tasks={"QBQTC": "benchmarks/QBQTC"},
    query_max_len=32,
    passage_max_len=128,
    seed=1,
)


def test_systems_are_in_display_order() -> None:
    assert GOOD.systems() == ["BM25", "pretrained", "finetuned"]
    assert dataclasses.replace(GOOD, bm25=False).systems() == ["pretrained", "finetuned"]


@pytest.mark.parametrize(
    "change",
    [
        {"models": {"BM25": "finetune"}},
        {"models": {"a/b": "finetune"}},
        {"tasks": {"a@b": "x"}},
        {"tasks": {}},
        {"models": {}, "bm25": False},
        {"top_k": 10},
        {"dtype": "int8"},
        {"bootstrap_samples": 0},
    ],
)
def test_refuses(change: dict) -> None:
    with pytest.raises(ValueError, match="name|must be"):
        dataclasses.replace(GOOD, **change)
