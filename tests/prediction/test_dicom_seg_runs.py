"""DICOM segmentations in a run of the inference: beside the other files of a case, or not at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from tests.imaging.dicom_series import write_series
from tests.prediction.test_dicom_seg import STUDY, by_pydicom
from tests.prediction.test_predict import (  # noqa: F401 - fixtures
    dicom_ct,
    fake,
    mask_path,
    no_starter_weights,
    same_device,
    settings_for,
    write_column,
)
from utils.files import sha256_of
from utils.imaging.volume import Volume
from utils.prediction.predict import infer

pytest.importorskip("highdicom")

KEY = "sub-P01_series-3"
WANTED = {"formats": ("nifti", "dicom-seg"), "first_label": "T10"}


@pytest.fixture
def series(tmp_path) -> Path:
    ct = dicom_ct()
    names = [f"{place % 4}/IM{(5 * place) % ct.shape[2]:03}" for place in range(ct.shape[2])]
    write_series(tmp_path / "in", ct, names=names, **STUDY)
    return tmp_path / "in"


def segmentation_path(out: Path, key: str = KEY) -> Path:
    return mask_path(out, key).with_name(f"{key}_seg-vert_msk.dcm")


def names_in(path: Path) -> list[str]:
    return [each.SegmentLabel for each in pydicom.dcmread(path).SegmentSequence]


def agrees(out: Path, key: str = KEY) -> bool:
    mask = nibabel.load(mask_path(out, key))
    return np.array_equal(by_pydicom(segmentation_path(out, key), mask), mask.dataobj)


def test_it_agrees_with_the_mask_and_belongs_to_the_record_of_the_case(tmp_path, fake, capsys, series):  # noqa: F811
    out = tmp_path / "out"
    assert infer(settings_for(series, output=out, **WANTED)) == 0
    path, calls = segmentation_path(out), fake.patches
    assert agrees(out) and names_in(path) == ["T10", "T11", "T12", "L1", "L2", "L3"]
    settings = json.loads(mask_path(out, KEY).with_name(f"{KEY}_settings.json").read_text())
    assert settings["files"]["_seg-vert_msk.dcm"] == sha256_of(path)
    assert capsys.readouterr().err.count("\n") <= 1  # the bar
    assert infer(settings_for(series, output=out, **WANTED)) == 0
    assert f"{KEY}: already predicted\n" in capsys.readouterr().out and fake.patches == calls
    path.write_bytes(path.read_bytes()[:-9])
    assert infer(settings_for(series, output=out, **WANTED)) == 0
    assert f"done again, as {path.name} did not hold what was written" in capsys.readouterr().err
    assert fake.patches == 2 * calls and agrees(out)


def test_it_is_made_later_from_the_mask(tmp_path, fake, capsys, series):  # noqa: F811
    out = tmp_path / "out"
    assert infer(settings_for(series, output=out, first_label="T10")) == 0
    assert not segmentation_path(out).exists()
    calls = fake.patches
    capsys.readouterr()
    assert infer(settings_for(series, output=out, **WANTED)) == 0
    assert f"{KEY}: already predicted, now also as dicom-seg\n" in capsys.readouterr().out
    assert fake.patches == calls and agrees(out)
    segmentation_path(out).unlink()
    assert infer(settings_for(series, output=out, **WANTED)) == 0
    assert fake.patches == calls and agrees(out)


def test_new_labels_make_it_anew(tmp_path, fake, series):  # noqa: F811
    out = tmp_path / "out"
    assert infer(settings_for(series, output=out, **WANTED)) == 0
    assert infer(settings_for(series, output=out, relabel=True, first_label="L1")) == 0
    assert names_in(segmentation_path(out)) == ["L1", "L2", "L3", "L4", "L5", "L6"] and agrees(out)


def test_each_series_of_a_folder_gets_its_own(tmp_path, fake, series):  # noqa: F811
    ct = dicom_ct()
    second = write_series(
        series,
        Volume(ct.data[..., :40], ct.affine),
        names=[f"s{i}" for i in range(40)],
        SeriesNumber=4,
        **STUDY,
    )
    out = tmp_path / "out"
    assert infer(settings_for(series, output=out, formats=("dicom-seg",))) == 0
    assert agrees(out) and agrees(out, "sub-P01_series-4")
    (source,) = pydicom.dcmread(segmentation_path(out, "sub-P01_series-4")).ReferencedSeriesSequence
    assert source.SeriesInstanceUID == pydicom.dcmread(second[0]).SeriesInstanceUID
    assert len(source.ReferencedInstanceSequence) == 40


def test_a_scan_that_is_no_dicom_is_named_and_the_others_go_on(tmp_path, fake, capsys, series):  # noqa: F811
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, series, output=out, **WANTED)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bad scan")]
    assert line == f"bad scan: {scan}: expected DICOM for --formats dicom-seg, found another format."
    assert not mask_path(out, "sub-a").exists() and agrees(out)


def test_a_finished_case_stays_whole_where_it_cannot_be_relabelled_with_one(tmp_path, fake, capsys):  # noqa: F811
    write_series(tmp_path / "in", dicom_ct())
    out, relabel = tmp_path / "out", {"relabel": True, "first_label": "L1"}
    assert infer(settings_for(tmp_path / "in", output=out)) == 0
    before = {path: path.read_bytes() for path in mask_path(out, KEY).parent.iterdir()}
    assert infer(settings_for(tmp_path / "in", output=out, formats=("dicom-seg",), **relabel)) == 1
    assert "found: no FrameOfReferenceUID in IM0000" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in mask_path(out, KEY).parent.iterdir()} == before


def test_a_scan_without_a_vertebra_has_one_without_voxels(tmp_path, fake):  # noqa: F811
    ct = dicom_ct()
    write_series(tmp_path / "in", Volume(np.full_like(ct.data, -1000), ct.affine), **STUDY)
    assert infer(settings_for(tmp_path / "in", output=tmp_path / "out", formats=("dicom-seg",))) == 0
    found = pydicom.dcmread(segmentation_path(tmp_path / "out"))
    assert [each.SegmentLabel for each in found.SegmentSequence] == ["Vertebra"]
    assert not found.pixel_array.any()


def test_without_highdicom_nothing_is_run(tmp_path, fake, capsys, series, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert infer(settings_for(series, output=tmp_path / "out", **WANTED)) == 2
    error = "error: expected highdicom for --formats dicom-seg, found it not installed: "
    assert capsys.readouterr().err == f"{error}pip install -r requirements-seg.txt\n"
    assert fake.patches == 0 and not (tmp_path / "out").exists()
    assert infer(settings_for(series, output=tmp_path / "out", first_label="T10")) == 0
