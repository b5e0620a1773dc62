"""Configs that make no sense are refused where they are read."""

from typing import Any

import pytest

from chuxin.config import load
from chuxin.mining.config import MineConfig, RerankConfig, SelectConfig


@pytest.mark.parametrize(
    ("change", "named"),
    [({"groups": ()}, "groups"), ({"miners": ("bm25",)}, "dense"), ({"miners": ("dense", "dense")}, "miners"),
     ({"keep": 0}, "keep"), ({"query_max_len": 2}, "query_max_len"), ({"spans": 0}, "spans")],
)  # fmt: skip
def test_mine(change: dict[str, Any], named: str) -> None:
    fields = {"groups": ("curate",), "passages": "curate", "model": "m", "query_max_len": 8, "passage_max_len": 9}
    with pytest.raises(ValueError, match=named):
        MineConfig(**fields | change)


def test_rerank() -> None:
    with pytest.raises(ValueError, match="top_k"):
        RerankConfig("mine", "mine", "m", 8, 9, top_k=0)
    with pytest.raises(ValueError, match="query_max_len"):
        RerankConfig("mine", "mine", "m", 8, 2)


def test_a_file_with_every_rule_loads(tmp_path: Any) -> None:
    path = tmp_path / "select.yaml"
    path.write_text(
        "candidates: rerank\nstore: mine\nseed: 1\nround_trip: {bm25: 20}\n"
        "positives: {last_rank: 10, above: 0.5}\nnegatives: {draw: hardest, at_least: -9, random_fill: true}\n"
    )
    config = load(SelectConfig, str(path))
    assert config.round_trip == {"bm25": 20} and config.positives.above == 0.5 and config.negatives.at_least == -9
