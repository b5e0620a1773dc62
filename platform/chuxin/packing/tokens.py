"""Tokenising groups and passages into token tables, once for all epochs; and reading a bucket of them back.

A token table holds rows of several buckets; every row group holds one bucket only, so that a bucket is read without
the others. Leaves out: composing batches (plan.py) and where tables are written (pipeline.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from chuxin.errors import InputError
from chuxin.packing.draws import mix, rank_in_run
from chuxin.packing.plan import Groups, Passages, usable_positives
from chuxin.schema import KEEP, PLAN_GROUPS

PASSAGES_TYPE = PLAN_GROUPS.field("passages").type
TOKEN_GROUPS = pa.schema([
    ("bucket", pa.int32()), ("query_id", pa.int64()), ("query_hash", pa.int64()), ("source", pa.string()),
    ("query_ids", pa.list_(pa.int32())), ("positives", PASSAGES_TYPE), ("negatives", PASSAGES_TYPE),
])  # fmt: skip
TOKEN_TEXTS = pa.schema([
    ("bucket", pa.int32()), ("passage_id", pa.int64()), ("offset", pa.int32()), ("source", pa.string()),
    ("token_ids", pa.list_(pa.int32())),
])  # fmt: skip


def read_kept(
    file: pq.ParquetFile, columns: Sequence[str], where: str, chunk_rows: int, id_column: str, seed: int, limit: int
) -> Iterator[tuple[int, pa.Table]]:
    """Reads the rows whose status is "keep" and whose id's draw is within `limit`, in chunks.

    Args:
        file: A part of the input.
        columns: Those wanted besides `status`.
        where: Names the file in errors.
        chunk_rows: Rows read at a time.
        id_column: Its hash decides which rows a capped run takes.
        seed: Of that hash.
        limit: Highest hash taken.

    Yields:
        Rows to keep, and the table of those taken.

    Raises:
        InputError: A column is missing.
    """
    names = {*columns, "status"}
    missing = sorted(names - set(file.schema_arrow.names))
    if missing:
        raise InputError(where, f"it has no column `{missing[0]}`", "Give the artifact of the curate stage")
    for batch in file.iter_batches(chunk_rows, columns=sorted(names)):
        table = pa.Table.from_batches([batch])
        table = table.filter(pc.equal(table["status"], KEEP))
        draw = mix(seed, table[id_column].to_numpy())
        yield table.num_rows, table.filter(pa.array(draw <= np.uint64(limit))).combine_chunks()


def tokenise(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], max_len: int) -> pa.ListArray:
    """Tokenises texts with special tokens, cut off at `max_len`; equal texts are tokenised once."""
    texts = list(texts)
    place = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    if not place:
        return pa.array([], pa.list_(pa.int32()))
    ids = tokenizer(list(place), truncation=True, max_length=max_len, return_attention_mask=False)["input_ids"]
    unique = _lists(ids)
    if len(place) == len(texts):
        return unique
    return unique.take(pa.array([place[text] for text in texts], pa.int64()))


def tokenise_groups(
    chunk: pa.Table, tokenizer: PreTrainedTokenizerFast, where: str, *, query_max_len: int, passage_max_len: int,
    seed: int, buckets: int,
) -> tuple[pa.Table, dict[str, int]]:  # fmt: skip
    """Turns groups into the token table's rows, ordered by bucket.

    Returns:
        The table, and drops by reason: a group whose only positives repeat its query teaches nothing.

    Raises:
        InputError: A group has no positive; names its row.
    """
    columns = {"positives": chunk["positives"].combine_chunks(), "negatives": chunk["negatives"].combine_chunks()}
    empty = np.flatnonzero(pc.list_value_length(columns["positives"]).fill_null(0).to_numpy(zero_copy_only=False) == 0)
    if len(empty):
        query_id = chunk["query_id"][int(empty[0])]
        remedy = "Give every group a positive, or a status other than keep"
        raise InputError(f"{where}: query_id {query_id}", "the group has no positive", remedy)
    query_ids = tokenise(tokenizer, chunk["query"].to_pylist(), query_max_len)
    lists = {name: _tokenise_passages(tokenizer, column, passage_max_len) for name, column in columns.items()}
    bucket = (mix(seed, chunk["query_id"].to_numpy()) % np.uint64(buckets)).astype(np.int32)
    table = pa.table({
        "bucket": bucket, "query_id": chunk["query_id"], "query_hash": chunk["query_hash"],
        "source": chunk["source"], "query_ids": query_ids, **lists,
    }, schema=TOKEN_GROUPS)  # fmt: skip
    groups = as_groups(table, {})
    taught = np.bincount(groups.positives.group_P[usable_positives(groups)], minlength=len(table)) > 0
    dropped = int((~taught).sum())
    table = table.filter(pa.array(taught))
    return _by_bucket(table), {"query_is_positive": dropped} if dropped else {}


def tokenise_texts(
    chunk: pa.Table, tokenizer: PreTrainedTokenizerFast, *, max_len: int, seed: int, buckets: int
) -> tuple[pa.Table, dict[str, int]]:
    """Turns passages into the token table's rows, ordered by bucket; all pieces of a passage are in one bucket.

    Returns:
        The table, and drops by reason: a text without a single token.
    """
    texts = chunk["text"].to_pylist()
    encoded = tokenizer(texts, add_special_tokens=False, truncation=False, return_attention_mask=False, verbose=False)
    pieces, owner = [], []
    for index, ids in enumerate(encoded["input_ids"]):
        for piece in cut_evenly(ids, max_len - 2):
            pieces.append([tokenizer.cls_token_id, *piece, tokenizer.sep_token_id])
            owner.append(index)
    owner_R = np.array(owner, np.int64)
    id_N = chunk["passage_id"].to_numpy()
    lengths_R = np.array([len(piece) - 2 for piece in pieces], np.int64)
    before = np.cumsum(lengths_R) - lengths_R
    offset_R = before - before[np.arange(len(owner_R)) - rank_in_run(owner_R)] if len(owner_R) else before
    table = pa.table({
        "bucket": (mix(seed, id_N) % np.uint64(buckets)).astype(np.int32)[owner_R],
        "passage_id": id_N[owner_R], "offset": offset_R.astype(np.int32),
        "source": chunk["source"].combine_chunks().take(pa.array(owner_R)), "token_ids": _lists(pieces),
    }, schema=TOKEN_TEXTS)  # fmt: skip
    dropped = len(texts) - len(set(owner))
    return _by_bucket(table), {"no_tokens": dropped} if dropped else {}


def cut_evenly(ids: Sequence[int], most: int) -> list[Sequence[int]]:
    """Cuts a sequence into as few pieces of at most `most` as possible, of lengths that differ by at most one."""
    count = -(-len(ids) // most)
    bounds = [len(ids) * i // count for i in range(count + 1)] if count else [0]
    return [ids[a:b] for a, b in itertools.pairwise(bounds)]


def split_buckets(table: pa.Table) -> Iterator[pa.Table]:
    """Splits a table that is ordered by bucket, one part a bucket, for one row group each."""
    bucket = table["bucket"].to_numpy()
    edges = np.flatnonzero(np.r_[True, bucket[1:] != bucket[:-1]]).tolist() if len(bucket) else []
    for start, stop in itertools.pairwise([*edges, len(bucket)]):
        yield table.slice(start, stop - start)


def read_bucket(files: Iterable[pq.ParquetFile], bucket: int, schema: pa.Schema) -> pa.Table:
    """Reads one bucket's rows out of token tables, in the files' order."""
    parts = []
    for file in files:
        column = file.schema_arrow.get_field_index("bucket")
        groups = range(file.metadata.num_row_groups)
        own = [g for g in groups if file.metadata.row_group(g).column(column).statistics.min == bucket]
        if own:
            parts.append(file.read_row_groups(own))
    return pa.concat_tables(parts).combine_chunks() if parts else schema.empty_table()


def as_groups(table: pa.Table, weights: Mapping[str, float]) -> Groups:
    """Turns a token table into the arrays that plan.py works on."""
    names, source_N = np.unique(table["source"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    weight_S = np.array([weights.get(name, 1.0) for name in names.tolist()], np.float64)
    weight_N = weight_S[source_N] if len(names) else np.zeros(0)
    passages = (_as_passages(table[name]) for name in ("positives", "negatives"))
    return Groups(table["query_id"].to_numpy(), table["query_hash"].to_numpy(), source_N, weight_N, *passages)


def _as_passages(column: pa.ChunkedArray) -> Passages:
    flat = pc.list_flatten(column)
    group_P = pc.list_parent_indices(column).to_numpy()
    return Passages(group_P, *(pc.struct_field(flat, name).to_numpy() for name in ("passage_id", "text_hash")))


def _tokenise_passages(tokenizer: PreTrainedTokenizerFast, column: pa.ListArray, max_len: int) -> pa.ListArray:
    flat = column.flatten()
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    tokens = tokenise(tokenizer, flat.field("text").to_pylist(), max_len)
    fields = [flat.field("passage_id"), flat.field("text_hash"), tokens, flat.field("score")]
    struct = pa.StructArray.from_arrays(fields, fields=list(PASSAGES_TYPE.value_type))
    return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(lengths)], pa.int32()), struct)


def _lists(ids: Sequence[Sequence[int]]) -> pa.ListArray:
    offsets = np.r_[0, np.cumsum([len(i) for i in ids], dtype=np.int64)]
    flat = np.fromiter(itertools.chain.from_iterable(ids), np.int32, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat))


def _by_bucket(table: pa.Table) -> pa.Table:
    order = np.argsort(table["bucket"].to_numpy(), kind="stable")
    return table.take(pa.array(order))
