"""Relabelling: only uncertain pairs of the top are asked about, whole, and a failure leaves no label."""

import asyncio

import pytest
from scripted import ScriptedLLM, document

from chuxin.synthesis.calls import CallFailed
from chuxin.synthesis.config import LLMConfig, RelabelConfig
from chuxin.synthesis.relabel import relabel, uncertain

CONFIG = RelabelConfig("rerank", "curate", LLMConfig("m"), top_k=4)


def candidates(*scores: float | None) -> list[dict]:
    return [{"passage_id": i, "rerank": s} for i, s in enumerate(scores)]


def test_only_the_band_of_the_top_is_asked_about() -> None:
    assert uncertain(candidates(5.0, 0.5, -3.0, 1.0, 0.5), CONFIG) == [1, 3]
    with pytest.raises(ValueError, match="rerank"):
        uncertain(candidates(5.0, None), CONFIG)


def test_labels_are_yes_no_or_none() -> None:
    def reply(call):
        text = document(call)
        return CallFailed("x") if text == "败" else 0.9 if text == "好" else 0.2

    row = {"query": "问", "candidates": candidates(0.5, 0.5, 0.5, 0.5), "positives": [{"passage_id": 0, "text": "好"}],
           "negatives": []}  # fmt: skip
    client = ScriptedLLM(reply)
    labels = asyncio.run(relabel(row, [0, 1, 2, 3], {1: "坏", 2: "败", 3: "【文档完】"}, client.ask, CONFIG))
    assert labels == ["yes", "no", None, None] and client.sent == {"answered": 3}
