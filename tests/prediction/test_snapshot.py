"""The picture of a case: slices that follow the spine."""

from __future__ import annotations

import io

import numpy as np
import pytest

from utils.imaging.centroids import centroids_of_mask
from utils.imaging.grids import oriented
from utils.imaging.volume import Volume
from utils.prediction.snapshot import Mark, colour_of, curved_slices, snapshot_figure

# P to the back (-y), R to the right (+x), I down (-z): 1 x 1 x 2 mm, 120 x 100 x 160 mm.
AFFINE = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, -2, 0], [0, 0, 0, 1]], float)
# A column that bends to the side and to the back; blocks of 41 x 21 x 11 voxels.
CENTRES = [(40, 30, 12), (55, 45, 32), (70, 60, 52)]


def bent_column() -> Volume:
    labels = np.zeros((120, 100, 80), np.uint8)
    for code, (p, r, i) in enumerate(CENTRES, start=20):
        labels[p - 20 : p + 21, r - 10 : r + 11, i - 5 : i + 6] = code
    return Volume(labels, AFFINE)


@pytest.fixture(params=["PRI", "LAS"])
def scan(request) -> tuple[Volume, Volume]:
    labels = oriented(bent_column(), tuple(request.param))
    return Volume(labels.data.astype(np.int16) * 10, labels.affine), labels


def test_every_slice_runs_through_every_vertebra(scan):
    points = centroids_of_mask(scan[1])
    for curved in curved_slices(*scan, points):
        at = np.rint(curved.points).astype(int)
        assert curved.labels[tuple(at.T)].tolist() == [20, 21, 22]


def test_pixels_are_square_and_cover_the_scan(scan):
    sagittal, coronal = curved_slices(*scan, centroids_of_mask(scan[1]))
    assert sagittal.spacing_mm == coronal.spacing_mm == 0.5
    assert sagittal.ct.shape == (320, 240) and coronal.ct.shape == (320, 200)
    # A block is 41 mm deep, 21 mm wide and 22 mm high; 0.5 mm pixels. The slices follow the spine, so only
    # the rows at the block's centre are sure to show its full width.
    for curved, width_mm in ((sagittal, 41), (coronal, 21)):
        row = round(float(curved.points[1][0]))
        assert abs((curved.labels[row] == 21).sum() * 0.5 - width_mm) <= 1


def test_the_front_and_the_right_are_on_the_left(scan):
    sagittal, coronal = curved_slices(*scan, centroids_of_mask(scan[1]))
    # The column bends backwards and to the right on its way down.
    assert np.all(np.diff(sagittal.points[:, 1]) > 0)
    assert np.all(np.diff(coronal.points[:, 1]) < 0)
    assert np.all(np.diff(sagittal.points[:, 0]) > 0)


def test_the_coronal_slice_runs_through_the_bodies_not_through_the_masks_centres():
    labels = bent_column()
    for code, (p, r, i) in enumerate(CENTRES, start=20):
        labels.data[p - 20 : p + 45, r - 10 : r + 11, i - 5 : i + 6] = 0
        labels.data[p - 10 : p + 11, r - 10 : r + 11, i - 5 : i + 6] = code  # the body
        labels.data[p + 11 : p + 45, r - 3 : r + 4, i - 3 : i + 4] = code  # the spinous process
    depth = np.broadcast_to(
        np.arange(120, dtype=np.float32)[:, None, None], labels.shape
    )  # mm from the front
    _, coronal = curved_slices(Volume(depth, AFFINE), labels, centroids_of_mask(labels))
    rows, columns = np.rint(coronal.points).astype(int).T
    np.testing.assert_allclose(coronal.ct[rows, columns], [40, 55, 70], atol=2)


def test_a_scan_without_vertebrae_has_plain_slices():
    labels = Volume(np.zeros((120, 100, 80), np.uint8), AFFINE)
    side = np.broadcast_to(np.arange(100, dtype=np.float32)[:, None], labels.shape)
    sagittal, _ = curved_slices(Volume(side, AFFINE), labels, centroids_of_mask(labels))
    np.testing.assert_allclose(sagittal.ct, 49.5, atol=0.5)
    assert len(sagittal.points) == 0


@pytest.mark.parametrize("shape", [(240, 240, 1), (4, 4, 4000), (4000, 4, 4), (4, 1, 1), (60, 60, 60)])
def test_no_edge_of_a_picture_is_over_2000_pixels(shape):
    labels = Volume(np.zeros(shape, np.uint8), np.diag([0.75, 0.75, 0.75, 1]))
    figure = snapshot_figure(
        labels, labels, centroids_of_mask(labels), marks=[], title="sub-odd: 0 vertebrae"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    edges = [int.from_bytes(buffer.getvalue()[place : place + 4], "big") for place in (16, 20)]
    assert min(edges) >= 150 and max(edges) <= 2000


def test_the_figure_shows_every_colour_and_what_is_known_of_the_labels(scan):
    marks = [Mark("T12", "93 %", "last rib 54 %", True), Mark("L1"), Mark("L2", "<1 %", "sacrum below 61 %")]
    figure = snapshot_figure(*scan, centroids_of_mask(scan[1]), marks=marks, title="sub-bent: 3 vertebrae")
    written = [[(text.get_text(), text.get_color()) for text in axes.texts] for axes in figure.axes]
    names = [("T12", "white"), ("93 %", "white"), ("L1", "white"), ("L2", "white"), ("<1 %", "white")]
    notes = [("last rib 54 % ▸", "#ffd84d"), ("sacrum below 61 % ▸", "#b8b8b8")]
    assert [each for each in written[0] if each in [*names, *notes]] == [*names, *notes]
    assert [each for each in written[1] if each in [*names, *notes]] == names
    rows = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert rows["last rib 54 % ▸"] == rows["T12"] == rows["93 %"] < rows["sacrum below 61 % ▸"] == rows["L2"]
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba")
    height, width = (figure.get_size_inches()[::-1] * figure.dpi).round().astype(int)
    pixels = np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)[..., :3] / 255
    for code in (20, 21, 22):
        outline = np.abs(pixels - colour_of(code)).max(axis=-1) < 0.15
        assert outline.sum() > 100
