"""Telemetry: our counters and gauges on Ray's metrics endpoint, as ray_chuxin_NAME.

Tags are of low cardinality only (stage, source, reason, term). Leaves out: spans and logs, which are Ray's own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from ray.util import metrics


@functools.cache
def _gauge(name: str, description: str, tag_keys: tuple[str, ...]) -> metrics.Gauge:
    return metrics.Gauge(f"chuxin_{name}", description=description, tag_keys=tag_keys)


@functools.cache
def _counter(name: str, description: str, tag_keys: tuple[str, ...]) -> metrics.Counter:
    return metrics.Counter(f"chuxin_{name}", description=description, tag_keys=tag_keys)


def gauge(name: str, value: float, tags: Mapping[str, str], description: str = "") -> None:
    """Sets ray_chuxin_NAME in this process, for example loss{stage="finetune"}."""
    _gauge(name, description, tuple(sorted(tags))).set(value, tags=dict(tags))


def count(name: str, value: float, tags: Mapping[str, str], description: str = "") -> None:
    """Adds to ray_chuxin_NAME; nothing happens for zero, which Ray's counters refuse."""
    if value > 0:
        _counter(name, description, tuple(sorted(tags))).inc(value, tags=dict(tags))
