"""What one case of a data set holds and what is odd about it, measured on its native grid.

A case is read as the pre-processing reads it, so whatever that would refuse is a bad finding here. The
rest are remarks: the case can be used, but whoever uses it should know. CT and mask are in memory one
after the other, never both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import nibabel
import numpy as np
from scipy import ndimage

from utils.imaging.centroids import read_centroids
from utils.imaging.grids import SAME_GRID_VOXELS, corners_of, transform_points, voxels_apart
from utils.imaging.nifti import read_ct, read_mask
from utils.imaging.quiet import silent
from utils.imaging.volume import Grid, Volume, touches_border
from utils.verse.anomalies import SUPERNUMERARY, T12_ABSENT, anomalies_of
from utils.verse.cases import Case
from utils.verse.labels import LEVEL_NAMES, code_of_name, name_of_code, rank_of_code

UNREADABLE_FILE = "unreadable file"
SHAPES_DIFFER = "shapes differ"
POSITIONS_DIFFER = "positions differ"
UNKNOWN_LABELS = "labels outside the table"
NO_VERTEBRA = "no vertebra"
#: Kinds of findings that make a case useless until it is mended.
BAD_KINDS = (UNREADABLE_FILE, SHAPES_DIFFER, POSITIONS_DIFFER, UNKNOWN_LABELS, NO_VERTEBRA)

INCOMPLETE = "incomplete"
NO_CENTROIDS = "no centroid file"
LABELS_DIFFER = "labels of mask and centroids differ"
CENTROID_OUTSIDE = "centroid outside its vertebra"
STRAY_COMPONENTS = "stray components"
LEVELS_MISSING = "gap in the levels"
FLOAT_NOISE = "float noise"
NO_NUMBERS = "voxels without a number"
FORMS_DIFFER = "qform and sform differ"
#: Kinds of findings that a case can be used with.
FINDING_KINDS = (
    *(INCOMPLETE, NO_CENTROIDS, LABELS_DIFFER, CENTROID_OUTSIDE, STRAY_COMPONENTS, LEVELS_MISSING),
    *(FLOAT_NOISE, NO_NUMBERS, FORMS_DIFFER),
)

#: Peak memory of checking a case, as a multiple of its image in float32: 2.3 with a mask in float64.
PEAK_OF_NATIVE = 3

#: Smallest component beside the main one that is a stray, in voxels. On VerSe masks single voxels that
#: touch their vertebra only by an edge or a corner come from resampling (4 of 26 vertebrae in three
#: cases); they are an artefact of the grid, so the limit is in voxels and not in mm³.
LEAST_STRAY_VOXELS = 2
#: VerSe's centroid is the centre of the vertebral body. In three cases all 25 of C2 to L5 lie in a voxel of
#: their label; 2 mm (a voxel of the coarsest of them) allow for rounding and for a fractured body.
CENTROID_TOLERANCE_MM = 2.0
#: C1 has no body; its point lies in its ring (9.4 mm from the bone in one case), which is 32 mm wide.
C1_TOLERANCE_MM = 16.0
#: Distance from a whole number that single precision does not show.
NOISE = 1e-6

_C1 = code_of_name("C1")
#: How the readers say that a file is whole but does not fit.
_KIND_OF_WORDS = {"expected VerSe labels": UNKNOWN_LABELS, "expected points inside": POSITIONS_DIFFER}
Read = TypeVar("Read")


@dataclass(frozen=True)
class Finding:
    """Something odd about a case.

    Attributes
    ----------
    kind : str
        One of `BAD_KINDS` or `FINDING_KINDS`.
    what : str
        What was found, in words.
    file : Path or None
        The file, None if it is the case as a whole.
    """

    kind: str
    what: str
    file: Path | None = None

    @property
    def bad(self) -> bool:
        """Whether the case is unreadable or inconsistent."""
        return self.kind in BAD_KINDS


@dataclass(frozen=True)
class ImageFacts:
    """What a NIfTI file says of itself.

    Attributes
    ----------
    grid : Grid
        Shape and affine, as nibabel resolves it.
    number_type : str
        Type of the stored numbers, such as "uint8".
    form_codes : tuple of int, (2,)
        Codes of qform and sform.
    forms_apart_mm : float
        Largest distance of a corner by qform from the same by sform, in mm; 0 unless both are set.
    as_integers : bool
        Whether whole numbers are stored and not scaled.
    """

    grid: Grid
    number_type: str
    form_codes: tuple[int, int]
    forms_apart_mm: float
    as_integers: bool

    @property
    def axes(self) -> str:
        """Where the axes point to, such as "PIR"."""
        return "".join(nibabel.aff2axcodes(self.grid.affine))


@dataclass(frozen=True)
class VertebraFacts:
    """One vertebra of a mask.

    Attributes
    ----------
    code : int
        VerSe label.
    voxels : int
        Voxels of the label.
    volume_mm3 : float
        Their volume.
    components : int
        Parts that are connected by faces of voxels.
    strays : tuple of int
        Voxels of every part beside the largest with at least `LEAST_STRAY_VOXELS`, largest first.
    touches_border : bool
        Whether a voxel lies on one of the six faces of the volume.
    centroid_distance_mm : float or None
        Distance of the centroid to the nearest voxel's centre; 0 in a voxel of the label, None without one.
    """

    code: int
    voxels: int
    volume_mm3: float
    components: int
    strays: tuple[int, ...]
    touches_border: bool
    centroid_distance_mm: float | None = None


@dataclass(frozen=True)
class CaseFacts:
    """One case.

    Attributes
    ----------
    case : Case
        Its files.
    ct, mask : ImageFacts or None
        None where there is no file, or none that can be read.
    hu_range : tuple of float, (2,) or None
        Smallest and largest HU of the CT.
    vertebrae : tuple of VertebraFacts
        From the top of the spine down.
    findings : tuple of Finding
        What is odd.
    """

    case: Case
    ct: ImageFacts | None = None
    mask: ImageFacts | None = None
    hu_range: tuple[float, float] | None = None
    vertebrae: tuple[VertebraFacts, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def image(self) -> ImageFacts | None:
        """The CT's facts, else those of the mask."""
        return self.ct or self.mask

    @property
    def bad(self) -> bool:
        """Whether the case is unreadable or inconsistent."""
        return any(finding.bad for finding in self.findings)

    @property
    def anomalies(self) -> list[str]:
        """Supernumerary and absent levels, as `anomalies_of`."""
        return anomalies_of([vertebra.code for vertebra in self.vertebrae])


def check_case(case: Case, *, most_bytes: float = np.inf) -> CaseFacts:
    """Read and measure a case; whatever is wrong with it is a finding, so that it ends no run.

    Parameters
    ----------
    case : Case
        Any case of the index, complete or not.
    most_bytes : float
        Memory that a CT or mask may take (`check_memory`).

    Returns
    -------
    CaseFacts
        What could be measured, and what is odd.
    """
    try:
        return _checked(case, most_bytes)
    except Exception as problem:
        return unreadable_case(case, f"{type(problem).__name__}: {problem}")


def unreadable_case(case: Case, found: str) -> CaseFacts:
    """Give what is known of a case that could not be read, which completes "expected to be read, found"."""
    return CaseFacts(case, findings=(Finding(UNREADABLE_FILE, f"expected to be read, found {found}"),))


def missing_levels(codes: Sequence[int]) -> list[str]:
    """Name the levels that are not there between the highest and the lowest that are.

    L6 and T13 are not missed, nor is T12 where it is an anomaly (`anomalies_of`).
    """
    if not codes:
        return []
    ranks = [rank_of_code(code) for code in codes]
    absent = [LEVEL_NAMES[rank - 1] for rank in range(min(ranks), max(ranks)) if rank not in ranks]
    ignored = (*SUPERNUMERARY, *(["T12"] if T12_ABSENT in anomalies_of(codes) else []))
    return [name for name in absent if name not in ignored]


def vertebra_facts(mask: Volume, points_mm: Mapping[int, np.ndarray] | None = None) -> list[VertebraFacts]:
    """Measure every vertebra of a mask.

    Parameters
    ----------
    mask : Volume of uint8
        VerSe codes.
    points_mm : mapping of int to np.ndarray, (3,), optional
        Centroids by label, in world mm, RAS+.

    Returns
    -------
    list of VertebraFacts
        From the top of the spine down.
    """
    codes = sorted(mask.label_boxes, key=rank_of_code)
    return [_vertebra(mask, code, (points_mm or {}).get(code)) for code in codes]


def distance_to_label_mm(mask: Volume, code: int, point_mm: np.ndarray) -> float:
    """Measure how far a point lies from a label.

    Parameters
    ----------
    mask : Volume of uint8
        VerSe codes; the label is among them.
    code : int
        The label.
    point_mm : np.ndarray, (3,)
        World coordinates in mm, RAS+.

    Returns
    -------
    float
        mm to the nearest centre of a voxel of the label; 0 if the point lies in such a voxel.
    """
    point = transform_points(point_mm, np.eye(4), mask.affine)[0]
    nearest = np.rint(point).astype(int)
    if np.all((nearest >= 0) & (nearest < mask.shape)) and mask.data[tuple(nearest)] == code:
        return 0.0
    box = mask.label_boxes[code]
    voxels = np.argwhere(mask.data[box] == code) + [side.start for side in box]
    return float(np.linalg.norm((voxels - point) @ mask.affine[:3, :3].T, axis=1).min())


def odd_numbers(planes: Iterable[np.ndarray]) -> tuple[int, int, float]:
    """Count the numbers of a volume that are no numbers, and those that are not whole.

    Parameters
    ----------
    planes : iterable of np.ndarray of float
        Numbers as stored, in any parts.

    Returns
    -------
    gaps : int
        Voxels that are NaN or infinite.
    fractions : int
        Voxels that are further from a whole number than `NOISE`.
    largest : float
        The largest such distance, 0 to .5.
    """
    gaps, fractions, largest = 0, 0, 0.0
    for plane in planes:
        numbers = plane[plane != 0]  # few in a mask
        finite = numbers[np.isfinite(numbers)]
        off = np.abs(finite - np.rint(finite))
        gaps += numbers.size - finite.size
        fractions += int(np.count_nonzero(off > NOISE))
        largest = max(largest, float(off.max(initial=0)))
    return gaps, fractions, largest if fractions else 0.0


# One case ------------------------------------------------------------------------------------------


def _checked(case: Case, most_bytes: float) -> CaseFacts:
    findings = list(_absent(case))
    ct_facts, mask_facts = (partial(facts, most_bytes=most_bytes) for facts in (_ct_facts, _mask_facts))
    ct, hu_range = _attempt(ct_facts, case.ct, findings) or (None, None)
    mask, volume = _attempt(mask_facts, case.mask, findings) or (None, None)
    facts = CaseFacts(case, ct, mask, hu_range)
    findings.extend(_grid_findings(facts))
    points_mm, vertebrae = None, []
    if facts.image is not None:
        grid = facts.image.grid
        points_mm = _attempt(lambda path, _: _points_mm(path, grid), case.centroids, findings)
    if volume is not None:
        vertebrae = vertebra_facts(volume, points_mm)
        if points_mm is not None:
            findings.extend(_label_findings(case, vertebrae, set(points_mm)))
        findings.extend(_vertebra_findings(case, vertebrae))
    return replace(facts, vertebrae=tuple(vertebrae), findings=tuple(findings))


def _absent(case: Case) -> Iterator[Finding]:
    if not case.complete:
        yield Finding(INCOMPLETE, f"no {', no '.join(case.missing())}")
    elif case.centroids is None:
        yield Finding(NO_CENTROIDS, "the pre-processing derives them from the mask")


def _attempt(
    read: Callable[[Path, list[Finding]], Read], path: Path | None, findings: list[Finding]
) -> Read | None:
    """Read a file if there is one; an error becomes a finding."""
    if path is None:
        return None
    try:
        return read(path, findings)
    except ValueError as error:
        what = str(error).removeprefix(f"{path}: ").rstrip(".")
        kind = next((kind for words, kind in _KIND_OF_WORDS.items() if words in what), UNREADABLE_FILE)
        findings.append(Finding(kind, what, path))
        return None


def _ct_facts(
    path: Path, findings: list[Finding], *, most_bytes: float
) -> tuple[ImageFacts, tuple[float, float]]:
    ct = read_ct(path, most_bytes=most_bytes)
    facts = _image_facts(path, ct.grid)
    findings.extend(_storage_findings(path, facts, is_mask=False))
    return facts, (float(ct.data.min()), float(ct.data.max()))


def _mask_facts(path: Path, findings: list[Finding], *, most_bytes: float) -> tuple[ImageFacts, Volume]:
    mask = read_mask(path, most_bytes=most_bytes)
    facts = _image_facts(path, mask.grid)
    findings.extend(_storage_findings(path, facts, is_mask=True))
    if not mask.data.any():
        findings.append(Finding(NO_VERTEBRA, "expected at least one vertebra, found none", path))
    return facts, mask


def _points_mm(path: Path, grid: Grid) -> dict[int, np.ndarray]:
    centroids = read_centroids(path, grid)
    return dict(zip(centroids.codes.tolist(), centroids.points_mm))


def _image_facts(path: Path, grid: Grid) -> ImageFacts:
    image = _opened(path)
    header = image.header
    codes = (int(header["qform_code"]), int(header["sform_code"]))
    apart = 0.0
    if min(codes) > 0:
        corners, world = corners_of(grid.shape), np.eye(4)
        by_qform = transform_points(corners, header.get_qform(), world)
        by_sform = transform_points(corners, header.get_sform(), world)
        apart = float(np.linalg.norm(by_qform - by_sform, axis=1).max())
    proxy = image.dataobj
    as_integers = proxy.dtype.kind in "iu" and (proxy.slope, proxy.inter) == (1, 0)
    return ImageFacts(grid, proxy.dtype.name, codes, apart, as_integers)


def _opened(path: Path) -> nibabel.Nifti1Image:
    """Open a file that `volume` has read already, without nibabel's remarks on its header."""
    with silent():
        return nibabel.load(path)


def _stored_planes(path: Path) -> Iterator[np.ndarray]:
    """Give a volume's numbers, scaled, plane by plane: masks in float64 would fill the memory."""
    image = _opened(path)
    proxy = image.dataobj
    voxels = math.prod(proxy.shape[:2])
    with image.file_map["image"].get_prepare_fileobj("rb") as stream:
        stream.seek(int(proxy.offset))
        for _ in range(proxy.shape[2]):
            numbers = np.frombuffer(stream.read(voxels * proxy.dtype.itemsize), proxy.dtype)
            yield numbers * float(proxy.slope) + float(proxy.inter)


# Findings ------------------------------------------------------------------------------------------


def _storage_findings(path: Path, facts: ImageFacts, *, is_mask: bool) -> Iterator[Finding]:
    # A tenth of a voxel, as for two files.
    if facts.forms_apart_mm > SAME_GRID_VOXELS * facts.grid.spacing_mm.min():
        what = f"corners lie up to {facts.forms_apart_mm:.2g} mm apart; the sform is used"
        yield Finding(FORMS_DIFFER, what, path)
    if facts.as_integers:
        return
    gaps, fractions, largest = odd_numbers(_stored_planes(path))
    if gaps:
        reading = "background" if is_mask else "air"
        yield Finding(NO_NUMBERS, f"{gaps} numbers are NaN or infinite, read as {reading}", path)
    if fractions and is_mask:
        what = f"{fractions} numbers ({facts.number_type}) are not whole, off by up to {largest:.2g}"
        yield Finding(FLOAT_NOISE, what, path)


def _grid_findings(facts: CaseFacts) -> Iterator[Finding]:
    """Compare the grids of CT and mask."""
    if facts.ct is None or facts.mask is None:
        return
    ct, mask = facts.ct.grid, facts.mask.grid
    if ct.shape != mask.shape:
        what = f"expected the shape of the CT, {_times(ct.shape)}, found {_times(mask.shape)}"
        yield Finding(SHAPES_DIFFER, what, facts.case.mask)
        return
    apart = voxels_apart(ct, mask.affine)
    if apart > SAME_GRID_VOXELS:
        what = f"expected the position of the CT, found corners {apart:.2g} voxels apart"
        yield Finding(POSITIONS_DIFFER, what, facts.case.mask)


def _vertebra_findings(case: Case, vertebrae: Sequence[VertebraFacts]) -> Iterator[Finding]:
    for vertebra in vertebrae:
        if vertebra.strays:
            voxel_mm3 = vertebra.volume_mm3 / vertebra.voxels
            sizes = ", ".join(f"{size} voxels ({size * voxel_mm3:.1f} mm³)" for size in vertebra.strays)
            what = f"{name_of_code(vertebra.code)} is in {vertebra.components} parts; strays: {sizes}"
            yield Finding(STRAY_COMPONENTS, what, case.mask)
    missing = missing_levels([vertebra.code for vertebra in vertebrae])
    if missing:
        yield Finding(LEVELS_MISSING, f"no {', no '.join(missing)}", case.mask)


def _label_findings(case: Case, vertebrae: Sequence[VertebraFacts], in_file: set[int]) -> Iterator[Finding]:
    """Compare the vertebrae of the mask with the points of the centroid file."""
    in_mask = {vertebra.code for vertebra in vertebrae}
    for where, codes in {"centroid file": in_file - in_mask, "mask": in_mask - in_file}.items():
        if codes:
            names = ", ".join(name_of_code(code) for code in sorted(codes, key=rank_of_code))
            yield Finding(LABELS_DIFFER, f"{names} in the {where} only", case.centroids)
    for vertebra in vertebrae:
        distance_mm = vertebra.centroid_distance_mm
        tolerance_mm = C1_TOLERANCE_MM if vertebra.code == _C1 else CENTROID_TOLERANCE_MM
        if distance_mm is not None and distance_mm > tolerance_mm:
            what = f"{name_of_code(vertebra.code)}: {distance_mm:.1f} mm from its nearest voxel"
            yield Finding(CENTROID_OUTSIDE, what, case.centroids)


# Measures ------------------------------------------------------------------------------------------


def _vertebra(mask: Volume, code: int, point_mm: np.ndarray | None) -> VertebraFacts:
    box = mask.label_boxes[code]
    vertebra = mask.data[box] == code
    parts, _ = ndimage.label(vertebra)
    sizes = np.sort(np.bincount(parts[vertebra])[1:])[::-1]
    return VertebraFacts(
        code=code,
        voxels=int(sizes.sum()),
        volume_mm3=float(sizes.sum() * abs(np.linalg.det(mask.affine[:3, :3]))),
        components=len(sizes),
        strays=tuple(int(size) for size in sizes[1:] if size >= LEAST_STRAY_VOXELS),
        touches_border=touches_border(box, mask.shape),
        centroid_distance_mm=None if point_mm is None else distance_to_label_mm(mask, code, point_mm),
    )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
