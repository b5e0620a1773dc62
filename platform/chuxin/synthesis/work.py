"""Rows of one partition at work at once: a bounded number, their results in order, a budget, an open answer store.

Leaves out: what is done with a row (generate.py, judge.py, relabel.py) and which rows there are (pipeline.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from chuxin.errors import InputError
from chuxin.synthesis.asking import Ask, Asking, Client
from chuxin.synthesis.config import LLMExecution
from chuxin.synthesis.store import AnswerStore

Row = TypeVar("Row")
Result = TypeVar("Result")
_POLL_SECONDS = 0.05


class Crew(NamedTuple):
    """What a partition needs to ask an LLM; travels to workers."""

    client: Client
    ledger: Any
    """The Ray actor that counts what is bought, or None without a budget."""
    model: str
    """Identity of the model, part of every answer's key."""
    answers: str
    """The answer store's directory."""
    execution: LLMExecution

    def run(
        self, rows: Sequence[Row], work: Callable[[Row, Ask], Awaitable[Result]],
        failed: Callable[[Row, Exception], Result],
    ) -> tuple[list[Result], Counter[str]]:
        """Works on rows, `execution.concurrency` at once.

        Args:
            rows: All rows of the partition.
            work: What is done with one.
            failed: The result of a row whose work raised: that row's status, not the partition's end.

        Returns:
            The results in the rows' order, and counts of calls and tokens.

        Raises:
            InputError: The budget is spent, the disk is full or the LLM is out of reach. Rows in work are finished
                first, and every answer bought is stored.
        """
        with AnswerStore(self.answers) as store:
            asking = Asking(self.client, store, self.model, self.execution.max_crashes)
            results = asyncio.run(self._all(rows, work, failed, asking))
            asking.counts["answers_torn"] = len(store.torn)
        return results, +asking.counts

    async def _all(
        self, rows: Sequence[Row], work: Callable[[Row, Ask], Awaitable[Result]],
        failed: Callable[[Row, Exception], Result], asking: Asking,
    ) -> list[Result]:
        results: list[Any] = [None] * len(rows)
        left = iter(range(len(rows)))
        stop: list[InputError] = []
        settled = 0

        async def worker() -> None:
            nonlocal settled
            for place in left:
                if stop:
                    return
                if self.ledger is not None:
                    reason = await self.ledger.admit.remote()
                    if reason:
                        remedy = "Run again with a new budget: what was bought is stored and is not bought twice"
                        stop.append(InputError("budget", reason, remedy))
                        return
                try:
                    results[place] = await work(rows[place], asking)
                except InputError as error:
                    stop.append(error)
                except Exception as error:
                    results[place] = failed(rows[place], error)
                finally:
                    if self.ledger is not None:
                        bought = asking.counts["prompt_tokens_bought"] + asking.counts["output_tokens_bought"]
                        owed, settled = bought - settled, bought
                        await self.ledger.settle.remote(owed)

        try:
            await asyncio.gather(*(worker() for _ in range(min(self.execution.concurrency, len(rows)))))
        finally:
            close = getattr(self.client, "close", None)
            if close is not None:
                await close()
        if stop:
            # The first partition to say so ends the stage: wait until the others have stored what they had asked for.
            async with asyncio.timeout(self.execution.timeout):
                while self.ledger is not None and await self.ledger.busy.remote():
                    await asyncio.sleep(_POLL_SECONDS)
            raise stop[0]
        return results
