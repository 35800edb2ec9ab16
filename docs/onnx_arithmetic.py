"""Arithmetic on volumes for docs/onnx_example.py: resampling, peaks, pieces. NumPy alone.

Numbers in brackets are the steps of docs/onnx.md. Working volumes have axes (P, R, I), points in mm too.
"""

import numpy as np


def indices_of(shape):
    """Give the index of every voxel, (..., 3)."""
    return np.moveaxis(np.indices(shape), 0, -1)


def halfway(points, peaks, apart):
    """[5] Move points half the way to the nearest peak, if that is nearer than `apart` and no other's."""
    if not len(points):
        return points
    away = np.linalg.norm(points[:, None] - peaks, axis=2)
    nearest, places = away.argmin(axis=1), np.arange(len(points))
    is_own = (away[places, nearest] < apart) & (away.argmin(axis=0)[nearest] == places)
    return np.where(is_own[:, None], (points + peaks[nearest]) / 2, points)


def behind(centres, far):
    """[7] Give points so far behind the centres of bodies, square to the way past them."""
    down = np.gradient(centres, axis=0) if len(centres) > 1 else np.zeros((1, 3))
    away = [1, 0, 0] - down[:, :1] * down / (down**2).sum(axis=1, keepdims=True).clip(1e-12)
    return centres + far * away / np.linalg.norm(away, axis=1, keepdims=True).clip(1e-12)


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

    `to_mm`, (4, 4), takes its voxels to mm. Gives the volume, the place of its first voxel in mm, and what of
    it lies beyond the scan.
    """
    low, high = extent_of(ct.shape, to_mm)
    shape = np.ceil((high - low) / mm - 1e-3).astype(int)
    directions = np.abs(to_mm[:3, :3] / np.linalg.norm(to_mm[:3, :3], axis=0))
    if directions.max(axis=0).min() < np.cos(np.radians(5)):
        return turned_ct(ct, to_mm, mm, outside)
    origin = (low + high) / 2 - (shape - 1) / 2 * mm
    return resampled(ct, to_mm, mm, origin, shape), origin, np.zeros(shape, bool)


def turned_ct(ct, to_mm, mm, outside):
    """[4] Lay the grid of a turned scan through its middle, and tell what lies beyond it; as `working_ct`."""
    (low, high), empty = extent_of(ct.shape, to_mm), empty_of(ct)
    middle = to_mm[:3, :3] @ np.argwhere(~empty).mean(axis=0) + to_mm[:3, 3]
    first, last = np.floor((low - middle) / mm + 0.5), np.ceil((high - middle) / mm - 0.5)
    origin, shape = middle + first * mm, (last - first + 1).astype(int)
    volume, share = resampled(ct, to_mm, mm, origin, shape), 1 - shown(empty, to_mm, mm, origin, shape)
    beyond = share >= 0.5
    if outside == "edge":
        around = np.pad(share, 1, constant_values=1)
        for axis in range(3):
            around = sum(np.take(around, np.arange(shape[axis]) + step, axis) for step in range(3)) / 3
        volume = filled(volume, around >= 0.2)
    volume[beyond & (outside == "air")] = -1
    inside = np.argwhere(~beyond)
    begin, end = inside.min(axis=0), inside.max(axis=0) + 1
    if outside == "air":  # in a frame of 8 voxels, to planes that lie every 4 voxels from the middle
        begin = (4 * np.floor((begin - 8 + first) / 4) - first).astype(int)
        end = (4 * np.ceil((end + 8 + first) / 4) - first).astype(int)
    wide, hidden = np.pad(volume, 16, constant_values=-1), np.pad(beyond, 16, constant_values=True)
    box = tuple(map(slice, begin + 16, end + 16))
    return wide[box], origin + begin * mm, hidden[box]


def extent_of(shape, to_mm):
    """Give the lowest and the highest mm that a scan's faces reach."""
    corners = (indices_of((2, 2, 2)).reshape(8, 3) * np.array(shape) - 0.5) @ to_mm[:3, :3].T + to_mm[:3, 3]
    return corners.min(axis=0), corners.max(axis=0)


def resampled(ct, to_mm, mm, origin, shape):
    """[3] Interpolate a scan on a grid; its border goes on."""
    size, to_voxel = np.array(ct.shape), np.linalg.inv(to_mm)
    steps = mm * np.linalg.norm(to_voxel[:3, :3], axis=1)  # voxels of the scan for one of the grid
    spline, volume = spline_of(ct, (steps - 1).clip(0) / 2 * (mm > 1)), np.empty(shape, np.float32)
    for number, plane in enumerate(volume):
        points = origin + mm * (indices_of((1, *plane.shape))[0] + [number, 0, 0])
        places = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        plane[:] = sampled(spline, places.clip(0, size - 1) + 12, 3).clip(-1, 1)
    return volume


def empty_of(ct):
    """[4] Give the air of a scan, from -1014 HU down, that hangs together with its faces."""
    air, faces = ct <= -0.995, np.ones(ct.shape, bool)
    faces[1:-1, 1:-1, 1:-1] = False
    piece, grown = np.zeros_like(air), air & faces
    while np.any(piece != grown):
        piece = grown
        grown = air & np.any([shifted(piece, axis) for axis in range(3)], axis=(0, 1))
    return piece


def shown(empty, to_mm, mm, origin, shape):
    """[4] Give the share of each voxel of a grid that is of the scan: the mean over its octants."""
    size, to_voxel, share = np.array(empty.shape), np.linalg.inv(to_mm), np.zeros(shape)
    values = np.pad(1.0 - empty, 1, mode="edge")
    for octant in np.ndindex(2, 2, 2):
        points = (indices_of(shape) + np.array(octant) / 2 - 0.25) * mm + origin
        places = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        inside = (np.abs(places - (size - 1) / 2) <= size / 2).all(axis=-1)
        share += inside * sampled(values, places.clip(0, size - 1) + 1, 1) / 8
    return share


def filled(volume, unknown):
    """[4] Give voxels the value of the nearest other one."""
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
