"""The plan of one bucket in one epoch: which rows make which global batch, and which passages a query brings.

Pure functions over arrays; a plan depends on the config, the epoch and the rows' ids, not on their order.
A contrastive batch holds rows of similar length, of one source or of all in proportion, and no text twice, be it
query or passage: an in-batch negative that is the positive's own text would be a false negative. Leaves out: texts of
RetroMAE (plan_texts.py), reading and writing (pipeline.py).

Measured on one core, groups of 8 passages: 100,000 groups a second of 200,000 groups, 42,000 of 10^6; 57,000 where all
batches are mixed, cut by length and share texts. At the peak 0.9 to 1.2 KB a group, beside 25 KB for its tokens.

Shapes: N groups, P passages of all groups together, R rows (a group may be used more than once an epoch), K negatives
of all rows together, T texts of all rows together, B rows of a batch.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from chuxin.packing.draws import copies, first_in_each, mix, rank_in_run, uniform

# What a draw is for goes into its hash, so that different draws on the same id are independent.
_POSITIVE, _NEGATIVE, _ORDER, _COPIES, _BATCHES, _PLACE, _PASSAGE = range(7)
_MOST_TEXTS = 8
"""Texts of one passage: whole, and as LLMs of several tokenizers and lengths saw it."""


class Passages(NamedTuple):
    """The positives or the negatives of all groups, one after another."""

    group_P: np.ndarray
    """int64 [P], index of the group."""
    id_P: np.ndarray
    """int64 [P], passage_id."""
    hash_P: np.ndarray
    """int64 [P], text_hash."""
    length_P: np.ndarray
    """int32 [P], tokens."""


class Groups(NamedTuple):
    """The groups of a bucket; `source_N` holds small integers, `weight_N` each group's uses an epoch."""

    id_N: np.ndarray
    hash_N: np.ndarray
    source_N: np.ndarray
    weight_N: np.ndarray
    positives: Passages
    negatives: Passages


class Rows(NamedTuple):
    """Queries with the passages they bring: their groups, and positives and negatives as indices into those of all."""

    group_R: np.ndarray
    positive_R: np.ndarray
    count_R: np.ndarray
    """Negatives of each row."""
    negative_K: np.ndarray
    """Row after row."""

    def take(self, index_B: np.ndarray) -> Rows:
        """Returns the rows at these places."""
        count_B = self.count_R[index_B]
        begin_B = (np.cumsum(self.count_R) - self.count_R)[index_B]
        return Rows(self.group_R[index_B], self.positive_R[index_B], count_B, self.negative_K[runs(begin_B, count_B)])


class Lengths(NamedTuple):
    """Buckets of rows by the tokens of their longest passage: B of the bucket up to `edges[i]` is `sizes[i]`."""

    edges: tuple[int, ...]
    """Rising; longer rows than the last edge make a bucket of their own."""
    sizes: tuple[int, ...]
    """One more than edges."""


class GroupPlan(NamedTuple):
    """Batches of rows, and how many rows are in none: they bring no negative and found no batch with a second row."""

    batches: list[Rows]
    alone: int


def length_buckets(
    edges: Sequence[int], tokens_per_batch: int | None, batch_size: int, query_max_len: int, passage_max_len: int,
    group_size: int,
) -> Lengths:  # fmt: skip
    """Gives each bucket the rows that a token budget holds if every text is as long as the bucket allows.

    BGE-M3 (arXiv:2402.03216, table 9) lowers the batch from 1,152 rows at up to 500 tokens to 192 at 7,000 to 8,000,
    by trial and error; here it follows from the budget.

    Args:
        edges: Upper bounds of a row's longest passage, rising, below `passage_max_len`.
        tokens_per_batch: The budget; None gives every bucket `batch_size` rows.
        batch_size: Rows of a batch, at most; the least is 2.
        query_max_len: Tokens of a query, at most.
        passage_max_len: Tokens of a passage, at most.
        group_size: Passages of a row, at most.
    """
    costs = [query_max_len + group_size * most for most in (*edges, passage_max_len)]
    fitting = [batch_size if tokens_per_batch is None else tokens_per_batch // cost for cost in costs]
    return Lengths(tuple(edges), tuple(min(batch_size, max(2, size)) for size in fitting))


def usable_positives(groups: Groups) -> np.ndarray:
    """Bool [P]: the positives that are not word for word their query."""
    return groups.positives.hash_P != groups.hash_N[groups.positives.group_P]


def usable_negatives(groups: Groups) -> np.ndarray:
    """Bool [P]: the negatives that are neither their query nor one of its positives word for word."""
    own_P = mix(groups.positives.group_P, groups.positives.hash_P)
    own_N = mix(np.arange(len(groups.id_N)), groups.hash_N)
    text_P = mix(groups.negatives.group_P, groups.negatives.hash_P)
    return ~np.isin(text_P, np.concatenate([own_P, own_N]))


def count_negatives(groups: Groups) -> np.ndarray:
    """int64 [N]: the different texts among each group's usable negatives."""
    negatives = groups.negatives
    first = np.unique(mix(negatives.group_P, negatives.hash_P), return_index=True)[1]
    first = first[usable_negatives(groups)[first]]
    return np.bincount(negatives.group_P[first], minlength=len(groups.id_N))


def plan_groups(
    groups: Groups, *, group_size: int, batch_size: int, seed: int, epoch: int, bucket: int,
    lengths: Lengths | None = None, mixed: bool = False,
) -> GroupPlan:  # fmt: skip
    """Plans the contrastive batches of a bucket in an epoch.

    Rows are shuffled within their source; where batches are mixed, sources are dealt out evenly: of the first x per
    cent of the rows, x per cent of each source's, so that every batch holds all sources in proportion. A length
    bucket that does not fill its last batch hands those rows to the next longer one.

    Args:
        groups: Every group must have a usable positive.
        group_size: Passages of a row, at most.
        batch_size: Rows of a batch, at most.
        seed: Of the whole plan.
        epoch: Draws differ by epoch.
        bucket: Enters the order of batches only.
        lengths: Length buckets with a batch size each; None is one bucket of `batch_size`.
        mixed: Whether a batch holds all sources instead of one.

    Returns:
        Batches, of all sources and lengths in random order. Each row is in exactly one batch or counted as alone. A row
        makes a batch by itself if no other is left for it and it has a negative of its own.
    """
    lengths = lengths or Lengths((), (batch_size,))
    uses_N = copies(groups.weight_N, seed, _COPIES, epoch, groups.id_N)
    draws, keys = [], []
    for use in range(max(1, int(uses_N.max(initial=0)))):
        rows = _draw(groups, np.flatnonzero(uses_N > use), group_size, (seed, epoch, use))
        draws.append(rows)
        keys.append(mix(seed, _ORDER, epoch, use, groups.id_N[rows.group_R]))
    rows, key_R = Rows(*map(np.concatenate, zip(*draws, strict=True))), np.concatenate(keys)
    source_R = groups.source_N[rows.group_R]
    length_R = np.searchsorted(lengths.edges, _longest(groups, rows), side="left")
    texts = _shared_texts(groups, rows)

    batches: list[np.ndarray] = []
    alone = 0
    part_R = np.zeros_like(source_R) if mixed else source_R
    for part in np.unique(part_R).tolist():
        of_part = np.flatnonzero(part_R == part)
        waiting = of_part[:0]
        present = np.unique(length_R[of_part]).tolist()
        for length in present:
            own = np.concatenate([waiting, of_part[length_R[of_part] == length]])
            own = own[_dealt(source_R[own], key_R[own])]
            size = lengths.sizes[length]
            filled = [own[batch] for batch in fill([texts[row] for row in own.tolist()], size)]
            full, short = [[batch for batch in filled if (len(batch) == size) == wanted] for wanted in (True, False)]
            batches += full
            if length != present[-1]:
                waiting = np.concatenate(short) if short else own[:0]
                continue
            taught = [batch for batch in short if len(batch) > 1 or rows.count_R[batch[0]]]
            batches += taught
            alone += len(short) - len(taught)  # one candidate, the positive: a loss of 0
    shuffled = np.argsort(mix(seed, _BATCHES, epoch, bucket, np.arange(len(batches))), kind="stable")
    return GroupPlan([rows.take(batches[index]) for index in shuffled], alone)


def fill(texts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Fills batches in order so that no text occurs twice in one; a row that would collide waits for a later one.

    Rows that wait are kept by the text they collided on: in a new batch only the first of each can fit.

    Args:
        texts: Each row's texts, of which those in no other row may be left out.
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
        # Looking at all that wait, batch after batch, would be quadratic where many texts are shared.
        most = 4 * batch_size if following < len(texts) else None
        for text in list(itertools.islice(waiting, most)):
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
            own = texts[following]
            if own and not used.isdisjoint(own):
                clash = next(t for t in own if t in used)
                waiting.setdefault(clash, deque()).append(following)
            else:
                batch.append(following)
                used.update(own)
            following += 1
        batches.append(batch)
    return batches


def runs(begin_B: np.ndarray, count_B: np.ndarray) -> np.ndarray:
    """Concatenates the ranges [begin, begin + count)."""
    before_B = np.cumsum(count_B) - count_B
    return np.repeat(begin_B - before_B, count_B) + np.arange(int(count_B.sum()))


def _draw(groups: Groups, wanted: np.ndarray, group_size: int, fields: tuple[int, int, int]) -> Rows:
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

    # Of negatives that are the same text, one is a candidate.
    key_P = mix(seed, _NEGATIVE, epoch, use, groups.id_N[negatives.group_P], negatives.id_P)
    text_P = mix(negatives.group_P, negatives.hash_P)
    valid_P = is_wanted_N[negatives.group_P] & usable_negatives(groups)
    distinct = first_in_each(text_P, key_P, valid_P, 1)
    valid_P = np.zeros(len(text_P), bool)
    valid_P[distinct] = True
    negative = first_in_each(negatives.group_P, key_P, valid_P, group_size - 1)
    count_N = np.bincount(negatives.group_P[negative], minlength=len(groups.id_N))
    return Rows(positives.group_P[positive], positive, count_N[wanted], negative)


def _longest(groups: Groups, rows: Rows) -> np.ndarray:
    longest_R = groups.positives.length_P[rows.positive_R].copy()
    row_K = np.repeat(np.arange(len(rows.group_R)), rows.count_R)
    np.maximum.at(longest_R, row_K, groups.negatives.length_P[rows.negative_K])
    return longest_R


def _shared_texts(groups: Groups, rows: Rows) -> list[Sequence[int]]:
    """Each row's texts that another row has too, as small integers: only these can collide, and they are few.

    A passage of several texts, whole in one row and cut for an LLM in another, counts by its id as well.
    """
    row_R = np.arange(len(rows.group_R))
    row_K = np.concatenate([row_R, np.repeat(row_R, rows.count_R)])
    id_K = np.concatenate([groups.positives.id_P[rows.positive_R], groups.negatives.id_P[rows.negative_K]])
    hash_K = np.concatenate([groups.positives.hash_P[rows.positive_R], groups.negatives.hash_P[rows.negative_K]])
    cut_K = _of_several_texts(id_K, hash_K)
    row_T = np.concatenate([row_R, row_K, row_K[cut_K]])
    hash_T = np.concatenate([groups.hash_N[rows.group_R], hash_K, mix(_PASSAGE, id_K[cut_K]).view(np.int64)])
    text_T, count = np.unique(hash_T, return_inverse=True, return_counts=True)[1:]
    shared = np.flatnonzero(count[text_T] > 1)
    shared = shared[np.argsort(row_T[shared], kind="stable")]
    texts: list[Sequence[int]] = [()] * len(row_R)
    values, owners = text_T[shared].tolist(), row_T[shared]
    edges = [*np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]]).tolist(), len(owners)] if len(owners) else [0]
    for start, stop in itertools.pairwise(edges):
        texts[owners[start]] = values[start:stop]
    return texts


def _of_several_texts(id_K: np.ndarray, hash_K: np.ndarray) -> np.ndarray:
    """Bool [K]: the passages whose id stands for a few texts; one that stands for many tells nothing."""
    first = np.unique(mix(id_K, hash_K), return_index=True)[1]
    ids, texts = np.unique(id_K[first], return_counts=True)
    return np.isin(id_K, ids[(texts > 1) & (texts <= _MOST_TEXTS)])


def _dealt(source_R: np.ndarray, key_R: np.ndarray) -> np.ndarray:
    """Orders rows by their place within their source: the one of rank r of n stands at a random point of [r, r+1]/n."""
    by_source = np.lexsort((key_R, source_R))
    sources, counts = np.unique(source_R, return_counts=True)
    rank = rank_in_run(source_R[by_source])
    place = (rank + uniform(_PLACE, key_R[by_source])) / np.repeat(counts, counts)
    return by_source[np.lexsort((source_R[by_source], place))]
