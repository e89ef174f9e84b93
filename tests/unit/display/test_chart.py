import numpy as np
import pytest

from wholebatch.core.errors import InputError
from wholebatch.display.chart import bounds, check_limits, check_scale, thin


def _columns(x, y, columns, low, high):
    """Smallest and largest value of each pixel column."""
    place = np.clip(((x - low) * (columns / (high - low))).astype(int), 0, columns)
    return {int(c): (y[place == c].min(), y[place == c].max()) for c in np.unique(place)}


@pytest.mark.parametrize("count", [2_000, 100_003])
def test_a_thin_line_covers_the_same_pixels(count):
    x = np.sort(np.random.default_rng(0).random(count)) * 50
    y = np.random.default_rng(1).standard_normal(count)
    few = thin(x, y, 100, 0.0, 50.0)
    assert len(few[0]) == len(few[1]) <= 1600
    assert _columns(*few, 100, 0.0, 50.0) == _columns(x, y, 100, 0.0, 50.0)
    assert (few[1][0], few[1][-1]) == (y[0], y[-1])


def test_few_points_stay_as_they_are():
    x = np.arange(400.0)
    assert thin(x, x, 100, 0.0, 400.0)[0] is x


def test_a_spike_of_one_point_in_a_million_is_kept():
    x, y = np.arange(1e6), np.zeros(1_000_000)
    y[777_777] = 5.0
    assert thin(x, y, 100, 0.0, 1e6)[1].max() == 5.0


def test_a_logarithmic_axis_has_its_own_columns():
    x = np.arange(1.0, 1_000_001.0)
    few, _ = thin(x, x, 300, 1.0, 1e6, "log")
    assert np.sum(few < 100) > 90  # a third of the axis; by equal stretches they would be one point


def test_a_line_that_jumps_to_and_fro_is_bounded_as_well():
    x = np.random.default_rng(0).random(100_000)
    y = np.arange(100_000.0)
    few = thin(x, y, 50, 0.0, 1.0)
    assert len(few[0]) == 800
    assert (few[1].min(), few[1].max()) == (0, 99_999)


def test_nan_is_passed_over_beside_values_and_kept_alone():
    x, y = np.arange(10_000.0), np.arange(10_000.0)
    y[::2] = np.nan
    y[5_000:6_000] = np.nan
    few_x, few_y = thin(x, y, 100, 0.0, 1e4)
    assert np.nanmax(few_y) == 9_999
    smallest, largest = few_y[1::4], few_y[2::4]
    assert np.isfinite(smallest[few_x[1::4] < 4_900]).all()
    assert np.isfinite(largest[few_x[2::4] < 4_900]).all()
    assert np.isnan(few_y[(few_x > 5_000) & (few_x < 6_000)]).all()


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_a_thin_line_goes_to_and_fro_no_more_than_the_line(slope):
    """A path that did would be longer than what is seen, so that the gaps of a dashed line close."""
    x = np.arange(100_000.0)
    _, few = thin(x, slope * x, 100, 0.0, 1e5)
    assert np.abs(np.diff(few)).sum() == 99_999


def test_bounds_are_never_one_number():
    assert bounds([], "linear", None) == (0.0, 1.0)
    assert bounds([], "log", None) == (1.0, 10.0)
    assert bounds([np.array([4.0])], "linear", None) == (2.0, 6.0)
    assert bounds([np.array([0.0])], "linear", None) == (-0.5, 0.5)
    assert bounds([np.array([4.0])], "log", None) == (2.0, 8.0)
    assert bounds([np.array([1.0, np.inf, 3.0])], "linear", (0, None)) == (0.0, 3.0)


@pytest.mark.parametrize("limits", [3, (1,), (2, 1), ("a", 2), (1, 1)])
def test_impossible_limits(limits):
    with pytest.raises(InputError, match="xlim"):
        check_limits("xlim", limits)


def test_an_unknown_scale_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'log'"):
        check_scale("yscale", "logg")
