"""OpenAI's embeddings protocol as bytes in, bytes out. Pure: no web framework, no model.

Leaves out: `dimensions` other than the model's width, streaming, other dialects.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

FIELDS = ("input", "model", "encoding_format", "dimensions", "user")
FORMATS = ("float", "base64")


class ProtocolError(Exception):
    """An answer in OpenAI's error form.

    Args:
        status: HTTP status.
        message: For the caller to read.
        param: The field at fault, or None.
        code: Machine-readable, or None.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message, param, code)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> bytes:
        """Returns the JSON body. Its type is the server's fault from 500 on, the caller's below."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})


class EmbeddingRequest(NamedTuple):
    """A checked request: exactly one of `texts` and `ids` is filled."""

    texts: list[str]
    ids: list[list[int]]
    encoding_format: str


class Limits(NamedTuple):
    """What the endpoint takes; see ServeConfig."""

    model: str
    width: int
    vocabulary: int
    max_length: int
    max_inputs: int
    takes_ids: bool


def parse_request(body: bytes, limits: Limits) -> EmbeddingRequest:
    """Checks a request.

    Raises:
        ProtocolError: 404 for another model, 400 for anything else that cannot be answered.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(400, f"The body is not JSON: {error}.") from error
    if not isinstance(request, dict):
        raise ProtocolError(400, "The body must be a JSON object.")
    for name in request:
        if name not in FIELDS:
            raise ProtocolError(400, f"Unrecognized request argument: {name}.", name)
    require_model(request.get("model"), limits.model)
    encoding_format = "float" if request.get("encoding_format") is None else request["encoding_format"]
    if encoding_format not in FORMATS:
        raise ProtocolError(400, f"encoding_format must be one of {', '.join(FORMATS)}.", "encoding_format")
    if request.get("dimensions") not in (None, limits.width):
        message = f"This model has vectors of {limits.width} dimensions; they cannot be shortened."
        raise ProtocolError(400, message, "dimensions")
    texts, ids = _inputs(request.get("input"), limits)
    return EmbeddingRequest(texts, ids, encoding_format)


def require_model(asked: Any, served: str) -> None:
    """Refuses a request for another model.

    Raises:
        ProtocolError: 400 without a model's name, 404 with another's.
    """
    if not isinstance(asked, str) or not asked:
        raise ProtocolError(400, "You must give a model.", "model")
    if asked != served:
        message = f"The model `{asked}` does not exist; this endpoint serves `{served}`."
        raise ProtocolError(404, message, "model", "model_not_found")


def require_length(lengths: Sequence[int], max_length: int) -> None:
    """Refuses inputs that are too long.

    Raises:
        ProtocolError: 400, naming the first one.
    """
    for index, length in enumerate(lengths):
        if length > max_length:
            message = f"input[{index}] has {length} tokens; this endpoint takes at most {max_length}."
            raise ProtocolError(400, message, "input", "context_length_exceeded")


def render_response(
    vectors_NH: np.ndarray, request: EmbeddingRequest, model: str, prompt_tokens: int
) -> bytes:
    """Returns the JSON body of an answer.

    Args:
        vectors_NH: float32 [N, H].
        request: What was asked.
        model: The served model's name.
        prompt_tokens: Tokens of all inputs, special ones included.
    """
    vectors_NH = np.ascontiguousarray(vectors_NH, dtype="<f4")
    if request.encoding_format == "base64":
        embeddings: list[Any] = [base64.b64encode(row).decode() for row in vectors_NH]
    else:
        embeddings = list(vectors_NH)
    data = [{"object": "embedding", "index": i, "embedding": e} for i, e in enumerate(embeddings)]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    answer = {"object": "list", "data": data, "model": model, "usage": usage}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def model_entry(model: str, created: int) -> dict[str, Any]:
    """Returns a model as /v1/models lists it; `created` in seconds since 1970."""
    return {"id": model, "object": "model", "created": created, "owned_by": "chuxin"}


def _inputs(given: Any, limits: Limits) -> tuple[list[str], list[list[int]]]:
    """Sorts `input` into texts or token ids."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise ProtocolError(400, "input must be a string, or a list that is not empty.", "input")
    if _is_id(given[0]):
        given = [given]
    if len(given) > limits.max_inputs:
        message = f"input has {len(given)} entries; this endpoint takes at most {limits.max_inputs}."
        raise ProtocolError(400, message, "input")
    if all(isinstance(text, str) for text in given):
        _refuse_empty(given)
        return given, []
    if not all(isinstance(sequence, list) and all(map(_is_id, sequence)) for sequence in given):
        raise ProtocolError(400, "input must be a string, a list of strings, or lists of token ids.", "input")
    if not limits.takes_ids:
        message = (
            "This endpoint takes text, not token ids: those of another tokenizer would give meaningless "
            "vectors. (LangChain: set check_embedding_ctx_length=False.)"
        )
        raise ProtocolError(400, message, "input")
    _refuse_empty(given)
    for index, sequence in enumerate(given):
        if max(sequence) >= limits.vocabulary or min(sequence) < 0:
            message = f"input[{index}] holds an id outside this model's vocabulary of {limits.vocabulary}."
            raise ProtocolError(400, message, "input")
    return [], given


def _refuse_empty(given: Sequence[Any]) -> None:
    for index, entry in enumerate(given):
        if not entry:
            raise ProtocolError(400, f"input[{index}] is empty.", "input")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
