"""Which queries of a benchmark folder are scored."""

import json
from pathlib import Path

import pytest

from chuxin.errors import InputError
from chuxin.evaluation.tasks import load_task


def write(folder: Path, queries: int, grade: int = 1) -> str:
    folder.mkdir()
    corpus = [{"_id": f"p{i}", "text": f"第{i}段"} for i in range(queries)]
    rows = [{"_id": f"q{i}", "text": f"问题{i}", "kind": "keyword" if i % 2 else ""} for i in range(queries)]
    for name, lines in (("corpus", corpus), ("queries", rows)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "qrels").mkdir()
    judged = "".join(f"q{i}\tp{i}\t{grade}\n" for i in range(queries))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8")
    return str(folder)


def test_sample_is_seeded_ordered_and_keeps_queries_with_their_kinds(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", 50)
    once, again, other = (load_task(folder, 20, seed) for seed in (1, 1, 2))
    assert once == again and once.query_ids != other.query_ids
    numbers = [int(name[1:]) for name in once.query_ids]
    assert numbers == sorted(numbers) and len(set(numbers)) == 20
    assert once.queries == [f"问题{i}" for i in numbers]
    assert once.kinds == ["keyword" if i % 2 else "" for i in numbers]
    assert len(once.corpus_ids) == 50


def test_all_are_kept_without_a_limit_or_below_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", 5)
    assert load_task(folder, None, 0) == load_task(folder, 5, 0) == load_task(folder, 99, 0)


def test_nothing_relevant_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no query has a relevant passage"):
        load_task(write(tmp_path / "b", 3, grade=0), None, 0)
