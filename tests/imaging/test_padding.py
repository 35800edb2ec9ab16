"""Padding that was written without its sign reads as padding, whatever the format; all else stays."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.imaging.dicom_series import write_series
from utils.imaging.formats import read_scan
from utils.imaging.intensities import normalise_hu, signed_hu
from utils.imaging.volume import Volume

#: 63536 is -2000 in 16 bits without a sign; with 1024 taken away, -3024.
PADDING, RESCALED = -2000, -3024


def padded_ct(padding: int) -> np.ndarray:
    """Tissue and metal beside a plane of padding and a corner of it."""
    data = np.random.default_rng(5).integers(-1024, 3000, (6, 7, 12)).astype(np.int32)
    data[1, 2, 3] = 30710  # metal of a scanner with an extended scale
    data[0], data[3:, 5:, 6:] = padding, padding
    return data


def write_nifti(folder: Path, dtype: str, *, intercept: int = 0) -> Path:
    data = padded_ct(RESCALED if intercept else PADDING) - intercept
    unsigned = np.where(data < 0, data + 2**16, data) if intercept else data % 2**16
    image = nibabel.Nifti1Image(unsigned.astype(dtype), np.diag([-1.0, -1, 2, 1]))
    if intercept:
        image.header.set_slope_inter(1, intercept)
    nibabel.save(image, folder / "ct.nii.gz")
    return folder / "ct.nii.gz"


def write_itk(folder: Path, name: str, dtype: str) -> Path:
    import SimpleITK

    stored = (padded_ct(PADDING) % 2**16).astype(dtype)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(stored.T), str(folder / name))
    return folder / name


NOT_RESCALED = {
    "NIfTI uint16": lambda folder: write_nifti(folder, "uint16"),
    "NIfTI int32": lambda folder: write_nifti(folder, "int32"),
    "NIfTI float32": lambda folder: write_nifti(folder, "float32"),
    "NRRD uint16": lambda folder: write_itk(folder, "ct.nrrd", "uint16"),
    "NRRD int32": lambda folder: write_itk(folder, "ct.nrrd", "int32"),
    "MetaImage uint16": lambda folder: write_itk(folder, "ct.mha", "uint16"),
    "MetaImage float32": lambda folder: write_itk(folder, "ct.mhd", "float32"),
}


@pytest.mark.parametrize("form", NOT_RESCALED)
def test_unsigned_padding_is_padding(tmp_path, form):
    found = read_scan(NOT_RESCALED[form](tmp_path)).data
    np.testing.assert_array_equal(found, padded_ct(PADDING))
    assert normalise_hu(found)[0].max() == -1


def test_unsigned_padding_of_a_rescaled_nifti_is_padding(tmp_path):
    found = read_scan(write_nifti(tmp_path, "uint16", intercept=-1024)).data
    np.testing.assert_array_equal(found, padded_ct(RESCALED))


@pytest.mark.parametrize("named", [{}, {"PixelPaddingValue": 63536}], ids=["not named", "named"])
def test_unsigned_padding_of_a_series_is_padding(tmp_path, named):
    ct = Volume(padded_ct(RESCALED), np.diag([-1.0, -1, 2, 1]))
    found = read_scan(tmp_path, write_series(tmp_path, ct, **named)).data
    np.testing.assert_array_equal(found, ct.data)
    assert found.dtype == np.int16


def test_numbers_of_32_bits_get_their_sign_back_and_others_stay():
    stored = np.array([2**32 - 2000, 63536, 1024, 0], np.uint32)
    assert signed_hu(stored).tolist() == [-2000, -2000, 1024, 0]
    assert signed_hu(stored.astype(np.float64) - 1024).tolist() == [-3024, -3024, 0, -1024]
    assert signed_hu(stored.astype(">u4")).tolist() == [-2000, -2000, 1024, 0]
    for kept in (
        np.array([255, 0], np.uint8),
        np.array([32767, -32768], np.int16),
        np.array([31743.9, -5.0]),
    ):
        assert signed_hu(kept) is kept
    assert signed_hu(np.array([1e9, 0])).tolist() == [1e9, 0]
