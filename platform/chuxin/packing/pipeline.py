"""The pack stages: token tables by input part ("map-…"), then one plan an epoch and bucket ("epoch…-bucket…").

Leaves out: the plan's rules (plan.py), its layout (write.py), reading it (training/plan_reader.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from chuxin.artifacts import Artifact, Attempt, filesystem, open_parquet, read_json
from chuxin.errors import InputError
from chuxin.models.checkpoint import load_tokenizer
from chuxin.models.vocabulary import require_special_tokens, vocabulary_fingerprint
from chuxin.packing.config import PackGroupsConfig, PackTextsConfig
from chuxin.packing.draws import mix
from chuxin.packing.plan import plan_groups, plan_texts
from chuxin.packing.tokens import (
    TOKEN_GROUPS,
    TOKEN_TEXTS,
    as_groups,
    read_bucket,
    read_kept,
    split_buckets,
    tokenise_groups,
    tokenise_texts,
)  # fmt: skip
from chuxin.packing.write import Figures, group_slices, text_slices
from chuxin.runner import Context
from chuxin.schema import PLAN_GROUPS, PLAN_TEXTS

EVERYTHING = (1 << 64) - 1
GROUP_COLUMNS = ("query_id", "query", "query_hash", "positives", "negatives", "source")
TEXT_COLUMNS = ("passage_id", "text", "source")


def pack_groups(ctx: Context, config: PackGroupsConfig) -> None:
    """Plans the contrastive batches of every epoch.

    Raises:
        InputError: There is no group to pack, a group has no positive, a weight names no source, or the tokenizer
            lacks special tokens.
    """
    files = input_files(ctx, config.groups, "groups")
    limit = highest_draw(files, "query_id", config.seed, config.max_groups)
    path, vocabulary = _checked_tokenizer(ctx, config)
    tokenise = partial(_map_groups, config=config, tokenizer_path=path, limit=limit)
    _run(ctx, config, files, tokenise, partial(_reduce_groups, config=config, vocabulary=vocabulary), config.groups)


def pack_texts(ctx: Context, config: PackTextsConfig) -> None:
    """Packs the RetroMAE batches of every epoch.

    Raises:
        InputError: There is no passage to pack, a weight names no source, or the tokenizer lacks special tokens.
    """
    files = input_files(ctx, config.passages, "passages")
    limit = highest_draw(files, "passage_id", config.seed, config.max_passages)
    path, vocabulary = _checked_tokenizer(ctx, config)
    tokenise = partial(_map_texts, config=config, tokenizer_path=path, limit=limit)
    _run(ctx, config, files, tokenise, partial(_reduce_texts, config=config, vocabulary=vocabulary), config.passages)


def input_files(ctx: Context, ref: str, table: str) -> list[str]:
    """Returns the Parquet files of an artifact's table, or those that a path or glob names.

    Raises:
        InputError: There are none.
    """
    stage = ref.partition(":")[0]
    if stage in ctx.inputs:
        files = ctx.inputs[stage].parts(table)
    elif read_json(f"{ref}/manifest.json") is not None:
        files = Artifact(ref).parts(table)  # its other files are other tables and dead attempts
    else:
        fs, path = filesystem(ref)
        found = fs.glob(path) if "*" in path else fs.find(path)
        files = sorted(fs.unstrip_protocol(f) for f in found if f.endswith(".parquet"))
    if not files:
        raise InputError(f"{ctx.name}: {ref}", f"it holds no table `{table}`", "Name the curate stage or Parquet files")
    return files


def highest_draw(files: list[str], id_column: str, seed: int, most: int | None) -> int:
    """Returns the hash up to which rows are taken so that exactly `most` of those to keep are (all if fewer)."""
    if most is None:
        return EVERYTHING
    least = np.zeros(0, np.uint64)
    for file in files:
        with open_parquet(file) as part:
            for _, table in read_kept(part, (id_column,), file, 1 << 16, id_column, seed, EVERYTHING):
                least = np.sort(np.concatenate([least, mix(seed, table[id_column].to_numpy())]))[: most + 1]
    return int(least[most]) - 1 if len(least) > most else EVERYTHING


def _checked_tokenizer(ctx: Context, config: PackTextsConfig | PackGroupsConfig) -> tuple[str, str]:
    path = ctx.resolve(config.tokenizer)
    tokenizer = load_tokenizer(path)
    require_special_tokens(tokenizer, path)
    return path, vocabulary_fingerprint(tokenizer)


def _run(
    ctx: Context, config: PackTextsConfig | PackGroupsConfig, files: list[str],
    tokenise: Callable[[str, str, Attempt], None], plan: Callable[[str, dict[str, Any], Attempt], None], ref: str,
) -> None:  # fmt: skip
    maps = {f"map-{index:05d}": file for index, file in enumerate(files)}
    ctx.draft.map(maps, tokenise, name=f"{ctx.name}: tokenise", num_cpus=config.execution.num_cpus)
    known = {source for key in maps for source in ctx.draft.committed()[key]["facts"]["sources"]}
    unknown = sorted(set(config.weights) - known)
    if unknown:
        remedy = f"The sources are {', '.join(sorted(known))}"
        raise InputError(f"{ctx.name}.weights", f"there is no source `{unknown[0]}`", remedy)
    tables = [ctx.draft.part(key, "tokens") for key in maps]
    rows = sum(ctx.draft.committed()[key]["tables"]["tokens"]["rows"] for key in maps)
    reduces = {
        f"epoch{epoch:03d}-bucket{bucket:04d}": {"epoch": epoch, "bucket": bucket, "files": tables}
        for epoch in range(config.epochs) for bucket in range(config.buckets)
    }  # fmt: skip
    ctx.draft.map(reduces, plan, name=f"{ctx.name}: plan", num_cpus=config.execution.num_cpus)
    done = ctx.draft.committed()
    for epoch in range(config.epochs):
        read = sum(done[key]["facts"]["rows_read"] for key, item in reduces.items() if item["epoch"] == epoch)
        if read != rows:
            raise RuntimeError(f"epoch {epoch} planned {read} rows of {rows}")
    batches = sum(done[key]["facts"]["batches"] for key in reduces)
    if not batches:
        raise InputError(f"{ctx.name}: {ref}", "the plan is empty: no batch could be filled", "Give more rows to pack")
    ctx.log(f"{batches:,} batches in {config.epochs} epochs")


def _map_groups(
    key: str, file: str, attempt: Attempt, *, config: PackGroupsConfig, tokenizer_path: str, limit: int
) -> None:
    def chunk_tokens(chunk: pa.Table, tokenizer: PreTrainedTokenizerFast) -> tuple[pa.Table, dict[str, int]]:
        return tokenise_groups(
            chunk, tokenizer, file, query_max_len=config.query_max_len, passage_max_len=config.passage_max_len,
            seed=config.seed, buckets=config.buckets,
        )  # fmt: skip

    _map(file, attempt, config, tokenizer_path, limit, (GROUP_COLUMNS, "query_id", TOKEN_GROUPS), chunk_tokens)


def _map_texts(
    key: str, file: str, attempt: Attempt, *, config: PackTextsConfig, tokenizer_path: str, limit: int
) -> None:
    def chunk_tokens(chunk: pa.Table, tokenizer: PreTrainedTokenizerFast) -> tuple[pa.Table, dict[str, int]]:
        return tokenise_texts(chunk, tokenizer, max_len=config.max_len, seed=config.seed, buckets=config.buckets)

    _map(file, attempt, config, tokenizer_path, limit, (TEXT_COLUMNS, "passage_id", TOKEN_TEXTS), chunk_tokens)


def _map(
    file: str, attempt: Attempt, config: PackTextsConfig | PackGroupsConfig, tokenizer_path: str, limit: int,
    contract: tuple[tuple[str, ...], str, pa.Schema],
    chunk_tokens: Callable[[pa.Table, PreTrainedTokenizerFast], tuple[pa.Table, dict[str, int]]],
) -> None:  # fmt: skip
    columns, id_column, schema = contract
    tokenizer = load_tokenizer(tokenizer_path)
    sources: dict[str, int] = {}

    def parts() -> Iterator[pa.Table]:
        with open_parquet(file) as part:
            rows = read_kept(part, columns, file, config.execution.chunk_rows, id_column, config.seed, limit)
            for read, chunk in rows:
                table, drops = chunk_tokens(chunk, tokenizer)
                for count in chunk["source"].value_counts().to_pylist():
                    sources[count["values"]] = sources.get(count["values"], 0) + count["counts"]
                over = {"over_limit": read - len(chunk)} if read > len(chunk) else {}
                attempt.count(rows_in=read, drops={**drops, **over})
                yield from split_buckets(table)

    attempt.write("tokens", parts(), schema)
    attempt.count(facts={"sources": sources})


def _reduce_groups(
    key: str, item: dict[str, Any], attempt: Attempt, *, config: PackGroupsConfig, vocabulary: str
) -> None:
    epoch, bucket = item["epoch"], item["bucket"]
    table = _bucket(item, TOKEN_GROUPS)
    groups = as_groups(table, config.weights)
    plan = plan_groups(
        groups, group_size=config.group_size, batch_size=config.batch_size, seed=config.seed, epoch=epoch, bucket=bucket
    )
    figures = Figures()
    parts = figures.watch(group_slices(table, groups, plan.batches, epoch, config.slices))
    attempt.write("plan", parts, PLAN_GROUPS)
    facts = {"rows_read": len(table), "slices": config.slices, "vocabulary": vocabulary}
    _finish(attempt, figures, len(plan.batches), facts)
    attempt.count(drops={"leftover": plan.leftover} if plan.leftover else {})


def _reduce_texts(
    key: str, item: dict[str, Any], attempt: Attempt, *, config: PackTextsConfig, vocabulary: str
) -> None:
    epoch, bucket = item["epoch"], item["bucket"]
    table = _bucket(item, TOKEN_TEXTS)
    lengths = table["token_ids"].combine_chunks().value_lengths().to_numpy().astype(np.int64)
    weights = np.array([config.weights.get(source, 1.0) for source in table["source"].to_pylist()], np.float64)
    batches = plan_texts(
        table["passage_id"].to_numpy(), table["offset"].to_numpy().astype(np.int64), lengths, weights,
        tokens_per_batch=config.tokens_per_batch, seed=config.seed, epoch=epoch, bucket=bucket,
    )  # fmt: skip
    figures = Figures()
    attempt.write("plan", figures.watch(text_slices(table, batches, epoch, config.slices)), PLAN_TEXTS)
    facts = {"rows_read": len(table), "slices": config.slices, "vocabulary": vocabulary}
    _finish(attempt, figures, len(batches), facts)


def _bucket(item: dict[str, Any], schema: pa.Schema) -> pa.Table:
    files = [open_parquet(file) for file in item["files"]]
    try:
        return read_bucket(files, item["bucket"], schema)
    finally:
        for file in files:
            file.close()


def _finish(attempt: Attempt, figures: Figures, batches: int, facts: dict[str, Any]) -> None:
    attempt.count(rows_out=figures.rows, facts={**figures.facts(batches), **facts}, histograms=figures.histograms)
