from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chuxin.artifacts import Attempt
from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer
from chuxin.models.config import InitConfig
from chuxin.models.pipeline import copy_model, make_model, spread


def write(path: Path, texts: list[str], fallen: set[str]) -> str:
    status = ["short" if text in fallen else "keep" for text in texts]
    pq.write_table(pa.table({"text": texts, "status": status}), path, row_group_size=3)
    return str(path)


def test_texts_are_spread_evenly_over_what_is_kept(tmp_path: Path) -> None:
    parts = [write(tmp_path / "a.parquet", [f"a{i}" for i in range(10)], {"a0", "a1"}),
             write(tmp_path / "b.parquet", [f"b{i}" for i in range(12)], set())]  # fmt: skip
    assert list(spread(parts, 100)) == [f"a{i}" for i in range(2, 10)] + [f"b{i}" for i in range(12)]
    assert list(spread(parts, 5)) == ["a2", "a6", "b0", "b4", "b8"]
    assert len(list(spread(parts, 7))) == 7


def test_a_new_model_and_its_copy(tmp_path: Path) -> None:
    texts = [f"第{i}课讲的是怎样种小麦和水稻。" for i in range(40)]
    config = InitConfig(seed=5, passages="curate", max_texts=30, vocab_size=400, layers=1, hidden=16, heads=2,
                        intermediate=32, max_len=30)  # fmt: skip
    made = Attempt(str(tmp_path / "init"), "model")
    make_model(config, "model", [write(tmp_path / "p.parquet", texts, set())], made)
    model = load_model(made.path("model"))
    assert made.rows_in == made.rows_out == 0  # a model is no rows: it would cut the report's funnel
    assert made.facts["unk_share"] == 0
    assert (
        made.facts["vocabulary"]
        == model.backbone.config.vocab_size
        == len(load_tokenizer(made.path("model")))
    )
    copied = Attempt(str(tmp_path / "copy"), "model")
    copy_model(None, "model", made.path("model"), copied)
    assert (
        Path(copied.path("model"), "model.safetensors").read_bytes()
        == Path(made.path("model"), "model.safetensors").read_bytes()
    )


def test_a_longer_copy(tiny_model: str, tmp_path: Path) -> None:
    copied = Attempt(str(tmp_path / "copy"), "model")
    copy_model(200, "model", tiny_model, copied)
    model, tokenizer = load_model(copied.path("model")), load_tokenizer(copied.path("model"))
    assert model.max_length == tokenizer.model_max_length == 200
    text = "医生在北京写一篇文章" * 20
    ids = [load_tokenizer(path)(text, verbose=False)["input_ids"] for path in (tiny_model, copied.path("model"))]
    assert ids[0] == ids[1] and len(ids[0]) > 64
    with pytest.raises(InputError, match="init.max_len: 63 tokens are fewer than the 64"):
        copy_model(63, "model", tiny_model, Attempt(str(tmp_path / "short"), "model"))
