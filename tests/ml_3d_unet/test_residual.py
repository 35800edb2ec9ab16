"""The residual U-Net: shapes, what a place adds, its logits, and that it comes back from a file."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from ML_3D_Unet.utils.folding import without_norms
from ML_3D_Unet.utils.residual import PatchPlace, create_residual_unet3d

FILTERS = [4, 6, 8]


def network(**differing):
    keras.utils.set_random_seed(0)
    return create_residual_unet3d((8, 12, 16, 2), FILTERS, **differing)


def patch(seed=0):
    return np.random.default_rng(seed).normal(size=(2, 8, 12, 16, 2)).astype(np.float32)


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("filters", [[4, 6], FILTERS, [4, 6, 8, 8]])
def test_the_output_has_the_size_of_the_input(filters, fine):
    model = create_residual_unet3d((8, 16, 24, 2), filters, fine=fine)
    assert model.output_shape == (None, 8, 16, 24, 1)
    assert model(np.zeros((1, 8, 16, 24, 2), np.float32)).dtype == "float32"


def test_any_size_without_places_and_only_a_known_one_with():
    model = create_residual_unet3d((None, None, None, 2), FILTERS)
    assert model(np.zeros((1, 8, 4, 12, 2), np.float32)).shape == (1, 8, 4, 12, 1)
    with pytest.raises(ValueError, match="patch of known size for places, received"):
        create_residual_unet3d((None, None, None, 2), FILTERS, places=True)


@pytest.mark.parametrize(
    ("shape", "filters", "expected"),
    [((8, 8, 8, 2), [4], "two or more, received"), ((6, 8, 8, 2), FILTERS, "multiple")],
)
def test_what_makes_no_network_is_refused(shape, filters, expected):
    with pytest.raises(ValueError, match=expected):
        create_residual_unet3d(shape, filters)


def test_the_sum_of_all_levels_is_the_layer_of_the_logits():
    model = network()
    logits = keras.Model(model.inputs, model.get_layer("last_logits").output)(patch()).numpy()
    np.testing.assert_allclose(model(patch()).numpy(), 1 / (1 + np.exp(-logits)), atol=1e-6)
    # The deepest level takes part.
    deepest = model.get_layer("logits_3")
    deepest.set_weights([deepest.get_weights()[0], deepest.get_weights()[1] + 2.0])
    moved = keras.Model(model.inputs, model.get_layer("last_logits").output)(patch()).numpy()
    np.testing.assert_allclose(moved, logits + 2.0, atol=1e-5)


def test_a_place_tells_the_middle_from_the_rest():
    place = PatchPlace(width=0.5)(np.zeros((1, 4, 4, 8, 3), np.float32)).numpy()[0]
    assert place.shape == (4, 4, 8, 7) and not place[..., :3].any()
    np.testing.assert_allclose(place[:, 0, 0, 3], [-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(place[0, 0, :, 5], (np.arange(8) + 0.5) / 4 - 1)
    away = place[..., 3:6]
    np.testing.assert_allclose(place[..., 6], np.exp(-(away**2).sum(-1) / (2 * 0.5**2)), rtol=1e-5)


def test_what_lies_in_the_middle_can_be_told_with_places():
    """Without them a constant patch gives the same far from every border; with them it does not."""
    constant = np.ones((1, 96, 96, 96, 2), np.float32)
    differ = []
    for places in (False, True):
        keras.utils.set_random_seed(0)
        model = create_residual_unet3d((96, 96, 96, 2), [2, 2], norm=None, places=places)
        inner = model(constant).numpy()[0, 30:-30, 30:-30, 30:-30, 0]
        # Of a cell of 2×2×2, as the transposed convolution tells its corners apart.
        differ.append(np.ptp(inner[::2, ::2, ::2]) > 1e-4)
    assert differ == [False, True]


def test_a_fine_network_convolves_the_input_before_it_is_halved():
    """One that is not fine halves at once: what a block of 2×2×2 holds is mixed by one kernel."""
    for fine, filtered in ((False, 0), (True, 1)):
        model = network(fine=fine)
        halved = model.get_layer("down_2").input.shape
        assert halved[1:4] == (8, 12, 16) and halved[4] == 2 + filtered * FILTERS[0]
        whole = [each.name for each in model.layers if isinstance(each, keras.layers.Conv3D)]
        whole = [name for name in whole if model.get_layer(name).output.shape[1:4] == (8, 12, 16)]
        # Beside the convolution that gives the logits, and the one after the last step up.
        assert len([name for name in whole if not name.startswith("logits")]) == 1 + 2 * filtered


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("norm", ["instance_norm", "batch_norm", None])
def test_a_saved_model_comes_back_without_custom_objects(tmp_path, norm, fine):
    model = network(norm=norm, places=True, fine=fine)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(patch()).numpy(), model(patch()).numpy(), atol=1e-6)


@pytest.mark.parametrize("fine", [False, True])
def test_batch_normalisation_folds_away(fine):
    model = network(norm="batch_norm", places=True, fine=fine)
    model(patch(), training=True)  # statistics that are not those of the beginning
    folded = without_norms(model)
    assert not [each for each in folded.layers if isinstance(each, keras.layers.BatchNormalization)]
    np.testing.assert_allclose(folded(patch()).numpy(), model(patch()).numpy(), atol=1e-5)
