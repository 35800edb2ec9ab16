"""The comparison of networks, on networks whose scores are known beforehand."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from utils.distillation import comparison


def patch(begin, size=8):
    """A cube of 3 voxels; channel 0 of the input is the cube itself, so that a network can give it back."""
    y = np.zeros((1, size, size, size, 2), "float32")
    y[0, begin : begin + 3, 2:5, 2:5, 0] = 1
    x = np.concatenate([y[..., :1], np.zeros_like(y[..., :1])], axis=-1)
    return tf.constant(x), tf.constant(y)


def shifting(voxels):
    """A network that gives channel 0 of its input, moved along the first axis."""
    inputs = keras.Input((8, 8, 8, 2))
    return keras.Model(inputs, keras.layers.Lambda(lambda x: tf.roll(x[..., :1], voxels, axis=1))(inputs))


def test_a_network_that_is_right_has_dice_1_and_distance_0():
    found = comparison.measured(shifting(0), [patch(1), patch(3)], spacing_mm=2.0)
    assert (found["dice"], found["surface_distance_95_mm"]) == (1.0, 0.0)
    assert (found["vertebrae"], found["empty"]) == (2, 0) and found["seconds_per_patch"] > 0


def test_a_network_one_voxel_off():
    found = comparison.measured(shifting(1), [patch(1)], spacing_mm=2.0)
    assert found["dice"] == pytest.approx(2 / 3)  # 18 of 27 voxels in common
    assert found["surface_distance_95_mm"] == pytest.approx(2.0)


def test_an_empty_prediction_counts_0_and_is_counted():
    inputs = keras.Input((8, 8, 8, 2))
    nothing = keras.Model(inputs, keras.layers.Lambda(lambda x: 0.4 * x[..., :1])(inputs))
    found = comparison.measured(nothing, [patch(1), patch(2)], spacing_mm=1.0)
    assert found["dice"] == 0.0 and np.isnan(found["surface_distance_95_mm"]) and found["empty"] == 2


def test_the_page_and_the_figure_show_every_network(tmp_path, capsys):
    rows = [
        {
            "network": "teacher",
            "directory": "segmentation",
            "parameters": 1476817,
            "megabytes": 18.0,
            "seconds_per_patch": 2.9,
        },
        {
            "network": "student",
            "directory": "scratch",
            "parameters": 370345,
            "megabytes": 4.6,
            "seconds_per_patch": 0.94,
        },
    ]
    scores = [
        {"dice": 0.91, "surface_distance_95_mm": 1.5, "empty": 0, "vertebrae": 9},
        {"dice": 0.0, "surface_distance_95_mm": float("nan"), "empty": 9, "vertebrae": 9},
    ]
    table = pd.DataFrame([{**a, **b} for a, b in zip(rows, scores)])
    comparison.write_students(table, tmp_path, "What it means.\n")
    page = (tmp_path / "students.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == [
        "network",
        "parameters",
        "MB",
        "s a patch",
        "Dice",
        "95 % surface distance, mm",
        "empty",
    ]
    assert cells[2][1:] == ["1476817", "18.00", "2.900", "0.910", "1.50", "0"]
    assert cells[3][-2:] == ["–", "9"]
    assert "What it means." in page and page.count("\n|") == 4
    assert lines[2] in capsys.readouterr().out
    figure = comparison.student_figure(table)
    assert figure.axes[0].get_title() == "Dice" and len(figure.axes) == 4
    assert [text.get_text() for text in figure.axes[1].texts] == ["1.50", "–"]
