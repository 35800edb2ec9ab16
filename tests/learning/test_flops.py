"""Operations of small networks counted by hand, and those of the published ones by their own sum."""

import itertools

import keras
import pytest

from utils.learning import flops, models
from utils.presets import preset_settings
from utils.settings import SegmentationTrainingSettings


def test_convolutions_by_hand():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 6, 2)),
            keras.layers.Conv3D(3, 3, padding="same"),
            keras.layers.ReLU(),
            keras.layers.MaxPooling3D(2),
            keras.layers.Conv3D(5, 2),
        ]
    )
    # 27 x 2 products for each of 3 x 96 numbers; 8 x 3 for each of 5 x (1 x 1 x 2).
    first, second = 27 * 2 * 3 * 96, 8 * 3 * 5 * 2
    assert flops.flops_of_forward(model) == 2 * (first + second)
    assert flops.flops_of_forward(model, batch_size=3) == 3 * 2 * (first + second)
    # Twice more in the backward pass, but the gradient of the input.
    assert flops.flops_of_step(model) == 2 * (2 * first + 3 * second)


def test_the_way_up_and_matrix_products_by_hand():
    model = keras.Sequential(
        [
            keras.Input((2, 2, 2, 3)),
            keras.layers.Conv3DTranspose(4, 2, strides=2),
            keras.layers.GlobalAveragePooling3D(),
            keras.layers.Dense(7),
        ]
    )
    # Each of 8 voxels with 3 numbers is met by 8 x 4 of the kernel.
    up, dense = 8 * 3 * 8 * 4, 4 * 7
    assert flops.flops_of_forward(model, batch_size=2) == 2 * 2 * (up + dense)
    assert flops.flops_of_step(model, batch_size=2) == 2 * 2 * (2 * up + 3 * dense)


@pytest.mark.parametrize(("filters", "gflop"), [((16, 32, 64, 128), 331.652), ((8, 16, 32, 64), 83.836)])
def test_the_published_networks(filters, gflop):
    settings = preset_settings(SegmentationTrainingSettings, "paper", filters=filters)
    model = models.build_segmentation_network(settings)
    # Blocks of two convolutions of 27 voxels: a stem, one a level, one a level on the way up.
    below = [filters[0], *filters[:-1]]
    blocks = [(0, 2, filters[0]), *((k, a, b) for k, (a, b) in enumerate(zip(below, filters)))]
    blocks += [(k, a + b, a) for k, (a, b) in enumerate(itertools.pairwise(filters))]
    products = sum(27 * (a * b + b * b) * (128 >> level) ** 3 for level, a, b in blocks)
    products += filters[0] * 128**3
    assert flops.flops_of_forward(model) == 2 * products == pytest.approx(gflop * 1e9, rel=1e-5)
    gradient_of_input = 2 * 27 * 2 * filters[0] * 128**3
    assert flops.flops_of_step(model) == 3 * 2 * products - gradient_of_input


def test_an_input_of_unknown_shape_is_refused():
    model = keras.Sequential([keras.Input((None, 4, 4, 1)), keras.layers.Conv3D(1, 1)], name="any")
    with pytest.raises(ValueError, match=r"any: expected .* known shape, found \(1, None, 4, 4, 1\)"):
        flops.flops_of_forward(model)
