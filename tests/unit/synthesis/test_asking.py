"""Asking through the store: nothing is sent twice, and engines that die are survived or their row set aside."""

import asyncio
from pathlib import Path

import pytest
from scripted import ScriptedLLM, good

from chuxin.errors import InputError
from chuxin.synthesis.asking import Asking
from chuxin.synthesis.calls import CallFailed, EngineDied, key, seed_of, verdict, writing
from chuxin.synthesis.config import LLMExecution, Sampling
from chuxin.synthesis.render import query_schema
from chuxin.synthesis.store import AnswerStore
from chuxin.synthesis.work import Crew


def call(passage: str = "文", seed: int = 1):
    fields = {"category": "百科", "role": "甲", "scene": "乙", "form": "问题"}
    return writing("query", passage, Sampling(), seed, query_schema(), **fields)


def ask(client: ScriptedLLM, folder: Path, *calls) -> tuple[list, dict]:
    async def run(asking: Asking) -> list:
        return await asyncio.gather(*map(asking, calls), return_exceptions=True)

    with AnswerStore(str(folder)) as store:
        asking = Asking(client, store, "m", max_crashes=2)
        return asyncio.run(run(asking)), dict(asking.counts)


def test_a_stored_answer_is_not_sent_again(tmp_path: Path) -> None:
    client = ScriptedLLM()
    first, counts = ask(client, tmp_path, call(), call(), call("别"))
    assert counts["calls_bought"] == 2 and client.sent["query"] == 2  # two calls at once for the same: one is sent
    again, counts = ask(client, tmp_path, call(), call("别"))
    assert [a.text for a in again] == [first[0].text, first[2].text]
    assert counts == {"calls_stored": 2} and client.sent["query"] == 2


def test_the_key_is_model_prompt_inputs_and_sampling() -> None:
    keys = [key("m", call()), key("n", call()), key("m", call("别")), key("m", call(seed=2)),
            key("m", call()._replace(temperature=0.1)), key("m", call()._replace(schema=None)),
            key("m", verdict("standalone", query="x")), key("m", verdict("searchable", query="x"))]  # fmt: skip
    assert len(set(keys)) == len(keys) and key("m", call()) == keys[0] and len(keys[0]) == 16
    assert seed_of(1, 2) != seed_of(1, 3) and 0 <= seed_of("x") < 1 << 31


def test_a_changed_prompt_is_asked_again_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = ScriptedLLM()
    other = verdict("standalone", query="x")
    ask(client, tmp_path, call(), other)
    import chuxin.synthesis.render as render

    template = render.template
    monkeypatch.setattr(render, "template", lambda name: template(name) + "。" * (name == "query"))
    _, counts = ask(client, tmp_path, call(), other)
    assert (counts["calls_bought"], counts["calls_stored"]) == (1, 1)


def test_a_row_that_shared_a_dying_engine_is_not_blamed(tmp_path: Path) -> None:
    died = []

    def reply(given):
        if "毒" in given.messages[0]["content"]:
            return EngineDied("poison")
        if not died and "邻" in given.messages[0]["content"]:
            died.append(1)
            return EngineDied("neighbour")
        return good(given)

    client = ScriptedLLM(reply)
    (poisoned, neighbour, other), counts = ask(client, tmp_path, call("毒"), call("邻"), call("善"))
    assert isinstance(poisoned, CallFailed) and str(poisoned) == "crashes_engine"
    assert neighbour.text and other.text
    assert client.alone == 3 and counts["calls_quarantined"] == 1 and counts["engine_deaths"] == 4
    # The quarantine is stored: the next run does not crash engines again.
    (poisoned,), counts = ask(client, tmp_path, call("毒"))
    assert isinstance(poisoned, CallFailed) and counts == {"calls_stored": 1}


def test_a_refused_request_is_that_rows_and_is_not_stored(tmp_path: Path) -> None:
    client = ScriptedLLM(lambda given: CallFailed("too long"))
    (failed,), _ = ask(client, tmp_path, call())
    assert isinstance(failed, CallFailed)
    (answer,), counts = ask(ScriptedLLM(), tmp_path, call())
    assert answer.text and counts["calls_bought"] == 1


class Ledger:
    """An actor's methods, here: `.remote` returns what can be awaited."""

    def __init__(self, rows: int) -> None:
        self.left, self.busy_rows, self.tokens = rows, 0, 0
        methods = (self._admit, self._settle, lambda: self.busy_rows)
        self.admit, self.settle, self.busy = map(self.Method, methods)

    class Method:
        def __init__(self, f) -> None:
            self.f = f

        async def remote(self, *arguments):
            await asyncio.sleep(0)
            return self.f(*arguments)

    def _admit(self) -> str:
        self.left -= 1
        self.busy_rows += self.left >= 0
        return "" if self.left >= 0 else "the budget of 10 tokens is spent"

    def _settle(self, tokens: int) -> None:
        self.busy_rows -= 1
        self.tokens += tokens


def test_a_spent_budget_stops_and_keeps_what_was_bought(tmp_path: Path) -> None:
    async def work(text: str, ask) -> str:
        return (await ask(call(text))).text

    client, ledger = ScriptedLLM(), Ledger(5)
    rows = [str(i) for i in range(20)]
    crew = Crew(client, ledger, "m", str(tmp_path), LLMExecution(concurrency=3))
    with pytest.raises(InputError, match="budget of 10 tokens is spent"):
        crew.run(rows, work, lambda row, error: "")
    assert client.sent["query"] == 5 and ledger.busy_rows == 0 and ledger.tokens > 0
    results, counts = crew._replace(ledger=None).run(rows, work, lambda row, error: "")
    assert counts["calls_stored"] == 5 and client.sent["query"] == 20 and all(results)


def test_a_row_that_raises_is_that_rows_result(tmp_path: Path) -> None:
    async def work(number: int, ask) -> int:
        if number == 3:
            raise ValueError("no")
        await asyncio.sleep(0.001 * (5 - number))
        return number

    crew = Crew(ScriptedLLM(), None, "m", str(tmp_path), LLMExecution(concurrency=4))
    results, _ = crew.run(range(5), work, lambda row, error: -row)
    assert results == [0, 1, 2, -3, 4]
