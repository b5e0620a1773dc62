"""ingestion.py: each adapter's rows and ids, malformed rows set aside, files that stop the job."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chuxin.artifacts import Attempt
from chuxin.corpus.config import DocumentSource
from chuxin.corpus.ingestion import ingest_part
from chuxin.errors import InputError
from chuxin.files import open_parquet
from chuxin.ids import document_id, passage_id, text_hash
from chuxin.pairs.config import PairSource
from chuxin.records import cut
from chuxin.schema import DOCUMENTS, GROUPS, REJECTS


def _ingest(tmp_path: Path, source, part_bytes: int = 1 << 30, share: float = 1.0):
    """Runs every part of a source; returns its tables and the attempts."""
    container = {"wudao": "array", "parquet": "parquet"}.get(source.format, "lines")
    tables, attempts = {}, []
    for number, part in enumerate(cut(source.path, container, part_bytes)):
        attempt = Attempt(str(tmp_path / "artifact"), f"p{number}")
        ingest_part(share, {source.name: source}, f"p{number}", {"source": source.name, **part._asdict()}, attempt)
        attempts.append(attempt)
        for name in attempt.tables:
            tables.setdefault(name, []).append(open_parquet(attempt.path(f"{name}.parquet")).read())
    return {name: pa.concat_tables(parts) for name, parts in tables.items()}, attempts


def _lines(path, rows):
    text = "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def test_chinesewebtext(tmp_path: Path) -> None:
    row = {"title": "题", "score": 0.95, "text": "正文。", "url": "http://a/b", "source_domain": "a"}
    path = _lines(tmp_path / "a.jsonl", [row, row])
    tables, _ = _ingest(tmp_path, DocumentSource("web", "chinesewebtext", path, license="odc-by"))
    documents = tables["documents"]
    assert documents.schema.equals(DOCUMENTS)
    first, second = documents.to_pylist()
    size = len(json.dumps(row, ensure_ascii=False).encode()) + 1
    assert first["document_id"] == document_id("web", "a.jsonl", 0)
    assert (second["position"], second["document_id"]) == (size, document_id("web", "a.jsonl", size))
    assert (first["title"], first["text"], first["url"], first["license"]) == ("题", "正文。", "http://a/b", "odc-by")
    assert json.loads(first["meta"]) == {"score": 0.95, "source_domain": "a"}


def test_wudao(tmp_path: Path) -> None:
    rows = [{"id": 1, "uniqueKey": "k", "titleUkey": "t", "dataType": "百科", "title": "题", "content": f"正文{i}"}
            for i in range(3)]
    (tmp_path / "part-0.json").write_text(json.dumps([*rows, {"title": "空"}, 5]), encoding="utf-8")
    tables, _ = _ingest(tmp_path, DocumentSource("wudao", "wudao", str(tmp_path)))
    documents = tables["documents"].to_pylist()
    assert [d["text"] for d in documents] == ["正文0", "正文1", "正文2"]
    assert documents[2]["document_id"] == document_id("wudao", "part-0.json", 2)
    assert json.loads(documents[0]["meta"])["dataType"] == "百科"
    rejects = tables["rejects"].to_pylist()
    assert [(r["line"], r["position"], r["reason"]) for r in rejects] == [
        (4, 3, "missing_field: content"), (5, 4, "not_an_object: int")]
    assert rejects[0]["raw"] == '{"title": "空"}'


def test_plain_lines_and_parquet_give_the_same_texts(tmp_path: Path) -> None:
    rows = [{"id": str(i), "body": f"正文{i}", "name": f"题{i}"} for i in range(50)]
    path = _lines(tmp_path / "a.jsonl.gz", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=7)
    found = []
    for form, where in (("jsonl", path), ("parquet", str(tmp_path / "a.parquet"))):
        tables, _ = _ingest(tmp_path, DocumentSource("own", form, where, text_field="body", title_field="name"))
        found.append([(d["title"], d["text"]) for d in tables["documents"].to_pylist()])
    assert found[0] == found[1] == [(r["name"], r["body"]) for r in rows]


def test_malformed_rows_are_set_aside_with_their_line(tmp_path: Path) -> None:
    rows = ['{"text": "好一"}', "{broken", '["text"]', '{"text": ""}', '{"text": 3}', '{"texts": "x"}',
            '{"text": "好二"}']
    for part_bytes in (1 << 20, 9):  # lines are counted from the file's first one in every range
        path = _lines(tmp_path / "a.jsonl", rows)
        tables, attempts = _ingest(tmp_path, DocumentSource("own", "jsonl", path), part_bytes)
        assert tables["documents"]["text"].to_pylist() == ["好一", "好二"]
        assert tables["rejects"].schema.equals(REJECTS)
        assert [(r["line"], r["reason"]) for r in tables["rejects"].to_pylist()] == [
            (2, "not_json"), (3, "not_an_object: list"), (4, "empty_field: text"), (5, "not_a_string: text"),
            (6, "missing_field: text"),
        ]
        assert sum(a.rows_in for a in attempts) == 7 and sum(a.rows_out for a in attempts) == 2
        assert sum((a.drops for a in attempts), attempts[0].drops.__class__())["not_json"] == 1
        first = next(a.facts["first_reject"] for a in attempts if a.facts["first_reject"])
        assert first == f"{path}:2: not_json"


def test_a_file_malformed_far_beyond_the_limit_stops_early(tmp_path: Path) -> None:
    path = _lines(tmp_path / "a.jsonl", ['{"text": "好"}'] * 700 + ["broken"] * 2000)
    with pytest.raises(InputError, match="rows are malformed") as error:
        _ingest(tmp_path, DocumentSource("own", "jsonl", path), share=0.01)
    assert error.value.where == f"{path}:701" and "1,000 rows" in str(error.value)


def test_groups_number_their_passages_positives_first(tmp_path: Path) -> None:
    rows = [{"query": "问", "pos": ["甲", "乙"], "neg": ["丙"]}, {"query": "问", "pos": []}]
    path = _lines(tmp_path / "a.jsonl", rows)
    tables, _ = _ingest(tmp_path, PairSource("mtp", "mtp", path))
    groups = tables["groups"]
    assert groups.schema.equals(GROUPS)
    first, second = groups.to_pylist()
    own = document_id("mtp", "a.jsonl", 0)
    assert (first["query_id"], first["query_hash"], first["status"]) == (own, text_hash("问"), "keep")
    assert [(p["text"], p["passage_id"]) for p in first["positives"] + first["negatives"]] == [
        ("甲", passage_id(own, 0)), ("乙", passage_id(own, 1)), ("丙", passage_id(own, 2))]
    assert first["lineage"] == {"file": "a.jsonl", "position": 0, "passage_id": None}
    assert second["positives"] == [] and second["query_id"] != own


def test_scores_stand_beside_their_passages(tmp_path: Path) -> None:
    good = {"query": "问", "pos": ["甲", "乙"], "neg": ["丙"], "pos_scores": [0.5, 2], "neg_scores": [-1.5]}
    path = _lines(tmp_path / "a.jsonl", [
        good, {**good, "pos_scores": [0.5]}, {**good, "neg_scores": ["x"]}, {"query": "问", "pos": "甲"},
        {"query": "问", "pos": [1]}, {"query": "问", "pos": ["甲"], "neg_scores": [1.0]},
    ])
    tables, _ = _ingest(tmp_path, PairSource("m3", "flagembedding", path))
    first, alone = tables["groups"].to_pylist()
    assert [(p["text"], p["score"]) for p in first["positives"] + first["negatives"]] == [
        ("甲", 0.5), ("乙", 2.0), ("丙", -1.5)]
    assert [p["score"] for p in alone["positives"]] == [None]
    assert [r["reason"] for r in tables["rejects"].to_pylist()] == [
        "score_mismatch: pos_scores has 1 scores for 2 passages", "not_numbers: neg_scores", "not_strings: pos",
        "score_mismatch: neg_scores has 1 scores for 0 passages"]


def test_plain_pairs_take_their_fields_from_the_config(tmp_path: Path) -> None:
    rows = [{"ask": "问", "answer": "答", "wrong": ["错"]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for form, path in (("jsonl", _lines(tmp_path / "a.jsonl", rows)), ("parquet", str(tmp_path / "a.parquet"))):
        source = PairSource("own", form, path, query_field="ask", positive_field="answer", negative_field="wrong")
        group, = _ingest(tmp_path, source)[0]["groups"].to_pylist()
        assert (group["query"], group["positives"][0]["text"], group["negatives"][0]["text"]) == ("问", "答", "错")


def test_the_wrong_field_name_stops_the_job(tmp_path: Path) -> None:
    path = _lines(tmp_path / "a.jsonl", [{"content": "x"}] * 150)
    with pytest.raises(InputError, match=r"field `text` \(there are: content\)"):
        _ingest(tmp_path, DocumentSource("own", "jsonl", path))
    pq.write_table(pa.table({"content": ["x"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"field `text` \(there are: content, id\)"):
        _ingest(tmp_path, DocumentSource("own", "parquet", str(tmp_path / "a.parquet")))


def test_configs_refuse_what_they_would_not_use() -> None:
    with pytest.raises(ValueError, match="fixes its fields"):
        DocumentSource("web", "chinesewebtext", "x", text_field="content")
    with pytest.raises(ValueError, match="fixes its fields"):
        PairSource("mtp", "mtp", "x", query_field="question")
