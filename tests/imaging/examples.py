"""Small volumes, files and data sets that the tests of this folder share."""

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest

from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
NO_DATA = "the real data (../shared/data) is not here"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=NO_DATA)


#: The real files that tests use, and no others: what else lies beside them does not count.
VERSE_FILES = (
    "VerSe19/dataset-verse19training/rawdata/sub-verse014/sub-verse014_ct.nii.gz",
    "VerSe19/dataset-verse19training/derivatives/sub-verse014/sub-verse014_seg-vert_msk.nii.gz",
    "VerSe19/dataset-verse19training/derivatives/sub-verse014/sub-verse014_seg-vb_ctd.json",
    "VerSe19/dataset-verse19training/derivatives/sub-verse004/sub-verse004_seg-vert_msk.nii.gz",
    "VerSe19/dataset-verse19training/derivatives/sub-verse004/sub-verse004_seg-subreg_ctd.json",
    "VerSe20/dataset-01training/derivatives/sub-gl003/sub-gl003_dir-ax_seg-vert_msk.nii.gz",
    "VerSe20/dataset-01training/derivatives/sub-gl003/sub-gl003_dir-ax_seg-subreg_ctd.json",
)
OTHER_FILES = tuple(
    f"other-ct/{name}_{end}.nii.gz" for name in ("abdomen", "chest") for end in ("ct", "seg-vert_msk")
)


def real(name: str) -> Path:
    """The real file of a name."""
    (path,) = [path for path in (*VERSE_FILES, *OTHER_FILES) if path.rpartition("/")[2] == name]
    return DATA / path


def real_tree(folder: Path, files: Sequence[str] = (*VERSE_FILES, *OTHER_FILES)) -> Path:
    """A data set of real files alone, linked in; gives its folder."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).symlink_to((DATA / file).resolve())
    return folder


def oblique_affine(spacing_mm=(0.7, 0.8, 1.25)) -> np.ndarray:
    """Axes (L, A, S), turned by .3 and .2 radians, so parallel to no world axis."""
    (c, s), (d, t) = (np.cos(0.3), np.sin(0.3)), (np.cos(0.2), np.sin(0.2))
    affine = np.eye(4)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, d, -t], [0, t, d]])
    affine[:3, :3] = turn @ np.diag([-1, 1, 1]) @ np.diag(spacing_mm)
    affine[:3, 3] = [10, -20, 30]
    return affine


def numbered(shape=(3, 4, 5), affine=None) -> Volume:
    affine = oblique_affine() if affine is None else affine
    return Volume(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), affine)


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write with nibabel itself, not with the code under test."""
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def two_vertebrae(shape=(20, 24, 28), affine=None) -> tuple[Volume, Volume]:
    """CT and mask (R, A, S) at 2 mm: T13 (code 28) above L1 (20), which touches the border."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine
    mask = np.zeros(shape, np.uint8)
    mask[6:12, 4:10, 16:22] = 28
    mask[6:12, 4:10, 0:8] = 20
    ct = np.where(mask > 0, 400, -50).astype(np.int16)
    return Volume(ct, affine), Volume(mask, affine)


def write_case(
    data_dir: Path, key: str, *, split="training", parts=("ct", "mask", "centroids")
) -> dict[str, Path]:
    """Write one case of a VerSe tree; gives its files."""
    ct, mask = two_vertebrae()
    top, subject = data_dir / f"dataset-verse19{split}", key.split("_")[0]
    paths = {
        "ct": top / "rawdata" / subject / f"{key}_ct.nii.gz",
        "mask": top / "derivatives" / subject / f"{key}_seg-vert_msk.nii.gz",
        "centroids": top / "derivatives" / subject / f"{key}_seg-subreg_ctd.json",
    }
    if "ct" in parts:
        write_volume(paths["ct"], ct)
    if "mask" in parts:
        write_volume(paths["mask"], mask)
    if "centroids" in parts:
        paths["centroids"].parent.mkdir(parents=True, exist_ok=True)
        points = [{"label": 20, "X": 8.5, "Y": 6.5, "Z": 3.5}, {"label": 28, "X": 8.5, "Y": 6.5, "Z": 18.5}]
        paths["centroids"].write_text(json.dumps([{"direction": ["R", "A", "S"]}, *points]))
    return paths
