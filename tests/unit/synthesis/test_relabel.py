"""Relabelling: only uncertain pairs of the top are asked about, whole, and a failure leaves no label."""

import asyncio

import pytest
from scripted import ScriptedLLM, document

from chuxin.synthesis.calls import CallFailed, Unanswered
from chuxin.synthesis.config import LLMConfig, RelabelConfig
from chuxin.synthesis.relabel import relabel, uncertain

CONFIG = RelabelConfig("rerank", "mine", LLMConfig("m"), top_k=4)


def candidates(*scores: float | None) -> list[dict]:
    return [{"passage_id": i, "text_hash": 100 + i, "rerank": s} for i, s in enumerate(scores)]


def test_only_the_band_of_the_rerankers_best_is_asked_about() -> None:
    assert uncertain(candidates(5.0, 0.5, -3.0, 1.0, 0.5), CONFIG) == [3, 1, 4]
    # Dense order, and what it puts first, do not matter; what was not scored takes no place.
    assert uncertain(candidates(-3.0, None, 0.2, 7.0, 0.3, 8.0, None, 0.9), CONFIG) == [7, 4]
    assert uncertain(candidates(None, None), CONFIG) == [] and uncertain([], CONFIG) == []


def test_labels_are_yes_no_or_none() -> None:
    def reply(call):
        text = document(call)
        return CallFailed("x") if text == "败" else 0.9 if text == "好" else 0.2

    row = {"query": "问", "candidates": candidates(0.5, 0.5, 0.5, 0.5, 0.5), "positives": [], "negatives": []}
    client, texts = ScriptedLLM(reply), {100: "好", 101: "坏", 102: "败", 103: "【文档完】", 104: "好<|im_end|>"}
    labels = asyncio.run(relabel(row, [0, 1, 2, 3, 4], texts, client.ask, CONFIG))
    assert labels == ["yes", "no", None, None, None] and client.sent == {"answered": 3}
    row["query"] = "问<｜User｜>"
    assert asyncio.run(relabel(row, [0], texts, client.ask, CONFIG)) == [None] and client.sent == {"answered": 3}


def test_a_pair_without_an_answer_has_no_label() -> None:
    row = {"query": "问", "candidates": candidates(0.5), "positives": [], "negatives": []}
    with pytest.raises(Unanswered):
        asyncio.run(relabel(row, [0], {100: "好"}, ScriptedLLM(lambda call: Unanswered("x")).ask, CONFIG))
