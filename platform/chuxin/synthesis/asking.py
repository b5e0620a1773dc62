"""Asking an LLM through the answer store: what is stored is not sent, what is sent is stored before it is used.

A call that brings its engine down is sent again with the engine to itself, so that the rows that shared the engine
are not blamed; one that does it `max_crashes` times is set aside for good. Leaves out: engines (llm.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

from chuxin.synthesis.calls import Answer, Call, CallFailed, EngineDied, key
from chuxin.synthesis.store import AnswerStore

Ask = Callable[[Call], Awaitable[Answer]]
"""What rows are written and judged with. Raises CallFailed; everything else is not the row's fault."""

_CRASHED = "crashes_engine"


class Client(Protocol):
    """Sends one call. Raises EngineDied, CallFailed or, where nothing can be sent at all, InputError."""

    async def ask(self, call: Call, alone: bool = False) -> Answer:
        """Returns the answer; `alone` keeps other calls out of the engine meanwhile."""
        ...


class Asking:
    """`ask` for one partition.

    Args:
        client: The engines or endpoint.
        store: The answer store.
        model: Identity of the model.
        max_crashes: Lone tries of a call that brought its engine down.
    """

    def __init__(self, client: Client, store: AnswerStore, model: str, max_crashes: int) -> None:
        self._client, self._store, self._model, self._max_crashes = client, store, model, max_crashes
        self._pending: dict[bytes, asyncio.Future[Answer]] = {}
        self.counts: Counter[str] = Counter()

    async def __call__(self, call: Call) -> Answer:
        """Answers from the store, or asks and stores.

        Raises:
            CallFailed: The request was refused, or the call brings engines down.
        """
        name = key(self._model, call)
        stored = self._store.get(name)
        if stored is not None:
            self.counts["calls_stored"] += 1
            return _read(stored)
        if name in self._pending:  # the same call of another row
            return await asyncio.shield(self._pending[name])
        future = self._pending[name] = asyncio.get_running_loop().create_future()
        try:
            answer = await self._buy(call)
            self._store.put(name, [*answer, call.subject])
            future.set_result(answer)
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # taken here, whether another row waits for it or not
            raise
        finally:
            del self._pending[name]
        return _read([*answer, call.subject])

    async def _buy(self, call: Call) -> Answer:
        try:
            answer = await self._client.ask(call)
        except EngineDied:
            answer = await self._alone(call)
        self.counts["calls_bought"] += 1
        self.counts["prompt_tokens_bought"] += answer.prompt_tokens
        self.counts["output_tokens_bought"] += answer.output_tokens
        self.counts["prompt_tokens_cached"] += answer.cached_tokens
        return answer

    async def _alone(self, call: Call) -> Answer:
        self.counts["engine_deaths"] += 1
        for _ in range(self._max_crashes):
            try:
                return await self._client.ask(call, alone=True)
            except EngineDied:
                self.counts["engine_deaths"] += 1
        self.counts["calls_quarantined"] += 1
        return Answer("", _CRASHED, 0, 0)


def _read(stored: list) -> Answer:
    answer = Answer(*stored[: len(Answer._fields)])
    if answer.finish == _CRASHED:
        raise CallFailed(_CRASHED)
    return answer
