"""The config of the endpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from chuxin.config import ModelRef


@dataclass(frozen=True)
class ServeExecution:
    """How, not what: not part of the fingerprint."""

    host: str = "127.0.0.1"
    """Address to listen on. The endpoint asks for no key: beyond loopback it belongs behind a gateway."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    num_replicas: int = 1
    """Copies of the model."""
    num_cpus: float = 1
    """CPUs of a replica, and the threads it computes with."""
    num_gpus: float = 0
    """GPUs of a replica; with 0 it computes on CPU."""
    batch_tokens: int = 8192
    """Tokens of a batch over all requests waiting in a replica."""
    max_batch_wait_ms: float = 5.0
    """How long an idle replica waits for more requests; a busy one takes whatever has gathered."""
    max_ongoing_requests: int = 256
    """Requests a replica holds at once. Ray Serve's own default is 5, which would cap every batch."""

    def required_cpus(self) -> float:
        """Returns the CPUs that the replicas reserve together."""
        return self.num_replicas * self.num_cpus


@dataclass(frozen=True)
class ServeConfig:
    """What the endpoint answers."""

    model: ModelRef
    """The release: its stage, or a directory."""
    max_length: int
    """Most tokens of an input, special ones included."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation. bfloat16 is about twice as fast on CPUs that have it, and only close to fp32's vectors."""
    truncate: bool = False
    """Cut longer inputs instead of refusing them."""
    token_input: Literal["refuse", "model"] = "refuse"
    """What lists of integers mean; "model": ids of this model's tokenizer, special ones included. Clients
    like LangChain send another tokenizer's ids unasked, and nearly all are valid here too: hence "refuse"."""
    max_inputs: int = 2048
    """Most inputs of a request (OpenAI's own limit)."""
    execution: ServeExecution = field(default_factory=ServeExecution)
    """How, not what: not part of the fingerprint."""
