"""Patches and examples of the labelling network, its targets, its loss, and its votes."""

import numpy as np
import pytest
import tensorflow as tf

from utils.imaging.volume import Volume
from utils.learning import labelling
from utils.learning.labelling import (
    CLASSES,
    build_labelling_network,
    cut_field,
    draw_no_vertebra,
    labelling_example,
    labelling_patch,
    on_labelling_grid,
    perturb,
    smoothed_targets,
    vertebra_votes,
)
from utils.presets import preset_settings
from utils.settings import LabellingTrainingSettings
from utils.verse.labels import LEVEL_NAMES

AFFINE = np.array([[0, 2.0, 0, 5], [-2.0, 0, 0, 7], [0, 0, -2.0, 9], [0, 0, 0, 1]])
SHAPE = (40, 36, 70)
L3 = LEVEL_NAMES.index("L3") + 1
SETTINGS = preset_settings(LabellingTrainingSettings, "small", patch_voxels=(24, 20, 32), filters=(2, 3, 4))


def column(first=L3, count=4):
    """CT and ranks of blocks of 11 x 9 x 9 voxels, 14 apart; block k has 100 (k + 2) HU, the rest 0."""
    ct, ranks = np.zeros(SHAPE, np.int16), np.zeros(SHAPE, np.uint8)
    for place in range(count):
        box = (slice(15, 26), slice(14, 23), slice(6 + 14 * place, 15 + 14 * place))
        ct[box], ranks[box] = 100 * (place + 2), first + place
    return ct, ranks


def example(seed, rank=L3 + 1, **changes):
    settings = (
        SETTINGS
        if not changes
        else preset_settings(LabellingTrainingSettings, "small", **{"patch_voxels": (24, 20, 32), **changes})
    )
    generator = None if seed is None else np.random.default_rng(seed)
    return labelling_example(column(), rank, generator, settings=settings)


# Patches


def test_a_patch_shows_the_vertebra_in_its_middle_its_neighbours_and_the_end_of_the_field():
    ct, ranks = column()
    patch = labelling_patch(ct, ranks, L3, (24, 20, 34))
    assert patch.shape == (24, 20, 34, 3) and patch.dtype == np.float32
    # The block's centre (20, 18, 10) lies at (11.5, 9.5, 16.5): the patch begins at (8.5, 8.5, -6.5).
    assert np.argwhere(patch[..., 1]).mean(axis=0) == pytest.approx((11.5, 9.5, 16.5), abs=0.51)
    assert patch[..., 1].sum() == np.count_nonzero(ranks == L3)
    assert not (patch[..., 1] * patch[..., 2]).any()
    assert patch[11, 9, 16, 0] == pytest.approx((200 + 1024) * 2 / 4095 - 1, abs=1e-5)
    assert (patch[:, :, :6, 0] == -1).all()  # above the scan: air
    below = patch[11, 9, :, 2]
    assert below[:21].sum() == 0 and below[26:34].all()


def test_a_fine_scan_comes_to_the_same_grid_and_a_2_mm_one_stays_as_it_is():
    ct, ranks = column()
    coarse = Volume(ct, AFFINE), Volume(ranks, AFFINE)
    same = on_labelling_grid(*coarse)
    assert same[0] is coarse[0] and same[1] is coarse[1]
    fine_affine = AFFINE.copy()
    fine_affine[:3, :3] /= 2
    fine_affine[:3, 3] -= AFFINE[:3, :3].sum(axis=1) / 4  # the same outer faces
    fine = (Volume(array.repeat(2, 0).repeat(2, 1).repeat(2, 2), fine_affine) for array in (ct, ranks))
    found_ct, found_ranks = on_labelling_grid(*fine)
    np.testing.assert_allclose(found_ct.affine, AFFINE, atol=1e-9)
    np.testing.assert_array_equal(found_ranks.data, ranks)
    assert found_ct.data[20, 18, 10] == pytest.approx(200, abs=1)


def test_validation_and_inference_see_the_same_patch():
    ct, ranks = column()
    shown = example(None)
    np.testing.assert_array_equal(shown["x"], labelling_patch(ct, ranks, L3 + 1, SETTINGS.patch_voxels))
    np.testing.assert_array_equal(shown["y"], (L3 + 1, 1, 1))


# Examples


def test_an_example_depends_on_its_generator_alone():
    first, again, other = example(3), example(3), example(4)
    np.testing.assert_array_equal(first["x"], again["x"])
    assert (first["x"] != other["x"]).mean() > 0.1


def test_shares_of_cut_and_of_none_are_those_asked_for():
    whole = [example(seed, cut_share=0.0, not_a_vertebra_share=0.0)["y"] for seed in range(12)]
    assert {tuple(y) for y in whole} == {(L3 + 1, 1, 1)}
    cut = [example(seed, cut_share=1.0, not_a_vertebra_share=0.0)["y"] for seed in range(12)]
    assert {tuple(y) for y in cut} == {(L3 + 1, 0, 1)}
    none = [example(seed, cut_share=0.0, not_a_vertebra_share=1.0)["y"] for seed in range(24)]
    assert sum(tuple(y) == (0, 0, 0) for y in none) > 12
    assert {tuple(y) for y in none} <= {(0, 0, 0), (L3 + 1, 1, 1)}


def test_the_mask_of_an_example_is_in_its_middle_whatever_became_of_it():
    for seed in range(20):
        x = example(seed, cut_share=0.5, not_a_vertebra_share=0.5)["x"]
        assert x[..., 1].any() and not (x[..., 1] * x[..., 2]).any()
        middle = np.argwhere(x[..., 1]).mean(axis=0)
        # The patch's middle, but for the jitter of 1.5 voxels, and where the patch ends within the mask.
        np.testing.assert_allclose(middle, (11.5, 9.5, 15.5), atol=2.6)


def test_a_vertebra_at_the_end_of_the_scan_counts_as_cut():
    ct, ranks = column()
    shown = labelling_example((ct[:, :, 8:], ranks[:, :, 8:]), L3, None, settings=SETTINGS)
    np.testing.assert_array_equal(shown["y"], (L3, 0, 1))


def test_a_cut_leaves_between_the_least_share_and_nine_tenths():
    ct, ranks = column()
    whole = np.count_nonzero(ranks == L3 + 1)
    for seed in range(30):
        image, numbers = cut_field(ct.astype(np.float32), ranks, L3 + 1, np.random.default_rng(seed), 1.0)
        left = np.count_nonzero(numbers == L3 + 1) / whole
        assert labelling.LEAST_SEEN - 0.1 <= left <= 1.0
        assert (numbers[image == labelling.AIR] == 0).all()
        inside = image != labelling.AIR
        np.testing.assert_array_equal(image[inside], ct[inside])


def test_perturbed_masks_stay_apart_and_near():
    ranks = column()[1]
    this, others = ranks == L3 + 1, (ranks > 0) & (ranks != L3 + 1)
    sizes = []
    for seed in range(40):
        changed, around = perturb(this, others, ranks, L3 + 1, np.random.default_rng(seed))
        assert not (changed & around).any()
        sizes.append(np.count_nonzero(changed))
        assert np.count_nonzero(changed & this) > 0
    assert min(sizes) < np.count_nonzero(this) < max(sizes)


def test_what_is_no_vertebra_is_made_of_what_is_there():
    ct, ranks = column()
    image = ct.astype(np.float32)
    kinds = set()
    for seed in range(60):
        false = draw_no_vertebra(image, ranks, L3 + 1, np.random.default_rng(seed))
        kinds.add(tuple(np.unique(ranks[false]).tolist()))
    # Halves of two, a fragment of this one, a blob beside it (bone beside it there is none).
    assert {(L3 + 1, L3 + 2), (L3 + 1,), (0,)} <= kinds
    half = labelling._halves(ranks, L3 + 1)
    assert np.count_nonzero(half & (ranks == L3 + 1)) == 11 * 9 * 5  # the middle slice and those below


def test_a_piece_below_the_last_lumbar_vertebra_is_the_bone_there():
    ct, ranks = column(first=LEVEL_NAMES.index("L4") + 1, count=3)
    ranks[ranks == ranks.max()] = 0  # L6 has become the sacrum
    false = labelling._sacrum_below(ct.astype(np.float32), ranks, ranks.max(), np.random.default_rng(0))
    assert false.any() and (ranks[false] == 0).all() and (ct[false] == 400).mean() > 0.95


# Targets, loss, network


def test_targets_are_smoothed_over_levels_that_can_follow_each_other():
    targets = smoothed_targets(0.1)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(targets[0], np.eye(CLASSES)[0])
    row = dict(zip(("-", *LEVEL_NAMES), targets[LEVEL_NAMES.index("T5") + 1].tolist()))
    assert {n: round(p, 4) for n, p in row.items() if p} == {"T4": 0.05, "T5": 0.9, "T6": 0.05}
    row = dict(zip(("-", *LEVEL_NAMES), targets[LEVEL_NAMES.index("T12") + 1].tolist()))
    assert {n for n, p in row.items() if p} == {"T11", "T12", "T13", "L1"}
    assert row["T13"] < row["L1"]
    assert targets[1, 1] == pytest.approx(0.95)  # C1 has one neighbour
    np.testing.assert_array_equal(smoothed_targets(0.0), np.eye(CLASSES))


def test_the_loss_of_logits_that_say_nothing():
    loss = labelling.labelling_loss(0.1)
    y = tf.constant([[5.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    found = loss(y, tf.zeros((2, CLASSES + 1)))
    np.testing.assert_allclose(found, [np.log(27) + 0.3 * np.log(2), np.log(27)], rtol=1e-6)
    logits = np.zeros((2, CLASSES + 1), np.float32)
    logits[:, 5] = 9
    np.testing.assert_array_equal(labelling.level_accuracy(y, tf.constant(logits)), [1, 0])


def test_the_network_gives_a_logit_a_class_and_one_for_completeness(tmp_path):
    network = build_labelling_network(SETTINGS)
    patch = np.random.default_rng(0).normal(size=(24, 20, 32, 3)).astype(np.float32)
    expected = network(patch[None], training=False).numpy()[0]
    assert expected.shape == (CLASSES + 1,)
    np.testing.assert_allclose(labelling.level_function(network)(patch), expected, rtol=1e-4, atol=1e-5)


# Votes


def test_votes_are_probabilities_with_the_centres_of_the_masks():
    ct, ranks = column(count=2)
    seen = []

    def predict(patch):
        seen.append(patch)
        logits = np.zeros(CLASSES + 1)
        logits[L3 + len(seen) - 1], logits[CLASSES] = 2.0, np.log(3)
        return logits

    numbers = [L3, L3 + 1, 99]
    votes = vertebra_votes(
        Volume(ct, AFFINE), Volume(ranks, AFFINE), numbers, predict=predict, shape=(24, 20, 32)
    )
    assert len(seen) == 2  # one call a vertebra; 99 is not there
    np.testing.assert_array_equal(seen[0], labelling_patch(ct, ranks, L3, (24, 20, 32)))
    np.testing.assert_allclose(np.exp(votes.log_probabilities).sum(axis=1), 1, rtol=1e-9)
    assert np.exp(votes.log_probabilities[1, L3 + 1]) == pytest.approx(np.exp(2) / (np.exp(2) + 26))
    np.testing.assert_allclose(votes.complete, [0.75, 0.75, 0])
    np.testing.assert_allclose(votes.centres_mm[0], AFFINE[:3, :3] @ (20, 18, 10) + AFFINE[:3, 3])
    assert np.isnan(votes.centres_mm[2]).all() and votes.log_probabilities[2].argmax() == 0
