"""Hash draws: uniform, independent of order, and without replacement."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.packing.draws import copies, first_in_each, mix, rank_in_run, uniform


def test_draws_are_uniform_and_differ_by_field() -> None:
    ids = np.arange(20_000)
    first, second = uniform(1, 0, ids), uniform(1, 1, ids)
    assert abs(first.mean() - 0.5) < 0.01 and abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert len(np.unique(mix(1, ids))) == len(ids)
    assert not np.array_equal(mix(1, 2, ids), mix(2, 1, ids))


def test_a_draw_depends_on_its_fields_alone() -> None:
    ids = np.array([5, -7, 1 << 62])
    assert np.array_equal(mix(3, ids)[[2, 0]], mix(3, ids[[2, 0]]))


def test_copies_have_the_weight_as_mean() -> None:
    ids = np.arange(20_000)
    drawn = copies(np.full(len(ids), 2.3), 1, ids)
    assert set(drawn) == {2, 3} and abs(drawn.mean() - 2.3) < 0.02
    assert not copies(np.zeros(5), 1, np.arange(5)).any()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.booleans())), st.integers(0, 4))
def test_first_in_each_equals_sorting_each_group(members: list[tuple[int, int, bool]], k: int) -> None:
    group, key, valid = (np.array([m[i] for m in members], kind) for i, kind in enumerate((np.int64, np.uint64, bool)))
    expected = []
    for g in sorted(set(group.tolist())):
        own = [i for i in range(len(members)) if group[i] == g and valid[i]]
        expected += sorted(own, key=lambda i: (key[i], i))[:k]
    assert first_in_each(group, key, valid, k).tolist() == expected


def test_rank_in_run() -> None:
    assert rank_in_run(np.array([4, 4, 4, 7, 9, 9])).tolist() == [0, 1, 2, 0, 0, 1]
    assert rank_in_run(np.array([], np.int64)).tolist() == []
