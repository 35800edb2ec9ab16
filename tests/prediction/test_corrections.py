"""Levels that were corrected on the page of a report: their file, and the run that applies them."""

from __future__ import annotations

import json

import pytest

from tests.prediction.test_levels import same_device, table_of  # noqa: F401
from tests.prediction.test_predict import fake, mask_path, settings_for, write_column  # noqa: F401
from utils.files import sha256_of
from utils.prediction.corrections import Correction, read_corrections
from utils.prediction.derivatives import read_case_settings
from utils.prediction.predict import infer

GOOD = {"case": "sub-a", "mask_sha256": "e3b0", "fix": ["1=T11", "2=T12"]}


def write_corrections(path, *rows):
    path.write_text(json.dumps({"corrections": list(rows)}))
    return path


def names_of(output, key):
    return [row["name"] for row in table_of(output, key)]


@pytest.fixture
def predicted(tmp_path, fake):  # noqa: F811
    """Two scans of one column, T10 to L3, and the folder with their predictions."""
    scans = [write_column(tmp_path / f"sub-{name}_ct.nii.gz") for name in "ab"]
    assert infer(settings_for(*scans, output=tmp_path / "out")) == 0
    return scans, tmp_path / "out"


def correction_of(output, key, *fix):
    return {"case": key, "mask_sha256": sha256_of(mask_path(output, key)), "fix": list(fix)}


def test_corrections_are_read_by_case(tmp_path):
    other = {"case": "sub-b", "mask_sha256": "aa", "fix": ["3=L1"], "note": "is not read"}
    assert read_corrections(write_corrections(tmp_path / "c.json", GOOD, other)) == {
        "sub-a": Correction("sub-a", "e3b0", ("1=T11", "2=T12")),
        "sub-b": Correction("sub-b", "aa", ("3=L1",)),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected corrections of levels, found No such file"),
        ("{", "expected corrections of levels, found Expecting"),
        ("[]", 'a list named "corrections", found none'),
        ('{"corrections": {}}', 'a list named "corrections", found none'),
        (
            '{"corrections": [3]}',
            "correction 1: expected case, mask_sha256 and a list of levels fix, found 3",
        ),
        (json.dumps({"corrections": [GOOD, GOOD]}), "expected each case once, found sub-a twice"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path, text, message):
    path = tmp_path / "c.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_corrections(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"case": 3}, "expected case, mask_sha256 and a list of levels fix, found {'case': 3"),
        ({"mask_sha256": None}, "expected case, mask_sha256 and a list of levels fix"),
        ({"fix": "1=T11"}, "expected case, mask_sha256 and a list of levels fix"),
        ({"fix": []}, "expected case, mask_sha256 and a list of levels fix"),
        ({"fix": ["1=T14"]}, ", sub-a: Expected a level C1-C7, T1-T13 or L1-L6, received 'T14'"),
        ({"fix": ["T11"]}, ", sub-a: Expected place=level"),
        ({"fix": ["1=T1", "1=T2"]}, ", sub-a: Expected one level for vertebra 1"),
    ],
)
def test_a_correction_of_another_form_is_named_with_its_place(tmp_path, changes, message):
    path = write_corrections(tmp_path / "c.json", {**GOOD, "case": "sub-x"}, {**GOOD, **changes})
    with pytest.raises(ValueError) as error:
        read_corrections(path)
    assert str(error.value).startswith(f"{path}: correction 2") and message in str(error.value)


def test_each_scan_gets_its_own_levels_and_the_others_are_left_alone(tmp_path, predicted):
    scans, out = predicted
    scans.append(write_column(tmp_path / "sub-c_ct.nii.gz"))
    assert infer(settings_for(*scans, output=out)) == 0
    before = mask_path(out, "sub-c").stat()
    first = [f"{place}=T{level}" for place, level in enumerate(range(4, 10), 1)]
    path = write_corrections(
        tmp_path / "c.json", correction_of(out, "sub-b", "3=T9"), correction_of(out, "sub-a", *first)
    )
    assert infer(settings_for(*scans, output=out, relabel=True, corrections=path)) == 0
    assert names_of(out, "sub-a") == ["T4", "T5", "T6", "T7", "T8", "T9"]
    assert names_of(out, "sub-b")[2] == "T9"
    assert names_of(out, "sub-c") == ["T10", "T11", "T12", "L1", "L2", "L3"]
    assert mask_path(out, "sub-c").stat() == before
    assert "corrections" not in read_case_settings(out, "sub-a")
    # The run may be repeated, and a prediction with these levels counts as done.
    assert infer(settings_for(*scans, output=out, relabel=True, corrections=path)) == 0
    assert names_of(out, "sub-a")[0] == "T4"
    assert infer(settings_for(scans[1], output=out, fix=("3=T9",))) == 0
    assert names_of(out, "sub-b")[2] == "T9"


def test_what_serves_no_scan_is_bad_and_the_others_are_corrected(tmp_path, predicted, capsys):
    scans, out = predicted
    unknown = {**correction_of(out, "sub-a", "1=T4"), "case": "sub-x"}
    path = write_corrections(
        tmp_path / "c.json", unknown, correction_of(out, "sub-a", "1=L1"), correction_of(out, "sub-b", "1=T4")
    )
    assert infer(settings_for(scans[0], output=out, relabel=True, first_label="T9")) == 0
    assert infer(settings_for(*scans, output=out, relabel=True, corrections=path)) == 1
    said = capsys.readouterr().err
    assert f"bad scan: {path}: expected cases of the scans given, found sub-x, which is none of them." in said
    mask = mask_path(out, "sub-a")
    assert f"bad scan: {path}: expected {mask} as it was when it was corrected, found it changed" in said
    assert names_of(out, "sub-a")[0] == "T9" and names_of(out, "sub-b")[0] == "T4"
    mask.unlink()
    assert infer(settings_for(*scans, output=out, relabel=True, corrections=path)) == 1
    assert f"expected {mask}, which was corrected, found no such file." in capsys.readouterr().err


def test_a_broken_file_changes_nothing(tmp_path, predicted, capsys):
    scans, out = predicted
    before = mask_path(out, "sub-a").read_bytes()
    path = write_corrections(
        tmp_path / "c.json", correction_of(out, "sub-a", "1=T4"), correction_of(out, "sub-b", "1=T99")
    )
    assert infer(settings_for(*scans, output=out, relabel=True, corrections=path)) == 1
    assert f"error: {path}: correction 2, sub-b: Expected a level" in capsys.readouterr().err
    assert mask_path(out, "sub-a").read_bytes() == before


@pytest.mark.parametrize("changes", [{}, {"fix": ("1=T9",)}, {"first_label": "T9"}])
def test_corrections_stand_alone_with_relabel(tmp_path, changes, capsys):
    scan, path = write_column(tmp_path / "sub-a_ct.nii.gz"), write_corrections(tmp_path / "c.json")
    relabel = {"relabel": True} if changes else {}
    settings = settings_for(scan, output=tmp_path / "out", corrections=path, **relabel, **changes)
    assert infer(settings) == 2
    assert "expected --from with --relabel, and without --fix" in capsys.readouterr().err
