"""Volumes: their spacing and the boxes around their labels."""

import numpy as np
import pytest

from tests.imaging.examples import oblique_affine
from utils.imaging.volume import Volume, label_boxes, touches_border


def test_the_spacing_is_read_off_a_turned_affine():
    volume = Volume(np.zeros((2, 3, 4)), oblique_affine((0.7, 0.8, 1.25)))
    np.testing.assert_allclose(volume.spacing_mm, (0.7, 0.8, 1.25))
    assert volume.grid.shape == (2, 3, 4)


@pytest.mark.parametrize("order", ["C", "F"])
def test_label_boxes_by_hand_in_either_order_in_memory(order):
    labels = np.zeros((5, 6, 7), np.uint8, order=order)
    labels[1:3, 4, 0:6] = 28
    labels[0, 0, 6] = labels[4, 5, 0] = 3
    assert label_boxes(labels) == {3: np.s_[0:5, 0:6, 0:7], 28: np.s_[1:3, 4:5, 0:6]}


def test_a_box_touches_the_border_at_either_end_of_any_axis():
    assert not touches_border(np.s_[1:4, 1:5, 1:6], (5, 6, 7))
    for box in (np.s_[0:4, 1:5, 1:6], np.s_[1:5, 1:5, 1:6], np.s_[1:4, 1:6, 1:6], np.s_[1:4, 1:5, 0:6]):
        assert touches_border(box, (5, 6, 7))
