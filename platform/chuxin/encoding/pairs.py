"""Scores of query-passage pairs by a cross-encoder: sorted by length, packed under a token budget, in their order.

Leaves out: which pairs are scored (a reranker takes the first results of another search), several devices.

Shapes: N pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from chuxin.encoding.engine import length_batches
from chuxin.errors import InputError
from chuxin.models.checkpoint import load_tokenizer
from chuxin.models.packed import pack
from chuxin.models.reranker import CrossEncoder, load_reranker, pair_ids


def _is_out_of_memory(error: RuntimeError) -> bool:
    # On the CPU torch raises a plain RuntimeError, told apart by its words alone (c10/core/impl/alloc_cpu.cpp).
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@torch.inference_mode()
def score_pairs(
    model: CrossEncoder, pairs: Sequence[np.ndarray], batch_tokens: int, device: str | torch.device = "cpu"
) -> np.ndarray:
    """Returns the scores float32 [N] of token sequences as `pair_ids` makes them, in passes of `batch_tokens`.

    Where memory runs out, the device's or the machine's, the pass is taken in halves, and no later one is larger than
    what fitted: the longest pairs come first, so that shows at once. The scores stay the same (1e-5 in fp32).

    Raises:
        RuntimeError: One pair alone does not fit (on a device `torch.OutOfMemoryError`, a kind of it).
    """
    scores_N = np.empty(len(pairs), np.float32)
    # Last in, first out, so that the halves of a batch come before what follows it.
    waiting = list(length_batches([len(pair) for pair in pairs], batch_tokens))[::-1]
    while waiting:
        batch = waiting.pop()
        tokens = sum(len(pairs[i]) for i in batch)
        if len(batch) > 1 and tokens > batch_tokens:
            waiting += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
            continue
        try:
            scores_N[batch] = model.score(pack([pairs[i] for i in batch]).to(device)).cpu().numpy()
        except RuntimeError as error:
            if len(batch) == 1 or not _is_out_of_memory(error):
                raise
            batch_tokens = tokens // 2
            waiting.append(batch)
        else:
            continue
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()  # outside the handler, whose traceback holds the failed pass' tensors
    return scores_N


class PairScorer:
    """A reranker ready to score texts.

    Args:
        path: Model directory, URI or hub name.
        query_max_len: Tokens of a query, special ones included; longer queries are cut at the end.
        passage_max_len: Likewise of a passage. A pair has as many tokens as both together.
        batch_tokens: Tokens of a forward pass.
        dtype: Of weights and computation: float32 or bfloat16.
        device: "cpu", "cuda", …

    Raises:
        InputError: There is no such reranker, or its pairs cannot be so long.
    """

    def __init__(
        self, path: str, query_max_len: int, passage_max_len: int, batch_tokens: int, dtype: str = "float32",
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self.path, self.tokenizer = path, load_tokenizer(path)
        self.model = load_reranker(path, dtype=getattr(torch, dtype), device=device)
        self.query_max_len, self.passage_max_len = query_max_len, passage_max_len
        self.batch_tokens, self.device = batch_tokens, device
        if query_max_len + passage_max_len > self.model.max_length:
            problem = f"a pair takes up to {self.model.max_length} tokens, not {query_max_len} + {passage_max_len}"
            raise InputError(path, problem, "Lower query_max_len or passage_max_len")

    def score(self, queries: Sequence[str], passages: Sequence[str], index_N2: np.ndarray) -> np.ndarray:
        """Returns the scores float32 [N] of pairs (index of the query, index of the passage).

        Raises:
            InputError: One pair alone does not fit the device's memory, or a score is no number.
        """
        pairs = self.tokenise(queries, passages, index_N2)
        try:
            scores_N = score_pairs(self.model, pairs, self.batch_tokens, self.device)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            problem = f"a pair of up to {max(map(len, pairs))} tokens does not fit the memory of {self.device}"
            raise InputError(self.path, problem, "Lower passage_max_len, or give a smaller reranker") from error
        if wrong := int((~np.isfinite(scores_N)).sum()):
            raise InputError(self.path, f"{wrong} of {len(scores_N)} scores are no numbers",
                             "Set dtype to float32, or give another reranker")
        return scores_N

    def tokenise(self, queries: Sequence[str], passages: Sequence[str], index_N2: np.ndarray) -> list[np.ndarray]:
        """Returns the token ids of pairs; each text that occurs is tokenised once, all in one call a side."""
        query_ids = self._tokenise(queries, index_N2[:, 0], self.query_max_len)
        passage_ids = self._tokenise(passages, index_N2[:, 1], self.passage_max_len)
        return [pair_ids(query_ids[query], passage_ids[passage]) for query, passage in index_N2.tolist()]

    def _tokenise(self, texts: Sequence[str], index_N: np.ndarray, limit: int) -> dict[int, np.ndarray]:
        used = np.unique(index_N).tolist()
        if not used:
            return {}
        made = self.tokenizer([texts[i] for i in used], truncation=True, max_length=limit, verbose=False,
                              return_attention_mask=False)["input_ids"]  # fmt: skip
        return {i: np.asarray(ids, np.int64) for i, ids in zip(used, made, strict=True)}
