"""Turns at an engine: many calls at once, or one with the engine to itself.

Leaves out: what a call does with its turn (llm.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Turns:
    """Lets calls in. A lone call waits for those that run; newcomers wait until no lone call waits or runs."""

    def __init__(self) -> None:
        self._running = self._lone = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def turn(self, alone: bool) -> AsyncIterator[None]:
        """Holds a turn while its block runs; `alone` keeps all other calls out meanwhile."""
        self._lone += alone
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not (self._running if alone else self._lone))
                self._running += 1
            try:
                yield
            finally:
                self._running -= 1
        finally:
            self._lone -= alone
            async with self._changed:
                self._changed.notify_all()
