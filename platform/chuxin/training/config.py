"""Configs of the two training stages: what is optimised, and apart from it how it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from chuxin.config import ModelRef, Ref


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) with a warm-up and a decay."""

    learning_rate: float
    """Highest learning rate (BGE-M3: 7e-5 in pretraining, 5e-5 in the contrastive stage, Chen et al. 2024, B.1)."""
    warmup_steps: int
    """Steps over which the learning rate rises from 0 linearly."""
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: down to 0 at the last step, or unchanged."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices; biases and norms have none (0: the default FlagEmbedding trains with)."""
    beta1: float = 0.9
    """Decay of the first moment (torch's default)."""
    beta2: float = 0.999
    """Decay of the second moment (torch's default)."""
    epsilon: float = 1e-8
    """Added to the denominator (torch's default)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them (1.0: FlagEmbedding's, from transformers)."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.warmup_steps < 0 or self.max_grad_norm < 0 or self.weight_decay < 0:
            raise ValueError("`learning_rate` must be above 0, and no other number of the optimizer below 0")


@dataclass(frozen=True)
class TrainExecution:
    """How training runs; changes losses and weights by rounding only."""

    num_workers: int = 1
    """Training processes. Each global batch is shared out among them, so the objective stays the same."""
    cpus_per_worker: int = 1
    """CPUs that a worker reserves, and its threads."""
    use_gpu: bool = False
    """One GPU a worker."""
    micro_batch_tokens: int = 8192
    """Tokens, padding included, of one forward pass."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: what is sharded over workers (1 optimizer, 2 and gradients, 3 and weights)."""
    checkpoint_every: int = 500
    """Steps between checkpoints; what a kill can cost."""
    keep_checkpoints: int = 2
    """Checkpoints kept while training."""
    max_failures: int = 3
    """Lost workers that are replaced before the stage fails."""
    log_every: int = 1
    """Steps between records in metrics.jsonl."""

    def __post_init__(self) -> None:
        counts = ("num_workers", "cpus_per_worker", "micro_batch_tokens", "checkpoint_every", "keep_checkpoints",
                  "log_every")  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1")

    def required_cpus(self) -> int:
        """CPUs that must be free at once."""
        return self.num_workers * self.cpus_per_worker


@dataclass(frozen=True)
class PretrainConfig:
    """RetroMAE on packed texts."""

    plan: Ref
    """Artifact of a pack stage over passages."""
    model: ModelRef
    """Where the weights start; a `retromae.pt` beside them continues an earlier pretraining."""
    optimizer: OptimizerConfig
    """Learning rate and what belongs to it."""
    seed: int
    """Of the decoder's weights, of the masks and of dropout."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of matrix products; weights and optimizer state are fp32 either way."""
    encoder_mlm_probability: float = 0.3
    """Share of tokens the encoder predicts (Xiao & Shao 2022: 0.3)."""
    decoder_mlm_probability: float = 0.5
    """Share of tokens hidden from the decoder at each position (Xiao & Shao 2022: 0.5)."""
    dropout: float = 0.0
    """Of encoder and decoder. Above 0 only with one worker (XLM-R's config: 0.1)."""
    max_steps: int | None = None
    """Steps to train, at most; null trains on the whole plan."""
    execution: TrainExecution = field(default_factory=TrainExecution)

    def __post_init__(self) -> None:
        _check(self.max_steps, self.dropout, self.execution)
        for name in ("encoder_mlm_probability", "decoder_mlm_probability"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie between 0 and 1")


@dataclass(frozen=True)
class FinetuneConfig:
    """Contrastive training of the dense vector on packed groups."""

    plan: Ref
    """Artifact of a pack stage over groups."""
    model: ModelRef
    """Where the weights start."""
    optimizer: OptimizerConfig
    """Learning rate and what belongs to it."""
    seed: int
    """Of dropout."""
    temperature: float = 0.02
    """Similarities are divided by it (BGE-M3's examples: 0.02)."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of matrix products; weights and optimizer state are fp32 either way."""
    dropout: float = 0.0
    """Of the encoder. Above 0 only with one worker (XLM-R's config: 0.1)."""
    max_steps: int | None = None
    """Steps to train, at most; null trains on the whole plan."""
    execution: TrainExecution = field(default_factory=TrainExecution)

    def __post_init__(self) -> None:
        _check(self.max_steps, self.dropout, self.execution)
        if self.temperature <= 0:
            raise ValueError("`temperature` must be above 0")


def required_cpus(config: PretrainConfig | FinetuneConfig) -> int:
    """CPUs that a training stage must be able to reserve at once."""
    return config.execution.required_cpus()


def _check(max_steps: int | None, dropout: float, execution: TrainExecution) -> None:
    if max_steps is not None and max_steps < 1:
        raise ValueError("`max_steps` must be at least 1, or null")
    if not 0 <= dropout < 1:
        raise ValueError("`dropout` must be at least 0 and below 1")
    if dropout and execution.num_workers > 1:
        # Its draws would depend on the rank, and how a stage runs must not change what it computes.
        raise ValueError("`dropout` above 0 needs `num_workers` 1")
