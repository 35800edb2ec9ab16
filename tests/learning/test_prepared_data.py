"""What pre-processing left, read back: centroids, targets, and files that do not fit."""

import re
import shutil

import numpy as np
import pytest

from tests.learning import examples
from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume
from utils.learning import datasets, prepared_data
from utils.settings import SegmentationTrainingSettings

SETTINGS = SegmentationTrainingSettings(patch_voxels=8, batch_size=2, examples_per_epoch=5, seed=3)


def test_target_is_looked_up_once(data):
    vertebra = data.vertebrae[1]
    target = data.target(vertebra)
    assert data.target(vertebra) is target and not target.is_top and data.target(data.vertebrae[0]).is_top
    np.testing.assert_array_equal(target.voxels.min(axis=0), vertebra.begin)
    np.testing.assert_array_equal(target.voxels.max(axis=0), vertebra.end - 1)
    # 6 x 6 x 5 voxels, none thinned out, and the top one once more.
    assert len(target.voxels) == 181


def test_heatmap_cases_hold_their_centroids_in_voxels(cases):
    assert [case.key for case in cases] == ["sub-a", "sub-b"]
    assert cases[0].ct_hu.shape == examples.HEATMAP_SHAPE and cases[0].ct_hu.dtype == np.int16
    np.testing.assert_allclose(cases[1].centroids_voxels, [[3.5, 4, 2], [3.5, 4, 6]], atol=1e-6)


def test_nothing_prepared_is_no_case(tmp_path):
    assert prepared_data.read_heatmap_cases(tmp_path / "none") == ([], [])
    assert prepared_data.read_segmentation_data(tmp_path / "none").vertebrae == ()


def copy_of(folder, tmp_path):
    return shutil.copytree(folder / "training", tmp_path / "training")


def test_missing_column_is_named(segmentation, tmp_path):
    folder = copy_of(segmentation, tmp_path)
    table = folder / "vertebrae.csv"
    table.write_text(table.read_text().replace("centre_p", "centre_x"))
    with pytest.raises(ValueError, match=r"vertebrae\.csv: expected the columns.*centre_p"):
        prepared_data.read_segmentation_data(folder)


def test_mask_of_another_shape_is_named(segmentation, tmp_path):
    folder = copy_of(segmentation, tmp_path)
    write_volume(folder / "sub-b_msk.nii", Volume(np.zeros((4, 5, 6), np.uint8), examples.AFFINE))
    with pytest.raises(ValueError, match=r"sub-b_msk\.nii: expected the shape of the CT.*\(4, 5, 6\)"):
        _ = prepared_data.read_segmentation_data(folder).scans


def test_missing_scan_is_named(segmentation, tmp_path):
    folder = copy_of(segmentation, tmp_path)
    (folder / "sub-a_ct.nii").unlink()
    with pytest.raises(ValueError, match=r"sub-a_ct\.nii"):
        _ = prepared_data.read_segmentation_data(folder).scans


def test_vertebra_absent_from_its_mask_is_named(segmentation, tmp_path):
    folder = copy_of(segmentation, tmp_path)
    empty = np.zeros(examples.SCAN_SHAPE, np.uint8)
    write_volume(folder / "sub-a_msk.nii", Volume(empty, examples.AFFINE))
    changed = prepared_data.read_segmentation_data(folder)
    with pytest.raises(ValueError, match=r"sub-a_msk\.nii: expected label 19 as in vertebrae\.csv"):
        datasets.segmentation_example(changed, 0, None, spacing_mm=2.0, settings=SETTINGS)


def test_heatmap_case_of_another_shape_is_named(tmp_path):
    folder = examples.write_heatmap_stage(tmp_path) / "training"
    write_volume(folder / "sub-b_ct.nii", Volume(np.zeros((8, 8, 17), np.int16), examples.AFFINE))
    cases, bad = prepared_data.read_heatmap_cases(folder)
    assert [case.key for case in cases] == ["sub-a"]
    assert len(bad) == 1
    assert re.search(r"sub-b_ct\.nii: expected shape \(8, 8, 16\), found \(8, 8, 17\)", bad[0])
