"""Micro-batches: every text once, within the budget of real tokens; places that put outputs back in order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.training.micro import micro_batches, parts, passes

LENGTHS = st.lists(st.integers(1, 40), max_size=50)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 100))
def test_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = micro_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) for batch in batches)
    sums = [sum(lengths[i] for i in batch) for batch in batches]
    assert all(total <= budget or len(batch) == 1 for total, batch in zip(sums, batches, strict=True))
    sizes = [lengths[i] for batch in batches for i in batch]
    assert sizes == sorted(sizes, reverse=True)
    # Cut late: the next text would not have fitted.
    assert all(total + lengths[after[0]] > budget for total, after in zip(sums, batches[1:], strict=False))


@settings(deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=4), st.integers(1, 100))
def test_passes_are_the_most_of_any_rank_in_any_order(of_ranks: list[list[int]], budget: int) -> None:
    wanted = max(1, *(len(micro_batches(lengths, budget)) for lengths in of_ranks), 1)
    assert passes(of_ranks, budget) == passes([lengths[::-1] for lengths in of_ranks], budget) == wanted


@pytest.mark.parametrize("budget", [1, 7, 1000])
def test_places_put_outputs_back(budget: int) -> None:
    draw = np.random.default_rng(0)
    texts = [draw.integers(5, 50, size) for size in (3, 1, 7, 2, 2, 5)]
    keys = np.arange(6) + 100
    made = parts(texts, keys, budget, 8)
    assert len(made) == max(8, len(micro_batches([len(t) for t in texts], budget)))
    joined, tokens = np.concatenate(texts), np.zeros(20, np.int64)
    later, text_keys = np.zeros(14, np.int64), np.zeros(6, np.int64)
    for part in made:
        real = len(part.text_N) > 0
        tokens[part.token_T] = part.packed.ids_T[: len(part.token_T)]
        later[part.vector_V] = part.packed.ids_T[part.later_V]
        text_keys[part.text_N] = part.key_N[: len(part.text_N)]
        assert real or part.packed.lengths == (1,)
    assert tokens.tolist() == joined.tolist() and text_keys.tolist() == keys.tolist()
    assert later.tolist() == np.concatenate([text[1:] for text in texts]).tolist()


def test_a_part_moves_as_a_whole() -> None:
    part = parts([np.arange(3)], np.zeros(1), 10, 1)[0].to(torch.device("meta"))
    assert part.packed.ids_T.is_meta and part.key_N.is_meta and part.vector_V.is_meta
