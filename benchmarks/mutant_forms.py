"""Small whole files of every form that is read, how each is read, and what Python says of its checksum."""

from __future__ import annotations

import bz2
import gzip
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.imaging.damage import entries, nifti, whole_arrays
from tests.imaging.dicom_series import compress, write_bare, write_enhanced, write_series
from tests.imaging.itk_files import PLANES, VOXELS, meta, nrrd
from utils.evaluation.evaluation import read_numbering
from utils.imaging.centroids import read_centroids
from utils.imaging.dicom import find_series
from utils.imaging.formats import files_of_scan, read_scan
from utils.imaging.nifti import read_mask
from utils.imaging.volume import Grid, Volume
from utils.prediction.column import read_column
from utils.prediction.quality import CaseQuality, read_quality, write_quality
from utils.preparation.prepared import identity, is_current, is_mask_alone, origin_of, write_sidecar
from utils.preparation.spine_case import read_spine
from utils.settings import HeatmapPreparationSettings, load_settings, save_settings
from utils.verse.labels import MAX_RANK


@dataclass(frozen=True)
class Kind:
    """A form of file.

    Attributes
    ----------
    name : str
        Of the form; its first word is the reader's.
    make : callable
        Writes the whole files into a folder.
    read : callable
        Reads the folder; may give voxels, which are compared with those of the whole files.
    share : float
        How many of the mutants are of this form.
    is_whole : callable
        Whether the checksum in a file is right; None where there is none.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], np.ndarray | Any]
    share: float = 1.0
    is_whole: Callable[[Path], bool | None] = lambda path: None

    @property
    def is_model(self) -> bool:
        """Whether TensorFlow is needed, and time for it."""
        return self.name.startswith("model")


# Forms -----------------------------------------------------------------------------------------------


def files(**contents: bytes) -> Callable[[Path], None]:
    """Give what writes files: "_" in a keyword stands for the dot of a name."""

    def make(folder: Path) -> None:
        for name, content in contents.items():
            (folder / name.replace("_", ".")).write_bytes(content)

    return make


def read_one_scan(folder: Path) -> np.ndarray:
    """Read the scan of a folder, and the list of its files."""
    (path,) = (file for file in sorted(folder.iterdir()) if file.name.startswith("ct."))
    files_of_scan(path)
    return read_scan(path).data


def make_series(folder: Path) -> None:
    """Write a series of twelve images."""
    data = np.random.default_rng(5).integers(-20, 20, (16, 16, 12)).astype(np.int16) * 40
    write_series(folder, Volume(data, np.diag([-1.0, -1, 1, 1])), SeriesInstanceUID="1.2.3")
    _save_again(folder, lambda image: None)


def make_jpeg_series(folder: Path) -> None:
    """Write a series of twelve images, one of them in JPEG 2000 and the others in JPEG, without loss."""
    make_series(folder)
    for number, file in enumerate(sorted(folder.iterdir())):
        compress(file, "JPEG" if number else "JPEG2000")


def make_frames(folder: Path) -> None:
    """Write a file of twelve frames."""
    data = np.random.default_rng(5).integers(-20, 20, (16, 16, 12)).astype(np.int16) * 40
    write_enhanced(folder / "ct", Volume(data, np.diag([-1.0, -1, 1, 1])), SeriesInstanceUID="1.2.3")
    (folder / "frames").rmdir()
    _save_again(folder, lambda image: None)


def make_bare_series(folder: Path) -> None:
    """Write a series of twelve data sets without preamble."""
    make_series(folder)
    for file in sorted(folder.iterdir()):
        write_bare(file)


def make_compressed_series(folder: Path) -> None:
    """Write a series of twelve images in runs of equal bytes (RLE)."""
    from pydicom.uid import RLELossless

    make_series(folder)
    _save_again(folder, lambda image: image.compress(RLELossless))


def _save_again(folder: Path, change: Callable[[Any], None]) -> None:
    """Change images; their identifiers are no longer drawn anew each time."""
    import pydicom

    for number, file in enumerate(sorted(folder.iterdir()), start=1):
        image = pydicom.dcmread(file)
        change(image)
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = f"1.2.3.{number}"
        image.save_as(file)


def read_every_series(folder: Path) -> None:
    """Find the series of a folder and read them; what is said of files must fit into a line as well."""
    found = find_series(sorted(folder.iterdir()))
    for series in found.scans:
        read_scan(series.folder, series.files)
    if found.bad:
        raise ValueError(max(found.bad, key=len))


def make_model(folder: Path) -> None:
    """Write a small network as Keras does."""
    import keras

    from ML_3D_Unet.utils.layers_func import create_unet3d
    from utils.settings import SegmentationTrainingSettings

    keras.utils.set_random_seed(0)
    create_unet3d((16, 16, 16, 2), n_filters=[2, 4], ksize=3, depth=2).save(folder / "best.keras")
    save_settings(SegmentationTrainingSettings(), folder)


def make_weights(folder: Path) -> None:
    """Copy a network that is shipped with the code."""
    for file in (Path(__file__).parents[1] / "models/starter/segmentation").iterdir():
        shutil.copy(file, folder)


def read_model(folder: Path) -> None:
    """Load a network."""
    from utils.learning.models import load_model

    load_model(folder)


def make_quality(folder: Path) -> None:
    """Write what is known about a case."""
    write_quality(folder / "x_quality.json", CaseQuality("sub-a", "anatomical", seconds=2.5, network_calls=7))


def make_column(folder: Path) -> None:
    """Write what the levels of a column were decided from."""
    row = {"label": 20, "centre_mm": [1.0, 2.0, 3.0], "rib_probability": 0.1}
    row["level_log_probabilities"] = [-1.0] * (1 + MAX_RANK)
    content = {"vertebrae": [row, row], "sacrum": None, "temperature": 1.5}
    (folder / "x_column.json").write_text(json.dumps(content))


def make_spine(folder: Path) -> None:
    """Write the centres of a prepared spine."""
    content = {"points": [[19, 1.0, 2.0, 3.0], [20, 1.0, 2.0, 33.0]], "has_rib": [True, False]}
    (folder / "x_spine.json").write_text(json.dumps({**content, "sacrum": None, "is_complete": True}))


def make_sidecar(folder: Path) -> None:
    """Write the record of a prepared case."""
    for name in ("ct", "output"):
        (folder / name).write_bytes(b"voxels")
    sources = {"ct": identity(folder / "ct")}
    write_sidecar(folder / "x.json", {"spacing_mm": 1.0}, sources, [folder / "output"])


def read_sidecar_of(folder: Path) -> None:
    """Compare a record with the files that it is of."""
    is_current(folder / "x.json", {"spacing_mm": 1.0}, {"ct": folder / "ct"})
    origin_of(folder / "x.json")
    is_mask_alone(folder / "x.json")


def make_table(folder: Path) -> None:
    """Write the table of a case."""
    rows = [{"label": 20, "name": "L1", "numbering": "anatomical", "volume_mm3": 40000.5, "mean_hu": 180.25}]
    pd.DataFrame(rows * 3).to_csv(folder / "x_vertebrae.csv", index=False)


# Checksums, by Python's own library -------------------------------------------------------------------


def is_whole_gzip(raw: bytes) -> bool:
    """Whether all streams in the bytes are whole."""
    try:
        gzip.decompress(raw)
    except (OSError, EOFError, zlib.error):
        return False
    return True


def is_whole_bzip2(raw: bytes) -> bool:
    """Whether the first stream in the bytes is whole."""
    try:
        return bz2.BZ2Decompressor().decompress(raw) is not None and bool(bz2.decompress(raw))
    except (OSError, ValueError):
        return False


def is_whole_zlib(raw: bytes) -> bool:
    """Whether the stream in the bytes is whole, with nothing behind it."""
    engine = zlib.decompressobj(47)
    try:
        engine.decompress(raw)
    except zlib.error:
        return False
    return engine.eof and not engine.unused_data


def checksum_of(
    name: str, is_whole: Callable[[bytes], bool], *, behind: bytes = b""
) -> Callable[[Path], bool | None]:
    """Give what checks the stream in a file of a name, behind a mark; None for any other file."""

    def check(path: Path) -> bool | None:
        raw = path.read_bytes()
        if path.name != name or behind not in raw:
            return None
        return is_whole(raw.partition(behind)[2] if behind else raw)

    return check


def is_whole_zip(raw: bytes) -> bool:
    """Whether the files in a zip agree with their checksums."""
    with tempfile.TemporaryFile() as file:
        file.write(raw)
        try:
            return zipfile.ZipFile(file).testzip() is None
        except Exception:  # whatever it is, the file is not whole
            return False


CT, MASK = nifti(whole_arrays()["ct"]), nifti(whole_arrays()["mask"])
ZRAW = {"ct_mhd": meta(b"", CompressedData="True", ElementDataFile="b.zraw"), "b_zraw": zlib.compress(VOXELS)}
NHDR = {"ct_nhdr": nrrd(b"", data_file="b.gz", encoding="gzip"), "b_gz": gzip.compress(VOXELS, mtime=0)}


def make_planes(folder: Path) -> None:
    """Write a header that names a file for every plane."""
    (folder / "ct.mhd").write_bytes(meta(b"", ElementDataFile="%02d.raw 0 6 1"))
    for name, content in PLANES.items():
        (folder / name).write_bytes(content)


OF_NIFTI = checksum_of("ct.nii.gz", is_whole_gzip)
KINDS = (
    Kind("NIfTI", files(ct_nii=CT), read_one_scan, 2),
    Kind(
        "NIfTI, gzip",
        files(ct_nii_gz=gzip.compress(CT, mtime=0)),
        read_one_scan,
        2,
        checksum_of("ct.nii.gz", is_whole_gzip),
    ),
    Kind("NIfTI, mask", files(x_nii=MASK), lambda folder: read_mask(folder / "x.nii"), 2),
    Kind("NRRD", files(ct_nrrd=nrrd()), read_one_scan),
    Kind(
        "NRRD, gzip",
        files(ct_nrrd=nrrd(gzip.compress(VOXELS, mtime=0), encoding="gzip")),
        read_one_scan,
        2,
        checksum_of("ct.nrrd", is_whole_gzip, behind=b"\n\n"),
    ),
    Kind(
        "NRRD, bzip2",
        files(ct_nrrd=nrrd(bz2.compress(VOXELS), encoding="bzip2")),
        read_one_scan,
        1,
        checksum_of("ct.nrrd", is_whole_bzip2, behind=b"\n\n"),
    ),
    Kind("NRRD, two files", files(**NHDR), read_one_scan, 1.5, checksum_of("b.gz", is_whole_gzip)),
    Kind("MetaImage", files(ct_mha=meta()), read_one_scan),
    Kind(
        "MetaImage, zlib",
        files(ct_mha=meta(zlib.compress(VOXELS), CompressedData="True")),
        read_one_scan,
        2,
        checksum_of("ct.mha", is_whole_zlib, behind=b"= LOCAL\n"),
    ),
    Kind("MetaImage, two files", files(**ZRAW), read_one_scan, 1.5, checksum_of("b.zraw", is_whole_zlib)),
    Kind("MetaImage, planes", make_planes, read_one_scan),
    Kind("DICOM", make_series, read_every_series, 2.5),
    Kind("DICOM, RLE", make_compressed_series, read_every_series, 1.5),
    Kind("DICOM, JPEG", make_jpeg_series, read_every_series, 0.5),
    Kind("DICOM, frames", make_frames, read_every_series),
    Kind("DICOM, no preamble", make_bare_series, read_every_series),
    Kind("settings.json", lambda folder: save_settings(HeatmapPreparationSettings(), folder), load_settings),
    Kind(
        "centroids",
        files(x_json=json.dumps(entries()).encode()),
        lambda folder: read_centroids(folder / "x.json", Grid((12, 10, 8), np.eye(4))),
    ),
    Kind("quality", make_quality, lambda folder: read_quality(folder / "x_quality.json"), 0.7),
    Kind("column", make_column, lambda folder: read_column(folder / "x_column.json"), 0.7),
    Kind("spine", make_spine, lambda folder: read_spine(folder / "x_spine.json"), 0.7),
    Kind("sidecar", make_sidecar, read_sidecar_of, 0.7),
    Kind("table", make_table, lambda folder: read_numbering(folder / "x_vertebrae.csv"), 0.7),
    Kind("model, .keras", make_model, read_model, 1, checksum_of("best.keras", is_whole_zip)),
    Kind("model, weights", make_weights, read_model, 0.5),
)
