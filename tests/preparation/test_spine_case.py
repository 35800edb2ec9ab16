"""A scan with what is known of its spine: written, read back, and what goes wrong named."""

import json

import numpy as np
import pytest

from utils.imaging.nifti import open_memory_map
from utils.imaging.volume import Volume
from utils.preparation.spine_case import (
    KnownSpine,
    read_spine,
    spine_of_drawn,
    spine_of_points,
    write_spine_case,
)
from utils.synthetic.drawn_scan import DrawnScan

AFFINE = np.array([[0, 3.0, 0, 5], [-3.0, 0, 0, 7], [0, 0, -3.0, 9], [0, 0, 0, 1]])
POINTS = np.array([[4.25, 5.0, -0.4], [4.5, 5.125, 6.0], [4.0, 5.0, 12.0]])
#: T12, T13, L1: T13 lies between them, whatever its code.
CODES = (19, 28, 20)


def written(folder, spine):
    ct = np.random.default_rng(0).uniform(-1024, 3000, (6, 7, 8))
    write_spine_case(folder, "sub-a", Volume(ct, AFFINE), spine)
    return ct, read_spine(folder / "sub-a_spine.json")


@pytest.mark.parametrize(
    "spine",
    [
        KnownSpine(CODES, POINTS, (True, False, False), np.array([3.0, 5.5, 20.0]), is_complete=True),
        KnownSpine(CODES[:1], POINTS[:1], (True,)),
        KnownSpine((), np.zeros((0, 3)), (), is_complete=True),
    ],
)
def test_what_is_written_is_read_back(tmp_path, spine):
    ct, found = written(tmp_path, spine)
    assert (found.codes, found.has_rib, found.is_complete) == (spine.codes, spine.has_rib, spine.is_complete)
    np.testing.assert_allclose(found.points, spine.points, atol=5e-4)
    assert found.points.shape == spine.points.shape
    assert (found.sacrum is None) == (spine.sacrum is None)
    if spine.sacrum is not None:
        np.testing.assert_allclose(found.sacrum, spine.sacrum, atol=5e-4)
    volume = open_memory_map(tmp_path / "sub-a_ct.nii")
    assert volume.data.dtype == np.int16
    np.testing.assert_array_equal(volume.data, np.rint(ct))
    np.testing.assert_allclose(volume.affine, AFFINE)


def test_ranks_count_from_the_top():
    assert KnownSpine(CODES, POINTS, (True, True, False)).ranks == (19, 20, 21)


def test_of_points_alone_thoracic_vertebrae_carry_ribs():
    spine = spine_of_points(np.array([7, 8, 19, 28, 20]), np.zeros((5, 3)))
    assert spine.has_rib == (False, True, True, True, False)
    assert spine.sacrum is None and not spine.is_complete


def test_a_drawn_spine_is_known_whole_and_its_ribs_by_their_length():
    points = dict(zip((18, 19, 20, 21), np.arange(12.0).reshape(4, 3)))
    ribs = {18: (150.0, 150.0), 19: (39.0, 41.0), 20: (12.0, 39.9)}  # none of L2
    sacrum = np.array([1.0, 2.0, 3.0])
    spine = spine_of_drawn(DrawnScan(np.zeros((2, 2, 2), np.int16), 3.0, points, sacrum, ribs))
    assert spine.codes == (18, 19, 20, 21) and spine.is_complete
    assert spine.has_rib == (True, True, False, False)
    np.testing.assert_array_equal(spine.points, np.arange(12.0).reshape(4, 3))
    np.testing.assert_array_equal(spine.sacrum, sacrum)
    empty = spine_of_drawn(DrawnScan(np.zeros((2, 2, 2), np.int16), 3.0, kind="thigh"))
    assert empty.points.shape == (0, 3) and empty.codes == () and empty.is_complete


RIGHT = {"points": [[19, 1, 2, 3], [20, 4, 5, 6]], "has_rib": [True, False], "sacrum": None}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        json.dumps([1]),
        json.dumps(RIGHT),  # whether it is complete is not there
        json.dumps({**RIGHT, "is_complete": True, "has_rib": [True]}),
        json.dumps({**RIGHT, "is_complete": True, "points": [[19, 1, 2, 3], [19, 4, 5, 6]]}),
        json.dumps({**RIGHT, "is_complete": True, "points": [[19, 1, 2], [20, 4, 5]]}),
        json.dumps({**RIGHT, "is_complete": True, "points": [[99, 1, 2, 3], [20, 4, 5, 6]]}),
        json.dumps({**RIGHT, "is_complete": True, "sacrum": "none"}),
        None,
    ],
)
def test_a_file_that_holds_no_spine_is_named(tmp_path, content):
    path = tmp_path / "sub-a_spine.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="expected a prepared spine, found ") as caught:
        read_spine(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    path.write_text(json.dumps({**RIGHT, "is_complete": True}))
    assert read_spine(path).codes == (19, 20)
