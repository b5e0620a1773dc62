"""The story of a run from committed artifacts: trainings by term, scores, contamination; and the page made of it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from chuxin import story
from chuxin.artifacts import Artifact, Draft
from chuxin.evaluation.results import collect
from chuxin.report.page import render
from chuxin.report.table import text_table
from chuxin.runner import Stage


class Recipe(NamedTuple):
    """As much of a recipe as a story reads."""

    name: str = "micro"


def committed(folder: Path, stage: Stage, files: dict[str, str], config: Any = None) -> tuple[Artifact, bool]:
    describe = {
        "stage": stage.name, "run": stage.run, "version": 1, "config": config, "recipe": {}, "inputs": {},
        "versions": {"torch": "2"}, "started": "now",
    }  # fmt: skip
    draft = Draft(str(folder / stage.name), "f" * 32, describe, print)
    with draft.attempt("all") as attempt:
        for name, text in files.items():
            Path(attempt.path(name)).write_text(text, encoding="utf-8")
        attempt.count(rows_in=3, rows_out=3)
    return draft.close(), False


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def results() -> dict:
    def numbers(mean: float) -> dict:
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "significant": True}

    systems = {"BM25": 0.4, "refined": 0.6, "refined-hybrid": 0.7}
    scores = {name: {m: numbers(mean) for m in ("ndcg_at_10", "recall_at_100")} for name, mean in systems.items()}
    pairs = [("refined", "BM25"), ("refined-hybrid", "BM25"), ("refined-hybrid", "refined")]
    differences = [
        {"system": system, "baseline": baseline, "ndcg_at_10": numbers(systems[system] - systems[baseline])}
        for system, baseline in pairs
    ]
    part = {"n": 30, "scores": scores, "differences": differences}
    tasks = {"t": {"queries": 30, "corpus": 90, "slices": {"all": part}}}
    return collect(tasks, list(systems), {"refined-hybrid": "refined"}, 200, 0)


def test_trainings_are_told_by_term_and_scores_by_output(tmp_path: Path) -> None:
    dense = lines({"step": 1, "loss": 3.0, "dense_loss": 3.0, "lr": 1}, {"step": 2, "loss": 2.0, "dense_loss": 2.0})
    heads = lines(
        {"step": 1, "loss": 3.0, "dense_loss": 2.5, "sparse_loss": 5.0, "accuracy": 0.1, "loss_by_source": {"a": 3.0}},
        {"step": 2, "loss": 2.0, "dense_loss": 2.0, "sparse_loss": 4.0, "dense_self_loss": 1.0, "dev_ndcg_at_10": 0.4},
    )
    done = [
        committed(tmp_path, Stage("finetune", "finetune", "m:f", 1), {"metrics.jsonl": dense}),
        committed(tmp_path, Stage("refine", "finetune", "m:f", 1), {"metrics.jsonl": heads}),
        committed(tmp_path, Stage("evaluate", "evaluate", "m:f", 1), {"results.json": json.dumps(results())}),
    ]
    summary = story.summarise(Recipe(), done)
    assert summary.losses == {
        "finetune": {"loss": [(1, 3.0), (2, 2.0)], "dense_loss": [(1, 3.0), (2, 2.0)]},
        "refine": {
            "loss": [(1, 3.0), (2, 2.0)], "dense_loss": [(1, 2.5), (2, 2.0)], "sparse_loss": [(1, 5.0), (2, 4.0)],
            "dense_self_loss": [(2, 1.0)], "dev_ndcg_at_10": [(2, 0.4)],
        },
    }  # fmt: skip
    page = render(summary)
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    assert page.count("<svg") == 6  # finetune's loss; refine's and its four terms
    assert "sparse loss" in page and "refined-hybrid over refined" in page and "nDCG@10 of refined<" in page
    assert "refined-hybrid − refined" in text_table(summary)
