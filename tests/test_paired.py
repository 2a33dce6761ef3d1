import math

import pytest

pytest.importorskip('scipy', reason="Student's t")

from surge_det.paired import (
    estimate,
    paired_differences,
    plus_minus,
    ratio,
)


def test_estimate_is_mean_std_and_half_of_the_interval():
    # std of (50, 60, 70) is 10; t(0.975, 2 df) = 4.303 over sqrt(3).
    assert estimate([50, 60, 70]) == pytest.approx((60, 10, 24.84), abs=5e-3)
    mean, std, half_width = estimate([0.5])
    assert mean == 0.5
    assert math.isnan(std)
    assert math.isnan(half_width)


def test_differences_are_of_what_both_have():
    assert paired_differences({0: 3, 2: 5, 4: 1}, {2: 1, 0: 2, 1: 9}) == [1, 4]


def test_spread_of_one_value_is_left_out():
    assert plus_minus(0.02, 0.127, '+.3f') == '+0.020 ± 0.127'
    assert plus_minus(0.5, math.nan) == '0.500'


def test_ratio_of_sums_and_its_interval():
    # Residuals -1, 0, +1 of a ratio of 2; std 1, over the baseline's mean 2.
    found = ratio([1, 4, 7], [1, 2, 3])
    assert found == pytest.approx((2, 0.5, 4.303 * 0.5 / 3**0.5), abs=1e-3)
    assert ratio([3, 6], [1, 2]) == (3, 0, 0)
