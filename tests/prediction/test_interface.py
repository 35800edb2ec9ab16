"""The Python call: one scan in, labels, table and quality out."""

import json
import subprocess
import sys

import nibabel
import numpy as np
import pandas as pd
import pytest

from tests.prediction.test_predict import (  # noqa: F401, the fixture is used by its name
    fake,
    infer,
    mask_path,
    settings_for,
    write_column,
)
from utils.execution import PROJECT_DIR
from utils.prediction import interface, segment
from utils.prediction.case import TABLE_COLUMNS


@pytest.fixture(autouse=True)
def networks(fake, monkeypatch):  # noqa: F811
    monkeypatch.setattr(interface, "load_networks", lambda settings: fake.networks())
    interface._networks.cache_clear()
    yield
    interface._networks.cache_clear()


def test_a_path_gives_what_infer_writes(tmp_path, capfd):
    scan = write_column(tmp_path / "sub-a_ct.nii.gz")
    found = segment(scan, device="cpu")
    assert capfd.readouterr() == ("", "")  # nothing is printed
    assert not (tmp_path / "derivatives").exists()
    assert infer(settings_for(scan, output=tmp_path / "out")) == 0
    written = nibabel.load(mask_path(tmp_path / "out", "sub-a"))
    np.testing.assert_array_equal(found.labels.get_fdata(), written.get_fdata())
    np.testing.assert_allclose(found.labels.affine, written.affine)
    table = pd.read_csv(mask_path(tmp_path / "out", "sub-a").with_name("sub-a_vertebrae.csv"))
    assert found.table["name"].tolist() == table["name"].tolist() == list(found.centres_mm)
    assert tuple(found.table.columns) == TABLE_COLUMNS
    assert found.save(tmp_path / "saved") == tmp_path / "saved" / "derivatives" / "sub-a"
    assert names_below(tmp_path / "saved") == names_below(tmp_path / "out")
    assert not found.quality["no_spine"] and found.warning == ""
    assert found.quality == json.loads((tmp_path / "saved/derivatives/sub-a/sub-a_quality.json").read_text())


def names_below(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_formats_and_measures_are_those_of_infer(tmp_path):
    scan = write_column(tmp_path / "sub-a_ct.nii.gz")
    wanted = {"formats": ("nifti", "seg.nrrd", "itksnap"), "measure": True}
    assert infer(settings_for(scan, output=tmp_path / "out", **wanted)) == 0
    found = segment(scan, device="cpu")
    found.save(tmp_path / "saved", **wanted)
    assert names_below(tmp_path / "saved") == names_below(tmp_path / "out")
    for name in ("sub-a_measurements.csv", "sub-a_angles.json", "sub-a_labels.txt"):
        saved, written = (tmp_path / place / "derivatives" / "sub-a" / name for place in ("saved", "out"))
        assert saved.read_text() == written.read_text()
    with pytest.raises(ValueError, match=r"received \['dicom'\]"):
        found.save(tmp_path / "other", formats=("dicom",))
    assert not (tmp_path / "other").exists()


def test_a_flat_scan_has_no_vertebra_and_its_files_are_those_of_infer(tmp_path):
    scan = tmp_path / "slice.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full((60, 60, 1), 200, np.int16), np.eye(4)), scan)
    found = segment(scan, device="cpu")
    assert found.quality["no_spine"] and found.table.empty and "no vertebra found: " in found.warning
    assert infer(settings_for(scan, output=tmp_path / "out")) == 0
    folder = found.save(tmp_path / "saved")
    written = json.loads(
        (mask_path(tmp_path / "out", "sub-slice").parent / "sub-slice_settings.json").read_text()
    )
    saved = json.loads((folder / "sub-slice_settings.json").read_text())
    assert saved["networks"] == written["networks"] == {}


def test_an_image_gives_what_its_file_gives(tmp_path):
    scan = write_column(tmp_path / "sub-a_ct.nii.gz")
    of_file, of_image = segment(scan, device="cpu"), segment(nibabel.load(scan), device="cpu")
    np.testing.assert_array_equal(of_image.labels.get_fdata(), of_file.labels.get_fdata())
    assert of_image.table["name"].tolist() == of_file.table["name"].tolist()
    for name, centre in of_file.centres_mm.items():
        np.testing.assert_allclose(of_image.centres_mm[name], centre, atol=1e-3)


def test_what_is_no_scan_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        segment(tmp_path / "none.nii.gz", device="cpu")
    with pytest.raises(ValueError, match="received ndarray"):
        segment(np.zeros((4, 4, 4)), device="cpu")
    for name in ("sub-a_ct.nii.gz", "sub-b_ct.nii.gz"):
        write_column(tmp_path / name)
    with pytest.raises(ValueError, match="expected one scan, found 2"):
        segment(tmp_path, device="cpu")
    with pytest.raises(ValueError, match="the image: expected a volume with 3 axes"):
        segment(nibabel.Nifti1Image(np.zeros((4, 4), np.int16), np.eye(4)), device="cpu")


def test_other_networks_do_not_stand_in_for_missing_ones(tmp_path):
    scan = write_column(tmp_path / "sub-a_ct.nii.gz")
    with pytest.raises(ValueError, match=r"segmentation: expected a trained network"):
        segment(scan, models=tmp_path / "models", device="cpu")


def test_a_gpu_that_is_not_there_is_a_value_error(tmp_path, monkeypatch):
    from utils.learning import runtime

    monkeypatch.setattr(runtime.tf.config, "list_physical_devices", lambda kind: [])
    scan = write_column(tmp_path / "sub-a_ct.nii.gz")
    with pytest.raises(ValueError, match="Expected a GPU"):
        segment(scan, device="gpu")
    with pytest.raises(ValueError, match="auto or gpu or cpu, received 'cuda'"):
        segment(scan, device="cuda")


def test_the_import_loads_nothing_that_is_slow():
    code = "import sys; from utils import prediction; print(sorted({'tensorflow', 'numpy'} & {*sys.modules}))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"
