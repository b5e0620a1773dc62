"""Geometry of the figures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.report import charts


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_axis_encloses_its_data_with_round_ticks(low: float, span: float, ticks: int) -> None:
    start, stop, values = charts.axis(low, low + span, ticks)
    slack = 1e-6 * max(abs(low), span)
    assert start <= low + slack and stop >= low + span - slack
    assert values[0] == start and values[-1] == stop
    assert 2 <= len(values) <= ticks + 3


@pytest.mark.parametrize(("span", "step"), [(10, 2), (9.9, 2), (12, 2.5), (0.4, 0.1), (1495, 500), (0, 1)])
def test_steps_are_round(span: float, step: float) -> None:
    assert charts.nice_step(span, 5) == pytest.approx(step)


@settings(max_examples=50)
@given(st.integers(1, 3000))
def test_thinning_keeps_the_mean_and_every_point_counts_once(n: int) -> None:
    points = [(float(i), float(i * i % 97)) for i in range(n)]
    thinned = charts.thin(points, 100)
    assert len(thinned) == min(n, 100)
    if n % 100 == 0 or n <= 100:
        assert np.mean([y for _, y in thinned]) == pytest.approx(np.mean([y for _, y in points]))
    xs = [x for x, _ in thinned]
    assert xs == sorted(xs)


def test_running_mean_against_a_loop() -> None:
    points = [(float(i), y) for i, y in enumerate([4.0, 0.0, 2.0, 6.0, 1.0])]
    assert [y for _, y in charts.running_mean(points, 3)] == [2.0, 2.0, pytest.approx(8 / 3), 3.0, 3.5]
    assert charts.running_mean(points, 1) == points


def test_path_maps_corners() -> None:
    assert charts.path([(0, 2), (10, 4)], (0, 10), (2, 4)) == "M0 1000L1000 0"


def test_curve_of_one_and_of_equal_losses() -> None:
    for losses in ([(5, 2.0)], [(1, 2.0), (2, 2.0)], [(0, 3.5)]):
        figure = charts.curve(losses)
        assert figure.first == figure.last == losses[0][1]
        assert all(0 <= tick.at <= 100 for tick in figure.x_ticks + figure.y_ticks)


def test_curve_labels_its_axes() -> None:
    figure = charts.curve([(i, 6.0 - i / 250) for i in range(1, 1001)])
    assert [tick.label for tick in figure.x_ticks] == ["0", "200", "400", "600", "800", "1,000"]
    assert [tick.label for tick in figure.y_ticks] == ["2", "3", "4", "5", "6"]
    assert figure.steps == 1000 and figure.first > 5.8 and figure.last < 2.2


def test_histogram_trims_empty_ends_and_labels_lower_edges() -> None:
    bars = charts.histogram([0, 0, 3, 0, 12, 0])
    assert [(bar.label, bar.count, bar.height) for bar in bars] == [
        ("4", 3, 25),
        ("8", 0, 0),
        ("16", 12, 100),
    ]
    assert [bar.label for bar in charts.histogram([1] * 12)][-3:] == ["512", "1k", "2k"]
    assert charts.histogram([0, 0]) == charts.histogram([]) == []


def test_score_histograms_share_one_range_and_have_scales_of_their_own() -> None:
    counts = [[0] * 24, [0] * 24]
    counts[0][10], counts[0][12], counts[1][11] = 5, 10, 1000
    low, high = charts.score_histograms("logit", {"negatives": counts[0], "positives": counts[1]}).values()
    assert [bar.label for bar in low] == [bar.label for bar in high] == ["-2", "-1", "0"]
    assert [bar.height for bar in low] == [50, 0, 100] and [bar.height for bar in high] == [0, 100, 0]
    assert charts.score_histograms("logit", {}) == {}
    assert charts.score_histograms("logit", {"none": [0] * 24}) == {"none": []}
