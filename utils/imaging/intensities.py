"""Hounsfield units and the range of numbers that the networks see."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.settings import HU_RANGE

#: The one map from Hounsfield units to what the networks see: (HU - `LOWEST_HU`) * `HU_GAIN` + `LOWEST`.
LOWEST_HU, HIGHEST_HU = HU_RANGE
HU_GAIN, LOWEST = 2.0 / (HIGHEST_HU - LOWEST_HU), -1.0


def finite_hu(name: Path | str, data: np.ndarray) -> np.ndarray:
    """Fill with air what is no finite number in an array of float32, and give lost signs back (`signed_hu`).

    `ValueError` if nothing is a finite number.
    """
    finite = np.isfinite(data)
    if not finite.any():
        raise ValueError(f"{name}: expected numbers, found not one finite voxel.")
    return signed_hu(data if finite.all() else np.where(finite, data, np.float32(LOWEST_HU)))


def signed_hu(hu: np.ndarray) -> np.ndarray:
    """Give negative numbers that were written unsigned their sign back.

    Parameters
    ----------
    hu : np.ndarray
        Numbers of a CT, finite. Padding of -2000, written in 16 bits without a sign, is 63536, and 62512
        where 1024 was taken away.

    Returns
    -------
    np.ndarray, same shape
        Unsigned integers as signed ones; 2^16 or 2^32 less where a number lies in the upper half of so many
        bits, rescaled or not. Neither tissue nor metal comes near.
    """
    if hu.dtype.kind == "u" and hu.dtype.itemsize > 1:
        hu = hu.view(hu.dtype.str.replace("u", "i"))
    for bits in (16, 32):
        lowest, above = 2 ** (bits - 1) + LOWEST_HU, 2**bits
        fits = hu.dtype.kind == "f" or 8 * hu.dtype.itemsize > bits
        if fits and hu.max() >= lowest:
            hu = np.where((hu >= lowest) & (hu < above), hu - hu.dtype.type(above), hu)
    return hu


def normalise_hu(hu: np.ndarray) -> np.ndarray:
    """Clip Hounsfield units to [-1024, 3071] and map them linearly to [-1, 1], as float32."""
    clipped = np.clip(np.asarray(hu), LOWEST_HU, HIGHEST_HU).astype(np.float32)
    return (clipped - LOWEST_HU) * np.float32(HU_GAIN) + LOWEST


def denormalise_hu(intensity: np.ndarray) -> np.ndarray:
    """Map intensities in [-1, 1] back to Hounsfield units, as float32: the inverse of `normalise_hu`."""
    return (np.asarray(intensity, np.float32) - LOWEST) * np.float32(1.0 / HU_GAIN) + LOWEST_HU


def whole_hu(hu: np.ndarray) -> np.ndarray:
    """Round to whole Hounsfield units within [-1024, 3071], as int16: what a file of a CT holds."""
    return np.clip(np.rint(hu), LOWEST_HU, HIGHEST_HU).astype(np.int16)
