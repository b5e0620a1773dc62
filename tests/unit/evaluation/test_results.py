"""results.json: slices, pairs, numbers."""

import json

import numpy as np
import pytest

from chuxin.evaluation.results import collect, task_results


def scores(mean: float, seed: int, n: int = 60) -> dict[str, np.ndarray]:
    values = np.clip(np.random.default_rng(seed).normal(mean, 0.1, n), 0, 1).astype(np.float32)
    return {"ndcg_at_10": values, "recall_at_100": np.minimum(values + 0.1, 1)}


VALUES = {"BM25": scores(0.5, 0), "pretrained": scores(0.2, 1), "finetuned": scores(0.7, 2)}
KINDS = ["paraphrase"] * 40 + ["keyword"] * 15 + [""] * 5


def test_slices_hold_the_means_of_their_queries() -> None:
    entry = task_results(VALUES, KINDS, corpus=900, samples=200, seed=0)
    assert (entry["queries"], entry["corpus"]) == (60, 900)
    sizes = {name: part["n"] for name, part in entry["slices"].items()}
    assert sizes == {"all": 60, "keyword": 15, "paraphrase": 40}
    found = entry["slices"]["paraphrase"]["scores"]["finetuned"]["ndcg_at_10"]
    assert found["mean"] == pytest.approx(VALUES["finetuned"]["ndcg_at_10"][:40].mean(dtype=float))
    assert found["low"] < found["mean"] < found["high"]


def test_every_later_system_is_compared_with_every_earlier_one() -> None:
    part = task_results(VALUES, KINDS, corpus=900, samples=200, seed=0)["slices"]["all"]
    pairs = {(d["system"], d["baseline"]): d for d in part["differences"]}
    assert set(pairs) == {("pretrained", "BM25"), ("finetuned", "BM25"), ("finetuned", "pretrained")}
    gain = pairs["finetuned", "pretrained"]["ndcg_at_10"]
    assert gain["significant"] and gain["low"] > 0.4
    before, after = (part["scores"][name]["ndcg_at_10"]["mean"] for name in ("pretrained", "finetuned"))
    assert gain["mean"] == pytest.approx(after - before)
    assert pairs["pretrained", "BM25"]["ndcg_at_10"]["high"] < 0


def test_few_queries_are_never_significant() -> None:
    part = task_results(VALUES, KINDS, corpus=900, samples=200, seed=0)["slices"]["keyword"]
    assert not any(d["ndcg_at_10"]["significant"] for d in part["differences"])


def test_is_plain_json_and_repeats() -> None:
    once, again = (
        collect({"t": task_results(VALUES, KINDS, 900, 200, 1)}, list(VALUES), {"finetuned": "pretrained"}, 200, 1)
        for _ in range(2)
    )
    assert json.loads(json.dumps(once)) == once == again
    assert once["systems"] == ["BM25", "pretrained", "finetuned"]
    assert once["bases"] == {"finetuned": "pretrained"}
