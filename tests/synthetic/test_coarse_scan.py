"""Slabs against averages worked out by hand, and what a coarse scan keeps."""

import numpy as np
import pytest

from utils.synthetic.coarse_scan import CoarseScan, draw_coarse_scan, scan_coarsely, slab_means

PLAIN = CoarseScan(
    slice_axis=2,
    slice_mm=3.0,
    pitch_mm=3.0,
    pixel_mm=3.0,
    sharpen=0.0,
    noise_hu=0.0,
    noise_voxels=0.0,
    streaks=0.0,
    padding_hu=None,
    seed=0,
)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slab_over_a_step_is_the_share_on_either_side(axis):
    """Voxels of 2 mm, a step of 100 at 4 mm: a slab of 5 mm around 3 mm lies 1.5 mm beyond it."""
    shape = [2, 2, 2]
    shape[axis] = 4
    step = np.zeros(shape, np.float32)
    step[tuple(slice(2, None) if k == axis else slice(None) for k in range(3))] = 100
    found = slab_means(step, axis, step_mm=2.0, centres_mm=np.array([3.0, 6.0]), thickness_mm=5.0)
    # Around 6 mm from 3.5 to 8.5 mm: .5 mm before the step; what lies beyond the end is as its edge.
    np.testing.assert_allclose(np.moveaxis(found, axis, 0)[:, 0, 0], [30, 90], rtol=1e-5)


def test_a_slab_within_a_ramp_is_its_middle():
    """Whole voxels of a ramp: their mean."""
    ramp = np.arange(10, dtype=np.float32).reshape(1, 1, 10)
    found = slab_means(ramp, 2, step_mm=1.0, centres_mm=np.array([3.0, 5.5]), thickness_mm=4.0)
    # From 1 to 5 mm: 1, 2, 3, 4. From 3.5 to 7.5 mm: half of 3, then 4, 5, 6, and half of 7.
    np.testing.assert_allclose(found.ravel(), [2.5, (1.5 + 4 + 5 + 6 + 3.5) / 4], rtol=1e-5)


def test_a_uniform_volume_stays_as_it_is_whatever_the_scan():
    for n in range(12):
        rng = np.random.default_rng(n)
        scan = draw_coarse_scan(rng, slice_mm=(1, 5), noise_hu=(5, 120))
        assert 1 <= scan.slice_mm <= 5
        scan = CoarseScan(**{**vars(scan), "noise_hu": 0.0, "padding_hu": None})
        ct = scan_coarsely(np.full((20, 25, 30), 77, np.float32), scan, step_mm=2.0, spacing_mm=3.0)
        assert ct.shape == (13, 16, 20) and ct.dtype == np.int16
        assert (ct == 77).all()


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("pitch", [1.0, 3.0, 5.0])
def test_a_ramp_keeps_its_place(slice_axis, pitch):
    """What is linear in place is the same after averages and interpolation, but for the ends."""
    scan = CoarseScan(**{**vars(PLAIN), "slice_axis": slice_axis, "slice_mm": pitch, "pitch_mm": pitch})
    for axis in range(3):
        places = (np.arange(40) + 0.5) * 2.0
        ramp = np.broadcast_to(10 * places.reshape([-1 if k == axis else 1 for k in range(3)]), (40, 40, 40))
        ct = scan_coarsely(ramp.astype(np.float32), scan, step_mm=2.0, spacing_mm=3.0)
        expected = 10 * (np.arange(26) + 0.5) * 3.0
        line = np.moveaxis(ct, axis, 0)[:, 13, 13]
        np.testing.assert_allclose(line[3:-3], expected[3:-3], atol=8)


def test_noise_is_about_as_loud_as_asked_and_padding_lies_in_the_corners():
    water = np.zeros((60, 60, 60), np.float32)
    scan = CoarseScan(**{**vars(PLAIN), "noise_hu": 20.0, "padding_hu": -1024})
    ct = scan_coarsely(water, scan, step_mm=3.0, spacing_mm=3.0)
    assert (ct[0, 0] == -1024).all()
    assert 20 < ct[30, 20:40].std() < 28  # a body of 1,000 HU over air has 1.2 of it
