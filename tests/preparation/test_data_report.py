"""The data set report: its tables, page and figures, of made data sets and of the real files."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK
from matplotlib.image import imread

from tests.imaging.examples import DATA, NO_DATA, real_tree, two_vertebrae, write_case
from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume
from utils.preparation.case_check import check_case
from utils.preparation.data_report import (
    CASE_COLUMNS,
    FINDING_COLUMNS,
    REPORT_VERTEBRA_COLUMNS,
    anomaly_table,
    check_cases,
    data_report,
    geometry_table,
    level_table,
    page,
    release_lines,
    report_data,
    split_table,
    storage_table,
    tree_findings,
    write_data_report,
)
from utils.preparation.report_figures import geometry_figure, levels_between, levels_figure
from utils.settings import DataSettings
from utils.verse.cases import Case, index_cases
from utils.verse.labels import LEVEL_NAMES

FILES = ["cases.csv", "findings.csv", "geometry.png", "levels.png", "report.md", "vertebrae.csv"]


@pytest.fixture
def data_dir(tmp_path):
    """Training: a whole case, one with a foreign label, one without a mask; test: a patient of training."""
    write_case(tmp_path, "sub-a_dir-ax")
    bad = write_case(tmp_path, "sub-b")
    mask = two_vertebrae()[1]
    mask.data[0, 0, 0] = 26
    write_volume(bad["mask"], mask)
    write_case(tmp_path, "sub-c", parts=("ct", "centroids"))
    write_case(tmp_path, "sub-a_dir-sag", split="test")
    write_volume(tmp_path / "other" / "chest_ct.nii.gz", two_vertebrae()[0])
    write_volume(tmp_path / "dataset-verse19training" / "derivatives" / "sub-c" / "verse003_seg.nii", mask)
    return tmp_path


def report_of(data_dir):
    return data_report(data_dir, [check_case(case) for case in index_cases(data_dir)])


def test_report_writes_all_and_ends_with_status_1_for_bad_cases(data_dir, capsys):
    before = set(data_dir.rglob("*"))
    assert report_data(DataSettings(data_dir=data_dir, workers=1)) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == "error: 1 bad cases: sub-b"
    assert "sub-a_dir-ax: 2 vertebrae (T13 to L1), 0 findings" in printed.err
    assert "expected VerSe labels (0-25 or 28), found 26" in printed.out
    assert {path.name for path in set(data_dir.rglob("*")) - before} == {"report", *FILES}
    assert report_data(DataSettings(data_dir=data_dir, workers=1, skip_bad=True)) == 0
    # The report itself is no part of the data set.
    assert len(index_cases(data_dir)) == 4


def test_incomplete_cases_and_remarks_are_no_failure(tmp_path, capsys):
    write_case(tmp_path, "sub-c", parts=("ct", "centroids"))
    assert report_data(DataSettings(data_dir=tmp_path, workers=1)) == 0
    assert "- sub-c (training): no mask" in capsys.readouterr().out


def test_processes_give_the_same_facts_in_the_order_of_the_index(data_dir):
    cases = index_cases(data_dir)
    alone, parallel = check_cases(cases, workers=1), check_cases(cases, workers=2)
    assert [each.case for each in parallel] == cases
    for one, other in zip(alone, parallel, strict=True):
        assert (one.findings, one.vertebrae, one.hu_range) == (
            other.findings,
            other.vertebrae,
            other.hu_range,
        )


def test_facts_have_the_order_of_the_cases_in_whatever_order_they_come(data_dir, monkeypatch):
    cases = index_cases(data_dir)
    monkeypatch.setattr(
        "utils.preparation.data_report.outcomes",
        lambda work, items, **_: [(each, work(each)) for each in items[::-1]],
    )
    assert [facts.case for facts in check_cases(cases, workers=1)] == cases


def test_a_killed_process_is_a_bad_case(data_dir, monkeypatch):
    cases = index_cases(data_dir)[:1]
    monkeypatch.setattr(
        "utils.preparation.data_report.outcomes",
        lambda work, items, **_: [(items[0], "a process that was killed")],
    )
    (facts,) = check_cases(cases, workers=2)
    (finding,) = facts.findings
    assert facts.bad and finding.what == "expected to be read, found a process that was killed"


def test_no_data_set_is_one_line(tmp_path, capsys):
    assert report_data(DataSettings(data_dir=tmp_path / "nowhere")) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and "nowhere" in printed.err and printed.err.count("\n") == 1
    assert not printed.out and not list(tmp_path.iterdir())


def test_rows_of_cases(data_dir):
    cases = report_of(data_dir).cases
    assert list(cases.columns) == list(CASE_COLUMNS)
    assert cases["case"].tolist() == ["sub-a_dir-ax", "sub-a_dir-sag", "sub-b", "sub-c"]
    assert cases["split"].tolist() == ["training", "test", "training", "training"]
    assert cases["status"].tolist() == ["complete", "complete", "bad", "incomplete"]
    first = cases.iloc[0]
    assert first[["subject", "year", "shape", "spacing_mm", "axes"]].tolist() == [
        *("sub-a", 2019, "20x24x28", "2x2x2", "RAS")
    ]
    assert first["ct"] == "dataset-verse19training/rawdata/sub-a/sub-a_dir-ax_ct.nii.gz"
    assert first[["extent_lr_mm", "extent_ap_mm", "extent_si_mm"]].tolist() == [40, 48, 56]
    assert first[["hu_low", "hu_high", "vertebrae", "levels", "anomalies"]].tolist() == [
        -50,
        400,
        2,
        "T13 L1",
        "T13",
    ]
    assert cases.iloc[2]["findings"] == "labels outside the table"
    assert cases.iloc[3][["mask", "levels", "findings"]].tolist() == ["", "", "incomplete"]


def test_anatomical_directions_follow_the_affine(tmp_path):
    ct = Volume(
        np.zeros((4, 5, 6), np.int16), np.array([[0, 0, 3, 0], [-1, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1.0]])
    )
    write_volume(tmp_path / "sub-x_ct.nii.gz", ct)
    row = report_of(tmp_path).cases.iloc[0]
    assert row[["axes", "spacing_ap_mm", "spacing_si_mm", "spacing_lr_mm"]].tolist() == ["PIR", 1, 2, 3]
    assert row[["extent_ap_mm", "extent_si_mm", "extent_lr_mm"]].tolist() == [4, 10, 18]


def test_rows_of_vertebrae(data_dir):
    vertebrae = report_of(data_dir).vertebrae
    assert list(vertebrae.columns) == list(REPORT_VERTEBRA_COLUMNS)
    assert vertebrae[
        ["case", "level", "label", "voxels", "volume_mm3", "touches_border"]
    ].values.tolist() == [
        ["sub-a_dir-ax", "T13", 28, 216, 1728.0, 0],
        ["sub-a_dir-ax", "L1", 20, 288, 2304.0, 1],
        ["sub-a_dir-sag", "T13", 28, 216, 1728.0, 0],
        ["sub-a_dir-sag", "L1", 20, 288, 2304.0, 1],
    ]


def test_rows_of_findings(data_dir):
    findings = report_of(data_dir).findings
    assert list(findings.columns) == list(FINDING_COLUMNS)
    assert findings[["case", "split", "kind", "bad"]].values.tolist() == [
        ["sub-b", "training", "labels outside the table", 1],
        ["sub-c", "training", "incomplete", 0],
        ["sub-a", "", "patient in several splits", 0],
        ["sub-c", "", "name of the older release", 0],
        ["", "", "image without a VerSe name", 0],
    ]
    assert findings["file"].tolist() == [
        "dataset-verse19training/derivatives/sub-b/sub-b_seg-vert_msk.nii.gz",
        *("", ""),
        "dataset-verse19training/derivatives/sub-c/verse003_seg.nii",
        "other/chest_ct.nii.gz",
    ]
    assert findings["what"][2] == "test, training"


def test_a_clean_tree_has_no_findings(tmp_path):
    write_case(tmp_path, "sub-x")
    assert list(tree_findings(tmp_path, index_cases(tmp_path))) == []
    report = report_of(tmp_path)
    assert report.findings.empty and report.bad == []
    assert "## Bad cases\n\nNone.\n\n## Remarks\n\nNone.\n" in page(report)


def test_tables_of_the_page(data_dir):
    report = report_of(data_dir)
    assert split_table(report).values.tolist() == [
        ["training", 3, 3, 2, 1, 2],
        ["test", 1, 1, 1, 0, 2],
        ["all", 4, 3, 3, 1, 4],
    ]
    assert level_table(report.vertebrae).values.tolist() == [["T13", 1, 1, 2], ["L1", 1, 1, 2]]
    assert anomaly_table(report.cases).fillna("").values.tolist() == [
        *(["L6", 0, ""], ["T13", 2, "sub-a_dir-ax, sub-a_dir-sag"], ["T12 absent", 0, ""])
    ]
    assert storage_table(report.cases).values.tolist() == [
        ["axes", "RAS: 4"],
        ["CT numbers", "int16: 4"],
        ["mask numbers", "uint8: 2"],
        ["CT qform/sform code", "0/2: 4"],
        ["mask qform/sform code", "0/2: 2"],
    ]


def test_geometry_is_given_over_the_cases_that_have_an_image():
    cases = pd.DataFrame(
        {
            f"{name}_{axis}_mm": [1.0, None, 0.5, 3.0]
            for name in ("spacing", "extent")
            for axis in ("ap", "lr", "si")
        }
    )
    cases["spacing_si_mm"] = [None] * 4
    table = geometry_table(cases).fillna("")
    assert table.iloc[0].tolist() == ["spacing, anterior-posterior", "0.5", "1", "3", 3]
    assert table.iloc[2].tolist() == ["spacing, superior-inferior", "", "", "", 0]
    assert table.iloc[5].tolist() == ["field of view, superior-inferior", "0.5", "1", "3", 3]


def test_the_page_shows_some_of_many_remarks_and_all_bad_findings(data_dir):
    for index in range(5):
        write_case(data_dir, f"sub-d{index}", parts=("ct",))
    report = report_of(data_dir)
    short, whole = page(report, shown=2), page(report)
    shown = "- sub-c (training): no mask\n- sub-d0 (training): no mask, no centroids\n- and 4 more"
    assert f"### Incomplete: 6\n\n{shown}\n" in short
    last = "- sub-d4 (training): no mask, no centroids"
    assert last in whole and last not in short and "more" not in whole.partition("## Remarks")[2]
    line = "sub-b_seg-vert_msk.nii.gz: labels outside the table: expected VerSe labels (0-25 or 28), found 26"
    assert line in short and line in whole
    assert "](levels.png)" not in short and "](levels.png)" in page(report, figures=True)


def test_lines_on_the_release_are_about_the_release_only(tmp_path):
    case = Case("sub-verse004", "sub-verse004", "training", year=2019)
    assert release_lines(tmp_path, [case])[0] == "training 2019: 1 of 80 series"
    assert release_lines(tmp_path, [Case("sub-chest", "sub-chest", "training")]) == ()
    (tmp_path / "phantom.json").write_text(json.dumps({"seed": 0}))
    assert release_lines(tmp_path, [case]) == ()


def test_all_masks_bad_still_gives_a_report(tmp_path):
    write_case(tmp_path, "sub-x", parts=("mask",))["mask"].write_bytes(b"no mask")
    report = report_of(tmp_path)
    write_data_report(report, tmp_path / "report")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == FILES
    assert split_table(report).values.tolist() == [["training", 1, 1, 0, 1, 0], ["all", 1, 1, 0, 1, 0]]


def test_a_report_that_cannot_be_written_whole_leaves_the_older_one(data_dir, monkeypatch):
    report = report_of(data_dir)
    write_data_report(report, data_dir / "report")
    before = {path.name: path.read_bytes() for path in (data_dir / "report").iterdir()}

    def fail(self, *args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        write_data_report(report, data_dir / "report")
    assert {path.name: path.read_bytes() for path in (data_dir / "report").iterdir()} == before


# Figures -------------------------------------------------------------------------------------------


def made_vertebrae(cases):
    splits = ["training", "validation", "test"]
    rows = [(LEVEL_NAMES[(index + k) % 26], splits[index % 3]) for index in range(cases) for k in range(12)]
    return pd.DataFrame(rows, columns=["level", "split"])


@pytest.mark.parametrize("cases", [0, 1, 10, 374])
def test_bars_stand_for_all_vertebrae_of_a_level(cases):
    vertebrae = made_vertebrae(cases)
    (axes,) = levels_figure(vertebrae).axes
    levels = [tick.get_text() for tick in axes.get_xticklabels()]
    tops = {
        level: sum(bars[index].get_height() for bars in axes.containers) for index, level in enumerate(levels)
    }
    counts = vertebrae["level"].value_counts().to_dict()
    assert {level: top for level, top in tops.items() if top} == counts
    for index in range(len(levels)):
        stack = [bars[index] for bars in axes.containers]
        assert [bar.get_y() for bar in stack] == [
            sum(b.get_height() for b in stack[:k]) for k in range(len(stack))
        ]
    assert [text.get_text() for text in axes.texts] == [str(counts.get(level, 0)) for level in levels]


def test_levels_between_leave_out_those_that_most_people_lack():
    assert levels_between({"T11", "L1"}) == ["T11", "T12", "L1"]
    assert levels_between({"T12", "T13", "L2"}) == ["T12", "T13", "L1", "L2"]
    assert levels_between(set()) == []


@pytest.mark.parametrize("count", [1, 10, 374])
def test_every_case_is_a_dot_in_both_panels(count):
    rng = np.random.default_rng(0)
    names = [f"{quantity}_{axis}_mm" for quantity in ("spacing", "extent") for axis in ("ap", "lr", "si")]
    cases = pd.DataFrame(rng.uniform(0.3, 3, (count, 6)), columns=names)
    cases["split"] = [("training", "test", "")[index % 3] for index in range(count)]
    cases.loc[count - 1, names] = np.nan
    for axes, quantity in zip(geometry_figure(cases).axes, ("spacing", "extent")):
        dots = [line.get_xdata() for line in axes.get_lines() if line.get_marker() == "o"]
        shown = np.concatenate([[], *dots])
        wanted = cases[[name for name in names if name.startswith(quantity)]].to_numpy().ravel()
        np.testing.assert_array_equal(np.sort(shown), np.sort(wanted[~np.isnan(wanted)]))


def test_figures_are_written_as_pictures(data_dir):
    write_data_report(report_of(data_dir), data_dir / "report")
    for name in ("levels.png", "geometry.png"):
        picture = imread(data_dir / "report" / name)
        assert picture.shape[0] > 500 and picture.shape[1] > 700 and picture.std() > 0.05


# Real files ----------------------------------------------------------------------------------------

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=NO_DATA)


@pytest.fixture(scope="module")
def real_report(tmp_path_factory):
    tree = real_tree(tmp_path_factory.mktemp("real"))
    return data_report(tree, check_cases(index_cases(tree), workers=1))


def measured_by_simpleitk(mask_path):
    """Voxels, mm³, parts connected by faces, and whether the border is touched, by label."""
    image = SimpleITK.ReadImage(str(mask_path), SimpleITK.sitkUInt8)
    shape = SimpleITK.LabelShapeStatisticsImageFilter()
    shape.Execute(image)
    facts = {}
    for label in shape.GetLabels():
        box = shape.GetBoundingBox(label)
        part = SimpleITK.RegionOfInterest(image == label, box[3:], box[:3])
        parts = SimpleITK.ConnectedComponentImageFilter()
        parts.FullyConnectedOff()
        parts.Execute(part)
        at_border = any(b == 0 or b + n == size for b, n, size in zip(box[:3], box[3:], image.GetSize()))
        voxels = shape.GetNumberOfPixels(label)
        facts[label] = (voxels, shape.GetPhysicalSize(label), parts.GetObjectCount(), int(at_border))
    return facts


@needs_data
def test_real_cases_are_reported_exactly(real_report):
    columns = ["case", "split", "year", "status", "shape", "spacing_mm", "axes", "anomalies"]
    assert real_report.cases[columns].values.tolist() == [
        ["sub-gl003_dir-ax", "training", 2020, "incomplete", "512x512x214", "0.291x0.291x1.25", "LPS", ""],
        ["sub-verse004", "training", 2019, "incomplete", "161x338x61", "1x1x2", "PIR", ""],
        ["sub-verse014", "training", 2019, "complete", "186x186x40", "1x1x2", "PIR", ""],
    ]
    assert real_report.cases[["levels", "findings"]].values.tolist() == [
        ["C1 C2 C3 C4 C5 C6 C7 T1 T2 T3 T4 T5", "incomplete; stray components"],
        ["T9 T10 T11 T12 L1 L2 L3 L4 L5", "incomplete"],
        ["L1 L2 L3 L4 L5", ""],
    ]
    assert real_report.bad == []
    whole = real_report.cases.iloc[2]
    image = SimpleITK.ReadImage(str(DATA / whole["ct"]))
    values = SimpleITK.GetArrayViewFromImage(image)
    assert (whole["hu_low"], whole["hu_high"]) == (values.min(), values.max()) == (-1291, 1699)
    assert whole[["ct_type", "mask_type"]].tolist() == ["int16", "uint8"]


@needs_data
def test_real_findings_are_reported_exactly(real_report):
    strays = "T5 is in 3 parts; strays: 8 voxels (0.8 mm³), 2 voxels (0.2 mm³)"
    assert real_report.findings[["case", "kind", "bad", "what"]].values.tolist() == [
        ["sub-gl003_dir-ax", "incomplete", 0, "no CT"],
        ["sub-gl003_dir-ax", "stray components", 0, strays],
        ["sub-verse004", "incomplete", 0, "no CT"],
        *(["", "image without a VerSe name", 0, "it belongs to no case"] for _ in range(4)),
    ]
    assert real_report.findings["file"].tolist()[3:] == [
        *("other-ct/abdomen_ct.nii.gz", "other-ct/abdomen_seg-vert_msk.nii.gz"),
        *("other-ct/chest_ct.nii.gz", "other-ct/chest_seg-vert_msk.nii.gz"),
    ]
    assert real_report.release[:4] == (
        *("training 2019: 2 of 80 series", "validation 2019: 0 of 40 series"),
        *("test 2019: 0 of 40 series", "training 2020: 1 of 61 series"),
    )


@needs_data
@pytest.mark.parametrize("row", range(3))
def test_real_vertebrae_agree_with_simpleitk(real_report, row):
    case = real_report.cases.iloc[row]
    vertebrae = real_report.vertebrae[real_report.vertebrae["case"] == case["case"]]
    expected = measured_by_simpleitk(DATA / case["mask"])
    assert vertebrae["label"].tolist() == sorted(expected)
    for vertebra in vertebrae.itertuples():
        voxels, volume_mm3, parts, at_border = expected[vertebra.label]
        assert (vertebra.voxels, vertebra.components, vertebra.touches_border) == (voxels, parts, at_border)
        assert vertebra.volume_mm3 == pytest.approx(volume_mm3, rel=1e-4)


@needs_data
def test_real_centroids_lie_in_their_vertebrae_but_that_of_c1(real_report):
    outside = real_report.vertebrae[real_report.vertebrae["centroid_distance_mm"] > 0]
    assert outside[["case", "level"]].values.tolist() == [["sub-gl003_dir-ax", "C1"]]
    # The same by hand: the file's direction is that of the mask, both (L, A, S) or turned by nibabel.
    case = real_report.cases.iloc[0]
    image = nibabel.load(DATA / case["mask"])
    entries = json.loads((DATA / case["centroids"]).read_text())
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(entries[0]["direction"])
        )
    )
    (point,) = [[entry[axis] for axis in "XYZ"] for entry in entries[1:] if entry["label"] == 1]
    voxels = np.argwhere(np.asarray(turned.dataobj) == 1)
    distances_mm = np.linalg.norm((voxels - point) * turned.header.get_zooms(), axis=1)
    assert outside["centroid_distance_mm"].item() == pytest.approx(distances_mm.min(), abs=0.01)


# The script ----------------------------------------------------------------------------------------


def test_script_reports_in_spawned_processes_and_gets_nothing(data_dir):
    script = Path(__file__).resolve().parents[2] / "get_verse_data.py"
    options = ("--report", "--data-dir", str(data_dir), "--workers", "2")
    done = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, cwd=data_dir
    )
    assert done.returncode == 1 and done.stderr.endswith("error: 1 bad cases: sub-b\n")
    assert done.stdout.startswith("# Data set report\n")
    assert done.stdout.endswith(f"\nWritten to {data_dir / 'report'}.\n")
    assert sorted(path.name for path in (data_dir / "report").iterdir()) == FILES
    assert len(index_cases(data_dir)) == 4
