"""Rows of one partition at work at once: a bounded number, their results in order, a budget, an open answer store.

A row that found no answer for a reason that may pass has no result, and a partition with one is not committed: its
rerun asks again, and finds all other answers stored. Leaves out: what is done with a row (generate.py, judge.py,
relabel.py) and which rows there are (pipeline.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from chuxin.errors import InputError
from chuxin.synthesis.asking import Ask, Asking, Client
from chuxin.synthesis.calls import CallFailed
from chuxin.synthesis.config import LLMExecution
from chuxin.synthesis.store import AnswerStore

Row = TypeVar("Row")
Result = TypeVar("Result")
_POLL_SECONDS = 0.05
_BEAT_SECONDS = 1.0
_AGAIN = "Run again: what was bought is stored and is not bought twice"
_ANEW = "Run again with a new budget: what was bought is stored and is not bought twice"
_MOST_LOST = 16
"""Rows without an answer after which a partition asks no further: whatever it is, it has not passed."""


class Crew(NamedTuple):
    """What a partition needs to ask an LLM; travels to workers."""

    client: Client
    ledger: Any
    """The Ray actor with the stage's Ledger."""
    model: str
    """NAME@DIGEST: a checkpoint is called by its name, and its answers are found by its content's digest."""
    answers: str
    """The answer store's directory."""
    execution: LLMExecution

    def run(
        self, rows: Sequence[Row], work: Callable[[Row, Ask], Awaitable[Result]],
        failed: Callable[[Row, CallFailed], Result],
    ) -> tuple[list[Result], Counter[str]]:
        """Works on rows, `execution.concurrency` at once.

        Args:
            rows: All rows of the partition.
            work: What is done with one.
            failed: The result of a row whose request was refused: that row's status, not the partition's end.

        Returns:
            The results in the rows' order, and counts of calls and tokens.

        Raises:
            InputError: The budget is spent, the disk is full, the LLM is out of reach, or a row failed otherwise than
                by a refusal; or another partition says so. Rows in work, here and there, are finished first, and
                every answer bought is stored.
        """
        with AnswerStore(self.answers) as store:
            asking = Asking(self.client, store, self.model.rpartition("@")[2], self.execution.max_crashes)
            results = asyncio.run(self._all(rows, work, failed, asking))
            asking.settle()
            asking.counts["answers_torn"] = len(store.torn)
        return results, +asking.counts

    async def _all(
        self, rows: Sequence[Row], work: Callable[[Row, Ask], Awaitable[Result]],
        failed: Callable[[Row, CallFailed], Result], asking: Asking,
    ) -> list[Result]:
        results: list[Any] = [None] * len(rows)
        left = iter(range(len(rows)))
        stop: list[InputError] = []
        lost: list[Exception] = []
        settled, holder = 0, uuid.uuid4().hex

        async def worker() -> None:
            nonlocal settled
            for place in left:
                if stop or len(lost) >= _MOST_LOST:
                    return
                try:
                    reason = await self._told("admit") if self.execution.limited else ""
                    if reason:
                        stop.append(InputError("budget", reason, _ANEW))
                        return
                    results[place] = await work(rows[place], asking)
                except InputError as error:
                    stop.append(error)
                except CallFailed as error:
                    results[place] = failed(rows[place], error)
                except Exception as error:
                    lost.append(error)
                bought = asking.counts["prompt_tokens_bought"] + asking.counts["output_tokens_bought"]
                owed, settled = bought - settled, bought
                try:
                    if self.execution.limited:
                        await self._told("settle", owed)
                except InputError as error:
                    stop.append(error)

        async def heed() -> None:
            problem = await self._told("beat", holder)
            if problem and not stop:
                stop.append(InputError(*problem))

        async def beat() -> None:
            while True:  # also while the last rows are finished
                await asyncio.sleep(_BEAT_SECONDS)
                await heed()

        await heed()
        beating = asyncio.create_task(beat())
        try:
            await asyncio.gather(*(worker() for _ in range(min(self.execution.concurrency, len(rows)))))
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            close = getattr(self.client, "close", None)
            if close is not None:
                await close()
        problem = stop[0] if stop else _unanswered(lost, len(rows)) if lost else None
        await self._leave(holder, problem)
        if problem is not None:
            raise problem
        return results

    async def _leave(self, holder: str, problem: InputError | None) -> None:
        """Tells the ledger that no row is in work here, and where there is a problem waits for the other partitions.

        The first to raise ends the stage, and with it what others have in work: they hear of the problem, begin no
        further row, and store what they had asked for. One that takes longer than a request may loses what it has in
        work; why all stop is said in any case.
        """
        with contextlib.suppress(TimeoutError, InputError):
            async with asyncio.timeout(self.execution.timeout):
                await self._told("leave", holder, problem.args if problem else ())
                while problem and await self._told("busy"):
                    await asyncio.sleep(_POLL_SECONDS)

    async def _told(self, method: str, *given: Any) -> Any:
        """Asks the ledger. What nobody counts is not bought: a ledger that is gone ends the run."""
        try:
            return await getattr(self.ledger, method).remote(*given)
        except Exception as error:
            line = (str(error).splitlines() or [""])[0][:200].rstrip(". ")
            raise InputError("the LLM's ledger", f"the process that counts what is bought is gone ({line})",
                             _ANEW if self.execution.limited else _AGAIN) from error


def _unanswered(lost: list[Exception], rows: int) -> InputError:
    causes = Counter(f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"[:200].rstrip(". ") for e in lost)
    (cause, number), *_ = causes.most_common(1)
    more = f" and {len(lost) - number} others" if len(lost) > number else ""
    error = InputError("the LLM", f"{len(lost)} of a partition's {rows} rows got no answer ({number} × {cause}{more})",
                       "Repair the cause and run again: answers that came are stored, only these are asked again")
    error.__cause__ = lost[0]
    return error
