"""DICOM series: the same volume as from NIfTI, what is skipped, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.imaging.dicom_series import (
    GROUPS,
    OBLIQUE,
    compress,
    texts,
    write_bare,
    write_enhanced,
    write_series,
)
from utils.imaging.dicom import find_series, read_series, series_bytes, series_grid
from utils.imaging.dicom_headers import is_dicom
from utils.imaging.nifti import read_ct, write_volume
from utils.imaging.volume import Volume

SHAPE = (8, 9, 12)


def affine_of(turn: np.ndarray) -> np.ndarray:
    """An affine to RAS+ from a turn in LPS+, .7 x .8 x 2.5 mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ turn * [0.7, 0.8, 2.5]
    affine[:3, 3] = (11.5, -20.25, 300)
    return affine


#: Scans as they lie, tilted, and with rows of images that run along the body, as in a sagittal reformat.
TURNS = {"axial": np.eye(3), "oblique": OBLIQUE, "sagittal": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0.0]])}


def ct_of(turn: np.ndarray = OBLIQUE) -> Volume:
    data = np.random.default_rng(1).integers(-1024, 3000, SHAPE).astype(np.int16)
    return Volume(data, affine_of(turn))


@pytest.mark.parametrize("turn", TURNS)
def test_a_series_in_any_order_and_folder_equals_the_same_volume_as_nifti(tmp_path, turn):
    ct = ct_of(TURNS[turn])
    shuffled = [f"{'deep/er' if place % 3 else 'top'}/{(7 * place) % 12:02}.ima" for place in range(12)]
    files = write_series(tmp_path / "dicom", ct, names=shuffled)
    write_volume(tmp_path / "ct.nii.gz", ct)
    (series,) = find_series(sorted(files)).scans
    found, expected = read_series(series.files), read_ct(tmp_path / "ct.nii.gz")
    assert found.data.dtype == expected.data.dtype == np.int16
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_allclose(found.affine, expected.affine, rtol=0, atol=1e-5)


def test_slices_are_stacked_along_their_normal_whatever_their_numbers_say(tmp_path):
    ct = ct_of(np.diag([1, 1, -1]))  # numbered from the top down: against the normal
    found = read_series(write_series(tmp_path, ct, InstanceNumber=lambda index: index + 1))
    np.testing.assert_array_equal(found.data, ct.data[..., ::-1])
    np.testing.assert_allclose(found.affine[:3, 3], (ct.affine @ [0, 0, SHAPE[2] - 1, 1])[:3], atol=1e-6)
    np.testing.assert_allclose(found.affine[:3, 2], -ct.affine[:3, 2], atol=1e-6)


def test_every_slice_is_rescaled_as_it_says(tmp_path):
    ct = ct_of()
    found = read_series(write_series(tmp_path, ct, RescaleSlope=lambda index: 1 + index / 4))
    scale = 1 + np.arange(SHAPE[2]) / 4
    np.testing.assert_array_equal(found.data, (ct.data.astype(float) + 1024) * scale - 1024)
    assert found.data.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Modality": "MR"}, "modality MR, not CT"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localiser"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}, "derived"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "a secondary image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "a secondary image"),
        ({"PhotometricInterpretation": "RGB"}, "colours"),
        ({"SeriesInstanceUID": lambda index: f"1.2.{index // 6}"}, "6 images, fewer than 10"),
    ],
)
def test_other_series_are_skipped_with_the_reason(tmp_path, changes, reason):
    found = find_series(write_series(tmp_path, ct_of(), SeriesDescription="Report", **changes))
    assert not found.scans and not found.bad
    assert all(f"{tmp_path}: series 3 (Report): skipped: " in line for line in found.skipped)
    assert all(reason in line for line in found.skipped) and found.skipped


def test_a_localiser_among_slices_is_left_out(tmp_path):
    kinds = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    files = write_series(tmp_path, ct_of(), ImageType=lambda index: kinds if index == 0 else kinds[:2])
    found = find_series(files)
    assert found.scans[0].files == tuple(files[1:])
    assert found.skipped == (f"{tmp_path}: series 3: 1 of 12 images left out: a localiser.",)


@pytest.mark.parametrize("keyword", ["PatientID", "FrameOfReferenceUID"])
def test_a_series_is_of_one_patient_and_one_frame_of_reference(tmp_path, keyword):
    for name in ("1.2", "1.3"):
        write_series(tmp_path / name, ct_of(), SeriesInstanceUID="1.2.3", **{keyword: name})
    found = find_series(sorted(tmp_path.rglob("IM*")))
    assert [(series.folder.name, len(series.files)) for series in found.scans] == [("1.2", 12), ("1.3", 12)]


def test_an_image_exported_twice_is_taken_once(tmp_path):
    files = write_series(tmp_path, ct_of())
    copies = [Path(shutil.copy(file, tmp_path / f"{file.name} (1)")) for file in files[3:6]]
    found = find_series([*files, *copies])
    assert [series.files for series in found.scans] == [tuple(files)]
    reason = "3 of 15 images left out: copies of others (same SOPInstanceUID, same bytes)."
    assert found.skipped == (f"{tmp_path}: series 3: {reason}",)


def test_series_of_one_folder_are_told_apart_and_sorted_by_number(tmp_path):
    later = write_series(tmp_path / "a", ct_of(), SeriesNumber=10)
    first = write_series(tmp_path / "a", ct_of(), names=[f"b{index}" for index in range(12)], SeriesNumber=9)
    found = find_series([*later, *first])
    assert [set(series.files) for series in found.scans] == [set(first), set(later)]
    assert found.scans[0].folder == tmp_path / "a"


def moved(direction: np.ndarray, count):
    """Positions of slices: `count` gives how many steps a slice lies along a direction, in LPS+."""
    lps = np.diag([-1, -1, 1, 1]) @ ct_of().affine
    return lambda index: texts(lps[:3, 3] + count(index) * (lps[:3, :3] @ direction))


REFUSED = {
    "a missing slice": (
        {"ImagePositionPatient": moved(np.array([0, 0, 1]), lambda index: index + (index > 4))},
        "expected slices 2.50 mm apart throughout, found 5.00 mm between IM0004 and IM0005",
    ),
    "a missing second slice": (
        {"ImagePositionPatient": moved(np.array([0, 0, 1]), lambda index: index + (index > 0))},
        "found 5.00 mm between IM0000 and IM0001",
    ),
    "two spacings": (
        {"ImagePositionPatient": moved(np.array([0, 0, 1]), lambda index: index * (1 + (index > 7)))},
        "slices 2.50 mm apart throughout",
    ),
    "a tilted gantry": (  # .8 mm a slice of 2.5 mm: 17.7 degrees
        {"ImagePositionPatient": moved(np.array([0, 1, 1]), lambda index: index)},
        "found them shifted by 17.7 degrees (a tilted gantry); straighten it, as dcm2niix does",
    ),
    "two phases": (
        {"ImagePositionPatient": moved(np.array([0, 0, 1]), lambda index: index // 2)},
        "expected one image a position, found 12 images at 6 positions",
    ),
    "no position": ({"ImagePositionPatient": None}, "expected position, orientation and spacing"),
    "no spacing": ({"PixelSpacing": None}, "expected position, orientation and spacing"),
    "two orientations": (
        {"ImageOrientationPatient": lambda index: [1, 0, 0, 0, 1, 0] if index % 2 else [1, 0, 0, 0, 0, -1]},
        "expected images of one orientation",
    ),
    "two sizes": (
        {"PixelSpacing": lambda index: [0.8 + index // 6, 0.7]},
        "expected images of one spacing",
    ),
    "several frames in a file": ({"NumberOfFrames": 3}, "found 3 frames in IM0000; convert it to NIfTI"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_even_stack_is_refused_with_what_was_found(tmp_path, what):
    changes, said = REFUSED[what]
    (series,) = find_series(write_series(tmp_path, ct_of(), **changes)).scans
    with pytest.raises(ValueError) as error:
        read_series(series.files)
    assert str(error.value).startswith(f"{tmp_path}: series 3: expected") and said in str(error.value)


def test_positions_rounded_as_scanners_do_are_no_gap(tmp_path):
    """1.25 mm rounded to a tenth gives steps of 1.2 and 1.3 mm, but no slice is off by a tenth of a step."""
    ct = Volume(ct_of().data, np.diag([-1, -1, 1.25, 1]))
    files = write_series(tmp_path, ct, ImagePositionPatient=lambda i: [0, 0, f"{1.25 * i + 1e-6:.1f}"])
    np.testing.assert_allclose(read_series(files).affine, np.diag([-1, -1, 13.8 / 11, 1]), atol=1e-6)


def test_broken_files_are_named(tmp_path):
    files = write_series(tmp_path, ct_of())
    whole = files[3].read_bytes()
    files[3].write_bytes(whole[:-60])
    with pytest.raises(ValueError, match=f"{files[3]}: expected a whole DICOM image"):
        read_series(files)
    files[3].write_bytes(whole[:132])
    files[4].write_bytes(whole[:132] + b"\x08\x00\x60\x00CS\xff")
    found = find_series(files)
    assert [line.partition(": expected a DICOM file")[0] for line in found.bad] == list(map(str, files[3:5]))
    assert found.scans[0].files == (*files[:3], *files[5:])


@pytest.mark.parametrize("shared", [(), ("PixelMeasuresSequence", "PlaneOrientationSequence")])
def test_frames_of_one_file_are_read_as_the_slices_that_they_are(tmp_path, shared):
    ct = ct_of()
    slopes = {"RescaleSlope": lambda index: 1 + index / 4}
    files = write_series(tmp_path / "slices", ct, **slopes)
    file = write_enhanced(tmp_path / "enhanced" / "1", ct, shared=shared, **slopes)
    (series,) = find_series([file]).scans
    assert series.files == (file,) and len(series.headers) == SHAPE[2]
    found, expected = read_series(series.files), read_series(files)
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert series_grid([file]).shape == SHAPE and series_bytes([file]) == 4 * ct.data.size


def test_a_localiser_among_frames_is_left_out(tmp_path):
    kinds = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    changes = {"ImageType": lambda index: kinds if index == 0 else [*kinds[:2], "AXIAL"]}
    file = write_enhanced(tmp_path / "1", ct_of(), **changes)
    found = find_series([file])
    assert found.skipped == (f"{tmp_path}: series 3: 1 of 12 images left out: a localiser.",)
    np.testing.assert_array_equal(read_series([file]).data, ct_of().data[..., 1:])


def test_a_frame_that_is_missing_is_named(tmp_path):
    gap = moved(np.array([0, 0, 1]), lambda index: index + (index > 4))
    file = write_enhanced(tmp_path / "1", ct_of(), ImagePositionPatient=gap)
    with pytest.raises(ValueError, match=r"found 5.00 mm between 1 \(frame 9\) and 1 \(frame 3\)"):
        read_series([file])


@pytest.mark.parametrize("group", GROUPS)
def test_frames_that_do_not_say_where_they_lie_are_refused(tmp_path, group):
    file = write_enhanced(tmp_path / "1", ct_of())
    found = pydicom.dcmread(file)
    delattr(found.PerFrameFunctionalGroupsSequence[3], group)
    found.save_as(file)
    with pytest.raises(ValueError, match=r"expected (position|RescaleSlope).*\(frame 4\)"):
        read_series([file])


def test_two_images_with_one_identifier_are_refused(tmp_path):
    files = write_series(tmp_path, ct_of(), SOPInstanceUID=lambda index: f"1.2.{min(index, 10)}")
    (series,) = find_series(files).scans
    said = "expected images of unlike identifiers, found IM0010 and IM0011 with one and unlike content"
    with pytest.raises(ValueError, match=said):
        read_series(series.files)


def test_an_image_that_is_not_rescaled_among_others_is_refused(tmp_path):
    files = write_series(tmp_path, ct_of())
    found = pydicom.dcmread(files[5])
    del found.RescaleSlope, found.RescaleIntercept
    found.save_as(files[5])
    with pytest.raises(ValueError, match="expected RescaleSlope and RescaleIntercept in all images"):
        read_series(files)


@pytest.mark.parametrize("is_implicit", [True, False])
def test_data_sets_without_preamble_are_read(tmp_path, is_implicit):
    files = write_series(tmp_path, ct_of())
    for file in files:
        write_bare(file, is_implicit=is_implicit)
    assert all(map(is_dicom, files))
    (series,) = find_series(files).scans
    np.testing.assert_array_equal(read_series(series.files).data, ct_of().data)


@pytest.mark.parametrize(
    "content", [b"", b"\x08\0\x05\0", b"\x08\0\x05\0CS\xff\xff", b"\x08\0\0\0\x04\0\0\0" * 9]
)
def test_what_only_begins_as_a_data_set_is_no_dicom(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert not is_dicom(tmp_path / "a")


def test_whatever_goes_wrong_in_a_header_is_said_of_its_file_alone(tmp_path):
    """Bits that are turned around, and sequences within sequences without end."""
    files = write_series(tmp_path, ct_of())
    whole = files[0].read_bytes()
    begin = whole.index(b"\xe0\x7f\x10\0")
    said = []
    for bit in range(8 * 132, 8 * begin, 23):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        broken = tmp_path / f"broken{bit}"
        broken.write_bytes(changed)
        found = find_series([broken, *files])
        assert any(set(series.files) >= set(files) for series in found.scans)
        said += found.bad
    item = b"\x40\0\x30\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    broken.write_bytes(whole[:begin] + item * 5000)
    said += find_series([broken]).bad
    assert len(said) > 5 and "recursion" in said[-1]
    assert all(line.startswith(f"{tmp_path}/broken") and ": expected " in line for line in said)
    assert all(line.isprintable() and len(line) < len(str(broken)) + 400 for line in said)


def test_a_pipe_is_no_dicom_file(tmp_path):
    os.mkfifo(tmp_path / "a.dcm")
    (tmp_path / "b.dcm").symlink_to("/dev/zero")
    found = find_series(sorted(tmp_path.iterdir()))
    assert found.bad == tuple(
        f"{tmp_path / name}: expected a DICOM file, found no regular file." for name in ("a.dcm", "b.dcm")
    )


def test_names_of_files_may_be_any_bytes(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    files = write_series(folder, ct_of(), names=[os.fsdecode(b"\xfc%d" % index) for index in range(12)])
    compress(files[3], "JPEG")
    (series,) = find_series(files).scans
    np.testing.assert_array_equal(read_series(series.files).data, ct_of().data)


def test_the_mark_of_dicom(tmp_path):
    (file, *_) = write_series(tmp_path, ct_of())
    (tmp_path / "short").write_bytes(b"DICM")
    assert is_dicom(file)
    assert not any(map(is_dicom, (tmp_path / "short", tmp_path, tmp_path / "absent")))
