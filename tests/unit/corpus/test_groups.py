"""groups.py: leaks by the definition, rules, repeated groups; without Ray."""

import json
from pathlib import Path

import pyarrow as pa

from chuxin.artifacts import Attempt
from chuxin.benchmark_folder import load
from chuxin.corpus.config import CurateConfig, SplitConfig
from chuxin.corpus.decontaminate import BenchmarkIndex, benchmark_texts
from chuxin.corpus.groups import clean_groups, map_groups, reduce_groups
from chuxin.files import open_parquet
from chuxin.ids import text_hash
from chuxin.schema import GROUPS

CONFIG = CurateConfig("ingest", SplitConfig(60, 10), buckets=2)


def _group(number, query, positives, negatives=(), source="set"):
    def passage(index, text: str):
        return {"passage_id": 100 * number + index, "text": text, "text_hash": text_hash(text), "score": index / 2}

    return {
        "query_id": number, "query": query, "query_hash": text_hash(query), "source": source, "status": "keep",
        "positives": [passage(i, t) for i, t in enumerate(positives)],
        "negatives": [passage(50 + i, t) for i, t in enumerate(negatives)],
        "lineage": {"file": "f", "position": number},
    }


def _index(tmp_path: Path):
    corpus = [{"_id": "g", "title": "金牌", "text": "金牌正文说的是河边的石桥"},
              {"_id": "d", "text": "干扰项说的是山上的果园"}]
    (tmp_path / "bench/qrels").mkdir(parents=True)
    (tmp_path / "bench/corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (tmp_path / "bench/queries.jsonl").write_text(json.dumps({"_id": "q", "text": "石桥建于哪一年？"}))
    (tmp_path / "bench/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tg\t1\nq\td\t0\n")
    return BenchmarkIndex([benchmark_texts(load(str(tmp_path / "bench")), str.strip, 32)])


def test_contamination_is_a_benchmark_query_or_a_gold_positive_and_nothing_else(tmp_path: Path) -> None:
    rows, counts = clean_groups([
        _group(1, "石橋建於哪一年", ["某篇文章"]),
        _group(2, "别的问题", ["金牌正文说的是河边的石桥。"]),
        _group(3, "别的问题", ["金牌 金牌正文说的是河边的石桥"]),
        _group(4, "别的问题", ["某篇文章", "<p>金牌正文说的是<b>河边</b>的石桥</p>"]),  # equal once normalised
        _group(5, "别的问题", ["干扰项说的是山上的果园"], ["另一篇"]),
        _group(6, "别的问题", ["某篇文章"], ["金牌正文说的是河边的石桥", "干扰项说的是山上的果园"]),
        _group(7, "石桥建于哪一年", ["金牌正文说的是河边的石桥"]),
        _group(8, "石桥建于哪一年呢", ["金牌正文说的是"]),
    ], CONFIG, _index(tmp_path))
    assert [r["status"] for r in rows] == [
        "contaminated_query", "contaminated_positive", "contaminated_positive", "contaminated_positive", "keep",
        "keep", "contaminated_query", "keep"]
    assert counts["contaminated_query"] == {"bench": 2} and counts["contaminated_positive"] == {"bench": 4}
    assert counts["distractor_matches"] == {"bench": 2}


def test_texts_are_normalised_and_scores_stay_with_their_passages() -> None:
    group = _group(1, " 「問題」\n 一\u200b ", ["<p>答案甲</p>", "問題一", "答案乙"], ["答案丙", "答案甲！"])
    row, = clean_groups([group], CONFIG, BenchmarkIndex([]))[0]
    assert row["query"] == "「问题」 一" and row["query_hash"] == text_hash("问题一")
    assert [(p["text"], p["score"], p["passage_id"]) for p in row["positives"]] == [
        ("答案甲", 0.0, 100), ("答案乙", 1.0, 102)]
    assert [(p["text"], p["score"], p["passage_id"]) for p in row["negatives"]] == [("答案丙", 25.0, 150)]
    assert row["status"] == "keep" and row["lineage"] == group["lineage"]


def test_a_repeated_group_falls_whatever_the_order_of_its_positives(tmp_path: Path) -> None:
    parts = [
        [_group(5, "问题一", ["答案甲", "答案乙"]), _group(6, "问题一", ["答案甲"])],
        [_group(2, "問題 一", ["答案乙。", "答案甲"], ["别的"]), _group(7, "问", ["答案甲"]), _group(8, "问题二", [])],
    ]
    maps = []
    for number, groups in enumerate(parts):
        raw = Attempt(str(tmp_path / "raw"), f"raw{number}")
        raw.write("groups", [pa.Table.from_pylist(groups, GROUPS)], GROUPS)
        maps.append(Attempt(str(tmp_path / "curated"), f"map{number}"))
        map_groups(CONFIG, (), frozenset(), "", {"file": raw.path("groups.parquet"), "start": 0, "end": 1}, maps[-1])
    places = [(m.directory, frozenset(m.tables)) for m in maps]
    tables, reduces = [], []
    for bucket in sorted({int(name[-3:]) for m in maps for name in m.tables}):
        reduces.append(Attempt(str(tmp_path / "curated"), f"reduce{bucket}"))
        reduce_groups(places, "", {"bucket": bucket}, reduces[-1])
        tables.append(open_parquet(reduces[-1].path("groups.parquet")).read())
    final = pa.concat_tables(tables)
    assert final.schema.equals(GROUPS)
    assert dict(zip(final["query_id"].to_pylist(), final["status"].to_pylist(), strict=True)) == {
        2: "keep", 5: "duplicate", 6: "keep", 7: "query_too_short", 8: "no_positive"}
    assert sum(a.rows_out for a in reduces) == 2
    assert sum(sum(a.histograms["query_chars"]) for a in reduces) == 2


def test_a_forgotten_text_leaves_the_groups_and_one_without_another_positive_falls() -> None:
    groups = [_group(1, "问题一", ["答案甲", "答案乙"], ["答案丙"]), _group(2, "问题二", ["答案甲。"], ["答案丙"]),
              _group(3, "问题三", ["答案乙"], ["答案甲", "答案丙"])]
    rows, counts = clean_groups(groups, CONFIG, BenchmarkIndex([]), frozenset([text_hash("答案甲")]))
    assert [row["status"] for row in rows] == ["keep", "no_positive", "keep"]
    assert [[p["text"] for p in row["positives"]] for row in rows] == [["答案乙"], [], ["答案乙"]]
    assert [[p["text"] for p in row["negatives"]] for row in rows] == [["答案丙"]] * 3
    assert counts["passages_dropped"]["forgotten"] == 3
