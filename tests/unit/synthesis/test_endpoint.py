"""An OpenAI-compatible server, played on loopback: what it is sent, what is read, and how it may fail."""

import asyncio
import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from chuxin.errors import InputError
from chuxin.synthesis.calls import CallFailed, Unanswered, verdict, writing
from chuxin.synthesis.config import Sampling
from chuxin.synthesis.endpoint import EndpointClient
from chuxin.synthesis.render import query_schema


class Server(ThreadingHTTPServer):
    """Keeps what it is sent; answers with `status` and the given first-token alternatives."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sent: list[dict] = []
        self.statuses: list[int] = []
        self.alternatives = {"是": math.log(0.7), "否": math.log(0.1), "我": math.log(0.05)}
        self.keys: set[str] = set()
        self.wait = 0.0

    def handle_error(self, *given: object) -> None:
        """A client that does not wait hangs up: nothing to print."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*given)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def reply(self, status: int, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:  # noqa: N802 (the base class calls it so)
        self.reply(200, {"object": "list", "data": [{"id": "qwen", "object": "model", "created": 1, "owned_by": "x"}]})

    def do_POST(self) -> None:  # noqa: N802
        server: Server = self.server  # type: ignore[assignment]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.sent.append(body)
        server.keys.add(self.headers["Authorization"])
        time.sleep(server.wait)
        status = server.statuses.pop(0) if server.statuses else 200
        if status != 200:
            self.reply(status, {"error": {"message": f"status {status}", "type": "x"}})
            return
        top = [{"token": t, "logprob": p, "bytes": None} for t, p in server.alternatives.items()]
        logprobs = {"content": [{**top[0], "top_logprobs": top}], "refusal": None} if body.get("logprobs") else None
        choice = {"index": 0, "finish_reason": "stop", "logprobs": logprobs,
                  "message": {"role": "assistant", "content": '{"query": "甲是谁"}', "refusal": None}}  # fmt: skip
        self.reply(200, {"id": "1", "object": "chat.completion", "created": 1, "model": "qwen", "choices": [choice],
                         "usage": {"prompt_tokens": 31, "completion_tokens": 7, "total_tokens": 38}})  # fmt: skip


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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


def test_failures_are_the_rows_or_the_users(server: Server) -> None:
    server.statuses = [500, 429]
    assert ask(server, WRITING)[0].text  # passing trouble is waited out
    server.statuses = [400]
    with pytest.raises(CallFailed, match="status 400"):
        ask(server, WRITING)
    for status in (413, 422):
        server.statuses = [status]
        with pytest.raises(CallFailed, match=f"status {status}"):
            ask(server, WRITING)
    server.statuses = [401]
    with pytest.raises(InputError, match="refuses"):
        ask(server, WRITING)


def test_a_server_that_is_slow_refuses_nothing(server: Server) -> None:
    server.wait = 0.5
    with pytest.raises(Unanswered, match="no answer within 0.05 s"):
        ask(server, WRITING, timeout=0.05)


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
