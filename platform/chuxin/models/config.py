"""The config of the first checkpoint: an existing model, or a tokenizer and weights made new."""

from __future__ import annotations

from dataclasses import dataclass

from chuxin.config import ModelRef, Ref


@dataclass(frozen=True)
class InitConfig:
    """Where training starts. Give `model`, and `max_len` to lengthen it; or `passages` and every field of a new one."""

    seed: int
    """Seed of the new model's weights."""
    model: ModelRef | None = None
    """An existing XLM-R or BERT model to start from: a stage, a directory or a hub name."""
    passages: Ref | None = None
    """The curated passages a new tokenizer is trained on."""
    max_texts: int | None = None
    """At most this many passages train the tokenizer, evenly spaced over all that are kept."""
    vocab_size: int | None = None
    """Entries of the new vocabulary, special and 256 byte tokens included; a small corpus may give fewer."""
    layers: int | None = None
    """Transformer layers of the new model."""
    hidden: int | None = None
    """Width of its hidden states and of the dense vector."""
    heads: int | None = None
    """Attention heads; divides `hidden`."""
    intermediate: int | None = None
    """Width inside the feed-forward layers."""
    max_len: int | None = None
    """Most tokens of a text, the two special ones included. An existing model gets as many positions, its own ones
    repeated (BGE-M3: 8192 from XLM-R's 512); null leaves it as it is."""
    dropout: float = 0.1
    """Noted in the new model's config.json for other trainers (0.1: XLM-R's); the training stages set their own."""

    def __post_init__(self) -> None:
        shape = ("passages", "max_texts", "vocab_size", "layers", "hidden", "heads", "intermediate")
        given = [name for name in shape if getattr(self, name) is not None]
        if self.model is not None and given:
            raise ValueError(f"an existing model keeps its vocabulary and shape: remove `{given[0]}` or `model`")
        missing = [name for name in (*shape, "max_len") if getattr(self, name) is None]
        if self.model is None and missing:
            raise ValueError(f"a new model needs `{missing[0]}`; or give `model`")
        if self.max_len is not None and self.max_len < 3:
            raise ValueError("`max_len` must be at least 3: a text has two special tokens")
        if self.hidden is not None and self.heads is not None and self.hidden % self.heads:
            raise ValueError(f"`hidden` {self.hidden} is not a multiple of `heads` {self.heads}")
