"""The init stage: the checkpoint that training starts from, in the artifact's file `model`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from chuxin.artifacts import Attempt
from chuxin.errors import InputError
from chuxin.files import open_parquet
from chuxin.models.config import InitConfig
from chuxin.runner import Context
from chuxin.schema import KEEP

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from chuxin.models.encoder import M3Model

# Texts on which the new tokenizer's coverage is measured.
MEASURED = 1000


def init(ctx: Context, config: InitConfig) -> None:
    """Copies an existing model, lengthened if asked for, or trains a tokenizer on the kept passages and draws weights.

    Facts: vocabulary and parameters; of a new tokenizer also characters a token, shares of `<unk>` and bytes.
    """
    if config.model is not None:
        ctx.draft.map({"model": ctx.resolve(config.model)}, partial(copy_model, config.max_len), name="init")
        return
    if config.passages not in ctx.inputs:
        remedy = "Give a curate stage"
        raise InputError(f"init.passages: {config.passages}", "these are no curated passages", remedy)
    parts = ctx.inputs[config.passages].parts("passages")
    ctx.draft.map({"model": parts}, partial(make_model, config), name="init")


def copy_model(max_len: int | None, key: str, path: str, attempt: Attempt) -> None:
    """Writes an existing model in this project's layout, for texts of `max_len` tokens; runs on a worker."""
    from chuxin.models.checkpoint import load_model, load_tokenizer
    from chuxin.models.positions import extend_positions

    model, tokenizer = load_model(path), load_tokenizer(path)
    if max_len is not None:
        extend_positions(model, max_len, "init.max_len")
        tokenizer.model_max_length = max_len
    _save(model, tokenizer, attempt)


def make_model(config: InitConfig, key: str, parts: Sequence[str], attempt: Attempt) -> None:
    """Writes a new tokenizer and drawn weights; runs on a worker."""
    from chuxin.models.start import coverage, new_model, train_tokenizer

    texts = list(spread(parts, config.max_texts))
    tokenizer = train_tokenizer(texts, config.vocab_size, config.max_len)
    attempt.count(facts=coverage(tokenizer, texts[:: len(texts) // MEASURED + 1]))
    _save(new_model(config, len(tokenizer)), tokenizer, attempt)


def spread(parts: Sequence[str], limit: int) -> Iterator[str]:
    """Yields the texts of at most `limit` kept passages, evenly spaced over all of them, in their order.

    Args:
        parts: Parquet files of the table passages.
        limit: The most texts.
    """
    kept = sum(status == KEEP for part in parts for status in _column(part, "status"))
    step, wanted, seen = max(kept / limit, 1.0), 0, 0
    for part in parts:
        file = open_parquet(part)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["text", "status"])
            for text, status in zip(table["text"].to_pylist(), table["status"].to_pylist(), strict=True):
                if status != KEEP:
                    continue
                if seen >= wanted * step:
                    yield text
                    wanted += 1
                seen += 1


def _column(part: str, name: str) -> Iterator[str]:
    file = open_parquet(part)
    for group in range(file.num_row_groups):
        yield from file.read_row_group(group, columns=[name])[name].to_pylist()


def _save(model: M3Model, tokenizer: PreTrainedTokenizerFast, attempt: Attempt) -> None:
    from chuxin.models.checkpoint import save_model

    save_model(model, tokenizer, attempt.path("model"))
    parameters = sum(p.numel() for p in model.backbone.parameters())
    attempt.count(facts={"vocabulary": len(tokenizer), "parameters": parameters})
