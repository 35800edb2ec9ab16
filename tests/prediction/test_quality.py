"""What is odd about a case, and its file."""

from __future__ import annotations

import json

import pytest

from tests.prediction.report_cases import rows_of
from tests.prediction.test_derivatives import predicted
from utils.prediction.case import CasePrediction
from utils.prediction.derivatives import case_path, write_case
from utils.prediction.quality import (
    QUALITY_SUFFIX,
    CaseQuality,
    Remark,
    case_remarks,
    read_quality,
    write_quality,
)

NAMES = ("1", "2", "3", "4", "5")


def test_a_healthy_column_has_no_remark():
    assert case_remarks(rows_of(NAMES)) == ()


def test_an_empty_table_means_that_nothing_was_found():
    assert case_remarks([]) == (Remark("nothing found", None, "no vertebra found"),)


@pytest.mark.parametrize(
    ("volume", "text"),
    [
        (25_000, "25.0 cm³, 2.5 times its neighbours' median"),
        (18_100, "18.1 cm³, 1.8 times its neighbours' median"),
        (18_000, None),
        (5_000, None),
        (4_900, "4.9 cm³, 0.5 times its neighbours' median"),
    ],
)
def test_an_odd_volume_is_told_from_the_neighbours_median(volume, text):
    # The neighbours have 9, 11, 9 and 11 cm³: median 10.
    remarks = case_remarks(rows_of(NAMES, volume_mm3=(9_000, 11_000, volume, 9_000, 11_000)))
    assert remarks == (() if text is None else (Remark("odd volume", "3", text),))


def test_only_complete_vertebrae_are_compared():
    volumes = (3_000, 10_000, 25_000, 3_000, 3_000)
    rows = rows_of(NAMES, volume_mm3=volumes, partial=(1, 0, 0, 1, "True"))
    assert [(remark.kind, remark.vertebra) for remark in case_remarks(rows)] == [
        ("partial", "1"),
        ("partial", "4"),
        ("partial", "5"),
    ]
    rows = rows_of(NAMES, volume_mm3=volumes, partial=(1, 0, 0, 0, 0))
    assert ("odd volume", "3") in [(remark.kind, remark.vertebra) for remark in case_remarks(rows)]


def test_two_vertebrae_have_too_few_neighbours():
    assert case_remarks(rows_of(NAMES[:2], volume_mm3=(1_000, 50_000), centre_z=(0, -90))) == ()


@pytest.mark.parametrize(("jump", "text"), [(30, None), (40, "40 mm to 4, 2.0 times the spacing around")])
def test_a_gap_is_told_from_the_neighbouring_distances(jump, text):
    heights = [0, -20, -40, -40 - jump, -60 - jump]
    remarks = case_remarks(rows_of(NAMES, centre_z=heights))
    assert remarks == (() if text is None else (Remark("gap", "3", text),))


def test_the_distance_is_that_in_space():
    # 3 x 16 and 4 x 16 mm: 80 mm, four times the 20 mm of the others.
    rows = rows_of(NAMES, centre_x=(0, 0, 0, 48, 48), centre_z=(0, -20, -40, -104, -124))
    assert case_remarks(rows) == (Remark("gap", "3", "80 mm to 4, 4.0 times the spacing around"),)


@pytest.mark.parametrize(
    ("names", "vertebra", "text"),
    [
        (("T4", "T5", "T7"), "T5", "T6 not found"),
        (("T10", "L1"), "T10", "T11, T12 not found"),
        (("T11", "L1"), None, None),  # T12 is absent in some spines
        (("T11", "T12", "L1"), None, None),
        (("T12", "T13", "L1"), None, None),
        (("C7", "T1"), None, None),
    ],
)
def test_levels_that_the_labels_leave_out(names, vertebra, text):
    expected = () if text is None else (Remark("gap", vertebra, text),)
    assert case_remarks(rows_of(names, "anatomical")) == expected


def test_labels_and_distance_make_one_remark():
    rows = rows_of(("T1", "T2", "T3", "T5", "T6"), "anatomical", centre_z=(0, -20, -40, -80, -100))
    text = "T4 not found; 40 mm to T5, 2.0 times the spacing around"
    assert case_remarks(rows) == (Remark("gap", "T3", text),)


def test_a_walk_that_did_not_come_to_rest():
    rows = rows_of(NAMES, converged=(1, 0, 1, 1, 1), steps=(3, 11, 3, 3, 3))
    assert case_remarks(rows) == (Remark("no convergence", "2", "the walk did not come to rest in 11 steps"),)


def test_low_probabilities_of_voxels_and_of_the_label():
    rows = rows_of(NAMES[:3], mean_probability=(0.75, 0.744, 0.6), label_probability=(0.74, None, 0.5))
    assert case_remarks(rows) == (
        Remark("low probability", "1", "label 0.74"),
        Remark("low probability", "2", "voxels 0.74"),
        Remark("low probability", "3", "voxels 0.60, label 0.50"),
    )


def test_rows_of_text_say_the_same_and_unknown_numbers_nothing():
    rows = rows_of(
        ("1", "2", "3", "4", "5"),
        volume_mm3=(10_000, 10_000, 25_000, 10_000, 10_000),
        partial=(0, 0, 0, 0, 1),
        converged=(1, 1, 0, 1, 1),
    )
    texts = [{column: str(value) for column, value in row.items()} for row in rows]
    assert case_remarks(texts) == case_remarks(rows) != ()
    unknown = [{**row, "volume_mm3": "", "centre_x": "nan", "converged": None} for row in rows]
    assert [remark.kind for remark in case_remarks(unknown)] == ["partial"]


def test_remarks_from_elsewhere_stand_first_and_instead():
    rows = rows_of(NAMES, converged=(1, 0, 0, 1, 1))
    extra = (Remark("hu doubt", None, "no air"), Remark("no convergence", "3", "seen by the walk"))
    assert case_remarks(rows, extra) == (
        *extra,
        Remark("no convergence", "2", "the walk did not come to rest in 3 steps"),
    )


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="received 'odd'"):
        Remark("odd", None, "")


# File

FULL = CaseQuality(
    **{"case": "sub-a", "kind": "anatomical", "anchor": "sacrum below", "sequence_probability": 0.8},
    **{"second_names": ("T12", "L1"), "second_probability": 0.15, "seconds": 12.5, "network_calls": 7},
    warnings=(Remark("gap", "L1", "1 cm³ < 2"), Remark("other", None, "é")),
)


@pytest.mark.parametrize("quality", [FULL, CaseQuality("sub-b", "count")])
def test_the_file_reads_back(tmp_path, quality):
    path = tmp_path / "new" / "a.json"
    write_quality(path, quality)
    assert read_quality(path) == quality


def test_older_predictions_have_no_file_and_other_versions_other_fields(tmp_path):
    assert read_quality(tmp_path / "none.json") is None
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"case": "sub-a", "kind": "count", "seconds": 3, "of the future": [1]}))
    assert read_quality(path) == CaseQuality("sub-a", "count", seconds=3.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        '{"case": "sub-a"}',
        '{"case": "sub-a", "kind": "count", "seconds": "long"}',
        '{"case": "sub-a", "kind": "count", "sequence_probability": NaN}',
        '{"case": "sub-a", "kind": "count", "second_names": 3}',
        '{"case": "sub-a", "kind": "count", "warnings": [{"kind": "odd", "vertebra": null, "text": ""}]}',
        '{"case": "sub-a", "kind": "count", "warnings": [{"kind": "gap"}]}',
    ],
)
def test_a_file_that_holds_something_else_is_named(tmp_path, text):
    path = tmp_path / "sub-a_quality.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"sub-a_quality\.json: expected what is known about a case, found"):
        read_quality(path)


def test_a_case_is_written_with_its_quality(tmp_path):
    key = "sub-col_dir-ax"
    path = case_path(tmp_path, key, QUALITY_SUFFIX)
    quality = CaseQuality(key, "count", seconds=1.0)
    write_case(CasePrediction(**{**vars(predicted(key=key)), "quality": quality}), tmp_path)
    assert read_quality(path) == quality
    write_case(predicted(key=key), tmp_path)  # made again by something that knows nothing of it
    assert not path.exists()
