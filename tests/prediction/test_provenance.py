"""By what a scan is known again: the content of its files, whatever their place and time."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.imaging.dicom_series import write_series
from utils.imaging.volume import Volume
from utils.prediction import provenance
from utils.prediction.provenance import is_same_scan, scan_identity
from utils.prediction.scans import Scan, find_scans


def only_scan(place: Path) -> Scan:
    (scan,) = find_scans([place]).scans
    return scan


def written_series(folder: Path) -> Scan:
    data = np.random.default_rng(5).integers(-1000, 999, (4, 5, 10)).astype(np.int16)
    write_series(folder, Volume(data, np.diag([-1.0, -1, 1, 1])))
    return only_scan(folder)


def flip_last_byte(file: Path) -> None:
    """Change the content; path, size and time of change stay."""
    before, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files whose content is hashed."""
    names, sha256_of = [], provenance.sha256_of
    monkeypatch.setattr(provenance, "sha256_of", lambda file: names.append(file.name) or sha256_of(file))
    return names


def test_a_file_is_known_by_its_hash(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"some scan")
    stat = (tmp_path / "a.nii").stat()
    assert scan_identity(only_scan(tmp_path)) == {
        **{"path": str(tmp_path / "a.nii"), "files": 1, "bytes": 9},
        **{"modified_ns": stat.st_mtime_ns, "changed_ns": stat.st_ctime_ns},
        "sha256": hashlib.sha256(b"some scan").hexdigest(),
    }


def test_a_touched_copied_or_renamed_file_is_the_same_scan_and_a_changed_one_is_not(tmp_path):
    file = tmp_path / "a.nii"
    file.write_bytes(b"some scan")
    known = scan_identity(only_scan(tmp_path))
    os.utime(file, ns=(1, 1))
    assert is_same_scan(only_scan(tmp_path), known)
    (tmp_path / "other").mkdir()
    shutil.copy(file, tmp_path / "other" / "sub-a_ct.nii")
    assert is_same_scan(only_scan(tmp_path / "other"), known)
    known = scan_identity(Scan(file, "sub-a"))
    flip_last_byte(file)
    assert not is_same_scan(Scan(file, "sub-a"), known)
    file.write_bytes(b"another scan")
    assert not is_same_scan(Scan(file, "sub-a"), known)


def test_a_series_is_the_same_in_other_folders_under_other_names_and_not_with_another_slice(tmp_path):
    first = written_series(tmp_path / "a")
    known = scan_identity(first)
    assert known["files"] == 10 and known["bytes"] == sum(file.stat().st_size for file in first.series)
    for number, file in enumerate(first.series):
        other = tmp_path / "b" / str(number % 3) / f"{9 - number}.dcm"
        other.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, other)
    elsewhere = only_scan(tmp_path / "b")
    assert scan_identity(elsewhere)["sha256"] == known["sha256"] and is_same_scan(elsewhere, known)
    assert is_same_scan(dataclasses.replace(first, series=first.series[::-1]), known)
    flip_last_byte(first.series[4])
    assert scan_identity(first)["sha256"] != known["sha256"] and not is_same_scan(first, known)
    assert not is_same_scan(dataclasses.replace(elsewhere, series=elsewhere.series[:-1]), known)


SEVERAL = ("LIST\n0.raw\n1.raw\n", "%d.raw 0 1 1\n")
HEADERS = {"a.mhd": "ObjectType = Image\nElementDataFile = ", "a.nhdr": "NRRD0004\ntype: short\ndata file: "}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("data_files", ["0.raw\n", *SEVERAL])
def test_the_voxels_beside_a_header_count_in_their_order(tmp_path, header, data_files):
    (tmp_path / header).write_text(HEADERS[header] + data_files)
    voxels = [tmp_path / f"{number}.raw" for number in range(1 + (data_files in SEVERAL))]
    for number, file in enumerate(voxels):
        file.write_bytes(bytes([number] * 8))
    scan = only_scan(tmp_path)
    known = scan_identity(scan)
    assert known["files"] == 1 + len(voxels) and is_same_scan(scan, known)
    flip_last_byte(voxels[-1])
    assert not is_same_scan(scan, known)
    flip_last_byte(voxels[-1])
    assert is_same_scan(scan, known)
    if data_files in SEVERAL:
        for number, file in enumerate(voxels):
            file.write_bytes(bytes([1 - number] * 8))
        assert not is_same_scan(scan, known)


def test_files_are_hashed_once_a_run_and_not_at_all_where_size_and_times_are_known(tmp_path, hashed):
    (tmp_path / "a.nii").write_bytes(b"some scan")
    scan = only_scan(tmp_path)
    known = scan_identity(scan)
    assert hashed == ["a.nii"] and is_same_scan(scan, known)
    provenance._content.cache_clear()  # as in another run
    assert is_same_scan(scan, known) and hashed == ["a.nii"]
    os.utime(tmp_path / "a.nii", ns=(1, 1))
    assert is_same_scan(scan, known) and is_same_scan(scan, known) and hashed == ["a.nii"] * 2
    (tmp_path / "a.nii").write_bytes(b"a longer scan")
    assert not is_same_scan(scan, known) and hashed == ["a.nii"] * 2


@pytest.mark.parametrize("known", [None, [], "a", {}, {"path": "a", "bytes": 9, "modified_ns": 1}])
def test_a_record_without_a_hash_is_that_of_another_scan(tmp_path, known, hashed):
    (tmp_path / "a.nii").write_bytes(b"some scan")
    if known and isinstance(known, dict):
        known = {"path": str(tmp_path / "a.nii"), "bytes": 9}
        known["modified_ns"] = (tmp_path / "a.nii").stat().st_mtime_ns
    assert not is_same_scan(only_scan(tmp_path), known) and not hashed


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"a\.nii: expected a scan, found no regular file"):
        scan_identity(Scan(tmp_path / "a.nii", "sub-a"))
