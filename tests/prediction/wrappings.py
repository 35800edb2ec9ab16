"""Wrappings: forms in which one scan may reach `infer.py`, and what is expected of each.

The same anatomy must give the same answer, whatever it is wrapped in: the labels of the plain copy, at the
same places of the world, or the refusal that is stated here. `test_wrappings.py` holds it for a generated
spine and a real CT, `benchmarks/trial_wrappings.py` for any scan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import nibabel
import numpy as np

from tests.prediction import wrapping_series as dicom
from tests.prediction.wrapping_files import (
    moved,
    numbers,
    of_spacing,
    padded,
    stored_as,
    turned_stack,
    write_metaimage,
    write_nifti,
    write_nrrd,
    written_elsewhere,
)
from utils.imaging.volume import Volume
from utils.settings import HU_RANGE

#: Least Dice of two wrappings: of the same voxels, and of resampled ones.
SAME_DICE, RESAMPLED_DICE = 0.97, 0.93
#: Takes the plain scan and an empty folder, writes there, and gives what `infer.py` is given.
Write = Callable[[Volume, Path], Path]
#: Axes of the world.
LEFT_RIGHT, FRONT_BACK, HEAD_FEET = (1, 0, 0), (0, 1, 0), (0, 0, 1)


@dataclass(frozen=True, eq=False)
class Wrapping:
    """One form of a scan.

    Attributes
    ----------
    kind, name : str
        What is changed, and to what.
    write : callable
        How it is written.
    least_dice : float
        Least Dice with the plain copy, the mean over its vertebrae.
    refusal : str
        Pattern of the one line that refuses it; "" for what must be read.
    may_be_read : bool
        Whether the same answer is right too where a refusal is.
    scans : int
        How many scans lie in it, all of them the plain one.
    environment : mapping of str to str or None
        Variables of the process that are changed, or with None taken away. `{folder}` is the wrapping's.
    """

    kind: str
    name: str
    write: Write
    least_dice: float = SAME_DICE
    refusal: str = ""
    may_be_read: bool = False
    scans: int = 1
    environment: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def is_resampled(self) -> bool:
        """Whether its voxels are others than the plain copy's."""
        return self.least_dice < SAME_DICE

    @property
    def title(self) -> str:
        """Kind and name."""
        return f"{self.kind} {self.name}"

    @property
    def folder_name(self) -> str:
        """Name of a folder, by which the lines about a wrapping are found."""
        return "".join(c if c.isascii() and c.isalnum() else "-" for c in self.title)


def plain_scan(ct: Volume) -> Volume:
    """Give whole numbers within the range of HU that the networks are shown, which every format can hold."""
    data = np.clip(np.nan_to_num(ct.data, nan=HU_RANGE[0]), *HU_RANGE)
    return Volume(np.rint(data).astype(np.int16), ct.affine)


def write_plain(ct: Volume, folder: Path) -> Path:
    """Write the plain copy."""
    return write_nifti(folder / f"{folder.name}.nii.gz", ct)


PLAIN = Wrapping("plain", "copy", write_plain)


def _nifti(change: Callable[[Volume], Volume] = lambda ct: ct, name: str = "{}.nii.gz", **how) -> Write:
    """Give the writer of a NIfTI file of the scan after a change."""
    return lambda ct, folder: write_nifti(folder / name.format(folder.name), change(ct), **how)


def _of(kind: str, **changes) -> Callable[..., Wrapping]:
    return lambda name, write, **more: Wrapping(kind, name, write, **{**changes, **more})


# Voxels ----------------------------------------------------------------------------------------------

_stored = _of("orientation")
_turned = _of("obliqueness", least_dice=RESAMPLED_DICE)
_spaced = _of("spacing", least_dice=RESAMPLED_DICE)
_padding = _of("padding")
_format = _of("number format")


def _turn(degrees: float, about: tuple[float, ...]) -> Write:
    return _nifti(lambda ct: turned_stack(ct, degrees, about))


def _finer(ct: Volume) -> Volume:
    return of_spacing(ct, 0.75 * ct.spacing_mm)


def _thick(ct: Volume) -> Volume:
    """Give axial slices of 2 mm, or as thick as the scan's."""
    axial = stored_as(ct, "RAS")
    return of_spacing(axial, [*axial.spacing_mm[:2], max(2.0, axial.spacing_mm[2])])


def _stored_numbers(dtype: type[np.number], slope: float = 1, intercept: float = 0) -> Write:
    scaling = None if (slope, intercept) == (1, 0) else (slope, intercept)
    return _nifti(lambda ct: numbers(ct, dtype, slope=slope, intercept=intercept), scaling=scaling)


def _unsigned_padding(ct: Volume) -> Volume:
    """Give numbers stored as unsigned ones with 1024 added, -2000 among them: 63536 as such."""
    wide = padded(ct, dicom.UNSIGNED_PADDING - 1024)
    return Volume((wide.data + 1024).astype(np.uint16), wide.affine)


def _order(axes: str) -> Write:
    return _nifti(lambda ct: stored_as(ct, axes))


def _margin(hu: int) -> Write:
    return _nifti(lambda ct: padded(ct, hu))


VOXELS = (
    *(_stored(axes, _order(axes)) for axes in ("RAS", "LPS", "PIR", "LAS", "SRP", "ILA")),
    _turned("10 degrees about left-right", _turn(10, LEFT_RIGHT)),
    _turned("20 degrees about left-right", _turn(20, LEFT_RIGHT)),
    _turned("20 degrees about front-back", _turn(20, FRONT_BACK)),
    _turned("30 degrees about head-feet", _turn(30, HEAD_FEET)),
    _turned("30 degrees back about left-right", _turn(-30, LEFT_RIGHT)),
    _turned("40 degrees about left-right", _turn(40, LEFT_RIGHT)),
    _turned("40 degrees about a slanting axis", _turn(40, (2, 1, -1))),
    _spaced("three quarters of the scan's", _nifti(_finer)),
    _spaced("1.5 mm", _nifti(lambda ct: of_spacing(ct, (1.5, 1.5, 1.5)))),
    _spaced("axial slices of 2 mm", _nifti(_thick)),
    *(_padding(f"{hu}", _margin(hu)) for hu in (-1024, -2000, -3024)),
    _padding("63536, unsigned, unnamed", _nifti(_unsigned_padding, scaling=(1, -1024))),
    _padding("63536 in DICOM, unnamed", partial(dicom.unsigned_padding, named=False)),
    _padding("63536 in DICOM, named", partial(dicom.unsigned_padding, named=True)),
    _padding("-2000 in DICOM, signed, named", dicom.signed),
    _format("int16, big-endian", _nifti(big_endian=True)),
    _format("int32", _stored_numbers(np.int32)),
    _format("uint16 with an intercept", _stored_numbers(np.uint16, intercept=-1024)),
    _format("int16 with a slope of a half", _stored_numbers(np.int16, slope=0.5)),
    _format("float32", _stored_numbers(np.float32)),
    _format("float64", _stored_numbers(np.float64)),
)


# Headers, series, other formats ----------------------------------------------------------------------

_header = _of("NIfTI")
_series = _of("DICOM")
_other = _of("other format")


def _forms(*, codes: tuple[int, int] = (1, 1), **change) -> Write:
    """Write with a sform that is changed a little; the qform stays."""

    def write(ct: Volume, folder: Path) -> Path:
        forms = (None, moved(ct.affine, **change))
        return write_nifti(folder / f"{folder.name}.nii.gz", ct, codes=codes, forms=forms)

    return write


def _nrrd(name: str = "{}.nrrd", **how: str) -> Write:
    return lambda ct, folder: write_nrrd(folder / name.format(folder.name), ct, **how)


def _metaimage(name: str, *, compressed: bool = True) -> Write:
    return lambda ct, folder: write_metaimage(folder / name.format(folder.name), ct, compressed=compressed)


def _four_axes(phases: int) -> Callable[[Volume], Volume]:
    return lambda ct: Volume(np.repeat(ct.data[..., None], phases, axis=3), ct.affine)


FORMS = (
    _header("not compressed", _nifti(name="{}.nii")),
    _header("version 2", _nifti(kind=nibabel.Nifti2Image)),
    _header("a pair of .hdr and .img", _nifti(name="{}.hdr", kind=nibabel.Nifti1Pair)),
    _header("only qform", _nifti(codes=(1, 0))),
    _header("only sform", _nifti(codes=(0, 2))),
    _header("sform .1 mm and .05 degrees off", _forms(codes=(1, 4), shift_mm=0.1, degrees=0.05)),
    _header("sform with a slant of .3 degrees", _forms(slant=0.005)),
    _header("a fourth axis of length 1", _nifti(_four_axes(1))),
    _header("two phases", _nifti(_four_axes(2)), refusal="expected a volume with 3 axes"),
    _header("neither form", _nifti(codes=(0, 0)), refusal="orientation|qform|sform"),
    _series("plain", dicom.series),
    _series("shuffled names", dicom.shuffled),
    _series("sagittal", partial(dicom.series, axes=dicom.SAGITTAL)),
    _series("prone", partial(dicom.series, axes=dicom.PRONE, PatientPosition="HFP")),
    _series("feet first", partial(dicom.series, axes=dicom.FEET_FIRST, PatientPosition="FFS")),
    _series(
        "20 degrees oblique",
        lambda ct, folder: dicom.series(turned_stack(ct, 20, LEFT_RIGHT), folder),
        least_dice=RESAMPLED_DICE,
    ),
    _series("in two folders", dicom.in_two_folders),
    _series("three slices twice", dicom.exported_twice),
    _series("compressed", dicom.run_length),
    _series("enhanced, multi-frame", dicom.multi_frame),
    _series("no preamble", dicom.without_preamble, refusal="preamble|DICM|meta", may_be_read=True),
    _series("a slice missing", dicom.with_a_gap, refusal="a missing slice"),
    _series("a tilted gantry", dicom.tilted, refusal="a tilted gantry"),
    _other("NRRD, LPS, gzip", _nrrd()),
    _other("NRRD, RAS, raw", _nrrd(space="right-anterior-superior", encoding="raw")),
    _other("NRRD, LAS, gzip", _nrrd(space="left-anterior-superior")),
    _other("NRRD, detached, gzip", _nrrd("{}.nhdr")),
    _other("NRRD, detached, raw, RAS", _nrrd("{}.nhdr", space="right-anterior-superior", encoding="raw")),
    _other("NRRD without a space", _nrrd(space=""), refusal="expected a field 'space'"),
    _other("MetaImage, compressed", _metaimage("{}.mha")),
    _other("MetaImage, detached", _metaimage("{}.mhd", compressed=False)),
    _other("MetaImage, detached, compressed", _metaimage("{}.mhd")),
)


# Names, folders, surroundings ------------------------------------------------------------------------

_name = _of("name")
_folder = _of("folder", scans=2)
_environment = _of("environment")
#: Of no encoding but that of an old archive.
LATIN_1 = os.fsdecode("Prüfung".encode("latin-1"))
_NOTEBOOK = "module://matplotlib_inline.backend_inline"
_ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def _two_scans(*names: str) -> Write:
    """Write under two names, each time with the voxels in another order, so that no file is a copy."""

    def write(ct: Volume, folder: Path) -> Path:
        for name, axes in zip(names, ("LPS", "PIR")):
            write_nifti(folder / f"{name}.nii.gz", stored_as(ct, axes))
        return folder

    return write


def _with_settings_of_keras(ct: Volume, folder: Path) -> Path:
    settings = folder / "home" / ".keras" / "keras.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"backend": "torch", "floatx": "float32", "image_data_format": "channels_last"}')
    return write_plain(ct, folder)


SURROUNDINGS = (
    _name("with spaces", _nifti(name="my scan of {} (1).nii.gz")),
    _name("without ASCII letters", _nifti(name="患者.nii.gz")),
    _name("with accents and dots", _nifti(name="Prüfung.1.2 {}.nii.gz")),
    _name("a suffix in capitals", lambda ct, d: written_elsewhere(d / f"{d.name}.NII.GZ", ct)),
    _name("_CT in capitals", _nifti(name="{}_CT.nii.gz")),
    _name("NRRD below a Latin-1 folder", lambda ct, d: write_nrrd(d / LATIN_1 / f"{d.name}.nrrd", ct)),
    _name("DICOM below a Latin-1 folder", lambda ct, d: dicom.series(ct, d / LATIN_1, PatientID=d.name)),
    _folder("one name in two", _two_scans("s0001/ct", "s0002/ct")),
    _folder("names that differ by a dot", _two_scans("1.23", "12.3")),
    _environment("MPLBACKEND of a notebook", write_plain, environment={"MPLBACKEND": _NOTEBOOK}),
    _environment("KERAS_BACKEND=jax", write_plain, environment={"KERAS_BACKEND": "jax"}),
    _environment("keras.json of torch", _with_settings_of_keras, environment={"HOME": "{folder}/home"}),
    _environment("LC_ALL=C", _nifti(name="Prüfung.nii.gz"), environment=_ASCII),
    _environment("no HOME", write_plain, environment={"HOME": None}),
    _environment("a HOME that is not there", write_plain, environment={"HOME": "/nonexistent"}),
)

WRAPPINGS: tuple[Wrapping, ...] = (*VOXELS, *FORMS, *SURROUNDINGS)
#: Those that the usual tests run: quick ones, of six kinds.
QUICK = (
    *("orientation SRP", "obliqueness 20 degrees about left-right", "number format uint16 with an intercept"),
    *("NIfTI only qform", "DICOM shuffled names", "other format NRRD, RAS, raw"),
)
