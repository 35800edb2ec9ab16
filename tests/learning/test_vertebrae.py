"""Patch rules over many draws, the boundary weight against SciPy, and whole examples on a made-up spine."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from utils.imaging.centroids import MIDDLE_MM
from utils.imaging.crops import block_of_patch
from utils.learning import augment, vertebrae
from utils.learning.vertebrae import NOTHING_LEFT, Target
from utils.presets import preset_settings
from utils.settings import SegmentationTrainingSettings as Settings
from utils.verse.labels import CODES

CENTRED, PAPER = Settings(), Settings(network="unet", patch_kinds="paper")
SMALL = Settings(patch_voxels=64)
CENTRE = np.array([70.0, 81.5, 203.0])
IDENTITY = np.eye(3)


def column(half_height):
    """A line of voxels along I through `CENTRE`: P and R never decide what lies inside."""
    offsets = np.arange(-half_height, half_height + 1)
    return np.stack(
        [np.full(offsets.shape, CENTRE[0]), np.full(offsets.shape, CENTRE[1]), CENTRE[2] + offsets], 1
    )


def target_of(voxels, is_top=False):
    return Target(rank=10, voxels=voxels, centre=CENTRE, is_top=is_top)


def block_target():
    """A vertebra's size: 60 x 70 x 40 mm."""
    offsets = np.stack(np.meshgrid(*(np.arange(-h, h + 1, 5) for h in (30, 35, 20)), indexing="ij"), -1)
    return target_of(CENTRE + offsets.reshape(-1, 3))


def begins(target, kind, settings, spacing_mm=1.0, count=400):
    """First voxels of many patches without augmentation, relative to that of the centred patch."""
    generator = np.random.default_rng(0)
    patches = [
        vertebrae.draw_patch(
            generator, target, kind, matrix=IDENTITY, spacing_mm=spacing_mm, settings=settings
        )
        for _ in range(count)
    ]
    return np.array([patch.affine[:, 3] for patch in patches]) - (CENTRE - settings.patch_voxels / 2)


def spread(values, low, high):
    margin = 0.03 * (high - low)
    return low <= np.min(values) < low + margin and high - margin < np.max(values) <= high


# ---------------------------------------------------------------- kinds


def kinds(settings, count=4000):
    generator = np.random.default_rng(0)
    drawn = [vertebrae.draw_kind(generator, settings) for _ in range(count)]
    return {kind: drawn.count(kind) / count for kind in set(drawn)}


def test_kinds_around_centres():
    shares = {"memory": 0.7, "emptied": 0.22, "nothing left": 0.08}
    assert kinds(CENTRED) == pytest.approx(shares, abs=0.025)


def test_kinds_of_the_paper():
    assert kinds(PAPER) == pytest.approx({"memory": 0.7, "emptied": 0.3}, abs=0.025)


@pytest.mark.parametrize("settings", [CENTRED, PAPER])
def test_validation_has_its_memory(settings):
    assert vertebrae.draw_kind(None, settings) == "memory"


# ---------------------------------------------------------------- places


@pytest.mark.parametrize(("settings", "spacing_mm"), [(CENTRED, 1.0), (SMALL, 2.0)])
@pytest.mark.parametrize("kind", ["memory", "emptied"])
def test_a_patch_lies_around_the_centre_as_far_as_it_is_known(settings, spacing_mm, kind):
    found = spacing_mm * begins(target_of(column(15)), kind, settings, spacing_mm, count=4000)
    np.testing.assert_allclose(found.mean(axis=0), MIDDLE_MM, atol=0.3)
    # Two thirds are off by 4 mm, one third by 8.
    np.testing.assert_allclose(found.std(axis=0), np.sqrt((2 * 4**2 + 8**2) / 3), rtol=0.05)


def test_the_paper_shifts_by_32_mm():
    found = begins(target_of(column(15)), "memory", PAPER)
    assert all(spread(found[:, axis], -32, 32) for axis in range(3))


def test_emptied_begins_around_the_top_in_the_paper():
    found = begins(target_of(column(100)), "emptied", PAPER, count=800)
    assert spread(found[:, 0], -64, 63) and spread(found[:, 1], -64, 63)
    # The centred patch begins 64 above the centre, the target 100.
    assert spread(found[:, 2] - 64 - -100, -2, 61)


def test_top_of_the_spine_is_placed_as_emptied_in_the_paper():
    found = begins(target_of(column(100), is_top=True), "memory", PAPER, count=800)
    assert spread(found[:, 0], -64, 63) and spread(found[:, 2] + 36, -2, 61)


def test_nothing_left_lies_lower():
    found = 2 * begins(target_of(column(15)), "nothing left", SMALL, 2.0, count=2000)
    assert spread(found[:, 0], -32, 32) and spread(found[:, 2], 0, 64)


@pytest.mark.parametrize(
    ("kind", "rank", "remembers"),
    [("memory", 10, True), ("emptied", 10, False), ("nothing left", NOTHING_LEFT, True)],
)
def test_what_a_kind_shows(kind, rank, remembers):
    patch = vertebrae.draw_patch(
        np.random.default_rng(0), block_target(), kind, matrix=IDENTITY, spacing_mm=1.0, settings=CENTRED
    )
    assert (patch.target_rank, patch.remembers) == (rank, remembers)


@pytest.mark.parametrize("kind", ["memory", "emptied"])
def test_a_third_of_the_target_is_inside(kind):
    generator, target = np.random.default_rng(1), block_target()
    shares = []
    for _ in range(300):
        matrix = augment.draw_augmentation(generator, PAPER.augmentation).matrix
        patch = vertebrae.draw_patch(generator, target, kind, matrix=matrix, spacing_mm=1.0, settings=PAPER)
        np.testing.assert_array_equal(patch.affine[:, :3], matrix)
        places = np.linalg.solve(matrix, (target.voxels - patch.affine[:, 3]).T).T
        shares.append(np.mean(np.all((places >= -0.5) & (places < 127.5), axis=1)))
    assert min(shares) >= 1 / 3
    if kind == "emptied":
        assert min(shares) < 0.5  # cut targets do occur


def test_centred_if_a_third_never_fits():
    corners = np.array([[-500, 0, 0], [500, 0, 0], [0, -500, 0], [0, 500, 0], [0, 0, 0]])
    found = begins(target_of(CENTRE + corners), "memory", PAPER, count=5)
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize(("settings", "middle"), [(PAPER, (0, 0, 0)), (CENTRED, MIDDLE_MM)])
def test_validation_lies_where_the_target_should(settings, middle):
    patch = vertebrae.draw_patch(
        None, block_target(), "memory", matrix=IDENTITY, spacing_mm=1.0, settings=settings
    )
    np.testing.assert_array_equal(patch.affine @ [64, 64, 64, 1], CENTRE + middle)


def test_same_generator_state_gives_the_same_patch():
    draws = [begins(block_target(), "emptied", CENTRED, count=3) for _ in range(2)]
    np.testing.assert_array_equal(*draws)


# ---------------------------------------------------------------- blocks


def test_block_holds_all_that_a_patch_needs():
    """Resampling from the block is resampling from the whole scan, near and beyond its edges."""
    generator, shape, edge = np.random.default_rng(0), (30, 26, 40), 8
    ct = generator.uniform(-1, 1, shape).astype(np.float32)
    labels = generator.integers(1, 27, shape).astype(np.uint8)
    for _ in range(40):
        matrix = augment.draw_augmentation(generator, CENTRED.augmentation).matrix
        affine = np.column_stack([matrix, generator.uniform(-14, np.array(shape) + 6)])
        begin, end = block_of_patch(affine, (edge,) * 3, shape)
        assert (begin >= 0).all() and (end <= shape).all() and (end > begin).all()
        box = tuple(slice(b, e) for b, e in zip(begin, end))
        moved = np.column_stack([matrix, affine[:, 3] - begin])
        clear = np.all([np.abs(c.numpy() % 1 - 0.5) > 1e-3 for c in coordinates(affine, edge)], axis=0)
        for sample, volume in ((augment.sample_linear, ct), (augment.sample_nearest, labels)):
            whole = sample(flat(volume), coordinates(affine, edge), last_of(volume.shape))
            part = sample(flat(volume[box]), coordinates(moved, edge), last_of(end - begin))
            where = clear if volume is labels else ...  # a label may change at a tie
            np.testing.assert_allclose(part.numpy()[where], whole.numpy()[where], atol=1e-4)


def flat(volume):
    return tf.constant(volume.ravel(order="F"))


def coordinates(affine, edge):
    return augment.sampling_coordinates(tf.constant(affine, tf.float32), (edge,) * 3)


def last_of(shape):
    return tf.constant(np.array(shape) - 1, tf.int32)


def test_blocks_have_few_lengths():
    generator, lengths = np.random.default_rng(0), []
    for _ in range(500):
        matrix = augment.draw_augmentation(generator, CENTRED.augmentation).matrix
        affine = np.column_stack([matrix, generator.uniform(0, 300, 3)])
        begin, end = block_of_patch(affine, (64,) * 3, (400, 400, 800))
        voxels = int(np.prod(end - begin))
        lengths.append(vertebrae.block_length(voxels, 64))
        assert lengths[-1] >= voxels
    assert set(lengths) <= {68**3 * size for size in (1, 2, 3, 4, 6)} and len(set(lengths)) > 1


def test_unmoved_patch_has_the_smallest_block_and_a_huge_one_its_own():
    affine = np.eye(3, 4)
    affine[:, 3] = 30.0
    begin, end = block_of_patch(affine, (8,) * 3, (100, 100, 100))
    assert vertebrae.block_length(int(np.prod(end - begin)), 8) == 12**3
    assert vertebrae.block_length(6 * 12**3, 8) == 6 * 12**3
    assert vertebrae.block_length(6 * 12**3 + 1, 8) == 6 * 12**3 + 1


# ---------------------------------------------------------------- boundary weight


def weight_of_scipy(vertebra, spacing_mm):
    distance = np.where(
        vertebra,
        ndimage.distance_transform_edt(vertebra, sampling=spacing_mm),
        ndimage.distance_transform_edt(~vertebra, sampling=spacing_mm),
    )
    return 1 + 8 * np.exp(-(distance**2) / 36)


def blob(shape=(46, 26, 24)):
    """Two overlapping balls, more than 18 mm from the far end."""
    p, r, i = np.ogrid[tuple(map(slice, shape))]
    ball = (p - 12) ** 2 + (r - 11) ** 2 + (i - 10) ** 2 < 64
    return ball | ((p - 18) ** 2 + (r - 14) ** 2 + (i - 15) ** 2 < 20)


@pytest.mark.parametrize("spacing_mm", [1.0, 2.0])
@pytest.mark.parametrize("touches", [False, True])
def test_boundary_weight_is_that_of_scipy(spacing_mm, touches):
    vertebra = blob()[6:, 5:, 4:] if touches else blob()
    assert vertebra[0].any() == touches
    found = vertebrae.boundary_weight(tf.constant(vertebra), spacing_mm)
    np.testing.assert_allclose(found, weight_of_scipy(vertebra, spacing_mm), atol=1e-3)


@pytest.mark.parametrize("spacing_mm", [0.19, 2.0])  # .19: too many voxels for 16 bits
def test_boundary_weight_by_hand(spacing_mm):
    line = np.zeros((1, 1, 6), bool)
    line[..., 0] = True
    found = vertebrae.boundary_weight(tf.constant(line), spacing_mm).numpy()[0, 0]
    distances = spacing_mm * np.array([1, 1, 2, 3, 4, 5])  # of the one voxel, then of those below it
    np.testing.assert_allclose(found, 1 + 8 * np.exp(-(distances**2) / 36), rtol=1e-6)


@pytest.mark.parametrize("filled", [False, True])
def test_boundary_weight_of_empty_and_full_targets_is_1(filled):
    found = vertebrae.boundary_weight(tf.fill([9, 8, 7], filled), 1.0)
    np.testing.assert_array_equal(found, np.ones((9, 8, 7)))


# ---------------------------------------------------------------- whole examples

EDGE = 16
#: T12 (19), T13 (28) and L1 (20), as slabs along I with gaps between them.
SLABS = {19: slice(1, 5), 28: slice(6, 10), 20: slice(11, 15)}


def spine():
    mask = np.zeros((EDGE,) * 3, np.uint8)
    for code, slab in SLABS.items():
        mask[4:12, 3:13, slab] = code
    return mask


def drawn(rank, **changes):
    ct = np.random.default_rng(0).integers(-1024, 3071, (EDGE,) * 3).astype(np.int16)
    plain = {
        "ct_hu": ct.ravel(order="F"),
        "codes": spine().ravel(order="F"),
        "last": np.full(3, EDGE - 1, np.int32),
        "affine": np.eye(3, 4, dtype=np.float32),
        "ranks": vertebrae.RANK_OF_CODE,
        "target_rank": np.int32(rank),
        "remembers": np.bool_(True),
        **vertebrae.draw_memory_error(None, PAPER),
        "gain": np.float32(1),
        "offset": np.float32(0),
        "noise_sigma": np.float32(0),
        "blur_sigma": np.float32(0),
        "noise_seed": np.zeros(2, np.int32),
    }
    return {name: tf.constant(value) for name, value in {**plain, **changes}.items()}


def example(parameters):
    x, y = vertebrae.vertebra_example(parameters, patch_voxels=EDGE, spacing_mm=2.0, radius=2)
    return x.numpy(), y.numpy()


@pytest.mark.parametrize(
    ("rank", "target", "memory"),
    [(19, [19], []), (20, [28], [19]), (21, [20], [19, 28]), (NOTHING_LEFT, [], [19, 28, 20])],
)
def test_memory_is_all_above_and_target_the_one(rank, target, memory):
    x, y = example(drawn(rank))
    np.testing.assert_array_equal(x[..., 1], np.isin(spine(), memory))
    np.testing.assert_array_equal(y[..., 0], np.isin(spine(), target))
    expected = weight_of_scipy(np.isin(spine(), target), 2.0) if target else np.ones((EDGE,) * 3)
    np.testing.assert_allclose(y[..., 1], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("seed", "settings"), [(None, SMALL), (0, PAPER), (0, dataclasses.replace(SMALL, memory_error=0.0))]
)
def test_the_memory_is_true_in_validation_in_the_paper_and_on_request(seed, settings):
    generator = None if seed is None else np.random.default_rng(seed)
    wrong = vertebrae.draw_memory_error(generator, settings)
    assert wrong["memory_blur"] == 0 and not wrong["memory_bites"].any()
    assert (wrong["memory_limits"] == 0.5).all()


def test_a_memory_that_was_found_is_wrong_in_many_ways():
    generator = np.random.default_rng(0)
    draws = [vertebrae.draw_memory_error(generator, SMALL) for _ in range(2000)]
    limits, bites = (np.array([each[name] for each in draws]) for name in ("memory_limits", "memory_bites"))
    assert limits.shape == bites.shape == (2000, 8, 8, 8)
    missing = np.isinf(limits)
    assert missing.any(axis=(1, 2, 3)).mean() == pytest.approx(vertebrae.MISSING_SHARE, abs=0.03)
    assert not missing[:, :4].any()  # bodies stay
    assert limits.min() == pytest.approx(vertebrae.LEAST_MEMORY_LIMIT)
    bitten = (bites > 0).any(axis=(1, 2, 3)).mean()
    expected = 1 - (1 - vertebrae.BITTEN_SHARE) ** 2
    assert bitten == pytest.approx(expected, abs=0.03) and set(np.unique(bites)) == {0, 1}


def test_a_wrong_memory_lacks_parts_holds_some_of_the_target_and_adds_nothing_far_away():
    limits, bites = (np.full((2,) * 3, value, np.float32) for value in (0.5, 0.0))
    limits[1], bites[:, 1] = np.inf, 1.0
    wrong = {"memory_limits": limits, "memory_bites": bites}
    x, y = example(drawn(20, **{name: tf.constant(value) for name, value in wrong.items()}))
    above, target = np.isin(spine(), [19]), np.isin(spine(), [28])
    np.testing.assert_array_equal(y[..., 0], target)
    expected = above | (target & (np.arange(EDGE) >= 8)[None, :, None])
    expected[8:] = False
    np.testing.assert_array_equal(x[..., 1], expected)
    # As large as it gets, the memory reaches a voxel further.
    largest = {"memory_limits": np.full_like(limits, vertebrae.LEAST_MEMORY_LIMIT), "memory_blur": 0.8}
    x, _ = example(drawn(20, **{name: tf.constant(value, tf.float32) for name, value in largest.items()}))
    grown = ndimage.binary_dilation(above, np.ones((3, 3, 3)))
    assert (x[..., 1] >= above).all() and (x[..., 1] > above).any() and (x[..., 1] <= grown).all()


def test_air_beyond_the_scan_has_no_gain_but_noise_and_blur():
    # The patch begins 4 voxels before the scan on P, and ends 4 beyond it on I.
    affine = np.eye(3, 4, dtype=np.float32)
    affine[:, 3] = -4, 0, 4
    strange = drawn(20, affine=affine, gain=np.float32(0.5), offset=np.float32(0.25))
    beyond = np.zeros((EDGE,) * 3, bool)
    beyond[:4], beyond[:, :, -4:] = True, True
    air, edge = (
        vertebrae.vertebra_example(strange, patch_voxels=EDGE, spacing_mm=2.0, radius=2, outside=outside)
        for outside in ("air", "edge")
    )
    image, repeated = air[0].numpy()[..., 0], edge[0].numpy()[..., 0]
    assert (image[beyond] == -1).all()
    np.testing.assert_array_equal(image[~beyond], repeated[~beyond])
    np.testing.assert_array_equal(repeated[:4], np.broadcast_to(repeated[4], (4, EDGE, EDGE)))
    np.testing.assert_array_equal(repeated[4:, :, -4:], np.repeat(repeated[4:, :, -5:-4], 4, axis=2))
    np.testing.assert_array_equal(air[1], edge[1])  # vertebra and weight
    np.testing.assert_array_equal(air[0][..., 1], edge[0][..., 1])  # memory
    noisy = {**strange, "noise_sigma": tf.constant(0.05), "noise_seed": tf.constant([1, 2])}
    x, _ = vertebrae.vertebra_example(noisy, patch_voxels=EDGE, spacing_mm=2.0, radius=2, outside="air")
    above = x.numpy()[beyond, 0] > -1  # half of the noise is clipped away
    assert 0.4 < above.mean() < 0.6


@pytest.mark.parametrize(("preset", "outside"), [("paper", "air"), ("full", "edge"), ("starter", "edge")])
def test_batches_are_built_with_what_the_settings_say_lies_outside(preset, outside):
    settings = preset_settings(Settings, preset, patch_voxels=EDGE)
    assert settings.outside == outside
    affine = np.eye(3, 4, dtype=np.float32)
    affine[0, 3] = -4
    x, _, _ = vertebrae.segmentation_batch_builder(settings, 2.0)(
        stacked([drawn(20, affine=affine)], [1.0]), True
    )
    assert (x.numpy()[0, :4, ..., 0] == -1).all() == (outside == "air")


def test_emptied_memory_leaves_the_target():
    x, y = example(drawn(21, remembers=np.bool_(False)))
    assert not x[..., 1].any()
    np.testing.assert_array_equal(y[..., 0], spine() == 20)


def test_intensities_are_scaled_then_clipped():
    parameters = drawn(21, gain=np.float32(1.25), offset=np.float32(-0.25))
    x, _ = example(parameters)
    ct = parameters["ct_hu"].numpy().reshape((EDGE,) * 3, order="F")
    normalised = (ct + 1024.0) * 2 / 4095 - 1
    np.testing.assert_allclose(x[..., 0], np.clip(1.25 * normalised - 0.25, -1, 1), atol=1e-5)
    assert (x[..., 0] == -1).any()


def test_image_memory_and_target_move_together():
    affine = np.eye(3, 4, dtype=np.float32)
    affine[2, 3] = 5.0  # the patch begins 5 voxels lower
    plain, moved = example(drawn(21)), example(drawn(21, affine=affine))
    for before, after in zip(plain[0].T, moved[0].T):
        np.testing.assert_array_equal(after[:11], before[5:])
    np.testing.assert_array_equal(moved[1][:, :, :11, 0], plain[1][:, :, 5:, 0])
    # Beyond the scan: its nearest voxel in the CT, and no vertebra.
    np.testing.assert_array_equal(moved[0][:, :, 11:, 0], np.repeat(plain[0][:, :, 15:, 0], 5, axis=2))
    assert not moved[0][:, :, 11:, 1].any() and not moved[1][:, :, 11:, 0].any()


def test_every_code_has_its_role():
    codes = np.array([0, *CODES, 26, 27], np.uint8)  # in order of rank; nobody uses 26 and 27
    for remembers in (True, False):
        target, memory = vertebrae.target_and_memory(
            tf.constant(codes), tf.constant(20), tf.constant(remembers), tf.constant(vertebrae.RANK_OF_CODE)
        )
        assert np.flatnonzero(target).tolist() == [20] and codes[20] == 28
        assert np.flatnonzero(memory).tolist() == (list(range(1, 20)) if remembers else [])


def random_batch():
    """Four examples, turned and blurred; the noise is looked at by itself in test_augment."""
    generator = np.random.default_rng(0)
    batch = []
    for rank in (19, 20, 21, NOTHING_LEFT):
        matrix = augment.draw_augmentation(generator, CENTRED.augmentation).matrix
        affine = np.column_stack([matrix, 8 - matrix @ generator.uniform(6, 9, 3)]).astype(np.float32)
        changes = {"blur_sigma": np.float32(0.2 * rank - 3.5), "remembers": np.bool_(rank != 20)}
        batch.append(drawn(rank, affine=affine, **changes))
    return batch


def stacked(batch, weight):
    return {
        **{name: tf.stack([one[name] for one in batch]) for name in batch[0]},
        "weight": tf.constant(weight),
    }


@pytest.mark.parametrize("how", [lambda part: part, tf.function])
def test_batches_under_xla_are_the_eager_and_the_traced_examples(monkeypatch, how):
    batch = random_batch()
    build = vertebrae.segmentation_batch_builder(Settings(patch_voxels=EDGE, targets="bits"), 2.0)
    x, y, weight = build(stacked(batch, [1.0, 1.0, 1.0, 0.0]), True)
    assert x.shape == (4, *(EDGE,) * 3, 2) and y.shape == (4, *(EDGE,) * 3, 2)
    assert weight.numpy().tolist() == [1, 1, 1, 0]
    for name in ("ct_patch", "code_patch", "network_input", "weighted_target"):
        monkeypatch.setattr(vertebrae, name, how(getattr(vertebrae, name).__wrapped__))
    monkeypatch.setattr(augment, "add_noise", how(augment.add_noise.__wrapped__))
    for k, one in enumerate(batch):
        # 3 * 1.5 mm in voxels of 2 mm
        expected = vertebrae.vertebra_example(one, patch_voxels=EDGE, spacing_mm=2.0, radius=3)
        np.testing.assert_allclose(x[k], expected[0], atol=2e-4)
        np.testing.assert_allclose(y[k], expected[1], atol=1e-3)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_batches_inside_compiled_functions_are_the_same(count, jit_compile):
    batch = stacked(random_batch()[:count], [1.0] * count)
    build = vertebrae.segmentation_batch_builder(Settings(patch_voxels=EDGE), 2.0)
    shapes = []

    @tf.function(jit_compile=jit_compile)
    def step(batch):
        built = build(batch, True)
        shapes.extend(tensor.shape.as_list() for tensor in built)
        return built

    for found, expected in zip(step(batch), build(batch, False)):
        np.testing.assert_allclose(found, expected, atol=2e-4)
    assert shapes == [[count, *(EDGE,) * 3, 2]] * 2 + [[count]]
