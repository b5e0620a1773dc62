import base64
import json

import numpy as np
import orjson
import pytest

from chuxin.serving.protocols import (
    EmbeddingRequest,
    Limits,
    ProtocolError,
    model_entry,
    parse_request,
    render_response,
    require_length,
)

LIMITS = Limits(model="tiny", width=4, vocabulary=100, max_length=8, max_inputs=3, takes_ids=True)


def parse(limits: Limits = LIMITS, **request: object) -> EmbeddingRequest:
    return parse_request(orjson.dumps({"model": "tiny", **request}), limits)


@pytest.mark.parametrize(("given", "texts", "ids"), [
    ("你好", ["你好"], []),
    (["你好", "b"], ["你好", "b"], []),
    ([5, 6, 7], [], [[5, 6, 7]]),
    ([[5], [6, 7]], [], [[5], [6, 7]]),
])  # fmt: skip
def test_the_four_forms_of_input(given: object, texts: list, ids: list) -> None:
    assert parse(input=given) == EmbeddingRequest(texts, ids, "float")


def test_what_clients_send_along() -> None:
    asked = parse(input="a", encoding_format="base64", user="u", dimensions=4)
    assert asked.encoding_format == "base64"
    assert parse(input="a", encoding_format=None, dimensions=None).encoding_format == "float"


@pytest.mark.parametrize(("request_", "status", "param"), [
    ({"input": "a", "model": "other"}, 404, "model"),
    ({"input": "a", "model": None}, 400, "model"),
    ({"input": "a", "model": 3}, 400, "model"),
    ({}, 400, "input"),
    ({"input": None}, 400, "input"),
    ({"input": ""}, 400, "input"),
    ({"input": []}, 400, "input"),
    ({"input": ["a", ""]}, 400, "input"),
    ({"input": [[]]}, 400, "input"),
    ({"input": [[1], []]}, 400, "input"),
    ({"input": ["a", 1]}, 400, "input"),
    ({"input": [1, "a"]}, 400, "input"),
    ({"input": [True]}, 400, "input"),
    ({"input": [1.5]}, 400, "input"),
    ({"input": {"a": 1}}, 400, "input"),
    ({"input": ["a"] * 4}, 400, "input"),
    ({"input": [100]}, 400, "input"),
    ({"input": [-1]}, 400, "input"),
    ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
    ({"input": "a", "encoding_format": []}, 400, "encoding_format"),
    ({"input": "a", "dimensions": 2}, 400, "dimensions"),
    ({"input": "a", "dimensions": "4"}, 400, "dimensions"),
    ({"input": "a", "input_type": "query"}, 400, "input_type"),
])  # fmt: skip
def test_what_is_refused(request_: dict, status: int, param: str | None) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(**request_)
    assert (caught.value.status, caught.value.param) == (status, param)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"input": "\\ud800", "model": "tiny"}'])
def test_bodies_that_are_no_request(body: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_request(body, LIMITS)
    assert caught.value.status == 400


def test_token_ids_are_refused_unless_they_are_the_model_s() -> None:
    with pytest.raises(ProtocolError, match="check_embedding_ctx_length=False"):
        parse(LIMITS._replace(takes_ids=False), input=[[5, 6]])


def test_the_first_input_that_is_too_long_is_named() -> None:
    require_length([8, 1], 8)
    with pytest.raises(ProtocolError, match=r"input\[1\] has 9 tokens") as caught:
        require_length([8, 9, 10], 8)
    assert caught.value.code == "context_length_exceeded"


def test_errors_have_openai_s_form() -> None:
    error = json.loads(ProtocolError(404, "no", "model", "model_not_found").body())["error"]
    assert error == {
        "message": "no",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert json.loads(ProtocolError(500, "x").body())["error"]["type"] == "server_error"


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_vectors_survive_both_formats_to_the_bit(encoding_format: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    body = json.loads(render_response(vectors, EmbeddingRequest(["a"] * 3, [], encoding_format), "tiny", 11))
    read = {"float": lambda e: np.array(e, np.float32),
            "base64": lambda e: np.frombuffer(base64.b64decode(e), "<f4")}[encoding_format]  # fmt: skip
    np.testing.assert_array_equal(np.stack([read(entry["embedding"]) for entry in body["data"]]), vectors)
    assert [entry["index"] for entry in body["data"]] == [0, 1, 2]
    assert body["usage"] == {"prompt_tokens": 11, "total_tokens": 11}
    assert body["object"] == "list" and body["model"] == "tiny"


def test_model_entries_have_openai_s_form() -> None:
    assert model_entry("tiny", 7) == {"id": "tiny", "object": "model", "created": 7, "owned_by": "chuxin"}
