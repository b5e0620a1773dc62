"""What becomes of an engine's replies, and that a probe goes where its call went; engines are played at the rim."""

import asyncio
from pathlib import Path

import pytest

from chuxin.synthesis.calls import CallFailed, EngineDied, Unanswered, verdict
from chuxin.synthesis.engine import _cause
from chuxin.synthesis.llm import PoolClient


class Engine:
    """An actor handle: `generate.remote` gives one reply to all calls and keeps them, `generate_alone` streams it."""

    def __init__(self, reply: tuple) -> None:
        self.generate, self.generate_alone, self.reply, self.calls = self, Streaming(self), reply, []

    async def remote(self, call, share: int | None) -> tuple:
        self.calls.append((call, share))
        return self.reply


class Streaming:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def options(self, num_returns: str) -> "Streaming":
        assert num_returns == "streaming"
        return self

    async def remote(self, call):
        async def told(reply: tuple) -> tuple:
            return reply

        self.engine.calls.append((call, 1))
        for reply in (("begun", ""), self.engine.reply):
            yield told(reply)


@pytest.mark.parametrize(("kind", "error"), [("died", EngineDied), ("unanswered", Unanswered), ("refused", CallFailed)])
def test_replies_are_answers_or_say_whose_fault_it_is(kind: str, error: type[Exception]) -> None:
    call = verdict("standalone", query="甲")
    assert asyncio.run(PoolClient([Engine(("answer", ("是", "stop", 5, 1)))]).ask(call)).text == "是"
    with pytest.raises(error, match="why"):
        asyncio.run(PoolClient([Engine((kind, "why"))]).ask(call))


def test_a_probe_goes_to_the_engine_of_its_call() -> None:
    engines = [Engine(("answer", ("是", "stop", 5, 1))) for _ in range(4)]
    client = PoolClient(engines)
    for number in range(12):
        call = verdict("standalone", query=f"{number}" * 9)
        asyncio.run(client.ask(call))
        place = next(i for i, engine in enumerate(engines) if engine.calls)
        asyncio.run(client.probe(call))
        (_, first), (probe, share) = engines[place].calls
        assert (first, share) == (None, 1) and probe.messages != call.messages and probe.max_tokens == 1
        assert sum(len(engine.calls) for engine in engines) == 2
        engines[place].calls.clear()


def test_the_cause_of_a_start_that_failed_is_what_was_told_of_first(tmp_path: Path) -> None:
    old = "(Worker pid=1) ERROR 11-28 07:00:00 [executor.py:9] KeyError: an earlier start\n"
    new = (
        "(Worker pid=2) ERROR 11-28 07:13:35 [executor.py:9] Traceback (most recent call last):\n"
        "(Worker pid=2) ERROR 11-28 07:13:35 [executor.py:9]     raise ValueError(reason)\n"
        "(Worker pid=2) ERROR 11-28 07:13:35 [executor.py:9] torch.OutOfMemoryError: 40 GiB are wanted.\n"
        "(EngineCore pid=3) ERROR 11-28 07:13:35 [core.py:15] Exception: see the root cause\n"
    )
    log = tmp_path / "worker.out"
    log.write_text(old + new)
    assert _cause(str(log), len(old)) == "torch.OutOfMemoryError: 40 GiB are wanted"
    assert _cause(str(log), len(old + new)) == _cause("/dev/null", 0) == ""
