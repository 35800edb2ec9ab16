"""Measures of vertebrae: of a generated spine against what was drawn, of plates whose angles are known."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.trial_measurements import true_centre, true_core_hu, true_heights, true_plates
from utils.imaging.grids import oriented
from utils.imaging.volume import Volume
from utils.prediction.measure import HEIGHTS, RATIOS, measure, spine_angles
from utils.prediction.vertebral_body import Plate
from utils.synthetic.phantom import acquisition
from utils.synthetic.phantom.acquisition import RAS_FROM_PRI
from utils.synthetic.phantom.make import STEP_MM, draw_scan
from utils.synthetic.phantom.tissue import render_tissue
from utils.verse.labels import code_of_name


@pytest.fixture(scope="module")
def spine():
    """T12 to L2 of a phantom, without the scanner's drift: anatomy, tissue, CT, labels."""
    ends = code_of_name("T12"), code_of_name("L2")
    anatomy, scan, values = draw_scan(8, 0, 0, style="2019", whole=ends)
    scan = dataclasses.replace(scan, drift_hu=0.0)
    tissue = render_tissue(anatomy, values, acquisition.grid_of(scan, STEP_MM))
    ct, _, bone = acquisition.acquire(tissue, scan, [])
    codes = acquisition.whole_codes(anatomy, scan)
    labels = np.where(np.isin(bone, codes), bone, 0).astype(np.uint8)
    ct, labels = Volume(ct, scan.affine), Volume(labels, scan.affine)
    return SimpleNamespace(anatomy=anatomy, tissue=tissue, ct=ct, labels=labels, codes=codes)


@pytest.fixture(scope="module")
def measured(spine):
    return measure(spine.ct, spine.labels)


def test_heights_density_and_centre_are_those_of_the_drawn_body(spine, measured):
    assert [row["label"] for row in measured.rows] == spine.codes
    for row in measured.rows:
        vertebra = spine.anatomy.vertebra(row["label"])
        heights = [row[name] for name in HEIGHTS]
        assert heights == pytest.approx(true_heights(vertebra), abs=1.0), row
        assert [row[name] for name in RATIOS] == pytest.approx(
            [heights[0] / heights[2], heights[1] / heights[2]], abs=0.01
        )
        assert row["core_hu"] == pytest.approx(true_core_hu(spine.tissue, vertebra), abs=10)
        centre = [row[f"body_{axis}"] for axis in "xyz"]
        assert np.linalg.norm(centre - RAS_FROM_PRI @ true_centre(vertebra)) < 1.5
        assert not row["why"]


def test_end_plates_are_turned_as_they_were_drawn(spine, measured):
    for code, body in measured.found.items():
        for plate, true in zip((body.upper, body.lower), true_plates(spine.anatomy.vertebra(code))):
            assert plate.sagittal_deg == pytest.approx(true.sagittal_deg, abs=2)
            assert plate.coronal_deg == pytest.approx(true.coronal_deg, abs=2)


def test_a_body_is_the_part_of_its_vertebra_in_front_of_the_canal(spine, measured):
    for code, body in measured.found.items():
        bodies, vertebra = measured.bodies.data == code, spine.labels.data == code
        assert not (bodies & ~vertebra).any()
        assert 0.4 < bodies.sum() / vertebra.sum() < 0.8
        behind = np.argwhere(vertebra & ~bodies).mean(axis=0) - np.argwhere(bodies).mean(axis=0)
        assert measured.bodies.affine[1, :3] @ behind < -15  # the arch lies behind: RAS, y grows to the front
        row = next(row for row in measured.rows if row["label"] == code)
        voxel_mm3 = abs(np.linalg.det(spine.labels.affine[:3, :3]))
        assert row["body_volume_mm3"] == pytest.approx(bodies.sum() * voxel_mm3, rel=1e-3)
        assert body.heights_mm == pytest.approx([row[name] for name in HEIGHTS], abs=0.06)


def test_the_order_of_the_voxels_changes_nothing(spine, measured):
    turned = measure(oriented(spine.ct, "SLA"), oriented(spine.labels, "SLA"))
    for row, known in zip(turned.rows, measured.rows, strict=True):
        for name in (*HEIGHTS, "core_hu", "body_x", "body_y", "body_z"):
            assert row[name] == pytest.approx(known[name], abs=0.5), name


def test_a_vertebra_at_the_border_has_no_measures(spine):
    axis = int(np.abs(spine.labels.affine[2, :3]).argmax())
    middle = spine.labels.label_boxes[spine.codes[0]][axis]
    cut = [slice(None)] * 3
    upwards = spine.labels.affine[2, axis] > 0
    half = (middle.start + middle.stop) // 2
    cut[axis] = slice(None, half) if upwards else slice(half, None)
    affine = spine.labels.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (0 if upwards else half)
    found = measure(Volume(spine.ct.data[tuple(cut)], affine), Volume(spine.labels.data[tuple(cut)], affine))
    first = found.rows[0]
    assert first["label"] == spine.codes[0] and "border" in first["why"]
    assert all(first[name] is None for name in (*HEIGHTS, *RATIOS, "core_hu", "body_volume_mm3"))
    assert all(row[HEIGHTS[0]] is not None for row in found.rows[1:])
    assert spine.codes[0] not in found.bodies.label_boxes


def test_levels_without_two_end_plates_are_named(spine):
    c2 = np.where(spine.labels.data == spine.codes[0], code_of_name("C2"), 0).astype(np.uint8)
    (row,) = measure(spine.ct, Volume(c2, spine.labels.affine)).rows
    assert row["name"] == "C2" and row[HEIGHTS[0]] is None and "end plates" in row["why"]
    (row,) = measure(spine.ct, Volume(c2, spine.labels.affine), anatomical=False).rows
    assert row["name"] == "2" and row[HEIGHTS[0]] is not None  # here 2 only counts


def test_a_lump_is_no_body(spine):
    lump = np.zeros(spine.labels.shape, np.uint8)
    centre = np.array(lump.shape) // 2
    lump[tuple(slice(c - 6, c + 6) for c in centre)] = code_of_name("L3")
    (row,) = measure(spine.ct, Volume(lump, spine.labels.affine)).rows
    assert row[HEIGHTS[0]] is None and row["why"]


def test_lost_height_is_named_as_a_hint_and_no_diagnosis(measured):
    from utils.prediction.measure import _row

    body = next(iter(measured.found.values()))
    crushed = dataclasses.replace(body, heights_mm=(14.0, 15.0, 20.0))
    ct = Volume(np.zeros(body.mask.shape, np.int16), np.eye(4))
    row = _row(crushed, body.mask, ct)
    assert "no diagnosis" in row["hint"] and RATIOS[0] in row["hint"] and RATIOS[1] in row["hint"]
    assert _row(dataclasses.replace(body, heights_mm=(20.0, 18.0, 20.0)), body.mask, ct)["hint"] == ""


def plate(sagittal_deg: float, coronal_deg: float) -> Plate:
    """Give a plate that descends backwards and to the right by so much."""
    s, c = np.radians([sagittal_deg, coronal_deg])
    return Plate(np.zeros(3), np.array([0, -np.cos(s), -np.sin(s)]), np.array([np.cos(c), 0, -np.sin(c)]))


def body(upper: tuple[float, float], lower: tuple[float, float]) -> SimpleNamespace:
    return SimpleNamespace(upper=plate(*upper), lower=plate(*lower))


def test_angles_of_the_spine():
    level = code_of_name
    bodies = {
        level("T4"): body((-20, 5), (-18, 4)),  # the chest leans forward above its kyphosis, backward below
        level("T8"): body((0, -12), (2, -10)),
        level("T12"): body((20, 3), (22, 6)),
        level("L1"): body((18, 6), (16, 7)),
        level("L5"): body((-30, 0), (-32, 1)),
    }
    angles = spine_angles(bodies)
    assert angles["kyphosis_t4_t12_deg"] == 42 and angles["lordosis_l1_l5_deg"] == 50
    assert angles["cobb_deg"] == 19 and (angles["cobb_from"], angles["cobb_to"]) == ("T8", "L1")
    del bodies[level("T12")]
    angles = spine_angles(bodies)
    assert angles["kyphosis_t4_t12_deg"] is None and angles["lordosis_l1_l5_deg"] == 50
    counted = spine_angles({7 + k: each for k, each in enumerate(bodies.values())}, anatomical=False)
    assert counted["lordosis_l1_l5_deg"] is None and counted["cobb_to"] == "9"
    assert all(value is None for value in spine_angles({}).values())
