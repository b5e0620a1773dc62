"""Turns at an engine: a lone call has it to itself, and newcomers cannot starve it."""

import asyncio

import pytest

from chuxin.synthesis.turns import Turns


def test_a_lone_call_waits_for_those_before_and_is_waited_for() -> None:
    events: list[str] = []

    async def one(turns: Turns, name: str, alone: bool = False) -> None:
        async with turns.turn(alone):
            events.append(f"+{name}")
            await asyncio.sleep(0.01)
            events.append(f"-{name}")

    async def run() -> None:
        turns = Turns()
        tasks = [asyncio.create_task(one(turns, *given)) for given in (("a",), ("b",), ("L", True), ("c",), ("d",))]
        await asyncio.sleep(0.005)
        tasks.append(asyncio.create_task(one(turns, "M", True)))
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert events[:4] == ["+a", "+b", "-a", "-b"] and set(events[8:]) == {"+c", "+d", "-c", "-d"}
    assert events[4:8] in (["+L", "-L", "+M", "-M"], ["+M", "-M", "+L", "-L"])


def test_a_call_that_raises_or_is_given_up_hands_its_turn_on() -> None:
    async def hold(turns: Turns, alone: bool) -> None:
        async with turns.turn(alone):
            await asyncio.sleep(0.01)

    async def run() -> None:
        turns = Turns()
        with pytest.raises(ValueError, match="x"):
            async with turns.turn(True):
                raise ValueError("x")
        first = asyncio.create_task(hold(turns, False))
        await asyncio.sleep(0)
        lone = asyncio.create_task(hold(turns, True))
        await asyncio.sleep(0)
        lone.cancel()  # while it waits
        later = asyncio.create_task(hold(turns, False))
        await asyncio.wait_for(asyncio.gather(first, later), 5)

    asyncio.run(run())
