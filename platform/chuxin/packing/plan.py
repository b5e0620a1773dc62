"""The plan of one bucket in one epoch: which rows make which global batch, and which passages a query brings.

Pure functions over arrays; a plan depends on the config, the epoch and the rows' ids, not on their order.
Contrastive batches hold one source each, and no text twice, be it query or passage: an in-batch negative that is
the positive's own text would be a false negative. Leaves out: length buckets with a batch size each (they would
split the rows of a source in `plan_groups` before `fill`), reading and writing (pipeline.py).

Shapes: N groups, P passages of all groups together, R rows (a group may be used more than once an epoch).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from chuxin.packing.draws import copies, first_in_each, mix, rank_in_run

WINDOW_BATCHES = 32
# What a draw is for goes into its hash, so that different draws on the same id are independent.
_POSITIVE, _NEGATIVE, _ORDER, _COPIES, _BATCHES = range(5)


class Passages(NamedTuple):
    """The positives or the negatives of all groups, one after another."""

    group_P: np.ndarray
    """int64 [P], index of the group."""
    id_P: np.ndarray
    """int64 [P], passage_id."""
    hash_P: np.ndarray
    """int64 [P], text_hash."""


class Groups(NamedTuple):
    """The groups of a bucket; `source_N` holds small integers, `weight_N` each group's uses an epoch."""

    id_N: np.ndarray
    hash_N: np.ndarray
    source_N: np.ndarray
    weight_N: np.ndarray
    positives: Passages
    negatives: Passages


class Row(NamedTuple):
    """A query in a batch: its group, its positive and its negatives as indices into those of all groups."""

    group: int
    positive: int
    negatives: tuple[int, ...]


class GroupPlan(NamedTuple):
    """Batches of rows, and how many rows found no batch with a second one."""

    batches: list[list[Row]]
    leftover: int


def usable_positives(groups: Groups) -> np.ndarray:
    """Bool [P]: the positives that are not word for word their query."""
    return groups.positives.hash_P != groups.hash_N[groups.positives.group_P]


def plan_groups(
    groups: Groups, *, group_size: int, batch_size: int, seed: int, epoch: int, bucket: int
) -> GroupPlan:
    """Plans the contrastive batches of a bucket in an epoch.

    Args:
        groups: Every group must have a usable positive.
        group_size: Passages of a row, at most.
        batch_size: Rows of a batch, at most.
        seed: Of the whole plan.
        epoch: Draws differ by epoch.
        bucket: Enters the order of batches only.

    Returns:
        Batches, of all sources in random order. Each row is in exactly one batch or counted as left over.
    """
    uses_N = copies(groups.weight_N, seed, _COPIES, epoch, groups.id_N)
    rows: list[Row] = []
    orders: list[np.ndarray] = []
    for use in range(int(uses_N.max(initial=0))):
        chosen = _draw(groups, np.flatnonzero(uses_N > use), group_size, (seed, epoch, use))
        rows += chosen
        orders.append(mix(seed, _ORDER, epoch, use, groups.id_N[[row.group for row in chosen]]))
    order = np.argsort(np.concatenate(orders or [np.zeros(0, np.uint64)]), kind="stable")

    by_source: dict[int, list[Row]] = {}
    for index in order:
        by_source.setdefault(int(groups.source_N[rows[index].group]), []).append(rows[index])
    batches, leftover = [], 0
    for source in sorted(by_source):
        own = by_source[source]
        for batch in fill([_texts(groups, row) for row in own], batch_size):
            if len(batch) < 2:
                leftover += len(batch)  # alone, a row has no in-batch negatives
            else:
                batches.append([own[index] for index in batch])
    shuffled = np.argsort(mix(seed, _BATCHES, epoch, bucket, np.arange(len(batches))), kind="stable")
    return GroupPlan([batches[index] for index in shuffled], leftover)


def fill(texts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Fills batches in order so that no text occurs twice in one; a row that would collide waits for a later one.

    Rows that wait are kept by the text they collided on: in a new batch only the first of each can fit.

    Args:
        texts: Hashes of each row's texts.
        batch_size: Rows of a batch, at most.

    Returns:
        Row indices of each batch; every row occurs once.
    """
    waiting: dict[int, deque[int]] = {}
    batches: list[list[int]] = []
    following = 0
    while following < len(texts) or waiting:
        batch: list[int] = []
        used: set[int] = set()
        for text in list(waiting):
            if len(batch) == batch_size:
                break
            row = waiting[text][0]
            clash = next((t for t in texts[row] if t in used), None)
            if clash == text:
                continue
            waiting[text].popleft()
            if not waiting[text]:
                del waiting[text]
            if clash is None:
                batch.append(row)
                used.update(texts[row])
            else:
                waiting.setdefault(clash, deque()).append(row)
        while len(batch) < batch_size and following < len(texts):
            clash = next((t for t in texts[following] if t in used), None)
            if clash is None:
                batch.append(following)
                used.update(texts[following])
            else:
                waiting.setdefault(clash, deque()).append(following)
            following += 1
        batches.append(batch)
    return batches


def plan_texts(
    id_N: np.ndarray, offset_N: np.ndarray, length_N: np.ndarray, weight_N: np.ndarray, *,
    tokens_per_batch: int, seed: int, epoch: int, bucket: int,
) -> list[np.ndarray]:  # fmt: skip
    """Packs texts into batches of at most `tokens_per_batch` tokens and of similar lengths.

    Rows are shuffled, cut into windows of `WINDOW_BATCHES` batches' tokens, sorted by length within a window and cut
    into batches, which are shuffled: little padding, and a batch is still a random draw from its window.

    Args:
        id_N: passage_id, int64 [N].
        offset_N: Where the row begins in its passage, int64 [N].
        length_N: Tokens of the row, int64 [N], each at most `tokens_per_batch`.
        weight_N: Uses of the row an epoch, float [N].
        tokens_per_batch: Tokens of a batch.
        seed: Of the whole plan.
        epoch: The order differs by epoch.
        bucket: Enters the order of batches only.

    Returns:
        Row indices of each batch.
    """
    uses_N = copies(weight_N, seed, _COPIES, epoch, id_N)
    rows_R = np.repeat(np.arange(len(id_N)), uses_N)
    use_R = rank_in_run(rows_R)
    rows_R = rows_R[np.argsort(mix(seed, _ORDER, epoch, use_R, id_N[rows_R], offset_N[rows_R]), kind="stable")]
    length_R = length_N[rows_R]
    window_R = (np.cumsum(length_R) - length_R) // (WINDOW_BATCHES * tokens_per_batch)
    rows_R = rows_R[np.lexsort((length_R, window_R))]

    batches, start, tokens = [], 0, 0
    for stop, length in enumerate(length_N[rows_R].tolist()):
        if tokens + length > tokens_per_batch:
            batches.append(rows_R[start:stop])
            start, tokens = stop, 0
        tokens += length
    if start < len(rows_R):
        batches.append(rows_R[start:])
    shuffled = np.argsort(mix(seed, _BATCHES, epoch, bucket, np.arange(len(batches))), kind="stable")
    return [batches[index] for index in shuffled]


def _draw(groups: Groups, wanted: np.ndarray, group_size: int, fields: tuple[int, int, int]) -> list[Row]:
    """Draws a positive and up to `group_size` - 1 negatives for each wanted group, from (seed, epoch, use, query)."""
    seed, epoch, use = fields
    is_wanted_N = np.zeros(len(groups.id_N), bool)
    is_wanted_N[wanted] = True
    positives, negatives = groups.positives, groups.negatives

    key_P = mix(seed, _POSITIVE, epoch, use, groups.id_N[positives.group_P], positives.id_P)
    valid_P = is_wanted_N[positives.group_P] & usable_positives(groups)
    positive = first_in_each(positives.group_P, key_P, valid_P, 1)
    if len(positive) != len(wanted):
        raise ValueError("a group has no usable positive")

    # A negative that is the query, one of its positives or another negative word for word is no negative.
    own_P = mix(positives.group_P, positives.hash_P)
    own_N = mix(np.arange(len(groups.id_N)), groups.hash_N)
    key_P = mix(seed, _NEGATIVE, epoch, use, groups.id_N[negatives.group_P], negatives.id_P)
    text_P = mix(negatives.group_P, negatives.hash_P)
    valid_P = is_wanted_N[negatives.group_P] & ~np.isin(text_P, np.concatenate([own_P, own_N]))
    distinct = first_in_each(text_P, key_P, valid_P, 1)
    valid_P = np.zeros(len(text_P), bool)
    valid_P[distinct] = True
    negative = first_in_each(negatives.group_P, key_P, valid_P, group_size - 1)

    chosen: list[list[int]] = [[] for _ in range(len(groups.id_N))]
    for index in negative.tolist():
        chosen[negatives.group_P[index]].append(index)
    return [Row(int(positives.group_P[p]), p, tuple(chosen[positives.group_P[p]])) for p in positive.tolist()]


def _texts(groups: Groups, row: Row) -> tuple[int, ...]:
    negatives = groups.negatives.hash_P[list(row.negatives)].tolist() if row.negatives else []
    return (int(groups.hash_N[row.group]), int(groups.positives.hash_P[row.positive]), *negatives)
