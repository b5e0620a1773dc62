"""Texts in, vectors out: sorted by length, packed into batches under a budget of tokens, in the order they came.

Leaves out: scores between texts, several devices.

Shapes: N texts, L tokens of a text, H width of the dense vector, D width of a multi-vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from chuxin.encoding.sparse import SparseVector, text_weights
from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer
from chuxin.models.packed import Packed, pack
from chuxin.models.vocabulary import ids_without_weight

# Texts tokenised at once: bounds the memory of token lists, and leaves enough texts to sort by length.
CHUNK = 4096


class Encoded(NamedTuple):
    """All three outputs for N texts."""

    dense_NH: np.ndarray
    """float32, each of length 1."""
    sparse: list[SparseVector]
    """The tokens that weigh something, by text; scores of two texts are sums of products over the ids they share."""
    multi_vector: list[np.ndarray]
    """float32 [L - 1, D] by text: a vector of length 1 for each token but the first."""


class Encoder:
    """A model ready to encode. Not for several threads at once: the tokenizer keeps its truncation as state.

    Args:
        path: Model directory, URI or hub name.
        max_length: Tokens of a text, special ones included; longer texts are cut at the end.
        batch_tokens: Tokens of a forward pass; there is no padding. A longer text goes alone.
        dtype: Of weights and computation: float32 or bfloat16 (vectors are float32 either way).
        device: "cpu", "cuda", …

    Raises:
        InputError: There is no such model, or it cannot take `max_length` tokens or its tokenizer's ids.
    """

    def __init__(
        self,
        path: str,
        max_length: int,
        batch_tokens: int,
        dtype: torch.dtype | str = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.tokenizer = load_tokenizer(path)
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.model = load_model(path, dtype=dtype, device=self.device)
        self.max_length, self.batch_tokens = max_length, batch_tokens
        if not 2 < max_length <= self.model.max_length:
            problem = f"it takes 3 to {self.model.max_length} tokens, not {max_length}"
            raise InputError(path, problem, "Lower the maximal length in the config")
        self._without_weight = ids_without_weight(self.tokenizer)
        rows = self.model.backbone.config.vocab_size
        if len(self.tokenizer) > rows:
            problem = f"the tokenizer has {len(self.tokenizer)} entries and the embedding table {rows}"
            raise InputError(path, problem, "Put the tokenizer and the weights of one model together")

    @property
    def width(self) -> int:
        """Width H of a vector."""
        return self.model.hidden

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the vectors float32 [N, H], each of length 1.

        *Relations*: equal to encoding the texts one by one up to rounding (1e-5 in fp32).
        """
        vectors_NH = np.empty((len(texts), self.width), dtype=np.float32)
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            vectors_NH[start : start + len(chunk)] = self.encode_ids(self.tokenize(chunk))
        return vectors_NH

    def encode_all(self, texts: Sequence[str]) -> Encoded:
        """Returns the dense, sparse and multi-vector output of texts.

        *Relations*: equal to BGEM3FlagModel's dense_vecs, lexical_weights and colbert_vecs (FlagEmbedding 1.4.2; 1e-4
        in fp32), with token ids as numbers instead of strings.
        """
        parts = [Encoded(np.empty((0, self.width), np.float32), [], [])]
        for start in range(0, len(texts), CHUNK):
            parts.append(self.encode_ids_all(self.tokenize(texts[start : start + CHUNK])))
        dense, sparse, multi_vector = zip(*parts, strict=True)
        return Encoded(np.concatenate(dense), sum(sparse, []), sum(multi_vector, []))

    def tokenize(self, texts: Sequence[str], truncate: bool = True) -> list[list[int]]:
        """Returns the token ids of each text, special ones included, cut at `max_length` if asked for."""
        if not texts:
            return []
        limit = {"truncation": True, "max_length": self.max_length} if truncate else {}
        return self.tokenizer(list(texts), **limit, return_attention_mask=False, verbose=False)["input_ids"]

    @torch.inference_mode()
    def encode_ids(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns the vectors float32 [N, H] of token sequences that `tokenize` could have given."""
        vectors_NH = np.empty((len(ids), self.width), dtype=np.float32)
        for batch, packed in self._batches(ids):
            vectors_NH[batch] = self.model.dense(packed).cpu().numpy()
        return vectors_NH

    @torch.inference_mode()
    def encode_ids_all(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """Returns all three outputs of token sequences that `tokenize` could have given."""
        dense_NH = np.empty((len(ids), self.width), dtype=np.float32)
        sparse: list[SparseVector] = [SparseVector.empty()] * len(ids)
        multi_vector = [np.empty(0, np.float32)] * len(ids)
        for batch, packed in self._batches(ids):
            dense_NH[batch], weight_T, vector_TD = (tensor.cpu().numpy() for tensor in self.model(packed, heads=True))
            lengths = [len(ids[i]) for i in batch]
            ids_T = np.concatenate([np.asarray(ids[i], np.int64) for i in batch])
            weighed = text_weights(ids_T, weight_T, lengths, self._without_weight)
            vectors = np.split(vector_TD, np.cumsum(lengths)[:-1])
            for index, own, vector_LD in zip(batch, weighed, vectors, strict=True):
                sparse[index], multi_vector[index] = own, vector_LD[1:]
        return Encoded(dense_NH, sparse, multi_vector)

    def _batches(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Packed]]:
        for batch in length_batches([len(sequence) for sequence in ids], self.batch_tokens):
            yield batch, pack([ids[i] for i in batch]).to(self.device)


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Cuts sequences into batches of similar length, the longest first: a lack of memory shows at once.

    Args:
        lengths: Tokens of each sequence.
        batch_tokens: Bound of the sum over a batch; a longer sequence makes a batch of its own.

    Yields:
        Indices into `lengths`; each occurs once. Equal lengths keep their order.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and tokens + lengths[index] > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch
