"""Levels in a run of the inference, what the network said on disk, and labels changed later."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.localisation.label_problems import votes_for, votes_of_levels
from tests.prediction.test_predict import (
    NAMES,
    FakeNetworks,
    fake,  # noqa: F401
    mask_path,
    settings_for,
    write_column,
)
from tests.walk.column import column, column_ct
from utils.imaging.centroids import read_centroids
from utils.imaging.grids import oriented
from utils.imaging.nifti import read_mask
from utils.localisation.identify import identify, number_column
from utils.prediction import derivatives, one_scan
from utils.prediction.levels import (
    doubt_about,
    identify_counted,
    parse_fixed,
    relabel_case,
)
from utils.prediction.predict import infer
from utils.prediction.quality import percent, read_quality
from utils.prediction.scans import find_scans
from utils.prediction.snapshot import Mark, snapshot_figure
from utils.verse.labels import LEVEL_NAMES, MAX_RANK, code_of_name

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def same_device(monkeypatch):
    """TensorFlow's devices are chosen once a process; a test must not choose for those after it."""
    monkeypatch.setattr("utils.learning.runtime.choose_device", lambda device, preset=None: "cpu")


def codes(*names):
    return tuple(code_of_name(name) for name in names)


def table_of(output, key="sub-a"):
    with mask_path(output, key).with_name(f"{key}_vertebrae.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


# Levels that are known, and doubts


@pytest.mark.parametrize(
    ("fix", "message"),
    [
        (["T12"], "Expected place=level"),
        (["0=T12"], "Expected place=level"),
        (["x=T12"], "Expected place=level"),
        (["1=T20"], "Expected a level"),
        (["1=T1", "1=T2"], "Expected one level for vertebra 1"),
    ],
)
def test_wrong_fixes_are_named(fix, message):
    with pytest.raises(ValueError, match=message):
        parse_fixed(fix)


def test_without_vertebrae_levels_that_are_named_are_for_other_scans():
    for found in (
        number_column(votes_for(["T9"]), places=[], fixed={0: code_of_name("L1")}),
        identify_counted(0, fixed={2: code_of_name("L1")}),
    ):
        assert (found.codes, found.sequence_set, found.second_codes) == ((), (), ())
        assert doubt_about(found) == ""


def test_vertebrae_that_are_counted_follow_a_level_that_is_named():
    found = identify_counted(3, fixed={1: code_of_name("T12")})
    assert found.codes == codes("T11", "T12", "L1") and found.anchor == "given"
    with pytest.raises(ValueError, match="Expected a place up to 3, received 5=T12"):
        identify_counted(3, fixed={4: code_of_name("T12")})


def test_doubt_is_said_with_both_sequences():
    logits = np.full((2, MAX_RANK), -20.0)
    logits[0, LEVEL_NAMES.index("T5")], logits[0, LEVEL_NAMES.index("T6")] = 6, 5.5
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    logits[1] = -np.log(MAX_RANK)
    found = identify(votes_of_levels(logits), np.array([[0, 0, 0], [0, 0, -22.0]]))
    said = doubt_about(found)
    assert said.startswith("labels uncertain: T5 T6 with probability 0.")
    assert ", T6 T7 with 0." in said


def test_doubt_is_said_of_what_gets_no_label():
    names = ("T6", "T7", "T8", "T9", "T10", "T11")
    votes = votes_for([*names[:3], "L4", *names[3:]], strength=9.0, step_mm=25.0)
    votes.centres_mm[3:, 2] += [12.0, 25.0, 25.0, 25.0]  # half-way between two that follow one another
    found = number_column(votes)
    assert found.names == (*names[:3], "-", *names[3:])
    assert doubt_about(found) == "1 of 7 found get no label, as no vertebrae"


# Inference


def test_vertebrae_get_their_levels(tmp_path, fake, capsys):  # noqa: F811
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    expected = np.array([0, *codes(*NAMES)], np.uint8)[column().data.astype(int)]
    np.testing.assert_array_equal(oriented(read_mask(mask_path(out, "sub-a"))).data, expected)
    rows = table_of(out)
    assert [row["name"] for row in rows] == list(NAMES)
    assert {row["numbering"] for row in rows} == {"anatomical"}
    assert all(0.9 < float(row["label_probability"]) <= 1 for row in rows)
    assert "complete_probability" not in rows[0]
    assert infer(settings_for(scan, output=out)) == 0
    assert "sub-a: already predicted" in capsys.readouterr().out


def test_the_identification_reaches_the_case(tmp_path):
    scan = find_scans((write_column(tmp_path / "sub-a_ct.nii.gz"),)).scans[0]
    case, warning = one_scan.predict_case(
        scan, FakeNetworks().networks(), settings_for(scan.path, output=tmp_path)
    )
    found, known = case.identification, case.quality
    assert warning == "" and found.names == NAMES and found.anchor == "ribs"
    assert found.sequence_probability > 0.9 > found.second_probability
    assert (known.kind, known.anchor) == ("anatomical", "ribs")
    assert known.sequence_probability == pytest.approx(found.sequence_probability, abs=1e-4)
    assert known.second_names == found.second_names
    assert known.sequences[0] == (NAMES, known.sequence_probability)


def test_vague_votes_are_said_to_be_uncertain_with_several_sequences(tmp_path):
    scan = find_scans((write_column(tmp_path / "sub-a_ct.nii.gz"),)).scans[0]
    vague = FakeNetworks(("T3", "T4", "T5", "T6", "T7", "T8"), strength=0.2)
    case, warning = one_scan.predict_case(scan, vague.networks(), settings_for(scan.path, output=tmp_path))
    assert warning.startswith("labels uncertain: ")
    assert len(case.quality.sequences) > 3 and case.quality.anchor == "none"
    assert sum(share for _, share in case.quality.sequences) > 0.94
    assert "low probability" in {remark.kind for remark in case.quality.warnings}


def test_levels_that_are_named_overrule_the_network(tmp_path, fake):  # noqa: F811
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, fix=("3=L1",))) == 0
    assert table_of(out)[2]["name"] == "L1"
    assert infer(settings_for(scan, output=out, first_label="T12")) == 0
    assert table_of(out)[0]["name"] == "T12"


def test_levels_that_do_not_follow_one_another_make_a_bad_scan(tmp_path, fake, capsys):  # noqa: F811
    scan = write_column(tmp_path / "sub-a_ct.nii.gz")
    assert infer(settings_for(scan, output=tmp_path / "out", fix=("1=L1", "2=T12"))) == 1
    said = capsys.readouterr().err
    assert f"bad scan: {scan}: Expected levels that follow one another downwards" in said


def test_levels_that_are_named_serve_with_a_published_heatmap_network(tmp_path, fake):  # noqa: F811
    fake.is_published = True
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    assert [row["name"] for row in table_of(out)] == list("123456")
    assert {row["label_probability"] for row in table_of(out)} == {""}
    assert infer(settings_for(scan, output=out, fix=("3=T12",))) == 0
    assert [row["name"] for row in table_of(out)] == list(NAMES)


def test_the_picture_says_how_sure_labels_are_and_what_the_count_holds_on_to(tmp_path, fake, monkeypatch):  # noqa: F811
    drawn = []

    def figure(*volumes, marks, title):
        drawn.append(marks)
        return snapshot_figure(*volumes, marks=marks, title=title)

    monkeypatch.setattr(derivatives, "snapshot_figure", figure)
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    assert infer(settings_for(scan, output=out, relabel=True, first_label="T9")) == 0
    (_, _, t12, l1, *_), relabelled = drawn
    assert [mark.name for mark in drawn[0]] == list(NAMES)
    probability = float(table_of(out)[0]["label_probability"])
    assert relabelled[0] == Mark("T9", percent(probability))
    assert t12.note.startswith("last rib ") and t12.is_held and t12.certainty.endswith(" %")
    assert (l1.note, l1.is_held) == ("", False)
    # It is read at the same place, but the count now holds on to the level that was given.
    assert relabelled[2].note == t12.note and not relabelled[2].is_held


# Labels changed later


def test_relabelling_changes_labels_and_segments_nothing(tmp_path, fake, capsys):  # noqa: F811
    fake.strength = 0.5
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    before, calls, rows = read_mask(mask_path(out, "sub-a")), fake.patches, table_of(out)
    assert infer(settings_for(scan, output=out, first_label="T11", relabel=True)) == 0
    # Three of them carry ribs: this, too, follows from the level that is named.
    names = ["T11", "T12", "T13", "L1", "L2", "L3"]
    assert f"sub-a: relabelled {' '.join(names)}" in capsys.readouterr().out
    after, new_rows = read_mask(mask_path(out, "sub-a")), table_of(out)
    assert fake.patches == calls
    np.testing.assert_array_equal(after.data > 0, before.data > 0)
    assert [row["name"] for row in new_rows] == names
    kept = ("volume_mm3", "mean_hu", "centre_x", "centre_y", "centre_z", "steps", "mean_probability")
    assert [[row[name] for name in kept] for row in new_rows] == [
        [row[name] for name in kept] for row in rows
    ]
    points = read_centroids(mask_path(out, "sub-a").with_name("sub-a_seg-vb_ctd.json"), after.grid)
    assert points.codes[0] == code_of_name("T11")
    # It now is what an inference with this option would have made.
    quality = read_quality(mask_path(out, "sub-a").with_name("sub-a_quality.json"))
    assert quality.anchor == "given" and quality.sequences[0][0][0] == "T11"
    assert infer(settings_for(scan, output=out, first_label="T11")) == 0
    assert "sub-a: already predicted" in capsys.readouterr().out and fake.patches == calls


def test_relabelling_makes_all_forms_of_a_case_anew(tmp_path, fake):  # noqa: F811
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, formats=("itksnap",), measure=True)) == 0
    assert infer(settings_for(scan, output=out, relabel=True, first_label="L1")) == 0
    names = [f"L{number}" for number in range(1, 7)]
    described = derivatives.case_path(out, "sub-a", "_labels.txt").read_text().splitlines()
    assert [line.split('"')[1] for line in described if '"L' in line] == names
    with derivatives.case_path(out, "sub-a", "_measurements.csv").open(newline="") as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == names
    assert not derivatives.case_path(out, "sub-a", "_seg-vert_msk.seg.nrrd").exists()


def test_relabelling_without_a_level_gives_what_the_network_said(tmp_path, fake, capsys):  # noqa: F811
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    before = read_mask(mask_path(out, "sub-a"))
    assert infer(settings_for(scan, output=out, first_label="T4", relabel=True)) == 0
    assert [row["name"] for row in table_of(out)] == ["T4", "T5", "T6", "T7", "T8", "T9"]
    assert infer(settings_for(scan, output=out, relabel=True)) == 0
    assert "relabelled T10 T11 T12 L1 L2 L3" in capsys.readouterr().out
    np.testing.assert_array_equal(read_mask(mask_path(out, "sub-a")).data, before.data)


def test_places_are_counted_in_the_mask_when_labels_change(tmp_path, fake):  # noqa: F811
    fake.silent, fake.strength = (1, 3), 0.5
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    assert [row["name"] for row in table_of(out)] == ["T11", "L1", "L2", "L3"]
    assert infer(settings_for(scan, output=out, fix=("2=L2",), relabel=True)) == 0
    assert [row["name"] for row in table_of(out)] == ["T12", "L2", "L3", "L4"]
    column = json.loads(mask_path(out, "sub-a").with_name("sub-a_column.json").read_text())
    labels = [row["label"] for row in column["vertebrae"]]
    assert labels == [0, code_of_name("T12"), 0, *codes("L2", "L3", "L4")]


def test_relabelling_loads_neither_networks_nor_tensorflow(tmp_path, fake):  # noqa: F811
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, work_dir=tmp_path / "no networks")) == 0
    words = [str(scan), "-o", str(out), "--relabel", "--first-label", "T11", "--work-dir", str(tmp_path)]
    command = f"import sys, runpy; sys.argv = ['infer.py', *{words!r}]\n"
    command += "try: runpy.run_path('infer.py', run_name='__main__')\n"
    command += "except SystemExit as end: print(end.code, {'tensorflow', 'keras'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "0 set()", result.stderr
    assert table_of(out)[0]["name"] == "T11"


def test_a_count_is_relabelled_by_a_level(tmp_path, fake):  # noqa: F811
    fake.is_published = True
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    assert infer(settings_for(scan, output=out, relabel=True, first_label="L1")) == 0
    assert [row["name"] for row in table_of(out)] == ["L1", "L2", "L3", "L4", "L5", "L6"]


def test_relabelling_what_is_not_there_is_a_bad_scan(tmp_path, fake, capsys):  # noqa: F811
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, relabel=True)) == 1
    assert f"{out}: expected a prediction of sub-a to relabel, found none" in capsys.readouterr().err


def test_relabelling_another_scan_is_refused(tmp_path, fake, capsys):  # noqa: F811
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    write_column(scan, "PIR")
    assert infer(settings_for(scan, output=out, relabel=True)) == 1
    assert f"{scan}: expected the scan that the prediction" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected the grid of the scan"):
        relabel_case(oriented(column_ct(), ("P", "I", "R")), out, "sub-a", fixed={}, settings={})
