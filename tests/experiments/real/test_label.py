"""Corrections of masks: each command on blocks, what is refused, and the case that comes out."""

import numpy as np
import pytest

from experiments.real.facts import ScanFacts, read_facts
from experiments.real.label import (
    CORRECTIONS,
    apply_corrections,
    case_key,
    mask_of,
    page_of,
    predict,
    predicted_mask,
)
from experiments.real.masks import reference_of
from utils.imaging.volume import Volume
from utils.prediction.networks import Networks
from utils.verse.labels import code_of_name

T8, T9 = code_of_name("T8"), code_of_name("T9")
AFFINE = np.array([[0, 1.0, 0, 0], [-1.0, 0, 0, 0], [0, 0, -1.0, 0], [0, 0, 0, 1]])


def blocks():
    """T8 above T9, blocks of 10 x 10 x 8 voxels of 1 mm with 4 between them."""
    data = np.zeros((30, 30, 40), np.uint8)
    data[10:20, 10:20, 8:16], data[10:20, 10:20, 20:28] = T8, T9
    return data


def corrected(data, *lines, hu=None):
    ct = Volume(np.zeros(data.shape, np.float32) if hu is None else hu, AFFINE)
    return apply_corrections(Volume(data, AFFINE), ct, lines, source="x.txt").data


def test_what_is_left_out_has_no_label():
    found = corrected(blocks(), "accept T8  # well", "", "leave-out T9", "# a remark")
    np.testing.assert_array_equal(found, np.where(blocks() == T8, T8, 0))


def test_a_vertebra_beyond_the_plane_goes_to_the_other():
    data = blocks()
    data[10:20, 10:20, 20:23] = T8  # T8 has a part of T9
    found = corrected(data, "split T8 T9 0.5", "accept T8 T9")
    assert set(np.unique(found[10:20, 10:20, 8:16])) == {T8}
    assert set(np.unique(found[10:20, 10:20, 20:28])) == {T9}


def test_growth_stays_near_bright_and_joined():
    data, hu = blocks(), np.zeros((30, 30, 40), np.float32)
    hu[4:20, 10:20, 8:16] = 300  # in front of T8, and far
    hu[25:28, 10:20, 8:16] = 300  # behind it, not joined
    found = corrected(data, "grow T8 150 4", "accept T8 T9", hu=hu)
    grown = np.argwhere(found == T8)
    assert grown[:, 0].min() == 6 and grown[:, 0].max() == 19
    np.testing.assert_array_equal(found == T9, data == T9)


def test_holes_are_closed_and_pieces_dropped():
    data = blocks()
    data[14:16, 14:16, 11:13] = 0  # a hole
    data[14:16, 11:14, 24] = 0  # a flat one
    data[2, 2, 2] = T9  # a speck
    found = corrected(data, "close T8 4", "close T9 4", "largest T9", "accept T8 T9")
    assert (found[10:20, 10:20, 8:16] == T8).all() and (found[10:20, 10:20, 20:28] == T9).all()
    assert found[2, 2, 2] == 0 and np.count_nonzero(found) == 1600


def test_surfaces_move_outwards():
    """By a voxel across flat faces, and not into each other."""
    found = corrected(blocks(), "widen 1.0", "accept T8 T9")
    assert (found[9:21, 13:17, 11:13] == T8).all() and (found[13:17, 9:21, 23:25] == T9).all()
    assert not found[[8, 21], 15, 12].any() and not found[15, [8, 21], 24].any()
    wide = np.zeros(found.shape, bool)
    wide[9:21, 9:21, 7:17] = wide[9:21, 9:21, 19:29] = True
    assert not found[~wide].any()


def thoracic_vertebra():
    """A body, an arch with transverse processes around the canal, and a spinous process, voxels of 1 mm."""
    p, r, i = np.indices((90, 110, 70)) - np.array([40, 55, 35])[:, None, None, None]
    body = (np.square(p + 12) + np.square(r) < 14**2) & (np.abs(i) < 11)
    pedicles = (np.abs(np.abs(r) - 9) < 4) & (p > -6) & (p < 8) & (np.abs(i + 3) < 6)
    arch = (np.abs(p - 8) < 5) & (np.abs(r) < 30) & (np.abs(i + 2) < 6)
    spine = (p > 8) & (p < 36) & (np.abs(r) < 3) & (np.abs(i - p / 3) < 7)
    return body | pedicles | arch | spine


def test_the_heads_of_ribs_are_dropped_and_the_vertebra_stays():
    bone = thoracic_vertebra()
    centre = np.argwhere(bone).mean(axis=0)
    heads = np.zeros(bone.shape, bool)
    for side in (-1, 1):
        at = centre + np.array([-7, side * 18, -10])
        heads |= np.square(np.moveaxis(np.indices(bone.shape), 0, -1) - at).sum(axis=-1) < 4**2
    heads &= ~bone
    data = np.where(bone | heads, T8, 0).astype(np.uint8)
    data[..., -4:] = T9
    found = corrected(data, "ribs T8", "accept T8 T9")
    assert np.mean(found[heads] == T8) < 0.35
    assert np.mean(found[bone] == T8) > 0.98
    assert (found[..., -4:] == T9).all()
    np.testing.assert_array_equal(found, np.where(found == data, data, 0))


@pytest.mark.parametrize(
    "lines, said",
    [
        (("accept T8",), "accepted or left out, found neither of T9"),
        (("accept T8 T9", "shrink T8"), "line 2: expected a correction, found 'shrink T8'"),
        (("accept T8 X9",), "line 1: .*X9"),
        (("split T8",), "line 1"),
        (("grow T8 much 3",), "line 1"),
    ],
)
def test_what_cannot_be_done_names_the_line(lines, said):
    with pytest.raises(ValueError, match=f"x.txt.*{said}"):
        corrected(blocks(), *lines)


def test_every_file_of_corrections_belongs_to_a_scan_and_can_be_read():
    facts = read_facts()
    files = sorted(CORRECTIONS.rglob("*.txt"))
    assert files
    for path in files:
        # One voxel of each vertebra that the lines name, so that all are known.
        names = [w for line in path.read_text().splitlines() for w in line.partition("#")[0].split()[1:]]
        levels = sorted({code_of_name(word) for word in names if word[0] in "CTL"})
        assert set(levels) <= {*facts[path.stem].points_mm}
        data = np.zeros((12, 12, 4 * len(levels)), np.uint8)
        for place, code in enumerate(levels):
            data[4:8, 4:8, 4 * place : 4 * place + 3] = code
        assert corrected(data, *path.read_text().splitlines()).any()


def test_labels_come_from_known_centres():
    """A network that gives a ball at the middle of its patch."""
    points = {T8: np.array([0.0, 11.0, -30.0]), T9: np.array([0.0, 11.0, -58.0])}
    facts = ScanFacts("x", None, "x", points, frozenset(), {}, None, "eye", frozenset(), True, ())
    affine = AFFINE.copy()
    affine[:3, 3] = -40, 60, 10
    ct = Volume(np.zeros((100, 80, 110), np.float32), affine)

    def patch(shown, memory):
        at = np.moveaxis(np.indices(shown.shape), 0, -1) - np.array(shown.shape) / 2
        return ((np.linalg.norm(at - (-5.5, 0, 0), axis=-1) < 5) & (memory == 0)).astype(np.float32)

    networks = Networks(
        heat=None, patch=patch, heatmap_shape=(8, 8, 8), patch_voxels=32, spacing_mm=2.0, preset="small",
        origin={},
    )  # fmt: skip
    mask = predicted_mask(ct, facts, networks)
    assert sorted(mask.label_boxes) == [T8, T9] and mask.spacing_mm.tolist() == [1, 1, 1]
    figure = page_of(Volume(np.zeros(mask.shape, np.float32), mask.affine), mask, title="x")
    assert [axes.get_title() for axes in figure.axes][::3] == ["T8", "T9"]


def test_keys():
    assert case_key("sub-verse014") == "sub-real-verse014" and case_key("lidc0028") == "sub-real-lidc0028"


def test_a_scan_is_added_with_its_mask_or_with_what_outlined_it(tmp_path):
    facts = read_facts()
    for name in ("chest_ct", "lidc0028"):
        (tmp_path / f"{name}_msk.nii.gz").touch()
    with_mask, outlined = facts["chest_ct"], facts["lidc0028"]
    assert mask_of(with_mask, tmp_path, None).is_relative_to(tmp_path)
    assert mask_of(with_mask, tmp_path, tmp_path) is None
    assert mask_of(outlined, tmp_path, None) is None
    assert mask_of(outlined, tmp_path, tmp_path) == tmp_path / "lidc0028_msk.nii.gz"
    # Not outlined yet, or nobody has looked at it.
    assert mask_of(facts["lidc0295"], tmp_path, tmp_path) is None
    assert mask_of(outlined, tmp_path, tmp_path, tmp_path / "corrections") is None


def test_a_scan_that_is_outlined_is_left_as_it_is(tmp_path, capsys):
    """Nothing is read of it: the scan of this test is none."""
    facts, shared = read_facts()["lidc0028"], tmp_path / "shared"
    (shared / facts.ct).parent.mkdir(parents=True)
    for path in (shared / facts.ct, tmp_path / "lidc0028_msk.nii.gz"):
        path.write_bytes(b"as it was")
    predict(shared, None, tmp_path, ("lidc0028",))
    assert (tmp_path / "lidc0028_msk.nii.gz").read_bytes() == b"as it was"
    assert "lidc0028_msk.nii.gz is there" in capsys.readouterr().out


@pytest.mark.parametrize("folder", [CORRECTIONS, CORRECTIONS / "first"], ids=["outlined", "base"])
def test_every_scan_without_a_mask_has_its_corrections(folder):
    facts = read_facts()
    names = {name for name, scan in facts.items() if scan.points_mm and reference_of(scan) is None}
    assert {path.stem for path in folder.glob("*.txt")} == names
    for path in folder.glob("*.txt"):
        words = [line.partition("#")[0].split() for line in path.read_text().splitlines()]
        codes = [
            code_of_name(word)
            for line in words
            if line[:1] in (["accept"], ["leave-out"])
            for word in line[1:]
        ]
        assert sorted(codes) == sorted(facts[path.stem].points_mm)
