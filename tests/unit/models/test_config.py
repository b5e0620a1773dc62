from pathlib import Path

import pytest

from chuxin.config import load
from chuxin.errors import InputError
from chuxin.models.config import InitConfig

NEW = {
    "seed": 1,
    "passages": "curate",
    "max_texts": 10,
    "vocab_size": 500,
    "layers": 2,
    "hidden": 32,
    "heads": 4,
    "intermediate": 64,
    "max_len": 64,
}


def read(tmp_path: Path, values: dict) -> InitConfig:
    (tmp_path / "init.yaml").write_text("\n".join(f"{k}: {v}" for k, v in values.items()))
    return load(InitConfig, str(tmp_path / "init.yaml"))


def test_both_forms(tmp_path: Path) -> None:
    assert read(tmp_path, NEW).hidden == 32
    assert read(tmp_path, {"seed": 1, "model": "BAAI/bge-m3-retromae"}).passages is None
    assert read(tmp_path, {"seed": 1, "model": "FacebookAI/xlm-roberta-large", "max_len": 8192}).max_len == 8192


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "x/y"}, "remove `passages`"),
        ({"layers": "null"}, "needs `layers`"),
        ({"max_len": "null"}, "needs `max_len`"),
        ({"max_len": 2}, "at least 3"),
        ({"heads": 5}, "not a multiple"),
    ],
)
def test_halves_are_refused(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(tmp_path, {**NEW, **change})
