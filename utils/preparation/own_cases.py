"""A user's own labelled CT enters the data set as one more VerSe case: source "pairs"."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils.imaging.centroids import centroids_of_mask, write_centroids
from utils.imaging.formats import SCAN_SUFFIXES
from utils.imaging.labelled_scans import read_label_image, read_labelled_scan
from utils.imaging.nifti import read_ct, read_mask, write_volume
from utils.imaging.volume import Volume
from utils.settings import DataSettings
from utils.verse.cases import OWN_SPLIT_FOLDER, case_files, parse_case_file, subject_of

#: Largest difference of two affines that say the same, in mm: NIfTI keeps them in single precision.
_AFFINE_TOLERANCE_MM = 1e-3
_SUFFIX = re.compile(f"(?:{'|'.join(map(re.escape, SCAN_SUFFIXES))})$", re.IGNORECASE)
_KEY = re.compile(r"sub-[\w.-]+")


def add_own_case(settings: DataSettings) -> list[str]:
    """Write a CT and its mask, or a mask alone, as a case in VerSe layout, with its centres as centroids.

    Parameters
    ----------
    settings : DataSettings
        `ct`, `mask`, `key`, `split` and `data_dir` are used.

    Returns
    -------
    list of str
        Nothing: a bad pair is an error.

    Raises
    ------
    ValueError
        If the pair cannot be read or does not fit together, has no vertebra, if its key is none, or if a
        case of that name is there in another split or with other content. Nothing is written then.
    """
    most = {"most_bytes": settings.max_gigabytes * 2**30}
    if settings.ct is None:
        ct, mask = None, read_label_image(settings.mask, **most)
    else:
        ct, mask = read_labelled_scan(settings.ct, settings.mask, **most)
    if not mask.data.any():
        raise ValueError(f"{settings.mask}: expected VerSe labels (1-25 or 28), found only background.")
    key = own_key(settings.ct) if settings.key is None else _checked_key(settings.key)
    split, subject = settings.split or "training", subject_of(key)
    _check_free(settings, key, split)
    top = settings.data_dir / OWN_SPLIT_FOLDER.format(split=split)
    ct_path = top / "rawdata" / subject / f"{key}_ct.nii.gz"
    mask_path = top / "derivatives" / subject / f"{key}_seg-vert_msk.nii.gz"
    if ct is not None:
        _check_same_content(settings.ct, ct, ct_path, read=read_ct)
    _check_same_content(settings.mask, mask, mask_path, read=read_mask)
    centroids_path = mask_path.with_name(f"{key}_seg-vb_ctd.json")
    # The CT goes last: until it is there the case is incomplete, and a rerun writes what is missing.
    if not mask_path.exists():
        write_volume(mask_path, mask)
    if not centroids_path.exists():
        write_centroids(centroids_path, centroids_of_mask(mask), mask.grid, source="mask")
    if ct is not None and not ct_path.exists():
        write_volume(ct_path, ct)
    return []


def own_key(ct_path: Path) -> str:
    """Give the key of a user's CT: the VerSe key its name holds, else "sub-" and its name without suffixes.

    Of the name, letters, digits, "-" and "_" are kept.

    Raises
    ------
    ValueError
        If the name has neither letter nor digit before its suffixes.
    """
    stem = _SUFFIX.sub("", Path(ct_path).absolute().name)
    named = parse_case_file(Path(f"{stem}.nii"), ())
    if named is not None:
        return named.key
    name = re.sub(r"[^A-Za-z0-9_-]", "", stem)
    if not re.search(r"[A-Za-z0-9]", name):
        raise ValueError(f"{ct_path}: expected a file name with letters or digits, found none.")
    return f"sub-{name}"


def _checked_key(key: str) -> str:
    # A key with a folder in it would lead out of the data set; with ESC in it, it would reach a terminal.
    if _KEY.fullmatch(key) is None or parse_case_file(Path(f"{key}_ct.nii.gz"), ()) is None:
        raise ValueError(f"--key: expected a VerSe key such as sub-mine01, received {key!r}.")
    return key


def _check_free(settings: DataSettings, key: str, split: str) -> None:
    """Refuse a key that another data set has, and a patient who is in another split already.

    Keys that differ in the case of letters are the same.
    """
    folder, subject = OWN_SPLIT_FOLDER.format(split=split), subject_of(key)
    for file in case_files(settings.data_dir):
        same_key = file.key.casefold() == key.casefold() and (file.dataset, file.key) != (folder, key)
        if same_key or (file.subject.casefold() == subject.casefold() and file.split != split):
            source = settings.ct or settings.mask
            raise ValueError(f"{source}: expected a new case, found {subject} already at {file.path}.")


def _check_same_content(source: Path, volume: Volume, path: Path, *, read: Callable[[Path], Volume]) -> None:
    """Refuse to overwrite a file that holds anything else than this volume."""
    if not path.exists():
        return
    there = read(path)
    same_place = np.allclose(there.affine, volume.affine, rtol=0, atol=_AFFINE_TOLERANCE_MM)
    if there.shape != volume.shape or not same_place or not np.array_equal(there.data, volume.data):
        raise ValueError(f"{source}: expected a new case or the same one, found {path} with other content.")
