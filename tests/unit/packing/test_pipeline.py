"""Both pack stages from Parquet to a closed artifact, with partitions computed in this process instead of by Ray."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from chuxin.artifacts import Artifact
from chuxin.errors import InputError
from chuxin.ids import text_hash
from chuxin.models.checkpoint import load_tokenizer
from chuxin.models.vocabulary import vocabulary_fingerprint
from chuxin.packing import pipeline
from chuxin.packing.config import PackGroupsConfig, PackTextsConfig
from chuxin.packing.pipeline import pack_groups, pack_texts
from chuxin.runner import Context
from chuxin.schema import GROUPS, PASSAGES

from ..here import HereDraft

ROWS = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two parts of groups and two of passages; every sixth row fell earlier."""

    def passage(number: int, text: str) -> dict:
        return {"passage_id": number, "text": text, "text_hash": text_hash(text), "score": None}

    groups = [
        {"query_id": i, "query": f"学生{i}在哪里", "query_hash": text_hash(f"学生{i}在哪里"),
         "positives": [passage(100 + i, f"学生{i}在北京学习做菜")], "negatives": [passage(200 + i, f"医生{i}回来")],
         "source": "ab"[i % 2], "status": "short" if i % 6 == 0 else "keep", "lineage": {"file": "f", "position": i}}
        for i in range(ROWS)
    ]  # fmt: skip
    texts = [
        {"passage_id": i, "source": "ab"[i % 2], "text": f"老师{i}在上海参观博物馆" * (1 + i % 4),
         "status": "short" if i % 6 == 0 else "keep"} for i in range(ROWS)
    ]  # fmt: skip
    for name, schema, rows in (("groups", GROUPS, groups), ("texts", PASSAGES, texts)):
        for part in range(2):
            pq.write_table(pa.Table.from_pylist(rows[part::2], schema), tmp_path / f"{name}-{part}.parquet")
    return tmp_path


def run(folder: Path, stage: Callable, config: PackGroupsConfig | PackTextsConfig) -> Artifact:
    draft = HereDraft(str(folder / "artifact"), "f" * 32, {}, print)
    stage(Context("pack", draft, {}, print), config)
    return draft.close()


def groups_config(folder: Path, model: str, **changes: Any) -> PackGroupsConfig:
    settings = {"query_max_len": 12, "passage_max_len": 24, "group_size": 2, "batch_size": 8, "epochs": 2, "seed": 1,
                "slices": 3, "buckets": 2} | changes  # fmt: skip
    return PackGroupsConfig(groups=f"{folder}/groups-*.parquet", tokenizer=model, **settings)


def test_every_kept_group_is_planned_once_an_epoch(folder: Path, tiny_model: str) -> None:
    artifact = run(folder, pack_groups, groups_config(folder, tiny_model))
    plan = artifact.read("plan").to_pylist()
    kept = {i for i in range(ROWS) if i % 6}
    for epoch in range(2):
        used = Counter(row["query_id"] for row in plan if row["epoch"] == epoch)
        assert max(used.values()) == 1 and set(used) <= kept
    planned = [p for p in artifact.partitions() if p["key"].startswith("epoch")]
    assert [p["key"] for p in planned] == [f"epoch{e:03d}-bucket{b:04d}" for e in range(2) for b in range(2)]
    alone = artifact.manifest["drops"].get("alone_without_negative", 0)
    assert len(plan) + alone == 2 * len(kept) and artifact.manifest["rows_in"] == len(kept)
    vocabulary = vocabulary_fingerprint(load_tokenizer(tiny_model))
    for part in planned:
        own = [row for row in plan if row["epoch"] == int(part["key"][5:8])]
        assert part["facts"]["vocabulary"] == vocabulary and part["facts"]["slices"] == 3
        assert part["facts"]["batches"] > 0 and part["facts"]["rows"] <= len(own)
    assert {row["source"] for row in plan} == {"a", "b"}


def test_mixed_batches_of_a_token_budget(folder: Path, tiny_model: str) -> None:
    changes = {"batches": "mixed", "length_edges": (14,), "tokens_per_batch": 150, "buckets": 1, "epochs": 1}
    artifact = run(folder, pack_groups, groups_config(folder, tiny_model, **changes))
    plan = artifact.read("plan").to_pylist()
    batches = [[row for row in plan if row["batch"] == index] for index in range(artifact.manifest["facts"]["batches"])]
    alone = artifact.manifest["drops"].get("alone_without_negative", 0)
    assert len(plan) + alone == len({i for i in range(ROWS) if i % 6})
    assert sum({row["source"] for row in batch} == {"a", "b"} for batch in batches) > len(batches) / 2
    assert max(map(len, batches)) == 150 // (12 + 2 * 14)
    assert all(len(batch) > 1 or len(batch[0]["passages"]) > 1 for batch in batches)


@pytest.mark.parametrize("stage", ["groups", "texts"])
def test_a_partition_that_did_not_read_every_row_once_is_named(
    folder: Path, tiny_model: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(files: list, bucket: int, schema: pa.Schema) -> pa.Table:
        table = read_bucket(files, bucket, schema)
        if bucket == 1:  # as many rows, but one of another id
            ids = table.column(1).to_numpy().copy()
            ids[0] += 1_000_000
            table = table.set_column(1, schema.field(1), pa.array(ids))
        return table

    read_bucket = pipeline.read_bucket
    monkeypatch.setattr(pipeline, "read_bucket", another)
    texts = PackTextsConfig(f"{folder}/texts-*.parquet", tiny_model, max_len=16, tokens_per_batch=100, epochs=1,
                            seed=1, buckets=2)  # fmt: skip
    config = groups_config(folder, tiny_model) if stage == "groups" else texts
    with pytest.raises(RuntimeError, match="epoch000-bucket0001: it read .* rows with id sum"):
        run(folder, pack_groups if stage == "groups" else pack_texts, config)


def test_an_id_that_two_groups_have_is_refused(folder: Path, tiny_model: str) -> None:
    pq.write_table(pq.read_table(folder / "groups-1.parquet").slice(4, 1), folder / "groups-2.parquet")
    with pytest.raises(InputError, match="query_id 9: two groups have this id"):
        run(folder, pack_groups, groups_config(folder, tiny_model))


def test_what_the_tokenizers_model_cannot_take_is_refused(folder: Path, tiny_model: str) -> None:
    with pytest.raises(InputError, match="passage_max_len 65: .*the model has 64 positions"):
        run(folder, pack_groups, groups_config(folder, tiny_model, passage_max_len=65))
    small = folder / "small"
    shutil.copytree(tiny_model, small)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": 12}))
    with pytest.raises(InputError, match=r"groups-0.parquet: query_id \d+: token id \d+ is beyond the 12 embeddings"):
        run(folder, pack_groups, groups_config(folder, str(small)))


def test_the_cap_is_exact_and_does_not_depend_on_the_parts(folder: Path, tiny_model: str) -> None:
    capped = {"max_groups": 21, "buckets": 1, "epochs": 1, "batch_size": 50}
    plan = run(folder, pack_groups, groups_config(folder, tiny_model, **capped))
    ids = set(plan.read("plan")["query_id"].to_pylist())
    assert len(ids) == 21 and plan.manifest["drops"]["over_limit"] == 29
    joined = pa.concat_tables([pq.read_table(folder / f"groups-{part}.parquet") for part in range(2)])
    (folder / "other").mkdir()
    pq.write_table(joined, folder / "other/groups-0.parquet")
    again = run(folder / "other", pack_groups, groups_config(folder / "other", tiny_model, **capped))
    assert set(again.read("plan")["query_id"].to_pylist()) == ids


def test_texts_are_all_packed(folder: Path, tiny_model: str) -> None:
    config = PackTextsConfig(f"{folder}/texts-*.parquet", tiny_model, max_len=16, tokens_per_batch=100, epochs=2,
                             seed=1, slices=2, weights={"b": 2.0})  # fmt: skip
    artifact = run(folder, pack_texts, config)
    plan = artifact.read("plan").to_pylist()
    tokenizer = load_tokenizer(tiny_model)
    for epoch in range(2):
        used = Counter((row["passage_id"], row["offset"]) for row in plan if row["epoch"] == epoch)
        assert {i for i, _ in used} == {i for i in range(ROWS) if i % 6}
        assert all(count == 1 + i % 2 for (i, _), count in used.items())
    whole: dict[int, list[int]] = {}
    for row in sorted((r for r in plan if r["epoch"] == 0 and r["passage_id"] % 2 == 0), key=lambda r: r["offset"]):
        whole.setdefault(row["passage_id"], []).extend(row["token_ids"][1:-1])
    text = "老师{}在上海参观博物馆"
    assert all(
        ids == tokenizer(text.format(i) * (1 + i % 4), add_special_tokens=False)["input_ids"]
        for i, ids in whole.items()
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"weights": {"c": 1.0}}, "there is no source `c`"),
        ({"weights": {"a": 0.0, "b": 0.0}}, "the plan is empty"),
        ({"max_groups": 1, "group_size": 1}, "the plan is empty"),
    ],
)
def test_plans_that_cannot_be_made_are_refused(folder: Path, tiny_model: str, changes: dict, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        run(folder, pack_groups, groups_config(folder, tiny_model, **changes))


def test_an_input_without_the_table_is_refused(folder: Path, tiny_model: str) -> None:
    with pytest.raises(InputError, match="holds no table `groups`"):
        run(folder, pack_groups, groups_config(folder / "nothing", tiny_model))


def test_a_tokenizer_without_special_tokens_is_refused(folder: Path) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    bare.save_pretrained(folder / "bare")
    with pytest.raises(InputError, match="the tokenizer has no cls token"):
        run(folder, pack_groups, groups_config(folder, str(folder / "bare")))


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"batch_size": 1}, "batch_size"), ({"epochs": 0}, "epochs"), ({"query_max_len": 2}, "query_max_len"),
     ({"weights": {"a": -1.0}}, "weight"), ({"length_edges": (9, 9)}, "length_edges"),
     ({"length_edges": (9, 24)}, "length_edges"), ({"tokens_per_batch": 0}, "tokens_per_batch"),
     ({"min_negatives": 2}, "min_negatives")],
)  # fmt: skip
def test_configs_that_make_no_sense_are_refused(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        groups_config(Path("x"), "m", **changes)
