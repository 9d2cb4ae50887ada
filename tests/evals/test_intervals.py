"""The bootstrap against closed forms, and paired differences against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from clipling.evals.intervals import bootstrap, interval, paired


def test_bootstrap_of_hits_is_the_binomial():
    """Resampling n zeros and ones with share p draws exactly Binomial(n, p) / n."""
    hits = np.zeros(400)
    hits[:92] = 1
    low, high = interval(hits, samples=20_000)
    exact = stats.binom.ppf([0.025, 0.975], 400, 0.23) / 400
    np.testing.assert_allclose([low, high], exact, atol=1.5 / 400)
    assert np.std(bootstrap(hits, samples=20_000)) == pytest.approx(np.sqrt(0.23 * 0.77 / 400), rel=0.03)


def test_captions_of_one_image_are_drawn_together():
    """Five equal captions an image carry the information of one: the interval must not shrink by the square root of five."""
    rng = np.random.default_rng(0)
    image_hits = (rng.random(300) < 0.4).astype(float)
    unit = np.repeat(np.arange(300), 5)
    whole = interval(image_hits, samples=4000)
    np.testing.assert_allclose(interval(np.repeat(image_hits, 5), unit, samples=4000), whole)
    blind = interval(np.repeat(image_hits, 5), samples=4000)
    assert (whole[1] - whole[0]) / (blind[1] - blind[0]) == pytest.approx(np.sqrt(5), rel=0.1)


def test_interval_is_seeded_and_widens_with_its_level():
    values = np.random.default_rng(1).standard_normal(50)
    assert interval(values) == interval(values)
    assert interval(values) != interval(values, seed=1)
    narrow, wide = interval(values, level=0.5), interval(values, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    with pytest.raises(ValueError, match="level"):
        interval(values, level=95)
    with pytest.raises(ValueError, match="at least one"):
        interval(values[:0])


def test_chunks_do_not_change_the_draws(monkeypatch):
    values = np.random.default_rng(2).standard_normal(40)
    whole = bootstrap(values, samples=100)
    monkeypatch.setattr("clipling.evals.intervals._CHUNK", 400)
    np.testing.assert_array_equal(bootstrap(values, samples=100), whole)


def test_paired_equals_scipy():
    first, second = [0.31, 0.35, 0.30, 0.36], [0.28, 0.33, 0.29, 0.30]
    found = paired(first, second)
    exact = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    assert found.spread == pytest.approx(np.std(np.subtract(first, second), ddof=1))


def test_one_seed_has_no_spread():
    found = paired([0.3], [0.2])
    assert (found.mean, found.spread, found.low) == (pytest.approx(0.1), None, None)
    with pytest.raises(ValueError, match="same seeds"):
        paired([0.1, 0.2], [0.1])
