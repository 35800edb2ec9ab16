"""Images drawn from masks: seeds, priors in HU, what surrounds the labels, the field of view."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from tests.imaging.examples import DATA, NO_DATA, real
from utils.imaging.grids import working_grid
from utils.imaging.nifti import read_mask
from utils.imaging.resampling import resample_labels
from utils.settings import HU_RANGE
from utils.synthetic import label_images
from utils.synthetic.appearance import draw_appearance
from utils.synthetic.label_images import bone_parts, field_of_view, label_image
from utils.synthetic.label_maps import (
    DEPTH_UNIT_MM,
    SAMPLE_KINDS,
    label_map_of,
    level_of,
    with_narrow_discs,
)
from utils.synthetic.phantom.soft import AIR_HU
from utils.verse.labels import code_of_name

SPACING_MM = 2.0
L3, L4, L5 = (code_of_name(name) for name in ("L3", "L4", "L5"))


@pytest.fixture
def sharp(monkeypatch):
    """No blur but what is asked for, in voxels."""
    monkeypatch.setattr(label_images, "_LEAST_BLUR", 0.1)  # of a voxel: its kernel is one voxel wide


def column(codes, *, shape=(60, 40, 90), pitch=16, top=20):
    """Blocks of 15 x 20 x 12 voxels, `pitch` apart on I from `top` down."""
    mask = np.zeros(shape, np.uint8)
    for place, code in enumerate(codes):
        mask[20:35, 10:30, top + pitch * place : top + pitch * place + 12] = code
    return mask


def look(seed=0, **changes):
    """A look without noise, blur and uneven bone, and with the whole of the volume in its field of view."""
    drawn = draw_appearance(np.random.default_rng(seed))
    bone = dataclasses.replace(drawn.bone, texture=0.0, spread=np.zeros_like(drawn.bone.spread))
    plain = {"noise_hu": 0.0, "streak_hu": 0.0, "drift_hu": 0.0, "unevenness": 0.0, "rim_mm": 0.0}
    wide = {"blur_mm": np.zeros(3), "margins": np.full((3, 2), 1e3)}
    return dataclasses.replace(drawn, **{"bone": bone, **plain, **wide, **changes})


def depth_of(labels):
    """The depth of every sample, of the shape of the fine mask; 0 where there is no bone."""
    depth = np.zeros(labels.fine_codes.shape, np.uint8)
    for part, kinds in zip(np.ndindex((labels.fine,) * 3), labels.bones.kinds):
        at = labels.fine * labels.bones.places.astype(int) + np.array(part)[:, None]
        codes, _, depth[tuple(at)] = np.unravel_index(kinds, SAMPLE_KINDS)
        np.testing.assert_array_equal(codes, labels.fine_codes[tuple(at)])
    return depth


def drawn_at(labels, seed, epoch=0, position=0, **block):
    return label_image(labels, draw_appearance(np.random.default_rng([seed, epoch, position])), **block)


# Seeds and shapes


def test_an_image_is_a_function_of_seed_epoch_and_position():
    labels = label_map_of(column([L3, L4]), SPACING_MM)
    first = drawn_at(labels, 1)
    assert first.dtype == np.int16 and first.shape == labels.codes.shape
    assert first.min() >= HU_RANGE[0] and first.max() <= HU_RANGE[1]
    np.testing.assert_array_equal(first, drawn_at(label_map_of(column([L3, L4]), SPACING_MM), 1))
    for other in ((2, 0, 0), (1, 1, 0), (1, 0, 1)):
        assert np.mean(first != drawn_at(labels, *other)) > 0.5


def test_labels_stay_what_they_are():
    mask = column([L3, L4])
    mask.flags.writeable = False
    labels = label_map_of(mask, SPACING_MM)
    drawn_at(labels, 3)
    assert labels.codes is mask
    np.testing.assert_array_equal(mask, column([L3, L4]))


def test_a_mask_without_a_vertebra_has_soft_tissue_alone():
    labels = label_map_of(np.zeros((20, 24, 30), np.uint8), SPACING_MM)
    image = label_image(labels, look())
    assert not depth_of(labels).any() and image.shape == (20, 24, 30)
    assert np.mean(image > 400) < 0.02


def test_a_block_shows_the_same_bones_as_the_whole(sharp):
    labels = label_map_of(column([L3, L4]), SPACING_MM)
    chosen = look(5)
    block = label_image(labels, chosen, (18, 8, 10), (40, 32, 61))
    whole = label_image(labels, chosen)[18:40, 8:32, 10:61]
    bone = depth_of(labels)[18:40, 8:32, 10:61] > 0
    np.testing.assert_array_equal(block[bone], whole[bone])


@pytest.mark.parametrize("begin", [(0, 0, 0), (59, 39, 89), (0, 17, 40)])
def test_any_block_can_be_asked_for(begin):
    labels = label_map_of(column([L3, L4]), SPACING_MM)
    end = np.minimum(np.add(begin, (5, 1, 7)), labels.codes.shape)
    assert drawn_at(labels, 0, begin=begin, end=end).shape == tuple(end - begin)


# Priors


@pytest.mark.parametrize("seed", range(6))
def test_bone_is_within_its_priors(sharp, seed):
    labels = label_map_of(column([L3, L4]), SPACING_MM)
    chosen = look(seed)
    image, depth = label_image(labels, chosen), depth_of(labels) * DEPTH_UNIT_MM
    # Body ends 3 mm behind the centre, at voxel 28.
    labelled, in_body = labels.codes > 0, np.arange(60)[:, None, None] <= 28
    bone, core = chosen.bone, labelled & (depth > 5)
    skin = labelled & (depth < 1.5)
    shell_mm = chosen.cortex_share * bone.shell_mm
    for part, inside, thickness in ((in_body, bone.body, shell_mm), (~in_body, bone.arch, 1.5 * shell_mm)):
        np.testing.assert_allclose(image[core & part], inside, atol=1)
        share = min(1.0, thickness / SPACING_MM)
        np.testing.assert_allclose(image[skin & part], inside + share * (bone.cortex - inside), atol=1)
    assert 10 <= bone.body <= 260 and 250 <= bone.cortex <= 1500


def test_some_vertebrae_are_much_denser_than_the_others_of_their_image():
    spread = np.concatenate([draw_appearance(np.random.default_rng(seed)).bone.spread for seed in range(200)])
    # A tenth has up to 300 HU more; nine tenths differ as those of one spine do.
    assert 0.05 < np.mean(spread > 70) < 0.1 and spread.max() < 400
    assert 15 < np.std(spread[spread < 60]) < 30


def test_parts_of_a_voxel_worked_out_by_hand():
    # 2 mm voxels at depths 1, 3 and 5 mm, under a rim of .5 mm and a cortex of 1 mm (1.5 in the arch): the
    # first voxel goes from 0 to 2 mm.
    drawn = look(rim_mm=0.5, cortex_share=1.0)
    drawn = dataclasses.replace(drawn, bone=dataclasses.replace(drawn.bone, shell_mm=1.0))
    depth = np.array([1, 3, 1, 3], np.float32)
    parts = bone_parts(depth, np.array([True, True, False, False]), drawn, step_mm=2.0)
    np.testing.assert_allclose(parts, [[0.25, 1, 0, 1], [0.5, 0, 0.75, 0], [0.25, 0, 0.25, 0]], atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_soft_tissue_is_within_its_priors(sharp, seed):
    labels = label_map_of(column([L3, L4]), SPACING_MM)
    chosen = look(seed, fattiness=9.0, skin_fat_mm=20.0, table_mm=400.0)
    image = label_image(labels, chosen)
    # Beside the arches, before the fat under the skin.
    muscle = image[30:34, 5:9, 30:40]
    assert 0 < np.median(muscle) < 90
    assert (image[-3:] <= AIR_HU + 10).all()


def test_noise_has_the_deviation_that_was_drawn():
    labels = label_map_of(np.zeros((40, 40, 40), np.uint8), SPACING_MM)
    blur = np.array([1.0, 1.4, 3.0])
    quiet, loud = (label_image(labels, look(2, noise_hu=hu, blur_mm=blur)) for hu in (0.0, 30.0))
    noise = loud.astype(float) - quiet
    assert abs(noise[5:35, 5:35, 5:35].std() - 30.0) < 2.0


# Around the labels


def test_neighbours_have_depth_and_no_label():
    labels = label_map_of(column([L3, L4], top=20), SPACING_MM)
    unlabelled = (depth_of(labels) > 0) & (labels.codes == 0)
    # L3 copied one pitch (16 voxels) up, and L4 one down: 36 + 16 = 52.
    expected = np.zeros_like(unlabelled)
    expected[20:35, 10:30, 4:16] = expected[20:35, 10:30, 52:64] = True
    np.testing.assert_array_equal(unlabelled, expected)


def test_c1_has_no_vertebra_above_and_l5_a_sacrum_below():
    above = label_map_of(column([1, 2]), SPACING_MM)
    assert not depth_of(above)[:, :, :20].any()
    below = label_map_of(column([L4, L5], top=10), SPACING_MM)
    sacrum = np.argwhere((depth_of(below) > 0) & (below.codes == 0) & (np.arange(90) > 38))
    assert below.ends_at_sacrum and not above.ends_at_sacrum
    # It lies under L5 and leans back: its lower half behind its upper one.
    middle = np.median(sacrum[:, 2])
    low, high = (sacrum[sacrum[:, 2] > middle, 0].mean(), sacrum[sacrum[:, 2] <= middle, 0].mean())
    assert low > high + 2


def thoracic(code):
    """A body of 26 x 28 x 20 mm, and an arch whose transverse processes reach 32 mm to either side."""
    mask = np.zeros((60, 70, 50), np.uint8)
    mask[20:33, 28:42, 20:30] = code
    mask[33:44, 30:40, 22:28] = code
    mask[38:42, 19:51, 23:26] = code
    return mask


def test_ribs_run_from_the_bodys_upper_end_to_before_the_transverse_process():
    mask = thoracic(code_of_name("T6"))
    labels = label_map_of(mask, SPACING_MM)
    # Copies of the vertebra lie a pitch of 30 mm above and below, their nearest planes at 15 and 35.
    rib = (depth_of(labels) > 0) & (mask == 0)
    rib[..., :15] = rib[..., 35:] = False
    for side in (slice(None, 35), slice(35, None)):
        one = np.zeros_like(rib)
        one[:, side] = rib[:, side]
        assert ndimage.label(one)[1] == 1
        places = np.argwhere(one)
        away = np.abs(places[:, 1] - 34.5)
        head, beyond = places[away < 10], places[away > 22]
        # The head: at the upper end of the body, before the canal.
        assert head[:, 0].mean() < 33 and head[:, 2].mean() < 24
        # What lies beyond the process: farther back than the head, before the process or beside it.
        assert len(beyond) and head[:, 0].mean() + 2 < beyond[:, 0].mean() < 42
    assert (labels.codes == mask).all() and depth_of(labels)[mask > 0].all()
    again = label_map_of(mask, SPACING_MM)
    np.testing.assert_array_equal(depth_of(labels), depth_of(again))


def test_a_lumbar_vertebra_and_a_piece_of_one_have_no_ribs():
    piece = np.zeros_like(thoracic(L3))
    piece[25:29, 30:34, 23:27] = code_of_name("T6")
    for mask in (thoracic(L3), piece):
        labels = label_map_of(mask, SPACING_MM)
        assert not ((depth_of(labels) > 0) & (labels.codes == 0))[:, :, 20:30].any()


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [(0, "055000066000"), (1, "055500066600"), (2, "555500666600"), (3, "555550666660"), (9, "555550666666")],
)
def test_discs_become_thinner_and_never_vanish(voxels, expected):
    codes = np.zeros((2, 3, 12), np.uint8)
    codes[1, 1] = [0, 5, 5, 0, 0, 0, 0, 6, 6, 0, 0, 0]
    narrow = with_narrow_discs(codes, voxels)
    np.testing.assert_array_equal(narrow[1, 1], [int(digit) for digit in expected])
    assert not narrow[0].any() and narrow.shape == codes.shape and codes.sum() == 22


def test_a_missing_level_counts_as_two_pitches():
    gap = label_map_of(column([L3, L5], pitch=32), SPACING_MM)
    unlabelled = (depth_of(gap) > 0) & (gap.codes == 0)
    assert unlabelled[27, 20, 4:16].all() and not unlabelled[27, 20, 16:20].any()


def test_levels_are_counted_over_t13():
    names = ("C1", "T1", "T12", "T13", "L1", "L5")
    assert [level_of(code_of_name(name)) for name in names] == [1, 8, 19, 19.5, 20, 24]


def test_the_field_of_view_ends_within_the_next_vertebra():
    labels = label_map_of(column([L3, L4], top=20), SPACING_MM)
    # Parts of a pitch of 32 mm: 6 and 10 mm.
    margins = np.array([[1e3, 1e3], [1e3, 1e3], [6 / 32, 10 / 32]])
    chosen = look(margins=margins)
    begin, end = field_of_view(labels, chosen)
    assert (begin.tolist(), end.tolist()) == ([0, 0, 17], [60, 40, 53])
    image = label_image(labels, chosen)
    np.testing.assert_array_equal(image[..., :17], np.repeat(image[..., 17:18], 17, axis=-1))
    np.testing.assert_array_equal(image[..., 53:], np.repeat(image[..., 52:53], 37, axis=-1))


def test_a_chest_has_a_heart_and_a_breastbone(sharp):
    mask = np.zeros((90, 90, 60), np.uint8)
    for place, name in enumerate(("T6", "T7", "T8", "T9", "T10")):
        mask[58:66, 40:50, 10 + 8 * place : 16 + 8 * place] = code_of_name(name)
    labels = label_map_of(mask, 4.0)
    centre = np.argwhere(mask == code_of_name("T8")).mean(axis=0)
    p, r, i = np.rint(np.add(centre, [-88 / 4, -14 / 4, 0])).astype(int)
    for blood in (42.0, 300.0):
        # No fat: the heart lies in it nowhere, and the breastbone is the only bright place at the front.
        plain = {"girth": 1.0, "fattiness": 9.0, "vessels": (), "skin_fat_mm": 5.0}
        chosen = look(chamber_hu=blood, heart_at=(-88, -14, 15), rib_hu=600.0, **plain)
        image = label_image(labels, chosen)
        assert abs(np.median(image[p - 4 : p + 5, r - 4 : r + 5, i - 4 : i + 5]) - blood) < 60
        front = image[: p - 8, int(centre[1]), i]
        assert np.count_nonzero((front > 400) & (front < 560)) in (2, 3, 4)  # 12 mm of .8 * 600 HU


@pytest.mark.parametrize("seed", range(10))
def test_labels_are_always_in_the_field_of_view(seed):
    labels = label_map_of(column([L3, L4]), SPACING_MM)
    begin, end = field_of_view(labels, draw_appearance(np.random.default_rng(seed)))
    first, last = labels.span
    assert (begin <= first).all() and (end >= last).all()


# Real masks


@pytest.mark.skipif(not DATA.is_dir(), reason=NO_DATA)
@pytest.mark.parametrize("name", ["sub-verse014", "sub-verse004", "chest", "abdomen"])
def test_real_masks_give_images_that_show_their_vertebrae(name):
    mask = read_mask(real(f"{name}_seg-vert_msk.nii.gz"))
    labels = label_map_of(resample_labels(mask, working_grid(mask.grid, 4.0)).data, 4.0)
    image = drawn_at(labels, 0)
    bone, around = labels.codes > 0, depth_of(labels) == 0
    assert np.median(image[bone]) > np.median(image[around]) + 100
    assert depth_of(labels)[bone].min() > 0


# ---------------------------------------------------------------- finer masks


def fine_column(shift=0):
    """A column of vertebrae at twice the samples, moved along I by so many of these."""
    fine = np.kron(column([L3, L4]), np.ones((2, 2, 2), np.uint8))
    return np.roll(fine, shift, axis=2)


def test_a_fine_mask_of_whole_voxels_draws_the_bones_of_the_coarse_one(sharp):
    coarse, fine = column([L3, L4]), fine_column()
    plain = label_map_of(coarse, SPACING_MM)
    finer = label_map_of(coarse, SPACING_MM, fine)
    assert (plain.fine, finer.fine) == (1, 2) and depth_of(finer).shape == fine.shape
    # Four bones, two of them copies beyond the ends; of a voxel three places, and eight samples of two bytes.
    bony = depth_of(finer).reshape(60, 2, 40, 2, 90, 2).any(axis=(1, 3, 5))
    assert bony.sum() == 4 * 15 * 20 * 12
    assert finer.nbytes == coarse.nbytes + fine.nbytes + bony.sum() * (3 * 2 + 8 * 2)
    for name in ("spine_p", "spine_r", "level"):
        np.testing.assert_allclose(getattr(finer.course, name), getattr(plain.course, name), atol=0.6)
    np.testing.assert_allclose(finer.pitch_mm, plain.pitch_mm, rtol=0.01)
    chosen = look(0)
    first, second = (label_image(labels, chosen) for labels in (plain, finer))
    core = depth_of(plain) * DEPTH_UNIT_MM > 6
    np.testing.assert_allclose(first[core & (coarse > 0)], second[core & (coarse > 0)], atol=1)


def test_an_image_shows_where_between_voxels_a_bone_ends(sharp):
    """Moved by half a voxel, the planes at the ends hold half as much bone."""
    chosen = look(0)
    chosen = dataclasses.replace(
        chosen, cortex_share=0.0, bone=dataclasses.replace(chosen.bone, body=900.0, arch=900.0)
    )
    images = []
    for shift in (0, 1):
        fine = fine_column(shift)
        coarse = fine[::2, ::2, 1::2] if shift else column([L3, L4])
        images.append(label_image(label_map_of(coarse, SPACING_MM, fine), chosen).astype(float))
    body = np.argwhere(column([L3, L4]) == L3)
    p, r = body[:, 0].min() + 6, int(np.median(body[:, 1]))
    first, last = body[:, 2].min(), body[:, 2].max()
    still, moved = (image[p, r] for image in images)
    assert still[first] == pytest.approx(900, abs=2) and still[last] == pytest.approx(900, abs=2)
    assert moved[first + 1] == pytest.approx(900, abs=2)
    for plane in (first, last + 1):
        soft = still[first - 1]
        assert moved[plane] == pytest.approx((900 + soft) / 2, abs=60)
