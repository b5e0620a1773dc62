"""Configs of the stages gate, synthesize, judge and relabel. Imports nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Literal

from chuxin.config import ModelRef, Ref
from chuxin.errors import InputError
from chuxin.synthesis.render import (
    CRITERIA,
    DIFFICULTIES,
    KINDS,
    LENGTHS,
    PROMPTS,
    Criterion,
    Difficulty,
    Kind,
    Length,
    prompt_hash,
)


@dataclass(frozen=True)
class Sampling:
    """How queries are drawn; verdicts are greedy. The defaults are the published recipe's (Qwen2-72B-Instruct)."""

    temperature: float = 0.7
    """0 takes the likeliest token; a retry then repeats its answer."""

    top_p: float = 0.8
    """Share of the probability that the next token is drawn from."""

    repetition_penalty: float = 1.05
    """Divides the logits of tokens that occurred; 1 is none."""

    max_tokens: int = 256
    """Most tokens of an answer; a longer one is cut and rejected as `cut`."""


@dataclass(frozen=True)
class LLMConfig:
    """Which LLM answers: a checkpoint in engines of our own, or an OpenAI-compatible endpoint."""

    model: ModelRef
    """The checkpoint's directory or hub name. With an endpoint only its tokenizer is read."""

    endpoint: str | None = None
    """URL of an OpenAI-compatible server, such as http://llm:8000/v1; the key, if it asks for one, is taken from the
    variable OPENAI_API_KEY. Null: engines of our own (vLLM)."""

    served_name: str | None = None
    """The model's name at the endpoint."""

    revision: str | None = None
    """Any word of yours for the state of the endpoint's model: answers are found by URL, name and this. Another word
    where the model behind the same name is another one, and nothing that the old one answered is used any more."""

    quantization: str | None = None
    """vLLM's name of a quantisation applied while loading, such as fp8; null reads GPTQ, AWQ and FP8 checkpoints as
    they declare themselves. CPUs without AMX compute of FP8 only what compressed-tensors stores with a scale a channel
    (FP8_DYNAMIC); vLLM refuses the rest there."""

    dtype: str = "auto"
    """Precision of the model: auto (the checkpoint's), float32 or bfloat16."""

    max_model_len: int = 2048
    """Tokens of a prompt and its answer."""

    def __post_init__(self) -> None:
        """An endpoint is asked for a model by its name there."""
        if (self.endpoint is None) != (self.served_name is None):
            raise ValueError("endpoint and served_name go together")
        if self.revision is not None and self.endpoint is None:
            raise ValueError("revision is for an endpoint: a checkpoint is known by its content")


@dataclass(frozen=True)
class LLMExecution:
    """How the work is done: changes no answer that is already stored."""

    engines: int = 1
    """vLLM engines, each an actor of its own."""

    tensor_parallel: int = 1
    """GPUs that one engine's model is spread over."""

    cpus_per_engine: float = 1
    """CPUs that an engine reserves."""

    gpus_per_engine: float = 0
    """GPUs that an engine reserves; 0 runs it on the CPU. As many as tensor_parallel on GPU machines."""

    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory that an engine takes (vLLM's default)."""

    kv_cache_gib: int = 1
    """GiB for keys and values of an engine on a CPU."""

    max_num_seqs: int = 64
    """Requests that an engine computes at once."""

    concurrency: int = 64
    """Rows in work at once in one partition."""

    num_cpus: float = 0.5
    """CPUs that one partition reserves; it sends and parses, and waits for the engines."""

    max_crashes: int = 2
    """Times a row may bring an engine down, alone in it, before it is set aside as `crashes_engine`."""

    timeout: float = 600
    """Seconds after which a request counts as unanswered; it is sent three times."""

    start_timeout: float = 1800
    """Seconds that an engine may wait for its place in the cluster and load its model; then the stage ends."""

    hour_price: float | None = None
    """Price of an engine's hour (of the endpoint's, with one), in any currency: noted when the stage runs, and the
    report multiplies."""

    answers: str | None = None
    """Local directory, absolute or from ~ on, reached by all nodes, where every answer is stored; null:
    WORKSPACE/answers."""

    budget_tokens: int | None = None
    """Tokens, read and written, that one run of this stage may buy; then it stops, and a rerun goes on. Stored answers
    cost none. Rows in work are finished, so it is passed by at most `concurrency` rows a partition."""

    budget_gpu_hours: float | None = None
    """Hours of all engines' GPUs (of engines, where they have none) that one run of this stage may take, from when
    they have their place on."""

    def __post_init__(self) -> None:
        """What cannot work is refused here."""
        if min(self.engines, self.tensor_parallel, self.max_num_seqs, self.concurrency, self.max_crashes) < 1:
            raise ValueError("engines, tensor_parallel, max_num_seqs, concurrency and max_crashes must be at least 1")
        if self.gpus_per_engine and self.gpus_per_engine < self.tensor_parallel:
            raise ValueError("gpus_per_engine must be at least tensor_parallel")
        if self.gpus_per_engine > 1 and self.gpus_per_engine % 1:
            raise ValueError("gpus_per_engine beyond 1 must be whole: Ray gives parts of one GPU only")

    def reserves(self) -> dict[str, float]:
        """Returns what an engine reserves, by Ray's names."""
        each = {"CPU": self.cpus_per_engine, "GPU": self.gpus_per_engine}
        return {name: number for name, number in each.items() if number}

    def answers_in(self, workspace: str) -> str:
        """Returns the answer store's directory: `answers` with ~ and file:// resolved, else the workspace's own."""
        return os.path.expanduser((self.answers or f"{workspace}/answers").removeprefix("file://"))

    def with_budget(self, given: str) -> LLMExecution:
        """Returns the same with one budget, as the flag `--budget` has it: `200000000` (tokens) or `2.5h` (GPU hours).

        Raises:
            InputError: It is neither.
        """
        number = given.removesuffix("h")
        whole = number if given == number else number.replace(".", "", 1)
        if not (whole.isascii() and whole.isdigit()):
            raise InputError("--budget", f"{given!r} is no number of tokens and no number of GPU hours",
                             "Give tokens, such as 200000000, or GPU hours, such as 2.5h")
        hours = None if given == number else float(number)
        return replace(self, budget_tokens=int(number) if hours is None else None, budget_gpu_hours=hours)

    @property
    def limited(self) -> bool:
        """True where a budget is set."""
        return self.budget_tokens is not None or self.budget_gpu_hours is not None

    def engine_options(self) -> tuple[float, ...]:
        """Returns what shapes the engines: stages where it is the same can use the same ones."""
        return (self.engines, self.tensor_parallel, self.cpus_per_engine, self.gpus_per_engine,
                self.gpu_memory_utilization, self.kv_cache_gib, self.max_num_seqs, self.timeout)  # fmt: skip

    def required_cpus(self) -> float:
        """CPUs that must be there at once: all engines and one partition."""
        return self.engines * self.cpus_per_engine + self.num_cpus


@dataclass(frozen=True)
class GateConfig:
    """A small classifier of passages worth a query, taught by an LLM's verdicts on a sample of them."""

    passages: Ref
    """The curate stage."""

    llm: LLMConfig
    """The teacher."""

    seed: int
    """Draws the sample and its split."""

    labels: int = 2000
    """Passages that the LLM is asked about. ChineseWebText's EvalWeb and CCI3-HQ teach theirs with 10^5."""

    validation_share: float = 0.25
    """Share of the labels that the threshold is chosen on."""

    keep_recall: float = 0.95
    """Share of the good passages of the validation set that the threshold keeps."""

    passage_max_tokens: int = 512
    """Tokens of a passage that LLM and classifier see."""

    execution: LLMExecution = LLMExecution()
    """How, not what: not part of the fingerprint."""

    def __post_init__(self) -> None:
        """Shares are shares, and both halves of the labels need rows."""
        if not (0 < self.validation_share < 1 and 0 < self.keep_recall <= 1) or self.labels < 8:
            raise ValueError("validation_share and keep_recall must lie between 0 and 1, and labels be at least 8")

    def package_files(self) -> str:
        """Hash of the prompts that the stage asks with: part of its fingerprint, as a changed one changes its rows."""
        return prompt_hash("gate")


@dataclass(frozen=True)
class SynthesizeConfig:
    """Which passages queries are written for, how many, and of what kind."""

    passages: Ref
    """The curate stage."""

    llm: LLMConfig
    """The writer."""

    seed: int
    """Draws passages, what is asked for, and the sampling of each answer."""

    gate: Ref | None = None
    """The gate stage: passages it rejects are not asked about. Null asks about all that curate kept."""

    mode: Literal["rich", "faithful"] = "rich"
    """rich: one call gives several queries as ordered; faithful: the published two calls (category, role, scene; then
    a query)."""

    queries: int = 3
    """Queries a passage in rich mode (Nemotron's SDG writes 5 to 7)."""

    kinds: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))
    """Weights of the kinds of query in rich mode. Of 3 queries and a share of 0.8 for question two or three are
    questions, on average 2.4; a kind whose share is below one a passage comes at most once."""

    difficulties: dict[Difficulty, float] = field(default_factory=lambda: dict.fromkeys(DIFFICULTIES, 1.0))
    """Weights of the difficulties in rich mode."""

    lengths: dict[Length, float] = field(default_factory=lambda: dict.fromkeys(LENGTHS, 1.0))
    """Weights of the lengths in rich mode."""

    sampling: Sampling = Sampling()
    """How tokens are drawn."""

    passage_max_tokens: int = 512
    """Tokens of a passage that the LLM sees; what is cut off is not part of the positive either."""

    attempts: int = 3
    """Calls, each with another seed, before an unusable answer becomes the row's status."""

    max_passages: int | None = None
    """Ask about a random sample of this many passages; null asks about all."""

    execution: LLMExecution = LLMExecution()
    """How, not what: not part of the fingerprint."""

    def __post_init__(self) -> None:
        """Draws need something to draw from."""
        weights = (self.kinds, self.difficulties, self.lengths)
        if any(min(w.values(), default=-1) < 0 or not sum(w.values()) for w in weights):
            raise ValueError("weights of kinds, difficulties and lengths must be at least 0 and not all 0")
        if self.queries < 1 or self.attempts < 1 or self.passage_max_tokens < 8:
            raise ValueError("queries and attempts must be at least 1, and passage_max_tokens at least 8")
        if self.max_passages is not None and self.max_passages < 1:
            raise ValueError("max_passages must be at least 1; null asks about all")

    def package_files(self) -> str:
        """Hash of the mode's prompts; see GateConfig. It stands on every row too."""
        return prompt_hash(*PROMPTS[self.mode])


@dataclass(frozen=True)
class PairRules:
    """The published rules of (query, passage) pairs; see rules.py."""

    min_query_chars: int = 2
    """Fewest characters of a query (published)."""

    max_query_chars: int = 63
    """Most characters of a query (published)."""

    min_passage_ratio: float = 0.5
    """A passage shorter than this times its query falls (published)."""

    max_similarity: float = 0.5
    """Pairs at or above this difflib ratio fall (published)."""

    drop_contents: bool = True
    """Drop tables of contents (published)."""


@dataclass(frozen=True)
class JudgeConfig:
    """Which written queries become training groups."""

    queries: Ref
    """The synthesize stage."""

    llm: LLMConfig
    """The judge."""

    rules: PairRules = PairRules()
    """Applied first: they cost nothing."""

    criteria: tuple[Criterion, ...] = CRITERIA
    """What the LLM is asked about each query; () judges by rules alone. The published judge asks the first two in
    one."""

    threshold: float = 0.5
    """Least probability of "yes", for each criterion."""

    execution: LLMExecution = LLMExecution()
    """How, not what: not part of the fingerprint."""

    def __post_init__(self) -> None:
        """A probability is compared with the threshold."""
        if not 0 <= self.threshold <= 1 or len(set(self.criteria)) < len(self.criteria):
            raise ValueError("threshold must lie between 0 and 1, and each criterion stand once")

    def package_files(self) -> str:
        """Hash of the criteria's prompts; see GateConfig."""
        return prompt_hash(*self.criteria)


@dataclass(frozen=True)
class RelabelConfig:
    """Which mined candidates an LLM is asked about: those that the reranker is unsure of (Gecko, Lee et al. 2024)."""

    candidates: Ref
    """The rerank stage."""

    store: Ref
    """The mine stage: its passage store holds the candidates' texts."""

    llm: LLMConfig
    """The judge."""

    low: float = 0.0
    """Raw logit from which on a pair is no clear negative (published threshold)."""

    high: float = 1.0
    """Raw logit up to which a pair is no clear positive (published threshold)."""

    top_k: int = 20
    """Candidates a query that are looked at, best reranker score first (Gecko)."""

    threshold: float = 0.5
    """Least probability of "yes" that makes a candidate a positive."""

    passage_max_tokens: int = 512
    """Tokens of a passage that the LLM sees."""

    execution: LLMExecution = LLMExecution()
    """How, not what: not part of the fingerprint."""

    def __post_init__(self) -> None:
        """The band must hold something."""
        if self.low > self.high or self.top_k < 1 or not 0 <= self.threshold <= 1:
            raise ValueError("low must not exceed high, top_k be at least 1 and threshold lie between 0 and 1")

    def package_files(self) -> str:
        """Hash of the prompt; see GateConfig."""
        return prompt_hash("answered")
