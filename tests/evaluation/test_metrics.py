"""Scores against values worked out by hand on tiny volumes."""

import numpy as np
import pytest
import SimpleITK as sitk
import surface_distance

from utils.evaluation.metrics import (
    dice_of_match,
    identification,
    match_by_label,
    match_by_overlap,
    overlap_table,
    score_masks,
    score_without_prediction,
    surface_distances_mm,
)

SHAPE = (20, 20, 20)
AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])


def volume(*bodies):
    """A label volume from (label, first corner, size) boxes; later ones overwrite."""
    mask = np.zeros(SHAPE, np.uint8)
    for label, corner, size in bodies:
        mask[tuple(slice(c, c + s) for c, s in zip(corner, size))] = label
    return mask


def by_label(scores, kind="reference"):
    return {score.label: score for score in scores if score.kind == kind}


def test_overlap_table_counts_every_pair_but_not_shared_background():
    reference = np.array([[[0, 1, 1, 2]]], np.uint8)
    predicted = np.array([[[0, 1, 3, 0]]], np.uint8)
    expected = [[0, 0, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]]
    assert overlap_table(reference, predicted).tolist() == expected


def test_overlap_table_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(1, 1, 2\) and \(1, 2, 1\)"):
        overlap_table(np.zeros((1, 1, 2), np.uint8), np.zeros((1, 2, 1), np.uint8))


def test_labels_match_even_where_they_do_not_overlap():
    reference = volume((20, (1, 1, 1), (2, 2, 2)), (21, (1, 1, 5), (2, 2, 2)))
    predicted = volume((20, (9, 9, 9), (2, 2, 2)), (22, (1, 1, 5), (2, 2, 2)))
    assert match_by_label(overlap_table(reference, predicted)) == [(20, 20)]


def test_overlap_matches_one_to_one_largest_first():
    # Prediction 1 covers 6 voxels of vertebra 1 and 4 of vertebra 2, prediction 2 covers 3 of vertebra 1:
    # vertebra 1 takes prediction 1, so vertebra 2 and prediction 2 stay without a match.
    table = np.zeros((3, 3), int)
    table[1] = [0, 6, 3]
    table[2] = [5, 4, 0]
    assert match_by_overlap(table) == [(1, 1)]


def test_overlap_leaves_the_second_choice_to_the_smaller_overlap():
    table = np.zeros((3, 3), int)
    table[1] = [0, 6, 3]
    table[2] = [0, 8, 0]
    assert match_by_overlap(table) == [(1, 2), (2, 1)]


def test_equal_overlaps_go_to_the_smaller_label():
    table = np.zeros((3, 2), int)
    table[1:, 1] = 4
    assert match_by_overlap(table) == [(1, 1)]


def test_dice_of_shifted_cubes():
    # Two cubes of 4 voxels an edge, shifted by one: 48 of 64 voxels in common.
    reference, predicted = volume((8, (4, 4, 4), (4, 4, 4))), volume((8, (5, 4, 4), (4, 4, 4)))
    assert dice_of_match(overlap_table(reference, predicted), (8, 8)) == 0.75
    assert by_label(score_masks(reference, predicted, AFFINE))[8].dice == 0.75


def test_dice_is_that_of_simpleitks_overlap_filter():
    # Blobs of 4 labels, in the prediction moved and with noise, on a volume of the size of a small scan.
    generator = np.random.default_rng(0)
    reference = (
        np.repeat(generator.integers(0, 5, (6, 6, 6)).astype(np.uint8), 5, 0).repeat(5, 1).repeat(5, 2)
    )
    predicted = np.roll(reference, (1, 2, 0), (0, 1, 2))
    predicted[generator.random(reference.shape) < 0.1] = 0
    filter_ = sitk.LabelOverlapMeasuresImageFilter()
    filter_.Execute(*(sitk.GetImageFromArray(mask) for mask in (reference, predicted)))
    scores = by_label(score_masks(reference, predicted, AFFINE))
    assert sorted(scores) == [1, 2, 3, 4]
    for label, score in scores.items():
        assert score.dice == pytest.approx(filter_.GetDiceCoefficient(label), abs=1e-9)
        assert 0.2 < score.dice < 0.9


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_surface_distance_of_two_voxels_follows_the_spacing_of_each_axis(axis):
    # A voxel's surface is its 8 corners, of equal area. With the voxels 5 apart, the four corners on the near
    # side are 4 voxels from the other's nearest corner and the four on the far side 5: mean 4.5, 95 % 5.
    spacing_mm = (0.5, 1.0, 3.0)
    reference, predicted = np.zeros((2, 12, 12, 12), bool)
    reference[3, 3, 3] = True
    predicted[tuple(3 + 5 * (axis == k) for k in range(3))] = True
    found = surface_distances_mm(reference, predicted, spacing_mm=spacing_mm)
    assert found == pytest.approx([distance * spacing_mm[axis] for distance in (4.5, 5, 5)])


def test_a_thin_spike_counts_in_the_full_hausdorff_distance_alone():
    # The spike, 6 voxels of 1.5 mm on a face of a cube of 20, is 1 % of the surface. Every other point of the
    # cube's surface lies on the spiked one's, and the spike's tip 6 voxels from the cube's face.
    reference, predicted = np.zeros((2, 24, 24, 30), bool)
    reference[2:22, 2:22, 2:22] = predicted[2:22, 2:22, 2:22] = True
    predicted[10, 10, 22:28] = True
    found = surface_distances_mm(reference, predicted, spacing_mm=(1.0, 1.0, 1.5))
    assert (found.hausdorff_95_mm, found.hausdorff_mm) == (0, 9)
    assert 0 < found.mean_mm < 0.1


def test_surface_distances_are_those_of_the_library():
    grid = np.indices((24, 24, 24)) - 12
    reference, predicted = (grid**2).sum(0) < 64, (np.abs(grid) < 7).all(0)
    raw = surface_distance.compute_surface_distances(reference, predicted, (1.0, 0.5, 2.0))
    found = surface_distances_mm(reference, predicted, spacing_mm=(1.0, 0.5, 2.0))
    assert found.mean_mm == np.mean(surface_distance.compute_average_surface_distance(raw))
    assert found.hausdorff_95_mm == surface_distance.compute_robust_hausdorff(raw, 95)
    assert found.hausdorff_mm == max(raw["distances_gt_to_pred"].max(), raw["distances_pred_to_gt"].max())


def test_surface_distance_of_nested_spheres_is_the_difference_of_radii():
    grid = np.indices((41, 41, 41)) - 20
    radius = np.sqrt(sum(axis.astype(float) ** 2 for axis in grid))
    found = surface_distances_mm(radius < 10, radius < 15, spacing_mm=(0.5, 0.5, 0.5))
    # 5 voxels of .5 mm; the surface of a digital sphere is known to a voxel.
    assert found == pytest.approx((2.5, 2.5, 2.5), abs=0.5)


def test_surface_distance_agrees_with_simpleitk():
    grid = np.indices((30, 30, 30)) - 14
    spacing_mm = (1.0, 1.0, 2.0)
    first = sum((g * s) ** 2 for g, s in zip(grid, spacing_mm)) < 10**2
    second = np.roll(first, 2, axis=2)
    images = [sitk.GetImageFromArray(mask.astype(np.uint8).T) for mask in (first, second)]
    for image in images:
        image.SetSpacing(spacing_mm)
    filter_ = sitk.HausdorffDistanceImageFilter()
    filter_.Execute(*images)
    found = surface_distances_mm(first, second, spacing_mm=spacing_mm)
    assert filter_.GetHausdorffDistance() == pytest.approx(4.0)
    # SimpleITK measures between voxel centres, surface-distance between surface elements.
    assert found.hausdorff_mm == pytest.approx(filter_.GetHausdorffDistance(), abs=0.5)
    assert 0 < found.mean_mm < found.hausdorff_95_mm <= found.hausdorff_mm


def test_surface_distance_is_nan_if_a_body_is_empty():
    body, nothing = np.ones((2, 2, 2), bool), np.zeros((2, 2, 2), bool)
    assert np.isnan(surface_distances_mm(body, nothing, spacing_mm=(1, 1, 1))).all()
    assert np.isnan(surface_distances_mm(nothing, nothing, spacing_mm=(1, 1, 1))).all()


def test_surface_distance_does_not_depend_on_the_volume_around():
    # A box at the volume's corner and the same box inside: cropping must not lose the outer faces.
    corner, inside = volume((8, (0, 0, 0), (6, 6, 6))), volume((8, (5, 5, 5), (6, 6, 6)))
    corner_shifted, inside_shifted = volume((8, (0, 0, 2), (6, 6, 6))), volume((8, (5, 5, 7), (6, 6, 6)))
    at_corner = by_label(score_masks(corner, corner_shifted, AFFINE))[8]
    in_middle = by_label(score_masks(inside, inside_shifted, AFFINE))[8]
    assert at_corner.mean_surface_distance_mm == in_middle.mean_surface_distance_mm > 0
    assert at_corner.hausdorff_95_mm == in_middle.hausdorff_95_mm == 2
    assert at_corner.hausdorff_mm == in_middle.hausdorff_mm == 2


def along_z(**millimetres):
    """Centres on the z axis by label: along_z(_20=5) is {20: (0, 0, 5)}."""
    return {int(name[1:]): np.array([0, 0, z], float) for name, z in millimetres.items()}


def test_identified_is_a_prediction_whose_closest_reference_vertebra_has_its_label():
    column = along_z(_19=0, _20=30, _21=60)
    assert identification(20, column, along_z(_20=35)) == (True, 5)
    assert identification(20, column, along_z(_20=45)) == (True, 15)  # As far from 21: not farther.
    assert identification(20, column, along_z(_20=46)) == (False, 16)
    # Other predictions do not matter, not even one that lies nearer: the reference is searched.
    assert identification(20, column, along_z(_20=40, _21=31)) == (True, 10)


def test_identified_is_a_prediction_less_than_20_mm_away():
    column = along_z(_20=0)
    assert identification(20, column, along_z(_20=19.9)) == (True, pytest.approx(19.9))
    assert identification(20, column, along_z(_20=20)) == (False, 20)


def test_a_label_that_was_not_predicted_is_not_identified():
    for predicted in ({}, along_z(_21=0)):
        identified, distance = identification(20, along_z(_20=0), predicted)
        assert identified is False and np.isnan(distance)


def test_identification_agrees_with_the_definition_by_distance_matrix():
    # The organisers' way: every predicted point against every reference point, nearest reference in a row.
    generator = np.random.default_rng(0)
    reference = np.array([[0, 0, 25.0 * i] for i in range(12)])
    predicted = reference + generator.normal(0, 9, reference.shape)
    matrix = np.linalg.norm(predicted[:, None] - reference[None], axis=-1)
    expected = (matrix.argmin(axis=1) == np.arange(12)) & (matrix.diagonal() < 20)
    centres, predicted_centres = dict(enumerate(reference, 1)), dict(enumerate(predicted, 1))
    found = [identification(label, centres, predicted_centres) for label in centres]
    assert [identified for identified, _ in found] == expected.tolist()
    assert [distance for _, distance in found] == pytest.approx(matrix.diagonal())
    assert 0 < expected.sum() < 12


def test_identification_of_a_column_shifted_by_one_label():
    # Vertebrae 24 mm apart: every prediction lies on its reference's neighbour, 24 mm from its own.
    reference = volume(*[(label, (8, 8, 2 + 6 * i), (3, 3, 3)) for i, label in enumerate((19, 20, 21))])
    shifted = volume(*[(label, (8, 8, 2 + 6 * i), (3, 3, 3)) for i, label in enumerate((20, 21, 22))])
    scores = by_label(score_masks(reference, shifted, np.diag([1.0, 1.0, 4.0, 1.0])))
    assert [scores[label].identified for label in (19, 20, 21)] == [False, False, False]
    assert np.isnan(scores[19].localisation_error_mm)
    assert [scores[label].localisation_error_mm for label in (20, 21)] == [24, 24]


def test_localisation_error_and_volume_are_in_world_mm():
    affine = np.array([[0, 0, 3.0, 7], [-0.5, 0, 0, 1], [0, 1.0, 0, -2], [0, 0, 0, 1]])
    reference, predicted = volume((8, (4, 4, 4), (4, 4, 4))), volume((8, (6, 4, 5), (4, 4, 4)))
    score = by_label(score_masks(reference, predicted, affine))[8]
    assert score.localisation_error_mm == pytest.approx(np.hypot(2 * 0.5, 1 * 3.0))
    assert score.volume_mm3 == score.predicted_volume_mm3 == pytest.approx(64 * 1.5)


def test_shifted_labels_are_missed_by_label_but_found_by_overlap():
    bodies = [((6, 6, z), (6, 6, 4)) for z in (2, 7, 12)]
    reference = volume(*[(20 + i, *body) for i, body in enumerate(bodies)])
    predicted = volume(*[(1 + i, *body) for i, body in enumerate(bodies)])
    counted = score_masks(reference, predicted, AFFINE, numbering="count")
    assert [(s.label, s.predicted_label, s.dice, s.found) for s in counted] == [
        (20, 1, 1.0, True),
        (21, 2, 1.0, True),
        (22, 3, 1.0, True),
    ]
    assert all(s.identified is None and np.isnan(s.localisation_error_mm) for s in counted)

    shifted = volume(*[(21 + i, *body) for i, body in enumerate(bodies)])
    labelled = score_masks(reference, shifted, AFFINE)
    assert [s.dice for s in labelled if s.kind == "reference"] == [0, 0, 0]
    assert [s.identified for s in labelled if s.kind == "reference"] == [False] * 3
    # 20 has no predicted namesake; 21 and 22 have one, 5 mm higher than they should be.
    assert [s.localisation_error_mm for s in labelled][1:3] == [5, 5]
    assert [(s.dice_overlap, s.found_overlap) for s in labelled[:3]] == [(1, True)] * 3
    # 23 lies on a reference vertebra without being its match: neither extra nor counted elsewhere.
    assert [(s.kind, s.label) for s in labelled if s.kind != "reference"] == [("unmatched", 23)]


def test_the_overlap_dice_is_one_to_one_and_0_without_a_match():
    # The upper two are one prediction: 64 of 64 + 128 voxels go to the smaller label, nothing to the other.
    reference = volume((8, (4, 4, 4), (4, 4, 4)), (9, (4, 4, 8), (4, 4, 4)), (10, (12, 4, 4), (4, 4, 4)))
    predicted = volume((9, (4, 4, 4), (4, 4, 8)), (20, (14, 4, 4), (4, 4, 4)))
    scores = by_label(score_masks(reference, predicted, AFFINE, found_dice=0.6))
    assert [scores[label].dice_overlap for label in (8, 9, 10)] == [pytest.approx(2 / 3), 0, 0.5]
    assert [scores[label].found_overlap for label in (8, 9, 10)] == [True, False, False]
    assert [scores[label].dice for label in (8, 9, 10)] == [0, pytest.approx(2 / 3), 0]


def test_found_begins_at_the_threshold():
    # 32 of 64 voxels in common with a body of the same size: Dice is exactly .5.
    reference, predicted = volume((8, (4, 4, 4), (4, 4, 4))), volume((8, (6, 4, 4), (4, 4, 4)))
    assert by_label(score_masks(reference, predicted, AFFINE))[8].found is True
    assert by_label(score_masks(reference, predicted, AFFINE, found_dice=0.51))[8].found is False


def test_a_prediction_matches_only_one_reference_vertebra():
    # One predicted blob over two equal vertebrae: one gets Dice 2*64/(64+128), the other none.
    reference = volume((8, (4, 4, 4), (4, 4, 4)), (9, (4, 4, 8), (4, 4, 4)))
    predicted = volume((1, (4, 4, 4), (4, 4, 8)))
    scores = by_label(score_masks(reference, predicted, AFFINE, numbering="count"))
    assert (scores[8].dice, scores[8].found) == (pytest.approx(2 / 3), True)
    assert (scores[9].dice, scores[9].found, scores[9].predicted_label) == (0, False, 0)


def test_second_piece_of_a_vertebra_is_unmatched_not_extra():
    reference = volume((8, (4, 4, 4), (4, 4, 6)))
    predicted = volume((1, (4, 4, 4), (4, 4, 4)), (2, (4, 4, 8), (4, 4, 2)))
    scores = score_masks(reference, predicted, AFFINE, numbering="count")
    assert [(s.kind, s.label) for s in scores] == [("reference", 8), ("unmatched", 2)]
    assert scores[0].predicted_label == 1


def test_extra_begins_where_a_tenth_or_less_overlaps():
    # 100 predicted voxels, of which 10 (extra) or 20 (not extra) lie in the reference vertebra.
    predicted = volume((9, (5, 5, 5), (10, 5, 2)))
    for columns, kinds in ((1, ["extra"]), (2, ["unmatched"])):
        reference = volume((8, (5, 5, 3), (10, columns, 3)), (7, (5, 5, 15), (2, 2, 2)))
        assert (overlap_table(reference, predicted)[8, 9]) == 10 * columns
        scores = score_masks(reference, predicted, AFFINE)
        assert [s.kind for s in scores if s.kind != "reference"] == kinds


@pytest.mark.parametrize(
    ("corner", "kind"),
    [
        ((1, 8, 8), "extra"),
        ((0, 8, 8), "partial"),
        ((8, 8, 16), "partial"),
        ((8, 15, 8), "extra"),
        ((8, 16, 8), "partial"),
    ],
)
def test_a_prediction_at_the_end_of_the_field_of_view_is_partial_not_extra(corner, kind):
    reference = volume((8, (9, 2, 2), (2, 2, 2)))
    predicted = volume((8, (9, 2, 2), (2, 2, 2)), (7, corner, (4, 4, 4)))
    scores = score_masks(reference, predicted, AFFINE)
    assert [(s.kind, s.label) for s in scores] == [("reference", 8), (kind, 7)]
    assert scores[1].predicted_volume_mm3 == 64


def test_a_vertebra_at_the_border_that_the_reference_holds_is_scored_as_any_other():
    reference, predicted = volume((8, (8, 8, 0), (4, 4, 4))), volume((8, (8, 8, 0), (4, 4, 3)))
    (score,) = score_masks(reference, predicted, AFFINE)
    assert (score.kind, score.dice) == ("reference", pytest.approx(2 * 48 / (64 + 48)))
    assert not score.complete
    (within,) = score_masks(volume((8, (8, 8, 1), (4, 4, 4))), predicted, AFFINE)
    assert within.complete
    assert [score.found for score in score_masks(reference, volume(), AFFINE)] == [False]


def test_a_partial_vertebra_with_a_reference_label_elsewhere_is_partial_and_its_reference_missed():
    reference, predicted = volume((8, (8, 8, 8), (4, 4, 4))), volume((8, (8, 8, 0), (4, 4, 4)))
    scores = score_masks(reference, predicted, AFFINE)
    assert [(score.kind, score.label, score.found) for score in scores] == [
        ("reference", 8, False),
        ("partial", 8, False),
    ]


def test_the_right_label_in_the_wrong_place_is_missed_and_extra():
    reference, predicted = volume((8, (2, 2, 2), (4, 4, 4))), volume((8, (10, 10, 10), (4, 4, 4)))
    reference_score, extra = score_masks(reference, predicted, AFFINE)
    assert (reference_score.dice, reference_score.found) == (0, False)
    assert np.isnan(reference_score.mean_surface_distance_mm)
    assert reference_score.localisation_error_mm == pytest.approx(8 * np.sqrt(3))
    assert (extra.kind, extra.label) == ("extra", 8)


def test_a_missing_label_is_missed_and_leaves_the_others_as_they_are():
    bodies = [(8, (8, 8, 2), (4, 4, 4)), (9, (8, 8, 8), (4, 4, 4)), (10, (8, 8, 14), (4, 4, 4))]
    scores = score_masks(volume(*bodies), volume(bodies[0], bodies[2]), AFFINE)
    assert [(s.kind, s.label, s.dice, s.found, s.identified, s.predicted_label) for s in scores] == [
        ("reference", 8, 1, True, True, 8),
        ("reference", 9, 0, False, False, 0),
        ("reference", 10, 1, True, True, 10),
    ]
    assert np.isnan(scores[1].hausdorff_mm) and np.isnan(scores[1].localisation_error_mm)


def test_an_extra_label_is_extra_and_leaves_the_others_as_they_are():
    bodies = [(8, (8, 8, 2), (4, 4, 4)), (9, (8, 8, 8), (4, 4, 4))]
    expected, extra = score_masks(volume(bodies[0]), volume(*bodies), AFFINE)
    assert (extra.kind, extra.label, np.isnan(extra.dice)) == ("extra", 9, True)
    assert [expected] == score_masks(volume(bodies[0]), volume(bodies[0]), AFFINE)


def test_empty_prediction_misses_everything():
    reference = volume((8, (4, 4, 4), (4, 4, 4)), (9, (4, 4, 10), (4, 4, 4)))
    scores = score_masks(reference, volume(), AFFINE)
    assert [(s.label, s.dice, s.found, s.identified) for s in scores] == [
        (8, 0, False, False),
        (9, 0, False, False),
    ]
    assert all(np.isnan(s.hausdorff_95_mm) and s.volume_mm3 == 64 for s in scores)
    assert repr(scores) == repr(score_without_prediction(reference, AFFINE))


def test_empty_reference_leaves_only_extra_and_partial():
    predicted = volume((8, (4, 4, 4), (4, 4, 4)), (9, (4, 4, 16), (4, 4, 4)))
    for numbering in ("anatomical", "count"):
        scores = score_masks(volume(), predicted, AFFINE, numbering=numbering)
        assert [(s.kind, s.label) for s in scores] == [("extra", 8), ("partial", 9)]


def test_two_empty_masks_give_no_scores():
    assert score_masks(volume(), volume(), AFFINE) == []


def test_a_label_in_several_pieces_is_one_vertebra():
    pieces = [(8, (4, 4, 4), (4, 4, 4)), (8, (12, 12, 12), (2, 2, 2))]
    scores = score_masks(volume(*pieces), volume(pieces[0]), AFFINE)
    assert len(scores) == 1
    assert scores[0].dice == pytest.approx(2 * 64 / (72 + 64))


def test_spacing_is_that_of_the_voxel_axes_of_an_oblique_affine():
    affine = np.array([[0, 0, 3.0, 7], [-0.5, 0, 0, 1], [0, 1.0, 0, -2], [0, 0, 0, 1]])
    reference, predicted = volume((8, (4, 4, 4), (6, 6, 6))), volume((8, (6, 4, 5), (6, 6, 6)))
    score = by_label(score_masks(reference, predicted, affine))[8]
    expected = surface_distances_mm(reference == 8, predicted == 8, spacing_mm=(0.5, 1.0, 3.0))
    assert (score.mean_surface_distance_mm, score.hausdorff_95_mm, score.hausdorff_mm) == expected
