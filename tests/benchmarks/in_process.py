"""Stages in one process: partitions run one after another, without Ray. What several benchmarks share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chuxin.artifacts import Artifact
from chuxin.runner import Context

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from here import HereDraft  # noqa: E402  (the unit tests run stages so too)


def run(stage: Callable[[Context, Any], None], config: Any, uri: str, log: Callable[[str], None] = print) -> Artifact:
    """Runs a stage whose config names its inputs by path, and commits it at `uri`."""
    draft = HereDraft(uri, "0" * 32, {}, log)
    stage(Context(stage.__name__, draft, {}, log), config)
    return draft.close()
