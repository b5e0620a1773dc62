"""Asking through the store: nothing is sent twice, and engines that die are survived or their row set aside."""

import asyncio
from pathlib import Path

import pytest
from scripted import ScriptedLLM, document, good, played

import chuxin.synthesis.asking as asking_module
from chuxin.errors import InputError
from chuxin.synthesis.asking import Asking, together
from chuxin.synthesis.calls import (
    Answer,
    CallFailed,
    CallRaised,
    EngineDied,
    EngineLeft,
    Unanswered,
    key,
    seed_of,
    verdict,
    writing,
)
from chuxin.synthesis.config import LLMExecution, Sampling
from chuxin.synthesis.render import CRITERIA, query_schema
from chuxin.synthesis.store import AnswerStore
from chuxin.synthesis.turns import Turns
from chuxin.synthesis.work import Crew


def call(passage: str = "文", seed: int = 1):
    fields = {"category": "百科", "role": "甲", "scene": "乙", "form": "问题"}
    return writing("query", passage, Sampling(), seed, query_schema(), **fields)


def ask(client: ScriptedLLM, folder: Path, *calls) -> tuple[list, dict]:
    async def run(asking: Asking) -> list:
        return await asyncio.gather(*map(asking, calls), return_exceptions=True)

    with AnswerStore(str(folder)) as store:
        asking = Asking(client, store, "m", max_crashes=2)
        results = asyncio.run(run(asking))
        if not any(isinstance(result, InputError) for result in results):
            asking.settle()
        return results, dict(asking.counts)


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
    assert client.probes == 2  # the engine answers others each time: it is the call
    # The quarantine is stored: the next run does not crash engines again.
    (poisoned,), counts = ask(client, tmp_path, call("毒"))
    assert isinstance(poisoned, CallFailed) and counts == {"calls_stored": 1}


def test_rows_with_one_call_get_the_same_of_it(tmp_path: Path) -> None:
    client = ScriptedLLM(lambda given: EngineDied("poison"))
    both, _ = ask(client, tmp_path, call(), call())
    again, _ = ask(ScriptedLLM(), tmp_path, call())
    assert [(type(e), str(e)) for e in (*both, *again)] == [(CallFailed, "crashes_engine")] * 3


def test_an_engine_that_dies_of_itself_blames_no_row(tmp_path: Path) -> None:
    client = ScriptedLLM(lambda given: EngineDied("no memory"))
    client.dead = lambda: True
    (told,), counts = ask(client, tmp_path, call())
    assert isinstance(told, InputError) and "not even 3 short calls: no memory" in str(told)
    assert "calls_quarantined" not in counts
    (answer,), counts = ask(ScriptedLLM(), tmp_path, call())
    assert answer.text and counts["calls_bought"] == 1
    # Deaths of its own in between are not counted either: two of the call are what it takes.
    probes = iter([True, True, False, False])
    client.dead = lambda: next(probes)
    (told,), counts = ask(client, tmp_path, call("别"))
    assert str(told) == "crashes_engine" and counts["engine_deaths"] == 5 and counts["probes_failed"] == 2


class Shared(ScriptedLLM):
    """An engine that calls share: a poisoned one takes all down that are in it."""

    def __init__(self, poisoned) -> None:
        super().__init__()
        self.poisoned, self.turns, self.deaths = poisoned, Turns(1000), 0

    async def ask(self, call, share: int | None = None, place: int | None = None):
        async with self.turns.turn(share):
            await self.inside(self.poisoned(call))
            return await super().ask(call, share, place)

    async def probe(self, call) -> None:
        async with self.turns.turn(1):
            await self.inside(self.poisoned(None))

    async def inside(self, poisoned: bool) -> None:
        lived = self.deaths
        await asyncio.sleep(0)
        if poisoned and lived == self.deaths:
            self.deaths += 1
        await asyncio.sleep(0)
        if self.deaths > lived:
            raise EngineDied("poison")


def test_hundreds_that_shared_a_dying_engine_do_not_go_one_by_one(tmp_path: Path) -> None:
    client = Shared(lambda call: call is not None and document(call) == "300")
    told, counts = ask(client, tmp_path, *(call(str(i)) for i in range(600)))
    assert [i for i, e in enumerate(told) if isinstance(e, Exception)] == [300]
    assert str(told[300]) == "crashes_engine" and client.sent["query"] == counts["calls_bought"] == 599
    assert client.deaths == 4 and client.alone <= 36  # the poisoned one among 600, among 37, and twice alone
    assert client.shares.count(37) > 500


def test_hundreds_in_an_engine_that_dies_of_itself_find_it_out_once(tmp_path: Path) -> None:
    client = Shared(lambda call: True)
    told, counts = ask(client, tmp_path, *(call(str(i)) for i in range(600)))
    assert {type(e) for e in told} == {InputError} and "calls_quarantined" not in counts
    assert client.deaths < 30  # a start each: one call's tries alone, and 37 at once of the others


def test_quarantines_in_a_row_stop_and_are_not_kept(tmp_path: Path) -> None:
    client = ScriptedLLM(lambda given: EngineDied("a bad card"))
    told, counts = ask(client, tmp_path, *(call(str(i)) for i in range(8)))
    assert sum(isinstance(e, InputError) for e in told) == 1 and counts["calls_quarantined"] == 8
    assert "8 requests in a row" in str(next(e for e in told if isinstance(e, InputError)))
    answers, counts = ask(ScriptedLLM(), tmp_path, *(call(str(i)) for i in range(8)))
    assert all(a.text for a in answers) and counts == {**counts, "calls_bought": 8}
    # An answer between two shows that the engine is sound: then each is its own fault.
    bad = "0", "2", "4", "6"
    client = ScriptedLLM(lambda given: EngineDied("x") if document(given) in bad else good(given))
    told = [ask(client, tmp_path / "other", call(str(i)))[0][0] for i in range(8)]
    assert [i for i, e in enumerate(told) if isinstance(e, CallFailed)] == [0, 2, 4, 6]


def test_an_answer_of_one_engine_confirms_no_quarantine_of_another(tmp_path: Path) -> None:
    dead = lambda given: document(given) < "5" and not (first and first.pop())  # noqa: E731
    first = [True]  # it broke after its first answer
    client = ScriptedLLM(lambda given: EngineDied("a bad card") if dead(given) else good(given))
    client.engine = lambda given: int(document(given) < "5")
    told = []

    async def run(asking: Asking) -> None:
        for name in "05162":  # the sound engine answers between the broken one's deaths
            try:
                told.append(await asking(call(name)))
            except CallFailed as error:
                told.append(error)
        with pytest.raises(InputError, match="3 requests in a row"):
            await asking(call("3"))

    with AnswerStore(str(tmp_path)) as store:
        asyncio.run(run(Asking(client, store, "m", max_crashes=1)))
    assert [isinstance(e, CallFailed) for e in told] == [False, False, True, False, True]
    answers, counts = ask(ScriptedLLM(), tmp_path, *map(call, "05162"))
    assert all(a.text for a in answers) and (counts["calls_bought"], counts["calls_stored"]) == (2, 3)


def test_a_lone_call_is_not_blamed_for_a_death_that_it_waited_through(tmp_path: Path) -> None:
    # It dies among others; alone, it waits through three deaths, dies once in the engine, and is answered.
    deaths = [EngineDied("x"), *[EngineLeft("x")] * 3, EngineDied("x")]
    client = ScriptedLLM(lambda given: deaths.pop(0) if deaths else good(given))
    (answer,), counts = ask(client, tmp_path, call())
    assert answer.text and "calls_quarantined" not in counts and client.probes == 1
    # What dies before it is known to have begun is not waited for without end.
    client = ScriptedLLM(lambda given: EngineLeft("x"))
    (told,), counts = ask(client, tmp_path / "other", call())
    assert str(told) == "crashes_engine" and client.sent["query"] == 1 + asking_module._WAITS + 2


def test_a_poisoned_query_of_several_calls_does_not_stop_the_others(tmp_path: Path) -> None:
    """Its calls, one a criterion, are quarantined in a row: the engine has to answer what it answered before."""
    def judged(client: ScriptedLLM, *queries: str) -> tuple[list, dict]:
        return ask(client, tmp_path, *(verdict(name, query=q) for q in queries for name in CRITERIA[:3]))

    def reply(given):
        return EngineDied("poison") if "毒" in given.messages[0]["content"] else 0.9

    client = ScriptedLLM(reply)
    told, counts = judged(client, "善", "毒", "美")
    assert [isinstance(one, CallFailed) for one in told] == [False] * 3 + [True] * 3 + [False] * 3
    assert counts["calls_quarantined"] == 3 and counts["calls_bought"] == 6
    # And again with everything stored: nothing is sent.
    again, counts = judged(ScriptedLLM(reply), "善", "毒", "美")
    assert counts == {"calls_stored": 9} and [type(one) for one in again] == [type(one) for one in told]


def test_many_quarantines_stop_the_partition_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking_module, "_MOST_QUARANTINED", 5)

    def reply(given):
        return EngineDied("too long for this card") if int(document(given)) % 2 else good(given)

    for first in (1, 11):
        told = [ask(ScriptedLLM(reply), tmp_path, *map(call, map(str, range(20))))[0]]
        assert any("5 requests of one partition" in str(one) for one in told[0]), first
    told, counts = ask(ScriptedLLM(reply), tmp_path, *map(call, map(str, range(20))))
    assert counts["calls_stored"] >= 15


def test_a_request_that_raises_fails_alone_where_the_engine_answers_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking_module, "_PAUSE_SECONDS", 0.0)
    client = ScriptedLLM(lambda given: CallRaised("no such template") if document(given) == "3" else good(given))
    told, counts = ask(client, tmp_path, *map(call, "1234"))
    assert [type(one) for one in told] == [Answer, Answer, CallFailed, Answer] and "no such template" in str(told[2])
    assert counts["calls_witness"] == 1 and counts["calls_bought"] == 3
    # Of an engine that no longer answers what it answered before, all stop at once, and no row is blamed.
    answered = [True] * 2
    client = ScriptedLLM(lambda given: good(given) if answered and answered.pop() else CallRaised("bad gateway"))
    told, counts = ask(client, tmp_path / "gone", *map(call, map(str, range(64))))
    assert [type(one) for one in told[:2]] == [Answer, Answer] and {type(one) for one in told[2:]} == {InputError}
    assert counts["calls_witness"] == 1 and "not answer even what it answered before" in str(told[2])
    # A witness that is refused now shows that the engine lives.
    first = [True]
    client = ScriptedLLM(lambda given: good(given) if first and first.pop() else
                         CallFailed("too long now") if document(given) == "1" else CallRaised("x"))  # fmt: skip
    told, _ = ask(client, tmp_path / "shorter", *map(call, "12"))
    assert type(told[1]) is CallFailed and str(told[1]) == "x"
    # One that has answered nothing yet is asked a short call under the same constraint.
    raises = [CallRaised("out of memory")]
    client = ScriptedLLM(lambda given: "{" if given.prompt == "probe" and given.schema else raises[0])
    (told,), _ = ask(client, tmp_path / "lone", call("5"))
    assert type(told) is CallFailed and client.sent == {"query": 6, "probe": 1}
    # Where that is not answered either it is nobody's status.
    (told,), _ = ask(ScriptedLLM(lambda given: raises[0]), tmp_path / "other", call("5"))
    assert type(told) is InputError and "not answer even a short one of our own (out of memory)" in str(told)


def test_a_short_call_goes_to_the_engine_that_it_is_to_vouch_for(tmp_path: Path) -> None:
    """Two engines, one of which answers nothing: the other's answers excuse no row."""
    def reply(given):
        bad = client.places[-1] == 1
        return CallRaised("NaN") if bad else good(given) if given.choices or given.prompt != "probe" else "{"

    client = ScriptedLLM(reply)
    client.engine = lambda given: int(document(given) in ("1", "3"))  # and probes of themselves to the sound one
    told, _ = ask(client, tmp_path, *map(call, "1"))
    assert type(told[0]) is InputError and "not answer even a short one of our own (NaN)" in str(told[0])
    client.places.clear()
    client.reply = lambda given: CallFailed("no") if client.places[-1] == 1 else good(given)
    client.engine = lambda given: int(given.prompt != "probe")
    told, _ = ask(client, tmp_path / "refused", *map(call, map(str, range(16))))
    assert type(told[-1]) is InputError and "a short one of our own too (no)" in str(told[-1])


def test_short_calls_do_not_vouch_for_an_engine_that_answers_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a proxy's time limit lets one token pass and no text: after eight calls it is not the calls."""
    monkeypatch.setattr(asking_module, "_PAUSE_SECONDS", 0.0)
    client = ScriptedLLM(lambda given: "{" if given.prompt == "probe" else CallRaised("504"))
    told, _ = ask(client, tmp_path, *map(call, map(str, range(64))))
    assert sum(type(one) is CallFailed for one in told) == 7
    assert "answers short calls of our own and none of 8 others (504)" in str(told[-1])


def test_an_outage_that_passes_before_the_witness_is_asked_blames_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking_module, "_PAUSE_SECONDS", 0.0)
    raises = iter([False, *[True] * 25])  # the eight at work try three times each, and the witness once in vain
    client = ScriptedLLM(lambda given: CallRaised("503") if next(raises, False) else good(given))

    async def work(text: str, ask) -> str:
        return (await ask(call(text))).text

    crew = Crew(client, played(), "m", str(tmp_path), LLMExecution(concurrency=8))
    results, counts = crew.run([*map(str, range(12))], work, lambda row, error: "failed")
    assert "failed" not in results and (counts["calls_bought"], counts["calls_unanswered"]) == (12, 25)


def test_refusals_in_a_row_are_the_rows_own_while_the_engine_answers_what_it_did(tmp_path: Path) -> None:
    many = [*map(call, map(str, range(64)))]
    client = ScriptedLLM(lambda given: good(given) if document(given) == "0" else CallFailed("too long"))
    told, counts = ask(client, tmp_path, *many)
    assert [type(one) for one in told] == [Answer, *[CallFailed] * 63] and counts["calls_witness"] == 63 // 16
    # A spent account refuses that too: all stop, and a rerun asks again.
    answered = [True] * 2
    client = ScriptedLLM(lambda given: good(given) if answered and answered.pop() else CallFailed("no credit"))
    told, _ = ask(client, tmp_path / "spent", *many)
    assert isinstance(told[-1], InputError) and client.sent["query"] == 2 + 16 + 1
    assert "refused 16 requests in a row, and what it answered before too (no credit)" in str(told[-1])
    told, counts = ask(ScriptedLLM(), tmp_path / "spent", *many)
    assert counts["calls_stored"] == 2 and counts["calls_bought"] == 62
    told, _ = ask(ScriptedLLM(lambda given: CallFailed("no template")), tmp_path / "none", *many)
    assert "refused 16 requests in a row, and a short one of our own too (no template)" in str(told[-1])
    # One that has answered nothing yet is asked a short call.
    client = ScriptedLLM(lambda given: "好" if given.prompt == "probe" else CallFailed("too long"))
    told, _ = ask(client, tmp_path / "short", *many)
    assert {type(one) for one in told} == {CallFailed} and client.sent["probe"] == 64 // 16


def test_a_verdict_without_log_probabilities_is_a_refusal_and_not_stored(tmp_path: Path) -> None:
    """A server that thinks before it answers gives none; once it is put right, all are asked again."""
    asked = [verdict("standalone", query=str(number)) for number in range(64)]
    client = ScriptedLLM(lambda given: "<think>")
    told, counts = ask(client, tmp_path, *asked)
    assert isinstance(told[-1], InputError) and "a short one of our own too" in str(told[-1])
    assert "the answer '<think>' came without log-probabilities of 是 and 否" in str(told[0])
    assert counts["prompt_tokens_bought"] >= 16 * 100 and "calls_bought" not in counts
    told, counts = ask(ScriptedLLM(), tmp_path, *asked)
    assert counts["calls_bought"] == 64 and all(0 < one.score < 1 for one in told)
    # One that chooses where it can: these rows are not its fault.
    client = ScriptedLLM(lambda given: good(given) if given.prompt == "probe" else "不")
    told, _ = ask(client, tmp_path / "other", *asked)
    assert {type(one) for one in told} == {CallFailed} and client.sent["probe"] == 64 // 16


def test_that_nothing_can_be_sent_outranks_a_row_s_own_failure() -> None:
    async def fail(error: Exception) -> None:
        raise error

    with pytest.raises(InputError, match="the LLM: it refused"):
        asyncio.run(together([fail(CallFailed("x")), fail(InputError("the LLM", "it refused", "Repair it"))]))


def test_a_probe_that_only_waited_blames_nobody(tmp_path: Path) -> None:
    deaths, waits = [EngineDied("x")] * 2, [True] * 5

    class Busy(ScriptedLLM):
        async def probe(self, given) -> None:
            if waits and waits.pop():
                raise EngineLeft("another's")

    (answer,), counts = ask(Busy(lambda given: deaths.pop() if deaths else good(given)), tmp_path, call())
    assert answer.text and "probes_failed" not in counts and not waits


def test_a_request_without_an_answer_is_sent_again_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking_module, "_PAUSE_SECONDS", 0.0)
    for error in (Unanswered("no answer within 600 s"), ConnectionResetError("gone")):
        replies = iter([error, error, good(call())])
        (answer,), counts = ask(ScriptedLLM(lambda given: next(replies)), tmp_path / repr(error), call())  # noqa: B023
        assert answer.text and counts["calls_unanswered"] == 2
        client = ScriptedLLM(lambda given: error)  # noqa: B023
        (told,), _ = ask(client, tmp_path / "never", call())
        assert told is error and client.sent["query"] == 3


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    (answer,), _ = ask(ScriptedLLM(lambda given: "甲\ud83d乙\ud83d\ude00"), tmp_path, call())
    assert answer.text == "甲\ufffd乙😀"
    (again,), counts = ask(ScriptedLLM(), tmp_path, call())
    assert again.text == answer.text and counts == {"calls_stored": 1}


def test_a_refused_request_is_that_rows_and_is_not_stored(tmp_path: Path) -> None:
    client = ScriptedLLM(lambda given: CallFailed("too long"))
    (failed,), _ = ask(client, tmp_path, call())
    assert isinstance(failed, CallFailed)
    (answer,), counts = ask(ScriptedLLM(), tmp_path, call())
    assert answer.text and counts["calls_bought"] == 1
