"""Judging: rules first, each criterion a record, the whole text in the prompt."""

import asyncio
from dataclasses import replace

import pytest
from scripted import ScriptedLLM, document, query

from chuxin.schema import GROUPS, KEEP, VERDICT
from chuxin.synthesis.calls import Answer, CallFailed, Unanswered
from chuxin.synthesis.config import JudgeConfig, LLMConfig
from chuxin.synthesis.judge import accepted, decide, query_id
from chuxin.synthesis.render import CRITERIA, prompt_hash

CONFIG = JudgeConfig("synthesize", LLMConfig("m"))
PASSAGE = "云南省位于中国西南边陲，省会昆明，地势北高南低，民族众多。"


def row(*queries: str, text: str = PASSAGE, status: str = KEEP) -> dict:
    written = [{"query": q, "kind": "question", "status": status, "seed": 5} for q in queries]
    return {"passage_id": 7, "source": "web", "text": text, "text_hash": 3, "prompt_hash": "p", "model": "writer",
            "queries": written}  # fmt: skip


def judged(client: ScriptedLLM, given: dict, config: JudgeConfig = CONFIG) -> list[dict]:
    return asyncio.run(decide(given, client.ask, config))


def test_every_criterion_is_a_record() -> None:
    client = ScriptedLLM(lambda call: 0.2 if call.prompt == "searchable" else 0.8)
    verdicts = judged(client, row("昆明在哪里"))
    assert [v["criterion"] for v in verdicts] == list(CRITERIA)
    assert {v["criterion"]: v["reason"] for v in verdicts} == {
        "standalone": KEEP, "searchable": "searchable", "single_intent": KEEP, "answered": KEEP}  # fmt: skip
    assert verdicts[1]["score"] == pytest.approx(0.2) and verdicts[0]["score"] == pytest.approx(0.8)
    assert all(v["prompt_hash"] == prompt_hash(v["criterion"]) for v in verdicts)
    assert verdicts[0]["query_id"] == query_id(7, "p", "writer", 5, 0)
    assert set(verdicts[0]) == {f.name for f in VERDICT}
    assert accepted(row("昆明在哪里"), verdicts) == []


def test_the_threshold_decides_and_can_be_changed() -> None:
    client = ScriptedLLM(lambda call: 0.6)
    assert all(v["reason"] == KEEP for v in judged(client, row("昆明在哪里")))
    assert all(v["reason"] != KEEP for v in judged(client, row("昆明在哪里"), replace(CONFIG, threshold=0.7)))


def test_rules_come_first_and_cost_nothing() -> None:
    client = ScriptedLLM()
    verdicts = judged(client, row("云", PASSAGE[:26], "云" * 64))
    assert [(v["criterion"], v["reason"], v["score"]) for v in verdicts] == [
        (reason, reason, None) for reason in ("query_too_short", "similar", "query_too_long")]  # fmt: skip
    assert not client.sent
    assert judged(client, row("昆明", status="obeyed_passage"))[0]["reason"] == "obeyed_passage" and not client.sent
    assert [v["reason"] for v in judged(client, row("昆明在哪"), replace(CONFIG, criteria=()))] == [KEEP]


def test_defect_the_judge_sees_the_whole_text_and_every_answer_is_recorded() -> None:
    """Published: prompts are cut to 300 characters after formatting, which takes the question away, and everything
    but "是" vanishes without a record.
    """
    text = PASSAGE + "".join(chr(0x4E00 + i) for i in range(3000))
    seen = []

    def reply(call):
        seen.append(call)
        return 0.5 if "甲" in query(call) else 0.1

    verdicts = judged(ScriptedLLM(reply), row("甲地的省会是哪", "乙地的省会是哪", text=text))
    assert len(verdicts) == 2 * len(CRITERIA)
    shown = [call for call in seen if call.prompt == "answered"]
    assert {document(c) for c in shown} == {text} and all("只答是或否" in c.messages[0]["content"] for c in seen)
    assert {(v["query"], v["verdict"]) for v in verdicts} == {("甲地的省会是哪", "是"), ("乙地的省会是哪", "否")}


def test_two_syntheses_of_a_passage_do_not_share_ids() -> None:
    assert len({query_id(7, "p", "writer", seed, index) for seed in (1, 2) for index in (0, 1)}) == 4


@pytest.mark.parametrize(("asked", "text"), [("昆明<|im_end|>在哪", PASSAGE), ("昆明在哪", PASSAGE + "<|im_start|>")])
def test_what_would_speak_as_the_prompt_is_not_shown(asked: str, text: str) -> None:
    client = ScriptedLLM()
    assert [v["reason"] for v in judged(client, row(asked, text=text))] == ["fence"] and not client.sent


def test_a_verdict_without_an_answer_is_none() -> None:
    """It is not recorded: the partition has to ask again."""
    client = ScriptedLLM(lambda call: Unanswered("no answer") if call.prompt == "searchable" else 0.8)
    with pytest.raises(Unanswered):
        judged(client, row("昆明在哪里"))
    assert client.sent.total() == len(CRITERIA)


def test_a_failed_or_unreadable_verdict_is_recorded_too() -> None:
    verdicts = judged(ScriptedLLM(lambda call: CallFailed("x")), row("昆明在哪里"))
    assert {v["reason"] for v in verdicts} == {"llm_error"} and accepted(row("昆明在哪里"), verdicts) == []
    with pytest.raises(CallFailed):
        _ = Answer("是", "stop", 1, 1).score
    assert Answer("否", "stop", 1, 1, 0, {"是": -1e4, "否": 0.0}).score == pytest.approx(0)


def test_accepted_queries_are_groups_with_the_passage_as_the_one_positive() -> None:
    given = row("昆明在哪里", "昆明在哪里？", "云南的省会")
    groups = accepted(given, judged(ScriptedLLM(), given))
    assert [g["query"] for g in groups] == ["昆明在哪里", "云南的省会"]  # the second is the first's exact duplicate
    first = groups[0]
    assert set(first) == set(GROUPS.names) and first["source"] == "synthetic-web" and first["negatives"] == []
    assert first["positives"] == [{"passage_id": 7, "text": PASSAGE, "text_hash": 3, "score": None}]
    assert first["lineage"] == {"file": None, "position": None, "passage_id": 7}
    assert first["query_id"] == query_id(7, "p", "writer", 5, 0)
