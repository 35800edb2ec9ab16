"""The transformations against SciPy, conventions worked out by hand, and eager against compiled."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage
from scipy.spatial.transform import Rotation

from utils.imaging.intensities import normalise_hu
from utils.learning import augment
from utils.settings import AugmentationSettings

SETTINGS = AugmentationSettings()
SHAPE, OUTPUT_SHAPE = (14, 17, 12), (16, 15, 18)
#: Mirrored, zoomed and turned at once; the translation lets a part of the output leave the source.
MATRIX = augment.output_to_source(True, [0.8, 1.2, 1.3], np.array([17.0, -12.0, 20.0]))
TRANSLATION = np.array([2.3, 14.1, -3.4])
AFFINE = np.column_stack([MATRIX, TRANSLATION]).astype(np.float32)
LAST = np.array(SHAPE, np.int32) - 1


def random_ct():
    return np.random.default_rng(3).uniform(-1, 1, SHAPE).astype(np.float32)


def random_labels():
    return np.random.default_rng(4).integers(0, 27, SHAPE).astype(np.uint8)


def source_coordinates():
    grid = np.stack(np.meshgrid(*map(np.arange, OUTPUT_SHAPE), indexing="ij"))
    return np.einsum("sj,j...->s...", MATRIX, grid) + TRANSLATION[:, None, None, None]


def as_block(volume, junk):
    """Lay a volume flat as a block is, padded with a value that would be noticed."""
    return tf.constant(np.append(volume.ravel(order="F"), np.full(50, junk, volume.dtype)))


def test_ct_is_that_of_scipy():
    coordinates = augment.sampling_coordinates(tf.constant(AFFINE), OUTPUT_SHAPE)
    found = augment.sample_linear(as_block(random_ct(), 1e6), coordinates, tf.constant(LAST))
    expected = ndimage.affine_transform(
        random_ct(), MATRIX, TRANSLATION, OUTPUT_SHAPE, order=1, mode="nearest"
    )
    outside = np.any([(c < 0) | (c > s - 1) for c, s in zip(source_coordinates(), SHAPE)], axis=0)
    assert 0.1 < outside.mean() < 0.9
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_labels_are_those_of_scipy_away_from_ties():
    coordinates = augment.sampling_coordinates(tf.constant(AFFINE), OUTPUT_SHAPE)
    found = augment.sample_nearest(as_block(random_labels(), 99), coordinates, tf.constant(LAST))
    expected = ndimage.affine_transform(
        random_labels(), MATRIX, TRANSLATION, OUTPUT_SHAPE, order=0, mode="grid-constant", cval=0
    )
    clear = np.all(np.abs(source_coordinates() % 1 - 0.5) > 1e-4, axis=0)
    assert found.dtype == tf.uint8 and clear.mean() > 0.99
    np.testing.assert_array_equal(found.numpy()[clear], expected[clear])
    assert (expected[clear] == 0).mean() > 0.1 and (expected[clear] > 0).mean() > 0.1


def test_inside_is_within_half_a_voxel():
    line = tf.constant([-0.51, -0.5, 0.0, 3.0, 3.5, 3.51])
    found = augment.is_inside((line, tf.zeros(6), tf.ones(6)), tf.constant([3, 0, 1]))
    assert found.numpy().tolist() == [False, True, True, True, True, False]


def test_one_voxel_thick_volume_is_sampled():
    volume = tf.constant([[[5.0, 7.0]]])
    where = (tf.constant([-2.0, 0.0, 3.0]), tf.constant([0.4, 0.0, 0.0]), tf.constant([0.25, 1.0, 0.5]))
    found = augment.sample_linear(augment.in_file_order(volume), where, tf.constant([0, 0, 1]))
    np.testing.assert_allclose(found, [5.5, 7.0, 6.0])


def test_file_order_is_that_of_numpy():
    np.testing.assert_array_equal(
        augment.in_file_order(tf.constant(random_labels())), random_labels().ravel(order="F")
    )


def test_ct_is_clipped_before_it_is_interpolated():
    # Half way from 5000, which counts as 3071, to 0 lies 1535.5 HU: 2559.5 of 4095 above the lower end.
    where = tuple(tf.constant([value]) for value in (0.5, 0.0, 0.0))
    found = augment.sample_ct(tf.constant([5000, 0], tf.int16), where, tf.constant([1, 0, 0]))
    np.testing.assert_allclose(found, [2 * 2559.5 / 4095 - 1], atol=1e-6)


def every_operation(ct, labels, sigma_blur):
    ct, labels = augment.in_file_order(ct), augment.in_file_order(labels)
    coordinates = augment.sampling_coordinates(tf.constant(AFFINE), OUTPUT_SHAPE)
    image = augment.sample_linear(ct, coordinates, tf.constant(LAST))
    inside = augment.is_inside(coordinates, tf.constant(LAST))
    ranks = augment.sample_nearest(labels, coordinates, tf.constant(LAST))
    return image, inside, ranks, augment.blur(image, sigma_blur, 3), augment.normalised(ct * 3000)


def assert_eager_traced_and_xla_agree(function, arguments):
    tensors = [tf.constant(argument) for argument in arguments]
    eager = tf.nest.flatten(function(*tensors))
    for compiled in (tf.function(function), tf.function(function, jit_compile=True)):
        for found, expected in zip(tf.nest.flatten(compiled(*tensors)), eager):
            assert found.dtype == expected.dtype
            pair = [np.asarray(tensor, np.float32) for tensor in (found, expected)]
            np.testing.assert_allclose(*pair, atol=3e-5)


def test_eager_traced_and_xla_agree():
    assert_eager_traced_and_xla_agree(every_operation, [random_ct(), random_labels(), 1.1])


def test_noise_is_the_same_eager_traced_and_under_xla():
    arguments = [random_ct(), 0.02, np.array([5, 6], np.int32)]
    assert_eager_traced_and_xla_agree(augment.add_noise.__wrapped__, arguments)


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_blur_is_that_of_scipy(sigma):
    found = augment.blur(tf.constant(random_ct()), tf.constant(sigma), 5)
    expected = ndimage.gaussian_filter(random_ct().astype(float), sigma, mode="nearest", radius=5)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_quantiles_are_a_normal_distribution():
    quantiles = augment.NORMAL_QUANTILES.astype(float)
    np.testing.assert_allclose(quantiles, -quantiles[::-1], atol=1e-6)
    # Moments 2, 4 and 6 of the normal distribution.
    moments = [np.mean(quantiles**k) for k in (2, 4, 6)]
    np.testing.assert_allclose(moments, [1, 3, 15], rtol=0.01)


def test_noise_of_an_odd_number_of_voxels():
    found = augment.add_noise(tf.zeros([3, 5, 7]), tf.constant(1.0), tf.constant([1, 2])).numpy()
    assert np.isin(found, augment.NORMAL_QUANTILES).all() and len(np.unique(found)) > 100


def test_shifted_pairs_by_hand():
    padded = tf.constant([[0, 0, 5, 6, 7, 8, 9]])
    middle, *pairs = augment.shifted_pairs(padded, 1, 2)
    assert middle.numpy().tolist() == [[5, 6, 7]]
    found = [[part.numpy().tolist() for part in pair] for pair in pairs]
    assert found == [[[[0, 5, 6]], [[6, 7, 8]]], [[[0, 0, 5]], [[7, 8, 9]]]]


def test_blur_of_width_0_leaves_the_image():
    np.testing.assert_array_equal(augment.blur(tf.constant(random_ct()), tf.constant(0.0), 5), random_ct())


def test_blur_radius_holds_three_standard_deviations():
    # 3 * 1.5 mm is 4.5 voxels of 1 mm and 2.25 of 2 mm.
    assert augment.blur_radius(SETTINGS, 1.0) == 5
    assert augment.blur_radius(SETTINGS, 2.0) == 3
    assert augment.blur_radius(AugmentationSettings(blur_sigma_mm=(0.0, 0.0)), 1.0) == 1


def test_noise_depends_on_the_seed_alone():
    zeros, ones = tf.zeros([40, 40, 40]), tf.ones([40, 40, 40])
    first = augment.add_noise(zeros, tf.constant(0.03), tf.constant([1, 2]))
    again = augment.add_noise(ones, tf.constant(0.03), tf.constant([1, 2])) - 1.0
    other = augment.add_noise(zeros, tf.constant(0.03), tf.constant([1, 3]))
    np.testing.assert_allclose(first, again, atol=1e-6)
    assert abs(np.corrcoef(np.ravel(first), np.ravel(other))[0, 1]) < 0.02
    # 64,000 draws: the standard deviation is known to .3%, the mean to .00012.
    assert np.std(first) == pytest.approx(0.03, rel=0.015)
    assert abs(np.mean(first)) < 0.0006


def test_no_noise_for_sigma_0():
    found = augment.add_noise(tf.constant(random_ct()), tf.constant(0.0), tf.constant([1, 2]))
    np.testing.assert_array_equal(found, random_ct())


def test_intensities_are_clipped_and_scaled():
    hu = tf.constant([-3000, -1024, 0, 3071, 5000], tf.int16)
    # 0 HU lies 1024 of 4095 above the lower end.
    np.testing.assert_allclose(augment.normalised(hu), [-1, -1, 2 * 1024 / 4095 - 1, 1, 1], atol=1e-6)


# ---------------------------------------------------------------- the linear map


def moved(offset, *, flip=False, zoom=(1.0, 1.0, 1.0), degrees=(0.0, 0.0, 0.0)):
    """Where a point of the source, given by its offset from the fixed point, lies in the augmented image."""
    return np.linalg.solve(augment.output_to_source(flip, list(zoom), np.array(degrees)), offset)


def test_flip_mirrors_left_and_right_alone():
    np.testing.assert_allclose(moved([1.0, 2.0, 3.0], flip=True), [1, -2, 3])


def test_zoom_of_2_along_p_makes_a_bar_twice_as_long():
    bar = np.zeros((21, 5, 5), np.uint8)
    bar[8:12, 2, 2] = 1
    matrix = augment.output_to_source(False, [2.0, 1.0, 1.0], np.zeros(3))
    middle = np.array([10.0, 2.0, 2.0])
    affine = np.column_stack([matrix, middle - matrix @ middle]).astype(np.float32)
    coordinates = augment.sampling_coordinates(tf.constant(affine), bar.shape)
    found = augment.sample_nearest(as_block(bar, 1), coordinates, tf.constant([20, 4, 4]))
    # The bar covers 7.5 to 11.5, which is 10 - 5 to 10 + 3 after the zoom.
    assert np.argwhere(found).tolist() == [[p, 2, 2] for p in range(5, 13)]


@pytest.mark.parametrize(
    ("axis", "start", "end"),
    [
        *((0, (0, 1, 0), (0, 0, 1)), (0, (0, 0, 1), (0, -1, 0))),
        *((1, (1, 0, 0), (0, 0, 1)), (1, (0, 0, 1), (-1, 0, 0))),
        *((2, (1, 0, 0), (0, 1, 0)), (2, (0, 1, 0), (-1, 0, 0))),
    ],
)
def test_a_right_angle_turns_the_lower_axis_to_the_higher(axis, start, end):
    degrees = np.zeros(3)
    degrees[axis] = 90
    np.testing.assert_allclose(moved(start, degrees=degrees), end, atol=1e-12)
    own_axis = np.eye(3)[axis]
    np.testing.assert_allclose(moved(own_axis, degrees=degrees), own_axis, atol=1e-12)


def turn(point, start, end, degrees):
    """Turn a point so that the axis `start` goes towards the axis `end`."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    result = np.array(point, float)
    result[start] = cosine * point[start] - sine * point[end]
    result[end] = sine * point[start] + cosine * point[end]
    return result


def test_order_is_flip_zoom_then_turns_about_r_p_and_i():
    p, r, i = 0, 1, 2
    point = np.array([4.0, -7.0, 5.0])
    step = np.array([1, -1, 1]) * point
    step = np.array([0.8, 1.2, 1.3]) * step
    step = turn(step, p, i, -12)
    step = turn(step, r, i, 17)
    step = turn(step, p, r, 20)
    np.testing.assert_allclose(moved(point, flip=True, zoom=(0.8, 1.2, 1.3), degrees=(17, -12, 20)), step)


# ---------------------------------------------------------------- drawing


@pytest.fixture(scope="module")
def draws():
    generator = np.random.default_rng(0)
    return [augment.draw_augmentation(generator, SETTINGS) for _ in range(3000)]


def spread(values, low, high):
    """Assert that values fill a range and do not leave it."""
    margin = 0.02 * (high - low)
    return low <= np.min(values) < low + margin and high - margin < np.max(values) <= high


def test_drawn_numbers_fill_their_ranges(draws):
    assert spread([d.gain for d in draws], 0.75, 1.25)
    assert spread([d.offset for d in draws], -0.25, 0.25)
    assert spread([d.noise_sigma for d in draws if d.noise_sigma], 0.001, 0.03)
    assert spread([d.blur_sigma for d in draws if d.blur_sigma], 0.5, 1.5)


def test_drawn_maps_are_zooms_and_turns_in_their_ranges(draws):
    forward = np.linalg.inv([d.matrix for d in draws])
    zoom = np.linalg.norm(forward, axis=1)  # the turns leave the length of a column
    for axis, limits in enumerate([(0.8, 1.2), (0.8, 1.2), (0.7, 1.3)]):
        assert spread(zoom[:, axis], *limits)
    mirrored = np.linalg.det(forward) < 0
    assert np.mean(mirrored) == pytest.approx(0.5, abs=0.04)
    turns = (
        forward / zoom[:, None, :] * np.stack([np.ones(3000), 1 - 2 * mirrored, np.ones(3000)], 1)[:, None]
    )
    # About I after P after R is SciPy's "ZXY".
    for degrees in Rotation.from_matrix(turns).as_euler("ZXY", degrees=True).T:
        assert spread(degrees, -20, 20)


def test_noise_and_blur_have_probability_8_in_10(draws):
    assert np.mean([d.noise_sigma > 0 for d in draws]) == pytest.approx(0.8, abs=0.03)
    assert np.mean([d.blur_sigma > 0 for d in draws]) == pytest.approx(0.8, abs=0.03)
    both = np.mean([d.noise_sigma > 0 and d.blur_sigma > 0 for d in draws])
    assert both == pytest.approx(0.64, abs=0.035)  # independent of each other


def test_same_generator_state_gives_the_same_draw(draws):
    again = augment.draw_augmentation(np.random.default_rng(0), SETTINGS)
    for field in dataclasses.fields(augment.Augmentation):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(draws[0], field.name))
    assert len({tuple(d.noise_seed) for d in draws}) == len(draws)
    assert draws[0].noise_seed.dtype == np.int32


def test_ranges_without_width_change_nothing():
    one, none = (1.0, 1.0), (0.0, 0.0)
    settings = AugmentationSettings(0.0, one, none, one, one, one, 0.0, 0.0, none, 0.0, none)
    drawn = augment.draw_augmentation(np.random.default_rng(1), settings)
    np.testing.assert_array_equal(drawn.matrix, np.eye(3))
    assert (drawn.gain, drawn.offset, drawn.noise_sigma, drawn.blur_sigma) == (1, 0, 0, 0)


def test_device_and_host_map_hounsfield_units_alike():
    hu = np.arange(-2000, 4000, dtype=np.int16)
    np.testing.assert_array_equal(augment.normalised(tf.constant(hu)).numpy(), normalise_hu(hu))
