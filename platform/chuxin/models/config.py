"""The config of the first checkpoint: an existing model, or a tokenizer and weights made new."""

from __future__ import annotations

from dataclasses import dataclass

from chuxin.config import ModelRef, Ref


@dataclass(frozen=True)
class InitConfig:
    """Where training starts. Give `model`, or give `passages` and every field of the new model."""

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
    """Most tokens of a text, the two special ones included."""
    dropout: float = 0.1
    """Dropout of the new model's hidden states and attention (0.1: XLM-R's config)."""

    def __post_init__(self) -> None:
        new = ("passages", "max_texts", "vocab_size", "layers", "hidden", "heads", "intermediate", "max_len")
        given = [name for name in new if getattr(self, name) is not None]
        if self.model is not None and given:
            raise ValueError(f"an existing model is taken as it is: remove `{given[0]}` or `model`")
        if self.model is None and len(given) < len(new):
            missing = next(name for name in new if name not in given)
            raise ValueError(f"a new model needs `{missing}`; or give `model`")
        if self.hidden is not None and self.heads is not None and self.hidden % self.heads:
            raise ValueError(f"`hidden` {self.hidden} is not a multiple of `heads` {self.heads}")
