"""One vLLM engine: it starts it, again where it died, sends calls to it and reads what it gives.

Leaves out: the Ray actor that holds it and who sends it calls (llm.py).
"""

from __future__ import annotations

import asyncio
import functools
import math
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson

from chuxin.errors import InputError
from chuxin.models.location import local_directory
from chuxin.synthesis.calls import (
    Call,
    floored,
)
from chuxin.synthesis.config import LLMConfig, LLMExecution
from chuxin.synthesis.turns import Turns

# vLLM's default on CPUs is 128, and a passage of fewer tokens than a block shares nothing.
_BLOCK = 32
_BATCHED_TOKENS = 4096
"""Tokens that an engine on a CPU computes in one step, at least; a whole prompt must fit."""
_QUEUED = 2
"""Calls in an engine for each that it computes at once: more only wait in it, and are suspected where it dies."""


class Engine:
    """One vLLM engine. An async actor: all its calls run at once, and vLLM batches them.

    Args:
        path: The checkpoint: a directory or hub name, found on this node.
        config: Length, precision, quantisation.
        execution: What it may take.
    """

    def __init__(self, path: str, config: LLMConfig, execution: LLMExecution) -> None:
        self._placed = time.time()  # before a checkpoint is fetched
        self._directory, self._config, self._execution = local_directory(path), config, execution
        self._engine: Any = None
        self._tokenizer: Any = None
        self._choice_ids: dict[str, int] = {}
        self._number = 0
        self._turns = Turns(_QUEUED * execution.max_num_seqs)
        self._starting: asyncio.Task[None] | None = None

    async def start(self) -> tuple[int, float]:
        """Starts the engine if none runs.

        Returns:
            The actor's process id, and the time (Unix seconds) from which on it has its place, and with it its GPUs.

        Raises:
            InputError: The checkpoint cannot be served, or a verdict's choices are not one token each.
        """
        while self._engine is None:
            if self._starting is None or self._starting.done():
                self._starting = asyncio.create_task(self._start())
            # All who wait share its error: each trying again in turn, hundreds of calls would wait for hours.
            await asyncio.shield(self._starting)
        return os.getpid(), self._placed

    async def generate(self, call: Call, share: int | None) -> tuple[str, Any]:
        """Computes one call; `share` as for `Turns.turn`.

        Returns:
            ("answer", fields of Answer), ("refused", message), ("raised", message), ("unanswered", message) or
            ("died", message): data, because an exception would come back wrapped.
        """
        async with self._turns.turn(share):
            await self.start()
            return await self._generate(call)

    async def generate_alone(self, call: Call) -> AsyncIterator[tuple[str, Any]]:
        """Computes one call with the engine to itself; yields ("begun", "") once it is in, then as `generate` returns.

        Whoever asks can so tell whether a process that dies had begun with it.
        """
        async with self._turns.turn(1):
            await self.start()
            yield "begun", ""
            yield await self._generate(call)

    async def forget(self) -> None:
        """Empties the prefix cache, so that a measurement begins anew."""
        await self._engine.reset_prefix_cache()

    async def _start(self) -> None:
        cpu = not self._execution.gpus_per_engine
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        options: dict[str, Any] = {"gpu_memory_utilization": self._execution.gpu_memory_utilization}
        if cpu:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(self._execution.kv_cache_gib)
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            os.environ["OMP_NUM_THREADS"] = str(max(1, int(self._execution.cpus_per_engine)))
            # A prompt cut between two steps makes vLLM turn its request's generator back, which CPU generators cannot
            # do: the engine died of it once some dozens of calls with seeds came together.
            whole = {"enable_chunked_prefill": False,
                     "max_num_batched_tokens": max(_BATCHED_TOKENS, self._config.max_model_len)}  # fmt: skip
            options = {"enforce_eager": True, "block_size": _BLOCK, **whole}
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(
            model=self._directory, dtype=self._config.dtype, quantization=self._config.quantization,
            max_model_len=self._config.max_model_len, tensor_parallel_size=self._execution.tensor_parallel,
            max_num_seqs=self._execution.max_num_seqs, enable_prefix_caching=True, seed=0,
            # Of the choices alone, after all others are masked: both are there however unlikely the model finds them.
            logprobs_mode="processed_logprobs",
            structured_outputs_config={"backend": "xgrammar"}, **options,
            # In a placement group vLLM would start ranks by Ray, beside this actor, which holds what they need.
            distributed_executor_backend="mp" if self._execution.tensor_parallel > 1 else None,
        )  # fmt: skip
        log = os.path.realpath("/proc/self/fd/1")  # Ray's file for this process, and vLLM's processes write there too
        begun = os.path.getsize(log) if os.path.isfile(log) else 0
        try:
            self._engine = AsyncLLM.from_engine_args(arguments)
        except (ValueError, RuntimeError, OSError) as error:
            line = _cause(log, begun) or " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise InputError(self._directory, f"vLLM cannot serve this checkpoint ({line[:300]})",
                             "Check the model, its dtype and quantization, and the memory of execution; see the rest "
                             f"in {log}") from error
        found = self._engine.get_tokenizer()
        self._tokenizer = await found if asyncio.iscoroutine(found) else found

    async def _generate(self, call: Call) -> tuple[str, Any]:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        self._number += 1
        name, result = f"{call.prompt}-{self._number}", None
        engine = self._engine
        try:
            prompt, parameters = {"prompt_token_ids": self._tokens(call)}, self._parameters(call)
        except (InputError, MemoryError):
            raise
        except Exception as error:
            kind = "refused" if isinstance(error, (VLLMClientError, ValueError)) else "raised"
            return kind, f"{type(error).__name__}: {error}"[:500]
        try:
            async with asyncio.timeout(self._execution.timeout):
                async for output in engine.generate(prompt, parameters, request_id=name):
                    result = output
        except EngineDeadError as error:
            self._drop(engine)
            return "died", str(error)
        except TimeoutError:
            await engine.abort(name)
            return "unanswered", f"no answer within {self._execution.timeout:g} s"
        except InputError:
            raise
        except Exception as error:  # a request that vLLM refuses must not take the others down
            if engine.errored:
                self._drop(engine)
                return "died", str(error)
            cause = error.__cause__ or error  # EngineGenerateError wraps what went wrong
            kind = "refused" if isinstance(cause, (VLLMClientError, ValueError)) else "raised"
            return kind, f"{type(cause).__name__}: {cause}"[:500]
        if result is None or result.outputs[0].finish_reason in ("abort", "error"):
            return "unanswered", "the engine gave the request up"
        output = result.outputs[0]
        scores = self._scores(output, call) if call.choices else None
        if not all(map(math.isfinite, (scores or {}).values())):
            return "raised", f"the model gives log-probabilities that are no numbers ({scores})"
        text = output.text if not call.choices else self._tokenizer.decode(output.token_ids)
        return "answer", (text, output.finish_reason if output.finish_reason == "length" and not call.choices
                          else "stop", len(result.prompt_token_ids), len(output.token_ids),
                          result.num_cached_tokens or 0, scores)  # fmt: skip

    def _drop(self, engine: Any) -> None:
        if self._engine is engine:  # the first of its calls to notice; the next call starts another
            engine.shutdown()
            self._engine = None

    def _tokens(self, call: Call) -> list[int]:
        return self._tokenizer.apply_chat_template(
            call.messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )

    def _parameters(self, call: Call) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        options: dict[str, Any] = {}
        if call.choices:
            # The ids themselves: a grammar of the two words also allows the first byte of either.
            options = {"allowed_token_ids": [self._id(c) for c in call.choices], "logprobs": len(call.choices)}
        elif call.schema:
            options = {"structured_outputs": StructuredOutputsParams(grammar=_grammar(orjson.dumps(call.schema)))}
        return SamplingParams(
            temperature=call.temperature, top_p=call.top_p, repetition_penalty=call.repetition_penalty,
            max_tokens=call.max_tokens, seed=call.seed if call.temperature else None, **options,
        )  # fmt: skip

    def _id(self, choice: str) -> int:
        if choice not in self._choice_ids:
            ids = self._tokenizer.encode(choice, add_special_tokens=False)
            if len(ids) != 1:
                raise InputError(self._directory, f"the tokenizer splits {choice!r}, which verdicts need as one token",
                                 "Choose an LLM whose vocabulary holds it")
            self._choice_ids[choice] = ids[0]
        return self._choice_ids[choice]

    def _scores(self, output: Any, call: Call) -> dict[str, float]:
        first = output.logprobs[0]
        return {c: floored(float(first[self._id(c)].logprob)) for c in call.choices if self._id(c) in first}


@functools.lru_cache(maxsize=256)
def _grammar(schema: bytes) -> str:
    """A JSON schema as a grammar that sets one blank after commas and colons, as models write JSON.

    With any blanks allowed, a model that has lost its thread may write them to the end of its tokens. vLLM's own way
    to forbid them (`disable_any_whitespace`) leaves none at all; the sample LLM then wrote "}" into its queries.
    """
    import xgrammar

    separators = (", ", ": ")
    return str(xgrammar.Grammar.from_json_schema(schema.decode(), any_whitespace=False, separators=separators))


def _cause(log: str, begun: int) -> str:
    """The first exception told of after so many bytes: what vLLM raises says only that a process of its own failed."""
    if not os.path.isfile(log):
        return ""
    told = Path(log).read_bytes()[begun:].decode("utf-8", "replace")
    found = re.search(r"\] ([\w.]+(?:Error|Exception): .+)", told)
    return found[1].strip().rstrip(".") if found else ""
