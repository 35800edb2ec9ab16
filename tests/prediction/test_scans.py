"""Which scans a folder gives, and how they are named."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.imaging.dicom_series import write_enhanced, write_series
from tests.imaging.test_damaged_inputs import as_anybody
from utils.imaging.volume import Volume
from utils.prediction.keys import tell_apart
from utils.prediction.scans import find_scans

# Files


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_with_verse_cts_gives_only_those(tmp_path):
    touch(tmp_path, "rawdata/sub-b/sub-b_dir-ax_ct.nii.gz", "rawdata/sub-a/sub-a_ct.nii.gz", "other.nii.gz")
    touch(tmp_path, "derivatives/sub-a/sub-a_seg-vert_msk.nii.gz", "notes.txt", "x/c_CT.nii.gz")
    write_series(tmp_path / "dicom", ct())
    found = find_scans([tmp_path])
    assert [scan.key for scan in found.scans] == ["sub-a", "sub-b_dir-ax", "sub-c_CT"] and not found.bad
    left_out = [f"{tmp_path / 'other.nii.gz'}", f"{tmp_path / 'dicom'}: series 3"]
    assert [line.partition(": left out")[0] for line in found.skipped] == left_out


def test_any_other_folder_gives_all_but_masks(tmp_path):
    touch(tmp_path, "one.nii", "deep/two.nii.gz", "one_msk.nii", "two_seg.nii.gz", "x_seg-vert_msk.nii.gz")
    touch(tmp_path, "three_segment.nii", "report.pdf")
    found = find_scans([tmp_path])
    assert sorted(scan.path.name for scan in found.scans) == ["one.nii", "three_segment.nii", "two.nii.gz"]
    assert sorted(scan.key for scan in found.scans) == ["sub-one", "sub-three_segment", "sub-two"]
    assert not found.bad


def test_masks_are_known_by_any_usual_name(tmp_path):
    touch(tmp_path, "my_scan.nii.gz", "my_mask.nii.gz", "mask.nii", "a-segmentation.nii.gz", "LABELS_2.nii")
    touch(tmp_path, "masked.nii.gz", "unlabelled.nii")
    found = find_scans([tmp_path])
    names = sorted(scan.path.name for scan in found.scans)
    assert names == ["masked.nii.gz", "my_scan.nii.gz", "unlabelled.nii"]
    touch(tmp_path, "deep/sub-seg01_ct.nii.gz")
    found = find_scans([tmp_path])
    assert [scan.key for scan in found.scans] == ["sub-seg01"] and not found.bad


def test_inputs_that_give_no_scan_are_named(tmp_path):
    touch(tmp_path, "a_msk.nii.gz")
    (tmp_path / "empty").mkdir()
    inputs = [tmp_path / "a_msk.nii.gz", tmp_path / "empty", tmp_path / "absent.nii"]
    found = find_scans(inputs)
    assert not found.scans
    assert [str(path) in line for path, line in zip(inputs, found.bad)] == [True] * 3


def test_a_file_named_twice_is_one_scan(tmp_path):
    touch(tmp_path, "sub-a_ct.nii.gz")
    found = find_scans([tmp_path, tmp_path / "sub-a_ct.nii.gz"])
    assert len(found.scans) == 1


def test_files_of_every_format_are_scans_named_by_the_rules_of_nifti(tmp_path):
    touch(tmp_path, "a.nrrd", "b.NHDR", "c.mha", "sub-d_dir-ax_ct.mhd", "d.raw", "e.seg.nrrd", "f_mask.mha")
    found = find_scans([tmp_path])
    assert [scan.key for scan in found.scans] == ["sub-a", "sub-b", "sub-c", "sub-d_dir-ax"] and not found.bad


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["a.nii", "b.nii"], ["sub-a", "sub-b"]),
        (["s1/ct.nii", "s2/ct.nii"], ["sub-s1-ct", "sub-s2-ct"]),
        (["s1/sub-a_dir-ax_ct.nii", "s2/sub-a_dir-ax_ct.nii"], ["sub-s1-a_dir-ax", "sub-s2-a_dir-ax"]),
        (["1.23.nii", "12.3.nii"], ["sub-123_hash-#", "sub-123_hash-#"]),
        (["a.nrrd", "a.nii"], ["sub-a_hash-#", "sub-a_hash-#"]),
    ],
)
@pytest.mark.parametrize("is_copy", [False, True])
def test_scans_of_one_name_are_told_apart_by_folder_or_content(tmp_path, names, keys, is_copy):
    for name in names:
        touch(tmp_path, name)
        (tmp_path / name).write_text("same" if is_copy else name)
    scans = [found for name in names for found in find_scans([tmp_path / name]).scans]
    named, lines = tell_apart(scans, tmp_path / "out")
    found = [scan.key for scan in named]
    assert [re.sub("hash-[0-9a-f]{8}$", "hash-#", key) for key in found] == keys
    assert len(set(found)) == 2 and len(lines) == (keys[0] != "sub-a")


def test_a_name_in_another_script_gives_a_key(tmp_path):
    touch(tmp_path, "patient7.nii.gz", "\u60a3\u8005.nii.gz")
    hashed = hashlib.sha256("\u60a3\u8005".encode()).hexdigest()[:8]
    assert {scan.key for scan in find_scans([tmp_path]).scans} == {"sub-patient7", f"sub-{hashed}"}


# DICOM


def ct() -> Volume:
    data = np.random.default_rng(5).integers(-1000, 999, (4, 5, 10)).astype(np.int16)
    return Volume(data, np.diag([-1.0, -1, 1, 1]))


def test_every_ct_series_of_a_folder_is_one_scan_and_the_others_are_named(tmp_path):
    bone = write_series(tmp_path / "x", ct(), SeriesDescription="Bone 1.0 / Br62")
    soft = write_series(tmp_path / "x", ct(), names=[f"s{i}" for i in range(10)], SeriesNumber=12)
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_series(tmp_path / "y", ct(), ImageType=scout, SeriesDescription="Scout", SeriesNumber=1)
    touch(tmp_path, "notes.txt", "DICOMDIR", "x/.hidden.dcm")
    found = find_scans([tmp_path])
    assert [(scan.key, scan.path) for scan in found.scans] == [
        ("sub-P01_series-3_desc-Bone10Br62", tmp_path / "x"),
        ("sub-P01_series-12", tmp_path / "x"),
    ]
    assert [set(scan.series) for scan in found.scans] == [set(bone), set(soft)]
    assert found.skipped == [f"{tmp_path / 'y'}: series 1 (Scout): skipped: a localiser."] and not found.bad
    assert found.scans[0].name == f"{tmp_path / 'x'} (sub-P01_series-3_desc-Bone10Br62)"


def test_a_series_lies_in_any_number_of_folders(tmp_path):
    files = write_series(tmp_path, ct(), names=[f"{i % 3}/deep/{i}" for i in range(10)], PatientID="")
    (scan,) = find_scans([tmp_path]).scans
    assert scan.path == tmp_path and set(scan.series) == set(files)
    assert scan.key.startswith("sub-") and scan.key.endswith("_series-3")


def test_series_of_one_number_get_different_keys_whatever_lies_beside_them(tmp_path):
    for name in "ab":
        write_series(tmp_path / name, ct(), SeriesInstanceUID=f"1.2.{ord(name)}")
    keys = [scan.key for scan in find_scans([tmp_path]).scans]
    assert len(set(keys)) == 2 and all(key.startswith("sub-P01_series-3_uid-") for key in keys)
    assert keys == [scan.key for scan in find_scans([tmp_path, tmp_path]).scans]


def test_a_folder_without_a_ct_series_says_why(tmp_path):
    write_series(tmp_path, ct(), Modality="MR")
    (line,) = find_scans([tmp_path]).bad
    assert line.startswith(f"{tmp_path}: expected a folder with CT scans, found none in it: ")
    assert "skipped: modality MR, not CT" in line


def test_a_dicom_file_is_no_scan_by_itself(tmp_path):
    (file, *_) = write_series(tmp_path, ct())
    (line,) = find_scans([file]).bad
    assert line == f"{file}: expected the folder of a DICOM series, found a file of one."


def test_broken_dicom_files_are_bad(tmp_path):
    files = write_series(tmp_path, ct(), names=[f"{i}.dcm" for i in range(10)])
    (tmp_path / "text.dcm").write_text("no image")
    found = find_scans([tmp_path])
    assert len(found.scans) == 1 and len(found.scans[0].series) == len(files)
    assert [line.partition(":")[0] for line in found.bad] == [str(tmp_path / "text.dcm")]


@pytest.mark.parametrize(("ending", "word"), [(".dcm", "And 38 more such."), ("", "40 files, none")])
def test_files_without_the_mark_of_dicom_give_one_short_line(tmp_path, ending, word):
    for number in range(40):
        (tmp_path / f"{number}{ending}").write_bytes(b"no preamble")
    (line,) = find_scans([tmp_path]).bad
    assert word in line and "DICM" in line and len(line) < 1000


def test_a_file_with_a_frame_a_slice_is_a_scan_by_itself_and_in_its_folder(tmp_path):
    file = write_enhanced(tmp_path / "image", ct())
    scans = [find_scans([path]).scans for path in (file, tmp_path)]
    assert scans[0] == scans[1] and scans[0][0].series == (file,)
    assert scans[0][0].key == "sub-P01_series-3"


def test_a_pipe_is_named_and_the_others_go_on(tmp_path):
    write_series(tmp_path, ct(), names=[f"{i}.dcm" for i in range(10)])
    for name in ("pipe.dcm", "pipe"):
        os.mkfifo(tmp_path / name)
    found = find_scans([tmp_path])
    assert len(found.scans) == 1
    assert found.bad == [f"{tmp_path / 'pipe.dcm'}: expected a DICOM file, found no regular file."]


def test_what_may_not_be_read_is_named_and_the_others_go_on():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        top = Path(name)
        write_series(top, ct())
        touch(top, "closed/a.nii", "empty/b.txt", "lost+found/c.nii")
        (top / "d").write_bytes(b"content")
        top.chmod(0o755)
        for name in ("closed", "lost+found", "d"):
            (top / name).chmod(0)
        with as_anybody():
            found = find_scans([top, top / "closed" / "a.nii"])
            alone = find_scans([top / "empty", top / "d"])
        for name in ("closed", "lost+found"):
            (top / name).chmod(0o755)
    assert len(found.scans) == 1 and not alone.scans
    assert found.bad == [
        f"{top / 'closed'}: expected a folder that may be read, found Permission denied.",
        f"{top / 'd'}: expected a DICOM file, found Permission denied.",
        f"{top / 'closed' / 'a.nii'}: expected a scan or a folder, found Permission denied.",
    ]
    assert alone.bad[1] == f"{top / 'd'}: expected a DICOM file, found Permission denied."


def test_patients_of_two_folders_whose_letters_are_the_same_are_told_apart(tmp_path):
    for folder, patient in (("a", "1-23"), ("b", "12-3")):
        write_series(tmp_path / folder, ct(), PatientID=patient)
    scans = find_scans([tmp_path / "a", tmp_path / "b"]).scans
    assert [scan.key for scan in scans] == ["sub-123_series-3"] * 2
    named, _ = tell_apart(scans, tmp_path / "out")
    assert [scan.key for scan in named] == ["sub-a-123_series-3", "sub-b-123_series-3"]


def test_patients_whose_letters_are_the_same_are_two_scans(tmp_path):
    for number, patient in enumerate(("1-23", "12-3")):
        names = [f"{number}{place}" for place in range(10)]
        write_series(tmp_path, ct(), names=names, PatientID=patient, SeriesInstanceUID="1.2.3")
    scans = find_scans([tmp_path, tmp_path]).scans
    assert len(scans) == 2 and len({scan.key for scan in scans}) == 2
    assert all(scan.key.startswith("sub-123_series-3_uid-") for scan in scans)
