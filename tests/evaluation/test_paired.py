"""The comparison of two folders of predictions, against differences worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.evaluation.test_report import mask, put_prediction, put_reference, settings
from utils.evaluation.evaluation import evaluate
from utils.evaluation.intervals import Resampling
from utils.evaluation.metrics import VertebraScore
from utils.evaluation.paired import (
    comparison_figure,
    comparison_table,
    count_table,
    difference_rows,
    pair_scores,
    short_names,
    wilcoxon_p,
)
from utils.evaluation.report import CaseResult

RESAMPLING = Resampling(resamples=2000, seed=0)


def case(key, *dice, extra=0, **scores):
    """A case with the vertebrae T1, T2, ... at these Dice; under .5 they are missed."""
    vertebrae = [
        VertebraScore("reference", label, label, value, value >= 0.5, identified=value >= 0.5, **scores)
        for label, value in enumerate(dice, start=8)
    ]
    vertebrae += [VertebraScore("extra", 1 + number, 1 + number) for number in range(extra)]
    return CaseResult(key, "test", "scored", "anatomical", tuple(vertebrae))


def row(paired, score="mean_dice"):
    table = comparison_table(paired, RESAMPLING).set_index("score")
    return table.loc[score]


def test_difference_of_two_patients_by_hand():
    # sub-a: +.1 and +.3 in two vertebrae, sub-b: -.2 in one. Mean over vertebrae 1/15, over patients 0.
    paired = pair_scores(
        [case("sub-a", 0.9, 0.8), case("sub-b", 0.6)], [case("sub-a", 0.8, 0.5), case("sub-b", 0.8)]
    )
    found = row(paired)
    assert (found["A"], found["B"]) == pytest.approx(((0.9 + 0.8 + 0.6) / 3, (0.8 + 0.5 + 0.8) / 3))
    assert found["difference"] == pytest.approx(0.2 / 3)
    # A resample is one patient twice or each once, so the limits are the two patients' own means.
    assert (found["low"], found["high"]) == pytest.approx((-0.2, 0.2))
    assert found[["patients", "unequal", "vertebrae"]].tolist() == [2, 2, 3]
    assert found["better"] == "higher" and row(paired, "mean_hausdorff_mm")["better"] == "lower"


def test_scans_of_one_patient_are_one_pair_of_the_test():
    first = [case("sub-a_dir-ax", 0.9), case("sub-a_dir-sag", 0.7), case("sub-b", 0.8)]
    second = [case("sub-a_dir-ax", 0.8), case("sub-a_dir-sag", 0.8), case("sub-b", 0.7)]
    found = row(pair_scores(first, second))
    # The two scans of sub-a cancel (but for the rounding of floats).
    assert found[["patients", "unequal", "vertebrae"]].tolist() == [2, 1, 3]
    assert found["p"] == 1
    subjects = difference_rows(pair_scores(first, second)).query("unit == 'subject'")
    assert subjects["subject"].tolist() == ["sub-a", "sub-b"]
    assert subjects["mean_dice_difference"].tolist() == pytest.approx([0, 0.1])


def test_a_missed_vertebra_counts_zero_and_leaves_the_distances():
    near = {"mean_surface_distance_mm": 1.0, "hausdorff_mm": 4.0}
    missed = VertebraScore("reference", 8, identified=False)
    paired = pair_scores(
        [case("sub-a", 0.9, **near), case("sub-b", 0.9, **near)],
        [CaseResult("sub-a", "test", "no prediction", scores=(missed,)), case("sub-b", 0.8, **near)],
    )
    found = row(paired)
    assert found["difference"] == pytest.approx((0.9 + 0.1) / 2)
    distance = row(paired, "mean_hausdorff_mm")
    assert (distance["difference"], distance["vertebrae"], distance["patients"]) == (0, 1, 1)
    assert row(paired, "identification_rate")["difference"] == 0.5


def test_equal_folders_differ_by_nothing_and_have_no_p():
    results = [case("sub-a", 0.9, 0.8), case("sub-b", 0.7)]
    found = row(pair_scores(results, results))
    assert (found["difference"], found["low"], found["high"], found["unequal"]) == (0, 0, 0, 0)
    assert pd.isna(found["p"])


def test_p_of_six_patients_that_all_gain_is_two_in_sixty_four():
    # Only 2 of the 2^6 ways to sign six ranks are as extreme as all of one sign.
    assert wilcoxon_p(pd.Series([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])) == pytest.approx(2 / 64)
    # A zero and a value that is not there leave the same six.
    with_gaps = pd.Series([0.0, float("nan"), -0.01, -0.02, -0.03, -0.04, -0.05, -0.06])
    assert wilcoxon_p(with_gaps) == pytest.approx(2 / 64)
    assert wilcoxon_p(pd.Series([0.0, 0.0])) is None
    assert wilcoxon_p(pd.Series([], dtype=float)) is None


def test_interval_and_p_of_many_patients_agree_with_scipy():
    generator = np.random.default_rng(0)
    first, second = generator.uniform(0.7, 1, 30), generator.uniform(0.6, 1, 30)
    cases = [[case(f"sub-{i}", value) for i, value in enumerate(dice)] for dice in (first, second)]
    found = comparison_table(pair_scores(*cases), Resampling(20_000)).set_index("score").loc["mean_dice"]
    expected = stats.bootstrap(
        (first - second,), np.mean, n_resamples=20_000, method="percentile", random_state=1
    ).confidence_interval
    assert found["low"] == pytest.approx(expected.low, abs=0.002)
    assert found["high"] == pytest.approx(expected.high, abs=0.002)
    assert found["p"] == pytest.approx(stats.wilcoxon(first, second).pvalue)


def test_counted_predictions_are_compared_without_what_labels_say():
    counted = VertebraScore("reference", 8, 1, 0.9, True)
    paired = pair_scores([CaseResult("sub-a", "test", "scored", "count", (counted,))], [case("sub-a", 0.8)])
    assert row(paired)["difference"] == pytest.approx(0.1)
    assert row(paired, "identification_rate")["vertebrae"] == 0
    assert math.isnan(row(paired, "identification_rate")["difference"])


def test_extra_vertebrae_are_in_the_counts_alone():
    first, second = [case("sub-a", 0.9, 0.2, extra=2)], [case("sub-a", 0.9, 0.9)]
    assert len(pair_scores(first, second).facts) == 2
    assert count_table(first, second).to_numpy().tolist() == [["A", 2, 1, 1, 2, 0], ["B", 2, 2, 0, 0, 0]]


def test_other_references_are_refused():
    with pytest.raises(ValueError, match="same reference vertebrae twice, found 1 and 2"):
        pair_scores([case("sub-a", 0.9)], [case("sub-a", 0.9, 0.9)])


def test_names_of_folders():
    assert short_names((Path("runs/teacher"), Path("runs/student"))) == ("teacher", "student")
    assert short_names((Path("a/predictions"), Path("b/predictions"))) == ("a", "b")
    assert short_names((Path("predictions"), Path("predictions"))) == ("predictions", "predictions")
    assert short_names((Path("a" + "x" * 29), Path("a" + "y" * 30)))[1] == "…" + "y" * 29


def test_figure_shows_every_pair_and_every_difference():
    paired = pair_scores([case("sub-a", 0.9, 0.2)], [case("sub-a", 0.7, 0.6)])
    against, by_level = comparison_figure(paired, names=("one", "two")).axes
    points = np.concatenate([line.get_xydata() for line in against.lines if line.get_marker() == "o"])
    assert points.tolist() == [[0.7, 0.9], [0.6, 0.0]]
    assert [text.get_text() for text in by_level.get_xticklabels()] == ["T1\n1", "T2\n1"]
    drawn = [line.get_ydata()[0] for line in by_level.lines if len(line.get_ydata()) == 1]
    assert drawn == pytest.approx([0.2, -0.6])


def test_two_folders_from_files_to_files(tmp_path, capsys):
    for key, bodies in (("sub-a", [(19, 2), (20, 8)]), ("sub-b", [(20, 8)])):
        put_reference(tmp_path / "data", key, mask(*bodies))
        put_prediction(tmp_path / "predictions", key, mask(*bodies))
    # The other folder shifts one vertebra of sub-a by a slice of four (Dice .75) and has no sub-b.
    put_prediction(tmp_path / "other", "sub-a", mask((19, 2), (20, 9)))
    assert evaluate(settings(tmp_path, compare=tmp_path / "other", resamples=100)) == 1
    captured = capsys.readouterr()
    assert captured.err.count("sub-b: expected a prediction in") == 1 and "| mean_dice " in captured.out
    rows = pd.read_csv(tmp_path / "output" / "comparison.csv")
    columns = ["unit", "subject", "name", "mean_dice", "mean_dice_other", "mean_dice_difference"]
    assert rows[columns].fillna("").to_numpy().tolist() == [
        ["vertebra", "sub-a", "T12", 1, 1, 0],
        ["vertebra", "sub-a", "L1", 1, 0.75, 0.25],
        ["vertebra", "sub-b", "L1", 1, 0, 1],
        ["subject", "sub-a", "", 1, 0.875, 0.125],
        ["subject", "sub-b", "", 1, 0, 1],
    ]
    page = (tmp_path / "output" / "comparison.md").read_text()
    assert f"A: {tmp_path / 'predictions'}\n\nB: {tmp_path / 'other'}\n" in page
    assert "all its vertebrae missed there" in page and "bootstrap, 100\n" in page
    assert (tmp_path / "output" / "comparison.png").stat().st_size > 0
    # The summary is that of --predictions alone.
    assert json.loads((tmp_path / "output" / "summary.json").read_text())["mean_dice"] == 1
    assert evaluate(settings(tmp_path, compare=tmp_path / "other", skip_bad=True)) == 0


def test_a_folder_to_compare_without_predictions_is_one_line_and_writes_nothing(tmp_path, capsys):
    put_reference(tmp_path / "data", "sub-a", mask((20, 8)))
    put_prediction(tmp_path / "predictions", "sub-a", mask((20, 8)))
    assert evaluate(settings(tmp_path, compare=tmp_path / "nowhere")) == 1
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_empty_references_are_compared_too(tmp_path):
    put_reference(tmp_path / "data", "sub-a", mask())
    for folder in ("predictions", "other"):
        put_prediction(tmp_path / folder, "sub-a", mask((20, 8)))
    assert evaluate(settings(tmp_path, compare=tmp_path / "other")) == 0
    assert "No reference vertebrae." in (tmp_path / "output" / "comparison.md").read_text()
