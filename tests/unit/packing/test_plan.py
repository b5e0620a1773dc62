"""The plan's rules, one by one: one source a batch, no text twice, nothing lost, nothing made up."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.packing.plan import Groups, Lengths, Passages, Rows, fill, length_buckets, plan_groups


def tokens(text: np.ndarray) -> np.ndarray:
    """The length of each text, from 3 to 101."""
    return (text * 7919 % 99 + 3).astype(np.int32)


def make_groups(
    rows: list[tuple[int, list[int], list[int], int]], weights: list[float] | None = None, shuffle: int | None = None
) -> Groups:
    """Groups of (query text, positive texts, negative texts, source); a text's number is its hash."""
    order = np.arange(len(rows)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(rows))
    rows = [rows[i] for i in order]
    flat = []
    for column in (1, 2):
        group = np.array([g for g, row in enumerate(rows) for _ in row[column]], np.int64)
        text = np.array([t for row in rows for t in row[column]], np.int64)
        flat.append(Passages(group, text + 10_000, text, tokens(text)))
    return Groups(
        order + 100, np.array([row[0] for row in rows]), np.array([row[3] for row in rows]),
        np.array(weights or [1.0] * len(rows))[order], *flat,
    )  # fmt: skip


def named(groups: Groups, batches: list[Rows]) -> list[list[tuple]]:
    """Batches in terms of ids and texts instead of indices."""
    return [
        [(int(groups.id_N[g]), int(groups.hash_N[g]), int(groups.positives.hash_P[p]),
          tuple(groups.negatives.hash_P[k].tolist()))
         for g, p, k in zip(b.group_R, b.positive_R, np.split(b.negative_K, np.cumsum(b.count_R)[:-1]), strict=True)]
        for b in batches
    ]  # fmt: skip


ROWS = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.integers(31, 60), min_size=1, max_size=3),
              st.lists(st.integers(31, 70), max_size=5), st.integers(0, 2)), max_size=40,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(2, 9), st.integers(1, 4))
def test_rules_hold_for_any_groups(rows: list, batch_size: int, group_size: int) -> None:
    groups = make_groups(rows)
    plan = plan_groups(groups, group_size=group_size, batch_size=batch_size, seed=3, epoch=1, bucket=0)
    source = dict(zip(groups.id_N.tolist(), groups.source_N.tolist(), strict=True))
    own = {100 + i: row for i, row in enumerate(rows)}
    for batch in named(groups, plan.batches):
        assert 2 <= len(batch) <= batch_size or (len(batch) == 1 and batch[0][3])
        assert len({source[query_id] for query_id, *_ in batch}) == 1
        texts = [text for _, query, positive, negatives in batch for text in (query, positive, *negatives)]
        assert len(texts) == len(set(texts))
        for query_id, query, positive, negatives in batch:
            assert query == own[query_id][0] and positive in own[query_id][1]
            assert len(negatives) <= group_size - 1
            assert set(negatives) <= set(own[query_id][2]) - set(own[query_id][1])
    used = Counter(query_id for batch in named(groups, plan.batches) for query_id, *_ in batch)
    assert max(used.values(), default=1) == 1
    assert len(used) + plan.alone == len(rows)


def test_a_passage_whole_and_cut_for_an_llm_does_not_meet_itself() -> None:
    """Its cut text is the positive of one query; whole, a negative of another, it would be a false negative of that."""
    def flat(rows: list[tuple[int, int, int]]) -> Passages:
        group, number, text = np.array(rows, np.int64).T
        return Passages(group, number, text, np.full(len(rows), 10, np.int32))

    for other, batches in ((7, 2), (6, 1)):
        groups = Groups(np.array([1, 2]), np.array([11, 12]), np.array([0, 0]), np.ones(2),
                        flat([(0, 7, 700), (1, 8, 800)]), flat([(0, 9, 900), (1, other, 701)]))  # fmt: skip
        plan = plan_groups(groups, group_size=2, batch_size=2, seed=1, epoch=0, bucket=0)
        assert len(plan.batches) == batches and sum(len(b.group_R) for b in plan.batches) == 2
    # Ids that a file of groups did not care for are not taken for one passage.
    groups = make_groups([(i, [100 + i], [200 + i], 0) for i in range(40)])
    nought = [side._replace(id_P=np.zeros_like(side.id_P)) for side in (groups.positives, groups.negatives)]
    groups = groups._replace(positives=nought[0], negatives=nought[1])
    assert len(plan_groups(groups, group_size=2, batch_size=8, seed=1, epoch=0, bucket=0).batches) == 5


def test_all_given_negatives_are_used_where_there_is_room() -> None:
    groups = make_groups([(i, [100 + i], [200 + 3 * i, 201 + 3 * i, 202 + 3 * i][: i % 4], 0) for i in range(8)])
    plan = plan_groups(groups, group_size=3, batch_size=8, seed=1, epoch=0, bucket=0)
    counts = {query_id - 100: len(negatives) for query_id, _, _, negatives in named(groups, plan.batches)[0]}
    assert counts == {i: min(2, i % 4) for i in range(8)}


def test_the_plan_does_not_depend_on_the_order_of_rows_but_on_epoch_and_seed() -> None:
    rows = [(i, [100 + i, 200 + i], [300 + i, 400 + i, 500 + i], i % 2) for i in range(30)]
    plans = {}
    for name, shuffle, seed, epoch in (("a", None, 1, 0), ("b", 5, 1, 0), ("epoch", None, 1, 1), ("seed", None, 2, 0)):
        groups = make_groups(rows, shuffle=shuffle)
        plan = plan_groups(groups, group_size=3, batch_size=4, seed=seed, epoch=epoch, bucket=0)
        plans[name] = named(groups, plan.batches)
    assert plans["a"] == plans["b"] and plans["a"] != plans["epoch"] and plans["a"] != plans["seed"]
    positives = {(q, p) for batch in plans["a"] for q, _, p, _ in batch}
    assert positives != {(q, p) for batch in plans["epoch"] for q, _, p, _ in batch}


def test_epochs_draw_every_positive_and_negative_in_time() -> None:
    rows = [(i, [100 + i, 200 + i], [300 + i, 400 + i, 500 + i], 0) for i in range(4)]
    groups = make_groups(rows)
    seen: dict[int, set[int]] = {}
    for epoch in range(40):
        plan = plan_groups(groups, group_size=2, batch_size=4, seed=1, epoch=epoch, bucket=0)
        for query_id, _, positive, negatives in (row for batch in named(groups, plan.batches) for row in batch):
            seen.setdefault(query_id - 100, set()).update((positive, *negatives))
    assert seen == {i: {*rows[i][1], *rows[i][2]} for i in range(4)}


def test_weights_repeat_and_thin_out() -> None:
    rows = [(i, [1000 + i], [], i % 2) for i in range(2000)]
    groups = make_groups(rows, weights=[2.0 if i % 2 else 0.25 for i in range(2000)])
    plan = plan_groups(groups, group_size=1, batch_size=16, seed=1, epoch=0, bucket=0)
    used = Counter(query_id - 100 for batch in named(groups, plan.batches) for query_id, *_ in batch)
    assert all(used[i] == 2 for i in range(1, 2000, 2))
    assert abs(sum(used[i] for i in range(0, 2000, 2)) - 250) < 50


def test_a_hot_text_is_spread_over_batches() -> None:
    # 10 of 100 queries share one positive: each of 10 batches can hold one of them.
    groups = make_groups([(i, [999 if i < 10 else 100 + i], [], 0) for i in range(100)])
    plan = plan_groups(groups, group_size=1, batch_size=10, seed=1, epoch=0, bucket=0)
    assert plan.alone == 0 and sum(map(len, named(groups, plan.batches))) == 100
    assert max(sum(p == 999 for _, _, p, _ in batch) for batch in named(groups, plan.batches)) == 1


def test_fill_keeps_every_row_once_and_rows_alone_are_counted() -> None:
    batches = fill([(1,), (1,), (1,), (2,)], 3)
    assert sorted(row for batch in batches for row in batch) == [0, 1, 2, 3]
    groups = make_groups([(i, [999], [], 0) for i in range(3)])
    plan = plan_groups(groups, group_size=1, batch_size=3, seed=1, epoch=0, bucket=0)
    assert plan.batches == [] and plan.alone == 3


@pytest.mark.parametrize(("group_size", "planned"), [(1, 0), (2, 2)])
def test_a_row_alone_is_a_batch_if_it_brings_a_negative(group_size: int, planned: int) -> None:
    # All share a positive; the first and the third have a negative, of which a group of one brings none.
    groups = make_groups([(0, [999], [50], 0), (1, [999], [], 0), (2, [999], [51, 52], 0)])
    plan = plan_groups(groups, group_size=group_size, batch_size=3, seed=1, epoch=0, bucket=0)
    batches = named(groups, plan.batches)
    assert all(len(batch) == 1 for batch in batches) and plan.alone == 3 - planned
    assert {query_id for (query_id, *_), in batches} == ({100, 102} if planned else set())


def test_a_group_without_usable_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="usable positive"):
        plan_groups(make_groups([(5, [5], [], 0)]), group_size=1, batch_size=2, seed=1, epoch=0, bucket=0)


LENGTHS = Lengths((20, 60), (9, 5, 2))


@settings(max_examples=60, deadline=None)
@given(ROWS, st.booleans(), st.integers(1, 4))
def test_rules_hold_with_length_buckets_and_mixed_sources(rows: list, mixed: bool, group_size: int) -> None:
    groups = make_groups(rows)
    plan = plan_groups(groups, group_size=group_size, batch_size=9, seed=3, epoch=1, bucket=0, lengths=LENGTHS,
                       mixed=mixed)  # fmt: skip
    for batch, names in zip(plan.batches, named(groups, plan.batches), strict=True):
        longest = max(tokens(np.array([positive, *negatives])).max() for _, _, positive, negatives in names)
        assert len(names) <= LENGTHS.sizes[np.searchsorted(LENGTHS.edges, longest)]
        assert len(names) > 1 or names[0][3]
        assert mixed or len(set(groups.source_N[batch.group_R].tolist())) == 1
        texts = [text for _, query, positive, negatives in names for text in (query, positive, *negatives)]
        assert len(texts) == len(set(texts))
    used = Counter(query_id for batch in named(groups, plan.batches) for query_id, *_ in batch)
    assert max(used.values(), default=1) == 1
    assert len(used) + plan.alone == len(rows)


@pytest.mark.parametrize("mixed", [False, True])
def test_tails_go_to_the_next_longer_bucket_and_no_row_is_left(mixed: bool) -> None:
    rows = [(i, [1000 + i], [5000 + i], i % 3) for i in range(601)]
    groups = make_groups(rows)
    plan = plan_groups(groups, group_size=2, batch_size=9, seed=3, epoch=1, bucket=0, lengths=LENGTHS, mixed=mixed)
    own = np.maximum(tokens(groups.positives.hash_P), tokens(groups.negatives.hash_P))
    bucket = np.searchsorted(LENGTHS.edges, own)
    batches = [bucket[batch.group_R] for batch in plan.batches]
    pools = 1 if mixed else 3
    assert plan.alone == 0
    # Batches of one bucket only, but for those that took a shorter one's tail.
    tails = [batch for batch in batches if batch.min() < batch.max()]
    assert 0 < sum(len(batch) for batch in tails) < pools * (9 + 5 + 9)
    whole = [batch for batch in batches if batch.min() == batch.max() < 2]
    assert all(len(batch) == LENGTHS.sizes[batch[0]] for batch in whole)


def test_mixed_batches_hold_every_source_in_proportion_of_its_rows_and_weight() -> None:
    # 300 and 100 rows of weights 1 and 2, and 200 of weight 1.
    source = [0] * 300 + [1] * 100 + [2] * 200
    groups = make_groups(
        [(i, [1000 + i], [], s) for i, s in enumerate(source)], weights=[1.0 + (s == 1) for s in source]
    )
    plan = plan_groups(groups, group_size=1, batch_size=28, seed=1, epoch=0, bucket=0, mixed=True)
    full = [np.bincount(groups.source_N[b.group_R], minlength=3) for b in plan.batches if len(b.group_R) == 28]
    assert len(full) == 25
    assert np.abs(np.array(full) - [12, 8, 8]).max() <= 2


def test_the_batch_size_of_a_bucket_follows_from_the_budget() -> None:
    # 32 + 8 x 128 tokens a row: 15 rows in 16,384; at 8,192 tokens a passage none, but two make a batch.
    lengths = length_buckets((128, 512), 16384, 12, 32, 8192, 8)
    assert lengths == Lengths((128, 512), (12, 3, 2))
    assert length_buckets((), None, 12, 32, 8192, 8) == Lengths((), (12,))


def test_sharing_by_many_keeps_every_row() -> None:
    draw = np.random.default_rng(0)
    rows = [(i, [1000 + i], (3000 + draw.integers(0, 40, 3)).tolist(), 0) for i in range(300)]
    groups = make_groups(rows)
    plan = plan_groups(groups, group_size=4, batch_size=8, seed=1, epoch=0, bucket=0)
    used = [query_id for batch in named(groups, plan.batches) for query_id, *_ in batch]
    assert len(set(used)) == len(used) == 300 and plan.alone == 0
