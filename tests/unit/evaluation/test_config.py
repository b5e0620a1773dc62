"""What the evaluate section refuses."""

import dataclasses

import pytest

from chuxin.evaluation.config import EvaluateConfig, Reranking

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


def test_each_output_and_each_reranker_is_a_system_with_its_base() -> None:
    config = dataclasses.replace(
        GOOD,
        outputs={"finetuned": ("dense", "sparse", "hybrid")},
        rerankers={"reranked": Reranking("reranker", "finetuned")},
    )
    assert config.systems() == [
        "BM25", "pretrained", "finetuned", "finetuned-sparse", "finetuned-hybrid", "reranked",
    ]  # fmt: skip
    assert config.bases() == {
        "finetuned-sparse": "finetuned", "finetuned-hybrid": "finetuned", "reranked": "finetuned",
    }  # fmt: skip
    alone = dataclasses.replace(GOOD, outputs={"finetuned": ("sparse",)})
    assert alone.systems()[-1] == "finetuned-sparse" and alone.bases() == {}


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
        {"outputs": {"refined": ("dense",)}},
        {"outputs": {"finetuned": ()}},
        {"models": {"a": "m", "a-sparse": "m"}, "outputs": {"a": ("sparse",)}},
        {"rerankers": {"reranked": Reranking("m", "unknown")}},
        {"rerankers": {"reranked": Reranking("m", "finetuned", top_k=1)}},
        {"rerankers": {"finetuned": Reranking("m", "finetuned")}},
    ],
)
def test_refuses(change: dict) -> None:
    with pytest.raises(ValueError, match="name|must be"):
        dataclasses.replace(GOOD, **change)
