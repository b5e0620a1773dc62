"""The endpoint as one Ray Serve deployment: HTTP, tokenizer, batcher and model in each replica.

One fused deployment, since a hop between two costs milliseconds. The event loop only speaks HTTP; one thread
tokenises, one computes. Leaves out: authentication, admission control, metrics of its own, other outputs.
"""

# No `from __future__ import annotations` here: Ray Serve ships the class by value, and FastAPI could then not
# resolve the handlers' annotations from their names.
import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, Response
from ray import serve

from chuxin.serving.batcher import Batcher
from chuxin.serving.config import ServeConfig
from chuxin.serving.protocols import (
    Limits,
    ProtocolError,
    model_entry,
    parse_request,
    render_response,
    require_length,
    require_model,
)

JSON = "application/json"
http = FastAPI(title="Chuxin embeddings", docs_url=None, redoc_url=None, openapi_url=None)


@http.exception_handler(ProtocolError)
async def answer_protocol_error(request: Request, error: ProtocolError) -> Response:
    """Answers what the caller did wrong."""
    return Response(error.body(), error.status, media_type=JSON)


@http.exception_handler(404)
@http.exception_handler(405)
async def answer_http_error(request: Request, error: HTTPException) -> Response:
    """Answers unknown paths and methods."""
    wrong = ProtocolError(error.status_code, f"{error.detail}: {request.method} {request.url.path}.")
    return Response(wrong.body(), error.status_code, media_type=JSON, headers=error.headers)


@http.exception_handler(Exception)
async def answer_defect(request: Request, error: Exception) -> Response:
    """Answers a defect of this server; the traceback goes to the replica's log."""
    return Response(ProtocolError(500, "The server failed to embed this input.").body(), 500, media_type=JSON)


def served_name(model_path: str) -> str:
    """Returns the name a release carries in its chuxin.json, or its folder's name."""
    note = Path(model_path) / "chuxin.json"
    name = json.loads(note.read_text(encoding="utf-8")).get("name") if note.is_file() else None
    return name or Path(model_path).resolve().name


@serve.deployment(name="embed")
@serve.ingress(http)
class EmbedServer:
    """A replica: reads the model when it starts, and is ready once it has embedded a first text.

    Args:
        model_path: The release's directory, as this node sees it.
        config: See ServeConfig.
    """

    def __init__(self, model_path: str, config: ServeConfig) -> None:
        import torch

        from chuxin.encoding.engine import Encoder
        from chuxin.models.location import local_directory

        execution = config.execution
        torch.set_num_threads(max(1, int(execution.num_cpus)))
        directory = local_directory(model_path)
        device = "cuda" if execution.num_gpus else "cpu"
        self._encoder = Encoder(directory, config.max_length, execution.batch_tokens, config.dtype, device)
        self._encoder.encode(["预热"])
        self._truncate = config.truncate
        self._created = int(os.path.getmtime(Path(directory) / "config.json"))
        self._limits = Limits(
            served_name(directory), self._encoder.width, len(self._encoder.tokenizer), config.max_length,
            config.max_inputs, config.token_input == "model",
        )  # fmt: skip
        self._batcher = Batcher(self._encoder.encode_ids, execution.batch_tokens, execution.max_batch_wait_ms)
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    @http.post("/v1/embeddings")
    async def embeddings(self, request: Request) -> Response:
        """Embeds texts, in OpenAI's form."""
        asked = parse_request(await request.body(), self._limits)
        loop = asyncio.get_running_loop()
        ids = asked.ids or await loop.run_in_executor(
            self._tokenizing, self._encoder.tokenize, asked.texts, self._truncate
        )
        require_length([len(sequence) for sequence in ids], self._limits.max_length)
        vectors_NH = await self._batcher.embed(ids)
        body = render_response(vectors_NH, asked, self._limits.model, sum(map(len, ids)))
        return Response(body, media_type=JSON)

    @http.get("/v1/models")
    async def models(self) -> dict:
        """Lists the one model."""
        return {"object": "list", "data": [model_entry(self._limits.model, self._created)]}

    @http.get("/v1/models/{name:path}")
    async def model(self, name: str) -> dict:
        """Describes the one model."""
        require_model(name, self._limits.model)
        return model_entry(self._limits.model, self._created)

    @http.get("/health")
    async def health(self) -> dict:
        """Says that this replica can embed."""
        self.check_health()
        return {"status": "ok", "model": self._limits.model}

    def check_health(self) -> None:
        """Ray Serve replaces the replica when this raises."""
        if not self._batcher.alive:
            raise RuntimeError("the batching task has died")


def build(model_path: str, config: ServeConfig) -> serve.Application:
    """Returns the application for `serve.run`."""
    execution = config.execution
    return EmbedServer.options(
        num_replicas=execution.num_replicas,
        max_ongoing_requests=execution.max_ongoing_requests,
        ray_actor_options={"num_cpus": execution.num_cpus, "num_gpus": execution.num_gpus},
    ).bind(model_path, config)
