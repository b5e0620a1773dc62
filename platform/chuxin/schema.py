"""Row contracts: the tables that stages exchange, one pyarrow schema each, one word a thing.

Ids are int64 >= 0 (see ids.py). Nothing is deleted between tables: `status` is "keep" or the reason why a row fell.
"""

from __future__ import annotations

import pyarrow as pa

KEEP = "keep"


def _schema(**fields: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in fields.items()])


DOCUMENTS = _schema(
    document_id=pa.int64(), source=pa.string(), file=pa.string(), position=pa.int64(), title=pa.string(),
    text=pa.string(), url=pa.string(), license=pa.string(), meta=pa.string(),
)
"""Raw texts as they came; `position` is a byte offset or element index in `file`, `meta` is JSON."""

PASSAGES = _schema(
    passage_id=pa.int64(), document_id=pa.int64(), offset=pa.int32(), source=pa.string(), title=pa.string(),
    text=pa.string(), text_hash=pa.int64(), n_chars=pa.int32(), han_share=pa.float32(), holds_gold=pa.bool_(),
    status=pa.string(),
)
"""Normalised passages; `offset` counts code points into the normalised document."""

PASSAGE = pa.struct([
    ("passage_id", pa.int64()), ("text", pa.string()), ("text_hash", pa.int64()), ("score", pa.float32()),
])
"""A passage inside a group: its teacher score (null if none) stands beside it, so it cannot slip."""

LINEAGE = pa.struct([("file", pa.string()), ("position", pa.int64()), ("passage_id", pa.int64())])
"""Where a group came from: the raw file and position of a labelled one; the passage of one that an LLM wrote."""

GROUPS = _schema(
    query_id=pa.int64(), query=pa.string(), query_hash=pa.int64(), positives=pa.list_(PASSAGE),
    negatives=pa.list_(PASSAGE), source=pa.string(), status=pa.string(),
    lineage=LINEAGE,
)
"""A query with its labelled passages."""

WRITTEN = pa.struct([
    ("query", pa.string()), ("kind", pa.string()), ("difficulty", pa.string()), ("length", pa.string()),
    ("category", pa.string()), ("role", pa.string()), ("scene", pa.string()),
    ("seed", pa.int64()), ("status", pa.string()),
])
"""A query as an LLM wrote it and what was asked of it; `seed` is that of the answer it stands in."""

REJECTED = pa.struct([("seed", pa.int64()), ("reason", pa.string()), ("raw", pa.string())])
"""An answer of an LLM that could not be used, as it came, and why."""

SYNTHETIC = _schema(
    passage_id=pa.int64(), document_id=pa.int64(), source=pa.string(), text=pa.string(), text_hash=pa.int64(),
    model=pa.string(), prompt_hash=pa.string(), seed=pa.int64(), attempts=pa.int32(), queries=pa.list_(WRITTEN),
    prompt_tokens=pa.int64(), output_tokens=pa.int64(), status=pa.string(), error=pa.string(),
    rejected=pa.list_(REJECTED),
)
"""One row a passage: what an LLM was asked about it and wrote. `text` is what it saw, and what becomes the positive;
`rejected` are the answers that were asked for again, or given up."""

VERDICT = pa.struct([
    ("query_id", pa.int64()), ("query", pa.string()), ("kind", pa.string()), ("criterion", pa.string()),
    ("verdict", pa.string()), ("score", pa.float32()), ("reason", pa.string()), ("prompt_hash", pa.string()),
])
"""What became of one query: `reason` is the rule's or criterion's name it fell by, "keep" otherwise; `score` is the
verdict's probability of "yes", null where no LLM was asked."""

JUDGED = _schema(
    passage_id=pa.int64(), source=pa.string(), model=pa.string(), verdicts=pa.list_(VERDICT), status=pa.string(),
)
"""One row a passage of SYNTHETIC, in its order; the accepted queries stand in a table of GROUPS beside it."""

CANDIDATE = pa.struct([
    ("passage_id", pa.int64()), ("text_hash", pa.int64()), ("dense", pa.float32()), ("dense_rank", pa.int32()),
    ("sparse", pa.float32()), ("sparse_rank", pa.int32()), ("bm25", pa.float32()), ("bm25_rank", pa.int32()),
    ("given", pa.bool_()), ("rerank", pa.float32()), ("relabel", pa.string()),
])
"""A passage that a miner found for a query, or that its group came with, found or not. `dense` stands for every one;
the other scores and all ranks (from 1) are null where that miner did not find it. Ranks count all that a miner found,
the group's own positives too. `given`: an own positive; own negatives are candidates that are not. `rerank`: a
cross-encoder's raw logit, null where it was not asked. `relabel`: what an LLM says of it, "yes" or "no"."""

CANDIDATES = _schema(
    query_id=pa.int64(), query=pa.string(), query_hash=pa.int64(), source=pa.string(),
    positives=pa.list_(PASSAGE), negatives=pa.list_(PASSAGE), candidates=pa.list_(CANDIDATE),
    lineage=LINEAGE,
)
"""A group with all that was mined for it, best dense rank first. The texts stand in the mine stage's passage store."""

REJECTS = _schema(
    source=pa.string(), file=pa.string(), line=pa.int64(), position=pa.int64(), reason=pa.string(), raw=pa.string(),
)
"""Lines set aside at ingest; `line` counts from 1, `raw` holds the first 2,000 characters."""

PLAN_GROUPS = _schema(
    epoch=pa.int32(), batch=pa.int32(), slice=pa.int16(), row=pa.int32(), query_id=pa.int64(), source=pa.string(),
    query_hash=pa.int64(), query_ids=pa.list_(pa.int32()), lengths=pa.list_(pa.int32()),
    passages=pa.list_(pa.struct([
        ("passage_id", pa.int64()), ("text_hash", pa.int64()), ("token_ids", pa.list_(pa.int32())),
        ("score", pa.float32()),
    ])),
)
"""A contrastive batch plan: rows of a global batch, cut into slices; passages[0] is the positive.

`lengths` are the tokens of the query and of each passage, in order: what ranks need to know of each other's rows.
"""

PLAN_TEXTS = _schema(
    epoch=pa.int32(), batch=pa.int32(), slice=pa.int16(), row=pa.int32(), passage_id=pa.int64(), offset=pa.int32(),
    source=pa.string(), length=pa.int32(), token_ids=pa.list_(pa.int32()),
)
"""A RetroMAE batch plan: sequences of `length` tokens, special ones included; `offset` counts tokens of the passage."""

EVAL = _schema(
    model=pa.string(), task=pa.string(), query_id=pa.string(), kind=pa.string(), ndcg_at_10=pa.float32(),
    recall_at_100=pa.float32(),
)
"""One row a query, task and model."""
