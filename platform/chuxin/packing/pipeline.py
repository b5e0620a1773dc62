"""The pack stages: token tables by input part ("map-…"), then one plan an epoch and bucket ("epoch…-bucket…").

Leaves out: the plan's rules (plan.py), its layout (write.py), reading it (training/plan_reader.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from chuxin.artifacts import Attempt, add_checksums, checksum, input_files
from chuxin.errors import InputError
from chuxin.files import open_parquet
from chuxin.models.checkpoint import load_tokenizer
from chuxin.models.vocabulary import require_special_tokens, vocabulary_fingerprint
from chuxin.packing.checks import Limits, check_ids, check_lengths, model_limits
from chuxin.packing.config import PackGroupsConfig, PackTextsConfig
from chuxin.packing.draws import mix
from chuxin.packing.plan import length_buckets, plan_groups
from chuxin.packing.plan_texts import plan_texts
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
        InputError: There is no group to pack, a group lacks its query, a positive or a text, a weight names no source,
            the tokenizer lacks special tokens, or ids or lengths are beyond the model that it belongs to.
        RuntimeError: A token table's row was not planned from exactly once an epoch.
    """
    files = input_files(ctx, config.groups, "groups")
    limit = highest_draw(files, "query_id", config.seed, config.max_groups)
    limits, vocabulary = _checked_tokenizer(ctx, config)
    check_lengths(limits, query_max_len=config.query_max_len, passage_max_len=config.passage_max_len)
    tokenise = partial(_map_groups, config=config, limits=limits, limit=limit)
    _run(ctx, config, files, tokenise, partial(_reduce_groups, config=config, vocabulary=vocabulary), config.groups)


def pack_texts(ctx: Context, config: PackTextsConfig) -> None:
    """Packs the RetroMAE batches of every epoch.

    Raises:
        InputError: There is no passage to pack, one has no text, a weight names no source, the tokenizer lacks special
            tokens, or ids or lengths are beyond the model that it belongs to.
        RuntimeError: A token table's row was not planned from exactly once an epoch.
    """
    files = input_files(ctx, config.passages, "passages")
    limit = highest_draw(files, "passage_id", config.seed, config.max_passages)
    limits, vocabulary = _checked_tokenizer(ctx, config)
    check_lengths(limits, max_len=config.max_len)
    tokenise = partial(_map_texts, config=config, limits=limits, limit=limit)
    _run(ctx, config, files, tokenise, partial(_reduce_texts, config=config, vocabulary=vocabulary), config.passages)


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


def _checked_tokenizer(ctx: Context, config: PackTextsConfig | PackGroupsConfig) -> tuple[Limits, str]:
    path = ctx.resolve(config.tokenizer)
    tokenizer = load_tokenizer(path)
    require_special_tokens(tokenizer, path)
    return model_limits(path), vocabulary_fingerprint(tokenizer)


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
    reduces = {
        f"epoch{epoch:03d}-bucket{bucket:04d}": {"epoch": epoch, "bucket": bucket, "files": tables}
        for epoch in range(config.epochs) for bucket in range(config.buckets)
    }  # fmt: skip
    ctx.draft.map(reduces, plan, name=f"{ctx.name}: plan", num_cpus=config.execution.num_cpus)
    done = ctx.draft.committed()
    _check_read({key: done[key] for key in maps}, {key: done[key] for key in reduces}, reduces)
    batches = sum(done[key]["facts"]["batches"] for key in reduces)
    if not batches:
        raise InputError(f"{ctx.name}: {ref}", "the plan is empty: no batch could be filled", "Give more rows to pack")
    ctx.log(f"{batches:,} batches in {config.epochs} epochs")


def _check_read(
    mapped: Mapping[str, dict[str, Any]], reduced: Mapping[str, dict[str, Any]], items: Mapping[str, dict[str, Any]]
) -> None:
    """Raises RuntimeError, naming the partition, if one read other rows than the token tables hold of its bucket."""
    for key, manifest in reduced.items():
        bucket = str(items[key]["bucket"])
        held = [part["facts"]["ids"][bucket] for part in mapped.values() if bucket in part["facts"]["ids"]]
        written = [sum(rows for rows, _ in held), add_checksums(ids for _, ids in held)]
        if manifest["facts"]["ids_read"] != written:
            rows, ids = manifest["facts"]["ids_read"]
            problem = f"it read {rows} rows with id sum {ids}; the token tables hold {written[0]} with {written[1]}"
            raise RuntimeError(f"{key}: {problem}")


def _map_groups(
    key: str, file: str, attempt: Attempt, *, config: PackGroupsConfig, limits: Limits, limit: int
) -> None:
    def chunk_tokens(chunk: pa.Table, tokenizer: PreTrainedTokenizerFast) -> tuple[pa.Table, dict[str, int]]:
        return tokenise_groups(
            chunk, tokenizer, file, query_max_len=config.query_max_len, passage_max_len=config.passage_max_len,
            seed=config.seed, buckets=config.buckets, min_negatives=config.min_negatives,
        )  # fmt: skip

    _map(file, attempt, config, limits, limit, (GROUP_COLUMNS, "query_id", TOKEN_GROUPS), chunk_tokens)


def _map_texts(
    key: str, file: str, attempt: Attempt, *, config: PackTextsConfig, limits: Limits, limit: int
) -> None:
    def chunk_tokens(chunk: pa.Table, tokenizer: PreTrainedTokenizerFast) -> tuple[pa.Table, dict[str, int]]:
        return tokenise_texts(chunk, tokenizer, file, max_len=config.max_len, seed=config.seed, buckets=config.buckets)

    _map(file, attempt, config, limits, limit, (TEXT_COLUMNS, "passage_id", TOKEN_TEXTS), chunk_tokens)


def _map(
    file: str, attempt: Attempt, config: PackTextsConfig | PackGroupsConfig, limits: Limits, limit: int,
    contract: tuple[tuple[str, ...], str, pa.Schema],
    chunk_tokens: Callable[[pa.Table, PreTrainedTokenizerFast], tuple[pa.Table, dict[str, int]]],
) -> None:  # fmt: skip
    columns, id_column, schema = contract
    tokenizer = load_tokenizer(limits.path)
    sources: dict[str, int] = {}
    ids: dict[str, list[Any]] = {}

    def parts() -> Iterator[pa.Table]:
        with open_parquet(file) as part:
            rows = read_kept(part, columns, file, config.execution.chunk_rows, id_column, config.seed, limit)
            for read, chunk in rows:
                table, drops = chunk_tokens(chunk, tokenizer)
                check_ids(limits, table, file)
                for count in chunk["source"].value_counts().to_pylist():
                    sources[count["values"]] = sources.get(count["values"], 0) + count["counts"]
                over = {"over_limit": read - len(chunk)} if read > len(chunk) else {}
                attempt.count(rows_in=read, drops={**drops, **over})
                for part_of_bucket in split_buckets(table):
                    bucket = str(part_of_bucket["bucket"][0])
                    before, own = ids.get(bucket, [0, "0"]), _identity(part_of_bucket)
                    ids[bucket] = [before[0] + own[0], add_checksums((before[1], own[1]))]
                    yield part_of_bucket

    attempt.write("tokens", parts(), schema)
    attempt.count(facts={"sources": sources, "ids": ids})


def _reduce_groups(
    key: str, item: dict[str, Any], attempt: Attempt, *, config: PackGroupsConfig, vocabulary: str
) -> None:
    epoch, bucket = item["epoch"], item["bucket"]
    table = _bucket(item, TOKEN_GROUPS)
    _check_unique(table["query_id"].to_numpy(), config.groups)
    lengths = length_buckets(
        config.length_edges, config.tokens_per_batch, config.batch_size, config.query_max_len, config.passage_max_len,
        config.group_size,
    )  # fmt: skip
    plan = plan_groups(
        as_groups(table, config.weights), group_size=config.group_size, batch_size=config.batch_size, seed=config.seed,
        epoch=epoch, bucket=bucket, lengths=lengths, mixed=config.batches == "mixed",
    )  # fmt: skip
    figures = Figures()
    attempt.write("plan", figures.watch(group_slices(table, plan.batches, epoch, config.slices)), PLAN_GROUPS)
    _finish(attempt, figures, len(plan.batches), table, config, vocabulary)
    attempt.count(drops={"alone_without_negative": plan.alone} if plan.alone else {})


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
    _finish(attempt, figures, len(batches), table, config, vocabulary)


def _bucket(item: dict[str, Any], schema: pa.Schema) -> pa.Table:
    files = [open_parquet(file) for file in item["files"]]
    try:
        return read_bucket(files, item["bucket"], schema)
    finally:
        for file in files:
            file.close()


def _finish(
    attempt: Attempt, figures: Figures, batches: int, table: pa.Table, config: PackTextsConfig | PackGroupsConfig,
    vocabulary: str,
) -> None:  # fmt: skip
    facts = {"ids_read": _identity(table), "slices": config.slices, "vocabulary": vocabulary}
    attempt.count(rows_out=figures.rows, facts={**figures.facts(batches), **facts}, histograms=figures.histograms)


def _identity(table: pa.Table) -> list[Any]:
    """Rows, and the sum of their ids; of texts that of a hash of passage and offset, so that pieces count."""
    if "offset" in table.column_names:
        ids = mix(table["passage_id"].to_numpy(), table["offset"].to_numpy())
    else:
        ids = table["query_id"].to_numpy()
    return [len(table), checksum([ids])]


def _check_unique(query_id: np.ndarray, ref: str) -> None:
    values, counts = np.unique(query_id, return_counts=True)
    if len(values) < len(query_id):
        remedy = "Name each file once, and give every group an id of its own"
        raise InputError(f"{ref}: query_id {values[counts.argmax()]}", "two groups have this id", remedy)
