"""Asking an LLM through the answer store: what is stored is not sent, what is sent is stored before it is used.

A request that finds no answer is sent again a few times, and then is nobody's status: its partition does not commit.
A call that was in an engine when that died is sent again among ever fewer others, at last with the engine to itself,
so that the rows that shared the engine are not blamed, and hundreds of them need not go one by one; one that brings
it down `max_crashes` times alone, while the engine answers others in between, is set aside for good. One that raises
before and after its engine has answered another fails: its row's status. Leaves out: engines (llm.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

from chuxin.errors import InputError
from chuxin.synthesis.calls import (
    PROBE,
    PROBE_VERDICT,
    Answer,
    Call,
    CallFailed,
    CallRaised,
    EngineDied,
    EngineLeft,
    Unanswered,
    key,
)
from chuxin.synthesis.store import AnswerStore

Result = TypeVar("Result")
Ask = Callable[[Call], Awaitable[Answer]]
"""What rows are written and judged with. Raises CallFailed; everything else is not the row's fault."""

_CRASHED = "crashes_engine"
_TRIES = 3
_PAUSE_SECONDS = 0.2
_FEWER = 16
"""Each death of its engine leaves a call this much less company, and less than `_FEW` leaves it none: a poisoned call
among 600 is found by four deaths (among 600, among 37, alone, alone), and the others go 37 at once. All went alone at
first: 600 calls of the sample LLM then took 83 s after one death, and with an LLM of a second a call, ten minutes."""
_FEW = 4
_OWN_DEATHS = 3
_SUSPECTS = 3
"""Quarantines of an engine in a row, without an answer of it between, after which it is suspected and not the calls:
it has to answer a request that it answered before. A poisoned query comes in one call for each criterion."""
_UNVOUCHED = 8
"""The same where it has answered nothing before, and its calls that raise then: more than one row's calls."""
_REPAIR = "Repair it and run again: what was bought is stored, and no row of this partition was blamed"
_REFUSED = 16
"""Refusals of an engine in a row, after which it has to answer what it answered before, or else a short call: a request
may be too long for it, but sixteen in a row look like an account or a chat template, and no row's fault."""
_MOST_QUARANTINED = 50
"""Quarantines after which a partition stops: so many requests that bring an engine down are no accident of theirs."""
_WAITS = 8
"""Deaths that a lone call only waited through, after which one counts as its own: what kills a process before it has
said that it begins would go on for ever."""


class Client(Protocol):
    """Sends one call. Raises EngineDied, CallFailed, Unanswered or, where nothing can be sent at all, InputError."""

    async def ask(self, call: Call, share: int | None = None, place: int | None = None) -> Answer:
        """Returns the answer; no more than `share` calls, this one included, are in the engine meanwhile.

        The engine is the call's own or, for a request that is to show whether one is sound, that of number `place`.
        """
        ...

    async def probe(self, call: Call) -> None:
        """Makes the engine that a call goes to answer a short one of our own; raises like `ask`."""
        ...

    def place(self, call: Call) -> int:
        """Returns the number of the engine that a call goes to."""
        ...


async def together(tasks: Iterable[Awaitable[Result]]) -> list[Result]:
    """Returns the results once all have ended; if any raised, raises an InputError, or else the first exception."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise next((error for error in errors if isinstance(error, InputError)), errors[0])
    return results  # type: ignore[return-value]


class Asking:
    """`ask` for one partition.

    Args:
        client: The engines or endpoint.
        store: The answer store.
        model: Digest of the model.
        max_crashes: Lone tries of a call that brought its engine down.
    """

    def __init__(self, client: Client, store: AnswerStore, model: str, max_crashes: int) -> None:
        self._client, self._store, self._model, self._max_crashes = client, store, model, max_crashes
        self._pending: dict[bytes, asyncio.Future[Answer]] = {}
        self._suspects: defaultdict[int, dict[bytes, list]] = defaultdict(dict)  # by engine
        self._witnesses: dict[int, Call] = {}  # by engine, the last call that it is known to answer
        self._refused: Counter[int] = Counter()  # by engine, since its last answer
        self._raised: Counter[int] = Counter()
        self._broken: InputError | None = None
        self._lone = asyncio.Lock()
        self.counts: Counter[str] = Counter()

    async def __call__(self, call: Call) -> Answer:
        """Answers from the store, or asks and stores.

        Raises:
            CallFailed: The request was refused, or the call brings engines down.
            Exception: It found no answer, however often it was sent; Unanswered, where the reason is known.
            InputError: The engine dies whatever it is asked, or refuses it.
        """
        name, place = key(self._model, call), self._client.place(call)
        stored = self._suspects[place].get(name) or self._store.get(name)
        if stored is not None:
            self.counts["calls_stored"] += 1
            answer = _read(stored)
            self._witnesses[place] = call
            return answer
        if name in self._pending:  # the same call of another row
            return _read([*await asyncio.shield(self._pending[name])])
        future = self._pending[name] = asyncio.get_running_loop().create_future()
        try:
            answer = await self._buy(call, place)
            await self._keep(name, place, call, answer)
            future.set_result(answer)
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # taken here, whether another row waits for it or not
            raise
        finally:
            del self._pending[name]
        return _read([*answer])

    def settle(self) -> None:
        """Stores the quarantines that no later answer has confirmed yet: the partition came to its end without more."""
        for place in list(self._suspects):
            self._confirm(place)

    def _confirm(self, place: int) -> None:
        """Stores an engine's quarantines: it is sound."""
        for name, value in self._suspects.pop(place, {}).items():
            self._store.put(name, value)

    async def _keep(self, name: bytes, place: int, call: Call, answer: Answer) -> None:
        """Stores an answer; a quarantine only once its engine has answered another call: it is sound then."""
        value = [*answer, call.subject]
        if answer.finish != _CRASHED:
            self._witnesses[place] = call
            del self._refused[place], self._raised[place]
            if self._broken is None:  # else an engine is to blame, whatever it may still answer
                self._confirm(place)
            self._store.put(name, value)
            return
        self._suspects[place][name] = value
        if len(self._suspects[place]) >= (_SUSPECTS if place in self._witnesses else _UNVOUCHED):
            if not await self._vouched(place):
                self._broken = _broken(f"{len(self._suspects[place])} requests in a row brought it down")
                self._require_sound()
            self._confirm(place)
        if self.counts["calls_quarantined"] >= _MOST_QUARANTINED:
            self._confirm(place)
            self._broken = InputError(
                "the LLM's engine", f"{_MOST_QUARANTINED} requests of one partition brought it down, each alone",
                "Look in the Ray logs for what they share. They are set aside: run again to go on without them",
            )  # fmt: skip
            self._require_sound()

    async def _vouched(self, place: int, other: Call | None = None, refusal: bool = True) -> bool:
        """True if an engine still answers a request that it answered before; bought again, and not kept.

        One that has answered none is asked the `other`. A `refusal` of what it answered before shows that it lives.
        """
        known = place in self._witnesses
        witness = self._witnesses.get(place, other)
        if witness is None:
            return False
        async with self._lone:
            for _ in range(_WAITS):
                self._require_sound()  # one that waited for the lock need not find it out again
                self.counts["calls_witness"] += 1
                try:
                    await self._answered(witness, 1, place)
                    return True
                except CallFailed:  # its own fault now, as where max_model_len was lowered
                    return refusal and known
                except EngineLeft:
                    continue
                except (EngineDied, Unanswered):
                    return False
        return False

    async def _require_vouched(self, place: int, call: Call, how: str, error: Exception, refusal: bool) -> None:
        """Ends the partition where its engine answers neither what it did nor a short call under the same constraint.

        Args:
            place: The engine.
            call: One that it did not answer.
            how: What it did, with a place for what it was asked then.
            error: What became of the call.
            refusal: As for `_vouched`.
        """
        before = "what it answered before" if place in self._witnesses else "a short one of our own"
        probe = PROBE_VERDICT if call.choices else PROBE._replace(schema=call.schema)
        if not await self._vouched(place, probe, refusal):
            self._broken = InputError("the LLM", f"{how.format(before)} ({error})"[:400], _REPAIR)
            self._require_sound()

    def _bought(self, answer: Answer) -> None:
        self.counts["prompt_tokens_bought"] += answer.prompt_tokens
        self.counts["output_tokens_bought"] += answer.output_tokens
        self.counts["prompt_tokens_cached"] += answer.cached_tokens

    async def _buy(self, call: Call, place: int) -> Answer:
        try:
            answer = await self._insisted(call, place)
        except CallFailed as error:
            self._refused[place] += 1
            if self._refused[place] == _REFUSED:
                how = f"it refused {_REFUSED} requests in a row, and {{}} too"
                await self._require_vouched(place, call, how, error, refusal=False)
                del self._refused[place]
            raise
        if answer.finish == _CRASHED:
            return answer
        self.counts["calls_bought"] += 1
        return answer._replace(text=_whole(answer.text))

    async def _insisted(self, call: Call, place: int) -> Answer:
        """Sends a call that raises once more, after its engine has answered another: an outage may have passed."""
        try:
            return await self._sent(call)
        except CallRaised as error:
            await self._require_vouched(place, call, "it does not answer even {}", error, refusal=True)
        try:
            return await self._sent(call)
        except CallRaised as error:
            self._raised[place] += 1
            if place not in self._witnesses and self._raised[place] >= _UNVOUCHED:
                self._broken = InputError("the LLM", f"it answers short calls of our own and none of {_UNVOUCHED} "
                                          f"others ({error})"[:400], _REPAIR)  # fmt: skip
                self._require_sound()
            raise CallFailed(str(error)) from error

    async def _sent(self, call: Call) -> Answer:
        try:
            return await self._answered(call)
        except EngineDied:
            return await self._suspected(call)

    async def _answered(self, call: Call, share: int | None = None, place: int | None = None) -> Answer:
        for left in reversed(range(_TRIES)):
            self._require_sound()
            try:
                answer = await self._client.ask(call, share, place)
                self._bought(answer)
                answer.require(call.choices)
                return answer
            except (CallFailed, EngineDied):
                raise
            except InputError as error:  # nothing can be sent at all, as where the engine cannot be started again
                self._broken = error
                raise
            except Exception:  # Unanswered, and what nobody foresaw: a broken connection is not always named so
                self.counts["calls_unanswered"] += 1
                if not left:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError  # the loop returns or raises

    async def _suspected(self, call: Call) -> Answer:
        """Sends a call whose engine died once more among fewer, as long as that dies too, and at last alone."""
        self.counts["engine_deaths"] += 1
        share = len(self._pending) // _FEWER
        while share >= _FEW:
            try:
                return await self._answered(call, share)
            except EngineDied:
                self.counts["engine_deaths"] += 1
                share //= _FEWER
        async with self._lone:  # one call's tries and probes end before the next one's begin
            return await self._alone(call)

    async def _alone(self, call: Call) -> Answer:
        blamed = own = waited = 0
        while blamed < self._max_crashes:
            try:
                return await self._answered(call, 1)
            except EngineDied as error:
                if isinstance(error, EngineLeft) and waited < _WAITS:
                    waited += 1
                    continue
                self.counts["engine_deaths"] += 1
                if await self._sound(call):
                    blamed += 1
                    continue
                own += 1
                if own == _OWN_DEATHS:
                    self._broken = _broken(f"started again, it answers not even {_OWN_DEATHS} short calls: {error}")
        self.counts["calls_quarantined"] += 1
        return Answer("", _CRASHED, 0, 0)

    def _require_sound(self) -> None:
        """Raises what one call has found out of the engine, lest hundreds each find it out for themselves."""
        if self._broken is not None:
            raise InputError(*self._broken.args)

    async def _sound(self, call: Call) -> bool:
        """True if the engine, started again where it died, answers something else."""
        for _ in range(_WAITS):
            try:
                await self._client.probe(call)
                return True
            except EngineLeft:  # another's call took it down: that tells nothing
                continue
            except (EngineDied, Unanswered, CallFailed):
                break
        self.counts["probes_failed"] += 1
        return False


def _broken(how: str) -> InputError:
    return InputError("the LLM's engine", how[:300].rstrip("."), "See the Ray logs for why, and run again: what was "
                      "bought is stored, and no row was blamed")


def _whole(text: str) -> str:
    """Replaces lone halves of surrogate pairs, which no file and no table takes, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read(stored: list) -> Answer:
    answer = Answer(*stored[: len(Answer._fields)])
    if answer.finish == _CRASHED:
        raise CallFailed(_CRASHED)
    return answer
