"""Measures of segmented vertebrae: bodies, heights, end plates, angles of the spine, density.

docs/measurements.md has the definitions and their sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from utils.imaging.centroids import body_centre
from utils.imaging.grids import cropped_grid, transform_points
from utils.imaging.volume import Grid, Volume, touches_border
from utils.prediction.vertebral_body import Body, find_body
from utils.verse.labels import code_of_name, name_of_code, rank_of_code

#: Semi-axes of the ellipsoid of cancellous bone, as a share of those of the body.
CORE_SHARE = 0.55
#: The levels that have no body of two end plates.
_WITHOUT_PLATES = (code_of_name("C1"), code_of_name("C2"))
#: Columns of a vertebra's row that need the whole body in view.
HEIGHTS = ("anterior_height_mm", "middle_height_mm", "posterior_height_mm")
RATIOS = ("anterior_to_posterior", "middle_to_posterior")
#: A ratio under this one is named as a hint (Genant et al. 1993: grade 1 begins at a loss of a fifth).
HINT_RATIO = 0.8


@dataclass(frozen=True, eq=False)
class Measures:
    """What was measured in one scan.

    Attributes
    ----------
    rows : list of dict
        A row a vertebra; None for what could not be measured, `why` says why.
    angles : dict
        Angles of the spine in degrees, None where their levels are not in view.
    bodies : Volume of uint8
        VerSe codes of the vertebral bodies on the scan's grid.
    found : dict of int to Body
        The bodies, by VerSe code, from the top down.
    """

    rows: list[dict[str, Any]]
    angles: dict[str, Any]
    bodies: Volume
    found: dict[int, Body]


def measure(ct: Volume, labels: Volume, *, anatomical: bool = True) -> Measures:
    """Measure all vertebrae of a scan.

    Parameters
    ----------
    ct : Volume
        The scan, in Hounsfield units.
    labels : Volume of uint8
        VerSe codes on the same grid.
    anatomical : bool
        False for labels that only count vertebrae: no level is then named in an angle.

    Returns
    -------
    Measures
        Heights in mm, density in HU, volumes in cubic mm, angles in degrees.
    """
    codes = sorted(labels.label_boxes, key=rank_of_code)
    places = {code: labels.label_boxes[code] for code in codes}
    grids = {code: _grid_of_box(labels, box) for code, box in places.items()}
    centres = {code: _first_centre(labels.data[box] == code, grids[code]) for code, box in places.items()}
    bodies = np.zeros(labels.shape, np.uint8)
    rows, found = [], {}
    for code, box in places.items():
        mask, grid = labels.data[box] == code, grids[code]
        row: dict[str, Any] = {"label": code, "name": name_of_code(code) if anatomical else str(code)}
        if anatomical and code in _WITHOUT_PLATES:
            body, why = None, "has no body of two end plates"
        else:
            body = find_body(mask, grid, centres[code], _down(centres, code))
            is_cut = touches_border(box if body is None else _box_in(box, body.mask), labels.shape)
            why = "its body reaches the border of the scan" if is_cut else "its end plates were not found"
            body = None if is_cut else body
        if body is None:
            rows.append({**row, **_no_measures(why)})
            continue
        found[code] = body
        bodies[box][body.mask] = code
        rows.append({**row, **_row(body, mask, Volume(ct.data[box], grid.affine))})
        if touches_border(box, labels.shape):  # a process is cut, the body is whole
            rows[-1]["volume_mm3"] = None
    angles = spine_angles(found, anatomical=anatomical)
    return Measures(rows, angles, Volume(bodies, labels.affine), found)


def spine_angles(bodies: Mapping[int, Body], *, anatomical: bool = True) -> dict[str, Any]:
    """Give the angles of a spine.

    Parameters
    ----------
    bodies : mapping of int to Body
        By VerSe code, from the top down.
    anatomical : bool
        Whether the codes are levels.

    Returns
    -------
    dict
        `cobb_deg`, the largest angle between the upper end plate of one vertebra and the lower one of another
        below it, seen from the front (Cobb 1948), with `cobb_from` and `cobb_to`; `kyphosis_t4_t12_deg` and
        `lordosis_l1_l5_deg`, seen from the side, positive for the usual curve. None where it can't be told.
    """
    angles: dict[str, Any] = dict.fromkeys(
        ("cobb_deg", "cobb_from", "cobb_to", "kyphosis_t4_t12_deg", "lordosis_l1_l5_deg")
    )
    codes = [*bodies]
    pairs = [
        (abs(bodies[a].upper.coronal_deg - bodies[b].lower.coronal_deg), a, b)
        for place, a in enumerate(codes)
        for b in codes[place + 1 :]
    ]
    if pairs:
        angle, first, last = max(pairs)
        names = [name_of_code(code) if anatomical else str(code) for code in (first, last)]
        angles.update(cobb_deg=round(angle, 1), cobb_from=names[0], cobb_to=names[1])
    for column, first, last, sign in (
        ("kyphosis_t4_t12_deg", "T4", "T12", 1),
        ("lordosis_l1_l5_deg", "L1", "L5", -1),
    ):
        ends = [bodies.get(code_of_name(name)) for name in (first, last)]
        if anatomical and None not in ends:
            turn = ends[1].lower.sagittal_deg - ends[0].upper.sagittal_deg
            angles[column] = round(sign * turn, 1)
    return angles


# Rows and frames -----------------------------------------------------------------------------------


def _row(body: Body, mask: np.ndarray, ct: Volume) -> dict[str, Any]:
    voxel_mm3 = abs(np.linalg.det(ct.affine[:3, :3]))
    anterior, middle, posterior = body.heights_mm
    ratios = anterior / posterior, middle / posterior
    low = [name for name, ratio in zip(RATIOS, ratios) if ratio < HINT_RATIO]
    hint = f"{' and '.join(low)} under {HINT_RATIO}: a hint at a loss of height, no diagnosis" if low else ""
    return {
        **{name: round(height, 1) for name, height in zip(HEIGHTS, body.heights_mm)},
        **{name: round(ratio, 3) for name, ratio in zip(RATIOS, ratios)},
        "core_hu": core_hu(ct, body),
        "volume_mm3": round(float(mask.sum() * voxel_mm3), 1),
        "body_volume_mm3": round(float(body.mask.sum() * voxel_mm3), 1),
        **{f"body_{axis}": round(float(value), 2) for axis, value in zip("xyz", body.centre_mm)},
        "hint": hint,
        "why": "",
    }


def core_hu(ct: Volume, body: Body) -> float | None:
    """Give the mean HU of the cancellous bone in an ellipsoid in the body; None where no voxel lies in it.

    Parameters
    ----------
    ct : Volume
        The vertebra's box of the scan, in Hounsfield units.
    body : Body
        Its body.
    """
    index = np.argwhere(body.mask)
    own = (index @ ct.affine[:3, :3].T + ct.affine[:3, 3] - body.centre_mm) @ body.axes
    inside = ((own / (CORE_SHARE * body.half_mm)) ** 2).sum(axis=1) <= 1
    return round(float(ct.data[tuple(index[inside].T)].mean()), 1) if inside.any() else None


def _no_measures(why: str) -> dict[str, Any]:
    columns = (*HEIGHTS, *RATIOS, "core_hu", "volume_mm3", "body_volume_mm3", "body_x", "body_y", "body_z")
    return {**dict.fromkeys(columns), "hint": "", "why": why}


def _first_centre(mask: np.ndarray, grid: Grid) -> np.ndarray:
    return transform_points(body_centre(mask, grid.affine), grid.affine, np.eye(4))[0]


def _down(centres: Mapping[int, np.ndarray], code: int) -> np.ndarray:
    """Give where the spine goes on at a vertebra: from its upper to its lower neighbour, or downwards."""
    codes = [*centres]
    place = codes.index(code)
    first, last = codes[max(place - 1, 0)], codes[min(place + 1, len(codes) - 1)]
    return np.array([0.0, 0.0, -1.0]) if first == last else centres[last] - centres[first]


def _box_in(box: tuple[slice, ...], mask: np.ndarray) -> tuple[slice, ...]:
    """Give the box of a mask that lies in a box."""
    (inner,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(slice(o.start + i.start, o.start + i.stop) for o, i in zip(box, inner))


def _grid_of_box(labels: Volume, box: tuple[slice, ...]) -> Grid:
    return cropped_grid(labels.grid, [side.start for side in box], [side.stop for side in box])
