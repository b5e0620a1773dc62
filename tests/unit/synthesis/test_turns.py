"""Turns at an engine: few share it with a call that asks for that, and newcomers cannot starve it."""

import asyncio
import random
import time

import pytest

from chuxin.synthesis.turns import Turns


def test_a_lone_call_waits_for_those_before_and_is_waited_for() -> None:
    events: list[str] = []

    async def one(turns: Turns, name: str, share: int | None = None) -> None:
        async with turns.turn(share):
            events.append(f"+{name}")
            await asyncio.sleep(0.01)
            events.append(f"-{name}")

    async def run() -> None:
        turns = Turns(8)
        tasks = [asyncio.create_task(one(turns, *given)) for given in (("a",), ("b",), ("L", 1), ("c",), ("d",))]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(one(turns, "M", 1)))
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert events[:4] == ["+a", "+b", "-a", "-b"] and set(events[8:]) == {"+c", "+d", "-c", "-d"}
    assert events[4:8] in (["+L", "-L", "+M", "-M"], ["+M", "-M", "+L", "-L"])


def test_a_call_that_raises_or_is_given_up_hands_its_turn_on() -> None:
    async def hold(turns: Turns, share: int | None) -> None:
        async with turns.turn(share):
            await asyncio.sleep(0.01)

    async def run() -> None:
        turns = Turns(2)
        with pytest.raises(ValueError, match="x"):
            async with turns.turn(1):
                raise ValueError("x")
        first = asyncio.create_task(hold(turns, None))
        await asyncio.sleep(0)
        lone = asyncio.create_task(hold(turns, 1))
        await asyncio.sleep(0)
        lone.cancel()  # while it waits
        later = asyncio.create_task(hold(turns, None))
        await asyncio.gather(first, later)
        async with turns.turn(1):
            let_in = asyncio.create_task(hold(turns, None))
            await asyncio.sleep(0)
        let_in.cancel()  # its turn has come, and it does not know yet
        await asyncio.gather(let_in, return_exceptions=True)
        await hold(turns, 1)

    asyncio.run(run())


def test_nobody_shares_with_more_than_asked_for_and_all_get_in() -> None:
    """Against a count of those inside, in any order of arrival."""

    async def run(seed: int) -> None:
        rng = random.Random(seed)
        turns, inside, ended = Turns(6), [], []

        async def one(share: int | None) -> None:
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            async with turns.turn(share):
                inside.append(share or 6)
                for _ in range(rng.randrange(4)):
                    assert len(inside) <= min(inside)
                    await asyncio.sleep(0)
                inside.remove(share or 6)
            ended.append(share)

        await asyncio.gather(*(one(rng.choice([None, None, 1, 2, 4])) for _ in range(60)))
        assert len(ended) == 60 and not inside

    for seed in range(20):
        asyncio.run(run(seed))


def test_thousands_may_wait() -> None:
    """Waking all of them at every exit took the square of their number: 10,000 would wait for minutes."""

    async def run(number: int) -> float:
        turns = Turns(4)

        async def one() -> None:
            async with turns.turn():
                await asyncio.sleep(0)

        began = time.process_time()
        await asyncio.gather(*(one() for _ in range(number)))
        return time.process_time() - began

    few, many = (min(asyncio.run(run(n)) for _ in range(3)) for n in (500, 4000))
    assert many < 32 * few  # eight times the calls; the square would be 64
