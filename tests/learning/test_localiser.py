"""Examples of the network of centres: the target follows the image, and what does not count."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from utils.augmentation_settings import HeatmapAugmentationSettings
from utils.imaging.volume import Volume
from utils.learning import datasets, localiser, spine_cases
from utils.learning.localiser import BODY, COUNTS, SACRUM, draw_localiser_example
from utils.preparation.spine_case import KnownSpine, write_spine_case
from utils.settings import HeatmapTrainingSettings

SCAN_SHAPE = (40, 42, 44)
#: T12, T13 and L1, 11 voxels apart; S1 below them.
POINTS = np.array([[18.0, 20.0, 6.0], [20.3, 21.6, 17.4], [19.5, 20.2, 29.0]])
SPINE = KnownSpine((19, 28, 20), POINTS, (True, True, False), np.array([22.0, 21.0, 40.0]), is_complete=True)
PLAIN = {"gain": (1.0, 1.0), "offset": (0.0, 0.0), "noise_probability": 0.0, "blur_probability": 0.0}
STILL = {
    **dict.fromkeys(("zoom_p", "zoom_r", "zoom_i"), (1.0, 1.0)),
    **{"flip_probability": 0.0, "rotation_degrees": 0.0},
}
#: Standard deviation of the bright points, and of the heat, in voxels of 3 mm.
DOT, SIGMA = 1.5, 1.5


def settings(*, moves=True, **changes):
    """Small crops, whose intensities stay, and by default their places do not."""
    ranges = HeatmapAugmentationSettings(**PLAIN, **({} if moves else STILL))
    small = {"filters": (2, 3, 4), "crop_voxels": (24, 28, 32), "batch_size": 4, "examples_per_epoch": 16}
    chosen = {"augmentation": ranges, "sigma_mm": 3.0 * SIGMA, "cut_share": 0.0, "seed": 5}
    return HeatmapTrainingSettings(**{**small, **chosen, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One scan of soft tissue in which the three bodies are bright points."""
    folder = tmp_path_factory.mktemp("spines")
    grid = np.stack(np.meshgrid(*map(np.arange, SCAN_SHAPE), indexing="ij"), axis=-1)
    dots = [np.exp(-np.sum((grid - point) ** 2, axis=-1) / (2 * DOT**2)) for point in POINTS]
    affine = np.diag([-3.0, -3.0, -3.0, 1.0])
    write_spine_case(folder, "sub-a", Volume(2047 * np.max(dots, axis=0), affine), SPINE)
    read, bad = spine_cases.read_spine_data(folder)
    assert bad == []
    return read


def built(data, chosen, *, training=True):
    """Give batches of an epoch as the host makes them, and the examples that the device makes of them."""
    build = localiser.localiser_batch_builder(chosen)
    for batch in datasets.localiser_dataset(data, chosen, training=training)(0).as_numpy_iterator():
        x, y, _ = build({name: tf.constant(value) for name, value in batch.items()}, training)
        for k in np.flatnonzero(batch["weight"]):
            drawn = {name: value[k] for name, value in batch.items()}
            yield drawn, x.numpy()[k, ..., 0], y.numpy()[k]


def brightness_centre(image, point):
    """Centre of what is bright within 3 voxels of a point, above soft tissue (0 HU is -.5, the peak .5)."""
    nearest = np.rint(point).astype(int)
    box = tuple(slice(n - 3, n + 4) for n in nearest)
    weight = np.clip(image[box] + 0.1, 0, None)
    return (np.indices(weight.shape) * weight).sum(axis=(1, 2, 3)) / weight.sum() + nearest - 3


def test_the_target_is_hot_where_the_image_is_bright(data):
    checked, mirrored = 0, 0
    for drawn, image, target in built(data, settings()):
        mirrored += np.linalg.det(drawn["affine"][:, :3]) < 0
        heat = np.zeros(image.shape)
        grid = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), axis=-1)
        for rank in SPINE.ranks:
            point = drawn["points"][rank - 1]
            assert drawn["present"][rank - 1]
            heat = np.maximum(heat, np.exp(-np.sum((grid - point) ** 2, axis=-1) / (2 * SIGMA**2)))
            if np.all((point > 4) & (point < np.array(image.shape) - 5)):
                np.testing.assert_allclose(brightness_centre(image, point), point, atol=0.15)
                checked += 1
        np.testing.assert_allclose(target[..., BODY], heat, atol=1e-5)
        assert (target[..., COUNTS] == 1).all()
    assert checked > 12 and 2 < mirrored < 14


@pytest.mark.parametrize(("outside", "beyond"), [("air", -1.0), ("edge", -0.5)])
def test_a_smaller_field_of_view_hides_what_lies_beyond_it(data, monkeypatch, outside, beyond):
    # T13 alone lies inside; T12 lies 5 voxels above the field, L1 5 below it.
    field = np.array([2, 3, 11]), np.array([38, 39, 24])
    monkeypatch.setattr(localiser, "field_of_view", lambda *_: field)
    checked = 0
    for drawn, image, target in built(data, settings(outside=outside)):
        assert drawn["present"].nonzero()[0].tolist() == [SPINE.ranks[1] - 1] and not drawn["has_sacrum"]
        assert not target[..., SACRUM].any()
        for rank in SPINE.ranks:
            voxel = tuple(np.rint(drawn["points"][rank - 1]).astype(int))
            if all(0 <= v < n for v, n in zip(voxel, image.shape)):
                is_seen = rank == SPINE.ranks[1]
                assert (image[voxel] > 0.2) == is_seen and (target[voxel][BODY] > 0.5) == is_seen
                if not is_seen:
                    np.testing.assert_allclose(image[voxel], beyond, atol=0.02)
                checked += not is_seen
    assert checked > 5


def test_validation_shows_the_middle_of_the_spine_as_it_is(data):
    chosen = settings(cut_share=1.0, anywhere_share=1.0)
    ((drawn, image, target),) = built(data, chosen, training=False)
    begin = POINTS.mean(axis=0) - (np.array(chosen.crop_voxels) - 1) / 2
    for rank, point in zip(SPINE.ranks, POINTS):
        np.testing.assert_allclose(drawn["points"][rank - 1], point - begin, atol=1e-4)
        np.testing.assert_allclose(brightness_centre(image, point - begin), point - begin, atol=0.1)
    squared = [np.square(np.arange(n) - s) for n, s in zip(image.shape, SPINE.sacrum - begin)]
    sacrum = np.exp(-sum(np.meshgrid(*squared, indexing="ij")) / (2 * SIGMA**2))
    np.testing.assert_allclose(target[..., SACRUM], sacrum, atol=1e-5)
    again = draw_localiser_example(None, SPINE, SCAN_SHAPE, settings=chosen)
    twice = draw_localiser_example(None, SPINE, SCAN_SHAPE, settings=chosen)
    assert again.keys() == twice.keys()
    assert all(np.array_equal(again[name], twice[name]) for name in again)
    np.testing.assert_array_equal(again["affine"][:, :3], np.eye(3))


def test_the_same_generator_state_gives_the_same_draw():
    one, two, other = (
        draw_localiser_example(
            np.random.default_rng(seed), SPINE, SCAN_SHAPE, settings=settings(cut_share=0.5)
        )
        for seed in (3, 3, 4)
    )
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["affine"], other["affine"])


def draws(spine, chosen, count=60, shape=SCAN_SHAPE):
    return [
        draw_localiser_example(np.random.default_rng(seed), spine, shape, settings=chosen)
        for seed in range(count)
    ]


def test_crops_lie_around_a_vertebra_or_anywhere():
    middle, reach = np.array([11.5, 13.5, 15.5]), 0.4 * np.array([24, 28, 32])
    ranks = np.array(SPINE.ranks) - 1
    found = {}
    for share in (0.0, 1.0):
        offsets = [
            np.abs(drawn["points"][ranks] - middle) / reach
            for drawn in draws(SPINE, settings(moves=False, anywhere_share=share))
        ]
        found[share] = [(offset.max(axis=1) <= 1).any() for offset in offsets]
    assert all(found[0.0]) and not all(found[1.0])
    without = KnownSpine((), np.zeros((0, 3)), (), is_complete=True)
    starts = [drawn["begin"] for drawn in draws(without, settings(cut_share=1.0))]
    assert len({tuple(start) for start in starts}) > 20
    assert not any(drawn["present"].any() for drawn in draws(without, settings(), count=5))


def test_a_cut_field_has_its_least_size_and_shows_a_vertebra(monkeypatch):
    fields = []
    field_of_view = localiser.field_of_view
    monkeypatch.setattr(
        localiser, "field_of_view", lambda *about: fields.append(field_of_view(*about)) or fields[-1]
    )
    found = draws(SPINE, settings(cut_share=1.0, cut_least_mm=(60.0, 60.0, 45.0)))
    low, high = (np.array(ends) for ends in zip(*fields))
    assert (low >= 0).all() and (high <= SCAN_SHAPE).all() and (high > low).all()
    # A fifth of the size at least lies on either side of the vertebra, the rest may lie beyond the scan.
    assert (high - low >= 0.2 * np.array([20, 20, 15])).all()
    counts = [int(drawn["present"].sum()) for drawn in found]
    assert min(counts) >= 1 and {1, 2, 3} <= set(counts)
    whole = draws(SPINE, settings(cut_share=0.0), count=10)
    assert all(drawn["present"].sum() == 3 and drawn["has_sacrum"] for drawn in whole)


# What lies beyond the ends


def test_beyond_the_ends_worked_out_by_hand():
    points = np.array([[10.0, 10, 10], [10, 12, 20], [11, 12, 28]])
    found = localiser.beyond_the_ends(KnownSpine((20, 21, 22), points, (False,) * 3), 3.0)
    assert found.tolist() == [[10, 8, 0], [10, 6, -10], [12, 12, 36], [13, 12, 44]]
    alone = localiser.beyond_the_ends(KnownSpine((20,), points[:1], (False,)), 5.0)  # steps of 25 mm
    assert alone.tolist() == [[10, 10, 5], [10, 10, 0], [10, 10, 15], [10, 10, 20]]
    for spine in (SPINE, KnownSpine((), np.zeros((0, 3)), ())):
        assert localiser.beyond_the_ends(spine, 3.0).shape == (0, 3)


def test_unlabelled_vertebrae_beyond_the_ends_count_for_nothing(data):
    known = KnownSpine((28,), POINTS[1:2], (True,))
    incomplete = dataclasses.replace(
        data, cases=tuple(dataclasses.replace(case, spine=known) for case in data.cases)
    )
    ((drawn, _, target),) = built(incomplete, settings(), training=False)
    begin = POINTS[1] - (np.array([24, 28, 32]) - 1) / 2
    ends = localiser.beyond_the_ends(known, 3.0) - begin
    np.testing.assert_allclose(drawn["ends"], ends, atol=1e-4)
    grid = np.stack(np.meshgrid(*map(np.arange, target.shape[:3]), indexing="ij"), axis=-1)
    distance_mm = 3 * np.min([np.linalg.norm(grid - end, axis=-1) for end in ends], axis=0)
    is_body = target[..., BODY] >= localiser.NEAR_CENTRE
    # At the rim the threshold decides about the last digit.
    clear = np.abs(distance_mm - localiser.END_RADIUS_MM) > 0.05
    hidden = (distance_mm < localiser.END_RADIUS_MM) & ~is_body
    np.testing.assert_array_equal(target[..., COUNTS][clear], 1.0 - hidden[clear])
    assert 0 < hidden.sum() < hidden.size / 2
