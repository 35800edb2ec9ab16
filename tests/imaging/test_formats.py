"""NRRD and MetaImage beside NIfTI, and numbers that cannot be Hounsfield units."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest

from tests.imaging import itk_files
from tests.imaging.dicom_series import OBLIQUE, write_series
from utils.imaging.formats import files_of_scan, hu_doubt, read_scan, scan_bytes
from utils.imaging.nifti import read_ct, read_mask, write_volume
from utils.imaging.volume import Volume

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
VERSE = DATA / "VerSe19/dataset-verse19training/rawdata/sub-verse014/sub-verse014_ct.nii.gz"
REAL = {"chest": DATA / "other-ct/chest_ct.nii.gz", "abdomen": DATA / "other-ct/abdomen_ct.nii.gz"}
REAL["verse014"] = VERSE


DIRECTIONS = {"space": "left-posterior-superior", "space directions": np.eye(3), "space origin": [0, 0, 0]}


def oblique_ct() -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ OBLIQUE * [0.7, 0.8, 2.5]
    affine[:3, 3] = (11.5, -20.25, 300)
    data = np.random.default_rng(2).integers(-1024, 3000, (7, 8, 9)).astype(np.int16)
    return Volume(data, affine)


def write_with_simpleitk(path: Path, ct: Volume, *, compressed: bool = False) -> Path:
    """Write a volume with SimpleITK, which reads its NIfTI twin: our own flip of axes is not used."""
    import SimpleITK

    write_volume(path.with_name("twin.nii"), ct)
    image = SimpleITK.ReadImage(str(path.with_name("twin.nii")))
    SimpleITK.WriteImage(image, str(path), compressed)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_any_format_gives_what_nifti_gives(tmp_path, suffix, compressed):
    path = write_with_simpleitk(tmp_path / f"ct{suffix}", oblique_ct(), compressed=compressed)
    found, expected = read_scan(path), read_ct(tmp_path / "twin.nii")
    assert found.data.dtype == np.int16
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_allclose(found.affine, expected.affine, rtol=0, atol=1e-5)
    assert scan_bytes(path) == 4 * 7 * 8 * 9
    voxels = files_of_scan(path)[1:]
    assert [file.name.split(".")[0] for file in voxels] == (["ct"] if suffix in (".nhdr", ".mhd") else [])


def test_nifti_goes_through_unchanged(tmp_path):
    write_volume(tmp_path / "ct.nii.gz", oblique_ct())
    found = read_scan(tmp_path / "ct.nii.gz")
    assert found.affine.tobytes() == nibabel.load(tmp_path / "ct.nii.gz").affine.tobytes()
    np.testing.assert_array_equal(found.data, oblique_ct().data)


def test_an_nrrd_in_ras_lies_where_it_says(tmp_path):
    header = {"space": "right-anterior-superior", "kinds": ["domain"] * 3, "space origin": [5, 6, 7]}
    header["space directions"] = [[0, -2, 0], [1, 0, 0], [0, 0, 3]]
    data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nrrd.write(str(tmp_path / "ct.nrrd"), data, header)
    found = read_scan(tmp_path / "ct.nrrd")
    np.testing.assert_array_equal(found.data, data)
    np.testing.assert_array_equal(found.affine, [[0, 1, 0, 5], [-2, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])


def test_numbers_of_other_types(tmp_path):
    ct = oblique_ct()
    wide = write_with_simpleitk(tmp_path / "wide.nrrd", Volume(ct.data.astype(np.int32), ct.affine))
    assert read_scan(wide).data.dtype == np.int16
    floats = ct.data.astype(np.float64) + 0.5
    floats[0, 0, 0] = np.nan
    nrrd.write(str(tmp_path / "float.nrrd"), floats, DIRECTIONS)
    found = read_scan(tmp_path / "float.nrrd").data
    assert found.dtype == np.float32 and found[0, 0, 0] == -1024
    np.testing.assert_array_equal(found.ravel()[1:], floats.ravel()[1:])


BROKEN = {
    "four axes": (
        np.zeros((2, 5, 5, 5), np.int16),
        {**DIRECTIONS, "space directions": [[np.nan] * 3, *np.eye(3)], "kinds": ["list"] + ["domain"] * 3},
        "expected a volume with 3 axes",
    ),
    "no space": (
        np.zeros((5, 5, 5), np.int16),
        {"spacings": [1, 1, 1]},
        "expected a field 'space' .* found none",
    ),
    "the scanner's space": (
        np.zeros((5, 5, 5), np.int16),
        {**DIRECTIONS, "space": "scanner-xyz"},
        "expected a field 'space' .*, found scanner-xyz",
    ),
    "no patient's space": (
        np.zeros((5, 5, 5), np.int16),
        {**DIRECTIONS, "space": "3D-right-handed"},
        "expected a field 'space' .*, found 3D-right-handed",
    ),
    "a slant": (
        np.zeros((5, 5, 5), np.int16),
        {**DIRECTIONS, "space directions": [[1, 0, 0], [0, 1, 0], [0, 0.3, 2]]},
        "expected axes at right angles, found one 8.5 degrees off",
    ),
    "metres": (
        np.zeros((5, 5, 5), np.int16),
        {**DIRECTIONS, "space directions": 1000 * np.eye(3)},
        "expected a scan under 4000 mm long",
    ),
    "no number": (np.full((5, 5, 5), np.nan, np.float32), DIRECTIONS, "found not one finite voxel"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_no_later_step_can_use_is_refused(tmp_path, what):
    data, header, said = BROKEN[what]
    nrrd.write(str(tmp_path / "ct.nrrd"), data, header)
    with pytest.raises(ValueError, match=said) as error:
        read_scan(tmp_path / "ct.nrrd")
    assert str(error.value).startswith(f"{tmp_path / 'ct.nrrd'}: ")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_broken_files_are_named(tmp_path, suffix):
    whole = write_with_simpleitk(tmp_path / f"ct{suffix}", oblique_ct()).read_bytes()
    for name, content in (("half", whole[: len(whole) // 2]), ("text", b"no image"), ("empty", b"")):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}{suffix}: expected an? ") as error:
            read_scan(path)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ValueError, match="no such file"):
        read_scan(tmp_path / f"absent{suffix}")
    huge = whole.replace(b"7 8 9", b"70000 80000 900")
    (tmp_path / f"huge{suffix}").write_bytes(huge)
    with pytest.raises(ValueError, match="expected a whole file, found"):
        read_scan(tmp_path / f"huge{suffix}")


# Hounsfield units


def test_an_invented_ct_is_believed_and_its_stored_numbers_are_not():
    tissue = np.random.default_rng(3).normal(40, 60, (9, 9, 9))
    tissue[0], tissue[1] = -1000, 1600
    assert hu_doubt(Volume(tissue, np.eye(4))) == ""
    stored = tissue + 1024
    assert hu_doubt(Volume(stored, np.eye(4))) == "values from 24 to 2624, probably not rescaled to HU"
    stored[2] = -2000  # padding must not hide it
    assert "not rescaled" in hu_doubt(Volume(stored, np.eye(4)))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (0, 255), (30, 900)])
def test_numbers_of_no_scale_with_air_or_fat_are_doubted(low, high):
    numbers = np.linspace(low, high, 1000).reshape(10, 10, 10)
    said = hu_doubt(Volume(numbers, np.eye(4)))
    assert said.startswith(f"values from {low} to {high}, ") and said.endswith("no HU")


@pytest.mark.parametrize("name", REAL)
def test_real_scans_are_believed_whole_and_as_padded_crops(name):
    if not REAL[name].exists():
        pytest.skip(f"{REAL[name]} is not there")
    ct = read_ct(REAL[name])
    assert hu_doubt(ct) == ""
    raw = np.maximum(ct.data, -1024).astype(np.int32) + 1024
    assert "not rescaled" in hu_doubt(Volume(raw, ct.affine))
    mask_path = Path(str(REAL[name]).replace("rawdata", "derivatives").replace("_ct.", "_seg-vert_msk."))
    kept = read_mask(mask_path).data > 0
    for padding in (-1024, -2048):
        assert hu_doubt(Volume(np.where(kept, ct.data, padding), ct.affine)) == ""


# Imports


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nrrd", "ct.mha"])
def test_a_run_without_dicom_does_not_load_simpleitk(tmp_path, name):
    write_volume(tmp_path / "ct.nii.gz", oblique_ct())
    (tmp_path / "ct.nrrd").write_bytes(itk_files.nrrd())
    (tmp_path / "ct.mha").write_bytes(itk_files.meta())
    command = "import sys; from pathlib import Path; from utils.imaging.formats import read_scan\n"
    command += f"read_scan(Path({str(tmp_path / name)!r}))\n"
    command += "print([name for name in ('SimpleITK', 'nrrd', 'tensorflow') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_series_is_read_by_its_files(tmp_path):
    ct = Volume(np.random.default_rng(4).integers(-1024, 999, (5, 6, 10)).astype(np.int16), np.eye(4))
    ct = Volume(ct.data, np.diag([-1.0, -1, 1, 1]))
    files = write_series(tmp_path, ct)
    np.testing.assert_array_equal(read_scan(tmp_path, files).data, ct.data)
    assert scan_bytes(tmp_path, files) == 4 * 5 * 6 * 10 and files_of_scan(tmp_path, files) == files
