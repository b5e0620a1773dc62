"""RetroMAE's masks: exact shares at every length, nobody sees itself, and draws that only the text's key decides."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.models.retromae_masks import Drawing, count_masked, hide, lay_out, mask_encoder, visible

VOCAB, MASK, SPECIAL = 50, 49, (0, 1, 2, 7, 49)
DRAWING = Drawing(7, 0.3, 0.5, VOCAB, MASK, SPECIAL)


def text(length: int, seed: int = 1) -> np.ndarray:
    return np.r_[0, np.random.default_rng(seed).integers(8, 48, max(length - 2, 0)), 2][:length].astype(np.int32)


def key(number: int) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.int32)


def matrix(number: int, length: int, maskable: int, share: float, tile: int) -> torch.Tensor:
    hidden = hide(key(number), length, maskable, share)
    return torch.cat([visible(hidden, start, min(start + tile, maskable)) for start in range(0, maskable, tile)])


def test_counts_of_masked_tokens() -> None:
    assert [count_masked(n, 0.3) for n in (0, 1, 2, 10, 510, 8190)] == [0, 1, 1, 3, 153, 2457]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 5), st.integers(-(2**31), 2**31 - 1),
    st.sampled_from([0.05, 0.3, 0.5, 0.95]), st.integers(1, 80),
)  # fmt: skip
def test_the_decoders_shares_are_exact(maskable: int, special: int, number: int, share: float, tile: int) -> None:
    seen = matrix(number, special + maskable, maskable, share, tile)
    assert seen.shape == (maskable, special + maskable) and seen.dtype == torch.bool
    assert seen[:, :special].all()
    assert ((~seen[:, special:]).sum(1) == count_masked(maskable, share)).all()
    assert not seen[:, special:].diagonal().any()


@pytest.mark.parametrize("length", [16, 512, 2048, 8192])
def test_shares_are_exact_at_every_length(length: int) -> None:
    maskable = length - 2
    texts = lay_out([text(length)], np.array([length], np.int32), DRAWING)
    shown_T, masked_K = mask_encoder(texts)
    assert len(masked_K) == len(masked_K.unique()) == round(0.3 * maskable)
    assert texts.masked == (round(0.3 * maskable),) and texts.maskable == (maskable,)
    hidden = hide(texts.key_N[0], length, maskable, 0.5)
    tile = min(1024, maskable)
    for start in (0, maskable - tile):
        seen = visible(hidden, start, start + tile)
        assert ((~seen).sum(1) == round(0.5 * maskable)).all()
        assert not seen[:, hidden.special + start :].diagonal().any()
        # At most so many different sets, of which each position takes one, without itself.
        assert len(hidden.visible_PW) == min(128, maskable)


def naive(number: int, length: int, maskable: int, share: float) -> torch.Tensor:
    """Position by position: the set it chose, over the other tokens."""
    hidden = hide(key(number), length, maskable, share)
    seen = torch.ones(maskable, length, dtype=torch.bool)
    for i in range(maskable):
        others = [j for j in range(length) if j != hidden.special + i]
        seen[i, hidden.special + i] = False
        seen[i, others] = hidden.visible_PW[hidden.choice_M[i]]
    return seen


@pytest.mark.parametrize(("length", "maskable"), [(3, 1), (4, 2), (12, 10), (40, 37), (200, 150)])
def test_a_tile_equals_the_sets_laid_down_one_by_one(length: int, maskable: int) -> None:
    for tile in (1, 7, maskable):
        assert torch.equal(matrix(5, length, maskable, 0.5, tile), naive(5, length, maskable, 0.5))


def test_every_other_token_is_hidden_equally_often() -> None:
    # Of 400 texts each pair is hidden 0.4 ± 0.024 of the time; five deviations are allowed.
    maskable, share = 41, 0.4
    often = torch.stack([matrix(n, maskable + 2, maskable, share, 41) for n in range(400)]).float().mean(0)[:, 2:]
    others = often[~torch.eye(maskable, dtype=torch.bool)]
    expected = 1 - (count_masked(maskable, share) - 1) / (maskable - 1)
    assert (others - expected).abs().max() < 0.125 and abs(others.mean() - expected) < 1e-6


def test_positions_take_all_sets_equally_often() -> None:
    choice = torch.cat([hide(key(n), 512, 510, 0.5).choice_M for n in range(100)])
    counts = torch.bincount(choice, minlength=128)
    assert len(counts) == 128 and ((counts - 51000 / 128).abs() < 6 * (51000 / 128) ** 0.5).all()


def test_tokens_are_masked_equally_often() -> None:
    often = torch.zeros(42)
    for number in range(500):
        often[mask_encoder(lay_out([text(42)], np.array([number], np.int32), DRAWING))[1]] += 1
    assert not often[[0, 41]].any()
    # 12 of 40: 0.3 ± 0.0205.
    assert (often[1:-1] / 500 - 0.3).abs().max() < 0.1


def test_what_masked_tokens_are_replaced_by() -> None:
    long = [text(2000, seed) for seed in range(10)]
    texts = lay_out(long, np.arange(10, dtype=np.int32), DRAWING)
    shown_T, masked_K = mask_encoder(texts)
    shown_K, own_K = shown_T[masked_K], texts.packed.ids_T[masked_K]
    kept = torch.ones_like(shown_T, dtype=torch.bool).index_fill(0, masked_K, False)
    assert torch.equal(shown_T[kept], texts.packed.ids_T[kept])
    # 6,000 draws: 0.8 ± 0.005. One replacement in 45 is the token itself.
    assert abs((shown_K == MASK).float().mean() - 0.8) < 0.025
    assert abs((shown_K == own_K).float().mean() - 0.1) < 0.025
    replaced = shown_K[(shown_K != MASK) & (shown_K != own_K)]
    assert set(replaced.tolist()) == set(range(VOCAB)) - set(SPECIAL)


def test_masks_follow_from_the_key_and_not_from_the_neighbours() -> None:
    alone = lay_out([text(20)], np.array([77], np.int32), DRAWING)
    beside = lay_out([text(33, 2), text(20), text(9, 3)], np.array([5, 77, 6], np.int32), DRAWING)
    (shown, masked), (shown_all, masked_all) = mask_encoder(alone), mask_encoder(beside)
    assert torch.equal(shown, shown_all[33:53])
    start = beside.masked[0]
    assert torch.equal(masked + 33, masked_all[start : start + alone.masked[0]])
    assert torch.equal(hide(alone.key_N[0], 20, 18, 0.5).visible_PW, hide(beside.key_N[1], 20, 18, 0.5).visible_PW)
    other = lay_out([text(20)], np.array([78], np.int32), DRAWING)
    assert not torch.equal(mask_encoder(other)[1].sort()[0], masked.sort()[0])
    assert not torch.equal(matrix(77, 20, 18, 0.5, 18), matrix(78, 20, 18, 0.5, 18))


def test_special_tokens_anywhere_are_read_first_and_never_masked() -> None:
    ids = np.array([0, 9, 7, 10, 11, 2, 2, 12, 2], np.int32)
    texts = lay_out([text(4), ids], np.array([1, 2], np.int32), DRAWING)
    assert texts.maskable == (2, 4)
    assert texts.maskable_M.tolist() == [1, 2, 5, 7, 8, 11]
    assert texts.owner_M.tolist() == [0, 0, 1, 1, 1, 1]
    # 13 and 14 stand for the two texts' vectors.
    assert texts.memory_T.tolist() == [13, 3, 1, 2, 14, 6, 9, 10, 12, 5, 7, 8, 11]
    assert set(mask_encoder(texts)[1].tolist()) <= set(texts.maskable_M.tolist())


def test_texts_without_a_maskable_token_and_no_text_at_all() -> None:
    texts = lay_out([np.array([0, 2]), np.array([9])], np.array([1, 2], np.int32), DRAWING)
    shown_T, masked_K = mask_encoder(texts)
    assert texts.maskable == (0, 0) and shown_T.tolist() == [0, 2, 9] and len(masked_K) == 0
    assert lay_out([], np.zeros(0, np.int32), DRAWING).maskable == ()


def test_a_text_beyond_what_draws_tell_apart_is_refused() -> None:
    with pytest.raises(ValueError, match="16384"):
        lay_out([np.full(16385, 9)], np.array([1], np.int32), DRAWING)
