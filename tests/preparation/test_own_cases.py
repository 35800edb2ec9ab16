"""A user's own pair as a VerSe case."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from tests.imaging.dicom_series import write_series
from utils.download.data_set import get_data
from utils.imaging.grids import oriented
from utils.imaging.nifti import read_pair, write_volume
from utils.imaging.volume import Volume
from utils.preparation.own_cases import add_own_case, own_key
from utils.settings import DataSettings
from utils.verse.cases import index_cases

AFFINE = np.array([[-1.0, 0, 0, 10], [0, -1.0, 0, 20], [0, 0, 2.0, -5], [0, 0, 0, 1]])


def put_pair(folder, *, label=20, hu=40, name="My scan-1.nii.gz", mask_shape=(6, 6, 8)):
    ct = np.full((6, 6, 8), hu, np.int16)
    mask = np.zeros(mask_shape)  # float64, as some masks of VerSe are
    mask[2:4, 2:4, 2:5] = label
    write_volume(folder / name, Volume(ct, AFFINE))
    write_volume(folder / f"labels of {name}", Volume(mask, AFFINE))
    return {"ct": folder / name, "mask": folder / f"labels of {name}"}


def settings(tmp_path, pair, **changes):
    return DataSettings(source="pairs", data_dir=tmp_path / "data", **pair, **changes)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pair_becomes_a_complete_case(tmp_path):
    pair = put_pair(tmp_path)
    assert add_own_case(settings(tmp_path, pair, split="validation")) == []
    (case,) = index_cases(tmp_path / "data")
    assert (case.key, case.split, case.missing()) == ("sub-Myscan-1", "validation", [])
    assert case.ct == tmp_path / "data/dataset-ownvalidation/rawdata/sub-Myscan-1/sub-Myscan-1_ct.nii.gz"
    ct, mask = read_pair(case.ct, case.mask)
    assert ct.data.dtype == np.int16 and (ct.data == 40).all()
    assert mask.data.dtype == np.uint8 and np.allclose(mask.affine, AFFINE)
    header, point = json.loads(case.centroids.read_text())
    assert header["source"] == "mask" and header["direction"] == ["L", "P", "S"]
    assert point == {"label": 20, "X": 2.5, "Y": 2.5, "Z": 3.0}


def test_a_pair_that_takes_too_much_memory_is_refused_with_the_option_that_allows_it(tmp_path):
    pair = put_pair(tmp_path)
    with pytest.raises(ValueError, match=r"at most 1e-09 GB \(--max-gigabytes\), found one of"):
        add_own_case(settings(tmp_path, pair, max_gigabytes=1e-9))
    assert not contents(tmp_path / "data")


def test_the_same_pair_again_changes_nothing_and_completes_what_is_missing(tmp_path):
    asked = settings(tmp_path, put_pair(tmp_path))
    add_own_case(asked)
    before = contents(tmp_path / "data")
    add_own_case(asked)
    assert contents(tmp_path / "data") == before
    index_cases(tmp_path / "data")[0].ct.unlink()
    add_own_case(asked)
    assert index_cases(tmp_path / "data")[0].complete


@pytest.mark.parametrize("other", [{"label": 21}, {"hu": 41}])
def test_another_pair_of_that_name_is_refused_and_nothing_overwritten(tmp_path, other):
    add_own_case(settings(tmp_path, put_pair(tmp_path)))
    before = contents(tmp_path / "data")
    pair = put_pair(tmp_path / "second", **other)
    with pytest.raises(ValueError, match="other content"):
        add_own_case(settings(tmp_path, pair))
    assert contents(tmp_path / "data") == before


def test_a_patient_may_not_join_a_second_split(tmp_path):
    pair = put_pair(tmp_path)
    add_own_case(settings(tmp_path, pair))
    with pytest.raises(ValueError, match=r"sub-Myscan-1 already at .*dataset-owntraining"):
        add_own_case(settings(tmp_path, pair, split="test"))
    assert [case.split for case in index_cases(tmp_path / "data")] == ["training"]


def test_keys_that_differ_in_the_letters_alone_are_one(tmp_path):
    pair = put_pair(tmp_path)
    add_own_case(settings(tmp_path, pair, key="sub-mine"))
    before = contents(tmp_path / "data")
    for split in ("training", "test"):
        with pytest.raises(ValueError, match="expected a new case, found sub-Mine already"):
            add_own_case(settings(tmp_path, pair, key="sub-Mine", split=split))
    assert contents(tmp_path / "data") == before


@pytest.mark.parametrize("bad", ["shape", "truncated", "background", "unknown label", "absent"])
def test_a_bad_pair_is_one_line_with_status_1_and_writes_nothing(tmp_path, bad, capsys):
    label = {"background": 0, "unknown label": 27}.get(bad, 20)
    pair = put_pair(tmp_path, label=label, mask_shape=(6, 6, 9) if bad == "shape" else (6, 6, 8))
    if bad == "truncated":
        pair["mask"].write_bytes(pair["mask"].read_bytes()[:-12])
    if bad == "absent":
        pair["mask"].unlink()
    assert get_data(settings(tmp_path, pair), sources={"pairs": add_own_case}) == 1
    told = capsys.readouterr().err
    assert str(pair["mask"]) in told and "expected" in told and told.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_keys():
    assert own_key(Path("a/chest_ct.nii.gz")) == "sub-chest_ct"
    assert own_key(Path("sub-verse014_ct.nii.gz")) == "sub-verse014"
    assert own_key(Path("sub-gl003_dir-ax_ct.nii.gz")) == "sub-gl003_dir-ax"
    assert own_key(Path("sub-gl003_dir-ax_ct.nrrd")) == "sub-gl003_dir-ax"
    assert own_key(Path("a/My scan-1.seg.NRRD")) == "sub-Myscan-1seg"
    assert own_key(Path("scan.1.nii.gz")) == "sub-scan1" != own_key(Path("scan.2.nii.gz"))
    with pytest.raises(ValueError, match="letters or digits"):
        own_key(Path("__.nii.gz"))


def test_a_case_takes_the_key_that_is_given(tmp_path):
    pair = put_pair(tmp_path)
    add_own_case(settings(tmp_path, pair, key="sub-real-01"))
    (case,) = index_cases(tmp_path / "data")
    assert (case.key, case.complete) == ("sub-real-01", True)
    for key in ("real", "sub-", "sub-a/b", "sub-a/../../../sub-x", "../sub-a", "sub-a\x1b[31m", "sub-a\n"):
        with pytest.raises(ValueError, match="--key: expected"):
            add_own_case(settings(tmp_path, pair, key=key))


def test_a_mask_may_enter_alone(tmp_path):
    pair = put_pair(tmp_path)
    asked = settings(tmp_path, {"mask": pair["mask"]}, key="sub-real-02")
    assert get_data(asked, sources={"pairs": add_own_case}) == 0
    assert get_data(asked, sources={"pairs": add_own_case}) == 0
    (case,) = index_cases(tmp_path / "data")
    assert (case.key, case.missing()) == ("sub-real-02", ["CT"])


#: Right-angled and oblique by 20 degrees, with a handedness that slices of DICOM can have.
C, S = np.cos(np.radians(20)), np.sin(np.radians(20))
TILTED = np.array([[-0.8, 0, 0, 10], [0, -0.8 * C, -2 * S, 20], [0, -0.8 * S, 2 * C, -5], [0, 0, 0, 1]])


def labelled_scan():
    """A CT and a mask with T13 above L1, all voxels different."""
    ct = Volume(np.arange(6 * 7 * 12, dtype=np.int16).reshape(6, 7, 12) - 200, TILTED)
    labels = np.zeros(ct.shape, np.uint8)
    labels[2:4, 2:5, 2:5], labels[2:4, 2:5, 7:9] = 20, 28
    return ct, Volume(labels, TILTED)


def put_image(path, volume):
    """Write a volume in the format that the path's end says; without an end as a DICOM series."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        write_volume(path, volume)
    elif path.suffix:
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.data.T))
        lps = np.diag([-1, -1, 1, 1]) @ volume.affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        SimpleITK.WriteImage(image, str(path))
    else:
        write_series(path, Volume(volume.data.astype(np.int16), volume.affine))
    return path


@pytest.mark.parametrize("ct_name", ["mine.nii.gz", "mine.nrrd", "mine.mha", "mine"])
@pytest.mark.parametrize("mask_name", ["labels.nii", "labels.nrrd", "labels.mhd", "labels"])
def test_a_pair_of_any_formats_is_the_same_case(tmp_path, ct_name, mask_name, capsys):
    ct, mask = labelled_scan()
    pair = {"ct": put_image(tmp_path / ct_name, ct), "mask": put_image(tmp_path / mask_name, mask)}
    asked = settings(tmp_path, pair)
    assert get_data(asked, sources={"pairs": add_own_case}) == 0, capsys.readouterr().err
    (case,) = index_cases(tmp_path / "data")
    assert (case.key, case.missing()) == ("sub-mine", [])
    written_ct, written_mask = read_pair(case.ct, case.mask)
    for written, original in ((written_ct, ct), (written_mask, mask)):
        assert np.array_equal(written.data, original.data)
        assert np.allclose(written.affine, TILTED, atol=1e-4)
    before = contents(tmp_path / "data")
    assert get_data(asked, sources={"pairs": add_own_case}) == 0
    assert contents(tmp_path / "data") == before


def test_a_mask_whose_axes_are_turned_lies_where_it_lay(tmp_path):
    """Programs that write NIfTI from DICOM flip the rows and may put the axes in another order."""
    ct, mask = labelled_scan()
    turned = oriented(mask, ("S", "R", "A"))
    assert turned.shape != mask.shape
    pair = {"ct": put_image(tmp_path / "mine", ct), "mask": put_image(tmp_path / "labels.nii", turned)}
    (tmp_path / "mine" / "readme.txt").write_text("exported for the study")
    add_own_case(settings(tmp_path, pair))
    (case,) = index_cases(tmp_path / "data")
    assert np.array_equal(read_pair(case.ct, case.mask)[1].data, mask.data)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes on this system")
@pytest.mark.timeout(60)
def test_a_pipe_among_the_files_of_a_series_is_not_waited_for(tmp_path):
    ct, mask = labelled_scan()
    pair = {"ct": put_image(tmp_path / "mine", ct), "mask": put_image(tmp_path / "labels.nii", mask)}
    os.mkfifo(tmp_path / "mine" / "pipe")
    assert add_own_case(settings(tmp_path, pair)) == []


@pytest.mark.parametrize("wrong", ["shifted", "other labels", "two series", "no series"])
def test_a_pair_that_does_not_fit_is_one_line_in_any_format(tmp_path, wrong, capsys):
    ct, mask = labelled_scan()
    if wrong == "shifted":
        mask = Volume(mask.data, mask.affine + np.outer([0, 0, 1, 0], [0, 0, 0, 1]))
    if wrong == "other labels":
        mask = Volume(mask.data + np.uint8(100), mask.affine)
    pair = {"ct": put_image(tmp_path / "mine", ct), "mask": put_image(tmp_path / "labels.nrrd", mask)}
    if wrong == "two series":
        put_image(tmp_path / "mine" / "second", ct)
    if wrong == "no series":
        pair["ct"] = tmp_path / "empty"
        pair["ct"].mkdir()
    assert get_data(settings(tmp_path, pair), sources={"pairs": add_own_case}) == 1
    expected = {
        "shifted": f"{pair['mask']}: expected the position of",
        "other labels": f"{pair['mask']}: expected VerSe labels (0-25 or 28), found 100, 120, 128.",
        "two series": f"{pair['ct']}: expected a file ending in",
        "no series": "or a folder with one DICOM series, found no series",
    }[wrong]
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1
    assert not (tmp_path / "data").exists()
