"""The pictures that ribs are counted in, on a small phantom whose places are known."""

import json

import nibabel
import numpy as np
import pytest

from experiments.real import look_at_scan
from utils.imaging.volume import Volume

#: A phantom of 1 x 1 x 2 mm whose x runs to the left: world x = 20 - i, y = j - 10, z = 2 k - 30.
AFFINE = np.array([[-1.0, 0, 0, 20], [0, 1, 0, -10], [0, 0, 2, -30], [0, 0, 0, 1]])
#: The spine leans forward on its way down, and to the right.
CENTRES_MM = np.array([[0.0, 0, 20], [4, 8, -20]])


def phantom(*points_mm):
    """A phantom of soft tissue with single bright voxels."""
    data = np.zeros((41, 41, 31), np.float32)
    for point in points_mm:
        i, j, k = np.round(np.linalg.solve(AFFINE, [*point, 1])[:3]).astype(int)
        data[i, j, k] = 1000
    return Volume(data, AFFINE)


def brightest(view):
    """World position, in mm, of the brightest picture element, and its value."""
    row, column = np.unravel_index(np.argmax(view.hu), view.hu.shape)
    left, _, _, top = view.extent_mm
    return (left + column, top - row), view.hu.max()


def test_the_course_goes_straight_from_centre_to_centre_and_on_as_it_ends():
    found = look_at_scan.course(CENTRES_MM[::-1], np.array([-30.0, -20, 0, 10, 20, 30]))
    np.testing.assert_allclose(found, [[4, 8], [4, 8], [2, 4], [1, 2], [0, 0], [0, 0]])


@pytest.mark.parametrize(
    "z, behind, is_seen", [(0, 9, True), (0, 12, False), (-20, 9, True), (20, 12, False)]
)
def test_the_slab_follows_the_spine(z, behind, is_seen):
    depth = look_at_scan.course(CENTRES_MM, np.array([float(z)]))[0, 1]
    ct = phantom((-15, depth - behind, z))
    coronal, _ = look_at_scan.curved_views(ct, CENTRES_MM, slab_mm=(5.0, 10.0))
    place, value = brightest(coronal)
    assert (value > 900) == is_seen
    if is_seen:
        assert place == (-15, z)


def test_the_slice_follows_the_spine_sideways():
    _, sagittal = look_at_scan.curved_views(phantom((4, 25, -20)), CENTRES_MM, slab_mm=(5.0, 10.0))
    place, value = brightest(sagittal)
    assert place == (25, -20) and value > 100
    _, sagittal = look_at_scan.curved_views(phantom((-4, 25, -20)), CENTRES_MM, slab_mm=(5.0, 10.0))
    assert sagittal.hu.max() == 0


def test_without_centres_the_whole_scan_is_projected():
    coronal, sagittal = look_at_scan.plain_views(phantom((-15, 25, -24)))
    assert coronal.extent_mm == (-20, 20, -30, 30) and sagittal.extent_mm == (-10, 30, -30, 30)
    assert coronal.hu.shape == (31, 41)
    assert coronal.hu[27, 5] == 1000 and sagittal.hu[27, 35] == 1000


def test_the_command_draws_with_and_without_centres(tmp_path):
    ct = phantom((0, 0, 20))
    nibabel.save(nibabel.Nifti1Image(ct.data, AFFINE), tmp_path / "some_ct.nii.gz")
    centroids = [{"direction": ["L", "A", "S"]}, {"label": 20, "X": 20, "Y": 10, "Z": 25}]
    (tmp_path / "ctd.json").write_text(json.dumps(centroids))
    for name, options in (("plain", []), ("marked", ["--centres", str(tmp_path / "ctd.json")])):
        picture = tmp_path / f"{name}.png"
        arguments = [str(tmp_path / "some_ct.nii.gz"), "--output", str(picture), *options]
        assert look_at_scan.main(arguments) == 0
        assert picture.stat().st_size > 10_000
    found = look_at_scan.read_centres(tmp_path / "ctd.json", tmp_path / "some_ct.nii.gz", ct)
    assert list(found) == ["L1"]
    np.testing.assert_allclose(found["L1"], [0, 0, 20])


def test_a_file_of_facts_without_the_scan_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"centres\.json: expected a scan with the CT other_ct\.nii\.gz"):
        facts = look_at_scan.Path(look_at_scan.__file__).with_name("centres.json")
        look_at_scan.read_centres(facts, tmp_path / "other_ct.nii.gz", phantom())
