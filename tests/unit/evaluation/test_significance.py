"""The bootstrap against a naive loop, its pairing and its coverage."""

import numpy as np
import pytest

from chuxin.evaluation import significance
from chuxin.evaluation.significance import Interval, interval, is_significant, resample_means


def test_equals_a_naive_loop_over_resamples() -> None:
    values = np.random.default_rng(0).random((7, 3))
    means = resample_means(values, samples=50, seed=11)
    picks = np.random.default_rng(11).integers(0, 7, (50, 7))
    expected = [[sum(values[i, c] for i in row) / 7 for c in range(3)] for row in picks]
    np.testing.assert_allclose(means, expected, rtol=0, atol=1e-12)


def test_blocks_cover_all_samples_and_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((10, 2))
    whole = resample_means(values, samples=101, seed=3)
    monkeypatch.setattr(significance, "_BLOCK", 40)
    # Draws of consecutive blocks continue one stream, so the block's size does not change them.
    np.testing.assert_array_equal(resample_means(values, samples=101, seed=3), whole)
    assert not np.array_equal(resample_means(values, samples=101, seed=4), whole)


def test_spread_is_the_standard_error() -> None:
    values = np.random.default_rng(1).standard_normal((400, 1))
    means = resample_means(values, samples=4000, seed=2)[:, 0]
    assert means.std() == pytest.approx(values.std() / 20, rel=0.05)
    found = interval(values[:, 0], means)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=0.01)
    assert found.high == pytest.approx(values.mean() + 1.96 * values.std() / 20, abs=0.01)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    draw = np.random.default_rng(5)
    # One column an experiment: all experiments share the resamples, which is what makes this quick.
    experiments = draw.standard_normal((60, 1500))
    means = resample_means(experiments, samples=1000, seed=6)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(0.945, abs=0.02)


def test_pairing_finds_a_small_steady_gain_that_unpaired_intervals_hide() -> None:
    draw = np.random.default_rng(8)
    baseline = draw.random(200)
    system = baseline + 0.02 + 0.01 * draw.standard_normal(200)
    means = resample_means(np.stack([baseline, system], axis=1), samples=2000, seed=0)
    first, second = interval(baseline, means[:, 0]), interval(system, means[:, 1])
    assert first.high > second.low
    gain = interval(system - baseline, means[:, 1] - means[:, 0])
    assert is_significant(gain, 200) and gain.low > 0.015


def test_what_counts_as_significant() -> None:
    assert is_significant(Interval(-0.2, -0.3, -0.1), 20)
    assert not is_significant(Interval(0.2, 0.1, 0.3), 19)
    assert not is_significant(Interval(0.2, -0.1, 0.3), 500)
    assert not is_significant(Interval(0.0, 0.0, 0.0), 500)


def test_no_queries_is_refused() -> None:
    with pytest.raises(ValueError, match="no queries"):
        resample_means(np.empty((0, 2)), 10, 0)
