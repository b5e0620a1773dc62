"""Who leads, and what every system has to beat."""

import pytest

from chuxin.report.comparisons import comparisons, gain, leader, reference

RESULTS = {
    "systems": ["BM25", "finetuned", "refined", "refined-sparse", "reranked"],
    "bases": {"refined-sparse": "refined", "reranked": "refined"},
}


def test_the_last_model_leads_and_what_is_made_from_it_is_held_to_it() -> None:
    assert leader(RESULTS) == "refined"
    assert comparisons(RESULTS) == [
        ("refined", "BM25"), ("refined", "finetuned"), ("refined-sparse", "refined"), ("reranked", "refined"),
    ]  # fmt: skip
    assert [reference(system, RESULTS) for system in RESULTS["systems"]] == [
        None, "BM25", "finetuned", "refined", "refined",
    ]  # fmt: skip


def test_a_single_system_is_compared_with_nothing() -> None:
    alone = {"systems": ["BM25"], "bases": {}}
    assert (leader(alone), comparisons(alone), reference("BM25", alone)) == ("BM25", [], None)


def test_gains_are_found_by_pair() -> None:
    part = {"differences": [{"system": "b", "baseline": "a", "ndcg_at_10": {"mean": 1}}]}
    assert gain(part, "b", "a") == {"mean": 1}
    with pytest.raises(StopIteration):
        gain(part, "a", "b")
