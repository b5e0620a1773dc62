"""Any OpenAI-compatible server as the LLM: only parameters that the standard has, and `repetition_penalty` if asked.

Verdicts are one token with the 20 likeliest alternatives; JSON is asked for by its schema. Leaves out: engines of
our own (llm.py).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import time
from typing import Any

from chuxin.errors import InputError
from chuxin.synthesis.calls import Answer, Call, CallFailed, CallRaised, Unanswered, floored

KEY_VARIABLE = "OPENAI_API_KEY"
_ALTERNATIVES = 20  # the most that the standard allows
_RETRIES = 4
_LONGEST_PAUSE = 30.0
_TOO_LARGE = 413


class EndpointClient:
    """Sends calls to a server.

    Args:
        url: Such as http://llm:8000/v1.
        model: The model's name there.
        timeout: Seconds.
    """

    def __init__(self, url: str, model: str, timeout: float) -> None:
        self._url, self._model, self._timeout = url, model, timeout
        self._client: Any = None

    async def check(self) -> None:
        """Raises InputError where the server cannot be reached or lacks the model."""
        try:
            names = await self._guarded(self._names)
        except Unanswered as error:
            raise InputError(self._url, f"the endpoint does not answer ({error})",
                             "Start it, or raise execution.timeout") from error
        finally:
            await self.close()
        if self._model not in names:
            raise InputError(self._url, f"the endpoint has no model {self._model!r}",
                             f"It serves {', '.join(sorted(names)) or 'nothing'}")

    async def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def ask(self, call: Call, share: int | None = None, place: int | None = None) -> Answer:
        """Sends one call."""
        options: dict[str, Any] = {}
        if call.choices:
            options |= {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        if call.schema:
            schema = {"name": call.prompt, "schema": call.schema, "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        if call.repetition_penalty != 1:
            options["extra_body"] = {"repetition_penalty": call.repetition_penalty}
        reply = await self._guarded(
            self._opened().chat.completions.create, model=self._model, messages=call.messages,
            temperature=call.temperature, top_p=call.top_p, max_tokens=call.max_tokens, seed=call.seed, **options,
        )  # fmt: skip
        if not reply.choices:
            raise CallRaised("the endpoint's reply has no choices")
        choice, usage = reply.choices[0], reply.usage
        if usage is None:
            raise InputError(self._url, "the endpoint does not say how many tokens it read and wrote",
                             "Name one whose replies have `usage`: budgets and costs are counted by it")
        cached = getattr(usage.prompt_tokens_details, "cached_tokens", None) or 0
        if call.choices and not (choice.logprobs and choice.logprobs.content):
            raise InputError(self._url, "the endpoint gives no log-probabilities, which verdicts are made of",
                             "Name one that knows `logprobs` and `top_logprobs`, or null to start engines of our own")
        scores = _choices(choice, call.choices) if call.choices else None
        if not all(map(math.isfinite, (scores or {}).values())):
            raise CallRaised(f"the model gives log-probabilities that are no numbers ({scores})")
        return Answer(choice.message.content or "", choice.finish_reason, usage.prompt_tokens,
                      usage.completion_tokens, cached, scores)  # fmt: skip

    async def probe(self, call: Call) -> None:
        """Asks the server for its models; what its engines do is its own business."""
        await self._guarded(self._names)

    def place(self, call: Call) -> int:
        """Returns 0: the server is one engine."""
        return 0

    async def _names(self) -> list[str]:
        return [entry.id async for entry in self._opened().models.list()]

    def _opened(self) -> Any:
        if self._client is None:
            import openai

            key = os.environ.get(KEY_VARIABLE, "none")
            self._client = openai.AsyncOpenAI(base_url=self._url, api_key=key, max_retries=0, timeout=self._timeout)
        return self._client

    async def _guarded(self, send: Any, **options: Any) -> Any:
        import openai

        until, attempt = time.monotonic() + self._timeout, 0
        for waited in itertools.count():
            try:
                return await send(**options)
            except openai.APITimeoutError as error:
                raise Unanswered(f"no answer within {self._timeout:g} s ({_line(error)})") from error
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                raise CallFailed(_line(error)) from error
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise InputError(self._url, f"the endpoint refuses ({_line(error)})",
                                 f"Check llm.endpoint, llm.served_name and the variable {KEY_VARIABLE}") from error
            except openai.RateLimitError as error:
                if time.monotonic() >= until:
                    raise InputError(self._url, f"the endpoint's limit of requests lasts ({_line(error)})",
                                     "Lower execution.concurrency, and run again: stored answers stay") from error
                await asyncio.sleep(_pause(error, waited))
            except openai.InternalServerError as error:
                if attempt >= _RETRIES - 1:  # the server answers: this request may be what it cannot do
                    raise CallRaised(_line(error)) from error
                attempt += 1
                await asyncio.sleep(_pause(error, attempt))
            except openai.APIConnectionError as error:
                if attempt >= _RETRIES - 1:
                    raise InputError(self._url, f"the endpoint does not answer ({_line(error)})",
                                     "Start it or correct llm.endpoint, and run again: stored answers stay") from error
                attempt += 1
                await asyncio.sleep(_pause(error, attempt))
            except openai.APIStatusError as error:
                if error.status_code != _TOO_LARGE:
                    raise
                raise CallFailed(_line(error)) from error
        raise AssertionError  # the loop returns or raises


def _pause(error: Any, attempt: int) -> float:
    """Seconds to wait: what the server says, else ever more, up to half a minute."""
    said = error.response.headers.get("retry-after", "") if hasattr(error, "response") else ""
    return min(max(float(said), 0.2) if said.isdigit() else 0.05 * 4 ** min(attempt, 6), _LONGEST_PAUSE)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _choices(choice: Any, wanted: tuple[str, ...]) -> dict[str, float]:
    """Log-probabilities of the choices as first token; one that is not among the alternatives gets the least of them,
    which it cannot exceed.
    """
    first = choice.logprobs.content[0]
    found: dict[str, float] = {}
    for entry in (first, *first.top_logprobs):
        name = entry.token.strip()
        if name in wanted:
            found[name] = max(found.get(name, -math.inf), floored(entry.logprob))
    if found:
        least = floored(min(entry.logprob for entry in (first, *first.top_logprobs)))
        found = {name: found.get(name, least) for name in wanted}
    return found
