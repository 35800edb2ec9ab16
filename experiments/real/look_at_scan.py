"""A picture to count ribs and read levels from: the spine of a CT from behind and from the side.

    python experiments/real/look_at_scan.py CT --output PICTURE.png [--centres JSON] [--slab 20 60]

With centres of the vertebrae, the left half is a maximum projection of a coronal slab that follows the spine
backwards and forwards, from side wall to side wall, so that every rib can be followed from its vertebra; the
right half is the sagittal slice that follows the spine sideways. Without any, both are maximum projections of
the whole scan. The axes are world millimetres (RAS+), so that a point can be read off.

Reads   a CT; a VerSe centroid file of it, or the facts of the real scans (centres.json)
Writes  the picture
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.real.facts import read_facts
from utils.imaging.centroids import read_centroids
from utils.imaging.formats import read_scan
from utils.imaging.grids import corners_of, oriented, transform_points
from utils.imaging.volume import Volume
from utils.verse.labels import name_of_code

#: Value outside the scan, and the shades of the projection and of the slice, in HU.
OUTSIDE_HU = -1024.0
PROJECTION_HU, SLICE_HU = (0.0, 700.0), (-150.0, 500.0)
#: Thickness of the sagittal slice, in mm: the mean of it is less noisy than one plane.
SLICE_MM = 5.0


@dataclass(frozen=True, eq=False)
class View:
    """A picture of one plane, upright.

    Attributes
    ----------
    hu : np.ndarray of float32, (rows, columns)
        From the top down; columns towards the right or the front of the patient.
    extent_mm : tuple of float, (4,)
        World coordinates of its left, right, lower and upper edge, in mm.
    """

    hu: np.ndarray
    extent_mm: tuple[float, float, float, float]


def world_box(ct: Volume) -> np.ndarray:
    """Give the corners, (2, 3), of the box in the world, in mm, that holds the centres of all voxels."""
    corners_mm = transform_points(corners_of(ct.shape), ct.affine, np.eye(4))
    return np.stack([corners_mm.min(axis=0), corners_mm.max(axis=0)])


def sampled(ct: Volume, points_mm: np.ndarray) -> np.ndarray:
    """Give the interpolated HU at points (..., 3) of the world, in mm; `OUTSIDE_HU` beyond the scan."""
    voxels = transform_points(points_mm.reshape(-1, 3), np.eye(4), ct.affine)
    hu = ndimage.map_coordinates(ct.data, voxels.T, np.float32, order=1, cval=OUTSIDE_HU)
    return hu.reshape(points_mm.shape[:-1])


def course(centres_mm: np.ndarray, heights_mm: np.ndarray) -> np.ndarray:
    """Give where the spine lies at given heights.

    Parameters
    ----------
    centres_mm : np.ndarray, (n, 3)
        Centres of vertebral bodies in world mm, at least one, in any order.
    heights_mm : np.ndarray, (m,)
        World z, in mm.

    Returns
    -------
    np.ndarray of float64, (m, 2)
        World x and y, in mm: linear between the centres; beyond the ends as at the ends.
    """
    upwards = centres_mm[np.argsort(centres_mm[:, 2])]
    return np.stack([np.interp(heights_mm, upwards[:, 2], upwards[:, axis]) for axis in (0, 1)], axis=1)


def curved_views(
    ct: Volume, centres_mm: np.ndarray, *, slab_mm: tuple[float, float], step_mm: float = 1.0
) -> list[View]:
    """Draw the slab from behind and the slice from the side that follow the spine.

    Parameters
    ----------
    ct : Volume
        CT in HU on any grid.
    centres_mm : np.ndarray, (n, 3)
        Centres of vertebral bodies in world mm.
    slab_mm : tuple of float, (2,)
        How far the coronal slab reaches in front of the bodies' centres, and behind them.
    step_mm : float
        Size of a picture element.

    Returns
    -------
    list of View
        Maximum projection of the slab over x and z; mean of a slice of 5 mm over y and z. Only depth is made
        straight: x, y and z stay those of the world.
    """
    low, high = world_box(ct)
    x_mm, y_mm, z_mm = (np.arange(begin, end + step_mm / 2, step_mm) for begin, end in zip(low, high))
    spine = course(centres_mm, z_mm)
    depths = np.arange(-slab_mm[1], slab_mm[0] + step_mm / 2, step_mm)
    sides = np.arange(-SLICE_MM / 2, SLICE_MM / 2 + step_mm / 2, step_mm)
    coronal = [sampled(ct, _rows(x_mm, spine[:, 1] + depth, z_mm, across=0)) for depth in depths]
    sagittal = [sampled(ct, _rows(y_mm, spine[:, 0] + side, z_mm, across=1)) for side in sides]
    return [
        _upright(np.max(coronal, axis=0), x_mm, z_mm),
        _upright(np.mean(sagittal, axis=0), y_mm, z_mm),
    ]


def plain_views(ct: Volume) -> list[View]:
    """Draw the maximum projections of a whole scan from behind (x, z) and from the side (y, z)."""
    turned = oriented(ct, ("R", "A", "S"))
    x_mm, y_mm, z_mm = (
        np.linspace(begin, end, count) for begin, end, count in zip(*world_box(ct), turned.shape)
    )
    return [
        _upright(turned.data.max(axis=1).T.astype(np.float32), x_mm, z_mm),
        _upright(turned.data.max(axis=0).T.astype(np.float32), y_mm, z_mm),
    ]


def _rows(along_mm: np.ndarray, others_mm: np.ndarray, z_mm: np.ndarray, *, across: int) -> np.ndarray:
    """Give the points, (z, along, 3), of a surface whose columns run along one axis of x (0) and y (1)."""
    points = np.empty((len(z_mm), len(along_mm), 3))
    points[..., across] = along_mm
    points[..., 1 - across] = others_mm[:, None]
    points[..., 2] = z_mm[:, None]
    return points


def _upright(hu: np.ndarray, columns_mm: np.ndarray, z_mm: np.ndarray) -> View:
    return View(hu[::-1], (columns_mm[0], columns_mm[-1], z_mm[0], z_mm[-1]))


def draw(views: Sequence[View], names: Sequence[str], centres_mm: np.ndarray, *, title: str) -> Figure:
    """Draw both views with numbered centres on them.

    Parameters
    ----------
    views : sequence of View, (2,)
        Coronal, then sagittal.
    names : sequence of str, (n,)
        Level of every centre, from the top down.
    centres_mm : np.ndarray, (n, 3)
        The centres in world mm.
    title : str
        What stands above.

    Returns
    -------
    matplotlib.figure.Figure
        The picture, not yet saved.
    """
    figure = Figure(figsize=(20, 12), layout="constrained")
    widths = [abs(view.extent_mm[1] - view.extent_mm[0]) for view in views]
    for axes, view, axis in zip(figure.subplots(1, 2, width_ratios=widths), views, (0, 1)):
        low, high = (PROJECTION_HU, SLICE_HU)[axis]
        axes.imshow(view.hu, cmap="gray", vmin=low, vmax=high, extent=view.extent_mm, aspect="equal")
        _mark(axes, names, centres_mm[:, [axis, 2]])
        axes.set(xlabel=("x (to the right), mm", "y (to the front), mm")[axis], ylabel="z (up), mm")
        axes.xaxis.set_major_locator(MultipleLocator(20))
        axes.yaxis.set_major_locator(MultipleLocator(20))
        axes.tick_params(labelsize=7, axis="x", rotation=90)
        axes.grid(alpha=0.15, linewidth=0.4)
    figure.suptitle(title)
    return figure


def _mark(axes: Axes, names: Sequence[str], places_mm: np.ndarray) -> None:
    for number, (name, (across, height)) in enumerate(zip(names, places_mm), start=1):
        axes.plot(across, height, "+", color="red", markersize=7)
        axes.text(across + 4, height, f"{number} {name}", color="yellow", fontsize=8, va="center")


def read_centres(path: Path, ct_path: Path, ct: Volume) -> dict[str, np.ndarray]:
    """Read the centres of a scan's vertebrae.

    Parameters
    ----------
    path : Path
        VerSe centroid file, or a file of facts that `read_facts` reads.
    ct_path : Path
        The CT: in a file of facts, the scan whose CT has this file name counts.
    ct : Volume
        The same, read.

    Returns
    -------
    dict of str to np.ndarray, (3,)
        World mm by the name of the level, the first sacral body (S1) last.

    Raises
    ------
    ValueError
        If the file has no such scan, or cannot be used (`read_centroids`, `read_facts`).
    """
    if isinstance(json.loads(path.read_text()), list):
        found = read_centroids(path, ct.grid)
        return {name_of_code(code): point for code, point in zip(found.codes, found.points_mm)}
    facts = [facts for facts in read_facts(path).values() if facts.ct.name == ct_path.name]
    if not facts:
        raise ValueError(f"{path}: expected a scan with the CT {ct_path.name}, found none.")
    sacrum = {} if facts[0].sacrum_mm is None else {"S1": facts[0].sacrum_mm}
    return {name_of_code(code): point for code, point in facts[0].points_mm.items()} | sacrum


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the picture of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ct", type=Path, help="the scan")
    parser.add_argument("--output", required=True, type=Path, help="picture that is written")
    parser.add_argument("--centres", type=Path, help="VerSe centroid file of the scan, or centres.json")
    parser.add_argument(
        "--slab",
        nargs=2,
        type=float,
        default=(20.0, 60.0),
        metavar=("FRONT", "BEHIND"),
        help="how far the coronal slab reaches before and behind the centres, in mm",
    )
    chosen = parser.parse_args(arguments)
    ct = read_scan(chosen.ct)
    centres = {} if chosen.centres is None else read_centres(chosen.centres, chosen.ct, ct)
    centres_mm = np.array(list(centres.values())).reshape(-1, 3)
    views = curved_views(ct, centres_mm, slab_mm=tuple(chosen.slab)) if centres else plain_views(ct)
    draw(views, list(centres), centres_mm, title=chosen.ct.name).savefig(chosen.output, dpi=100)
    return 0


if __name__ == "__main__":
    sys.exit(main())
