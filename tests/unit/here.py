"""Stages without Ray: partitions computed one after another in this process. For unit tests and benchmarks."""

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from chuxin.artifacts import Attempt, Draft


class HereDraft(Draft):
    """A draft whose missing partitions are computed here; items travel as the JSON that they have to be."""

    def map(
        self, work: Mapping[str, Any], fn: Callable[[str, Any, Attempt], None], *, name: str, num_cpus: float = 1,
        memory: int | None = None, num_gpus: float = 0, actors: bool = False,
    ) -> None:  # fmt: skip
        done = self.committed()
        self._expected |= set(work)
        for key, item in work.items():
            if key not in done:
                own = fn if actors else copy.copy(fn)  # a task keeps nothing for the next
                with self.attempt(key) as attempt:
                    own(key, json.loads(json.dumps(item)), attempt)
