"""Numbers that are Hounsfield units, and numbers that are none: drawn scans, real ones, and parts of both."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.trial_hu_doubt import SHARED, drawn_parts, measure, real_parts, wrong_parts
from experiments.fit_hu_histograms import KINDS, grouped, healthy_parts
from utils.imaging.hu_check import (
    BINS,
    DOUBT_NATS,
    MEANINGS,
    fits_of,
    histogram,
    telling_numbers,
    typical_histograms,
    wrong_numbers,
)


@pytest.mark.parametrize("number", [KINDS.index(kind) for kind in (("usual", "2019"), ("old", "2020-ax"))])
def test_a_drawn_scan_is_believed_and_never_with_wrong_numbers(number):
    parts = dict(drawn_parts([number]))
    assert len(parts) == 3
    for part in parts.values():
        assert wrong_numbers(part) == ""
        doubts = {way: wrong_numbers(wrong) for way, wrong in wrong_parts(0, part, all_ways=True)}
        assert doubts == {
            **dict.fromkeys(("+1000", "+1024", "not rescaled"), "probably not rescaled to HU"),
            **dict.fromkeys(("-1000", "-1024"), "probably rescaled twice, so no HU"),
            **{"x10": "probably ten times HU", "/10": "probably a tenth of HU"},
        }


@pytest.mark.parametrize("kind", ["thigh", "arm", "head", "coarse"])
def test_a_scan_without_a_spine_is_told_too(kind):
    counts, _ = measure(drawn_parts([KINDS.index((kind, ""))]), all_ways=True)
    assert counts.tolist() == [0, 1, 0, 7]


def test_vertebrae_alone_and_any_box_are_believed():
    parts = {name.partition(": ")[2]: part for name, part in healthy_parts(52000, 0)}
    assert {"bone", "box"} < set(parts)
    assert wrong_numbers(parts["bone"]) == wrong_numbers(parts["box"]) == ""
    for padding in (-1024, -2048, -3024):
        padded = np.append(np.full(parts["bone"].size, padding), parts["bone"])
        assert wrong_numbers(padded) == ""


def test_real_scans_are_believed_and_never_with_wrong_numbers():
    parts = list(real_parts(SHARED))
    if not parts:
        pytest.skip(f"{SHARED} holds no real scans")
    counts, (most, least) = measure(parts, all_ways=True)
    assert counts.tolist() == [0, len(parts), 0, 7 * len(parts)]
    assert most < DOUBT_NATS < least


@pytest.mark.parametrize("window", [(-1024, 3071), (-1000, 1000), (-500, 1300)])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 1), (-1, 1)])
def test_grey_levels_are_doubted(window, low, high):
    (_, ct), *_ = drawn_parts([0])
    grey = low + (np.clip(ct, *window) - window[0]) * ((high - low) / (window[1] - window[0]))
    assert wrong_numbers(np.rint(grey) if high == 255 else grey).endswith("no HU")


def test_what_has_no_negative_number_is_doubted_whatever_it_is():
    tissue = np.random.default_rng(0).normal(300, 60, (20, 20, 20)).clip(1)
    assert wrong_numbers(tissue) == "none of them negative, so probably no HU"
    tissue[0] = -2048  # padding does not count
    assert wrong_numbers(tissue) == "none of them negative, so probably no HU"
    tissue[1] = -1000  # air does
    assert wrong_numbers(tissue) == ""


def test_too_few_voxels_and_padding_alone_say_nothing():
    assert wrong_numbers(np.full((20, 20, 20), -1000)) == ""
    assert wrong_numbers(np.full((20, 20, 20), 5)) == ""
    assert wrong_numbers(np.arange(4, 103).reshape(1, 9, 11)) == ""


def test_padding_and_clipped_air_do_not_count():
    data = np.array([-2048] * 200 + [-1024] * 200 + [-1000, 30, 30, 40] * 100).reshape(10, 8, 10)
    values, counts = telling_numbers(data)
    assert values.tolist() == [-1000, 30, 40] and counts.tolist() == [100, 200, 100]


def test_a_large_scan_is_thinned_evenly():
    data = np.zeros((300, 200, 50), np.int16)
    data[::2] = 7  # every other plane: a step of 2 would see them alone
    data += np.arange(50, dtype=np.int16) * 100
    values, counts = telling_numbers(data)
    assert counts.sum() < 1_000_000 and len(values) >= 23


def test_shares_beyond_the_table_are_missing():
    shares = histogram(np.array([-1100.0, -1081, 3099, 3100, -1101]), np.array([1, 2, 3, 2, 2]))
    assert shares.shape == (BINS,) and shares[0] == 0.3 and shares[-1] == 0.3 and shares.sum() == 0.6


def test_a_fit_is_the_mean_log_density():
    of_scans, of_parts = typical_histograms()
    typical = np.concatenate([of_scans, of_parts])
    np.testing.assert_allclose(typical.sum(axis=1), 1)
    # One voxel at 50 HU: the greatest share of its bin by 20 HU; a thousandth is for what is strange.
    share = typical[:, (50 + 1100) // 20].max()
    found = fits_of(np.array([50.0]), np.array([1]))
    assert found[0] == pytest.approx(np.log(0.999 * share / 20 + 1e-7))
    tenth = [meaning.gain for meaning in MEANINGS].index(10)
    share = of_scans[:, (500 + 1100) // 20].max()
    assert found[tenth] == pytest.approx(np.log(0.999 * share / 2 + 1e-7))
    assert DOUBT_NATS > 0


def test_histograms_are_grouped_by_what_explains_them():
    low, high = np.zeros(40), np.zeros(40)
    low[5:10], high[30:35] = 0.2, 0.2
    means = grouped(np.array([low, low, high, low, high, high]), 2)
    peaks = sorted(int(mean.argmax()) for mean in means)
    assert 5 <= peaks[0] < 10 and 30 <= peaks[1] < 35
    np.testing.assert_allclose(means.sum(axis=1), 1, atol=0.05)
