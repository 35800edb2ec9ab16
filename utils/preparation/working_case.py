"""One case of a data set, brought to the grid that a network is trained on, and written there.

The files of a case are `<key>` and a suffix, in the folder of its split. What goes wrong is a `ValueError`
that names the file.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from utils.files import written_whole
from utils.imaging.centroids import Centroids, centroids_of_mask, read_centroids, write_centroids
from utils.imaging.grids import cropped_grid, faces_of, resized_grid, transform_points, working_grid
from utils.imaging.nifti import read_ct, read_mask, read_pair, write_volume
from utils.imaging.resampling import heatmap_ct, resample_labels, working_ct
from utils.imaging.volume import Grid, Volume, touches_border
from utils.preparation.spine_case import spine_of_points, write_spine_case
from utils.settings import (
    HeatmapPreparationSettings,
    PreparationSettings,
    SegmentationPreparationSettings,
)
from utils.verse.cases import Case
from utils.verse.labels import rank_of_code

CT, MASK, FINE_MASK, CENTROIDS = "_ct.nii", "_msk.nii", "_fine.nii", "_ctd.json"
#: Samples of a fine mask along each axis of a voxel.
FINE = 2
#: The table of a split; with "_" before it and a key the table of a case.
VERTEBRAE_FILE = "vertebrae.csv"
VERTEBRA_COLUMNS = (
    *("case", "label", "rank"),
    *("centre_p", "centre_r", "centre_i"),
    *("begin_p", "begin_r", "begin_i"),
    *("end_p", "end_r", "end_i"),
    *("voxels", "touches_border"),
)


def write_heatmap_case(case: Case, settings: HeatmapPreparationSettings, folder: Path) -> str:
    """Write CT and centroids of a case on the small grid of the published heatmap network.

    Parameters
    ----------
    case : Case
        With a CT, and with centroids or a mask.
    settings : HeatmapPreparationSettings
        Spacing and shape of the grid.
    folder : Path
        Where the files go.

    Returns
    -------
    str
        A note for the log.
    """
    ct, centroids, source = _read_points(case, settings)
    small = resized_grid(working_grid(ct.grid, settings.spacing_mm), settings.heatmap_shape)
    resized = heatmap_ct(working_ct(ct, settings.spacing_mm, outside="air"), settings.heatmap_shape)
    write_volume(folder / f"{case.key}{CT}", _as_int16(resized))
    write_centroids(folder / f"{case.key}{CENTROIDS}", centroids, small, source=source)
    return _note_of(centroids, source)


def write_centres_case(case: Case, settings: HeatmapPreparationSettings, folder: Path) -> str:
    """Write CT and body centres of a case at the spacing of the networks that find and name vertebrae.

    Parameters and result are those of `write_heatmap_case`.
    """
    ct, centroids, source = _read_points(case, settings)
    working = working_ct(ct, settings.spacing_mm, outside="air")
    spine = spine_of_points(centroids.codes, centroids.voxels(working.affine))
    write_spine_case(folder, case.key, working, spine)
    return _note_of(centroids, source)


def write_segmentation_case(case: Case, settings: SegmentationPreparationSettings, folder: Path) -> str:
    """Write CT, mask and table of a case on the working grid, cropped to the spine.

    Parameters and result are those of `write_heatmap_case`.
    """
    ct, mask = _read_case(case, settings, needs_mask=True)
    if not mask.data.any():
        raise ValueError(f"{case.mask}: expected at least one vertebra, found none.")
    grid = spine_grid(mask, settings.spacing_mm, margin_mm=settings.margin_mm)
    labels = resample_labels(mask, grid)
    table = prepared_table(case.key, labels, at_border=labels_at_border(mask))
    if ct is not None:
        working = _as_int16(working_ct(ct, settings.spacing_mm, grid=grid))
        write_volume(folder / f"{case.key}{CT}", working)
    write_volume(folder / f"{case.key}{MASK}", labels)
    if settings.fine_masks:
        fine = resized_grid(grid, np.multiply(grid.shape, FINE))
        # What the scan cuts fills the voxels at its end, which reach over it.
        write_volume(folder / f"{case.key}{FINE_MASK}", resample_labels(mask, fine, extends=True))
    write_table(folder / f"{case.key}_{VERTEBRAE_FILE}", table)
    size = " x ".join(map(str, labels.shape))
    return f"{len(table)} vertebrae, {size} voxels{'' if ct else ', no CT'}"


def prepared_table(key: str, labels: Volume, *, at_border: set[int]) -> list[dict[str, object]]:
    """Describe every vertebra of a working mask, from the top of the spine down.

    Parameters
    ----------
    key : str
        The case.
    labels : Volume of uint8
        VerSe codes on the working grid.
    at_border : set of int
        Labels that touch the border of the scan (`labels_at_border` of the native mask).

    Returns
    -------
    list of dict
        `VERTEBRA_COLUMNS`: centre of mass and bounding box in voxels of the working grid, end
        exclusive; `touches_border` is 0 or 1.
    """
    codes = sorted(labels.label_boxes, key=rank_of_code)
    return [_vertebra_row(key, labels, code, touches=code in at_border) for code in codes]


def labels_at_border(mask: Volume) -> set[int]:
    """Give the labels that have a voxel on one of the six faces of a volume."""
    return {code for code, box in mask.label_boxes.items() if touches_border(box, mask.shape)}


def spine_grid(mask: Volume, spacing_mm: float, *, margin_mm: float) -> Grid:
    """Give the part of the working grid that holds the spine and what patches around it may show.

    Parameters
    ----------
    mask : Volume of uint8
        VerSe codes on the native grid of the scan, at least one.
    spacing_mm : float
        Spacing of the working grid, in mm.
    margin_mm : float
        Distance, in mm, from the outermost centres of mass to the faces of the part. All labelled voxels
        are inside in any case.

    Returns
    -------
    Grid
        Its voxels are voxels of `working_grid`.
    """
    whole = working_grid(mask.grid, spacing_mm)
    centres, faces = [], []
    for code, box in mask.label_boxes.items():
        corner = np.array([side.start for side in box])
        centres.append(corner + ndimage.center_of_mass(mask.data[box] == code))
        faces += list(corner + faces_of([side.stop - side.start for side in box]))
    reach = np.full((len(centres), 3), margin_mm / spacing_mm)
    centres, faces = (transform_points(np.array(p), mask.affine, whole.affine) for p in (centres, faces))
    points = np.concatenate([centres - reach, centres + reach, faces])
    begin = np.clip(np.floor(points.min(axis=0)), 0, whole.shape).astype(int)
    end = np.clip(np.ceil(points.max(axis=0)) + 1, 0, whole.shape).astype(int)
    return cropped_grid(whole, begin, end)


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write rows of `VERTEBRA_COLUMNS` as CSV, whole or not at all."""
    with written_whole(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, VERTEBRA_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _read_case(
    case: Case, settings: PreparationSettings, *, needs_mask: bool
) -> tuple[Volume | None, Volume | None]:
    """Read CT and mask; None for what is not there or not needed."""
    most = {"most_bytes": settings.max_gigabytes * 2**30}
    if case.ct is None:
        return None, read_mask(case.mask, **most)
    return read_pair(case.ct, case.mask, **most) if needs_mask else (read_ct(case.ct, **most), None)


def _read_points(case: Case, settings: PreparationSettings) -> tuple[Volume, Centroids, str | None]:
    """Read CT and points of a case, and give the points' source if it is not their own file."""
    ct, mask = _read_case(case, settings, needs_mask=case.centroids is None)
    centroids = centroids_of_mask(mask) if case.centroids is None else read_centroids(case.centroids, ct.grid)
    if len(centroids.codes) == 0:
        raise ValueError(f"{case.centroids or case.mask}: expected at least one vertebra, found none.")
    return ct, centroids, "mask" if case.centroids is None else None


def _note_of(centroids: Centroids, source: str | None) -> str:
    return f"{len(centroids.codes)} vertebrae{', centroids derived from the mask' if source else ''}"


def _as_int16(ct: Volume) -> Volume:
    return Volume(np.rint(ct.data).astype(np.int16), ct.affine)


def _vertebra_row(key: str, labels: Volume, code: int, *, touches: bool) -> dict[str, object]:
    box = labels.label_boxes[code]
    vertebra = labels.data[box] == code
    centre = np.add(ndimage.center_of_mass(vertebra), [side.start for side in box])
    values = (
        *(key, code, rank_of_code(code)),
        *(f"{position:.3f}" for position in centre),
        *(side.start for side in box),
        *(side.stop for side in box),
        *(int(np.count_nonzero(vertebra)), int(touches)),
    )
    return dict(zip(VERTEBRA_COLUMNS, values, strict=True))
