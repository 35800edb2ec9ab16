"""A picture of a case: two slices that follow the spine, with the vertebrae in colour, their names, how sure
these are, and what the count holds on to.

Both run through the centres of the vertebral bodies, whatever the spine's curve. They are drawn in mm, so
nothing is stretched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from scipy import ndimage

from utils.imaging.centroids import Centroids
from utils.imaging.grids import transform_points, working_grid
from utils.imaging.intensities import LOWEST_HU
from utils.imaging.volume import Grid, Volume

#: Bone window in HU: trabecular bone grey, cortex white, soft tissue dark.
WINDOW_HU = (-250, 1100)
#: What is shown on either side of the column.
HALF_WIDTH_MM = 90.0
HEIGHT_INCHES = 9.0
#: Pixels of an inch, and of the longer edge of a picture at most.
_DPI, MOST_PIXELS = 110, 2000
#: What a slice takes up at least, however thin it is, and what stands around it: room for its letters.
_LEAST_INCHES, _MARGIN_INCHES = 1.0, (0.4, 0.5)
_FINEST_MM = 0.5
_MOST_ROWS = 1200
#: From the centre of a body to what is written in front of it.
_NOTE_MM = 32.0
#: Colours of an anchor that the count holds on to, and of one that was read and does not decide it.
_HELD, _READ = "#ffd84d", "#b8b8b8"
_OUTLINE = [patheffects.withStroke(linewidth=2, foreground="black")]


@dataclass(frozen=True)
class Mark:
    """What is written at a vertebra.

    Attributes
    ----------
    name : str
        Its label.
    certainty : str
        How sure the label is, below it.
    note : str
        An anchor that was read here, in front of the body.
    is_held : bool
        Whether the count holds on to that anchor.
    """

    name: str
    certainty: str = ""
    note: str = ""
    is_held: bool = False


@dataclass(frozen=True, eq=False)
class CurvedSlice:
    """A slice whose rows follow a curve.

    Attributes
    ----------
    ct : np.ndarray (rows, columns)
        HU, rows from the top down.
    labels : np.ndarray of uint8 (rows, columns)
        Codes.
    points : np.ndarray (n, 2)
        Row and column of the vertebrae's points.
    spacing_mm : float
        Edge of a pixel.
    """

    ct: np.ndarray
    labels: np.ndarray
    points: np.ndarray
    spacing_mm: float


def snapshot_figure(
    ct: Volume, labels: Volume, points: Centroids, *, marks: Sequence[Mark], title: str
) -> Figure:
    """Draw a case.

    Parameters
    ----------
    ct, labels : Volume
        Scan in HU and its labels, on one grid.
    points : Centroids
        Centre of every vertebral body.
    marks : sequence of Mark
        What is written at every point.
    title : str
        Line above the picture.

    Returns
    -------
    Figure
        Sagittal slice, front to the left, and coronal slice, the patient's right to the left. No edge is over
        `MOST_PIXELS`, whatever the shape of the scan.
    """
    sagittal, coronal = curved_slices(ct, labels, points)
    widths, height = _inches([each.ct.shape for each in (sagittal, coronal)])
    size = np.add((sum(widths), height), _MARGIN_INCHES)
    figure = Figure(figsize=tuple(size), dpi=_DPI, facecolor="black")
    # Placed by hand: a layout of matplotlib's draws the whole picture once more to measure it.
    gap, bottom = _MARGIN_INCHES[0] / 3, _MARGIN_INCHES[1] / 4
    begins = (gap, 2 * gap + widths[0])
    left, right = (
        figure.add_axes((begin / size[0], bottom / size[1], width / size[0], height / size[1]))
        for begin, width in zip(begins, widths)
    )
    _draw(left, sagittal, marks=marks, ends=("A", "P"))
    _draw(right, coronal, marks=marks, ends=("R", "L"))
    _draw_notes(left, sagittal, marks)
    figure.suptitle(title, color="white", fontsize=11)
    return figure


def _inches(shapes: Sequence[tuple[int, int]]) -> tuple[list[float], float]:
    """Give the widths and the height of slices side by side, at one scale unless they are very thin."""
    aspects = [columns / rows for rows, columns in shapes]
    most = MOST_PIXELS / _DPI - _MARGIN_INCHES[0]
    height = min(HEIGHT_INCHES, most / sum(aspects))
    widths = [max(_LEAST_INCHES, aspect * height) for aspect in aspects]
    shrink = min(1.0, most / sum(widths))
    return [width * shrink for width in widths], max(_LEAST_INCHES, height)


def curved_slices(ct: Volume, labels: Volume, points: Centroids) -> tuple[CurvedSlice, CurvedSlice]:
    """Cut the sagittal and the coronal slice that follow the vertebrae.

    Parameters
    ----------
    ct, labels : Volume
        Scan and labels, on one grid.
    points : Centroids
        Centre of every vertebral body; without any the slices are plain and run through the middle.

    Returns
    -------
    tuple of CurvedSlice
        Sagittal (columns towards the back) and coronal (columns towards the left).
    """
    extent_mm = float((np.array(ct.shape) * ct.spacing_mm).max())
    frame = working_grid(ct.grid, max(_FINEST_MM, extent_mm / _MOST_ROWS))
    shown = points.voxels(frame)
    centres = shown if len(shown) else (np.array(frame.shape)[None] - 1) / 2
    rows = np.arange(frame.shape[2])
    order = np.argsort(centres[:, 2])
    middle_p, middle_r = (np.interp(rows, centres[order, 2], centres[order, axis]) for axis in (0, 1))
    across_p, across_r = (_columns(frame, centres, axis) for axis in (0, 1))
    sagittal = np.stack(np.broadcast_arrays(across_p, middle_r[:, None], rows[:, None]), axis=-1)
    # Reversed: by convention the patient's right is shown on the left.
    coronal = np.stack(np.broadcast_arrays(middle_p[:, None], across_r[::-1], rows[:, None]), axis=-1)
    return (
        _sample(ct, labels, frame, sagittal, shown[:, [2, 0]] - [0, across_p[0]]),
        _sample(ct, labels, frame, coronal, np.abs(shown[:, [2, 1]] - [0, across_r[-1]])),
    )


def _columns(frame: Grid, centres: np.ndarray, axis: int) -> np.ndarray:
    reach = HALF_WIDTH_MM / frame.spacing_mm[axis]
    first = max(0, int(centres[:, axis].min() - reach))
    last = min(frame.shape[axis], int(centres[:, axis].max() + reach) + 1)
    return np.arange(first, last)


def _sample(ct: Volume, labels: Volume, frame: Grid, voxels: np.ndarray, points: np.ndarray) -> CurvedSlice:
    at = transform_points(voxels.reshape(-1, 3), frame.affine, ct.affine).T
    # Nearest labels are right here: a picture samples the mask, it does not become one.
    values = ndimage.map_coordinates(ct.data, at, order=1, output=np.float32, mode="nearest")
    codes = ndimage.map_coordinates(labels.data, at, order=0, mode="constant")
    # Beside a turned scan there is nothing to be shown.
    values[((at < -1) | (at > np.array(ct.shape)[:, None])).any(axis=0)] = LOWEST_HU
    shape = voxels.shape[:2]
    return CurvedSlice(values.reshape(shape), codes.reshape(shape), points, float(frame.spacing_mm[0]))


def colour_of(code: int) -> np.ndarray:
    """Give the colour (3,) of a label; the golden ratio keeps neighbours far apart in hue."""
    return hsv_to_rgb((code * 0.618034 % 1.0, 0.85, 1.0))


def _overlay(labels: np.ndarray) -> np.ndarray:
    """Colour the labels: thin inside, solid on the outline."""
    colours = np.zeros((*labels.shape, 4))
    edge = ndimage.grey_dilation(labels, 3) != ndimage.grey_erosion(labels, 3)
    for code in np.unique(labels[labels > 0]):
        colours[labels == code] = (*colour_of(int(code)), 0.25)
    colours[edge & (labels > 0), 3] = 0.9
    return colours


def _draw(axes: Axes, slice_: CurvedSlice, *, marks: Sequence[Mark], ends: tuple[str, str]) -> None:
    low, high = WINDOW_HU
    axes.imshow(slice_.ct, cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
    axes.imshow(_overlay(slice_.labels), interpolation="nearest")
    style = {"color": "white", "fontweight": "bold", "ha": "center", "path_effects": _OUTLINE}
    for (row, column), mark in zip(slice_.points, marks):
        place = "bottom" if mark.certainty else "center"
        axes.text(column, row, mark.name, fontsize=8, va=place, **style)
        if mark.certainty:
            axes.text(column, row, mark.certainty, fontsize=6.5, va="top", **style)
    for place, end in zip((0.03, 0.97), ends):
        axes.text(place, 0.5, end, fontsize=9, transform=axes.transAxes, va="center", **style)
    _draw_scale(axes, *slice_.ct.shape, slice_.spacing_mm)
    axes.set_axis_off()


def _draw_notes(axes: Axes, slice_: CurvedSlice, marks: Sequence[Mark]) -> None:
    """Write the anchors in front of their vertebrae, where the slice has room; else at its edge."""
    style = {"fontsize": 8, "fontweight": "bold", "va": "center", "path_effects": _OUTLINE}
    for (row, column), mark in zip(slice_.points, marks):
        if mark.note:
            end = column - _NOTE_MM / slice_.spacing_mm
            has_room = end > slice_.ct.shape[1] * 0.25
            place = {"x": end, "ha": "right"} if has_room else {"x": 2, "ha": "left"}
            axes.text(y=row, s=f"{mark.note} ▸", color=_HELD if mark.is_held else _READ, **place, **style)


def _draw_scale(axes: Axes, rows: int, columns: int, spacing_mm: float) -> None:
    """Draw a bar of 5 cm, which says the scale without axes."""
    length = 50 / spacing_mm
    if length > columns * 0.8:
        return
    left, bottom = columns * 0.05, rows * 0.975
    axes.plot([left, left + length], [bottom, bottom], color="white", linewidth=2)
    axes.text(left + length / 2, bottom - rows * 0.012, "5 cm", color="white", fontsize=7, ha="center")
