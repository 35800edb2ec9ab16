"""What is measured of a case, and what counts as odd."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from tests.imaging.examples import oblique_affine, save, two_vertebrae, write_case
from utils.imaging.nifti import read_pair
from utils.imaging.volume import Volume
from utils.preparation.case_check import (
    C1_TOLERANCE_MM,
    CENTROID_TOLERANCE_MM,
    check_case,
    distance_to_label_mm,
    missing_levels,
    odd_numbers,
    vertebra_facts,
)
from utils.verse.anomalies import anomalies_of
from utils.verse.cases import Case
from utils.verse.labels import code_of_name

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def case_of(tmp_path, *, parts=("ct", "mask", "centroids")):
    """A case of T13 above L1 (`two_vertebrae`) with its files."""
    paths = write_case(tmp_path, "sub-x", parts=parts)
    return Case("sub-x", "sub-x", "training", **{part: paths[part] for part in parts})


def kinds(case):
    return [(finding.kind, finding.bad) for finding in check_case(case).findings]


def points(*entries):
    return json.dumps(
        [{"direction": ["R", "A", "S"]}, *({"label": a, "X": x, "Y": y, "Z": z} for a, x, y, z in entries)]
    )


def test_a_whole_case_is_measured_and_has_no_findings(tmp_path):
    facts = check_case(case_of(tmp_path))
    assert facts.findings == () and not facts.bad and facts.anomalies == ["T13"]
    assert facts.hu_range == (-50, 400)
    assert (facts.ct.axes, facts.ct.number_type, facts.mask.number_type) == ("RAS", "int16", "uint8")
    assert facts.image is facts.ct and facts.image.grid.shape == (20, 24, 28)
    # 6 x 6 x 6 and 6 x 6 x 8 voxels of 8 mm³; only L1 begins at the volume's first slice.
    t13, l1 = facts.vertebrae
    assert (t13.code, t13.voxels, t13.volume_mm3, t13.components, t13.strays) == (
        28,
        216,
        pytest.approx(1728),
        1,
        (),
    )
    assert (l1.code, l1.voxels, l1.volume_mm3, l1.components, l1.strays) == (
        20,
        288,
        pytest.approx(2304),
        1,
        (),
    )
    assert (t13.touches_border, l1.touches_border) == (False, True)
    assert (t13.centroid_distance_mm, l1.centroid_distance_mm) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (("mask", "centroids"), [("incomplete", "no CT")]),
        (("ct", "centroids"), [("incomplete", "no mask")]),
        (("ct",), [("incomplete", "no mask, no centroids")]),
        (("ct", "mask"), [("no centroid file", "the pre-processing derives them from the mask")]),
    ],
)
def test_missing_parts_are_remarks(tmp_path, parts, found):
    facts = check_case(case_of(tmp_path, parts=parts))
    assert [(each.kind, each.what) for each in facts.findings] == found and not facts.bad
    assert len(facts.vertebrae) == (2 if "mask" in parts else 0)
    assert facts.image is (facts.ct if "ct" in parts else facts.mask) is not None


@pytest.mark.parametrize("role", ["ct", "mask", "centroids"])
def test_an_unreadable_file_is_named_and_the_others_are_measured(tmp_path, role):
    case = case_of(tmp_path)
    path = getattr(case, role)
    path.write_bytes(path.read_bytes()[:60])
    facts = check_case(case)
    (bad,) = [finding for finding in facts.findings if finding.bad]
    assert (bad.kind, bad.file) == ("unreadable file", path) and "expected" in bad.what
    assert not bad.what.startswith(str(path))
    assert len(facts.vertebrae) == (0 if role == "mask" else 2)


def test_whatever_else_goes_wrong_is_a_finding_too(tmp_path, monkeypatch):
    def fail(path, **options):
        raise MemoryError("no memory")

    monkeypatch.setattr("utils.preparation.case_check.read_ct", fail)
    (finding,) = check_case(case_of(tmp_path)).findings
    assert (finding.kind, finding.what) == (
        "unreadable file",
        "expected to be read, found MemoryError: no memory",
    )


def test_shapes_that_differ_are_bad(tmp_path):
    case = case_of(tmp_path)
    save(case.mask, two_vertebrae()[1].data[:, :, 1:], AFFINE)
    (finding,) = check_case(case).findings
    assert (finding.kind, finding.file) == ("shapes differ", case.mask)
    assert finding.what == "expected the shape of the CT, 20 x 24 x 28, found 20 x 24 x 27"


@pytest.mark.parametrize(("voxels", "bad"), [(0.09, False), (0.11, True)])
def test_positions_that_differ_are_bad_where_the_pre_processing_refuses_them(tmp_path, voxels, bad):
    case = case_of(tmp_path)
    moved = AFFINE.copy()
    moved[0, 3] = 2 * voxels
    save(case.mask, two_vertebrae()[1].data, moved)
    assert kinds(case) == ([("positions differ", True)] if bad else [])
    if bad:
        with pytest.raises(ValueError, match=r"corners 0\.11 voxels apart"):
            read_pair(case.ct, case.mask)
        assert check_case(case).findings[0].what.endswith("found corners 0.11 voxels apart")
    else:
        read_pair(case.ct, case.mask)


@pytest.mark.parametrize("label", [26, 27, 99, -1])
def test_labels_outside_the_table_are_bad(tmp_path, label):
    case = case_of(tmp_path)
    data = two_vertebrae()[1].data.astype(np.int16)
    data[0, 0, 0] = label
    save(case.mask, data, AFFINE)
    (finding,) = check_case(case).findings
    assert (finding.kind, finding.bad, finding.file) == ("labels outside the table", True, case.mask)
    assert finding.what == f"expected VerSe labels (0-25 or 28), found {label}"


def test_a_label_outside_the_table_in_the_centroid_file_is_bad(tmp_path):
    case = case_of(tmp_path)
    case.centroids.write_text(points((20, 8.5, 6.5, 3.5), (26, 8.5, 6.5, 18.5)))
    (finding,) = check_case(case).findings
    assert (finding.kind, finding.bad, finding.file) == ("labels outside the table", True, case.centroids)


def test_points_far_outside_the_scan_are_bad(tmp_path):
    case = case_of(tmp_path)
    case.centroids.write_text(points((20, 8.5, 6.5, 3.5), (28, 8.5, 6.5, 90)))
    (finding,) = check_case(case).findings
    assert (finding.kind, finding.bad, finding.file) == ("positions differ", True, case.centroids)


def test_an_empty_mask_is_bad(tmp_path):
    case = case_of(tmp_path, parts=("ct", "mask"))
    save(case.mask, np.zeros((20, 24, 28), np.uint8), AFFINE)
    assert kinds(case) == [("no centroid file", False), ("no vertebra", True)]


def test_labels_that_only_one_of_mask_and_centroids_has_are_named(tmp_path):
    case = case_of(tmp_path)
    case.centroids.write_text(points((20, 8.5, 6.5, 3.5), (19, 8.5, 6.5, 20), (1, 8, 8, 27)))
    found = check_case(case).findings
    assert [(each.kind, each.what, each.bad) for each in found] == [
        ("labels of mask and centroids differ", "C1, T12 in the centroid file only", False),
        ("labels of mask and centroids differ", "T13 in the mask only", False),
    ]


@pytest.mark.parametrize(
    ("z", "distance_mm", "odd"), [(7.4, 0.0, False), (7.9, 1.8, False), (8.1, 2.2, True), (9.5, 5.0, True)]
)
def test_a_centroid_outside_its_vertebra(tmp_path, z, distance_mm, odd):
    # L1 ends with slice 7, whose voxels reach to 7.5; voxels are 2 mm wide.
    case = case_of(tmp_path)
    case.centroids.write_text(points((20, 8, 6, z), (28, 8.5, 6.5, 18.5)))
    facts = check_case(case)
    assert facts.vertebrae[1].centroid_distance_mm == pytest.approx(distance_mm, abs=1e-5)
    expected = [("centroid outside its vertebra", f"L1: {distance_mm:.1f} mm from its nearest voxel")]
    assert [(each.kind, each.what) for each in facts.findings] == (expected if odd else [])
    assert CENTROID_TOLERANCE_MM == 2


@pytest.mark.parametrize(("offset", "odd"), [(C1_TOLERANCE_MM - 2, False), (C1_TOLERANCE_MM + 2, True)])
def test_the_point_of_c1_lies_in_its_ring(tmp_path, offset, odd):
    case = case_of(tmp_path)
    mask = np.zeros((20, 24, 28), np.uint8)
    mask[2:4, 10, 10] = 1
    save(case.mask, mask, AFFINE)
    case.centroids.write_text(points((1, 3 + offset / 2, 10, 10)))
    assert kinds(case) == ([("centroid outside its vertebra", False)] if odd else [])


def test_distance_is_measured_in_the_world():
    mask = Volume(np.zeros((9, 9, 9), np.uint8), oblique_affine())
    mask.data[4, 4, 4] = 7
    # Three voxels along the second axis, whose spacing is .8 mm.
    point_mm = (mask.affine @ [4, 7, 4, 1])[:3]
    assert distance_to_label_mm(mask, 7, point_mm) == pytest.approx(2.4)
    assert distance_to_label_mm(mask, 7, (mask.affine @ [4.4, 3.6, 4.3, 1])[:3]) == 0
    assert distance_to_label_mm(mask, 7, (mask.affine @ [4, -1, 4, 1])[:3]) == pytest.approx(4.0)


def test_strays_are_parts_of_at_least_two_voxels_that_no_face_connects(tmp_path):
    case = case_of(tmp_path)
    mask = two_vertebrae()[1].data
    mask[12, 10, 22] = 28  # touches T13 by a corner only: one voxel is none
    mask[16:18, 20, 2] = 20
    mask[0:3, 0, 27] = 20
    mask[19, 23, 27] = 20
    save(case.mask, mask, AFFINE)
    facts = check_case(case)
    t13, l1 = facts.vertebrae
    assert (t13.components, t13.strays, l1.components, l1.strays) == (2, (), 4, (3, 2))
    (finding,) = facts.findings
    assert (finding.kind, finding.bad, finding.file) == ("stray components", False, case.mask)
    assert finding.what == "L1 is in 4 parts; strays: 3 voxels (24.0 mm³), 2 voxels (16.0 mm³)"


def test_every_face_of_the_volume_is_a_border():
    for axis in range(3):
        for index in (0, 6):
            data = np.zeros((7, 7, 7), np.uint8)
            data[3, 3, 3] = 1
            place = [3, 3, 3]
            place[axis] = index
            data[tuple(place)] = 2
            facts = vertebra_facts(Volume(data, np.eye(4)))
            assert [each.touches_border for each in facts] == [False, True]


@pytest.mark.parametrize(
    ("levels", "anomalies", "missing"),
    [
        ("T11 T12 L1 L2", [], []),
        ("T10 T11 L1 L2", ["T12 absent"], []),
        ("T10 T11", [], []),
        ("L1 L2", [], []),
        ("T10 L1", [], ["T11", "T12"]),
        ("T11 L2", [], ["T12", "L1"]),
        ("T12 T13 L1", ["T13"], []),
        ("T11 T13 L1", ["T12 absent", "T13"], []),
        ("L4 L5 L6", ["L6"], []),
        ("L4 L6", ["L6"], ["L5"]),
        ("C1 C3 C6", [], ["C2", "C4", "C5"]),
        ("C7 T2", [], ["T1"]),
        ("", [], []),
    ],
)
def test_anomalies_and_gaps_of_the_levels(levels, anomalies, missing):
    codes = [code_of_name(name) for name in levels.split()]
    assert (anomalies_of(codes), missing_levels(codes)) == (anomalies, missing)


def test_a_gap_in_the_levels_is_a_remark(tmp_path):
    case = case_of(tmp_path, parts=("ct", "mask"))
    mask = two_vertebrae()[1].data
    mask[mask == 28] = 17
    save(case.mask, mask, AFFINE)
    found = check_case(case).findings[1:]
    assert [(each.kind, each.what, each.bad) for each in found] == [
        ("gap in the levels", "no T11, no T12", False)
    ]


def test_odd_numbers_are_counted_over_all_parts():
    first = np.array([0, 1, 19.9999, 20.02, np.nan])
    second = np.array([[28, 2.97], [np.inf, 3 + 1e-9]])
    gaps, fractions, largest = odd_numbers([first, second])
    assert (gaps, fractions) == (2, 3) and largest == pytest.approx(0.03)
    assert odd_numbers([np.arange(5.0), np.array([7 + 1e-9])]) == (0, 0, 0.0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_float_noise_of_a_mask_is_counted(tmp_path, dtype):
    case = case_of(tmp_path)
    mask = two_vertebrae()[1].data.astype(dtype)
    mask[6:8, 4:9, 16] += 0.002
    mask[7, 7, 7] -= 0.015
    save(case.mask, mask, AFFINE)
    facts = check_case(case)
    assert [(each.kind, each.what, each.bad, each.file) for each in facts.findings] == [
        (
            "float noise",
            f"11 numbers ({np.dtype(dtype)}) are not whole, off by up to 0.015",
            False,
            case.mask,
        )
    ]
    assert [each.voxels for each in facts.vertebrae] == [216, 288]


def test_a_mask_of_whole_floats_has_no_noise(tmp_path):
    case = case_of(tmp_path)
    save(case.mask, two_vertebrae()[1].data.astype(np.float64), AFFINE)
    facts = check_case(case)
    assert facts.findings == () and facts.mask.number_type == "float64"


def test_voxels_without_a_number_are_counted(tmp_path):
    case = case_of(tmp_path)
    ct = two_vertebrae()[0].data.astype(np.float32)
    ct[0, 0, :5] = np.nan
    save(case.ct, ct, AFFINE)
    (finding,) = check_case(case).findings
    assert (finding.kind, finding.file, finding.bad) == ("voxels without a number", case.ct, False)
    assert finding.what == "5 numbers are NaN or infinite, read as air"


def test_scaled_numbers_are_compared_after_scaling(tmp_path):
    case = case_of(tmp_path)
    data = two_vertebrae()[1].data.astype(np.int16) * 20
    data[6, 4, 16] += 1  # 28.05
    # nibabel stores the numbers as they are beside a slope that is set.
    image = nibabel.Nifti1Image(data, AFFINE)
    image.header.set_slope_inter(0.05, 0)
    nibabel.save(image, case.mask)
    facts = check_case(case)
    assert not facts.mask.as_integers and [each.voxels for each in facts.vertebrae] == [216, 288]
    assert [(each.kind, each.what) for each in facts.findings] == [
        ("float noise", "1 numbers (int16) are not whole, off by up to 0.05")
    ]


def test_qform_and_sform_that_differ_are_a_remark(tmp_path):
    case = case_of(tmp_path)
    image = nibabel.load(case.ct)
    image = nibabel.Nifti1Image(np.asarray(image.dataobj), AFFINE)
    moved = AFFINE.copy()
    moved[:3, 3] = [3, 0, 4]
    image.set_qform(moved, code=1)
    image.set_sform(AFFINE, code=2)
    nibabel.save(image, case.ct)
    facts = check_case(case)
    assert facts.ct.form_codes == (1, 2) and facts.ct.forms_apart_mm == pytest.approx(5)
    (finding,) = facts.findings
    assert (finding.kind, finding.bad, finding.file) == ("qform and sform differ", False, case.ct)
    assert finding.what == "corners lie up to 5 mm apart; the sform is used"


def test_facts_do_not_depend_on_how_the_volume_is_turned(tmp_path):
    case = case_of(tmp_path)
    ct, mask = (nibabel.load(path) for path in (case.ct, case.mask))
    for image, path in ((ct, case.ct), (mask, case.mask)):
        nibabel.save(image.as_reoriented(nibabel.orientations.axcodes2ornt("SRP")), path)
    facts = check_case(case)
    assert facts.image.axes != "RAS" and facts.findings == ()
    assert [replace(each, code=0) for each in facts.vertebrae] == [
        replace(each, code=0) for each in check_case(case_of(tmp_path / "again")).vertebrae
    ]


def test_what_takes_too_much_memory_is_a_finding_that_names_the_option(tmp_path):
    case = case_of(tmp_path)
    found = [each for each in check_case(case, most_bytes=1).findings if "--max-gigabytes" in each.what]
    assert [(each.kind, each.bad, each.file) for each in found] == [
        ("unreadable file", True, case.ct),
        ("unreadable file", True, case.mask),
    ]
