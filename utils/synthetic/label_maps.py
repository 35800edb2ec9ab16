"""What an image drawn from a vertebra mask must know of its shape, found once a mask.

A `LabelMap` holds how deep every bony sample lies under the surface of its own vertebra, the bones that a
scan shows and VerSe does not label (the neighbours of the first and the last vertebra, the sacrum), and the
course of the spine, on which soft tissue hangs. `utils.synthetic.label_images` draws images from it.

Few voxels hold bone, so the depths of these alone are kept: a generated spine at 2 mm takes 8 MB so, and 13
with a depth everywhere.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from utils.imaging.crops import overlap
from utils.imaging.volume import label_boxes
from utils.synthetic.rib_necks import rib_necks
from utils.verse.labels import MAX_CODE, T13_CODE, code_of_name, rank_of_code

#: Depths are kept in units of this many mm, and so many are told apart: finer than a voxel, and a byte each.
DEPTH_UNIT_MM, _DEPTHS = 0.1, 256
#: What a bony sample can be: of each code, 0 for none, in an arch or in a body, at each depth.
SAMPLE_KINDS = (MAX_CODE + 1, 2, _DEPTHS)
#: A body ends so far behind the centre of mass of its vertebra, where the canal begins, mm.
_BODY_END_MM = 3.0
#: Distance between the centres of two vertebrae where a mask holds only one, mm.
USUAL_PITCH_MM = 30.0
_L5 = code_of_name("L5")
_THORACIC = {*range(code_of_name("T1"), code_of_name("T12") + 1), T13_CODE}
_T12_LEVEL = rank_of_code(code_of_name("T12"))
#: Bones of the sacrum, each L5 turned about R (degrees), scaled along P, R, I, and moved by multiples of its
#: height along P and I: a wedge that leans back and narrows.
_SACRUM = (
    (30.0, (0.9, 1.5, 1.0), (0.25, 0.82)),
    (45.0, (0.7, 1.3, 0.9), (0.65, 1.35)),
    (60.0, (0.5, 1.0, 0.8), (1.10, 1.75)),
)


@dataclass(frozen=True)
class Course:
    """The course of the spine: one value for every voxel along I, each float32 (I,).

    Attributes
    ----------
    spine_p, spine_r : np.ndarray
        Centre of mass of the vertebra at this height, in mm from the first voxel.
    back_p : np.ndarray
        Where the vertebrae end at the back, in mm from the first voxel.
    level : np.ndarray
        Number of the vertebra at this height, fractions between two: 1 for C1, 8 for T1, 20 for L1.
    """

    spine_p: np.ndarray
    spine_r: np.ndarray
    back_p: np.ndarray
    level: np.ndarray


@dataclass(frozen=True)
class BonyVoxels:
    """The voxels that hold bone, in the order of their places.

    Attributes
    ----------
    places : np.ndarray of int16, (3, n)
        Where they lie, along P, R and I.
    kinds : np.ndarray of uint16, (f^3, n)
        What each of their samples is: a flat index into `SAMPLE_KINDS`. The depth is that of the sample's
        centre under the surface of its bone, in `DEPTH_UNIT_MM`, 0 outside bones; bones without a label
        have a depth too.
    """

    places: np.ndarray
    kinds: np.ndarray


@dataclass(frozen=True)
class LabelMap:
    """A mask and the geometry of the images that are drawn from it.

    Attributes
    ----------
    codes : np.ndarray of uint8, (P, R, I)
        VerSe codes.
    spacing_mm : np.ndarray of float, (3,)
        Size of a voxel, mm.
    fine_codes : np.ndarray of uint8, (f P, f R, f I)
        Codes of f samples along each axis of a voxel: `codes` themselves, where there is no finer mask.
    bones : BonyVoxels
        The voxels that hold bone.
    course : Course
        The course of the spine.
    pitch_mm : tuple of float, 2
        Distance from the first vertebra to the next one up, and from the last to the next one down.
    """

    codes: np.ndarray
    spacing_mm: np.ndarray
    fine_codes: np.ndarray
    bones: BonyVoxels
    course: Course
    pitch_mm: tuple[float, float]

    @property
    def fine(self) -> int:
        """Samples along each axis of a voxel."""
        return self.fine_codes.shape[0] // self.codes.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        bones = self.bones.places.nbytes + self.bones.kinds.nbytes
        return self.codes.nbytes + (self.fine > 1) * self.fine_codes.nbytes + bones

    @cached_property
    def boxes(self) -> dict[int, tuple[slice, slice, slice]]:
        """The box of every vertebra, from the top of the spine down."""
        boxes = label_boxes(np.asarray(self.codes))
        return {code: boxes[code] for code in sorted(boxes, key=rank_of_code)}

    @cached_property
    def span(self) -> tuple[np.ndarray, np.ndarray]:
        """First voxel and end of all labels, both int (3,); the whole volume where there is none."""
        if not self.boxes:
            return np.zeros(3, int), np.array(self.codes.shape)
        sides = np.array([[(side.start, side.stop) for side in box] for box in self.boxes.values()])
        return sides[..., 0].min(axis=0), sides[..., 1].max(axis=0)

    @cached_property
    def ends_at_sacrum(self) -> bool:
        """Whether the last vertebra is L5 or L6, under which a sacrum lies."""
        return bool(self.boxes) and [*self.boxes][-1] in (_L5, _L5 + 1)


def label_map_of(
    codes: np.ndarray, spacing_mm: float | np.ndarray, fine_codes: np.ndarray | None = None
) -> LabelMap:
    """Find the geometry of a mask.

    Parameters
    ----------
    codes : np.ndarray of uint8, (P, R, I)
        VerSe codes; a mask without a vertebra has soft tissue alone.
    spacing_mm : float or np.ndarray of float, (3,)
        Size of a voxel, mm.
    fine_codes : np.ndarray of uint8, (f P, f R, f I), optional
        The same mask with f samples along each axis of a voxel: bones are drawn as finely.

    Returns
    -------
    LabelMap
        What `utils.synthetic.label_images.label_image` draws from.
    """
    fine_codes = codes if fine_codes is None else fine_codes
    fine = fine_codes.shape[0] // codes.shape[0]
    spacing = np.broadcast_to(np.asarray(spacing_mm, float), 3)
    step = spacing / fine
    boxes = label_boxes(np.asarray(fine_codes))
    ordered = {code: boxes[code] for code in sorted(boxes, key=rank_of_code)}
    depth = np.zeros(fine_codes.shape, np.uint8)
    masks = {code: np.asarray(fine_codes[box]) == code for code, box in ordered.items()}
    centres = {
        code: np.add(ndimage.center_of_mass(masks[code]), [side.start for side in box])
        for code, box in ordered.items()
    }
    steps = _end_steps(centres, step)
    for begin, bone in [*_ribs(masks, centres, boxes, step), *_unlabelled_bones(masks, centres, steps, step)]:
        _add_depth(depth, begin, bone, step)
    # Labelled bones come last: where both lie, the label decides.
    for code, box in ordered.items():
        _add_depth(depth, [side.start for side in box], masks[code], step)
    pitch_mm = tuple(float(np.linalg.norm(way * step)) for way in steps)
    middles = {code: (centre + 0.5) / fine - 0.5 for code, centre in centres.items()}
    backs = {code: box[0].stop / fine for code, box in ordered.items()}
    course = _course(backs, middles, spacing, codes.shape)
    bones = _bony_voxels(fine_codes, depth, course, spacing, fine)
    return LabelMap(codes, spacing, fine_codes, bones, course, pitch_mm)


def with_narrow_discs(codes: np.ndarray, voxels: int) -> np.ndarray:
    """Let the vertebrae of a mask grow towards each other along I, but never touch by it.

    Between the bodies in masks of VerSe (sub-verse004, sub-verse014) lie 4 to 6 mm from T9 to T12 and 3 to 9
    below, in those of phantoms 5 to 8 and 10 to 17.

    Parameters
    ----------
    codes : np.ndarray of uint8, (P, R, I)
        VerSe codes.
    voxels : int
        By how many voxels the discs become thinner: the first is taken from below the upper vertebra, the
        second from above the lower one, and so on.

    Returns
    -------
    np.ndarray of uint8, (P, R, I)
        The codes; where less than two voxels are free nothing changes.
    """
    grown = np.pad(codes, ((0, 0), (0, 0), (2, 2)))
    for step in range(voxels):
        along = grown if step % 2 == 0 else grown[:, :, ::-1]
        before, here, after = along[:, :, :-2], along[:, :, 1:-1], along[:, :, 2:]
        here[...] = np.where((here == 0) & (after == 0), before, here)
    return grown[:, :, 2:-2]


def level_of(code: int) -> float:
    """Give the number of a vertebra counted down the spine: T12 is 19, L1 20, and T13 lies between them."""
    rank = rank_of_code(code)
    return _T12_LEVEL + 0.5 if code == T13_CODE else float(rank - (rank > _T12_LEVEL))


def _add_depth(
    depth: np.ndarray, begin: np.ndarray | list[int], bone: np.ndarray, spacing: np.ndarray
) -> None:
    """Enter one bone, whose first voxel is `begin`, as far as it lies inside the volume."""
    to_outside = ndimage.distance_transform_edt(np.pad(bone, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    found = np.clip((to_outside - spacing.min() / 2) / DEPTH_UNIT_MM, 1, _DEPTHS - 1).astype(np.uint8)
    here, own = overlap(begin, bone.shape, depth.shape)
    depth[here][bone[own]] = found[own][bone[own]]


def _bony_voxels(
    fine_codes: np.ndarray, depth: np.ndarray, course: Course, spacing: np.ndarray, fine: int
) -> BonyVoxels:
    """Find the voxels with a sample that has a depth, and tell what their samples are."""
    starts = [*np.ndindex(fine, fine, fine)]
    parts = [tuple(slice(start, None, fine) for start in each) for each in starts]
    places = np.nonzero(np.any([depth[part] for part in parts], axis=0))
    kinds = []
    for (start, _, _), part in zip(starts, parts):
        # Along P from the middle of the first voxel, as the course counts.
        along_mm = (places[0] + (start + 0.5) / fine - 0.5) * spacing[0]
        in_body = along_mm < course.spine_p[places[2]] + _BODY_END_MM
        kind = (fine_codes[part][places], in_body.astype(int), depth[part][places])
        kinds.append(np.ravel_multi_index(kind, SAMPLE_KINDS).astype(np.uint16))
    return BonyVoxels(np.array(places, np.int16), np.array(kinds))


def _end_steps(centres: dict[int, np.ndarray], spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the way from a vertebra to the next one down at both ends of the column, in voxels."""
    # A hole in the labels (an unlabelled vertebra) must not count as one pitch.
    steps = [
        (centres[below] - centres[above]) / max(1.0, level_of(below) - level_of(above))
        for above, below in itertools.pairwise(centres)
    ] or [np.array([0.0, 0.0, USUAL_PITCH_MM]) / spacing]
    return steps[0], steps[-1]


def _unlabelled_bones(
    masks: dict[int, np.ndarray],
    centres: dict[int, np.ndarray],
    steps: tuple[np.ndarray, np.ndarray],
    spacing: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Copies of the first and the last vertebra, one pitch further; under L5 and L6 a sacrum."""
    if not masks:
        return []
    codes = [*masks]
    first, last = codes[0], codes[-1]
    bones = []
    if first > 1:  # above C1 is the skull, which no vertebra stands for
        bones.append(_turned(masks[first], centres[first] - steps[0], spacing))
    if last in (_L5, _L5 + 1):
        pitch = np.linalg.norm(steps[-1] * spacing)
        for degrees, scale, (back, down) in _SACRUM:
            moved = np.array([back, 0.0, down]) * pitch / spacing
            bones.append(_turned(masks[last], centres[last] + moved, spacing, degrees=degrees, scale=scale))
    else:
        bones.append(_turned(masks[last], centres[last] + steps[-1], spacing))
    return bones


def _ribs(
    masks: dict[int, np.ndarray],
    centres: dict[int, np.ndarray],
    boxes: dict[int, tuple[slice, slice, slice]],
    spacing: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The necks of the ribs of all thoracic vertebrae."""
    bones = []
    for code in _THORACIC & masks.keys():
        first = np.array([side.start for side in boxes[code]])
        # A mask has the same ribs whenever its map is made.
        rng = np.random.default_rng([code, int(masks[code].sum())])
        ribs = rib_necks(masks[code], centres[code] - first, spacing, rng)
        bones += [(begin + first, rib) for begin, rib in ribs]
    return bones


def _turned(
    bone: np.ndarray,
    centre: np.ndarray,
    spacing: np.ndarray,
    *,
    degrees: float = 0.0,
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Copy a bone to another centre, scaled and turned about R; give its first voxel and its mask."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])
    forward = np.diag(1 / spacing) @ turn @ np.diag(np.multiply(scale, spacing))
    middle = np.array(ndimage.center_of_mass(bone))
    half = np.ceil(np.abs(forward) @ np.maximum(middle, bone.shape - middle)).astype(int) + 1
    nearest = np.rint(centre).astype(int)
    back = np.linalg.inv(forward)
    offset = middle - back @ (half + centre - nearest)
    copy = ndimage.affine_transform(bone.astype(np.uint8), back, offset, tuple(2 * half + 1), order=0)
    return nearest - half, copy.astype(bool)


def _course(
    backs: dict[int, float],
    centres: dict[int, np.ndarray],
    spacing: np.ndarray,
    shape: tuple[int, ...],
) -> Course:
    heights = np.arange(shape[2])
    if not backs:
        middle = (np.array(shape) - 1) / 2 * spacing
        flat = np.ones(shape[2], np.float32)
        return Course(middle[0] * flat, middle[1] * flat, (middle[0] + 40) * flat, 22 * flat)
    points = np.array([*centres.values()])
    levels = np.array([level_of(code) for code in backs])
    order = np.argsort(points[:, 2])
    points, levels, ends_p = points[order], levels[order], np.array([*backs.values()])[order]
    pitch = USUAL_PITCH_MM / spacing[2]
    # One more vertebra beyond either end, so that ribs and lungs go on there.
    ends = (points[0, 2] - 8 * pitch, *points[:, 2], points[-1, 2] + 8 * pitch)
    numbers = (levels[0] - 8, *levels, levels[-1] + 8)
    along = [
        np.interp(heights, points[:, 2], values)
        for values in (points[:, 0] * spacing[0], points[:, 1] * spacing[1], ends_p * spacing[0])
    ]
    smooth = [ndimage.gaussian_filter1d(values, pitch / 2, mode="nearest") for values in along]
    return Course(
        *(values.astype(np.float32) for values in smooth),
        np.interp(heights, ends, numbers).astype(np.float32),
    )
