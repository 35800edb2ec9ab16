"""Hounsfield units and the range of numbers that the networks see."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.settings import HU_RANGE


def finite_hu(name: Path | str, data: np.ndarray) -> np.ndarray:
    """Fill with air what is no finite number in an array of float32; `ValueError` if nothing is one."""
    finite = np.isfinite(data)
    if not finite.any():
        raise ValueError(f"{name}: expected numbers, found not one finite voxel.")
    return data if finite.all() else np.where(finite, data, np.float32(HU_RANGE[0]))


def normalise_hu(hu: np.ndarray) -> np.ndarray:
    """Clip Hounsfield units to [-1024, 3071] and map them linearly to [-1, 1], as float32."""
    low, high = HU_RANGE
    clipped = np.clip(np.asarray(hu), low, high).astype(np.float32)
    return (clipped - low) * np.float32(2 / (high - low)) - 1


def denormalise_hu(intensity: np.ndarray) -> np.ndarray:
    """Map intensities in [-1, 1] back to Hounsfield units, as float32: the inverse of `normalise_hu`."""
    low, high = HU_RANGE
    return (np.asarray(intensity, np.float32) + 1) * np.float32((high - low) / 2) + low
