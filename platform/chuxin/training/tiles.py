"""The loss of a step on the outputs of all texts, a tile of queries at a time, and its gradients.

Every rank scores its own queries against the gathered passages of all and divides by the global number of queries;
what its loss says about the others' passages is added up and sent home, so that losses and gradients *summed* over
ranks are those of one process with the whole batch, for all heads.
Leaves out: the losses of one tile (contrast.py).

Shapes: B queries of this rank, N passages of this rank, P candidates, Q queries of all ranks, S sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from chuxin.training.candidates import Joined, Texts
from chuxin.training.config import FinetuneConfig
from chuxin.training.contrast import Others, Tile, losses, side
from chuxin.training.grad_cache import Cached
from chuxin.training.group_batch import GroupBatch
from chuxin.training.objective import Terms

SCORES = 1 << 22
"""Numbers of a tile's score matrix: 16 MiB in fp32. With all heads a query counts once for each of its tokens, since
the multi-vector score remembers the best passage token of each."""
OWN_TILE = 16
"""Queries of a tile without in-batch negatives: its candidates are the passages of these queries only."""


def step_loss(
    batch: GroupBatch, cache: Cached, config: FinetuneConfig, special_ids: Sequence[int], sources: int
) -> tuple[Cached, Terms]:
    """Returns the gradients of the loss with respect to this rank's outputs, and the loss; collectives among ranks.

    Args:
        batch: This rank's share.
        cache: Outputs of its texts.
        config: The objective.
        special_ids: Token ids without a sparse weight.
        sources: How many the plan has.
    """
    sides = _Sides(batch, cache, config)
    self_distill = config.self_distill_from is not None and batch.step >= config.self_distill_from
    losses_B = torch.zeros(len(batch.count_B), device=cache.dense_NH.device)
    sums: dict[str, torch.Tensor] = {}
    for begin, end in _bounds(batch, sides.candidates.texts, config):
        tile, graph = sides.tile(begin, end)
        tile_losses_B, terms = losses(tile, config, special_ids, self_distill)
        # A rank without queries scores none of them: it knows the terms, and has no gradient.
        if end > begin:
            leaves, rooms = zip(*graph, strict=True)
            gradients = torch.autograd.grad(tile_losses_B.sum() / batch.rows, leaves, allow_unused=True)
            for room, gradient in zip(rooms, gradients, strict=True):
                if gradient is not None:
                    room += gradient
        losses_B[begin:end] = tile_losses_B.detach()
        for name, term_B in terms.items():
            sums[name] = sums.get(name, 0.0) + term_B.sum()
    sides.send_home()
    means = {"loss": losses_B.sum(), **sums}
    means = {name: total / batch.rows for name, total in means.items()}
    by_source_S2 = _by_source(losses_B, batch.source_B, sources)
    return sides.room.outputs, Terms(means, by_source_S2, cache.bytes() + sides.bytes())


class _Sides:
    """Queries and candidates of a step, with room for the gradients with respect to both."""

    def __init__(self, batch: GroupBatch, cache: Cached, config: FinetuneConfig) -> None:
        self.batch, self.in_batch = batch, config.in_batch_negatives
        device, queries, texts = cache.dense_NH.device, len(batch.count_B), len(batch.lengths)
        own = Texts(batch.lengths, batch.ids_T.to(device, non_blocking=True), cache)
        self.room = own._replace(outputs=cache.zeros())
        self.query, self.query_room = own.cut(0, queries), self.room.cut(0, queries)
        self.candidates = Joined(
            own.cut(queries, texts), self.room.cut(queries, texts).outputs,
            batch.passages_of_ranks if self.in_batch else (),
        )  # fmt: skip
        self.all_room = self.candidates.texts._replace(outputs=self.candidates.room)
        self.all = self.candidates.texts.leaves()
        self.all_side = side(self.all)

        self.first_B = np.cumsum(batch.count_B) - batch.count_B
        passage_hash_N = batch.passage_hash_N.to(device, non_blocking=True)
        self.hash_P = self.candidates.join(passage_hash_N)
        self.query_hash_B, self.score_N = (
            tensor.to(device, non_blocking=True) for tensor in (batch.query_hash_B, batch.score_N)
        )
        self.queries = None
        if config.query_to_query:
            dense, room = _dense_only(self.query), _dense_only(self.query_room).outputs
            self.queries = Joined(dense, room, batch.queries_of_ranks)
            positive_hash_B = passage_hash_N[torch.from_numpy(self.first_B).to(device)]
            self.hashes_Q = self.queries.join(self.query_hash_B), self.queries.join(positive_hash_B)
            self.query_leaf_QH = self.queries.texts.outputs.dense_NH.detach().requires_grad_()

    def tile(self, begin: int, end: int) -> tuple[Tile, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Returns queries begin … end − 1 with their candidates, and the graph's leaves with room for gradients."""
        device, query = self.hash_P.device, self.query.cut(begin, end).leaves()
        count_B, first_B = self.batch.count_B[begin:end], self.first_B[begin:end]
        low, high = (int(first_B[0]), int(first_B[-1] + count_B[-1])) if len(first_B) else (0, 0)
        rooms = [*self.query_room.cut(begin, end).outputs]
        if self.in_batch:
            against, candidate, hash_C = self.all, self.all_side, self.hash_P
            first_B = first_B + self.candidates.first
            rooms += self.all_room.outputs
        else:
            against, hash_C = self.candidates.texts.cut(low, high).leaves(), self.hash_P[low:high]
            candidate, first_B = side(against), first_B - low
            rooms += self.all_room.cut(low, high).outputs
        leaves = [*query.outputs, *against.outputs]
        others = None
        if self.queries is not None:
            own_B = torch.arange(begin, end, device=device) + self.queries.first
            others = Others(self.query_leaf_QH, own_B, *self.hashes_Q)
            leaves.append(self.query_leaf_QH)
            rooms.append(self.queries.room.dense_NH)
        tile = Tile(
            side(query), candidate,
            *(torch.from_numpy(array).to(device, non_blocking=True) for array in (first_B, count_B)),
            int(count_B.max(initial=1)), self.score_N[low:high], self.query_hash_B[begin:end], hash_C, others,
        )  # fmt: skip
        return tile, [(leaf, room) for leaf, room in zip(leaves, rooms, strict=True) if leaf is not None]

    def send_home(self) -> None:
        """Adds what the other ranks' losses say about this rank's texts; a collective."""
        self.candidates.send_home()
        if self.queries is not None:
            self.queries.send_home()

    def bytes(self) -> int:
        """Memory of gradients and of the other ranks' outputs."""
        return self.room.outputs.bytes() + self.candidates.bytes() + (self.queries.bytes() if self.queries else 0)


def _bounds(batch: GroupBatch, candidates: Texts, config: FinetuneConfig) -> Iterator[tuple[int, int]]:
    """Yields the first query of each tile and that of the next; one empty tile if there is no query."""
    queries = len(batch.count_B)
    rows = OWN_TILE
    if config.in_batch_negatives:
        longest = int(batch.lengths[:queries].max(initial=1)) if config.heads == "all" else 1
        rows = max(1, SCORES // max(1, longest * len(candidates.lengths_N)))
    for begin in range(0, max(queries, 1), rows):
        yield begin, min(begin + rows, queries)


def _dense_only(texts: Texts) -> Texts:
    # No tokens: the other outputs' sizes do not matter then.
    return texts._replace(outputs=Cached(texts.outputs.dense_NH, None, None))


def _by_source(losses_B: torch.Tensor, source_B: torch.Tensor, sources: int) -> torch.Tensor:
    known_B = source_B >= 0  # on the host, where both are
    places = (known_B.nonzero()[:, 0], source_B[known_B])
    row_K, source_K = (place.to(losses_B.device, non_blocking=True) for place in places)
    pair_K2 = torch.stack([losses_B, torch.ones_like(losses_B)], 1)[row_K]
    return torch.zeros(sources, 2, device=losses_B.device).index_add(0, source_K, pair_K2)
