"""One training example of the heatmap network on one core: ours beside separate passes with SciPy.

An augmented volume of 64 x 64 x 128 voxels with its heat, constants of the preset `paper`. Beside it the
passes as published code for this network writes them: the heat by a loop over the centroids, each a
distance on the full grid and a Gaussian of it, made before the augmentation; then CT and heat each through
mirroring, a cubic zoom and three cubic rotations, brought back to their shape with the shift; gain and
offset, noise and blur for the CT. Ours moves the centroids instead, so that the heat is computed once and
its Gaussians keep their width. Both take the same random numbers and begin with the volume in memory,
where the training holds all of them.

Reads   nothing: volume and centroids are generated.
Writes  nothing.
Command python benchmarks/bench_heatmap_example.py
Time    about 15 s.

Runs on one core, and the numbers are medians over seven seeds (of each piece of ours, the best of three).
The last line says how many times faster ours is.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Before TensorFlow is loaded, which makes a thread for every core that it sees.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from scipy import ndimage  # noqa: E402

from utils.imaging.intensities import LOWEST, normalise_hu  # noqa: E402
from utils.learning import augment, datasets, heatmap, prepared_data  # noqa: E402
from utils.presets import preset_settings  # noqa: E402
from utils.settings import HeatmapTrainingSettings  # noqa: E402

SEEDS = range(7)
SHAPE = (64, 64, 128)
#: A spine from T1 to L5 along the longest axis.
CENTROIDS = np.stack([np.linspace(24, 40, 17), np.full(17, 31.5), np.linspace(6, 121, 17)], axis=1)
SETTINGS = preset_settings(HeatmapTrainingSettings, "paper", batch_size=1)
PIECE_REPEATS = 3

Timings = dict[str, float]


def example_case() -> prepared_data.HeatmapCase:
    """Give a volume of smooth noise with a column of centroids."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 1, SHAPE), 2)
    return prepared_data.HeatmapCase("sub-0", (400 * noise / noise.std()).astype(np.int16), CENTROIDS)


# ---------------------------------------------------------------- separate passes with SciPy


def heat_by_loop(centroids: np.ndarray) -> np.ndarray:
    """Sum a Gaussian of the distance to every centroid on the full grid, and divide by the maximum."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1).astype(np.float32)
    heat = np.zeros(SHAPE, np.float32)
    for centroid in centroids:
        squared = np.sum((grid - centroid.astype(np.float32)) ** 2, axis=-1)
        heat += np.exp(-squared / (2 * SETTINGS.sigma_voxels**2))
    return heat / heat.max()


def turned(volume: np.ndarray, drawn: augment.Augmentation, outside: float) -> np.ndarray:
    """Mirror, zoom and rotate a volume, one pass after the other."""
    how = {"order": 3, "mode": "constant", "cval": outside}
    volume = ndimage.zoom(volume[:, ::-1] if drawn.flip else volume, drawn.zoom, **how)
    about_p, about_r, about_i = drawn.degrees
    for degrees, axes in ((about_r, (0, 2)), (about_p, (1, 2)), (about_i, (0, 1))):
        volume = ndimage.rotate(volume, degrees, axes, reshape=True, **how)
    return volume


def fitted(volume: np.ndarray, shift: np.ndarray, outside: float) -> np.ndarray:
    """Bring a volume to `SHAPE` around its middle, moved by whole voxels."""
    begin = (np.array(volume.shape) - SHAPE) // 2 - np.rint(shift).astype(int)
    margin = int(np.abs(begin).max() + max(SHAPE))
    padded = np.pad(volume, margin, constant_values=outside)
    return padded[tuple(slice(margin + b, margin + b + size) for b, size in zip(begin, SHAPE))]


def noisy_and_blurred(image: np.ndarray, drawn: augment.Augmentation) -> np.ndarray:
    """Add the noise to an image, then blur it."""
    if drawn.noise_sigma:
        generator = np.random.default_rng(drawn.noise_seed)
        image = image + drawn.noise_sigma * generator.standard_normal(image.shape, np.float32)
    if drawn.blur_sigma:
        image = ndimage.gaussian_filter(image, drawn.blur_sigma, mode="nearest")
    return image


def time_scipy(case: prepared_data.HeatmapCase, seed: int) -> Timings:
    """Make one example by separate passes; give the seconds of each."""
    generator = np.random.default_rng(seed)
    drawn = augment.draw_augmentation(generator, SETTINGS.augmentation)
    shift = generator.uniform(-SETTINGS.shift_voxels, SETTINGS.shift_voxels, 3)
    clock = [time.perf_counter()]
    heat = heat_by_loop(case.centroids_voxels)
    clock.append(time.perf_counter())
    image = normalise_hu(case.ct_hu)
    image = turned(drawn.gain * image + np.float32(drawn.offset), drawn, LOWEST)
    clock.append(time.perf_counter())
    heat = fitted(turned(heat, drawn, 0.0), shift, 0.0)
    clock.append(time.perf_counter())
    x = fitted(noisy_and_blurred(image, drawn), shift, LOWEST)[..., None]
    y = np.stack([heat, 1 - heat], axis=-1)
    assert x.shape == (*SHAPE, 1) and y.shape == (*SHAPE, 2)
    clock.append(time.perf_counter())
    names = ("heat: loop over centroids", "CT: zoom, three rotations", "heat: the same", "noise, blur, shift")
    return {**dict(zip(names, np.diff(clock))), "whole": clock[-1] - clock[0]}


# ---------------------------------------------------------------- ours


def host_batch(case: prepared_data.HeatmapCase, seed: int) -> datasets.Example:
    """Draw one example, as the pipeline does."""
    generator = np.random.default_rng(seed)
    drawn = heatmap.draw_heatmap_example(generator, case.centroids_voxels, shape=SHAPE, settings=SETTINGS)
    return {**datasets.collate([{"ct_hu": case.ct_hu, **drawn}]), "weight": np.ones(1, np.float32)}


def time_pieces(case: prepared_data.HeatmapCase, seed: int) -> Timings:
    """Time every piece of one example by itself."""
    drawing, batch = best_seconds(lambda: host_batch(case, seed))
    drawn = {name: tf.constant(value[0]) for name, value in batch.items() if name != "weight"}
    ct_hu = drawn.pop("ct_hu")
    radius = augment.blur_radius(SETTINGS.augmentation, 1.0)
    how = {"shape": SHAPE, "sigma_voxels": SETTINGS.sigma_voxels}
    sampling, image = best_seconds(lambda: heatmap.moved_volume(ct_hu, drawn))
    noise = drawn["noise_sigma"], drawn["noise_seed"]
    noising, image = best_seconds(lambda: augment.add_noise(image, *noise))
    blurring, _ = best_seconds(lambda: heatmap.blurred_and_shifted(image, drawn, radius))
    heating, _ = best_seconds(lambda: heatmap.heat_target(drawn["points"], drawn["present"], **how))
    names = ("draw and collate", "sample CT", "noise", "blur, shift", "heat")
    return dict(zip(names, (drawing, sampling, noising, blurring, heating)))


def best_seconds(work: Callable) -> tuple[float, object]:
    """Give the least seconds of a few runs after one that compiles, and the result."""
    result, seconds = work(), []
    for _ in range(PIECE_REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result


def time_ours(build: Callable, case: prepared_data.HeatmapCase, seed: int) -> float:
    """Make one example from the volume in memory to the finished tensors; give the seconds."""
    started = time.perf_counter()
    x, y, _ = build(host_batch(case, seed), True)
    assert x.shape == (1, *SHAPE, 1) and y.shape == (1, *SHAPE, 2)
    return time.perf_counter() - started


# ---------------------------------------------------------------- table


def medians(runs: list[Timings]) -> Timings:
    """Give the median seconds of every piece."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def print_seconds(title: str, seconds: Timings) -> None:
    """Print one part of the table."""
    print(f"\n{title:<44}{'seconds':>10}")
    for name, value in seconds.items():
        print(f"  {name:<42}{value:>10.4f}")


def main() -> int:
    """Print the table and the ratio."""
    case = example_case()
    build = tf.function(heatmap.heatmap_batch_builder(SETTINGS))
    time_ours(build, case, 0)  # compiles
    ours = medians([time_pieces(case, seed) for seed in SEEDS])
    ours["whole"] = statistics.median(time_ours(build, case, seed) for seed in SEEDS)
    theirs = medians([time_scipy(case, seed) for seed in SEEDS])
    print_seconds("separate passes with SciPy", theirs)
    print_seconds("ours", ours)
    print(f"ratio: {theirs['whole'] / ours['whole']:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
