"""The evaluation from files to files: what it counts, what it writes, and what it says of bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from tests.imaging.examples import DATA, NO_DATA, VERSE_FILES, real_tree
from utils.evaluation import evaluation
from utils.evaluation.evaluation import check_same_grid, evaluate, pair_with_predictions, read_numbering
from utils.evaluation.metrics import VertebraScore
from utils.evaluation.report import (
    REGIONS,
    CaseResult,
    case_line,
    case_table,
    dice_figure,
    group_table,
    markdown_table,
    score_table,
    side_by_side,
    summary,
)
from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume
from utils.settings import EvaluationSettings, load_settings
from utils.verse.cases import index_cases

ROOT = Path(__file__).resolve().parents[2]
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (12, 12, 24)


def mask(*bodies, shape=SHAPE):
    """Cubes of 4x4x4 voxels by label and first slice on the last axis."""
    data = np.zeros(shape, np.uint8)
    for label, z in bodies:
        data[4:8, 4:8, z : z + 4] = label
    return data


def put_reference(folder, key, data, split="test"):
    subject = key.partition("_")[0]
    path = folder / f"dataset-verse19{split}" / "derivatives" / subject / f"{key}_seg-vert_msk.nii.gz"
    write_volume(path, Volume(data, AFFINE))
    return path


def put_prediction(folder, key, data, *, numbering=None, affine=AFFINE):
    path = folder / "derivatives" / key.partition("_")[0] / f"{key}_seg-vert_msk.nii.gz"
    write_volume(path, Volume(data, affine))
    if numbering is not None:
        rows = pd.DataFrame({"label": np.unique(data[data > 0]), "numbering": numbering})
        rows.to_csv(path.with_name(f"{key}_vertebrae.csv"), index=False)
    return path


def settings(tmp_path, **changes):
    folders = {name: tmp_path / name for name in ("predictions", "output")}
    return EvaluationSettings(**{"data_dir": tmp_path / "data", "workers": 1, **folders, **changes})


def read_summary(tmp_path):
    return json.loads((tmp_path / "output" / "summary.json").read_text())


def test_two_cases_by_hand(tmp_path):
    put_reference(tmp_path / "data", "sub-a_dir-ax", mask((19, 2), (20, 8), (21, 14)))
    put_reference(tmp_path / "data", "sub-b", mask((20, 8)))
    put_reference(tmp_path / "data", "sub-c", mask((20, 8)), split="training")
    # sub-a: 19 exact, 20 shifted by one of four slices (Dice .75), 21 absent. sub-b: exact, and one extra.
    put_prediction(tmp_path / "predictions", "sub-a_dir-ax", mask((19, 2), (20, 9)))
    put_prediction(tmp_path / "predictions", "sub-b", mask((20, 8), (19, 2)))
    assert evaluate(settings(tmp_path)) == 0
    found = read_summary(tmp_path)
    assert {name: found[name] for name in ("scans", "vertebrae", "found", "missed", "extra")} == {
        "scans": 2,
        "vertebrae": 4,
        "found": 3,
        "missed": 1,
        "extra": 1,
    }
    assert found["mean_dice"] == pytest.approx((1 + 0.75 + 0 + 1) / 4)
    assert found["found_share"] == 0.75
    assert found["extra_per_scan"] == 0.5
    assert found["identification_rate"] == 0.75
    assert found["localisation_error_mm"] == pytest.approx((0 + 2 + 0) / 3)  # A slice is 2 mm.
    assert found["bad_cases"] == []
    assert 0 < found["mean_surface_distance_mm"] < 2 / 3


def test_files_written_hold_a_row_a_vertebra_and_leave_no_temporary_name(tmp_path):
    put_reference(tmp_path / "data", "sub-b", mask((28, 2), (20, 8)))
    put_prediction(tmp_path / "predictions", "sub-b", mask((28, 2), (20, 8), (21, 14)))
    assert evaluate(settings(tmp_path, found_dice=0.9)) == 0
    output = tmp_path / "output"
    assert {path.name for path in output.iterdir()} == {
        "summary.json",
        "vertebrae.csv",
        "cases.csv",
        "evaluation.md",
        "evaluation.png",
        "settings.json",
    }
    vertebrae = pd.read_csv(output / "vertebrae.csv")
    # T13 (28) stands above L1 (20), and the extra one below both.
    assert vertebrae[["case", "name", "kind"]].to_numpy().tolist() == [
        ["sub-b", "T13", "reference"],
        ["sub-b", "L1", "reference"],
        ["sub-b", "L2", "extra"],
    ]
    cases = pd.read_csv(output / "cases.csv")
    assert cases.loc[0, ["case", "split", "status", "vertebrae", "extra"]].tolist() == [
        "sub-b",
        "test",
        "scored",
        2,
        1,
    ]
    page = (output / "evaluation.md").read_text()
    assert "Dice of at least 0.9" in page
    assert "| score " in page and "| thoracic " in page and "| lumbar " in page
    for policy in ("*Missed*", "*Extra*", "*Partial*", "10000 resamples of the 1 patients", "seed 0"):
        assert policy in page[: page.index("## Overall")]
    assert load_settings(output)["found_dice"] == 0.9
    assert matplotlib.image.imread(output / "evaluation.png").shape[2] == 4


def test_counted_vertebrae_are_matched_by_overlap_and_not_identified(tmp_path):
    put_reference(tmp_path / "data", "sub-b", mask((19, 2), (20, 8)))
    put_prediction(tmp_path / "predictions", "sub-b", mask((1, 2), (2, 8), (3, 14)), numbering="count")
    assert evaluate(settings(tmp_path)) == 0
    found = read_summary(tmp_path)
    assert (found["mean_dice"], found["found"], found["extra"]) == (1, 2, 1)
    assert found["identification_rate"] is None and found["localisation_error_mm"] is None
    vertebrae = pd.read_csv(tmp_path / "output" / "vertebrae.csv")
    assert vertebrae["predicted_label"].tolist() == [1, 2, 3]
    assert vertebrae["name"].isna().tolist() == [False, False, True]  # A counted "3" is no C3.


def test_anatomical_table_matches_by_label(tmp_path):
    put_reference(tmp_path / "data", "sub-b", mask((19, 2), (20, 8)))
    put_prediction(tmp_path / "predictions", "sub-b", mask((20, 2), (21, 8)), numbering="anatomical")
    assert evaluate(settings(tmp_path)) == 0
    found = read_summary(tmp_path)
    assert (found["mean_dice"], found["missed"], found["identification_rate"]) == (0, 2, 0)


def test_case_without_prediction_is_missed_and_fails(tmp_path, capsys):
    put_reference(tmp_path / "data", "sub-a", mask((19, 2), (20, 8)))
    put_reference(tmp_path / "data", "sub-b", mask((20, 8)))
    put_prediction(tmp_path / "predictions", "sub-b", mask((20, 8)))
    assert evaluate(settings(tmp_path)) == 1
    found = read_summary(tmp_path)
    assert (found["vertebrae"], found["missed"], found["bad_cases"]) == (3, 2, ["sub-a"])
    assert found["mean_dice"] == pytest.approx(1 / 3)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "sub-a" in line]
    assert "expected a prediction" in line and "2 vertebrae count as missed" in line
    assert evaluate(settings(tmp_path, skip_bad=True)) == 0
    assert read_summary(tmp_path)["missed"] == 2


@pytest.mark.parametrize("bad", ["truncated", "shape", "affine", "table"])
def test_bad_prediction_is_named_and_its_vertebrae_are_missed(tmp_path, capsys, bad):
    put_reference(tmp_path / "data", "sub-a", mask((20, 8)))
    put_reference(tmp_path / "data", "sub-b", mask((20, 8)))
    put_prediction(tmp_path / "predictions", "sub-b", mask((20, 8)))
    path = put_prediction(tmp_path / "predictions", "sub-a", mask((20, 8)))
    if bad == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif bad == "shape":
        put_prediction(tmp_path / "predictions", "sub-a", mask((20, 8), shape=(12, 12, 25)))
    elif bad == "affine":
        put_prediction(tmp_path / "predictions", "sub-a", mask((20, 8)), affine=np.diag([1, 1, -2.0, 1]))
    else:
        path = path.with_name("sub-a_vertebrae.csv")
        path.write_text("numbering\nroman\n")
    assert evaluate(settings(tmp_path)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "expected" in line]
    assert line.startswith(str(path)) and "found" in line
    found = read_summary(tmp_path)
    assert (found["found"], found["missed"], found["bad_cases"]) == (1, 1, ["sub-a"])


def test_bad_reference_is_named_and_left_out(tmp_path, capsys):
    path = put_reference(tmp_path / "data", "sub-a", mask((20, 8)))
    path.write_bytes(b"")
    put_reference(tmp_path / "data", "sub-b", mask((20, 8)))
    for key in ("sub-a", "sub-b"):
        put_prediction(tmp_path / "predictions", key, mask((20, 8)))
    assert evaluate(settings(tmp_path)) == 1
    assert str(path) in capsys.readouterr().err
    found = read_summary(tmp_path)
    assert (found["scans"], found["vertebrae"], found["mean_dice"]) == (1, 1, 1.0)


def test_nothing_to_score_is_one_line_and_writes_nothing(tmp_path, capsys):
    assert evaluate(settings(tmp_path)) == 1
    assert str(tmp_path / "data") in capsys.readouterr().err
    put_reference(tmp_path / "data", "sub-a", mask((20, 8)))
    assert evaluate(settings(tmp_path)) == 1
    assert str(tmp_path / "predictions") in capsys.readouterr().err
    assert evaluate(settings(tmp_path, split="validation")) == 1
    assert "'validation'" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, capsys):
    put_reference(tmp_path / "data", "sub-a", mask((20, 8)))
    put_prediction(tmp_path / "predictions", "sub-a", mask((20, 8)))
    (tmp_path / "output").write_text("a file")
    assert evaluate(settings(tmp_path)) == 1
    assert str(tmp_path / "output") in capsys.readouterr().err
    assert (tmp_path / "output").read_text() == "a file"


def killed_at_b(score, pairs, *, workers):
    """Give the outcomes of processes that end from behind, one of them killed in the first folder."""
    for pair in reversed(pairs):
        lost = pair[0].key == "sub-b" and pair[1].parents[2].name == "predictions"
        yield pair, "a process that was killed" if lost else score(pair)


def test_a_killed_process_costs_its_own_case_alone(tmp_path, monkeypatch, capsys):
    """The comparison leaves the case out too, though the other folder has its scores."""
    for key in ("sub-a", "sub-b", "sub-c"):
        put_reference(tmp_path / "data", key, mask((20, 8)))
        put_prediction(tmp_path / "predictions", key, mask((20, 9)))
        put_prediction(tmp_path / "others", key, mask((20, 8)))
    monkeypatch.setattr(evaluation, "outcomes", killed_at_b)
    assert evaluate(settings(tmp_path, compare=tmp_path / "others")) == 1
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("sub-")]
    assert line == "sub-b: expected to be scored, found a process that was killed."
    cases = [line.split(",")[0] for line in printed.out.splitlines() if line.startswith("sub-")]
    assert cases == ["sub-a: scored", "sub-b: killed", "sub-c: scored", *(f"sub-{x}: scored" for x in "abc")]
    summary = read_summary(tmp_path)
    assert (summary["scans"], summary["vertebrae"], summary["bad_cases"]) == (2, 2, ["sub-b"])
    assert summary["mean_dice"] == pytest.approx(0.75)
    rows = pd.read_csv(tmp_path / "output" / "comparison.csv")
    assert sorted(rows.loc[rows["unit"] == "vertebra", "case"]) == ["sub-a", "sub-c"]
    assert evaluate(settings(tmp_path, skip_bad=True)) == 0


def test_only_incomplete_references_are_an_error(tmp_path, capsys):
    ct = tmp_path / "data" / "dataset-verse19test" / "rawdata" / "sub-a" / "sub-a_ct.nii.gz"
    write_volume(ct, Volume(mask().astype(np.int16), AFFINE))
    put_prediction(tmp_path / "predictions", "sub-a", mask((20, 8)))
    assert evaluate(settings(tmp_path)) == 1
    assert "1 incomplete case" in capsys.readouterr().err


def test_split_all_takes_cases_outside_every_split_and_two_processes_agree_with_one(tmp_path):
    put_reference(tmp_path / "data", "sub-a", mask((20, 8)), split="training")
    write_volume(tmp_path / "data" / "loose" / "sub-b_seg-vert_msk.nii.gz", Volume(mask((20, 8)), AFFINE))
    for key, z in (("sub-a", 8), ("sub-b", 9)):
        put_prediction(tmp_path / "predictions", key, mask((20, z)))
    assert evaluate(settings(tmp_path, split="all")) == 0
    alone = (tmp_path / "output" / "vertebrae.csv").read_bytes()
    assert read_summary(tmp_path)["mean_dice"] == pytest.approx((1 + 0.75) / 2)
    assert evaluate(settings(tmp_path, split="all", workers=2)) == 0
    assert (tmp_path / "output" / "vertebrae.csv").read_bytes() == alone


def test_empty_masks_give_null_means_and_a_figure(tmp_path):
    put_reference(tmp_path / "data", "sub-a", mask())
    put_prediction(tmp_path / "predictions", "sub-a", mask((20, 8)))
    assert evaluate(settings(tmp_path)) == 0
    found = read_summary(tmp_path)
    assert (found["vertebrae"], found["extra"], found["mean_dice"], found["found_share"]) == (
        0,
        1,
        None,
        None,
    )
    assert (tmp_path / "output" / "evaluation.png").stat().st_size > 0
    assert "No reference vertebrae." in (tmp_path / "output" / "evaluation.md").read_text()


def test_prediction_of_the_cases_own_split_goes_first(tmp_path):
    reference = put_reference(tmp_path / "data", "sub-a", mask((20, 8)))
    own = put_reference(tmp_path / "predictions", "sub-a", mask((20, 8)))
    put_reference(tmp_path / "predictions", "sub-a", mask((20, 9)), split="training")
    put_prediction(tmp_path / "predictions", "sub-a", mask((20, 10)))
    (case,) = index_cases(tmp_path / "data")
    assert case.mask == reference
    assert pair_with_predictions([case], tmp_path / "predictions") == [(case, own)]


def test_letters_of_another_case_pair_and_bring_their_own_table(tmp_path):
    put_reference(tmp_path / "data", "sub-x_dir-ax", mask((20, 8)))
    put_prediction(tmp_path / "predictions", "SUB-X_dir-AX", mask((3, 8)), numbering="count")
    assert evaluate(settings(tmp_path)) == 0
    found = read_summary(tmp_path)
    assert (found["found"], found["missed"]) == (1, 0)  # of vertebrae that are counted, by overlap


def test_predictions_that_differ_in_the_letters_alone_are_one_line(tmp_path, capsys):
    put_reference(tmp_path / "data", "sub-x", mask((20, 8)))
    for key, z in (("sub-X", 8), ("sub-x", 9)):
        put_prediction(tmp_path / "predictions", key, mask((20, z)))
    assert evaluate(settings(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "expected one mask file for" in said and said.count("\n") == 1
    assert not (tmp_path / "output").exists()


@pytest.mark.skipif(os.name != "posix", reason="file names are text on this system")
def test_folders_whose_names_are_no_text_are_compared(tmp_path, capsys):
    top = tmp_path / os.fsdecode(b"Jos\xe9")
    put_reference(top / "data", "sub-a\x1b[31m", mask((20, 8)))
    put_prediction(top / "predictions", "sub-a\x1b[31m", mask((20, 8)))
    assert evaluate(settings(top, compare=top / "predictions")) == 0
    assert "Jos\\udce9" in (top / "output" / "comparison.md").read_text(encoding="utf-8")
    assert "\x1b" not in capsys.readouterr().out


def test_numbering_defaults_to_anatomical(tmp_path):
    path = tmp_path / "sub-a_vertebrae.csv"
    assert read_numbering(path) == "anatomical"
    path.write_text("label,numbering\n")
    assert read_numbering(path) == "anatomical"
    path.write_text("label\n3\n")
    assert read_numbering(path) == "anatomical"
    path.write_text("label,numbering\n1,count\n2,count\n")
    assert read_numbering(path) == "count"
    path.write_text("label,numbering\n1,count\n2,anatomical\n")
    with pytest.raises(ValueError, match=r"sub-a_vertebrae\.csv"):
        read_numbering(path)
    for content in ("label,numbering\n1,\n2,count\n", "a,b\n1,2,3,4\n5,6,7,8,9\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"sub-a_vertebrae\.csv: expected") as error:
            read_numbering(path)
        assert "\n" not in str(error.value)


def test_a_mask_that_takes_too_much_memory_is_named_with_the_option_that_allows_it(tmp_path, capsys):
    reference = put_reference(tmp_path / "data", "sub-a", mask((20, 8)))
    put_prediction(tmp_path / "predictions", "sub-a", mask((20, 8)))
    assert evaluate(settings(tmp_path, max_gigabytes=1e-5)) == 1
    assert f"{reference}: expected a scan of at most 1e-05 GB (--max-gigabytes)" in capsys.readouterr().err
    assert evaluate(settings(tmp_path)) == 0


def test_rounding_of_an_affine_is_the_same_grid():
    reference = Volume(mask(), AFFINE)
    check_same_grid(reference, Volume(mask(), AFFINE + 1e-5), name=Path("near"))
    moved = AFFINE.copy()
    moved[2, 2] += 0.01  # 23 slices further it adds up to .23 mm.
    with pytest.raises(ValueError, match=r"far: .*0\.23 mm"):
        check_same_grid(reference, Volume(mask(), moved), name=Path("far"))


def results():
    scores = (
        VertebraScore("reference", 7, 7, 0.9, True, 1.0, 2.0, identified=True, localisation_error_mm=1.0),
        VertebraScore("reference", 8, 0, 0.0, identified=False),
        VertebraScore("extra", 9, 9),
    )
    return [
        CaseResult("sub-a", "test", "scored", "anatomical", scores),
        CaseResult("sub-b", "test", "bad reference", message="sub-b is bad"),
    ]


def test_means_are_over_reference_vertebrae_and_bad_references_are_no_scans():
    found = summary(results())
    assert found["scans"] == 1 and found["bad_cases"] == ["sub-b"]
    assert (found["mean_dice"], found["mean_surface_distance_mm"], found["mean_hausdorff_95_mm"]) == (
        0.45,
        1,
        2,
    )
    assert (found["identification_rate"], found["localisation_error_mm"]) == (0.5, 1)
    assert found["extra_per_scan"] == 1
    assert case_table(results())["message"].tolist() == ["", "sub-b is bad"]


def test_a_missed_vertebra_counts_zero_in_the_mean_dice_whatever_was_predicted_of_it():
    scores = (
        VertebraScore("reference", 7, 7, 0.9, True, 1.0, 2.0),
        VertebraScore("reference", 8, 8, 0.4, False, 3.0, 9.0),
    )
    found = summary([CaseResult("sub-a", "test", "scored", "count", scores)])
    assert (found["found"], found["missed"], found["mean_dice"]) == (1, 1, 0.45)


def test_a_vertebra_that_the_scan_cuts_counts_in_no_mean_over_complete_ones():
    scores = (
        VertebraScore("reference", 7, 7, 0.3, False, complete=False),
        VertebraScore("reference", 8, 8, 0.9, True),
        VertebraScore("reference", 9, 9, 0.4, False),
    )
    found = summary([CaseResult("sub-a", "test", "scored", "count", scores)])
    assert (found["mean_dice"], found["mean_dice_complete"]) == (pytest.approx(0.3), 0.45)
    assert (found["found_share"], found["found_share_complete"]) == (pytest.approx(1 / 3), 0.5)


def test_scores_by_overlap_ask_for_no_label(tmp_path):
    put_reference(tmp_path / "data", "sub-a", mask((19, 2), (20, 8), (21, 14)))
    # One level too low, the middle one by one of four slices (Dice .75), and the last one is not there.
    put_prediction(tmp_path / "predictions", "sub-a", mask((20, 2), (21, 9)))
    assert evaluate(settings(tmp_path)) == 0
    found = read_summary(tmp_path)
    assert (found["mean_dice"], found["found"]) == (0, 0)
    assert found["mean_dice_overlap"] == pytest.approx((1 + 0.75 + 0) / 3)
    assert found["found_overlap"] == pytest.approx(2 / 3)
    assert evaluate(settings(tmp_path, found_dice=0.8)) == 0
    assert read_summary(tmp_path)["mean_dice_overlap"] == pytest.approx(1 / 3)


def test_the_summary_keeps_the_names_that_others_rely_on():
    names = ["mean_dice", "vertebrae", "found", "missed", "extra", "mean_surface_distance_mm"]
    names += ["identification_rate", "localisation_error_mm", "scans", "found_share", "mean_hausdorff_95_mm"]
    names += ["extra_per_scan", "bad_cases", "mean_dice_overlap", "found_overlap"]
    assert set(names) <= set(summary(results()))


def scored_case(key, *scores):
    return CaseResult(key, "test", "scored", "anatomical", scores)


def reference(label, dice, *, identified=True, error_mm=0.0):
    return VertebraScore(
        "reference", label, label, dice, dice >= 0.5, identified=identified, localisation_error_mm=error_mm
    )


def test_localisation_error_over_all_predicted_and_over_the_identified_alone():
    scores = (
        reference(7, 0.9, error_mm=2.0),
        reference(8, 0.9, identified=False, error_mm=25.0),
        VertebraScore("reference", 9, identified=False),
    )
    found = summary([scored_case("sub-a", *scores)])
    assert found["identification_rate"] == pytest.approx(1 / 3)
    assert found["localisation_error_mm"] == 13.5
    assert found["localisation_error_identified_mm"] == 2


def test_partial_vertebrae_are_counted_apart_and_change_no_other_score():
    alone = summary([scored_case("sub-a", reference(8, 0.9))])
    with_partial = summary([scored_case("sub-a", reference(8, 0.9), VertebraScore("partial", 7, 7))])
    assert (alone.pop("partial"), with_partial.pop("partial")) == (0, 1)
    assert alone["by_region"]["thoracic"] == with_partial["by_region"]["thoracic"]
    for found in (alone, with_partial):
        found.pop("by_region"), found.pop("by_anomaly")
    assert alone == with_partial


def test_intervals_are_over_patients_and_stand_beside_the_means():
    # sub-a has two scans: with its .6 in both it is one patient, as sub-b with its 1.
    cases = [scored_case(key, reference(8, 0.6)) for key in ("sub-a_dir-ax", "sub-a_dir-sag")]
    found = summary([*cases, scored_case("sub-b", reference(8, 1.0), reference(9, 1.0))])
    assert (found["scans"], found["subjects"]) == (3, 2)
    assert found["mean_dice"] == pytest.approx(0.8)
    assert found["intervals_95"]["mean_dice"] == pytest.approx((0.6, 1))
    assert found["intervals_95"]["found_share"] == (1, 1)
    assert found["intervals_95"]["mean_hausdorff_mm"] is None
    assert summary(cases)["intervals_95"]["mean_dice"] is None  # One patient.


def test_counted_vertebrae_have_no_interval_of_what_labels_say():
    cases = [scored_case(f"sub-{i}", VertebraScore("reference", 8, 1, 0.9, True)) for i in range(3)]
    intervals = summary(cases)["intervals_95"]
    assert intervals["identification_rate"] is None and intervals["localisation_error_mm"] is None
    assert intervals["mean_dice"] == pytest.approx((0.9, 0.9))


def test_scans_by_the_anomalies_of_their_reference():
    t11, t12, t13, l1, l6 = 18, 19, 28, 20, 25
    cases = [
        scored_case("sub-a", reference(t12, 1.0), reference(t13, 1.0), reference(l1, 1.0)),
        scored_case("sub-b", reference(t11, 0.5), reference(l1, 0.5)),  # T12 absent between T11 and L1.
        scored_case("sub-c", reference(l6, 0.8), reference(t13, 0.8)),
        scored_case("sub-d", reference(t12, 0.7), VertebraScore("extra", l6, l6)),  # L6 predicted only.
        CaseResult("sub-e", "test", "bad reference", message="sub-e is bad"),
    ]
    groups = {
        name: (found["scans"], found["vertebrae"]) for name, found in summary(cases)["by_anomaly"].items()
    }
    assert groups == {"L6": (1, 2), "T13": (2, 5), "T12 absent": (1, 2), "none": (1, 1)}
    assert case_table(cases)["anomalies"].tolist() == ["T13", "T12 absent", "L6; T13", "", ""]
    assert summary(cases)["by_anomaly"]["T13"]["mean_dice"] == pytest.approx((3 * 1 + 2 * 0.8) / 5)


def test_groups_side_by_side():
    groups = {
        "one": {"vertebrae": 3, "mean_dice": 0.5, "intervals_95": {"mean_dice": (0.25, 0.75)}},
        "two": {"vertebrae": 1, "mean_dice": None, "intervals_95": {"mean_dice": None}},
    }
    assert side_by_side(groups).splitlines() == [
        "| score     | one                    | two |",
        "| --------- | ---------------------- | --- |",
        "| vertebrae | 3                      | 1   |",
        "| mean_dice | 0.500 (0.250 to 0.750) | –   |",
    ]


def test_log_line_of_a_case():
    assert case_line(results()[0]) == "sub-a: scored, 1 of 2 found, 1 extra, mean Dice 0.450"
    assert case_line(results()[1]) == "sub-b: bad reference, 0 of 0 found, 0 extra, mean Dice –"


def test_regions_with_reference_vertebrae_from_the_neck_down():
    table = group_table(score_table(results()), "region", REGIONS)
    assert table[["region", "vertebrae", "found", "extra"]].to_numpy().tolist() == [
        ["cervical", 1, 1, 0],
        ["thoracic", 1, 0, 1],
    ]


def test_figure_shows_every_reference_vertebra_at_its_dice():
    axes = dice_figure(score_table(results()), found_dice=0.6).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["C7\n1", "T1\n1"]
    dots = [
        line.get_ydata().tolist() for line in axes.lines if line.get_marker() == "o" and len(line.get_ydata())
    ]
    assert dots == [[0.9], [0.0]]
    assert 0.6 in [float(line.get_ydata()[0]) for line in axes.lines if line.get_linestyle() == "--"]


def test_markdown_table_pads_and_marks_what_is_not_defined():
    table = pd.DataFrame({"a": ["x", "long"], "b": [0.5, float("nan")]})
    assert markdown_table(table) == "| a    | b     |\n| ---- | ----- |\n| x    | 0.500 |\n| long | –     |"


def test_the_script_says_one_line_and_ends_with_status_1(tmp_path):
    command = [sys.executable, str(ROOT / "evaluate.py"), "--data-dir", str(tmp_path / "nowhere")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.strip().count("\n") == 0 and str(tmp_path / "nowhere") in ended.stderr


def test_real_masks_scored_against_themselves_are_perfect(tmp_path):
    if not DATA.is_dir():
        pytest.skip(NO_DATA)
    files = [file for file in VERSE_FILES if file.startswith("VerSe19/")]
    real = real_tree(tmp_path / "real", files)
    assert evaluate(settings(tmp_path, data_dir=real, predictions=real, split="training")) == 0
    found = read_summary(tmp_path)
    assert (found["vertebrae"], found["found"], found["extra"]) == (14, 14, 0)
    assert (found["mean_dice"], found["mean_surface_distance_mm"], found["identification_rate"]) == (1, 0, 1)
