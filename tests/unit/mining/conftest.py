"""A small world for mining: passages with repeated texts, groups of two artifacts, a reranker."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chuxin.models.checkpoint import load_tokenizer
from chuxin.models.reranker import load_reranker, save_reranker
from chuxin.schema import GROUPS, PASSAGES

from .world import WHAT, WHERE, WHO, corpus, group, passage


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """passages-0 and -1 (the repeats stand before what they repeat), labelled.parquet and synthetic.parquet."""
    tmp_path = tmp_path_factory.mktemp("world")
    rows = corpus()
    for part, own in enumerate((rows[90:], rows[:90])):
        table = pa.Table.from_pylist(own, PASSAGES)
        pq.write_table(table, tmp_path / f"passages-{part}.parquet", row_group_size=20)
    texts = [row["text"] for row in rows]
    labelled = [
        group(i, f"{WHO[i % 6]}在哪里{WHAT[i % 4]}",
              [passage(1000 + i, f"{WHO[i % 6]}说,地点是{WHERE[i % 4]}。"), passage(1100 + i, texts[i])],
              [passage(1200 + i, f"{WHO[(i + 1) % 6]}没有去。")], status="short" if i == 5 else "keep")
        for i in range(12)
    ]  # fmt: skip
    synthetic = [
        group(100 + i, texts[i * 7][:6], [passage(i * 7, texts[i * 7])], [], source="synthetic-s",
              lineage={"file": None, "position": None, "passage_id": i * 7}) for i in range(8)
    ]  # fmt: skip
    # A query that is itself a text of the corpus.
    synthetic.append(group(120, texts[40], [passage(41, texts[41])], [], source="synthetic-s"))
    for name, rows_of in (("labelled", labelled), ("synthetic", synthetic)):
        pq.write_table(pa.Table.from_pylist(rows_of, GROUPS), tmp_path / f"{name}.parquet", row_group_size=5)
    return tmp_path


@pytest.fixture(scope="session")
def reranker(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cross-encoder with a random classifier, its scores spread over about −3 to 3."""
    saved = str(tmp_path_factory.mktemp("reranker") / "saved")
    model = load_reranker(tiny_model, seed=5)
    model.classifier.out_proj.weight.data *= 50
    save_reranker(model, load_tokenizer(tiny_model), saved)
    return saved
