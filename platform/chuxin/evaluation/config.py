"""Config of the evaluate stage."""

from __future__ import annotations

import re
from dataclasses import dataclass

from chuxin.config import ModelRef, Ref

BM25 = "BM25"
"""The baseline's display name; no model may take it."""

_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class EvaluateExecution:
    """How the work is done: changes nothing in the scores beyond float rounding."""

    batch_tokens: int = 16384
    """Tokens a forward pass, padding included."""

    num_cpus: float = 1
    """CPUs that one (task, model) reserves."""

    threads: int = 1
    """Threads of the matrix library in one (task, model)."""

    device: str = "cpu"
    """"cpu" or "cuda"; on a GPU, raise `num_cpus` until no more tasks run at once than fit its memory."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Which models are scored on which benchmarks, and how."""

    models: dict[str, ModelRef]
    """Models by display name, in the order of tables and figures: each is compared with those before it."""

    tasks: dict[str, Ref]
    """Benchmark folders by display name: corpus, queries and qrels in BEIR's layout."""

    query_max_len: int
    """Tokens of a query, special tokens included; longer queries are cut."""

    passage_max_len: int
    """Tokens of a passage, special tokens included; longer passages are cut."""

    seed: int
    """Seeds the sample of queries and the bootstrap."""

    bm25: bool = True
    """Also score BM25 over character bigrams, the baseline that any model has to beat."""

    max_queries: int | None = None
    """Score a random sample of this many queries a task; null scores all."""

    dtype: str = "float32"
    """Precision of the model: float32 or bfloat16. Vectors and products are float32 either way."""

    top_k: int = 100
    """Results kept a query; recall@100 needs 100."""

    bootstrap_samples: int = 10_000
    """Resamples of the queries behind each 95 % interval; at 10,000 an end moves by about 1 % of the
    width."""

    execution: EvaluateExecution = EvaluateExecution()
    """How, not what: not part of the fingerprint."""

    def __post_init__(self) -> None:
        """Names become file names and keys, so they are checked where they enter."""
        for name in (*self.models, *self.tasks):
            if not _NAME.fullmatch(name):
                raise ValueError(f"the name {name!r} may hold only letters, digits and . _ + -")
        if BM25 in self.models:
            raise ValueError(f"{BM25} is the baseline's name; call the model something else")
        if not self.tasks or not (self.models or self.bm25):
            raise ValueError("there must be a task, and a model or bm25")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError("dtype must be float32 or bfloat16")
        if self.top_k < 100 or self.bootstrap_samples < 100:
            raise ValueError("top_k and bootstrap_samples must be at least 100")

    def systems(self) -> list[str]:
        """Returns the display names in order: BM25 first if it is scored, then the models."""
        return ([BM25] if self.bm25 else []) + list(self.models)
