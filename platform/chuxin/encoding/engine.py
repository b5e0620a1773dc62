"""Texts in, dense vectors out: sorted by length, in batches under a token budget, in the order they came.

Leaves out: the sparse and the multi-vector output, packed attention without padding, several devices.

Shapes: N texts, B texts of a batch, L tokens, H width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer

# Texts tokenised at once: bounds the memory of token lists, and leaves enough texts to sort by length.
CHUNK = 4096


class Encoder:
    """A model ready to encode. Not for several threads at once: the tokenizer keeps its truncation as state.

    Args:
        path: Model directory, URI or hub name.
        max_length: Tokens of a text, special ones included; longer texts are cut at the end.
        batch_tokens: Tokens of a forward pass, padding included. A longer text goes alone.
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

        *Relations*: equal to encoding the texts one by one up to rounding (1e-5 in fp32), since padding is
        masked out.
        """
        vectors_NH = np.empty((len(texts), self.width), dtype=np.float32)
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            vectors_NH[start : start + len(chunk)] = self.encode_ids(self.tokenize(chunk))
        return vectors_NH

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
        for batch in length_batches([len(sequence) for sequence in ids], self.batch_tokens):
            input_ids_BL, mask_BL = self._pad([ids[i] for i in batch])
            vectors_NH[batch] = self.model.dense(self.model(input_ids_BL, mask_BL)).cpu().numpy()
        return vectors_NH

    def _pad(self, ids: list[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        shape = len(ids), max(map(len, ids))
        input_ids_BL = torch.full(shape, self.tokenizer.pad_token_id, dtype=torch.long)
        mask_BL = torch.zeros(shape, dtype=torch.long)
        for row, sequence in enumerate(ids):
            input_ids_BL[row, : len(sequence)] = torch.as_tensor(sequence)
            mask_BL[row, : len(sequence)] = 1
        return input_ids_BL.to(self.device), mask_BL.to(self.device)


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Cuts sequences into batches of similar length, the longest first: a lack of memory shows at once.

    Args:
        lengths: Tokens of each sequence.
        batch_tokens: Bound of (sequences × longest) of a batch; a longer sequence makes a batch of its own.

    Yields:
        Indices into `lengths`; each occurs once. Equal lengths keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
