"""Token tables: the tokenizer's own ids, nothing cut that should not be, buckets found again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chuxin.errors import InputError
from chuxin.ids import text_hash
from chuxin.models.checkpoint import load_tokenizer
from chuxin.packing import tokens
from chuxin.schema import GROUPS, PASSAGES


def passage(number: int, text: str, score: float | None = None) -> dict:
    return {"passage_id": number, "text": text, "text_hash": text_hash(text), "score": score}


def group(number: int, query: str, positives: list[dict], negatives: list[dict], status: str = "keep") -> dict:
    return {
        "query_id": number, "query": query, "query_hash": text_hash(query), "positives": positives,
        "negatives": negatives, "source": "s", "status": status, "lineage": {"file": "f", "position": 0},
    }  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str):
    return load_tokenizer(tiny_model)


def tokenised(rows: list[dict], tokenizer, buckets: int = 1) -> tuple[pa.Table, dict[str, int]]:
    return tokens.tokenise_groups(
        pa.Table.from_pylist(rows, GROUPS), tokenizer, "part", query_max_len=8, passage_max_len=12, seed=1,
        buckets=buckets,
    )  # fmt: skip


def test_groups_hold_the_tokenizers_ids_and_keep_scores_beside_passages(tokenizer) -> None:
    rows = [
        group(1, "老师在北京学习做菜", [passage(10, "医生在上海"), passage(11, "傍晚才回来", 0.5)], []),
        group(2, "学生", [passage(20, "记者" * 30)], [passage(21, "工人", -1.0), passage(22, "医生在上海")]),
    ]
    table, drops = tokenised(rows, tokenizer)
    assert drops == {} and table.schema.equals(tokens.TOKEN_GROUPS)
    for row, out in zip(rows, table.to_pylist(), strict=True):
        assert out["query_ids"] == tokenizer(row["query"], truncation=True, max_length=8)["input_ids"]
        for name in ("positives", "negatives"):
            assert [p["score"] for p in out[name]] == [p["score"] for p in row[name]]
            assert [p["passage_id"] for p in out[name]] == [p["passage_id"] for p in row[name]]
            assert [p["text_hash"] for p in out[name] if len(p["token_ids"]) < 12] == [
                p["text_hash"] for p, q in zip(row[name], out[name], strict=True) if len(q["token_ids"]) < 12]
            for p, q in zip(out[name], row[name], strict=True):
                assert p["token_ids"] == tokenizer(q["text"], truncation=True, max_length=12)["input_ids"]


def test_a_group_that_only_repeats_its_query_is_dropped_and_counted(tokenizer) -> None:
    both = [passage(20, "学生"), passage(21, "医生")]
    rows = [group(1, "学生", [passage(10, "学生。")], []), group(2, "学生", both, [])]
    table, drops = tokenised(rows, tokenizer)
    assert drops == {"query_is_positive": 1} and table["query_id"].to_pylist() == [2]


def test_texts_that_differ_behind_the_cut_only_are_one_text(tokenizer) -> None:
    head = "老师在北京学习做菜，傍晚才回来。医生在上海参观博物馆"
    same, other = f"{head}，第二天才回来。", f"{head}，也修理自行车。"
    rows = [group(1, "学生" * 20 + "甲", [passage(10, same)], [passage(11, other), passage(12, "记者")]),
            group(2, "学生" * 20 + "乙", [passage(20, other)], []), group(3, "学生", [passage(30, "记者")], [])]
    table, drops = tokenised(rows, tokenizer)
    first, second, third = table.to_pylist()
    assert first["query_hash"] == second["query_hash"] != third["query_hash"] == text_hash("学生")
    cut, behind, whole = (p["text_hash"] for p in (*first["positives"], *first["negatives"]))
    assert cut == behind == second["positives"][0]["text_hash"] != text_hash(same)
    assert whole == text_hash("记者") and not drops
    _, drops = tokens.tokenise_groups(
        pa.Table.from_pylist([group(1, "学生", [passage(10, same)], [passage(11, other)])], GROUPS), tokenizer, "part",
        query_max_len=8, passage_max_len=12, seed=1, buckets=1, min_negatives=1,
    )  # fmt: skip
    assert drops == {"few_negatives": 1}  # its negative is its positive, as the model sees them


def test_a_row_without_a_source_has_an_empty_one(tokenizer) -> None:
    table, _ = tokenised([{**group(1, "学生", [passage(10, "记者")], []), "source": None}], tokenizer)
    assert table["source"].to_pylist() == [""]


def test_groups_with_too_few_negatives_are_left_out_and_counted(tokenizer) -> None:
    positive, other, third = passage(10, "医生在上海"), passage(20, "工人"), passage(21, "记者")
    repeated = [passage(30, "工人。"), other, passage(31, "医生在上海"), passage(32, "学生")]  # one text that counts
    lists = ([], [other], repeated, [other, third])
    rows = [group(i, "学生", [positive], negatives) for i, negatives in enumerate(lists)]
    for most, kept in ((0, [0, 1, 2, 3]), (1, [1, 2, 3]), (2, [3])):
        table, drops = tokens.tokenise_groups(
            pa.Table.from_pylist(rows, GROUPS), tokenizer, "part", query_max_len=8, passage_max_len=12, seed=1,
            buckets=1, min_negatives=most,
        )  # fmt: skip
        assert table["query_id"].to_pylist() == kept
        assert drops == ({"few_negatives": 4 - len(kept)} if most else {})


def test_every_bucket_is_found_again_whole_and_alone(tokenizer, tmp_path: Path) -> None:
    rows = [group(i, f"学生{i}", [passage(i, f"医生{i}")], []) for i in range(60)]
    for number, part in enumerate((rows[:40], rows[40:])):
        with pq.ParquetWriter(tmp_path / f"{number}.parquet", tokens.TOKEN_GROUPS) as writer:
            for start in range(0, len(part), 15):
                for table in tokens.split_buckets(tokenised(part[start : start + 15], tokenizer, buckets=4)[0]):
                    writer.write_table(table)
    files = [pq.ParquetFile(tmp_path / f"{number}.parquet") for number in range(2)]
    read = [tokens.read_bucket(files, bucket, tokens.TOKEN_GROUPS) for bucket in range(4)]
    assert all(len(table) > 3 and set(table["bucket"].to_pylist()) == {b} for b, table in enumerate(read))
    assert sorted(i for table in read for i in table["query_id"].to_pylist()) == list(range(60))
    assert len(tokens.read_bucket(files, 9, tokens.TOKEN_GROUPS)) == 0


def test_long_texts_are_cut_into_pieces_that_join_to_the_whole(tokenizer) -> None:
    texts = ["老师在北京学习做菜" * 9, "医生", "", "学生在成都参观博物馆，傍晚才回来。" * 3]
    rows = [{"passage_id": i, "text": text, "source": "s", "status": "keep"} for i, text in enumerate(texts)]
    table, drops = tokens.tokenise_texts(
        pa.Table.from_pylist(rows, PASSAGES), tokenizer, "part", max_len=10, seed=1, buckets=1
    )
    assert drops == {"no_tokens": 1}
    joined: dict[int, list[int]] = {}
    for row in table.to_pylist():
        assert row["token_ids"][0] == tokenizer.cls_token_id and row["token_ids"][-1] == tokenizer.sep_token_id
        assert len(row["token_ids"]) <= 10
        own = joined.setdefault(row["passage_id"], [])
        assert row["offset"] == len(own)
        own += row["token_ids"][1:-1]
    whole = {i: tokenizer(text, add_special_tokens=False)["input_ids"] for i, text in enumerate(texts) if text}
    assert joined == whole


def test_pieces_end_at_sentence_ends(tokenizer) -> None:
    text = "学生在成都参观博物馆，傍晚才回来。医生在上海！\n" * 6
    rows = [{"passage_id": 5, "text": text, "source": "s", "status": "keep"}]
    table, _ = tokens.tokenise_texts(
        pa.Table.from_pylist(rows, PASSAGES), tokenizer, "part", max_len=40, seed=1, buckets=1
    )
    pieces = [tokenizer.decode(ids[1:-1]).strip() for ids in table["token_ids"].to_pylist()]
    assert len(pieces) > 2 and all(piece.endswith(("。", "！", "!")) for piece in pieces)


def test_portions_change_nothing(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"老师{i}在北京学习。" * (i % 5) for i in range(40)]
    rows = [{"passage_id": i, "text": text, "source": "s", "status": "keep"} for i, text in enumerate(texts)]
    chunk = pa.Table.from_pylist(rows, PASSAGES)
    whole = tokens.tokenise_texts(chunk, tokenizer, "part", max_len=12, seed=1, buckets=3)
    passages = tokens.tokenise(tokenizer, chunk["text"].to_pylist(), 12)
    monkeypatch.setattr(tokens, "PORTION", 25)
    again = tokens.tokenise_texts(chunk, tokenizer, "part", max_len=12, seed=1, buckets=3)
    assert again[0].equals(whole[0]) and again[1] == whole[1] == {"no_tokens": 8}
    assert tokens.tokenise(tokenizer, chunk["text"].to_pylist(), 12).equals(passages)


def test_only_kept_rows_within_the_limit_are_read(tmp_path: Path) -> None:
    rows = [{"passage_id": i, "text": "学生", "source": "s", "status": "keep" if i % 3 else "short"} for i in range(90)]
    pq.write_table(pa.Table.from_pylist(rows, PASSAGES), tmp_path / "p.parquet")
    with pq.ParquetFile(tmp_path / "p.parquet") as file:
        chunks = list(tokens.read_kept(file, ("passage_id",), "p", 16, "passage_id", 5, (1 << 63) - 1))
    kept = [i for _, table in chunks for i in table["passage_id"].to_pylist()]
    assert sum(count for count, _ in chunks) == 60 and 15 < len(kept) < 45
    assert kept == [i for i in range(90) if i % 3 and int(tokens.mix(5, np.array([i]))[0]) < 1 << 63]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"passage_id": [1], "status": ["keep"]}), tmp_path / "p.parquet")
    with pq.ParquetFile(tmp_path / "p.parquet") as file, pytest.raises(InputError, match="no column `text`"):
        list(tokens.read_kept(file, ("passage_id", "text"), "p", 16, "passage_id", 5, 9))
