"""Configs of the mine, rerank and select stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from chuxin.config import ModelRef, Ref

Miner = Literal["dense", "sparse", "bm25"]


@dataclass(frozen=True)
class MineExecution:
    """How mining runs; changes nothing in its result beyond float rounding."""

    num_cpus: float = 1
    """CPUs of one task."""
    threads: int = 1
    """Threads of the matrix library in one task."""
    batch_tokens: int = 16384
    """Tokens of a forward pass."""
    passage_block: int = 8192
    """Passages scored together."""
    use_gpu: bool = False
    """Encode and search on CUDA; a task then reserves one GPU."""


@dataclass(frozen=True)
class MineConfig:
    """Searches all passages for every query and keeps the best of each miner."""

    groups: tuple[Ref, ...]
    """Artifacts (or Parquet files) with a table `groups`; rows whose status is "keep" are taken."""
    passages: Ref
    """Artifact (or Parquet files) with a table `passages`; rows whose status is "keep" are searched. The groups' own
    passages are searched too, whatever they hold that this table does not."""
    model: ModelRef
    """The encoder that mines: the best one there is (Chuxin-Embedding mines with its own current model)."""
    query_max_len: int
    """Most tokens of a query, special tokens included."""
    passage_max_len: int
    """Most tokens of a passage, special tokens included."""
    keep: int = 200
    """Candidates kept of each query and miner (hn_mine's default window ends at 210; LightOn keep hundreds and choose
    later)."""
    miners: tuple[Miner, ...] = ("dense", "bm25")
    """What searches: "dense" always; "sparse", the model's lexical weights; "bm25", over character bigrams."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model; the store holds float16 vectors either way, products are summed in float32."""
    shard_passages: int = 1_000_000
    """Passages of a shard of the store, up to a row group more or less: one task encodes them. 2 KB each at width 1024
    and their texts."""
    query_block: int = 4096
    """Queries of a partition, at most by a row group's rest."""
    spans: int = 4
    """Parts of the store; a search actor holds one at a time, on a GPU in its memory as far as it has room."""
    execution: MineExecution = field(default_factory=MineExecution)

    def __post_init__(self) -> None:
        _at_least_one(self, ("keep", "shard_passages", "query_block", "spans"))
        if not self.groups:
            raise ValueError("`groups` must name at least one artifact")
        if "dense" not in self.miners or len(set(self.miners)) < len(self.miners):
            raise ValueError("`miners` must hold \"dense\", and each miner once")
        if min(self.query_max_len, self.passage_max_len) < 3:
            raise ValueError("`query_max_len` and `passage_max_len` must be at least 3: two special tokens and a text")


@dataclass(frozen=True)
class RerankExecution:
    """How reranking runs; changes nothing in its result beyond float rounding."""

    num_cpus: float = 1
    """CPUs of one task."""
    threads: int = 1
    """Threads of the matrix library in one task."""
    batch_tokens: int = 16384
    """Tokens of a forward pass; halved by itself where memory runs out."""
    chunk_pairs: int = 16384
    """Pairs that are tokenised and sorted by length together, at least one query's."""
    use_gpu: bool = False
    """Score on CUDA; a task then reserves one GPU."""


@dataclass(frozen=True)
class RerankConfig:
    """Scores the candidates of every query with a cross-encoder."""

    candidates: Ref
    """The mine stage (or whatever wrote a table `candidates`)."""
    store: Ref
    """The mine stage: its passage store holds the texts."""
    model: ModelRef
    """The cross-encoder (the published recipe: bge-reranker-v2-m3)."""
    query_max_len: int
    """Most tokens of a query, special tokens included."""
    passage_max_len: int
    """Most tokens of a passage, special tokens included (published: 512 of query and passage together)."""
    top_k: int | None = None
    """Candidates of a query that are scored, those of the best rank by any miner; the group's own passages always are.
    Null: all."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the cross-encoder."""
    execution: RerankExecution = field(default_factory=RerankExecution)

    def __post_init__(self) -> None:
        if self.top_k is not None:
            _at_least_one(self, ("top_k",))
        if min(self.query_max_len, self.passage_max_len) < 3:
            raise ValueError("`query_max_len` and `passage_max_len` must be at least 3: two special tokens and a text")


@dataclass(frozen=True)
class PositiveRule:
    """Which candidates become positives."""

    mined: bool = True
    """Take mined passages too; false leaves the group's own ones alone."""
    first_rank: int = 1
    """Best rank of a mined one."""
    last_rank: int = 15
    """Worst rank of a mined one (published: the top 15)."""
    above: float | None = 1.0
    """A positive scores higher, the group's own ones too (published: 1 on raw logits); null sets no bound."""
    below_given: float | None = None
    """A mined one may score this much less than the best of the group's own that stayed; null sets no bound."""
    most: int = 15
    """Positives of a group, the group's own first, then the best."""


@dataclass(frozen=True)
class NegativeRule:
    """Which candidates become negatives."""

    first_rank: int = 20
    """Best rank (published: 20; the published script: 10)."""
    last_rank: int = 200
    """Worst rank (published: 200; the published script: 210)."""
    below: float | None = 0.0
    """A negative scores lower (published: 0 on raw logits); null sets no bound."""
    at_least: float | None = None
    """And no lower than this: what is far off teaches little; null sets no bound."""
    relative_margin: float | None = 0.95
    """A mined negative's dense score is below this share of the least dense score among the group's own positives
    that stayed (NV-Retriever: 0.95, of the positive); null sets no bound."""
    absolute_margin: float | None = None
    """A mined negative's dense score is at least this much below it; null sets no bound."""
    most: int = 15
    """Negatives of a group (published: 15): false positives first, then the group's own, then mined ones."""
    draw: Literal["random", "hardest"] = "random"
    """Which of the mined ones: drawn by the seed (published), or those of the highest score."""
    own: bool = True
    """The group's own negatives stay in if their score allows; neither rank nor margins are asked of them."""
    false_positives: bool = True
    """An own positive that scores under `below` becomes a negative (published); false drops it."""
    random_fill: bool = False
    """Fill up with passages drawn from the whole store. Each stands in the table `filled`, and has no score: nobody
    has looked at it."""


@dataclass(frozen=True)
class SelectExecution:
    """How selecting runs; changes nothing in its result."""

    num_cpus: float = 1
    """CPUs of one task."""


@dataclass(frozen=True)
class SelectConfig:
    """Chooses positives and negatives among scored candidates: cheap, so thresholds can be tried again and again."""

    candidates: Ref
    """The rerank stage, or relabel behind it, or mine if `score` is "dense"."""
    store: Ref
    """The mine stage: its passage store holds the texts."""
    seed: int
    """Seed of the draws."""
    score: Literal["rerank", "dense"] = "rerank"
    """What bounds compare, and what becomes the teacher's score."""
    rank_by: Literal["best", "dense", "sparse", "bm25"] = "best"
    """Whose ranks the windows mean; "best": the best by any miner."""
    positives: PositiveRule = field(default_factory=PositiveRule)
    negatives: NegativeRule = field(default_factory=NegativeRule)
    use_relabel: bool = True
    """Where a language model has said yes or no, its word replaces the bounds on the score."""
    round_trip: Mapping[Miner, int] = field(default_factory=dict)
    """Keep a group only if each of these miners ranks one of its own positives within so many, e.g. {bm25: 20}."""
    round_trip_sources: str = "synthetic-"
    """The round trip is asked of groups whose source begins so; "" means all."""
    min_positives: int = 1
    """A group with fewer gets status "no_positive"."""
    min_negatives: int = 1
    """A group with fewer gets status "no_negative"."""
    execution: SelectExecution = field(default_factory=SelectExecution)

    def __post_init__(self) -> None:
        for name, rule in (("positives", self.positives), ("negatives", self.negatives)):
            if not 1 <= rule.first_rank <= rule.last_rank:
                raise ValueError(f"`{name}`: ranks must rise from 1, not {rule.first_rank} to {rule.last_rank}")
            if rule.most < 1:
                raise ValueError(f"`{name}.most` must be at least 1")
        above, below = self.positives.above, self.negatives.below
        if above is not None and below is not None and above < below:
            raise ValueError("`positives.above` must not be under `negatives.below`: a passage would be both")
        if self.min_positives < 1 or self.min_negatives < 0:
            raise ValueError("`min_positives` must be at least 1, and `min_negatives` at least 0")


def _at_least_one(config: MineConfig | RerankConfig, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1")
