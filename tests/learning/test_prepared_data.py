"""What pre-processing left, read back: centroids, targets, and files that do not fit."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

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
        prepared_data.read_segmentation_data(folder).scan("sub-b")


def test_missing_scan_is_named(segmentation, tmp_path):
    folder = copy_of(segmentation, tmp_path)
    (folder / "sub-a_ct.nii").unlink()
    with pytest.raises(ValueError, match=r"sub-a_ct\.nii"):
        prepared_data.read_segmentation_data(folder).scan("sub-a")


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


#: A program of its own, as few processes can spare so many open files: 28 files, of which 18 may be open.
MANY_CASES = """
import resource, sys
from pathlib import Path
import numpy as np
from tests.learning import examples
from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume
from utils.learning import datasets, prepared_data
from utils.settings import SegmentationTrainingSettings
folder, rows = Path(sys.argv[1]), []
for number in range(14):
    ct, mask, own = examples.scan((20, 21), number)
    write_volume(folder / f"sub-{number}_ct.nii", Volume(ct, examples.AFFINE))
    write_volume(folder / f"sub-{number}_msk.nii", Volume(mask, examples.AFFINE))
    write_volume(folder / f"sub-{number}_fine.nii", examples.fine_mask(mask))
    rows += [{"case": f"sub-{number}", **row} for row in own]
examples.write_table(folder / "vertebrae.csv", rows)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 22,) * 2)
prepared_data.MAPPED_CASES = 4
data, bad = prepared_data.read_segmentation_data(folder).without_bad_cases()
assert not bad, bad
settings = SegmentationTrainingSettings(patch_voxels=8, batch_size=2, mixture=(0, 0.5, 0, 0.5))
batches = datasets.segmentation_dataset(data, settings, spacing_mm=2.0, training=True)
print(sum(batch["weight"].sum() for batch in batches(0).as_numpy_iterator()))
for case in data.columns:
    data.label_map(case, 2.0)
"""


def test_many_cases_need_few_open_files(tmp_path):
    command = [sys.executable, "-c", MANY_CASES, str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert (ran.returncode, ran.stdout) == (0, "56.0\n"), ran.stderr
    # Three files a case, two splits, and as much again for all else.
    assert 2 * (3 * 2 * prepared_data.MAPPED_CASES) <= 1024


def test_label_maps_are_kept_while_there_is_room(data, monkeypatch):
    # Codes and eight samples of every voxel; of bony ones three places and eight samples, of two bytes each.
    bony = sum(data.label_map(case, 2.0).bones.places.shape[1] for case in ("sub-a", "sub-b"))
    two = 2 * (1 + 8) * int(np.prod(examples.SCAN_SHAPE)) + bony * (3 + 8) * 2
    for room, is_kept in ((two, True), (two - 1, False)):
        monkeypatch.setattr(prepared_data, "KEPT_BYTES", room)
        fresh = dataclasses.replace(data, _found=prepared_data.Found())
        first, _, again = (fresh.label_map(case, 2.0) for case in ("sub-a", "sub-b", "sub-a"))
        assert (again is first) == is_kept
        for name in ("places", "kinds"):
            np.testing.assert_array_equal(getattr(first.bones, name), getattr(again.bones, name))
