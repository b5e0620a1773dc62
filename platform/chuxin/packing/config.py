"""Configs of the two pack stages: texts for RetroMAE, groups for contrastive training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from chuxin.config import ModelRef, Ref


@dataclass(frozen=True)
class PackExecution:
    """How packing runs; changes nothing in the plan."""

    num_cpus: float = 1
    """CPUs of one task."""
    chunk_rows: int = 8192
    """Rows tokenised at a time; bounds the memory of a task."""


@dataclass(frozen=True)
class PackTextsConfig:
    """Passages become RetroMAE batches: tokenised once, packed to a token budget anew for every epoch."""

    passages: Ref
    """Artifact (or Parquet files) with a table `passages`; rows whose status is "keep" are taken."""
    tokenizer: ModelRef
    """The model whose tokenizer is used; training must start from a model with the same vocabulary."""
    max_len: int
    """Most tokens of a row, special tokens included. A longer passage is cut into pieces at sentence ends."""
    tokens_per_batch: int
    """Tokens of a global batch, padding not counted."""
    epochs: int
    """How often each text is used."""
    seed: int
    """Seed of the buckets, of the order and of every draw."""
    slices: int = 64
    """Parts a global batch is cut into; the number of training workers must not exceed it."""
    buckets: int = 1
    """Shuffle partitions. One is planned in memory, 12 bytes a token at the peak: up to about 2 * 10^8 tokens each."""
    max_passages: int | None = None
    """At most this many passages, drawn by the hash of their ids; null takes all."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """How often an epoch uses each text of a source: 1 (the default) once, 0.2 a fifth of them, 2 each twice."""
    execution: PackExecution = field(default_factory=PackExecution)

    def __post_init__(self) -> None:
        _check(self, ("max_len", "tokens_per_batch", "epochs", "slices", "buckets"), minimum_len="max_len")
        if self.tokens_per_batch < self.max_len:
            raise ValueError(f"`tokens_per_batch` {self.tokens_per_batch} does not hold a row of `max_len`")


@dataclass(frozen=True)
class PackGroupsConfig:
    """Groups become contrastive batches: one source a batch, no text twice in it, drawn anew for every epoch."""

    groups: Ref
    """Artifact (or Parquet files) with a table `groups`; rows whose status is "keep" are taken."""
    tokenizer: ModelRef
    """The model whose tokenizer is used; training must start from a model with the same vocabulary."""
    query_max_len: int
    """Most tokens of a query, special tokens included; the rest is cut off (FlagEmbedding: 32)."""
    passage_max_len: int
    """Most tokens of a passage, special tokens included; the rest is cut off (FlagEmbedding: 128)."""
    group_size: int
    """Passages of a query: 1 positive and up to `group_size` - 1 of its negatives, never filled with others."""
    min_negatives: int = field(default=0, kw_only=True)
    """A group with fewer negatives of its own is left out and counted; rerankers need 1."""
    batch_size: int
    """Queries of a global batch, at most: with in-batch negatives this is part of the objective."""
    epochs: int
    """How often each query is used."""
    seed: int
    """Seed of the buckets, of the order and of every draw."""
    slices: int = 64
    """Parts a global batch is cut into; the number of training workers must not exceed it."""
    buckets: int = 1
    """Shuffle partitions. One is planned in memory, 12 bytes a token at the peak (25 KB a group of 8 passages with
    2,000 tokens): up to about 10^5 such groups each."""
    max_groups: int | None = None
    """At most this many groups, drawn by the hash of their ids; null takes all."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """How often an epoch uses each group of a source: 1 (the default) once, 0.2 a fifth of them, 2 each twice."""
    batches: Literal["source", "mixed"] = "source"
    """Rows of one source a batch (BGE-M3), or of all sources in the proportion of their rows and weights."""
    length_edges: tuple[int, ...] = ()
    """Upper bounds of length buckets, in tokens of a row's longest passage, rising and below `passage_max_len`: a batch
    holds rows of one bucket (BGE-M3, table 9: 500, 1000, 2000, … 7000). None: one bucket."""
    tokens_per_batch: int | None = None
    """Budget that lowers `batch_size` for long texts: a bucket's batches have as many rows as it holds if each is as
    long as the bucket allows, at least 2 (BGE-M3, table 9, from 1152 down to 192). Null: `batch_size` everywhere."""
    execution: PackExecution = field(default_factory=PackExecution)

    def __post_init__(self) -> None:
        fields = ("query_max_len", "passage_max_len", "group_size", "batch_size", "epochs", "slices", "buckets")
        _check(self, fields, minimum_len="query_max_len")
        _check(self, (), minimum_len="passage_max_len")
        edges = (*self.length_edges, self.passage_max_len)
        if any(low >= high for low, high in itertools.pairwise(edges)) or edges[0] < 3:
            raise ValueError("`length_edges` must rise, from 3 to below `passage_max_len`")
        if self.tokens_per_batch is not None and self.tokens_per_batch < 1:
            raise ValueError("`tokens_per_batch` must be at least 1")
        if not 0 <= self.min_negatives < self.group_size:
            raise ValueError("`min_negatives` must be from 0 to `group_size` - 1")
        if self.batch_size < 2:
            raise ValueError("`batch_size` must be at least 2: the other rows of a batch are the negatives")


def _check(config: PackTextsConfig | PackGroupsConfig, positive: tuple[str, ...], minimum_len: str) -> None:
    for name in positive:
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1")
    if getattr(config, minimum_len) < 3:
        raise ValueError(f"`{minimum_len}` must be at least 3: two special tokens and one of the text")
    for source, weight in config.weights.items():
        if weight < 0:
            raise ValueError(f"the weight of source `{source}` is negative")
