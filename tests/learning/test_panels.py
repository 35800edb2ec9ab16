"""The pictures for TensorBoard: which slice, which way up, which colour in which tile."""

import numpy as np
import pytest

from utils.learning import panels

BLACK, WHITE = (2 * (hu + 1024) / 4095 - 1 for hu in panels.PANEL_WINDOW_HU)


def blended(grey, colour, amount):
    opacity = panels.OPACITY * amount
    return (1 - opacity) * grey + opacity * np.array(colour)


def test_vertebra_panel_by_hand():
    # P = 2, R = 3, I = 4; the target lies in the slice R = 2 at (P, I) = (1, 3), the memory above it.
    x, y = np.full((1, 2, 3, 4, 2), BLACK, "float32"), np.zeros((1, 2, 3, 4, 2), "float32")
    prediction = np.zeros((1, 2, 3, 4, 1), "float32")
    x[..., 1] = 0
    x[0, 0, 2, 0, 0] = WHITE
    x[0, 1, 2, 2, 1] = 1
    y[0, 1, 2, 3, 0] = 1
    prediction[0, 1, 2, 3, 0] = 0.5
    (picture,) = panels.vertebra_panel(x, y, prediction)
    assert picture.shape == (4, 4 * 2, 3)
    # Every tile: row I, column P, white at the upper left.
    for tile in range(4):
        np.testing.assert_allclose(picture[0, 2 * tile], 1.0, atol=1e-5)
    expected = {
        (2, 3): blended(0, panels.MEMORY_COLOUR, 1),
        (3, 5): blended(0, panels.TARGET_COLOUR, 1),
        (3, 7): blended(0, panels.PREDICTION_COLOUR, 0.5),
    }
    for place, colour in expected.items():
        np.testing.assert_allclose(picture[place], colour, atol=1e-5)
        picture[place] = 0
    picture[0, ::2] = 0
    np.testing.assert_allclose(picture, 0, atol=1e-5)


def test_heatmap_panel_shows_the_slice_with_most_heat():
    x, y = np.full((1, 2, 3, 4, 1), WHITE, "float32"), np.zeros((1, 2, 3, 4, 2), "float32")
    y[0, :, 1, :, 0] = 0.25
    x[0, :, 1, :, 0] = BLACK
    (picture,) = panels.heatmap_panel(x, y, y[..., ::-1])
    assert picture.shape == (4, 3 * 2, 3)
    np.testing.assert_allclose(picture[:, :2], 0, atol=1e-5)
    np.testing.assert_allclose(picture[0, 2], blended(0, panels.TARGET_COLOUR, 0.25), atol=1e-5)
    np.testing.assert_allclose(picture[0, 4], blended(0, panels.PREDICTION_COLOUR, 0.0), atol=1e-5)


def test_localiser_panel_shows_the_bodies():
    generator = np.random.default_rng(0)
    x, y = generator.uniform(-1, 1, (1, 2, 3, 4, 1)), np.zeros((1, 2, 3, 4, 5), "float32")
    y[0, 1, 2, 3, 0] = y[0, 0, 0, 0, 1] = 1  # a body, and the sacrum elsewhere
    prediction = np.ones((1, 2, 3, 4, 29), "float32")
    prediction[0, ..., 0] = y[0, ..., 0] / 2
    (picture,) = panels.localiser_panel(x, y, prediction)
    assert picture.shape == (4, 3 * 2, 3)
    grey = picture[3, 1, 0]
    np.testing.assert_allclose(picture[3, 3], blended(grey, panels.TARGET_COLOUR, 1), atol=1e-5)
    np.testing.assert_allclose(picture[3, 5], blended(grey, panels.PREDICTION_COLOUR, 0.5), atol=1e-5)
    np.testing.assert_allclose(picture[:3, 2:4], picture[:3, :2], atol=1e-5)


@pytest.mark.parametrize(("shape", "expected"), [((2, 5, 2), 2), ((2, 4, 2), 2)])
def test_an_empty_target_shows_the_middle(shape, expected):
    assert panels._fullest_slice(np.zeros(shape)) == expected
