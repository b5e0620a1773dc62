"""What a stage's partitions tell one another while they ask an LLM: what was bought, who is at work, why all end.

Leaves out: the actor that holds it (llm.py) and the rows (work.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

_SILENT_SECONDS = 30.0
_HOUR = 3600.0


class Ledger:
    """Rows are admitted while budget is left, and those admitted are finished.

    Args:
        tokens: Most tokens read and written, or None.
        gpu_hours: Most hours of all GPUs together, or None.
        gpus: GPUs in use, or engines where they use none.
    """

    def __init__(self, tokens: int | None = None, gpu_hours: float | None = None, gpus: float = 1) -> None:
        self._tokens, self._gpu_hours, self._gpus, self._used = tokens, gpu_hours, gpus, 0.0
        self._spent, self._started = 0, time.monotonic()
        self._problem: list[str] = []
        self._heard: dict[str, float] = {}

    def begin(self, used: float) -> None:
        """Begins to count hours; `used` are seconds times GPUs in use before, while the engines loaded."""
        self._used, self._started = used, time.monotonic()

    def admit(self) -> str:
        """Returns "", or says why nothing more is bought."""
        if self._tokens is not None and self._spent >= self._tokens:
            return f"the budget of {self._tokens:,} tokens is spent ({self._spent:,} bought)"
        hours = (self._used + (time.monotonic() - self._started) * self._gpus) / _HOUR
        if self._gpu_hours is not None and hours >= self._gpu_hours:
            return f"the budget of {self._gpu_hours:g} GPU hours is spent"
        return ""

    def settle(self, tokens: int) -> None:
        """Counts the tokens bought for a finished row."""
        self._spent += tokens

    def beat(self, holder: str) -> list[str]:
        """Notes that a partition's attempt is at work; returns why all end: an InputError's arguments, or nothing."""
        self._heard[holder] = time.monotonic()
        return self._problem

    def leave(self, holder: str, problem: Sequence[str] = ()) -> None:
        """Notes that an attempt has no row in work any more, and the first problem that an attempt met."""
        self._heard.pop(holder, None)
        self._problem = self._problem or [*problem]

    def busy(self) -> int:
        """Returns the attempts at work, without those not heard of for half a minute: they were killed."""
        since = time.monotonic() - _SILENT_SECONDS
        return sum(heard >= since for heard in self._heard.values())
