"""The reranker's objective: a cross-encoder scores each passage of a group with its query, softmax over the group.

Groups are local: no rank needs another's scores. A micro-batch holds whole groups, so each is forward, loss and
backward in one go and memory is that of one micro-batch without GradCache (`grad_cache` changes nothing here).
Leaves out: in-batch negatives (each would cost a forward pass), the loop.

Shapes: B groups and N pairs of a micro-batch, G passages of its largest group, S sources of the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import distributed

from chuxin.errors import InputError
from chuxin.losses.groups import own_columns
from chuxin.losses.listwise import listwise
from chuxin.models.dropout import Dropout, token_keys
from chuxin.models.packed import Packed, moved, pack, pinned
from chuxin.models.reranker import pair_ids
from chuxin.training.config import RerankerConfig
from chuxin.training.group_batch import text_keys
from chuxin.training.micro import micro_batches, passes
from chuxin.training.objective import Sent, Terms
from chuxin.training.plan_checks import pair_too_long
from chuxin.training.plan_reader import Batch, Plan, token_lists
from chuxin.training.step import rank, world_size

Forward = Callable[[Packed, Dropout | None], torch.Tensor]
"""Packed pairs and dropout → scores: the model, or the engine around it."""


class Groups(NamedTuple):
    """The pairs of a micro-batch's groups, one group after another; without any, a pass that only fills up."""

    packed: Packed
    key_N: torch.Tensor
    """int32, one a pair, from which its dropout follows."""
    column_BG: torch.Tensor
    """int64, the pairs of each group, the first repeated where a group is smaller; the first is the positive's."""
    own_BG: torch.Tensor
    """bool, False where a group is smaller."""
    teacher_BG: torch.Tensor
    """fp32, the teacher's scores; NaN where it gave none."""
    source_B: torch.Tensor
    """int64, place of each group's source among the plan's."""

    def to(self, device: torch.device) -> Groups:
        """Moves everything to a device."""
        return moved(self, device)


class PairBatch(NamedTuple):
    """A rank's share of a batch."""

    rows: int
    """Groups of all ranks."""
    passes: list[Groups]
    """As many on every rank: one that has run out fills up with passes over nothing."""
    tokens: int
    longest: int
    """Tokens of the longest pair of all ranks."""
    error: InputError | None
    """Names a pair of this rank that is beyond the model's length."""


class Listwise:
    """Softmax over each group's scores, towards the positive and, by config, a teacher's scores.

    Args:
        forward: Runs the model.
        config: The objective, and the micro-batches it runs in.
        plan: What will be trained on.
        max_length: Most tokens of a pair.
    """

    def __init__(self, forward: Forward, config: RerankerConfig, plan: Plan, max_length: int) -> None:
        self.forward, self.config, self.sources, self.max_length = forward, config, plan.sources, max_length

    def prepare(self, batch: Batch) -> PairBatch:
        """Pairs each query with its passages, in micro-batches of whole groups; runs in the reader's thread."""
        table = batch.table
        count_B = pc.list_value_length(table["passages"]).to_numpy().astype(np.int64)
        first_B = np.cumsum(count_B) - count_B
        passages = pc.list_flatten(table["passages"])
        query_N = np.repeat(np.arange(len(count_B)), count_B)
        queries, texts = token_lists(table["query_ids"]), token_lists(pc.struct_field(passages, "token_ids"))
        pairs = [pair_ids(queries[query], text) for query, text in zip(query_N, texts, strict=True)]
        lengths_N = np.array([len(pair) for pair in pairs], np.int64)
        # A passage's place in its row counts from 1, as in the contrastive objective; 0 is the query alone.
        keys_N = text_keys(
            self.config.seed, batch.step, table["row"].to_numpy().astype(np.int64)[query_N],
            np.arange(len(pairs)) - first_B[query_N] + 1,
        )  # fmt: skip
        score_N = pc.fill_null(pc.struct_field(passages, "score"), float("nan")).to_numpy()
        source_B = pc.index_in(table["source"], pa.array(self.sources, pa.string())).to_numpy().astype(np.int64)
        tokens_B = np.bincount(query_N, lengths_N, len(count_B))
        made, budget = [], self.config.execution.micro_batch_tokens
        for chosen in micro_batches(tokens_B.astype(np.int64), budget):
            pair_n = np.concatenate([first_B[group] + np.arange(count_B[group]) for group in chosen])
            count_b = torch.from_numpy(count_B[chosen])
            column_BG, own_BG = own_columns(torch.cumsum(count_b, 0) - count_b, count_b, int(count_B[chosen].max()))
            teacher_BG = torch.from_numpy(score_N[pair_n])[column_BG]
            made.append(pinned(Groups(
                pack([pairs[pair] for pair in pair_n]), torch.from_numpy(keys_N[pair_n].astype(np.int32)), column_BG,
                own_BG, teacher_BG, torch.from_numpy(source_B[chosen]),
            )))  # fmt: skip
        # Lengths of all ranks' pairs follow from the plan: no rank has to be asked for its passes.
        made += [_filler()] * (passes(batch.groups_of_ranks(), budget) - len(made))
        longest = max(int(pairs_N.max(initial=0)) for pairs_N in batch.pairs_of_ranks())
        own = self._beyond(table, query_N, lengths_N)
        return PairBatch(batch.rows, made, int(lengths_N.sum()), longest, own)

    def tokens(self, batch: PairBatch) -> tuple[int, int]:
        """Tokens of this rank's pairs, and those computed: the same, since nothing is padded."""
        return batch.tokens, batch.tokens

    def backward(self, batch: PairBatch, device: torch.device, send: Sent) -> Terms:
        """Computes the loss and sends it backward, micro-batch by micro-batch.

        Raises:
            InputError: A pair of this rank or another's is longer than the model takes.
        """
        if batch.longest > self.max_length:  # all ranks know, but only one which row it is
            raise _agreed(batch.error)
        means = {name: torch.zeros((), device=device) for name in ("loss", "accuracy")}
        by_source = torch.zeros(len(self.sources), 2, device=device)
        for index, groups in enumerate(batch.passes):
            last, groups = index == len(batch.passes) - 1, groups.to(device)
            score_N = self._scores(groups)
            if not len(groups.source_B):
                send(0.0 * score_N.sum(), last)
                continue
            logits_BG = score_N[groups.column_BG]
            label_B = torch.zeros(len(logits_BG), dtype=torch.int64, device=device)
            losses_B = listwise(
                logits_BG, groups.own_BG, label_B, groups.teacher_BG, self.config.distill,
                self.config.teacher_temperature,
            )  # fmt: skip
            send(losses_B.sum() / batch.rows, last)
            losses_B = losses_B.detach()
            # Of equal scores the positive's is not the best: a model that scores all alike is never right.
            below_BG = (logits_BG[:, 1:] < logits_BG[:, :1]) | ~groups.own_BG[:, 1:]
            means["loss"] += losses_B.sum() / batch.rows
            means["accuracy"] += below_BG.all(1).sum() / batch.rows
            by_source.index_add_(0, groups.source_B, torch.stack([losses_B, torch.ones_like(losses_B)], 1))
        return Terms(means, by_source)

    def _scores(self, groups: Groups) -> torch.Tensor:
        dropout = None
        if self.config.dropout:
            lengths_N = groups.packed.bounds_N1.diff().long()
            keys_T = token_keys(groups.key_N, groups.packed.position_T, lengths_N)
            dropout = Dropout(self.config.dropout, keys_T)
        return self.forward(groups.packed, dropout)

    def _beyond(self, table: pa.Table, query_N: np.ndarray, lengths_N: np.ndarray) -> InputError | None:
        longest = int(lengths_N.argmax()) if len(lengths_N) else 0
        if not len(lengths_N) or lengths_N[longest] <= self.max_length:
            return None
        query = table["query_id"][int(query_N[longest])].as_py()
        return pair_too_long(f"query_id {query}", lengths_N[longest], self.max_length)


def _agreed(own: InputError | None) -> InputError:
    """Returns the same error on every rank: the lowest rank's."""
    errors: list[InputError | None] = [None] * world_size()
    if world_size() == 1:
        errors[rank()] = own
    else:
        distributed.all_gather_object(errors, own)
    return next(error for error in errors if error is not None)


def _filler() -> Groups:
    nothing = torch.zeros(0, 0)
    return Groups(
        pack([np.zeros(1, np.int64)]), torch.zeros(1, dtype=torch.int32), nothing.long(), nothing.bool(), nothing,
        torch.zeros(0, dtype=torch.int64),
    )  # fmt: skip
