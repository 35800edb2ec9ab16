"""What was read of a scan stands beside its prediction, and reads back."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.imaging.dicom_series import write_series
from tests.imaging.examples import oblique_affine
from utils.imaging.volume import Volume
from utils.prediction.case import ANATOMICAL, CasePrediction, Numbering
from utils.prediction.case_facts import relabelled_quality
from utils.prediction.papers import ScanPapers, paper_lines, papers_of, scan_papers
from utils.prediction.quality import CaseQuality, read_quality, write_quality
from utils.prediction.scans import Scan, find_scans

PAPERS = ScanPapers(
    *("NIfTI", (186, 186, 40), (1.0, 1.0, 2.0), "PIR", 12.34, "", 0.187),
    left_out=("2 of 42 images left out: a localiser",),
    assumed=("RAS, as no axes are given",),
)


def test_papers_say_what_was_read():
    data = np.zeros((4, 5, 6), np.int16)
    data[0], data[1, 0, 0] = -2048, -1024
    scan = Scan(Path("a/ct.nrrd"), "sub-a", left_out=("one",))
    found = scan_papers(scan, Volume(data, oblique_affine((0.7, 0.8, 1.25))), hu_doubt="odd", assumed=["RAS"])
    # Turned by .3 and .2 radians: the axis that moves most lies arccos(cos .3 cos .2) off.
    degrees = round(float(np.degrees(np.arccos(np.cos(0.3) * np.cos(0.2)))), 2)
    assert found == ScanPapers(
        *("NRRD", (4, 5, 6), (0.7, 0.8, 1.25), "LAS", degrees, "odd", round(31 / 120, 4)),
        *(("one",), ("RAS",)),
    )


@pytest.mark.parametrize(
    ("name", "series", "form"),
    [
        ("ct.nii", 0, "NIfTI"),
        ("ct.NII.gz", 0, "NIfTI"),
        ("ct.NHDR", 0, "NRRD"),
        ("ct.mha", 0, "MetaImage"),
        ("folder", 12, "DICOM, 12 files"),
    ],
)
def test_the_form_is_named(name, series, form):
    scan = Scan(Path(name), "sub-a", (Path("slice"),) * series)
    assert scan_papers(scan, Volume(np.zeros((2, 2, 2)), np.eye(4)), hu_doubt="").form == form


def test_what_a_series_leaves_out_is_known_with_its_scan(tmp_path):
    ct = Volume(np.zeros((5, 6, 12), np.int16), np.diag([-1.0, -1, 2, 1]))

    def kind_of(index: int) -> list[str]:
        return ["ORIGINAL", "PRIMARY", "LOCALIZER" if index == 0 else "AXIAL"]

    files = write_series(tmp_path, ct, ImageType=kind_of, SOPInstanceUID=lambda index: f"1.2.{index}")
    shutil.copy(files[3], tmp_path / "again")
    (scan,) = find_scans([tmp_path]).scans
    assert scan.left_out == (
        "1 of 13 images left out: copies of others (same SOPInstanceUID, same bytes)",
        "1 of 12 images left out: a localiser",
    )
    assert len(scan.series) == 11


def test_papers_read_back_and_older_files_have_none(tmp_path):
    path = tmp_path / "sub-a_quality.json"
    quality = CaseQuality("sub-a", "count", papers=PAPERS)
    write_quality(path, quality)
    assert read_quality(path) == quality
    plain = json.loads(path.read_text())
    plain["papers"]["of the future"] = 1
    path.write_text(json.dumps(plain))
    assert read_quality(path) == quality
    del plain["papers"]
    path.write_text(json.dumps(plain))
    assert read_quality(path) == CaseQuality("sub-a", "count")


@pytest.mark.parametrize("damage", [{"shape": None}, {"oblique_degrees": "much"}, {"spacing_mm": 3}])
def test_papers_that_hold_something_else_are_named(tmp_path, damage):
    path = tmp_path / "sub-a_quality.json"
    plain = dataclasses.asdict(CaseQuality("sub-a", "count", papers=PAPERS))
    path.write_text(json.dumps({**plain, "papers": {**plain["papers"], **damage}}))
    with pytest.raises(ValueError, match=r"sub-a_quality\.json: expected what is known about a case, found"):
        read_quality(path)


def test_new_labels_keep_the_papers():
    volume = Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    prediction = CasePrediction("sub-a", volume, volume, Numbering((), ANATOMICAL), (), {})
    assert relabelled_quality(prediction, CaseQuality("sub-a", "count", papers=PAPERS)).papers == PAPERS


def test_a_reader_sees_what_counts():
    assert paper_lines(PAPERS) == {
        "Form": "NIfTI",
        "Voxels": "186 × 186 × 40 of 1 × 1 × 2 mm",
        "Axes": "PIR, 12.3° oblique",
        "Numbers": "look like Hounsfield units",
        "Padding": "19 % of the voxels at or under −1024 HU",
        "Assumed": "RAS, as no axes are given",
        "Left out": "2 of 42 images left out: a localiser",
    }
    plain = dataclasses.replace(PAPERS, oblique_degrees=0.0, hu_doubt="odd", left_out=(), assumed=())
    assert list(paper_lines(plain)) == ["Form", "Voxels", "Axes", "Numbers", "Padding"]
    assert paper_lines(plain)["Axes"] == "PIR" and paper_lines(plain)["Numbers"] == "odd"
    assert papers_of(dataclasses.asdict(plain)) == plain
