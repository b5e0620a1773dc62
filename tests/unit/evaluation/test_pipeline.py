"""One partition of the stage, in this process: BM25 and a small model on a benchmark folder."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from chuxin.artifacts import Attempt
from chuxin.encoding.engine import Encoder
from chuxin.evaluation.config import EvaluateConfig
from chuxin.evaluation.pipeline import score_partition
from chuxin.models.checkpoint import save_model
from chuxin.models.config import InitConfig
from chuxin.models.start import new_model, train_tokenizer
from chuxin.schema import EVAL

TEXTS = ["长江是中国最长的河流", "黄河流经九个省区", "泰山位于山东省泰安市", "故宫始建于明朝永乐年间"]
CONFIG = EvaluateConfig(
    models={"finetuned": "finetune"}, tasks={"地理": "x"}, query_max_len=12, passage_max_len=16, seed=0
)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    rows = {
        "corpus.jsonl": [{"_id": f"p{i}", "text": text} for i, text in enumerate(TEXTS)],
        "queries.jsonl": [
            {"_id": "q0", "text": "最长的河流", "kind": "keyword"},
            {"_id": "q1", "text": "九个省区", "kind": "paraphrase"},
        ],
    }
    for name, lines in rows.items():
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "qrels.tsv").write_text("q0\tp0\t1\nq1\tp1\t2\nq1\tp3\t1\n", encoding="utf-8")
    return folder


def test_bm25_partition_has_a_row_a_query(benchmark: Path, tmp_path: Path) -> None:
    attempt = Attempt(str(tmp_path), "地理@BM25")
    item = {"task": "地理", "folder": str(benchmark), "model": "BM25", "path": None, "first": None}
    score_partition(CONFIG, attempt.key, item, attempt)
    table = pq.read_table(attempt.path("scores.parquet"))
    assert table.schema.equals(EVAL)
    assert table.select(["model", "task", "query_id", "kind"]).to_pylist() == [
        {"model": "BM25", "task": "地理", "query_id": "q0", "kind": "keyword"},
        {"model": "BM25", "task": "地理", "query_id": "q1", "kind": "paraphrase"},
    ]
    assert table["ndcg_at_10"].to_pylist() == pytest.approx([1.0, 2 / (2 + 1 / np.log2(3))])
    assert table["recall_at_100"].to_pylist() == [1.0, 0.5]
    assert (attempt.rows_in, attempt.rows_out) == (2, 2)
    assert attempt.facts["地理@BM25"]["corpus"] == 4


def test_model_partition_ranks_by_the_encoders_vectors(benchmark: Path, tmp_path: Path) -> None:
    init = InitConfig(
        seed=3,
        passages="x",
        max_texts=9,
        vocab_size=400,
        layers=1,
        hidden=16,
        heads=2,
        intermediate=16,
        max_len=32,
    )
    tokenizer = train_tokenizer(TEXTS, 400, 32)
    save_model(new_model(init, len(tokenizer)), tokenizer, str(tmp_path / "model"))
    attempt = Attempt(str(tmp_path), "地理@finetuned")
    path = str(tmp_path / "model")
    item = {"task": "地理", "folder": str(benchmark), "model": "finetuned", "path": path, "first": None}
    score_partition(CONFIG, attempt.key, item, attempt)

    queries, passages = (
        Encoder(str(tmp_path / "model"), length, 256).encode(texts)
        for length, texts in ((12, ["最长的河流", "九个省区"]), (16, TEXTS))
    )
    ranks = (-(queries @ passages.T)).argsort(axis=1).argsort(axis=1)
    gains = [1 / np.log2(ranks[0, 0] + 2), (2 / np.log2(ranks[1, 1] + 2) + 1 / np.log2(ranks[1, 3] + 2))]
    table = pq.read_table(attempt.path("scores.parquet"))
    expected = [gains[0], gains[1] / (2 + 1 / np.log2(3))]
    assert table["ndcg_at_10"].to_pylist() == pytest.approx(expected, abs=1e-5)
