"""An OpenAI-compatible server, played on loopback: what it is sent, what is read, and how it may fail."""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted import played
from served import Server

import chuxin.synthesis.endpoint as endpoint_module
from chuxin.errors import InputError
from chuxin.synthesis.calls import CallFailed, CallRaised, Unanswered, verdict, writing
from chuxin.synthesis.config import LLMExecution, Sampling
from chuxin.synthesis.endpoint import EndpointClient
from chuxin.synthesis.judge import yes
from chuxin.synthesis.render import query_schema
from chuxin.synthesis.work import Crew


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().running() as server:
        yield server


def ask(server: Server, *calls, timeout: float = 10):
    async def run() -> list:
        client = EndpointClient(f"http://127.0.0.1:{server.server_port}/v1", "qwen", timeout)
        try:
            return [await client.ask(call) for call in calls]
        finally:
            await client.close()

    return asyncio.run(run())


WRITING = writing("query", "文", Sampling(), 5, query_schema(), category="百科", role="甲", scene="乙", form="问题")
VERDICT = verdict("standalone", query="甲是谁")


def test_only_the_standards_parameters_are_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    written, said = ask(server, WRITING, VERDICT)
    assert (written.text, written.prompt_tokens, written.output_tokens) == ('{"query": "甲是谁"}', 31, 7)
    assert said.score == pytest.approx(0.875)
    first, second = server.sent
    assert first["response_format"]["json_schema"]["schema"] == query_schema() and first["seed"] == 5
    assert (first["temperature"], first["top_p"], first["repetition_penalty"]) == (0.7, 0.8, 1.05)
    assert second["top_logprobs"] == 20 and second["max_tokens"] == 1 and "repetition_penalty" not in second
    assert server.keys == {"Bearer secret"}


def test_a_choice_beyond_the_alternatives_counts_as_the_least_of_them(server: Server) -> None:
    server.alternatives = {"否": math.log(0.9), "我": math.log(0.01)}
    assert ask(server, VERDICT)[0].score == pytest.approx(0.01 / 0.91)
    server.alternatives = {"我": -0.1}
    with pytest.raises(CallFailed, match="without log-probabilities"):
        _ = ask(server, VERDICT)[0].score


def test_failures_are_the_rows_or_the_users(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_LONGEST_PAUSE", 0.2)
    server.statuses = [500, 429]
    assert ask(server, WRITING)[0].text  # passing trouble is waited out
    server.statuses = [400]
    with pytest.raises(CallFailed, match="status 400"):
        ask(server, WRITING)
    for status in (413, 422):
        server.statuses = [status]
        with pytest.raises(CallFailed, match=f"status {status}"):
            ask(server, WRITING)
    server.statuses = [500] * 4  # the server lives, and this request it cannot do
    with pytest.raises(CallRaised, match="status 500"):
        ask(server, WRITING)
    server.statuses = [429] * 4
    with pytest.raises(InputError, match="limit of requests lasts"):
        ask(server, WRITING, timeout=0.3)
    server.statuses = [429] * 4 + [500]
    assert ask(server, WRITING)[0].text  # a limit is waited out, up to the timeout, and is no failure
    server.statuses = [401]
    with pytest.raises(InputError, match="refuses"):
        ask(server, WRITING)


def test_a_server_that_is_slow_refuses_nothing(server: Server) -> None:
    server.wait = 0.5
    with pytest.raises(Unanswered, match="no answer within 0.05 s"):
        ask(server, WRITING, timeout=0.05)


def test_log_probabilities_that_are_no_numbers_are_no_verdict(server: Server) -> None:
    server.alternatives = {"是": float("nan"), "否": -1.0}
    with pytest.raises(CallRaised, match="log-probabilities that are no numbers"):
        ask(server, VERDICT)


def test_a_probe_leaves_other_requests_their_connection(server: Server) -> None:
    async def run() -> None:
        client = EndpointClient(f"http://127.0.0.1:{server.server_port}/v1", "qwen", 10)
        server.wait = 0.1
        asked = asyncio.create_task(client.ask(WRITING))
        await asyncio.sleep(0.05)
        await client.probe(WRITING)
        assert (await asked).text
        await client.close()

    asyncio.run(run())


def test_a_server_that_is_not_there_or_lacks_the_model(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import chuxin.synthesis.endpoint as module

    monkeypatch.setattr(module, "_RETRIES", 1)
    url = f"http://127.0.0.1:{server.server_port}/v1"
    asyncio.run(EndpointClient(url, "qwen", 10).check())
    with pytest.raises(InputError, match="has no model 'other'.*It serves qwen"):
        asyncio.run(EndpointClient(url, "other", 10).check())
    with pytest.raises(InputError, match="does not answer"):
        asyncio.run(EndpointClient("http://127.0.0.1:9/v1", "qwen", 10).check())


def test_a_server_that_gives_no_log_probabilities_is_said(server: Server, tmp_path: Path) -> None:
    """Each verdict would be nobody's score: the stage must not end with every row refused."""
    server.alternatives = {}
    client = EndpointClient(server.url, "qwen", 10)
    crew = Crew(client, played(), "m", str(tmp_path), LLMExecution(concurrency=2))

    async def work(query: str, ask) -> float:
        return (await yes("standalone", ask, "", 0, query=query))[0]

    with pytest.raises(InputError, match=f"{server.url}: .* gives no log-probabilities.*logprobs"):
        crew.run(["甲", "乙", "丙"], work, lambda *_: 0.0)
    assert len(server.sent) <= 2


def test_a_reply_without_usage_or_choices_is_said(server: Server, tmp_path: Path) -> None:
    """What was paid for cannot be counted: asked again, it would be paid for again."""
    server.usage = None
    with pytest.raises(InputError, match=f"{server.url}: .* how many tokens it read and wrote.*`usage`"):
        ask(server, WRITING)
    assert len(server.sent) == 1
    server.choices = 0
    with pytest.raises(CallRaised, match="reply has no choices"):
        ask(server, WRITING)
