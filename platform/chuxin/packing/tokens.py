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
import xxhash
from transformers import PreTrainedTokenizerFast

from chuxin.errors import InputError
from chuxin.ids import MASK_63
from chuxin.packing.checks import check_groups, check_texts
from chuxin.packing.draws import mix, rank_in_run
from chuxin.packing.pieces import cut, sentence_ends
from chuxin.packing.plan import Groups, Passages, count_negatives, usable_positives
from chuxin.schema import KEEP, PLAN_GROUPS

PORTION = 1 << 20
"""Characters given to the tokenizer at once."""
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


def tokenise(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_len: int) -> pa.ListArray:
    """Tokenises texts with special tokens, cut off at `max_len`; equal texts are tokenised once."""
    place = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    ids: list[list[int]] = []
    for part in _portions(list(place)):
        ids += tokenizer(part, truncation=True, max_length=max_len, return_attention_mask=False)["input_ids"]
    flat_T, bounds_N1 = _flatten(ids)
    unique = pa.ListArray.from_arrays(pa.array(bounds_N1, pa.int32()), pa.array(flat_T))
    if len(place) == len(texts):
        return unique
    return unique.take(pa.array([place[text] for text in texts], pa.int64()))


def tokenise_groups(
    chunk: pa.Table, tokenizer: PreTrainedTokenizerFast, where: str, *, query_max_len: int, passage_max_len: int,
    seed: int, buckets: int, min_negatives: int = 0,
) -> tuple[pa.Table, dict[str, int]]:  # fmt: skip
    """Turns groups into the token table's rows, ordered by bucket.

    Returns:
        The table, and drops by reason: a group whose only positives repeat its query teaches nothing; one may have
        fewer negatives than `min_negatives`.

    Raises:
        InputError: A group has no positive, no query, or a passage without text; names its row.
    """
    columns = {"positives": chunk["positives"].combine_chunks(), "negatives": chunk["negatives"].combine_chunks()}
    check_groups(chunk["query_id"], chunk["query"].combine_chunks(), columns, where)
    query_ids = tokenise(tokenizer, chunk["query"].to_pylist(), query_max_len)
    lists = {name: _tokenise_passages(tokenizer, column, passage_max_len) for name, column in columns.items()}
    bucket = (mix(seed, chunk["query_id"].to_numpy()) % np.uint64(buckets)).astype(np.int32)
    table = pa.table({
        "bucket": bucket, "query_id": chunk["query_id"],
        "query_hash": seen_hashes(chunk["query_hash"].combine_chunks(), query_ids, query_max_len),
        "source": pc.fill_null(chunk["source"], ""), "query_ids": query_ids, **lists,
    }, schema=TOKEN_GROUPS)  # fmt: skip
    groups = as_groups(table, {})
    taught = np.bincount(groups.positives.group_P[usable_positives(groups)], minlength=len(table)) > 0
    short = taught & (count_negatives(groups) < min_negatives)
    drops = {"query_is_positive": int((~taught).sum()), "few_negatives": int(short.sum())}
    kept = _by_bucket(table.filter(pa.array(taught & ~short)))
    return kept, {reason: count for reason, count in drops.items() if count}


def tokenise_texts(
    chunk: pa.Table, tokenizer: PreTrainedTokenizerFast, where: str, *, max_len: int, seed: int, buckets: int
) -> tuple[pa.Table, dict[str, int]]:
    """Turns passages into the token table's rows, ordered by bucket; all pieces of a passage are in one bucket.

    A text longer than `max_len` is cut at sentence ends (pieces.py): its pieces, joined, are its tokens. At 512
    tokens 500,000 tokens/s come out on one core, where every text is long (590,000 if it is cut anywhere).

    Returns:
        The table, and drops by reason: a text without a single token.

    Raises:
        InputError: A passage has no text at all (null); names it.
    """
    check_texts(chunk["passage_id"], chunk["text"].combine_chunks(), where)
    flat, begins, owners = [], [], []
    first = first_token = 0
    for part in _portions(chunk["text"].to_pylist()):
        encoded = tokenizer(part, add_special_tokens=False, return_attention_mask=False, verbose=False)
        flat_T, bounds_N1 = _flatten(encoded["input_ids"])
        for index, (begin, end) in enumerate(itertools.pairwise(bounds_N1.tolist())):
            if end - begin <= max_len - 2:
                own = [begin] if end > begin else []
            else:
                offsets = itertools.chain.from_iterable(encoded.encodings[index].offsets)
                end_L = np.fromiter(offsets, np.int64, 2 * (end - begin))[1::2]
                bounds = cut(end - begin, sentence_ends(part[index], end_L), max_len - 2)
                own = [begin + bound for bound in bounds[:-1]]
            begins += [first_token + bound for bound in own]
            owners += [first + index] * len(own)
        flat.append(flat_T)
        first, first_token = first + len(part), first_token + len(flat_T)
    begin_R, owner_R = np.array(begins, np.int64), np.array(owners, np.int64)
    token_ids = _with_ends(np.concatenate([*flat, np.zeros(0, np.int32)]), begin_R, tokenizer)
    id_N = chunk["passage_id"].to_numpy()
    offset_R = begin_R - begin_R[np.arange(len(owner_R)) - rank_in_run(owner_R)]
    table = pa.table({
        "bucket": (mix(seed, id_N) % np.uint64(buckets)).astype(np.int32)[owner_R],
        "passage_id": id_N[owner_R], "offset": offset_R.astype(np.int32),
        "source": pc.fill_null(chunk["source"], "").combine_chunks().take(pa.array(owner_R)), "token_ids": token_ids,
    }, schema=TOKEN_TEXTS)  # fmt: skip
    dropped = len(chunk) - len(np.unique(owner_R))
    return _by_bucket(table), {"no_tokens": dropped} if dropped else {}


def split_buckets(table: pa.Table) -> Iterator[pa.Table]:
    """Splits a table that is ordered by bucket, one part a bucket, for one row group each."""
    bucket = table["bucket"].to_numpy()
    edges = np.flatnonzero(np.r_[True, bucket[1:] != bucket[:-1]]).tolist() if len(bucket) else []
    for start, stop in itertools.pairwise([*edges, len(bucket)]):
        yield table.slice(start, stop - start)


def read_bucket(files: Iterable[pq.ParquetFile], bucket: int, schema: pa.Schema) -> pa.Table:
    """Reads one bucket's rows out of token tables, in the files' order.

    It takes 4.3 bytes a token, and 12 at the peak, while row groups are decoded and joined.
    """
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
    lengths = pc.list_value_length(pc.struct_field(flat, "token_ids")).to_numpy()
    return Passages(group_P, *(pc.struct_field(flat, name).to_numpy() for name in ("passage_id", "text_hash")), lengths)


def _tokenise_passages(tokenizer: PreTrainedTokenizerFast, column: pa.ListArray, max_len: int) -> pa.ListArray:
    flat = column.flatten()
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    tokens = tokenise(tokenizer, flat.field("text").to_pylist(), max_len)
    hashes = seen_hashes(flat.field("text_hash"), tokens, max_len)
    fields = [flat.field("passage_id"), hashes, tokens, flat.field("score")]
    struct = pa.StructArray.from_arrays(fields, fields=list(PASSAGES_TYPE.value_type))
    return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(lengths)], pa.int32()), struct)


def seen_hashes(hashes: pa.Array, tokens: pa.ListArray, max_len: int) -> pa.Array:
    """Returns the hashes int64 by which texts count as the same in a plan: of what the model sees of them.

    A text that fills `max_len` may have been cut; its hash becomes that of its token ids, so that two which differ
    behind the cut only are one text and never each other's positive and negative.

    Args:
        hashes: int64, of the whole texts.
        tokens: list<int32>, special tokens included.
        max_len: What texts were cut to.
    """
    flat, bounds = tokens.flatten().to_numpy(), np.r_[0, np.cumsum(pc.list_value_length(tokens).to_numpy())]
    made = hashes.to_numpy().copy()
    for row in np.flatnonzero(np.diff(bounds) == max_len).tolist():
        made[row] = xxhash.xxh3_64_intdigest(flat[bounds[row] : bounds[row + 1]].tobytes()) & MASK_63
    return pa.array(made)


def _portions(texts: Sequence[str]) -> Iterator[list[str]]:
    """Cuts into runs of about `PORTION` characters: a tokenizer holds some 200 bytes a token of what it is given."""
    ends = np.cumsum([len(text) for text in texts]) // PORTION
    edges = [0, *(np.flatnonzero(np.diff(ends)) + 1).tolist(), len(texts)]
    for start, stop in itertools.pairwise(edges):
        if stop > start:
            yield list(texts[start:stop])


def _flatten(ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    bounds = np.r_[0, np.cumsum([len(i) for i in ids], dtype=np.int64)]
    return np.fromiter(itertools.chain.from_iterable(ids), np.int32, count=int(bounds[-1])), bounds


def _with_ends(flat_T: np.ndarray, begin_R: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> pa.ListArray:
    """Sets [CLS] and [SEP] around the pieces that begin at these places and fill all of `flat_T`."""
    length_R = np.diff(np.r_[begin_R, len(flat_T)]) + 2
    bounds_R1 = np.r_[0, np.cumsum(length_R)]
    ids_T = np.empty(int(bounds_R1[-1]), np.int32)
    text_T = np.ones(len(ids_T), bool)
    for places, special in ((bounds_R1[:-1], tokenizer.cls_token_id), (bounds_R1[1:] - 1, tokenizer.sep_token_id)):
        ids_T[places], text_T[places] = special, False
    ids_T[text_T] = flat_T
    return pa.ListArray.from_arrays(pa.array(bounds_R1, pa.int32()), pa.array(ids_T))


def _by_bucket(table: pa.Table) -> pa.Table:
    order = np.argsort(table["bucket"].to_numpy(), kind="stable")
    return table.take(pa.array(order))
