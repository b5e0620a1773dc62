"""Stages in one process: partitions run one after another, without Ray. What several benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from chuxin.artifacts import Artifact, Attempt, Draft
from chuxin.runner import Context


class Here(Draft):
    """A draft that computes its partitions in this process."""

    def map(
        self, work: Mapping[str, Any], fn: Callable[[str, Any, Attempt], None], *, name: str, num_cpus: float = 1,
        memory: int | None = None,
    ) -> None:  # fmt: skip
        for key, item in work.items():
            with self.attempt(key) as attempt:
                fn(key, item, attempt)


def run(stage: Callable[[Context, Any], None], config: Any, uri: str, log: Callable[[str], None] = print) -> Artifact:
    """Runs a stage whose config names its inputs by path, and commits it at `uri`."""
    draft = Here(uri, "0" * 32, {}, log)
    stage(Context(stage.__name__, draft, {}, log), config)
    return draft.close()
