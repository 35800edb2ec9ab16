"""Arithmetic on volumes for docs/onnx_example.py: resampling, peaks, pieces. NumPy alone.

Numbers in brackets are the steps of docs/onnx.md. Working volumes have axes (P, R, I), points in mm too.
"""

import numpy as np


def indices_of(shape):
    """Give the index of every voxel, (..., 3)."""
    return np.moveaxis(np.indices(shape), 0, -1)


def shifted(volume, axis):
    """Give a volume as it is, and moved by a voxel down and up an axis, along which its border goes on."""
    wide = np.pad(volume, [(int(axis == each),) * 2 for each in range(3)], mode="edge")
    return [np.take(wide, np.arange(volume.shape[axis]) + 1 + step, axis) for step in (0, -1, 1)]


def spline_of(volume, sigmas):
    """[3] Smooth the axes, and give the coefficients of cubic splines; the border is repeated 12 times."""
    for sigma in sigmas:
        places = np.arange(-12, len(volume) + 12)
        apart = np.abs(places[:, None] - places)
        smooth = np.exp(-(apart**2) / (2 * max(sigma, 0.01) ** 2))
        smooth = smooth / smooth.sum(axis=1)[:, None] @ np.eye(len(volume))[places.clip(0, len(volume) - 1)]
        matrix = np.linalg.solve((apart == 0) * 2 / 3 + (apart == 1) / 6, smooth)
        volume = np.tensordot(volume, matrix.astype(np.float32), (0, 1))  # the first axis becomes the last
    return volume


def sampled(values, places, degree):
    """[3] Interpolate at places (..., 3): linear between values, or cubic by the coefficients of splines."""
    first = np.floor(places).astype(int) - degree // 2
    away = np.abs([places - first - step for step in range(degree + 1)])
    cubic = np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, (2 - away) ** 3 / 6)
    weights, total = cubic if degree == 3 else 1 - away, 0
    for corner in np.ndindex((degree + 1,) * 3):
        weight = np.prod([weights[step, ..., axis] for axis, step in enumerate(corner)], axis=0)
        total = total + weight * values[tuple(np.moveaxis(first + corner, -1, 0))]
    return total


def working_ct(ct, to_mm, mm, outside):
    """[1, 3, 4] Bring a scan to a grid along the patient's axes that covers it.

    `to_mm`, (4, 4), takes its voxels to mm. Gives the volume and the place of its first voxel in mm.
    """
    size, to_voxel = np.array(ct.shape), np.linalg.inv(to_mm)
    corners = (indices_of((2, 2, 2)).reshape(8, 3) * size - 0.5) @ to_mm[:3, :3].T + to_mm[:3, 3]
    low, high = corners.min(axis=0), corners.max(axis=0)
    shape = np.ceil((high - low) / mm - 1e-3).astype(int)
    origin = (low + high) / 2 - (shape - 1) / 2 * mm
    steps = mm * np.linalg.norm(to_voxel[:3, :3], axis=1)  # voxels of the scan for one of the grid
    spline, volume = spline_of(ct, (steps - 1).clip(0) / 2 * (mm > 1)), np.empty(shape, np.float32)
    directions = np.abs(to_mm[:3, :3] / np.linalg.norm(to_mm[:3, :3], axis=0))
    is_turned = directions.max(axis=0).min() < np.cos(np.radians(5))
    for number, plane in enumerate(volume):
        points = origin + mm * (indices_of((1, *plane.shape))[0] + [number, 0, 0])
        places = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        plane[:] = sampled(spline, places.clip(0, size - 1) + 12, 3).clip(-1, 1)
        if is_turned:
            plane[(np.abs(places - (size - 1) / 2) > size / 2 + 1e-6).any(axis=-1)] = -1
    return (filled(volume) if is_turned and outside == "edge" else volume), origin


def filled(volume):
    """[4] Give air, and the voxels beside it, the value of the nearest tissue."""
    air = volume <= -0.995
    unknown = np.any([shifted(air, axis) for axis in range(3)], axis=(0, 1))
    tissue = np.argwhere(~unknown & np.any([shifted(unknown, axis) for axis in range(3)], axis=(0, 1)))
    for place in np.argwhere(unknown) if len(tissue) else ():
        nearest = tissue[((tissue - place) ** 2).sum(axis=1).argmin()]
        volume[tuple(place)] = volume[tuple(nearest)]
    return volume


def peaks_of(heat, least):
    """[5] Give the tops of local maxima from a heat on, (n, 3) in voxels, the highest first, and the heat."""
    smooth = heat
    for axis in range(3):  # a Gaussian of .6 voxels
        same, down, up = shifted(smooth, axis)
        smooth = same * 2 / 3 + (down + up) / 6
    largest = smooth
    for axis in range(3):
        largest = np.max(shifted(largest, axis), axis=0)
    peaks = np.argwhere((smooth == largest) & (heat >= least))
    peaks = peaks[np.argsort(-smooth[tuple(peaks.T)])]
    tops = np.zeros(peaks.shape)
    for axis in range(3):  # of a parabola through three logarithms
        same, down, up = (np.log(each[tuple(peaks.T)] + 1e-9) for each in shifted(smooth, axis))
        tops[:, axis] = ((up - down) / (2 * (2 * same - down - up) + 1e-9)).clip(-0.5, 0.5)
    return peaks + tops, heat[tuple(peaks.T)]


def piece_of(mask, near):
    """[7] Give what of a mask hangs together, by faces, edges or corners, with its voxels near a point."""
    piece, grown = np.zeros_like(mask), mask & near
    while np.any(piece != grown):
        piece = grown
        for axis in range(3):
            grown = np.any(shifted(grown, axis), axis=0)
        grown = grown & mask
    return piece
