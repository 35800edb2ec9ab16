"""Hounsfield units and the range of numbers that the networks see."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.settings import HU_RANGE

#: The one map from Hounsfield units to what the networks see: (HU - `LOWEST_HU`) * `HU_GAIN` + `LOWEST`.
LOWEST_HU, HIGHEST_HU = HU_RANGE
HU_GAIN, LOWEST = 2.0 / (HIGHEST_HU - LOWEST_HU), -1.0


def finite_hu(name: Path | str, data: np.ndarray) -> np.ndarray:
    """Fill with air what is no finite number in an array of float32; `ValueError` if nothing is one."""
    finite = np.isfinite(data)
    if not finite.any():
        raise ValueError(f"{name}: expected numbers, found not one finite voxel.")
    return data if finite.all() else np.where(finite, data, np.float32(LOWEST_HU))


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
