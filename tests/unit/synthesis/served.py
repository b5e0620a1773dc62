"""An OpenAI-compatible server on loopback: it keeps what it is sent, and fails, waits or falls silent when told to."""

import contextlib
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Answers with `status`, the first-token alternatives and `reply(request)`; after `limit` answers with nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.sent: list[dict] = []
        self.statuses: list[int] = []
        self.alternatives = {"是": math.log(0.7), "否": math.log(0.1), "我": math.log(0.05)}
        self.reply: Callable[[dict], str] = lambda request: '{"query": "甲是谁"}'
        self.usage: dict | None = {"prompt_tokens": 31, "completion_tokens": 7, "total_tokens": 38}
        self.choices = 1
        self.keys: set[str] = set()
        self.wait = 0.0
        self.limit = math.inf
        self.answered: Counter[str] = Counter()
        """Answers by what was asked."""
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def running(self) -> Iterator["Server"]:
        """Serves while the block runs."""
        with self:
            thread = threading.Thread(target=self.serve_forever)
            thread.start()
            try:
                yield self
            finally:
                self.allow(math.inf)
                self.shutdown()
                thread.join()

    def allow(self, limit: float) -> None:
        """Lets it answer so many requests in all; those above wait."""
        with self._changed:
            self.limit = limit
            self._changed.notify_all()

    def take(self, request: dict) -> None:
        """Counts an answer to a request, if one may be given; else waits until the limit is raised and hangs up."""
        with self._changed:
            limit = self.limit
            if self.answered.total() >= limit:
                self._changed.wait_for(lambda: self.limit > limit)
                raise ConnectionAbortedError
            self.answered[json.dumps(request, sort_keys=True)] += 1

    def handle_error(self, *given: Any) -> None:
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
        server.take(body)
        top = [{"token": t, "logprob": p, "bytes": None} for t, p in server.alternatives.items()]
        asked = body.get("logprobs")
        logprobs = {"content": [{**top[0], "top_logprobs": top}], "refusal": None} if asked and top else None
        message = {"role": "assistant", "content": "是" if asked else server.reply(body), "refusal": None}
        choice = {"index": 0, "finish_reason": "stop", "logprobs": logprobs, "message": message}
        self.reply(200, {"id": "1", "object": "chat.completion", "created": 1, "model": "qwen",
                         "choices": [choice][: server.choices], "usage": server.usage})  # fmt: skip
