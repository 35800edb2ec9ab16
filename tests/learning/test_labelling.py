"""Examples of the labelling network: what lies in the middle of a patch, and what is called no vertebra."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.learning.test_localiser import (
    PLAIN,
    POINTS,
    SCAN_SHAPE,
    SPINE,
    STILL,
    brightness_centre,
    data,  # noqa: F401
)
from utils.augmentation_settings import HeatmapAugmentationSettings
from utils.learning import datasets, labelling
from utils.learning.labelling import draw_labelling_example, is_none
from utils.learning.localiser import beyond_the_ends
from utils.preparation.spine_case import KnownSpine
from utils.settings import LabellingTrainingSettings

WITHOUT = KnownSpine((), np.zeros((0, 3)), (), is_complete=True)
EMPTY = np.zeros(SCAN_SHAPE, np.int16)


def settings(*, moves=True, **changes):
    """Small patches, whose intensities stay."""
    ranges = HeatmapAugmentationSettings(**PLAIN, **({} if moves else STILL))
    small = {"filters": (2, 3), "patch_voxels": 21, "batch_size": 4, "examples_per_epoch": 32}
    chosen = {"augmentation": ranges, "cut_share": 0.0, "seed": 5, "jitter_mm": 0.0, "none_share": 0.0}
    return LabellingTrainingSettings(**{**small, **chosen, **changes})


def built(data, chosen, *, training=True):  # noqa: F811
    """Give patch and truth of every example of an epoch, as the device makes them."""
    build = labelling.labelling_batch_builder(chosen)
    for batch in datasets.labelling_dataset(data, chosen, training=training)(0).as_numpy_iterator():
        x, y, weight = build({name: tf.constant(value) for name, value in batch.items()}, training)
        yield from ((x.numpy()[k, ..., 0], y.numpy()[k]) for k in np.flatnonzero(weight))


def draws(spine, chosen, count=200):
    return [
        draw_labelling_example(np.random.default_rng(seed), spine, EMPTY, settings=chosen)
        for seed in range(count)
    ]


def middle_of(drawn, chosen):
    """Where the middle of a patch lies in the scan's voxels."""
    middle = np.append(np.full(3, (chosen.patch_voxels - 1) / 2), 1.0)
    return drawn["affine"] @ middle + drawn["begin"]


def test_a_body_lies_in_the_middle_of_its_patch(data):  # noqa: F811
    truths = set()
    for image, truth in built(data, settings()):
        np.testing.assert_allclose(brightness_centre(image, np.full(3, 10.0)), np.full(3, 10.0), atol=0.15)
        np.testing.assert_allclose(truth[2:], 0, atol=1e-5)
        truths.add(tuple(truth[:2].tolist()))
    assert truths == {(19.0, 1.0), (20.0, 1.0), (21.0, 0.0)}  # T12, T13 and L1 by rank, with their ribs


def test_a_centre_that_is_not_hit_lies_where_the_truth_says(data):  # noqa: F811
    """The way is that in the patch as it is shown, flipped, turned and zoomed."""
    ways = []
    for image, truth in built(data, settings(jitter_mm=12.0, examples_per_epoch=48)):
        centre = 10.0 + truth[2:]
        np.testing.assert_allclose(brightness_centre(image, centre), centre, atol=0.15)
        ways.append(truth[2:])
    assert (np.max(ways, axis=0) > 1.5).all() and (np.min(ways, axis=0) < -1.5).all()


def test_a_body_that_the_field_of_view_just_leaves_out_lies_beyond_it(monkeypatch):
    field = np.array([0, 0, 8]), np.array([40, 40, 30])  # the first centre is 2 voxels above it
    monkeypatch.setattr(labelling, "field_of_view", lambda *_: field)
    beyond = 0
    for drawn in draws(SPINE, settings(moves=False, jitter_mm=12.0)):
        middle = middle_of(drawn, settings())
        assert (middle >= field[0] - 1e-4).all() and (middle <= field[1] - 1 + 1e-4).all()
        if drawn["truth"][0] == SPINE.ranks[0]:
            np.testing.assert_allclose(middle + drawn["truth"][2:], POINTS[0], atol=1e-4)
            beyond += 1
    assert beyond > 30


def test_points_lie_up_to_a_distance_from_the_nearest_centre():
    chosen = settings(moves=False, jitter_mm=12.0)
    close = dataclasses.replace(SPINE, points=POINTS[0] + np.array([[0, 0, 0], [0, 0, 5.0], [0, 0, 10.0]]))
    ways = []
    for drawn in draws(close, chosen):
        middle, place = middle_of(drawn, chosen), SPINE.ranks.index(int(drawn["truth"][0]))
        assert place == np.linalg.norm(close.points - middle, axis=1).argmin()
        np.testing.assert_allclose(middle + drawn["truth"][2:], close.points[place], atol=1e-4)
        ways.append(3 * np.linalg.norm(drawn["truth"][2:]))
    # Half of the distances between two bodies 15 mm apart are the most.
    assert 7.5 < np.max(ways) < 12 and 0.2 < np.mean(np.less(ways, 3)) < 0.4


def test_what_is_no_vertebra_lies_between_bodies_near_them_in_the_sacrum_and_elsewhere():
    chosen = settings(moves=False, none_share=1.0)
    found = draws(SPINE, chosen)
    assert not any(drawn["truth"].any() for drawn in found)
    middles = np.array([middle_of(drawn, chosen) for drawn in found])
    nearest = 3 * np.linalg.norm(middles[:, None] - POINTS[None], axis=2)
    assert nearest.min() >= chosen.none_least_mm
    discs = 3 * np.linalg.norm(middles[:, None] - (POINTS[:2] + POINTS[1:])[None] / 2, axis=2).min(axis=1)
    sacrum = 3 * np.linalg.norm(middles - SPINE.sacrum, axis=1)
    assert 0.15 < np.mean(discs < 12) < 0.4 and 0.05 < np.mean(sacrum < 12) < 0.2
    assert np.mean(nearest.min(axis=1) > 40) > 0.1
    aside = np.abs(middles[:, 1] - 20.5) * 3
    assert 0.1 < np.mean((aside > 12) & (nearest.min(axis=1) < 50)) < 0.6
    without = draws(dataclasses.replace(SPINE, sacrum=None, points=POINTS[:1], codes=(19,)), chosen)
    assert not any(drawn["truth"].any() for drawn in without)


def test_a_scan_without_a_spine_has_no_vertebra():
    for drawn in draws(WITHOUT, settings(cut_share=1.0), count=20):
        assert not drawn["truth"].any() and (drawn["end"] > drawn["begin"]).all()


def test_points_that_are_no_vertebra_lie_mostly_in_bone():
    bone = np.zeros(SCAN_SHAPE, np.int16)
    bone[:4] = 800
    for spine, share in ((WITHOUT, 1.0), (SPINE, 0.35)):
        found = [
            draw_labelling_example(
                np.random.default_rng(seed), spine, bone, settings=settings(moves=False, none_share=1.0)
            )
            for seed in range(200)
        ]
        # A tenth of the scan is bone; of so many points the brightest lies in it 6 times in 10.
        in_bone = np.mean([middle_of(drawn, settings())[0] < 4 for drawn in found])
        assert 0.45 * share < in_bone < 0.9 * share


def test_shares_of_vertebrae_and_of_none():
    truths = [drawn["truth"][0] for drawn in draws(SPINE, settings(none_share=0.3), count=300)]
    assert 0.2 < np.mean(np.equal(truths, 0)) < 0.4
    assert {*truths} == {0, *SPINE.ranks}


def test_what_may_be_an_unlabelled_vertebra_is_not_called_none():
    known = KnownSpine((28,), POINTS[1:2], (True,))
    hidden = beyond_the_ends(known, 3.0)[0]
    assert not is_none(hidden + 1.0, known, settings())
    assert is_none(hidden + 1.0, dataclasses.replace(known, is_complete=True), settings())
    assert not is_none(POINTS[1] + 1.0, dataclasses.replace(known, is_complete=True), settings())


def test_validation_shows_the_middle_vertebra_as_it_is(data):  # noqa: F811
    ((image, truth),) = built(data, settings(none_share=1.0, jitter_mm=9.0, cut_share=1.0), training=False)
    assert truth.tolist() == [SPINE.ranks[1], 1.0, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(brightness_centre(image, np.full(3, 10.0)), np.full(3, 10.0), atol=0.1)
    one = draw_labelling_example(None, WITHOUT, EMPTY, settings=settings())
    np.testing.assert_allclose(middle_of(one, settings()), np.array(SCAN_SHAPE) / 2, atol=1e-5)


@pytest.mark.parametrize("cut_share", [0.0, 1.0])
def test_the_same_generator_state_gives_the_same_draw(cut_share):
    chosen = settings(cut_share=cut_share, none_share=0.5)
    one, two = (draws(SPINE, chosen, count=3) for _ in range(2))
    for a, b in zip(one, two):
        assert all(np.array_equal(a[name], b[name]) for name in a)
