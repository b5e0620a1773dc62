"""What the benchmark of cleaning makes of tables and scores; its stages and its training have tests of their own."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from chuxin.errors import InputError
from chuxin.ids import text_hash
from chuxin.schema import GROUPS, SYNTHETIC

BENCH = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_cleaning_pays.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_cleaning_pays", BENCH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_all_that_was_written_becomes_groups_whatever_was_thought_of_it(bench: ModuleType) -> None:
    def row(passage: int, *queries: tuple[str, str]) -> dict:
        text = f"第{passage}篇的正文"
        written = [{"query": query, "seed": 5, "status": status} for query, status in queries]
        return dict.fromkeys(SYNTHETIC.names) | {
            "passage_id": passage, "source": "web", "text": text, "text_hash": text_hash(text), "model": "m",
            "prompt_hash": "p", "queries": written, "status": "keep",
        }  # fmt: skip

    rows = [row(1, ("甲是什么", "keep"), ("甲 是什么？", "repeated"), ("", "empty")), row(2, ("乙", "short")), row(3)]
    groups = list(bench.written_groups(rows))
    assert [(g["query"], g["positives"][0]["passage_id"]) for g in groups] == [("甲是什么", 1), ("乙", 2)]
    table = pa.Table.from_pylist(groups, GROUPS)
    assert set(table["source"].to_pylist()) == {"synthetic-web"} and set(table["status"].to_pylist()) == {"keep"}
    assert len(set(table["query_id"].to_pylist())) == 2


def test_a_difference_is_paired_over_queries_and_seeds(bench: ModuleType) -> None:
    rng = np.random.default_rng(0)
    hard_Q = rng.uniform(size=300)
    better_SQ = hard_Q + 0.05 + 0.02 * rng.standard_normal((4, 300))
    found = bench.difference(better_SQ - (hard_Q + 0.02 * rng.standard_normal((4, 300))))
    assert found["low"] < found["mean"] < found["high"] and found["significant"]
    assert found["mean"] == pytest.approx(0.05, abs=0.005) and found["high"] - found["low"] < 0.01
    # One seed that says the opposite of the other: no number of queries makes up for it.
    assert not bench.difference(np.array([[0.06], [-0.04]]) + np.zeros((2, 5000)))["significant"]


def test_sources_are_drawn_by_weight_and_only_what_is_kept(bench: ModuleType) -> None:
    rows = [{"query_id": i, "source": "ab"[i % 2], "status": "keep" if i % 10 else "short"} for i in range(2000)]
    groups = bench.drawn(pa.Table.from_pylist(rows), {"a": 0.0}, 300)
    assert {g["source"] for g in groups} == {"b"} and len({g["query_id"] for g in groups}) == 300
    assert {g["status"] for g in groups} == {"keep"}


def test_the_newest_artifact_and_what_it_was_made_from(bench: ModuleType, tmp_path: Path) -> None:
    def commit(name: str, started: str, inputs: dict[str, str]) -> None:
        (tmp_path / name).mkdir()
        given = {stage: {"uri": f"/elsewhere/{uri}", "fingerprint": uri} for stage, uri in inputs.items()}
        manifest = {"stage": name.partition("-")[0], "fingerprint": name, "started": started, "partitions": [],
                    "inputs": given}  # fmt: skip
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))

    commit("curate-1", "2026-01-01", {})
    commit("mine-1", "2026-01-02", {"curate": "curate-1"})
    commit("select-1", "2026-01-04", {"mine": "mine-1", "curate": "curate-1"})
    commit("select-2", "2026-01-03", {"mine": "mine-2"})
    found = bench.made(str(tmp_path), "select")
    assert {stage: artifact.fingerprint for stage, artifact in found.items()} == {
        "select": "select-1", "mine": "mine-1", "curate": "curate-1",
    }  # fmt: skip
    (tmp_path / "mine-1" / "manifest.json").unlink()
    with pytest.raises(InputError, match="/elsewhere/mine-1 is gone"):
        bench.made(str(tmp_path), "select")
    with pytest.raises(InputError, match="no finished `rerank`"):
        bench.made(str(tmp_path), "rerank")
