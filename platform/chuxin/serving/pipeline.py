"""Starts the endpoint in this Ray session, either to check it and end (the serve stage) or to stay.

Leaves out: what the endpoint does (app.py), deploying to a cluster that lives on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np

from chuxin.errors import InputError
from chuxin.runner import Context
from chuxin.serving.config import ServeConfig

APP = "chuxin"
# Reading a 2 GB checkpoint from a slow disk takes minutes; a test's takes seconds.
READY_SECONDS = 600.0


def serve(ctx: Context, config: ServeConfig) -> None:
    """Starts the endpoint, embeds the probes through HTTP, compares with the release, and shuts it down.

    Facts: the smallest cosine with the release's own vectors, the served name, the texts sent.
    """
    from chuxin.encoding.agreement import PROBES, require_agreement
    from chuxin.encoding.engine import Encoder

    path = ctx.resolve(config.model)
    encoder = Encoder(path, config.max_length, config.execution.batch_tokens)
    texts = [t for t, ids in zip(PROBES, encoder.tokenize(PROBES, truncate=False), strict=True)
             if config.truncate or len(ids) <= config.max_length]  # fmt: skip
    with ctx.draft.attempt("serve") as attempt, endpoint(path, config) as url:
        ctx.log(f"{url} is up")
        name = call(f"{url}/models")["data"][0]["id"]
        answer = call(f"{url}/embeddings", {"model": name, "input": texts})
        served_NH = np.array([entry["embedding"] for entry in answer["data"]], dtype=np.float32)
        cosine = require_agreement(encoder.encode(texts), served_NH, url)
        attempt.count(facts={"least_cosine_endpoint": cosine, "model": name, "texts": len(texts)})


def run_forever(model_path: str, config: ServeConfig) -> None:
    """Serves until SIGINT or SIGTERM, then takes the endpoint down. Call it from the main thread.

    Args:
        model_path: The release's directory or URI.
        config: See ServeConfig; its `model` is not used.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with endpoint(model_path, config) as url:
            print(_example(url), flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def endpoint(model_path: str, config: ServeConfig) -> Iterator[str]:
    """Starts the endpoint and takes it down with the block.

    Yields:
        Its base URL, as an OpenAI client wants it; the model is loaded and answers.

    Raises:
        InputError: The port is taken, Ray Serve already runs here, or the model cannot be read.
    """
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from chuxin.encoding.engine import Encoder
    from chuxin.serving.app import build

    if ray_serve.status().proxies:
        raise InputError("serve", "Ray Serve already runs in this cluster", "Shut it down: serve shutdown")
    # A replica that cannot read its model is started again and again for minutes: read it here first.
    Encoder(model_path, config.max_length, config.execution.batch_tokens)
    host, port = config.execution.host, free_port(config.execution.host, config.execution.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    try:
        ray_serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=quiet)
        ray_serve.run(build(model_path, config), name=APP, route_prefix="/", logging_config=quiet)
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        call(f"{url}/health")
        yield f"{url}/v1"
    finally:
        _shut_down()


def _shut_down() -> None:
    """Ends Ray Serve as `serve.shutdown` does, which alone would print that its controller died."""
    import ray
    from ray import serve as ray_serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    # RayActorError: the controller's last act is to end itself. ValueError: it never came up.
    with contextlib.suppress(ray.exceptions.RayActorError, ValueError):
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        ray.get(controller.graceful_shutdown.options(max_task_retries=0).remote(), timeout=60)
    ray_serve.shutdown()  # forgets the dead controller


def free_port(host: str, port: int) -> int:
    """Returns `port`, or a free one for 0.

    Raises:
        InputError: It cannot be listened on.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            busy = error.errno == errno.EADDRINUSE
            problem = "the port is taken" if busy else f"cannot listen there ({error.strerror})"
            remedy = "Give another serve.execution.port (0 takes a free one)"
            raise InputError(f"{host}:{port}", problem, remedy) from error
        return probe.getsockname()[1]


def call(url: str, body: dict[str, Any] | None = None) -> Any:
    """Sends a request with a JSON body, or a GET without one, and returns the JSON of the answer.

    Raises:
        InputError: The endpoint refused; its own message is given.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    # No proxy: the endpoint is on this machine or its network, whatever the environment says.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=READY_SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        message = error.read().decode(errors="replace")
        raise InputError(
            url, f"answered {error.code}: {message}", "See the replica's log in Ray's session"
        ) from error


def _example(url: str) -> str:
    name = call(f"{url}/models")["data"][0]["id"]
    body = json.dumps({"model": name, "input": ["如何更换自行车的内胎"]}, ensure_ascii=False)
    curl = f"curl -s {url}/embeddings -H 'Content-Type: application/json' -d '{body}'"
    return f"serving {name} on {url}\ntry: {curl}"
