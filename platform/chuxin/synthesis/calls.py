"""A request to an LLM and its answer: plain data, the key that a stored answer is found by, and how a request ends.

Leaves out: who computes it (llm.py) and where answers are kept (store.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson
import xxhash

from chuxin.ids import hash63
from chuxin.synthesis.config import Sampling
from chuxin.synthesis.render import NO, YES, prompt_hash, render

_MASK_31 = (1 << 31) - 1


class CallFailed(Exception):
    """This one request was refused, and would be again: its row's status; the others go on."""


class Unanswered(Exception):
    """No answer came for a reason that may pass: a timeout, an engine's error. No row's status."""


class CallRaised(Unanswered):
    """Computing this request raised: perhaps because of it, perhaps because of the engine."""


class EngineDied(Exception):
    """The engine ended while it had this request, perhaps because of it."""


class EngineLeft(EngineDied):
    """The engine ended while this request waited for its turn there: not because of it."""


class Call(NamedTuple):
    """A request. A schema or choices constrain the answer; choices are one token each, with log-probabilities."""

    prompt: str
    messages: list[dict[str, str]]
    temperature: float
    top_p: float
    repetition_penalty: float
    max_tokens: int
    seed: int
    schema: dict[str, Any] | None = None
    choices: tuple[str, ...] = ()
    subject: int = 0
    """Hash of the text that the answer is about, so that it can be forgotten; no part of the key."""


PROBE = Call("probe", [{"role": "user", "content": "你好"}], 0.0, 1.0, 1.0, 1, 0)
"""A short request of our own, that any LLM answers."""
PROBE_VERDICT = PROBE._replace(messages=[{"role": "user", "content": "水是湿的吗？只答是或否。"}], choices=(YES, NO))
"""The same, for one that is to choose."""
_LEAST = -1e4


class Answer(NamedTuple):
    """What came back. `finish` is "stop", or "length" where it was cut; `logprobs` are the choices'."""

    text: str
    finish: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    logprobs: dict[str, float] | None = None

    def require(self, choices: tuple[str, ...]) -> None:
        """Raises CallFailed where a choice has no log-probability: such an answer is of no use, stored or not."""
        missing = [choice for choice in choices if choice not in (self.logprobs or {})]
        if missing:
            raise CallFailed(f"the answer {self.text[:20]!r} came without log-probabilities of {' and '.join(missing)}")

    @property
    def score(self) -> float:
        """Probability of "yes" among the verdict's choices."""
        self.require((YES, NO))
        found = self.logprobs or {}
        return 1 / (1 + math.exp(min(found[NO] - found[YES], 700.0)))


def floored(logprob: float) -> float:
    """A log-probability; that of what cannot be, −inf, as the number −10,000."""
    return _LEAST if logprob == -math.inf else logprob


def key(model: str, call: Call) -> bytes:
    """Returns the 16 bytes that an answer is stored under: model, prompt file, inputs, sampling with its seed.

    Args:
        model: Digest of the model's content, or of the endpoint: neither path nor name.
        call: The request.
    """
    content = [model, prompt_hash(call.prompt), *call[:-1]]
    return xxhash.xxh3_128_digest(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))


def writing(
    prompt: str, passage: str, sampling: Sampling, seed: int, schema: Mapping[str, Any], **fields: str | int
) -> Call:
    """Builds the call for a text in JSON."""
    return Call(
        prompt, render(prompt, passage, **fields), sampling.temperature, sampling.top_p, sampling.repetition_penalty,
        sampling.max_tokens, seed, dict(schema),
    )  # fmt: skip


def verdict(prompt: str, passage: str = "", subject: int = 0, **fields: str) -> Call:
    """Builds the call for a yes or no: one greedy token; `subject` is the hash of the text that it is about."""
    return Call(prompt, render(prompt, passage, **fields), 0.0, 1.0, 1.0, 1, 0, None, (YES, NO), subject)


def seed_of(*fields: str | int) -> int:
    """Returns a sampling seed, 31 bits: engines take no more."""
    return hash63("sampling", *fields) & _MASK_31
