"""Images from label maps: a vertebra mask, real or generated, becomes a new CT-like image at every draw.

A network that has seen images of any appearance over the same labels keeps to shapes, and carries over to
scans that it has never seen: SynthSeg (Billot et al., Medical Image Analysis 2023). Their intensities are
drawn without units; a CT has units, so here all priors are Hounsfield units, those of the phantom
(`utils.synthetic.phantom`): cancellous bone under a cortex, muscle, fat, lung, gas, contrast. Around the
labelled bones lie those that VerSe does not label, on the course of the spine hang soft tissue, ribs and
pelvis, and the scan adds blur, slice thickness, correlated noise, streaks, drift, and a field of view.

`utils.synthetic.appearance` draws what an image looks like, `label_image` applies it: both are functions of a
seed, and any block of a mask may be asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from utils.imaging.intensities import whole_hu
from utils.synthetic.appearance import Appearance
from utils.synthetic.label_maps import DEPTH_UNIT_MM, SAMPLE_KINDS, LabelMap, level_of
from utils.synthetic.noise import smooth_noise
from utils.synthetic.phantom.soft import AIR_HU, GAS_HU, paint_tube
from utils.verse.labels import code_of_name

_C1, _C7, _T1, _T12 = (level_of(code_of_name(name)) for name in ("C1", "C7", "T1", "T12"))
_T2, _T9 = (level_of(code_of_name(name)) for name in ("T2", "T9"))
_L1, _L5 = (level_of(code_of_name(name)) for name in ("L1", "L5"))
#: Half depth and half width of the trunk at levels of the spine, mm, and the size of a vertebral body there
#: as a part of a lumbar one.
_TRUNK_LEVELS = (_C1, 6.0, 9.0, 14.0, _L1, _L5)
_HALF_DEPTH_MM = (66.0, 62.0, 85.0, 108.0, 105.0, 112.0)
_HALF_WIDTH_MM = (65.0, 66.0, 165.0, 160.0, 155.0, 178.0)
_BODY_SIZE = (0.5, 0.55, 0.6, 0.8, 1.0, 1.1)
#: Levels from one rib's neck to the next one down that a rib sinks by on its way to the front, per radian.
_RIB_DROP = 1.1
#: Soft tissue is drawn on every second voxel where these are finer than this, mm, and interpolated between.
_FINE_MM = 3.0
#: Blur that any scan on a grid has, in voxels, and how many of its widths are looked at.
_LEAST_BLUR, _TRUNCATE = 0.35, 2.5


def label_image(
    labels: LabelMap,
    appearance: Appearance,
    begin: Sequence[int] = (0, 0, 0),
    end: Sequence[int] | None = None,
) -> np.ndarray:
    """Draw the image of a block of a mask; beyond the field of view stands the nearest voxel in it.

    Parameters
    ----------
    labels : LabelMap
        The mask, see `label_map_of`.
    appearance : Appearance
        What was drawn for this image.
    begin, end : sequence of int, (3,)
        First voxel and end (exclusive) of the block, inside the mask; by default all of it.

    Returns
    -------
    np.ndarray of int16, shape of the block
        Hounsfield units, see `whole_hu`. Two blocks of one appearance have the same bones, but fields and
        noise of their own.
    """
    end = labels.codes.shape if end is None else end
    low, high = field_of_view(labels, appearance)
    wanted = [np.arange(b, e) for b, e in zip(begin, end)]
    shown = [np.clip(w, first, last - 1) for w, first, last in zip(wanted, low, high)]
    first = np.array([s[0] for s in shown])
    image = _rendered(labels, appearance, first, np.array([s[-1] + 1 for s in shown]))
    if image.shape != tuple(len(w) for w in wanted):
        image = image[np.ix_(*(s - f for s, f in zip(shown, first)))]
    return image


def field_of_view(labels: LabelMap, appearance: Appearance) -> tuple[np.ndarray, np.ndarray]:
    """Give the part of a mask that its image shows.

    All labels are inside. Above the first and below the last vertebra the scan ends within the next one,
    since one that is seen whole would have a label; under L5 it may show all of the sacrum.

    Parameters
    ----------
    labels : LabelMap
        The mask.
    appearance : Appearance
        What was drawn.

    Returns
    -------
    begin, end : np.ndarray of int, (3,)
        First voxel and end (exclusive) of the field of view.
    """
    begin, end = labels.span
    margins_mm = appearance.margins.copy()
    margins_mm[2] *= labels.pitch_mm
    if labels.ends_at_sacrum:
        margins_mm[2, 1] *= 4.0
    reach = np.ceil(margins_mm / labels.spacing_mm[:, None]).astype(int)
    return np.maximum(begin - reach[:, 0], 0), np.minimum(end + reach[:, 1], labels.codes.shape)


@dataclass(frozen=True)
class _Place:
    """Where the voxels of a grid lie on the course of the spine, mm: u (P, 1, I), v (1, R, I).

    u counts from the vertebrae's centres towards the back, v towards the right; `level`, `back`,
    `half_depth`, `half_width` and `size` (of a body) are (1, 1, I). `inside` (P, R, I) is the depth under the
    wall of the chest, and `at`, `side` say where on its ellipse a voxel lies.
    """

    u: np.ndarray
    v: np.ndarray
    back: np.ndarray
    level: np.ndarray
    half_depth: np.ndarray
    half_width: np.ndarray
    size: np.ndarray

    @cached_property
    def at(self) -> np.ndarray:
        depth = 0.82 * self.half_depth
        return (self.u - 18 + depth) / depth

    @cached_property
    def side(self) -> np.ndarray:
        return self.v / (0.85 * self.half_width)

    @cached_property
    def inside(self) -> np.ndarray:
        least = np.minimum(0.82 * self.half_depth, 0.85 * self.half_width)
        return (1 - np.sqrt(np.square(self.at) + np.square(self.side))) * least


def _place(labels: LabelMap, appearance: Appearance, voxels: Sequence[np.ndarray]) -> _Place:
    """Find the place of the grid that some voxels along P, R and I span."""
    p, r = ((voxels[axis] * labels.spacing_mm[axis]).astype(np.float32) for axis in (0, 1))
    course = labels.course
    level, spine_p, spine_r, back_p = (
        values[voxels[2]] for values in (course.level, course.spine_p, course.spine_r, course.back_p)
    )

    def along(values: Sequence[float], factor: float = 1.0) -> np.ndarray:
        return (factor * np.interp(level, _TRUNK_LEVELS, values)).astype(np.float32)[None, None]

    return _Place(
        u=p[:, None, None] - spine_p,
        v=r[None, :, None] - spine_r,
        back=(back_p - spine_p)[None, None],
        level=level[None, None],
        half_depth=along(_HALF_DEPTH_MM, appearance.girth),
        half_width=along(_HALF_WIDTH_MM, appearance.girth),
        size=along(_BODY_SIZE),
    )


def _rendered(labels: LabelMap, appearance: Appearance, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Soft tissue, bones over it, and the scan's blur and noise."""
    rng = np.random.default_rng(appearance.seed)
    hu, fine = _soft_tissue(rng, labels, appearance, (begin, end))
    _paint_bones(hu, labels, appearance, (begin, fine), rng)
    sigma = np.maximum(appearance.blur_mm / labels.spacing_mm, _LEAST_BLUR)
    # Noise before the blur, so that it is as coarse as the image is.
    noise = rng.standard_normal(hu.shape, np.float32)
    noise *= np.float32(appearance.noise_hu / np.prod([_norm_of_blur(s) for s in sigma]))
    hu += noise
    hu = ndimage.gaussian_filter(hu, sigma, mode="nearest", truncate=_TRUNCATE)
    _add_faults(hu, rng, appearance)
    return whole_hu(hu)


def _norm_of_blur(sigma: float) -> float:
    """What is left of the standard deviation of white noise after a blur along one axis."""
    peak = np.zeros(2 * int(_TRUNCATE * sigma + 0.5) + 1)
    peak[len(peak) // 2] = 1.0
    return float(np.linalg.norm(ndimage.gaussian_filter1d(peak, sigma, mode="constant", truncate=_TRUNCATE)))


def _soft_tissue(
    rng: np.random.Generator, labels: LabelMap, appearance: Appearance, block: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """All but vertebrae, HU, and the fine field, both at every voxel of a block."""
    steps = np.where(labels.spacing_mm < _FINE_MM, 2, 1)
    ends = np.minimum(block[1] + steps - 1, labels.codes.shape)
    voxels = [np.arange(b, e, step) for b, e, step in zip(block[0], ends, steps)]
    fields = [smooth_noise(rng, voxels, labels.spacing_mm, length) for length in appearance.lengths_mm]
    place = _place(labels, appearance, voxels)
    hu = _trunk(place, appearance, fields)
    _paint_cavities(hu, place, appearance, fields)
    for vessel in appearance.vessels:
        paint_tube(hu, (place.u, place.v, place.level), vessel)
    _paint_ribs_and_pelvis(hu, place, appearance)
    shape = block[1] - block[0]
    return tuple(_at_every_voxel(array, steps, shape) for array in (hu, fields[1]))


def _at_every_voxel(array: np.ndarray, steps: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Interpolate what is known at every second voxel of some axes."""
    for axis, (step, n) in enumerate(zip(steps, shape)):
        if step == 2:
            index = np.arange(n) // 2
            following = np.minimum((np.arange(n) + 1) // 2, array.shape[axis] - 1)
            array = np.float32(0.5) * (array.take(index, axis) + array.take(following, axis))
    return array


def _trunk(place: _Place, appearance: Appearance, fields: list[np.ndarray]) -> np.ndarray:
    """Muscle with fat, discs, the canal, skin, air, and the table, HU."""
    coarse, fine = fields
    u, v = place.u, place.v
    hu = np.float32(appearance.muscle_hu) + 8 * coarse
    centre = place.back + np.float32(appearance.skin_fat_mm) - place.half_depth
    trunk = np.square((u - centre) / place.half_depth) + np.square(v / place.half_width)
    under_skin = (1 - np.sqrt(trunk)) * np.minimum(place.half_depth, place.half_width)
    # The margin changes with the field, so that fat and muscle meet unevenly.
    is_fat = (coarse > appearance.fattiness) | (under_skin + 4 * fine < appearance.skin_fat_mm)
    np.copyto(hu, np.float32(appearance.fat_hu) + 4 * fine, where=is_fat)
    disc = np.square((u / place.size + 11) / 16) + np.square(v / (23 * place.size)) < 1
    np.copyto(hu, np.float32(appearance.disc_hu) + 6 * fine, where=disc)
    canal = np.square((u / place.size - 9) / 9) + np.square(v / 10) < 1
    np.copyto(hu, np.float32(25) + 12 * fine, where=canal)
    np.copyto(hu, np.float32(10), where=under_skin < 2)
    np.copyto(hu, np.float32(AIR_HU), where=under_skin < 0)
    behind = u - (place.back + np.float32(appearance.skin_fat_mm + appearance.table_mm))
    np.copyto(hu, np.float32(-150), where=(behind > 0) & (behind < 5) & (under_skin < 0))
    return hu


def _paint_cavities(hu: np.ndarray, place: _Place, appearance: Appearance, fields: list[np.ndarray]) -> None:
    """Lungs and heart in the chest; organs, fat, bowel in the belly; kidneys, psoas beside the spine."""
    coarse, fine = fields
    beside, level = np.abs(place.v), place.level
    inside = place.inside
    least, slope = appearance.mediastinum
    middle = np.float32(least) * (place.size + 0.3) + np.clip(-place.u - 12, 0, 45) * np.float32(slope)
    dome = appearance.lung_base - 2 * np.clip(1 - inside / 50, 0, 1) + 1
    lung = (inside > 5) & (beside > middle) & (level > _T1) & (level < dome)
    np.copyto(hu, np.float32(appearance.lung_hu) + 60 * fine + 500 * (fine > 2.5), where=lung)
    # The heart, from behind the breastbone to before the spine; chambers in its walls.
    p, r, middle_level = (np.float32(value) for value in appearance.heart_at)
    heart = np.square((place.u - p) / 48) + np.square((place.v - r) / np.float32(appearance.heart_mm))
    heart = (heart + np.square((level - middle_level) / 2.3) < 1 + 0.1 * fine) & (inside > 4)
    np.copyto(hu, np.where(coarse > -0.6, np.float32(appearance.chamber_hu), 80) + 6 * fine, where=heart)
    belly = (inside > 8) & (place.u < -25 * place.size) & (level >= dome)
    content = np.where(coarse > 0.1, np.float32(appearance.organ_hu), np.float32(appearance.fat_hu))
    loops = coarse > 1.0
    np.copyto(content, np.float32(appearance.bowel_hu), where=loops & (fine > 0.3))
    np.copyto(content, np.float32(GAS_HU), where=loops & (fine > 1.2))
    np.copyto(hu, content, where=belly)
    beside_spine = (place.u < 5) & (beside > 26) & (inside > 8) & (level > _T12) & ~belly
    np.copyto(hu, np.float32(appearance.fat_hu), where=beside_spine)
    liver = (place.v > 8) & (level >= dome) & (level < _L1 + 1) & (coarse > -1.3)
    np.copyto(hu, np.float32(appearance.organ_hu) + 4 * fine, where=belly & liver)
    kidney = np.square((place.u + 12) / 22) + np.square((beside - 58) / 26)
    kidney = kidney + np.square((level - _L1 - 0.6) / 1.7) < 1
    np.copyto(hu, np.float32(1.3 * appearance.organ_hu) + 10 * fine, where=kidney)
    psoas = np.square((place.u + 8) / 20) + np.square((beside - 38) / 15)
    np.copyto(hu, np.float32(appearance.muscle_hu) + 6 * fine, where=(psoas < 1) & (level > _L1 + 0.5))


def _paint_ribs_and_pelvis(hu: np.ndarray, place: _Place, appearance: Appearance) -> None:
    """Bones that no label stands for: rods and plates on the wall of the chest, and the plates beside L5."""
    beside = np.abs(place.v)
    wall = (np.abs(place.inside) < 4.5) & (place.level > _C7 + 0.5) & (place.level < _T12 + 0.5)
    places = np.nonzero(wall & (beside > 24))
    angle = np.arctan2(np.abs(place.side)[0][places[1:]], place.at[:, 0][places[0], places[2]])
    phase = place.level[0, 0][places[2]] + 0.3 - _RIB_DROP * angle
    # A rib is a fifth of the way to the next one thick.
    is_rib = np.abs(phase - np.rint(phase)) < 0.2
    hu[tuple(axis[is_rib] for axis in places)] = appearance.rib_hu
    chest = (place.level > _T2) & (place.level < _T9)
    breastbone = (np.abs(place.inside) < 6) & (place.at < 0) & (beside < 18) & chest
    blades = (np.abs(place.inside + 14) < 4) & (place.at > 0.2) & (beside > 60) & chest
    np.copyto(hu, np.float32(0.8 * appearance.rib_hu), where=breastbone | blades)
    plate = beside - 50 - np.float32(0.85) * (20 - place.u)
    pelvis = (np.abs(plate) < 9) & (place.u < 25) & (place.u > -60) & (place.level > _L5 - 0.2)
    np.copyto(hu, np.float32(0.8 * appearance.rib_hu), where=pelvis)


def _paint_bones(
    hu: np.ndarray,
    labels: LabelMap,
    appearance: Appearance,
    where: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> None:
    """Vertebrae and their unlabelled neighbours over what is there, by depth. `where` is begin and field."""
    begin, field = where
    places, kinds = labels.bones.places, labels.bones.kinds
    low, high = (side.astype(places.dtype)[:, None] for side in (begin, begin + hu.shape))
    here = np.flatnonzero(np.all((places >= low) & (places < high), axis=0))
    at = tuple(places.take(here, axis=1) - low)
    of_kinds = _parts_of_kinds(appearance, step_mm=float(labels.spacing_mm.min()) / labels.fine)
    cancellous, cortex, cancellous_hu = of_kinds.take(kinds.take(here, axis=1), axis=0).mean(axis=0).T
    # The denser and thinner places of every bone, and its trabeculae.
    texture, uneven = np.float32(appearance.bone.texture), field[at]
    bony_hu = cancellous_hu + np.float32(0.7) * texture * uneven * cancellous
    bony_hu += np.float32(appearance.bone.cortex) * (1 + np.float32(appearance.unevenness) * uneven) * cortex
    share = cancellous + cortex
    bony_hu += texture * share * rng.standard_normal(here.size, np.float32)
    hu[at] = (1 - share) * hu[at] + bony_hu


def _parts_of_kinds(appearance: Appearance, *, step_mm: float) -> np.ndarray:
    """Give how much of a sample of each kind is cancellous bone and cortex, and the first times its HU.

    The kinds are those of `SAMPLE_KINDS`, laid flat: float32 (kinds, 3).
    """
    codes, _, depths = SAMPLE_KINDS
    depth_mm = np.arange(depths, dtype=np.float32) * np.float32(DEPTH_UNIT_MM)
    in_body = np.array([[False], [True]])
    parts = np.array(bone_parts(depth_mm, in_body, appearance, step_mm=step_mm)[:2], np.float32)
    parts[..., 0] = 0  # outside of bones
    inside = np.where(in_body, np.float32(appearance.bone.body), np.float32(appearance.bone.arch))
    spread = np.concatenate([[0.0], appearance.bone.spread]).astype(np.float32)[:, None, None]
    cancellous, cortex = np.broadcast_to(parts[:, None], (2, codes, *parts.shape[1:]))
    return np.stack([cancellous, cortex, cancellous * (inside + spread)], axis=-1).reshape(-1, 3)


def bone_parts(
    depth_mm: np.ndarray, in_body: np.ndarray, appearance: Appearance, *, step_mm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give how much of each bony voxel is cancellous bone, cortex, and soft tissue that the mask holds.

    Masks reach a little beyond the bone, so a voxel passes, from the surface inwards, a rim of soft tissue,
    the cortex, and cancellous bone.

    Parameters
    ----------
    depth_mm : np.ndarray of float32
        Depth of the voxels' centres under the surface of their mask, mm.
    in_body : np.ndarray of bool
        Whether they belong to a vertebral body; the cortex of arches is half as thick again.
    appearance : Appearance
        `bone.shell_mm`, `cortex_share` and `rim_mm` are used.
    step_mm : float
        Size of a voxel, mm.

    Returns
    -------
    cancellous, cortex, rim : np.ndarray of float32
        Parts of the voxels, which add up to 1.
    """
    shell_mm = np.float32(appearance.cortex_share * appearance.bone.shell_mm) * np.where(
        in_body, np.float32(1), np.float32(1.5)
    )
    begin = depth_mm / np.float32(step_mm) - np.float32(0.5)
    rim = np.clip(np.float32(appearance.rim_mm / step_mm) - begin, 0, 1)
    solid = np.clip((np.float32(appearance.rim_mm) + shell_mm) / np.float32(step_mm) - begin, 0, 1)
    return 1 - solid, solid - rim, rim


def _add_faults(hu: np.ndarray, rng: np.random.Generator, appearance: Appearance) -> None:
    """Add streaks that run along R, and a slow drift."""
    if appearance.streak_hu:
        streaks = rng.standard_normal((hu.shape[0], 1, hu.shape[2]), np.float32)
        hu += np.float32(appearance.streak_hu) * ndimage.gaussian_filter(streaks, (0.7, 0, 0.5))
    for x in np.ix_(*(np.linspace(-1, 1, n) for n in hu.shape)):
        slope, bow = rng.normal(0, 0.5, 2) * appearance.drift_hu
        hu += (slope * x + bow * x * x).astype(np.float32)
