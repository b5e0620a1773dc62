import pytest
import yaml

from chuxin.release.card import Described, Origin, render

MODEL = Described("初心-tiny", "apache-2.0", 2, 32, 5000, 1_234_567, 64, heads_trained=False)
RESULTS = {
    "systems": ["BM25", "finetuned"],
    "tasks": {"qa": {"slices": {"all": {"n": 1200, "scores": {
        system: {"ndcg_at_10": {"mean": mean, "low": mean - 0.01, "high": mean + 0.02},
                 "recall_at_100": {"mean": 0.9, "low": 0.8, "high": 0.95}}
        for system, mean in (("BM25", 0.5), ("finetuned", 0.625))}}}}},
}  # fmt: skip


def test_front_matter_is_yaml() -> None:
    matter = yaml.safe_load(render(MODEL, None, []).split("---")[1])
    assert matter["license"] == "apache-2.0"
    assert matter["pipeline_tag"] == "sentence-similarity"


def test_scores_stand_with_their_intervals() -> None:
    card = render(MODEL, RESULTS, [])
    assert "| qa | 1,200 | finetuned | 62.50 [61.50, 64.50] | 90.00 [80.00, 95.00] |" in card
    assert card.index("BM25 |") < card.index("finetuned |")
    assert "Not evaluated" in render(MODEL, None, [])


@pytest.mark.parametrize("trained", [True, False])
def test_it_says_whether_the_heads_are_trained(trained: bool) -> None:
    card = render(MODEL._replace(heads_trained=trained), None, [])
    assert ("not trained" in card) is not trained
    assert ("return_sparse" in card) is trained


def test_origins_and_python_examples() -> None:
    card = render(
        MODEL, None, [Origin("curate", "ab" * 16, 12_000, 9_000), Origin("finetune", "cd" * 16, None, None)]
    )
    assert f"| curate | `{'ab' * 16}` | 12,000 | 9,000 |" in card
    assert f"| finetune | `{'cd' * 16}` | – | – |" in card
    blocks = card.split("```python\n")[1:]
    assert len(blocks) == 3
    for block in blocks:
        compile(block.split("```")[0], "card", "exec")
