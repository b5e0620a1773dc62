"""Every refusal names its row."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from chuxin.errors import InputError
from chuxin.packing.checks import Limits, check_groups, check_ids, check_lengths, check_texts, model_limits
from chuxin.packing.tokens import TOKEN_GROUPS, TOKEN_TEXTS
from chuxin.schema import GROUPS


def passage(number: int, text: str | None) -> dict:
    return {"passage_id": number, "text": text, "text_hash": number, "score": None}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"query": None}, "part: query_id 7: the group has no query"),
        ({"query": " \n"}, "part: query_id 7: the group has no query"),
        ({"positives": []}, "part: query_id 7: the group has no positive"),
        ({"positives": None}, "part: query_id 7: the group has no positive"),
        ({"positives": [passage(1, "a"), passage(2, None)]}, "part: query_id 7, passage_id 2: one of the positives"),
        ({"negatives": [passage(3, "")]}, "part: query_id 7, passage_id 3: one of the negatives"),
    ],
)
def test_groups_that_cannot_be_trained_on(change: dict, problem: str) -> None:
    sound = {"query_id": 6, "query": "q", "positives": [passage(0, "p")], "negatives": []}
    for rows, refused in (([sound, sound], False), ([sound, {**sound, "query_id": 7, **change}], True)):
        table = pa.Table.from_pylist(rows, GROUPS)
        passages = {name: table[name].combine_chunks() for name in ("positives", "negatives")}
        arguments = (table["query_id"], table["query"].combine_chunks(), passages, "part")
        if refused:
            with pytest.raises(InputError, match=problem):
                check_groups(*arguments)
        else:
            check_groups(*arguments)


def test_a_text_that_is_null() -> None:
    check_texts(pa.chunked_array([[4, 5]]), pa.array(["a", ""]), "part")
    with pytest.raises(InputError, match="part: passage_id 5: the passage has no text"):
        check_texts(pa.chunked_array([[4, 5]]), pa.array(["a", None]), "part")


@pytest.mark.parametrize("column", ["query_ids", "positives", "negatives"])
def test_ids_beyond_the_embeddings_of_groups(column: str) -> None:
    def row(number: int, **beyond: int) -> dict:
        kinds = {name: beyond.get(name, 3) for name in ("query_ids", "positives", "negatives")}
        lists = {name: [{"passage_id": 1, "text_hash": 1, "token_ids": [0, top], "score": None}]
                 for name, top in kinds.items() if name != "query_ids"}  # fmt: skip
        return {"query_id": number, "source": "s", "query_ids": [1, kinds["query_ids"]], **lists}

    limits = Limits("model", 10, None)
    check_ids(limits, pa.Table.from_pylist([row(1), row(2, **{column: 9})], TOKEN_GROUPS), "part")
    table = pa.Table.from_pylist([row(1), row(2, **{column: 10})], TOKEN_GROUPS)
    with pytest.raises(InputError, match="part: query_id 2: token id 10 is beyond the 10 embeddings of model"):
        check_ids(limits, table, "part")
    check_ids(Limits("model", None, None), table, "part")


def test_ids_beyond_the_embeddings_of_texts() -> None:
    rows = [{"passage_id": i, "source": "s", "token_ids": [0, 5 + i]} for i in range(3)]
    with pytest.raises(InputError, match="part: passage_id 1: token id 6 is beyond the 6 embeddings"):
        check_ids(Limits("model", 6, None), pa.Table.from_pylist(rows, TOKEN_TEXTS), "part")


@pytest.mark.parametrize(("kind", "positions"), [("xlm-roberta", 512), ("bert", 514)])
def test_limits_are_those_of_the_config_beside_the_tokenizer(tmp_path: Path, kind: str, positions: int) -> None:
    assert model_limits(str(tmp_path)) == Limits(str(tmp_path), None, None)
    config = {"model_type": kind, "vocab_size": 9, "max_position_embeddings": 514, "pad_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    limits = model_limits(str(tmp_path))
    assert limits[1:] == (9, positions)
    check_lengths(limits, max_len=positions)
    with pytest.raises(InputError, match=f"max_len {positions + 1}: .*the model has {positions} positions"):
        check_lengths(limits, max_len=positions + 1)


def test_limits_are_the_models(tiny_model: str) -> None:
    from chuxin.models.checkpoint import load_model

    model = load_model(tiny_model)
    assert model_limits(tiny_model)[1:] == (model.backbone.config.vocab_size, model.max_length)
