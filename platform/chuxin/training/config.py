"""Configs of the training stages: what is optimised, and apart from it how it runs."""

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
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    """After the warm-up: down to 0 at the last step in a line or half a cosine; unchanged until `decay_steps` before
    the end and then down in a line (warm-up, stable, decay: Hu et al. 2024); or unchanged."""
    decay_steps: int = 0
    """Steps of the decay of `wsd`; with `warmup_steps` no more than the run has."""
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
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1) or self.epsilon <= 0:
            raise ValueError("`beta1` and `beta2` must be at least 0 and below 1, `epsilon` above 0")
        if (self.schedule == "wsd") != (self.decay_steps > 0):
            raise ValueError("`decay_steps` above 0 and the schedule `wsd` belong together")


@dataclass(frozen=True)
class TrainExecution:
    """How training runs; changes losses and weights by rounding only."""

    num_workers: int = 1
    """Training processes. Each global batch is shared out among them, so the objective stays the same."""
    cpus_per_worker: int = 1
    """CPUs that a worker reserves, and its threads."""
    use_gpu: bool = False
    """One GPU a worker."""
    min_workers: int | None = None
    """Go on with as few as this when the cluster loses some; null waits for `num_workers`."""
    micro_batch_tokens: int = 8192
    """Tokens of one forward pass; a longer text makes one of its own."""
    grad_cache: bool = False
    """Keep the activations of one micro-batch only: every other is computed twice (Gao et al. 2021), so that memory
    does not grow with the batch and a step takes about a third longer."""
    activation_checkpointing: bool = False
    """Keep the input of each layer only and compute it again in the backward pass."""
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
        if self.max_failures < 0:
            raise ValueError("`max_failures` must be at least 0")

        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ValueError("`min_workers` must lie between 1 and `num_workers`, or be null")

    def required_cpus(self) -> int:
        """CPUs that must be free at once."""
        return (self.min_workers or self.num_workers) * self.cpus_per_worker


@dataclass(frozen=True)
class DevConfig:
    """A benchmark that is scored while training, to keep the best weights instead of the last.

    Of an M3 model the dense vector alone is scored, also where all heads are trained.
    """

    benchmark: Ref
    """A folder in BEIR's layout, as the evaluate stage takes."""
    every: int
    """Steps between two scores; the last step is always scored."""
    query_max_len: int
    """Most tokens of a query."""
    passage_max_len: int
    """Most tokens of a passage."""

    def __post_init__(self) -> None:
        if self.every < 1 or min(self.query_max_len, self.passage_max_len) < 3:
            raise ValueError("`every` must be at least 1 and the lengths at least 3")


@dataclass(frozen=True)
class TrainingConfig:
    """What every training has."""

    plan: Ref
    """Artifact of a pack stage: over passages for pretraining, over groups for all others."""
    model: ModelRef
    """Where the weights start."""
    optimizer: OptimizerConfig
    """Learning rate and what belongs to it."""
    seed: int
    """Of weights that are drawn, of masks and of dropout."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of matrix products; weights and optimizer state are fp32 either way."""
    dropout: float = 0.0
    """Of embeddings and of both branches of a layer, never of attention weights (XLM-R's config: 0.1)."""
    max_steps: int | None = None
    """Steps to train, at most; null trains on the whole plan."""
    ema_decay: float | None = None
    """The exported weights are an exponential moving average of the trained ones with this decay a step; null
    exports the trained ones."""
    max_loss_ratio: float = 5.0
    """Training stops when a loss is above this many times the highest of the 50 that lie more than 10 steps back, as
    it does at NaN."""
    execution: TrainExecution = field(default_factory=TrainExecution)

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError("`max_steps` must be at least 1, or null")
        if self.seed < 0:
            raise ValueError("`seed` must not be below 0")
        if not 0 <= self.dropout < 1:
            raise ValueError("`dropout` must be at least 0 and below 1")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError("`ema_decay` must lie between 0 and 1, or be null")
        if self.max_loss_ratio <= 1:
            raise ValueError("`max_loss_ratio` must be above 1")


@dataclass(frozen=True)
class PretrainConfig(TrainingConfig):
    """RetroMAE on packed texts; a `retromae.pt` beside the model's weights continues an earlier pretraining."""

    encoder_mlm_probability: float = 0.3
    """Share of tokens the encoder predicts (Xiao & Shao 2022: 0.3)."""
    max_loss_ratio: float = 2.0
    """As above; 2, because the loss is bounded: a model that says nothing has 2 ln V (25 at V = 250,002), which five
    times the 7 or 8 of a trained one never reaches."""
    decoder_mlm_probability: float = 0.5
    """Share of tokens hidden from the decoder at each position (Xiao & Shao 2022: 0.5)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("encoder_mlm_probability", "decoder_mlm_probability"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie between 0 and 1")


@dataclass(frozen=True)
class FinetuneConfig(TrainingConfig):
    """Contrastive training on packed groups: of the dense vector, or of all three heads (finetune and refine)."""

    temperature: float = 0.02
    """Similarities are divided by it (BGE-M3's examples: 0.02)."""
    heads: Literal["dense", "all"] = "dense"
    """Train the dense vector, or dense, sparse, multi-vector and their ensemble jointly (Chen et al. 2024, 3.3)."""
    self_distill_from: int | None = None
    """From this step on (1 is the first) the ensemble teaches the three heads; null never. Needs `heads: all`."""
    distill: Literal["none", "kl_div", "m3_kd_loss"] = "none"
    """How teacher scores in the groups are learned: besides the contrastive loss (`kl_div`) or instead of it
    (`m3_kd_loss`); both are FlagEmbedding's."""
    teacher_temperature: float = 1.0
    """Teacher scores are divided by it before their softmax (FlagEmbedding has none, which is 1)."""
    false_negative_margin: float | None = None
    """A passage of a query's own group that the teacher scores above the positive's score plus this is no negative;
    null keeps all."""
    in_batch_negatives: bool = True
    """Whether the passages of other queries are negatives; without them every group needs negatives of its own."""
    query_to_query: bool = False
    """Other queries are negatives of a query too, in the dense loss (Li et al. 2023, GTE)."""
    passage_to_passage: bool = False
    """Other passages are negatives of a query's positive too, in the dense loss (Li et al. 2023, GTE)."""
    matryoshka_dims: tuple[int, ...] = ()
    """The dense loss is the mean over these widths, cut from the front and normalised anew (Kusupati et al. 2022);
    the full width has to be named as well."""
    hardness: float = 0.0
    """Weight of a negative in the dense loss: exp(hardness × its cosine) (Lan et al. 2025: 9; EmbeddingGemma: 5);
    0 weighs all alike."""
    dev: DevConfig | None = None
    """Scored while training, by the dense vector alone; null exports the last weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.temperature, self.teacher_temperature) <= 0:
            raise ValueError("`temperature` and `teacher_temperature` must be above 0")
        if self.self_distill_from is not None and (self.heads != "all" or self.self_distill_from < 1):
            raise ValueError("`self_distill_from` must be at least 1 and needs `heads: all`")
        if not self.in_batch_negatives and (self.query_to_query or self.passage_to_passage):
            raise ValueError("`query_to_query` and `passage_to_passage` need `in_batch_negatives`")
        if any(dim < 1 for dim in self.matryoshka_dims) or self.hardness < 0:
            raise ValueError("`matryoshka_dims` must be at least 1 and `hardness` not below 0")


@dataclass(frozen=True)
class RerankerConfig(TrainingConfig):
    """Listwise training of a cross-encoder on packed groups: softmax over a group's passages."""

    distill: float = 0.0
    """Weight of the teacher's distribution beside the positive's: 0 ignores teacher scores, 1 the labels."""
    teacher_temperature: float = 1.0
    """Teacher scores are divided by it before their softmax."""
    dev: DevConfig | None = None
    """Scored while training: each query's judged passages are sorted among 20 others, BM25's first; null exports the
    last weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.distill <= 1 or self.teacher_temperature <= 0:
            raise ValueError("`distill` must lie between 0 and 1, `teacher_temperature` be above 0")
