"""A model small enough for unit tests, made by the package's own code."""

import pytest

from chuxin.models.checkpoint import save_model
from chuxin.models.config import InitConfig
from chuxin.models.start import new_model, train_tokenizer

SENTENCES = [
    f"{who}在{where}{what},{when}才回来。The {number}th note is here."
    for number, who in enumerate(("老师", "医生", "学生", "记者", "工人", "农民"))
    for where in ("北京", "上海", "广州", "成都")
    for what in ("学习做菜", "参观博物馆", "修理自行车", "写一篇文章")
    for when in ("傍晚", "第二天")
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model directory: XLM-R of 2 layers × 32, texts of up to 64 tokens, an own vocabulary."""
    tokenizer = train_tokenizer(SENTENCES, vocab_size=500, max_len=64)
    config = InitConfig(
        seed=3, passages="none", max_texts=1, vocab_size=500, layers=2, hidden=32, heads=4, intermediate=64,
        max_len=64,
    )  # fmt: skip
    directory = str(tmp_path_factory.mktemp("models") / "tiny")
    save_model(new_model(config, len(tokenizer)), tokenizer, directory)
    return directory
