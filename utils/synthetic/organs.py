"""A map of the organs of one trunk, as images are drawn from it: tissues, vertebrae, ribs, skin.

The labels of a CT say what lies where; the CT itself adds what no label says: fat, muscle and gas between
them, vessels in the lungs, and how much every voxel differs from its tissue. `utils.synthetic.trunk` bends
the map and draws it anew.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from utils.imaging.grids import oriented, transform_points, working_grid
from utils.imaging.nifti import read_ct, read_mask
from utils.imaging.resampling import resample_ct, resample_labels
from utils.imaging.volume import Grid, Volume, label_boxes
from utils.settings import HU_RANGE
from utils.synthetic.label_maps import DEPTH_UNIT_MM, level_of
from utils.verse.labels import code_of_name, rank_of_code

#: What a voxel is made of; a tissue's number is its place.
TISSUES = (
    *("air", "fat", "soft", "gas", "bright", "rim", "disc", "lung", "lung_vessel", "airway"),
    *("heart", "artery", "vein", "lower_vein", "portal", "kidney", "liver", "spleen", "hollow", "gland"),
    *("muscle", "cord", "cartilage", "bone", "rib", "vertebra"),
)
(AIR, FAT, SOFT, GAS, BRIGHT, RIM, DISC, LUNG, LUNG_VESSEL, AIRWAY) = range(10)
HOLLOW, BONE, RIB, VERTEBRA = (TISSUES.index(name) for name in ("hollow", "bone", "rib", "vertebra"))
#: Parts of the names of structures, and their tissue; the first part that fits decides.
_TISSUE_OF_NAME = (
    *(("vertebra", "vertebra"), ("rib_", "rib"), ("cartilage", "cartilage"), ("kidney", "kidney")),
    *(("lung", "lung"), ("trachea", "airway"), ("heart", "heart"), ("atrial", "heart"), ("cord", "cord")),
    *(("pulmonary_vein", "heart"), ("portal", "portal"), ("inferior_vena", "lower_vein"), ("vein", "vein")),
    *(("vena", "vein"), ("aorta", "artery"), ("arter", "artery"), ("trunk", "artery"), ("liver", "liver")),
    *(("spleen", "spleen"), ("stomach", "hollow"), ("bowel", "hollow"), ("colon", "hollow")),
    *(("duodenum", "hollow"), ("esophagus", "hollow"), ("gland", "gland"), ("pancreas", "gland")),
    *(("autochthon", "muscle"), ("psoas", "muscle"), ("humerus", "bone"), ("scapula", "bone")),
    *(("clavicula", "bone"), ("sternum", "bone"), ("skull", "bone"), ("hip", "bone"), ("sacrum", "bone")),
)
#: Bounds between gas, fat, soft tissue and what is brighter, and between lung and its vessels, HU.
_GAS_HU, _FAT_HU, _BRIGHT_HU, _VESSEL_HU = -350.0, -25.0, 150.0, -550.0
#: What is brighter than this, and as near to a bone, is its rim; discs reach as far from their axis, mm.
_RIM_MM, _DISC_MM = 5.0, 19.0
#: A rib's path has one node for as many mm; its head lies at most as far from the vertebra's body, mm.
_NODE_MM = 6.0
#: A body centre is the middle of what is as deep as this, as a part of the deepest, under the surface.
_CORE = 0.6
#: A vertebra at the end of the volume has a centre of its own if this part of the usual height is seen (the
#: tip of a process may be cut), and one by its neighbours if the second part is.
_WHOLE, _SEEN = 0.9, 0.45
#: The map ends so far before a centre that is not known, mm.
_AFTER_MM = 4.0
#: End plates lie within as many mm of a body's top and bottom.
_PLATE_MM = 4.0
#: The most that a voxel differs from its tissue, HU.
_DETAIL_HU = 400.0


@dataclass(frozen=True, eq=False)
class Rib:
    """One rib.

    Attributes
    ----------
    level : int
        VerSe code of its vertebra.
    side : int
        0 for right, 1 for left.
    path_mm : np.ndarray of float, (n, 3)
        Its middle line from the head on, mm from the first voxel's centre along P, R and I.
    """

    level: int
    side: int
    path_mm: np.ndarray

    @property
    def along_mm(self) -> np.ndarray:
        """Way from the head to every node of the path, mm, (n,)."""
        return path_lengths(self.path_mm)


@dataclass(frozen=True, eq=False)
class OrganMap:
    """The organs of one trunk on one grid.

    Attributes
    ----------
    tissue : np.ndarray of uint8, (P, R, I)
        Number of the tissue, see `TISSUES`.
    vertebrae : np.ndarray of uint8, (P, R, I)
        VerSe codes.
    ribs : np.ndarray of uint8, (P, R, I)
        Place in `rib_list`, counted from 1.
    along_mm : np.ndarray of float32, (P, R, I)
        Way along its rib from the head to each voxel of a rib, mm.
    depth : np.ndarray of uint8, (P, R, I)
        Depth under the surface of its bone, in `DEPTH_UNIT_MM`; 0 outside bones.
    plate : np.ndarray of bool, (P, R, I)
        End plates of bodies.
    detail : np.ndarray of int16, (P, R, I)
        How much the CT differs from the median of the tissue, HU.
    skin_mm : np.ndarray of int8, (P, R, I)
        Depth under the skin, negative outside, mm.
    medians : np.ndarray of float, (number of tissues,)
        Median of every tissue in the CT, HU; 0 where there is none.
    spacing_mm : float
        Edge of a voxel.
    centres : mapping of int to np.ndarray of float, (3,)
        VerSe code and body centre, mm from the first voxel's centre, from the top down.
    body_back_mm : mapping of int to float
        Where these bodies end at the back, mm along P.
    rib_list : tuple of Rib
        All ribs.
    span_mm : tuple of float, 2
        First and last place along I, mm, between which every vertebra has a centre.
    """

    tissue: np.ndarray
    vertebrae: np.ndarray
    ribs: np.ndarray
    along_mm: np.ndarray
    depth: np.ndarray
    plate: np.ndarray
    detail: np.ndarray
    skin_mm: np.ndarray
    medians: np.ndarray
    spacing_mm: float
    centres: Mapping[int, np.ndarray]
    body_back_mm: Mapping[int, float]
    rib_list: tuple[Rib, ...]
    span_mm: tuple[float, float]

    @cached_property
    def ribs_mm(self) -> dict[int, tuple[float, float]]:
        """VerSe code of every vertebra, and the lengths of its right and left rib, 0 for none."""
        lengths = {(rib.level, rib.side): float(rib.along_mm[-1]) for rib in self.rib_list}
        return {code: tuple(lengths.get((code, side), 0.0) for side in (0, 1)) for code in self.centres}


def read_organ_map(
    mask_path: Path, names_path: Path, vertebrae_path: Path, ct_path: Path, *, spacing_mm: float = 2.0
) -> OrganMap:
    """Read the organs of one CT.

    Parameters
    ----------
    mask_path : Path
        NIfTI file with a code for every structure.
    names_path : Path
        Table with the columns `code` and `structure`, in the names of TotalSegmentator.
    vertebrae_path : Path
        NIfTI file with VerSe codes, on the same grid.
    ct_path : Path
        The CT, on the same grid.
    spacing_mm : float
        Edge of a voxel of the map.

    Returns
    -------
    OrganMap
        Axes (P, R, I).

    Raises
    ------
    ValueError
        As `utils.imaging.nifti.read_ct`, and if the grids differ or a structure has a name of no tissue.
    """
    structures, ct = read_ct(mask_path), read_ct(ct_path)
    vertebrae = read_mask(vertebrae_path)
    for path, volume in ((vertebrae_path, vertebrae), (ct_path, ct)):
        if volume.shape != structures.shape:
            raise ValueError(f"{path}: expected the shape of {mask_path}, {structures.shape}, "
                             f"found {volume.shape}.")  # fmt: skip
    grid = working_grid(ct.grid, spacing_mm)
    codes = _nearest(structures, grid).astype(np.uint8)
    hu = resample_ct(ct, grid, antialias=True, bounds=HU_RANGE).data
    return organ_map_of(
        codes, _structure_names(names_path), resample_labels(vertebrae, grid).data, hu, spacing_mm=spacing_mm
    )


def _nearest(volume: Volume, grid: Grid) -> np.ndarray:
    """The nearest voxel of a volume at every voxel of a (P, R, I) grid of parallel axes."""
    turned = oriented(volume)
    corners = transform_points([(0, 0, 0), np.subtract(grid.shape, 1)], grid.affine, turned.affine)
    places = [
        np.clip(np.rint(np.linspace(low, high, n)), 0, voxels - 1).astype(int)
        for low, high, n, voxels in zip(*corners, grid.shape, turned.shape)
    ]
    return turned.data[np.ix_(*places)]


def organ_map_of(
    codes: np.ndarray,
    names: Mapping[int, str],
    vertebrae: np.ndarray,
    hu: np.ndarray,
    *,
    spacing_mm: float,
) -> OrganMap:
    """Make a map from labels and CT, all (P, R, I) on one grid.

    Parameters
    ----------
    codes : np.ndarray of uint8
        Structures.
    names : mapping of int to str
        Their names.
    vertebrae : np.ndarray of uint8
        VerSe codes.
    hu : np.ndarray
        The CT.
    spacing_mm : float
        Edge of a voxel.

    Returns
    -------
    OrganMap
        What `utils.synthetic.trunk.draw_trunk_scan` draws from.
    """
    centres, radii, span_mm = _body_centres(vertebrae, spacing_mm)
    skin_mm = _skin_depth(hu, codes, spacing_mm)
    tissue = _tissues(codes, names, hu, skin_mm > 0)
    tissue[vertebrae > 0] = VERTEBRA
    _mark_rims_and_discs(tissue, hu, centres, spacing_mm)
    backs = {code: float(centres[code][0] + 1.3 * radii[code]) for code in centres}
    ribs, along_mm, rib_list = _find_ribs(codes, names, centres, spacing_mm)
    medians = ndimage.median(hu, tissue, np.arange(len(TISSUES)))
    medians = np.where(np.isin(np.arange(len(TISSUES)), tissue), medians, 0.0)
    return OrganMap(
        tissue=tissue,
        vertebrae=vertebrae,
        ribs=ribs,
        along_mm=along_mm,
        depth=_bone_depth(np.where(vertebrae > 0, vertebrae, np.where(tissue >= BONE, codes, 0)), spacing_mm),
        plate=_end_plates(vertebrae, backs, spacing_mm),
        detail=np.clip(hu - medians[tissue], -_DETAIL_HU, _DETAIL_HU).astype(np.int16),
        skin_mm=np.clip(np.rint(skin_mm), -127, 127).astype(np.int8),
        medians=medians,
        spacing_mm=spacing_mm,
        centres=centres,
        body_back_mm=backs,
        rib_list=rib_list,
        span_mm=span_mm,
    )


def path_lengths(path_mm: np.ndarray) -> np.ndarray:
    """Give the way from the first node of a path (n, 3) to each of its nodes, (n,)."""
    steps = np.linalg.norm(np.diff(path_mm, axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def _structure_names(path: Path) -> dict[int, str]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return {int(row["code"]): row["structure"] for row in csv.DictReader(file)}


def _tissue_of(name: str) -> int:
    for part, tissue in _TISSUE_OF_NAME:
        if part in name:
            return TISSUES.index(tissue)
    raise ValueError(f"Expected the name of a structure whose tissue is known, received {name!r}.")


def _tissues(codes: np.ndarray, names: Mapping[int, str], hu: np.ndarray, in_body: np.ndarray) -> np.ndarray:
    """The tissue of every voxel: by its label, and by the CT where there is none."""
    look_up = np.zeros(256, np.uint8)
    for code, name in names.items():
        look_up[code] = _tissue_of(name)
    tissue = look_up[codes]
    bare = (codes == 0) & in_body
    by_ct = np.digitize(hu, (_GAS_HU, _FAT_HU, _BRIGHT_HU))
    tissue[bare] = np.array([GAS, FAT, SOFT, BRIGHT], np.uint8)[by_ct[bare]]
    is_lung = tissue == LUNG
    near_lung = ndimage.binary_dilation(is_lung, iterations=3)
    tissue[(tissue == GAS) & near_lung] = LUNG
    tissue[(tissue == LUNG) & (hu > _VESSEL_HU)] = LUNG_VESSEL
    tissue[(tissue == HOLLOW) & (hu < _GAS_HU)] = GAS
    return tissue


def _skin_depth(hu: np.ndarray, codes: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Depth of every voxel under the skin, negative outside, mm; the table and clothes are outside."""
    dense = ndimage.binary_opening((hu > _GAS_HU) | (codes > 0), iterations=2)
    parts, count = ndimage.label(dense)
    sizes = ndimage.sum_labels(dense, parts, np.arange(1, count + 1))
    body = (parts == 1 + int(np.argmax(sizes))) | (codes > 0)
    # Slice by slice: windpipe and gut leave through the first and last one.
    body = np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(body, 2, 0)], axis=2)
    inside, outside = (
        ndimage.distance_transform_edt(part, sampling=spacing_mm) if part.any() and not part.all() else 0.0
        for part in (body, ~body)
    )
    return np.where(body, np.maximum(inside, spacing_mm), -outside)


def _body_centres(
    vertebrae: np.ndarray, spacing_mm: float
) -> tuple[dict[int, np.ndarray], dict[int, float], tuple[float, float]]:
    """The centre of every body, mm, the radius of the largest ball in it, mm, and where the map ends on I."""
    boxes = label_boxes(vertebrae)
    centres, radii = {}, {}
    for code in sorted(boxes, key=rank_of_code):
        box = boxes[code]
        depth = ndimage.distance_transform_edt(np.pad(vertebrae[box] == code, 1))[1:-1, 1:-1, 1:-1]
        parts, _ = ndimage.label(depth >= _CORE * depth.max())
        core = parts == parts[np.unravel_index(depth.argmax(), depth.shape)]
        centre = np.add(ndimage.center_of_mass(core), [side.start for side in box])
        centres[code], radii[code] = centre * spacing_mm, float(depth.max() * spacing_mm)
    known, span_mm = _usable_centres(centres, boxes, vertebrae.shape, spacing_mm)
    return known, radii, span_mm


def _usable_centres(
    centres: dict[int, np.ndarray],
    boxes: Mapping[int, tuple[slice, ...]],
    shape: tuple[int, ...],
    step: float,
) -> tuple[dict[int, np.ndarray], tuple[float, float]]:
    """The body centres that are known, and the part of the volume that they belong to, mm on I.

    A vertebra that the volume cuts has its centre where the two next to it say; where too little of it is
    seen its centre is not known, and the map ends before it.
    """
    usual = np.median([box[2].stop - box[2].start for box in boxes.values()])
    seen = {code: (box[2].stop - box[2].start) / usual for code, box in boxes.items()}
    at_end = {code for code, box in boxes.items() if box[2].start == 0 or box[2].stop == shape[2]}
    cut = {code for code in at_end if seen[code] < _WHOLE}
    known = {code: at for code, at in centres.items() if code not in cut or seen[code] >= _SEEN}
    whole = [code for code in known if code not in cut]
    for code in cut & set(known) if len(whole) > 1 else ():
        near, next_one = sorted(whole, key=lambda other: abs(level_of(other) - level_of(code)))[:2]
        away = abs(level_of(near) - level_of(code))
        known[code] = centres[near] + away * (centres[near] - centres[next_one])
    lost = [centres[code][2] for code in centres if code not in known]
    middle = shape[2] * step / 2
    low = max([at + _AFTER_MM for at in lost if at < middle], default=-step / 2)
    high = min([at - _AFTER_MM for at in lost if at > middle], default=(shape[2] - 0.5) * step)
    return known, (float(low), float(high))


def _mark_rims_and_discs(
    tissue: np.ndarray, hu: np.ndarray, centres: Mapping[int, np.ndarray], spacing_mm: float
) -> None:
    """Tell what is bright beside a bone from vessels, and discs from other soft tissue."""
    near_bone = ndimage.distance_transform_edt(tissue < BONE, sampling=spacing_mm) <= _RIM_MM
    tissue[(tissue == BRIGHT) & near_bone] = RIM
    points = np.array([*centres.values()])
    for above, below in itertools.pairwise(points):
        low = np.maximum(np.floor((np.minimum(above, below) - _DISC_MM) / spacing_mm), 0).astype(int)
        high = np.ceil((np.maximum(above, below) + _DISC_MM) / spacing_mm).astype(int)
        box = tuple(slice(b, e) for b, e in zip(low, high))
        where = np.moveaxis(np.indices(tissue[box].shape), 0, -1) + low
        way = (below - above) / np.linalg.norm(below - above)
        offset = where * spacing_mm - above
        along = offset @ way
        beside = np.linalg.norm(offset - along[..., None] * way, axis=-1)
        between = (along > 0) & (along < np.linalg.norm(below - above)) & (beside < _DISC_MM)
        tissue[box][between & np.isin(tissue[box], (SOFT, RIM))] = DISC


def _bone_depth(bones: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Depth of every voxel under the surface of its own bone, in `DEPTH_UNIT_MM`."""
    depth = np.zeros(bones.shape, np.uint8)
    for code, box in label_boxes(bones.astype(np.uint8)).items():
        bone = bones[box] == code
        # The end of the volume is no surface.
        ends = [(int(s.start > 0), int(s.stop < n)) for s, n in zip(box, bones.shape)]
        padded = np.pad(bone, ends)
        inner = tuple(slice(b, n - e) for (b, e), n in zip(ends, padded.shape))
        mm = ndimage.distance_transform_edt(padded, sampling=spacing_mm)[inner] - spacing_mm / 2
        depth[box][bone] = np.clip(mm / DEPTH_UNIT_MM, 1, 255).astype(np.uint8)[bone]
    return depth


def _end_plates(vertebrae: np.ndarray, backs: Mapping[int, float], spacing_mm: float) -> np.ndarray:
    """Whether a voxel of a body lies near its top or bottom."""
    steps = max(1, round(_PLATE_MM / spacing_mm))
    padded = np.pad(vertebrae, ((0, 0), (0, 0), (steps, steps)), mode="edge")
    ends = (padded[..., : -2 * steps] != vertebrae) | (padded[..., 2 * steps :] != vertebrae)
    limits = np.full(256, -np.inf)
    limits[list(backs)] = list(backs.values())
    places = np.arange(vertebrae.shape[0])[:, None, None] * spacing_mm
    return ends & (vertebrae > 0) & (places < limits[vertebrae])


def _find_ribs(
    codes: np.ndarray, names: Mapping[int, str], centres: Mapping[int, np.ndarray], spacing_mm: float
) -> tuple[np.ndarray, np.ndarray, tuple[Rib, ...]]:
    """Number all ribs, and find how far from the head every voxel lies, mm, and the paths."""
    numbers, along_mm, found = np.zeros(codes.shape, np.uint8), np.zeros(codes.shape, np.float32), []
    boxes = label_boxes(codes)
    for code, name in names.items():
        if not name.startswith("rib_") or code not in boxes:
            continue
        _, side, number = name.split("_")
        level = code_of_name(f"T{number}")
        if level not in centres:
            continue
        voxels = np.argwhere(codes == code)
        path_mm, along = _rib_path(voxels * spacing_mm, centres[level], 1.8 * spacing_mm)
        found.append(Rib(level, ("right", "left").index(side), path_mm))
        numbers[tuple(voxels.T)], along_mm[tuple(voxels.T)] = len(found), along
    return numbers, along_mm, tuple(found)


def _rib_path(voxels_mm: np.ndarray, centre_mm: np.ndarray, reach_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """The middle line of a rib from its head on, (n, 3), and how far along it every voxel lies.

    The way through the rib from its head divides it into pieces; their middles are the nodes of the line.
    """
    tree = cKDTree(voxels_mm)
    pairs = tree.query_pairs(reach_mm, output_type="ndarray")
    lengths = np.linalg.norm(voxels_mm[pairs[:, 0]] - voxels_mm[pairs[:, 1]], axis=1)
    graph = sparse.csr_array((lengths, pairs.T), shape=(len(voxels_mm),) * 2)
    head = int(np.linalg.norm(voxels_mm - centre_mm, axis=1).argmin())
    way = csgraph.dijkstra(graph, directed=False, indices=head)
    reached = np.isfinite(way)
    piece = np.where(reached, way, 0) // _NODE_MM
    numbers = np.unique(piece[reached])
    nodes = np.array([voxels_mm[reached & (piece == number)].mean(axis=0) for number in numbers])
    far = voxels_mm[np.where(reached, way, 0).argmax()]
    path = np.concatenate([voxels_mm[head][None], nodes, far[None]])
    nearest = np.linalg.norm(voxels_mm[:, None] - path[None], axis=-1).argmin(axis=1)
    return path, path_lengths(path)[nearest]
