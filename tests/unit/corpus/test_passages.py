"""passages.py: documents to passages in two steps, without Ray; sums of ids, statuses, histograms."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from chuxin.artifacts import Attempt, add_checksums
from chuxin.corpus.config import CurateConfig, FilterConfig, SplitConfig
from chuxin.corpus.decontaminate import BENCHMARK_TEXTS, BenchmarkIndex
from chuxin.corpus.passages import by_bucket, clean_document, map_documents, power_bins, reduce_passages
from chuxin.files import open_parquet
from chuxin.ids import match_key, passage_id, text_hash
from chuxin.schema import DOCUMENTS, PASSAGES

CONFIG = CurateConfig("ingest", SplitConfig(60, 10), filters=FilterConfig(min_chars=5), buckets=3)
SUBJECTS, VERBS = ("老师", "医生", "渔夫", "学生"), ("走过", "看见", "修好", "离开")
PLACES = ("石桥", "码头", "果园", "车站")


def _texts(count, seed=0):
    rng = random.Random(seed)
    return ["".join(f"{rng.choice(SUBJECTS)}{rng.choice(VERBS)}第{rng.randrange(10**6)}座{rng.choice(PLACES)}。"
                    for _ in range(rng.randrange(2, 20))) for _ in range(count)]


def _documents(texts, source="web", first=0):
    return pa.Table.from_pylist([
        {"document_id": first + i, "source": source, "file": "f", "position": i, "title": "標題", "text": text,
         "url": None, "license": "", "meta": "{}"} for i, text in enumerate(texts)], DOCUMENTS)


def _curate(tmp_path, tables, config=CONFIG, index=()):
    """Both steps over some tables of documents; returns the final table and the attempts of each step."""
    maps = []
    for number, table in enumerate(tables):
        raw = Attempt(str(tmp_path / "raw"), f"raw{number}")
        raw.write("documents", [table.slice(i, 7) for i in range(0, table.num_rows, 7)], DOCUMENTS)
        file = raw.path("documents.parquet")
        maps.append(Attempt(str(tmp_path / "curated"), f"map{number}"))
        item = {"file": file, "start": 0, "end": open_parquet(file).num_row_groups}
        map_documents(config, tuple(index), frozenset(), f"map{number}", item, maps[-1])
    places = [(m.directory, frozenset(m.tables)) for m in maps]
    reduces = []
    for bucket in sorted({int(name[-3:]) for m in maps for name in m.tables}):
        reduces.append(Attempt(str(tmp_path / "curated"), f"reduce{bucket}"))
        reduce_passages(places, f"reduce{bucket}", {"bucket": bucket}, reduces[-1])
    return pa.concat_tables(open_parquet(r.path("passages.parquet")).read() for r in reduces), maps, reduces


def test_every_passage_comes_through_once(tmp_path: Path) -> None:
    tables = [_documents(_texts(30, seed), first=1000 * seed) for seed in range(3)]
    passages, maps, reduces = _curate(tmp_path, tables)
    assert passages.schema.equals(PASSAGES)
    assert len(set(passages["passage_id"].to_pylist())) == passages.num_rows == sum(a.rows_out for a in reduces)
    mapped = [n for m in maps for n in m.tables.values()]
    assert add_checksums(n["id_sum"] for n in mapped) == add_checksums(r.tables["passages"]["id_sum"] for r in reduces)
    assert sum(a.rows_in for a in maps) == 90
    by_document = {d["document_id"]: d for table in tables for d in table.to_pylist()}
    for row in passages.to_pylist():
        text = by_document[row["document_id"]]["text"]
        assert text[row["offset"]:row["offset"] + row["n_chars"]] == row["text"]
        assert row["passage_id"] == passage_id(row["document_id"], row["offset"])
        assert row["text_hash"] == text_hash(row["text"])
        assert (row["title"], row["source"], row["holds_gold"]) == ("标题", "web", False)


def test_exact_duplicates_fall_wherever_they_stand(tmp_path: Path) -> None:
    texts = _texts(40)
    same = ["　" + t.replace("。", "！") for t in texts[:15]]  # equal by match key
    passages, _, reduces = _curate(tmp_path, [_documents(texts), _documents(same, "other", 500)])
    rows = passages.to_pylist()
    smallest = {}
    for row in rows:
        smallest[row["text_hash"]] = min(row["passage_id"], smallest.get(row["text_hash"], 2**63))
    for row in rows:
        expected = "keep" if smallest[row["text_hash"]] == row["passage_id"] else "duplicate"
        assert row["status"] == expected
    assert sum(a.drops["duplicate"] for a in reduces) == sum(r["status"] == "duplicate" for r in rows) > 15
    by_source = [a.facts["by_source"] for a in reduces]
    assert sum(n for facts in by_source for counts in facts.values() for n in counts.values()) == len(rows)


def test_a_row_that_fell_does_not_make_another_fall(tmp_path: Path) -> None:
    index = _gold_index(tmp_path, _texts(1, seed=5)[0])
    body = _texts(1, seed=6)[0]
    holder = _documents([_texts(1, seed=5)[0] + body], first=1)
    clean = _documents([body], first=2)
    config = CurateConfig("ingest", SplitConfig(2000, 10), buckets=1, min_gold_chars=16)
    passages, maps, _ = _curate(tmp_path, [holder, clean], config, index)
    assert dict(zip(passages["document_id"].to_pylist(), passages["status"].to_pylist(), strict=True)) == {
        1: "benchmark_gold", 2: "keep"}
    assert passages["holds_gold"].to_pylist() == [True, False]
    assert maps[0].facts["gold_documents"] == {"bench": 1} and maps[1].facts["gold_documents"] == {}


def _gold_index(tmp_path: Path, gold):
    attempt = Attempt(str(tmp_path / "index"), "benchmark-000")
    row = {"benchmark": "bench", "role": "gold", "hash": text_hash(gold), "gold_key": match_key(gold)}
    attempt.write("benchmark_texts", [pa.Table.from_pylist([row], BENCHMARK_TEXTS)], BENCHMARK_TEXTS)
    return [attempt.path("benchmark_texts.parquet")]


@pytest.mark.parametrize("drop", [True, False])
def test_a_gold_passage_across_passage_borders_is_found(tmp_path: Path, drop: bool) -> None:
    gold = _texts(1, seed=8)[0][:90]
    index = BenchmarkIndex([open_parquet(_gold_index(tmp_path, gold)[0]).read()])
    text = _texts(1, seed=9)[0] + "\n" + gold.replace("。", "\n\n")
    document = {"document_id": 1, "source": "s", "title": "", "text": text}
    config = CurateConfig("ingest", SplitConfig(40, 10), drop_gold_from_raw=drop)
    rows, owner = clean_document(document, config, index)
    assert owner == 0 and len(rows) > 4
    rows = [dict(zip(PASSAGES.names, row, strict=True)) for row in rows]
    assert {row["holds_gold"] for row in rows} == {True}
    assert ("benchmark_gold" in {row["status"] for row in rows}) == drop


def test_an_empty_document_is_counted(tmp_path: Path) -> None:
    _, maps, _ = _curate(tmp_path, [_documents(["<p>&nbsp;</p>", *_texts(2)])])
    assert maps[0].drops == {"empty_document": 1} and maps[0].rows_in == 3


def test_buckets_partition_a_table() -> None:
    table = pa.table({"key": list(range(100)), "x": list(range(100, 200))})
    found = dict(by_bucket(table, "key", 7))
    assert {b: part["key"].to_pylist() for b, part in found.items()} == {b: list(range(b, 100, 7)) for b in range(7)}
    assert list(by_bucket(table.slice(0, 0), "key", 7)) == []


def test_bins_are_powers_of_two() -> None:
    assert power_bins(np.array([1, 2, 3, 4, 7, 8, 1023, 1024])) == [1, 2, 2, 1, 0, 0, 0, 0, 0, 1, 1]
    assert power_bins(np.array([], np.int64)) == []


def test_a_forgotten_text_leaves_its_row_and_nothing_of_itself() -> None:
    document = _documents(_texts(1))[:1].to_pylist()[0]
    plain, _ = clean_document(document, CONFIG, BenchmarkIndex([]))
    column = PASSAGES.names.index
    gone = plain[0][column("text_hash")]
    rows, _ = clean_document(document, CONFIG, BenchmarkIndex([]), frozenset([gone]))
    assert (rows[0][column("text")], rows[0][column("title")], rows[0][column("status")]) == ("", "", "forgotten")
    assert rows[0][column("passage_id")] == plain[0][column("passage_id")] and rows[1:] == plain[1:]
