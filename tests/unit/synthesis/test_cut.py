"""Cutting by tokens: whole characters, never more than allowed, and what is left is all there is."""

import pickle
import shutil
from pathlib import Path

import pytest
import random_llm

from chuxin.errors import InputError
from chuxin.synthesis.cut import Cutter


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("llm"))
    random_llm.save(folder, layers=1, hidden=32, intermediate=32)
    return folder


@pytest.mark.parametrize("most", [8, 9, 10, 11, 12, 40])
def test_a_text_is_cut_between_characters(model: str, most: int) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    text = "北京的鿏元素😀手机uface是𠮷学生" * 5
    cut = Cutter(model, most).cut(text)
    assert text.startswith(cut) and 0 < len(cut) < len(text)
    assert len(tokenizer.encode(cut, add_special_tokens=False).ids) <= most
    assert len(tokenizer.encode(text[: len(cut) + 1], add_special_tokens=False).ids) > most


def test_short_texts_stay(model: str) -> None:
    assert Cutter(model, 100).cut("北京的公司 ") == "北京的公司 "


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tokenizer.json"):
        Cutter(str(tmp_path), 10)


def test_a_cutter_works_where_the_llm_is_not(model: str, tmp_path: Path) -> None:
    """Workers on other nodes get it with its tokenizer; a URI or hub name would name another place there."""
    shutil.copytree(model, tmp_path / "llm")
    text = "北京的公司成立于二〇一二年" * 9
    cutter = Cutter(str(tmp_path / "llm"), 12)
    there = pickle.loads(pickle.dumps(cutter))
    shutil.rmtree(tmp_path / "llm")
    assert there.cut(text) == cutter.cut(text) != text
