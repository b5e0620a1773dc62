"""Config of the evaluate stage."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from chuxin.config import ModelRef, Ref

BM25 = "BM25"
"""The baseline's display name; no model may take it."""

Output = Literal["dense", "sparse", "multivector", "hybrid"]
"""What a model's passages are ordered by; hybrid is dense + 0.3 sparse + multi-vector (Chen et al. 2024)."""

_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class EvaluateExecution:
    """How the work is done: changes nothing in the scores beyond float rounding."""

    batch_tokens: int = 16384
    """Tokens a forward pass."""

    num_cpus: float = 1
    """CPUs that one (task, model) reserves."""

    threads: int = 1
    """Threads of the matrix library in one (task, model)."""

    device: str = "cpu"
    """"cpu" or "cuda"; on a GPU, raise `num_cpus` until no more tasks run at once than fit its memory."""


@dataclass(frozen=True)
class Reranking:
    """A cross-encoder that orders the first results of a model anew."""

    model: ModelRef
    """The cross-encoder."""

    first: str
    """Display name of the model whose dense results it reads."""

    top_k: int = 50
    """How many of them; the others keep their places behind."""


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

    outputs: dict[str, tuple[Output, ...]] = field(default_factory=dict)
    """What a model with trained heads is scored by, by its display name; `dense` for models not named. A row each:
    "refined", "refined-sparse" …; sparse searches all passages, multivector and hybrid order the dense results anew."""

    rerankers: dict[str, Reranking] = field(default_factory=dict)
    """Cross-encoders by display name; each is compared with the model whose results it orders."""

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
        for name in (*self.models, *self.tasks, *self.rerankers):
            if not _NAME.fullmatch(name):
                raise ValueError(f"the name {name!r} may hold only letters, digits and . _ + -")
        systems = self.systems()
        twice = next((name for name in systems if systems.count(name) > 1), None)
        if BM25 in (*self.models, *self.rerankers):
            raise ValueError(f"{BM25} is the baseline's name; call the model something else")
        if twice is not None:
            raise ValueError(f"{twice!r} must be the name of one system only")
        named = (*self.outputs, *(reranking.first for reranking in self.rerankers.values()))
        unknown = next((name for name in named if name not in self.models), None)
        if unknown is not None:
            raise ValueError(f"{unknown!r}, in `outputs` or `rerankers`, must be the name of a model")
        if not all(self.outputs.values()):
            raise ValueError("the `outputs` of a model must be at least one")
        if not self.tasks or not (self.models or self.bm25):
            raise ValueError("there must be a task, and a model or bm25")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError("dtype must be float32 or bfloat16")
        if self.top_k < 100 or self.bootstrap_samples < 100 or any(r.top_k < 2 for r in self.rerankers.values()):
            raise ValueError("top_k and bootstrap_samples must be at least 100, and top_k of a reranker at least 2")

    def outputs_of(self, model: str) -> dict[str, Output]:
        """Returns the outputs a model is scored by, by display name."""
        chosen = self.outputs.get(model, ("dense",))
        outputs = [output for output in get_args(Output) if output in chosen]
        return {model if output == "dense" else f"{model}-{output}": output for output in outputs}

    def systems(self) -> list[str]:
        """Returns the display names in order: BM25 first if it is scored, the models' outputs, the rerankers."""
        names = [name for model in self.models for name in self.outputs_of(model)]
        return [*([BM25] if self.bm25 else []), *names, *self.rerankers]

    def bases(self) -> dict[str, str]:
        """Returns, for each system that is made from another's vectors or results, which one."""
        made = {name: model for model in self.models for name in self.outputs_of(model) if name != model}
        made |= {name: reranking.first for name, reranking in self.rerankers.items()}
        return {name: base for name, base in made.items() if base in self.systems()}
