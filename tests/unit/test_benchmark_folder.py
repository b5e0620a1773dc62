"""benchmark_folder.py: both layouts, and the line of whatever is wrong."""

import gzip
import json
from pathlib import Path

import pytest

from chuxin.benchmark_folder import load
from chuxin.errors import InputError


def _write(root, corpus, queries, qrels, *, beir=True):
    root.mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        text = "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        if beir:
            (root / f"{name}.jsonl").write_text(text, encoding="utf-8")
        else:
            (root / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    if beir:
        (root / "qrels").mkdir()
        (root / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    else:
        (root / "qrels.tsv").write_text(qrels)
    return str(root)


def test_beir_layout_joins_titles_and_keeps_judged_queries(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "bench",
        [{"_id": "d1", "title": "标题", "text": "正文"}, {"_id": "d2", "title": "", "text": "无题"}],
        [{"_id": "q1", "text": "问一", "metadata": {"kind": "keyword"}}, {"_id": "q2", "text": "问二"},
         {"_id": "q3", "text": "只有零分"}],
        "q1\td1\t2\nq1\td2\t0\nq3\td2\t0\n")
    bench = load(path)
    assert bench.name == "bench"
    assert (bench.corpus_ids, bench.corpus_texts) == (["d1", "d2"], ["标题 正文", "无题"])
    assert [bench.body(i) for i in range(2)] == ["正文", "无题"]
    assert (bench.query_ids, bench.queries, bench.kinds) == (["q1"], ["问一"], ["keyword"])
    assert bench.qrels == {"q1": {"d1": 2, "d2": 0}}
    assert bench.gold() == {"d1"}


def test_the_layout_without_header(tmp_path: Path) -> None:
    path = _write(tmp_path / "x", [{"id": 7, "text": "正文"}], [{"id": "q", "text": "问", "kind": "paraphrase"}],
                  "q\t7\t1\n", beir=False)
    bench = load(path)
    assert (bench.corpus_ids, bench.kinds, bench.qrels) == (["7"], ["paraphrase"], {"q": {"7": 1}})


GOOD = ([{"id": "d", "text": "x"}], [{"id": "q", "text": "y"}], "q\td\t1\n")


@pytest.mark.parametrize(("change", "place", "problem"), [
    ({0: [{"id": "d", "text": "x"}, "{broken"]}, "corpus.jsonl:2", "not a JSON object"),
    ({0: [{"id": "d"}]}, "corpus.jsonl:1", "needs `_id`"),
    ({0: [{"id": "d", "text": "x"}] * 2}, "corpus.jsonl:2", "second time"),
    ({1: [{"id": "q", "text": None}]}, "queries.jsonl:1", "needs `_id`"),
    ({2: "q\td\t1\nq\tabsent\t1\n"}, "qrels/test.tsv:3", "no passage with the id absent"),
    ({2: "absent\td\t1\n"}, "qrels/test.tsv:2", "no query with the id absent"),
    ({2: "q\td\n"}, "qrels/test.tsv:2", "integer score"),
    ({2: "q\td\t0.5\n"}, "qrels/test.tsv:2", "integer score"),
    ({2: ""}, "qrels/test.tsv", "no judgement"),
])
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, change: dict, place: str, problem: str) -> None:
    parts = [change.get(i, part) for i, part in enumerate(GOOD)]
    with pytest.raises(InputError, match=problem) as error:
        load(_write(tmp_path / "b", *parts))
    assert error.value.where.endswith(place)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such benchmark folder"):
        load(str(tmp_path / "absent"))
    path = _write(tmp_path / "b", *GOOD)
    (tmp_path / "b/queries.jsonl").unlink()
    with pytest.raises(InputError, match="no such file") as error:
        load(path)
    assert error.value.where.endswith("queries.jsonl")
