"""Drawn scans: points in their bodies, fields of view of every kind, none of a spine where there is none."""

import numpy as np
import pytest

from utils.synthetic.drawn import draw_field_of_view, draw_phantom_scan, draw_scan
from utils.synthetic.no_spine import LIMBS, NO_SPINE_KINDS, NO_SPINE_SHARES, draw_no_spine
from utils.synthetic.phantom.ranges import WIDE
from utils.synthetic.phantom.subject import draw_subject
from utils.verse.labels import code_of_name, rank_of_code

L1 = code_of_name("L1")


@pytest.fixture(scope="module")
def scans():
    return [draw_phantom_scan(2, number, spacing_mm=4.0) for number in range(6)]


def test_the_same_numbers_give_the_same_scan(scans):
    again = draw_phantom_scan(2, 5, spacing_mm=4.0)
    np.testing.assert_array_equal(again.ct, scans[5].ct)
    assert list(again.points) == list(scans[5].points)
    assert again.ct.shape != scans[4].ct.shape


def test_points_lie_in_the_scan_from_the_top_down(scans):
    for scan in scans:
        assert scan.ct.dtype == np.int16 and scan.points
        ranks = [rank_of_code(code) for code in scan.points]
        assert ranks == sorted(ranks)
        for point in scan.points.values():
            assert ((point >= -0.5) & (point <= np.array(scan.ct.shape) - 0.5)).all()
        assert all(len(pair) == 2 for pair in scan.ribs_mm.values())


def test_bodies_are_no_air_and_no_fat(scans):
    """The middle of a body is bone or disease; where noise is loud a mean over neighbours tells."""
    found = []
    for scan in scans:
        for code, point in scan.points.items():
            corner = np.rint(point).astype(int)
            part = scan.ct[tuple(slice(max(k - 1, 0), k + 2) for k in corner)]
            found.append(code == 1 or part.mean() > -20)
    assert np.mean(found) > 0.97


def test_a_turned_scan_shows_bone_where_its_points_are():
    """Without noise, the value at centres of bodies is above that of what lies 40 mm before them."""
    brighter = []
    for number in range(10):
        scan = draw_phantom_scan(6, number, spacing_mm=3.0)
        for point in scan.points.values():
            p, r, i = np.clip(np.rint(point).astype(int), 1, np.array(scan.ct.shape) - 2)
            body = scan.ct[p - 1 : p + 2, r - 1 : r + 2, i - 1 : i + 2].mean()
            beside = scan.ct[max(p - 15, 0) : max(p - 12, 1), r, i].mean()
            brighter.append(body > beside)
    assert np.mean(brighter) > 0.8


def test_fields_of_view_are_of_many_kinds():
    subject = draw_subject(np.random.default_rng(0), ranges=WIDE)
    views = [draw_field_of_view(np.random.default_rng([1, n]), subject) for n in range(300)]
    kinds = [view.kind for view in views]
    assert abs(kinds.count("trunk") / 300 - 0.5) < 0.09 and kinds.count("spine") > 60
    turned = np.mean([not np.array_equal(view.frame, np.eye(3)) for view in views])
    assert abs(turned - 0.4) < 0.09
    centres = subject.body_centres()
    counts = []
    for view in views:
        places = centres @ view.frame
        counts.append(((places >= view.low) & (places <= view.high)).all(1).sum())
    assert min(counts) <= 4 and max(counts) >= 20
    assert 0.1 < np.mean([view.high[2] > (subject.sacrum[0] @ view.frame)[2] for view in views]) < 0.6
    assert 0.05 < np.mean([view.low[2] < (centres[0] @ view.frame)[2] for view in views]) < 0.5


@pytest.mark.parametrize("kind", NO_SPINE_KINDS)
def test_scans_without_a_spine_have_no_points(kind):
    scan = draw_no_spine(1, 2, kind=kind, spacing_mm=4.0)
    assert scan.kind == kind and not scan.points and scan.sacrum is None and not scan.ribs_mm
    assert scan.ct.dtype == np.int16 and scan.ct.ndim == 3
    if kind in ("thigh", "arm", "head"):
        assert scan.ct.max() > 150
    if kind == "mr":
        assert scan.ct.mean() > 0
    if kind == "air":
        assert scan.ct.mean() < -850


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"kind: expected one of thigh.*received 'foot'"):
        draw_no_spine(0, 0, kind="foot")


def test_the_share_of_scans_without_a_spine_is_the_one_asked_for(monkeypatch):
    monkeypatch.setattr("utils.synthetic.drawn.draw_phantom_scan", lambda *a, **k: None)
    drawn = [draw_scan(3, n, no_spine_share=0.25, spacing_mm=12.0) for n in range(60)]
    kinds = [scan.kind for scan in drawn if scan is not None]
    assert 6 < len(kinds) < 25 and len(set(kinds)) >= 3


def test_two_in_three_scans_without_a_spine_show_limbs():
    shares = dict(zip(NO_SPINE_KINDS, NO_SPINE_SHARES, strict=True))
    assert sum(NO_SPINE_SHARES) == pytest.approx(1)
    assert sum(shares[kind] for kind in LIMBS) == pytest.approx(2 / 3, abs=0.01)
