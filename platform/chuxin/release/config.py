"""Configs of the merge and the release."""

from __future__ import annotations

from dataclasses import dataclass, field

from chuxin.config import ModelRef, Ref


@dataclass(frozen=True)
class ReleaseExecution:
    """How, not what: not part of the fingerprint."""

    num_cpus: float = 1
    """CPUs of the task that writes and checks the model."""


@dataclass(frozen=True)
class Weighted:
    """A model and its weight in a merge."""

    model: ModelRef
    """A stage, a directory or a hub name."""
    weight: float
    """Its share, before all are divided by their sum."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError("`weight` must be above 0")


@dataclass(frozen=True)
class MergeConfig:
    """Models of one shape whose weights are averaged."""

    models: tuple[Weighted, ...]
    """At least two. The tokenizer is the first one's; all must have the same vocabulary."""
    execution: ReleaseExecution = field(default_factory=ReleaseExecution)

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise ValueError("`models` needs at least two")


@dataclass(frozen=True)
class ReleaseConfig:
    """What is released, under which name, and with which scores on its card."""

    model: ModelRef
    """The checkpoint: a stage, a directory or a hub name."""
    name: str
    """The model's name on its card and at the endpoint."""
    license: str
    """Licence of the weights on the card, as a hub identifier such as apache-2.0."""
    max_len: int
    """Most tokens of a text that readers of the release use, special ones included."""
    evaluation: Ref | None = None
    """Scores for the card: an evaluate stage, or the results.json of one."""
    execution: ReleaseExecution = field(default_factory=ReleaseExecution)
    """How, not what: not part of the fingerprint."""

    def __post_init__(self) -> None:
        if not self.name.strip() or any(c in self.name for c in '"\\\n'):
            raise ValueError("`name` must be one line without quotes and backslashes")
