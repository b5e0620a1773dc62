"""Turns at an engine: a bounded number of calls at once, and fewer of them where one asks to share with few.

Leaves out: what a call does with its turn (llm.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections import Counter
from collections.abc import AsyncIterator


class Turns:
    """Lets calls in: never more at once than any of those inside shares with, the smallest shares first.

    Each entry and each exit costs the logarithm of those that wait; waking all of them would cost their number.

    Args:
        most: Calls inside at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside: Counter[int] = Counter()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    @contextlib.asynccontextmanager
    async def turn(self, share: int | None = None) -> AsyncIterator[None]:
        """Holds a turn while its block runs.

        Args:
            share: Calls that may be inside meanwhile, this one included; 1 is alone, None is as many as fit.
        """
        share = min(share or self._most, self._most)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (share, next(self._numbers), place))
        self._let_in()
        try:
            await place
            yield
        finally:
            if place.done() and not place.cancelled():  # given up while it waited, it never was inside
                self._inside[share] -= 1
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            share, _, place = self._waiting[0]
            if not place.done():
                if self._inside.total() >= min([share, *(+self._inside)]):
                    return
                self._inside[share] += 1
                place.set_result(None)
            heapq.heappop(self._waiting)
