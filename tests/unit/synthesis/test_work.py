"""A partition's rows: its budget, its failures, and what partitions tell one another through the ledger."""

import asyncio
import threading
from pathlib import Path

import pytest
from scripted import PlayedLedger, ScriptedLLM, played

import chuxin.synthesis.ledger as ledger_module
import chuxin.synthesis.work as work_module
from chuxin.errors import InputError
from chuxin.synthesis.calls import CallFailed, Unanswered, writing
from chuxin.synthesis.config import LLMExecution, Sampling
from chuxin.synthesis.ledger import Ledger
from chuxin.synthesis.render import query_schema
from chuxin.synthesis.work import Crew

LIMITED = LLMExecution(concurrency=3, budget_tokens=500)


def call(passage: str):
    fields = {"category": "百科", "role": "甲", "scene": "乙", "form": "问题"}
    return writing("query", passage, Sampling(), 1, query_schema(), **fields)


async def work(text: str, ask) -> str:
    return (await ask(call(text))).text


def test_a_spent_budget_stops_and_keeps_what_was_bought(tmp_path: Path) -> None:
    client, ledger = ScriptedLLM(), Ledger(tokens=500)
    rows = [str(i) for i in range(20)]
    crew = Crew(client, PlayedLedger(ledger), "m", str(tmp_path), LIMITED)
    with pytest.raises(InputError, match="budget of 500 tokens is spent .*Run again with a new budget"):
        crew.run(rows, work, lambda row, error: "")
    bought = client.sent["query"]  # more than 100 tokens each: rows in work are finished
    assert 5 <= bought <= 5 + 2 and ledger.busy() == 0
    results, counts = crew._replace(ledger=played()).run(rows, work, lambda row, error: "")
    assert counts["calls_stored"] == bought and client.sent["query"] == 20 and all(results)


def test_the_flag_for_a_budget_takes_tokens_or_gpu_hours() -> None:
    before = LLMExecution(engines=2, budget_tokens=5)
    assert before.with_budget("200000000") == LLMExecution(engines=2, budget_tokens=200_000_000)
    assert before.with_budget("2.5h") == LLMExecution(engines=2, budget_gpu_hours=2.5)
    for wrong in ("", "h", "2.5", "-1", "2,5h", "1.2.3h", "many", "²"):
        with pytest.raises(InputError, match="no number of tokens and no number of GPU hours. Give tokens, such as 2"):
            before.with_budget(wrong)


def test_gpu_hours_count_all_gpus_and_the_time_that_engines_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(ledger_module.time, "monotonic", lambda: now[0])
    ledger = Ledger(gpu_hours=2.0, gpus=4)
    ledger.begin(4 * 600.0)  # ten minutes of four: two thirds of an hour
    now[0] += 1190.0
    assert ledger.admit() == ""
    now[0] += 20.0
    assert ledger.admit() == "the budget of 2 GPU hours is spent"
    unlimited = Ledger(gpu_hours=None)
    unlimited.begin(1e9)
    assert unlimited.admit() == ""


def test_a_ledger_that_is_gone_ends_a_run_with_a_budget(tmp_path: Path) -> None:
    """What nobody counts is not bought: rows in work are finished, then it says so and does not hang."""
    def gone(*_: object) -> None:
        raise ConnectionError("The actor died because its node has died.\nmore")

    for method, most in (("beat", 0), ("admit", 0), ("settle", 3)):
        client, ledger = ScriptedLLM(), Ledger(tokens=10**6)
        for name in (method, "busy", "leave"):
            setattr(ledger, name, gone)
        crew = Crew(client, PlayedLedger(ledger), "m", str(tmp_path / method), LIMITED)
        told = "the LLM's ledger: the process that counts what is bought is gone .The actor died .* died."
        with pytest.raises(InputError, match=told):
            crew.run([str(i) for i in range(20)], work, lambda row, error: "")
        assert client.sent["query"] == most


def test_rows_of_others_that_never_end_do_not_change_why_it_stops(tmp_path: Path) -> None:
    ledger = Ledger(tokens=0)
    ledger.beat("another")
    crew = Crew(ScriptedLLM(), PlayedLedger(ledger), "m", str(tmp_path), LLMExecution(timeout=0.1, budget_tokens=0))
    with pytest.raises(InputError, match="budget of 0 tokens is spent"):
        crew.run(["a"], work, lambda row, error: None)


def test_the_ledger_forgets_partitions_that_fell_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(ledger_module.time, "monotonic", lambda: now[0])
    ledger = Ledger(tokens=10)
    assert [ledger.beat("killed"), ledger.beat("a"), ledger.beat("b")] == [[]] * 3 and ledger.busy() == 3
    ledger.settle(10)
    assert "10 tokens is spent (10 bought)" in ledger.admit()
    now[0] += 40
    ledger.beat("a")
    assert ledger.busy() == 1
    ledger.leave("a", ("the LLM", "it is gone", "Start it"))
    ledger.leave("b", ("the LLM", "later", ""))
    assert ledger.busy() == 0 and ledger.beat("c") == ["the LLM", "it is gone", "Start it"]


def test_a_partition_that_fails_waits_until_the_others_have_stored_what_they_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error ends the stage, and with it the others' calls: paid, not stored, and bought again."""
    monkeypatch.setattr(work_module, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr("chuxin.synthesis.asking._PAUSE_SECONDS", 0.0)
    ledger, inside, ended = Ledger(), threading.Event(), []

    class Slow(ScriptedLLM):
        async def ask(self, *given):
            inside.set()
            await asyncio.sleep(0.5)
            return await super().ask(*given)

    def run(name: str, client: ScriptedLLM, rows: int) -> None:
        crew = Crew(client, PlayedLedger(ledger), "m", str(tmp_path), LLMExecution(concurrency=2))
        try:
            crew.run([f"{name}{i}" for i in range(rows)], work, lambda row, error: "")
        except InputError as error:
            ended.append((name, slow.sent["query"], str(error)))

    slow = Slow()
    other = threading.Thread(target=run, args=("good", slow, 20))
    other.start()
    assert inside.wait(60)
    run("bad", ScriptedLLM(lambda given: Unanswered("the network is down")), 1)
    other.join()
    run("later", slow, 3)  # a partition that begins meanwhile begins nothing
    assert sorted(name for name, *_ in ended) == ["bad", "good", "later"]
    for _, sent, told in ended:
        assert sent == 2 and "1 of a partition's 1 rows got no answer" in told  # its two rows in work, and no further
    client = ScriptedLLM()
    crew = Crew(client, played(), "m", str(tmp_path), LLMExecution())
    _, counts = crew.run([f"good{i}" for i in range(20)], work, lambda row, error: "")
    assert counts["calls_stored"] == 2 and client.sent["query"] == 18


def test_a_refused_row_has_a_result_and_a_row_without_an_answer_stops_the_partition(tmp_path: Path) -> None:
    async def number_of(number: int, ask) -> int:
        if number == 3:
            raise CallFailed("too long")
        if number in broken:
            raise ZeroDivisionError("no engine")
        await ask(call(str(number)))
        return number

    client, broken = ScriptedLLM(), {4, 5}
    crew = Crew(client, played(), "m", str(tmp_path), LLMExecution(concurrency=4))
    with pytest.raises(InputError, match="2 of a partition's 8 rows got no answer .2 × ZeroDivisionError: no engine"):
        crew.run(range(8), number_of, lambda row, error: -row)
    assert client.sent["query"] == 5
    broken.clear()
    crew = crew._replace(ledger=played())  # of a new run
    results, counts = crew.run(range(8), number_of, lambda row, error: -row)
    assert results == [0, 1, 2, -3, 4, 5, 6, 7] and (counts["calls_stored"], counts["calls_bought"]) == (5, 2)


def test_a_partition_asks_no_further_where_nothing_answers(tmp_path: Path) -> None:
    async def lose(number: int, ask) -> None:
        begun.append(number)
        raise ConnectionError

    begun: list[int] = []
    crew = Crew(ScriptedLLM(), played(), "m", str(tmp_path), LLMExecution(concurrency=1))
    with pytest.raises(InputError, match="16 of a partition's 100 rows"):
        crew.run(range(100), lose, lambda *_: None)
    assert len(begun) == 16
