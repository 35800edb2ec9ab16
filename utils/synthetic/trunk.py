"""Whole trunks with real context: the organs of one CT, bent, scaled, turned, and drawn with another look.

`read_organ_map` (`utils.synthetic.organs`) reads the organs once; every draw takes another pose
(`utils.synthetic.trunk_pose`), look (`utils.synthetic.trunk_values`), length of the last ribs and field of
view. Levels stay what they are: the map holds C7 to L3, so no drawn scan has a sacrum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.imaging.intensities import whole_hu
from utils.synthetic import organs as o
from utils.synthetic.drawn_scan import DrawnScan
from utils.synthetic.label_images import bone_parts
from utils.synthetic.label_maps import DEPTH_UNIT_MM
from utils.synthetic.noise import smooth_noise
from utils.synthetic.organs import OrganMap, path_lengths
from utils.synthetic.trunk_pose import Pose, draw_pose, drawn_places, real_places
from utils.synthetic.trunk_values import TrunkValues, draw_values
from utils.verse.labels import code_of_name

_T12 = code_of_name("T12")
#: A rib of this length makes a vertebra thoracic; the longest that the 12th is drawn with, mm.
_THORACIC_MM, _LONGEST_MM = 40.0, 140.0
#: The pose is worked out at steps of so many mm.
_COARSE_MM = 8.0
#: So far beyond the real CT the last plane goes on, mm; after that there is air.
_BEYOND_MM = 12.0
#: A field of view is at least so large, mm.
_LEAST_MM = 60.0
#: So far beyond every centre in sight, mm, a field of view reaches at least.
_BESIDE_MM = 12.0
_TABLE_MM = 6.0


@dataclass(frozen=True, eq=False)
class _Cuts:
    """Lengths of the ribs as drawn, and where the real ones are cut, mm (infinite for whole)."""

    ribs_mm: dict[int, tuple[float, float]]
    ends_mm: np.ndarray


def draw_trunk_scan(
    organs: OrganMap, seed: int, number: int, *, spacing_mm: float = 3.0, with_codes: bool = False
) -> DrawnScan:
    """Draw one scan of a trunk.

    Parameters
    ----------
    organs : OrganMap
        The organs, see `utils.synthetic.organs.read_organ_map`.
    seed, number : int
        Seed of all scans, and the number of this one.
    spacing_mm : float
        Edge of its voxels.
    with_codes : bool
        Draw the surroundings of the spine alone, with the masks of the vertebrae. The spacing must be that of
        the map then.

    Returns
    -------
    DrawnScan
        A scan of the kind "trunk". The two together decide about it.

    Raises
    ------
    ValueError
        If masks are asked for at another spacing than the map's.
    """
    if with_codes and spacing_mm != organs.spacing_mm:
        raise ValueError(f"Expected the spacing of the map, {organs.spacing_mm} mm, received {spacing_mm}.")
    rng = np.random.default_rng([seed, number])
    position = str(rng.choice(["supine", "prone", "right", "left"], p=[0.7, 0.12, 0.09, 0.09]))
    pose = draw_pose(rng, side=position in ("right", "left"))
    cuts = _cut_ribs(rng, organs, pose)
    centres = dict(zip(organs.centres, drawn_places(_from_middle(organs, organs.centres.values()), pose)))
    begin_mm, size_mm = _draw_field(rng, organs, pose, centres, near_spine=with_codes)
    voxels = np.maximum(np.rint(size_mm / spacing_mm), 1).astype(int)
    values = draw_values(rng, organs.medians, position=position)
    hu, codes = _painted(rng, organs, (pose, values, cuts), begin_mm, voxels * spacing_mm)
    ct = _scanned(rng, hu, values, organs.spacing_mm, (voxels, spacing_mm))
    points = {code: (at - begin_mm) / spacing_mm - 0.5 for code, at in centres.items()}
    inside = {
        code: at for code, at in points.items() if (at > -0.5).all() and (at < np.array(ct.shape) - 0.5).all()
    }
    known = {"points": inside, "ribs_mm": cuts.ribs_mm, "codes": codes if with_codes else None}
    return DrawnScan(ct, spacing_mm, kind="trunk", **known)


def _middle_mm(organs: OrganMap) -> np.ndarray:
    points = np.array([*organs.centres.values()])
    return (points.min(axis=0) + points.max(axis=0)) / 2


def _from_middle(organs: OrganMap, places_mm: Iterable[np.ndarray]) -> np.ndarray:
    return np.array([*places_mm], float).reshape(-1, 3) - _middle_mm(organs)


def _cut_ribs(rng: np.random.Generator, organs: OrganMap, pose: Pose) -> _Cuts:
    """Draw the length of the last ribs, one of them long enough, and measure all ribs as they are drawn."""
    wanted = rng.uniform(0, _LONGEST_MM, 2)
    if wanted.max() < _THORACIC_MM:
        wanted[rng.integers(2)] = rng.uniform(_THORACIC_MM + 5, _LONGEST_MM)
    ends, lengths = np.full(len(organs.rib_list) + 1, np.inf), {}
    paths = [rib.path_mm - _middle_mm(organs) for rib in organs.rib_list]
    places = drawn_places(np.concatenate([np.zeros((0, 3)), *paths]), pose)
    starts = np.cumsum([0, *map(len, paths)])
    for number, rib in enumerate(organs.rib_list, start=1):
        drawn = path_lengths(places[starts[number - 1] : starts[number]])
        length = drawn[-1]
        if rib.level == _T12 and wanted[rib.side] < length:
            length = wanted[rib.side]
            ends[number] = np.interp(length, drawn, rib.along_mm)
        lengths[rib.level, rib.side] = float(length)
    ribs_mm = {code: (lengths.get((code, 0), 0.0), lengths.get((code, 1), 0.0)) for code in organs.centres}
    return _Cuts(ribs_mm, ends)


def _draw_field(
    rng: np.random.Generator,
    organs: OrganMap,
    pose: Pose,
    centres: dict[int, np.ndarray],
    *,
    near_spine: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw where the scan begins and its size, mm: the whole trunk in half, else a part."""
    low, high = _trunk_box(rng, organs, pose)
    if not near_spine and rng.random() < 0.5:
        return low, high - low
    length = high[2] - low[2]
    if rng.random() < 0.75:
        part = rng.uniform(min(_LEAST_MM / length, 1.0), 1.0) * length
        low[2] += rng.choice([0.0, rng.random(), 1.0], p=[0.25, 0.5, 0.25]) * (length - part)
        high[2] = low[2] + part
    seen = np.array([at for at in centres.values() if low[2] < at[2] < high[2]])
    if (near_spine or rng.random() < 0.5) and len(seen):
        reach = rng.uniform(35, 85 if near_spine else 160, (2, 2))
        spine = seen.mean(axis=0)[:2]
        # A bent spine would leave a narrow field and come back: no level may be missing between others.
        low[:2] = np.maximum(low[:2], np.minimum(spine - reach[0], seen[:, :2].min(axis=0) - _BESIDE_MM))
        high[:2] = np.minimum(high[:2], np.maximum(spine + reach[1], seen[:, :2].max(axis=0) + _BESIDE_MM))
    return low, np.maximum(high - low, _LEAST_MM)


def _trunk_box(rng: np.random.Generator, organs: OrganMap, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """The box around the drawn trunk, with some air; along I as far as the spine is known, mm."""
    places = np.argwhere(organs.skin_mm[::16, ::16, ::16] > 0) * 16 * organs.spacing_mm
    body = drawn_places(_from_middle(organs, places), pose)
    low, high = (np.percentile(body, q, axis=0) for q in (0.5, 99.5))
    air = rng.uniform(-10, 50, (2, 2))
    low[:2], high[:2] = low[:2] - air[0], high[:2] + air[1]
    spine = np.array([*organs.centres.values()])
    ends = np.array([[*spine[k, :2], at] for k, at in zip((0, -1), organs.span_mm)])
    low[2], high[2] = drawn_places(_from_middle(organs, ends), pose)[:, 2]
    return low, high


def _painted(
    rng: np.random.Generator,
    organs: OrganMap,
    drawn: tuple[Pose, TrunkValues, _Cuts],
    begin_mm: np.ndarray,
    size_mm: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The trunk in a field of view, at the map's spacing, before it is scanned, HU; and its vertebrae."""
    pose, values, cuts = drawn
    step = organs.spacing_mm
    shape = np.ceil(size_mm / step - 1e-6).astype(int)
    index, outside = _real_voxels(organs, pose, begin_mm, shape)
    tissue = organs.tissue.ravel()[index]
    ribs = np.flatnonzero(tissue == o.RIB)
    source = index.ravel()[ribs]
    cut = organs.along_mm.ravel()[source] > cuts.ends_mm[organs.ribs.ravel()[source]]
    tissue.ravel()[ribs[cut]] = o.SOFT
    skin = organs.skin_mm.ravel()[index]
    _add_fat(tissue, skin, values)
    tissue[outside] = o.AIR
    coarse, fine = (smooth_noise(rng, [np.arange(n) for n in shape], np.full(3, step), mm) for mm in (24, 7))
    hu = values.hu[tissue] + values.gain[tissue] * organs.detail.ravel()[index]
    soft = (tissue != o.AIR) & (tissue != o.GAS) & (tissue != o.AIRWAY)
    hu += soft * (np.float32(4) * coarse + np.float32(5) * fine)
    hu[tissue == o.LUNG] += 25 * coarse[tissue == o.LUNG]
    _paint_bones(hu, tissue, (index, fine), organs, values, rng)
    _paint_table(hu, tissue, values, step)
    return hu, np.where(outside, 0, organs.vertebrae.ravel()[index])


def _real_voxels(
    organs: OrganMap, pose: Pose, begin_mm: np.ndarray, shape: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The number of the real voxel at every drawn one, and whether it lies far beyond the real CT."""
    step = organs.spacing_mm
    fine = [(np.arange(n) + 0.5) * step for n in shape]
    coarse = [np.arange(0, x[-1] + 2 * _COARSE_MM, _COARSE_MM) for x in fine]
    grid = np.stack(np.meshgrid(*(b + x for b, x in zip(begin_mm, coarse)), indexing="ij"), axis=-1)
    places = ((real_places(grid, pose) + _middle_mm(organs)) / step).astype(np.float32)
    for axis, x in enumerate(fine):
        left = (x // _COARSE_MM).astype(int)
        weight = (
            (x / _COARSE_MM - left).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(4)])
        )
        low = places.take(left, axis)
        places = low + weight * (places.take(left + 1, axis) - low)
    index, outside = np.zeros(tuple(shape), np.int64), np.zeros(tuple(shape), bool)
    beyond = _BEYOND_MM / step
    for axis, n in enumerate(organs.tissue.shape):
        at = np.rint(places[..., axis]).astype(np.int32)
        outside |= (at < -beyond) | (at > n - 1 + beyond)
        index = index * n + np.clip(at, 0, n - 1)
    return index, outside


def _add_fat(tissue: np.ndarray, skin: np.ndarray, values: TrunkValues) -> None:
    """Fat around the trunk, with a skin of its own, and in place of the outermost soft tissue."""
    added, under = values.fat_mm
    if added > 0:
        tissue[(skin > -added) & (skin < under) & np.isin(tissue, (o.AIR, o.SOFT))] = o.FAT
        tissue[(skin > -added) & (skin < 2.5 - added)] = o.SOFT


def _paint_bones(
    hu: np.ndarray,
    tissue: np.ndarray,
    where: tuple[np.ndarray, np.ndarray],
    organs: OrganMap,
    values: TrunkValues,
    rng: np.random.Generator,
) -> None:
    """Cancellous bone under a cortex, by depth."""
    index, fine = where
    voxels = np.flatnonzero(tissue >= o.BONE)
    source, kind = index.ravel()[voxels], tissue.ravel()[voxels]
    depth = organs.depth.ravel()[source].astype(np.float32) * np.float32(DEPTH_UNIT_MM)
    codes = organs.vertebrae.ravel()[source]
    backs = np.full(256, -np.inf)
    backs[list(organs.body_back_mm)] = list(organs.body_back_mm.values())
    in_body = source // np.prod(organs.tissue.shape[1:]) * organs.spacing_mm < backs[codes]
    bone, cortex, rim = bone_parts(depth, in_body, values.look, step_mm=organs.spacing_mm)
    made = values.look.bone
    uneven = fine.ravel()[voxels]
    inside = np.where(kind == o.VERTEBRA, np.where(in_body, made.body, made.arch), values.bone_hu)
    spread = np.zeros(256)
    spread[1 : made.spread.size + 1] = made.spread
    inside = inside + spread[codes] + made.texture * (rng.standard_normal(voxels.size) + 0.7 * uneven)
    inside += values.gain[o.VERTEBRA] * organs.detail.ravel()[source]
    shell = made.cortex * (1 + values.look.unevenness * uneven)
    shell = np.where(organs.plate.ravel()[source], values.plate * shell, shell)
    hu.ravel()[voxels] = bone * inside + cortex * np.minimum(shell, 1700) + rim * values.hu[o.SOFT]


def _paint_table(hu: np.ndarray, tissue: np.ndarray, values: TrunkValues, step: float) -> None:
    """A flat table beside the body, where there is air."""
    axis, sign, gap_mm, table_hu = values.table
    if not np.isfinite(gap_mm):
        return
    axis = int(axis)
    reached = np.flatnonzero((tissue != o.AIR).any(axis=tuple({0, 1, 2} - {axis})))
    if not reached.size:
        return
    edge = reached[-1] if sign > 0 else reached[0]
    first = edge + sign * round(gap_mm / step)
    rows = np.sort([first, first + sign * round(_TABLE_MM / step)]).astype(int)
    plate = np.moveaxis(hu, axis, 0)[max(rows[0], 0) : max(rows[1] + 1, 0)]
    free = np.moveaxis(tissue, axis, 0)[max(rows[0], 0) : max(rows[1] + 1, 0)] == o.AIR
    plate[free] = table_hu


def _scanned(
    rng: np.random.Generator,
    hu: np.ndarray,
    values: TrunkValues,
    step_mm: float,
    out: tuple[np.ndarray, float],
) -> np.ndarray:
    """Averages over slices, blur, the voxels of the scan, noise, streaks and drift."""
    voxels, spacing_mm = out
    blur = np.asarray(values.look.blur_mm) / step_mm
    blur[values.slab_axis] = 0.0
    hu = ndimage.gaussian_filter(hu, 0.5 * blur, truncate=2.5)
    for axis, n in enumerate(voxels):
        weights = axis_weights(hu.shape[axis], step_mm, int(n), spacing_mm,
                               slab_mm=values.slab_mm if axis == values.slab_axis else 0.0)  # fmt: skip
        hu = np.moveaxis(np.tensordot(weights, hu, (1, axis)), 0, axis)
    noise = rng.standard_normal(hu.shape, np.float32)
    noise = np.float32(0.8) * noise + np.float32(0.8) * ndimage.uniform_filter(noise, 2)
    hu = hu + np.float32(values.look.noise_hu) * noise
    if values.look.streak_hu:
        streaks = rng.standard_normal((hu.shape[0], 1, hu.shape[2]), np.float32)
        hu += np.float32(values.look.streak_hu) * streaks
    for x in np.ix_(*(np.linspace(-1, 1, n) for n in hu.shape)):
        hu += (rng.normal(0, 0.4) * values.look.drift_hu * x).astype(np.float32)
    return whole_hu(hu)


def axis_weights(
    voxels: int, step_mm: float, new_voxels: int, new_mm: float, *, slab_mm: float
) -> np.ndarray:
    """Give the weights that average one axis over slices and bring it to new voxels.

    Parameters
    ----------
    voxels, new_voxels : int
        Numbers of old and new voxels; both begin at one place.
    step_mm, new_mm : float
        Their edges.
    slab_mm : float
        Thickness of the slices, each the mean of what lies in it. New voxels are interpolated between the
        slices where these are thicker, else are means over their own edge.

    Returns
    -------
    np.ndarray of float32, (new_voxels, voxels)
        Every row adds up to 1.
    """
    if slab_mm <= new_mm:
        return _overlaps(np.arange(new_voxels) * new_mm, new_mm, voxels, step_mm)
    slices = max(1, int(np.ceil(new_voxels * new_mm / slab_mm)))
    means = _overlaps(np.arange(slices) * slab_mm, slab_mm, voxels, step_mm)
    at = np.clip((np.arange(new_voxels) + 0.5) * new_mm / slab_mm - 0.5, 0, slices - 1)
    left = np.minimum(at.astype(int), max(slices - 2, 0))
    weight = (at - left)[:, None].astype(np.float32)
    return (1 - weight) * means[left] + weight * means[np.minimum(left + 1, slices - 1)]


def _overlaps(begins_mm: np.ndarray, width_mm: float, voxels: int, step_mm: float) -> np.ndarray:
    """What part of each interval lies in each voxel, (intervals, voxels)."""
    edges = np.arange(voxels) * step_mm
    low = np.maximum(begins_mm[:, None], edges)
    high = np.minimum(begins_mm[:, None] + width_mm, edges + step_mm)
    shared = np.maximum(high - low, 0)
    return (shared / shared.sum(axis=1, keepdims=True)).astype(np.float32)
