"""One training example of the segmentation network on one core: ours beside separate passes with SciPy.

1. An augmented patch of 128³ voxels with memory, target and boundary weight, constants of the preset
   `paper`. Beside it the passes as published code for this network writes them: the whole CT of 256³ voxels
   through a cubic zoom and three cubic rotations, target and memory through the same with nearest
   neighbours, then mirroring, gain and offset, noise, blur, clipping, the crop, and two distance transforms
   for the weight. Both take the same random numbers, and read nothing but their scan.
2. Where our time goes: host and device. Each piece is compiled and timed by itself, the best of three; in
   the whole, blur and memory are fused, as are target and weight, so the pieces need not add up.
3. The host's share alone, when a GPU does the rest: examples a second through the pipeline (order, draw,
   placement, block read, collation, tf.data) on scans of 300 x 300 x 400 voxels at 1 mm.
   Warm: the files are in the page cache. Cold: they are dropped from it before every pass over the scans.

Reads   nothing: the scans are generated, with blocks for vertebrae.
Writes  nothing that stays: 400 MB in a temporary folder (TMPDIR chooses the disk that is read cold).
Command python benchmarks/bench_training_example.py
Time    about 2 minutes.

Runs on one core, and the numbers are medians over five seeds. The last line says how many times
faster ours is.
"""

from __future__ import annotations

import csv
import os
import statistics
import sys
import tempfile
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

from utils.imaging.intensities import normalise_hu  # noqa: E402
from utils.imaging.nifti import write_volume  # noqa: E402
from utils.imaging.volume import Volume  # noqa: E402
from utils.learning import augment, datasets, prepared_data, vertebrae  # noqa: E402
from utils.preparation.working_case import VERTEBRA_COLUMNS, VERTEBRAE_FILE, prepared_table  # noqa: E402
from utils.presets import preset_settings  # noqa: E402
from utils.settings import SegmentationTrainingSettings  # noqa: E402

SEEDS = range(5)
SCAN_SHAPE, HOST_SHAPE, HOST_SCANS = (256, 256, 256), (300, 300, 400), 3
PAPER = preset_settings(SegmentationTrainingSettings, "paper")
WARM_EXAMPLES, COLD_PASSES, PIECE_REPEATS = 200, 7, 3
#: Vertebrae: blocks of 70 x 75 x 20 voxels, 24 apart, from T1 (code 8) down.
BLOCK_VOXELS, BLOCK_PITCH, FIRST_CODE = np.array([70, 75, 20]), 24, 8
AFFINE = np.array([[0, 1.0, 0, 0], [-1.0, 0, 0, 0], [0, 0, -1.0, 0], [0, 0, 0, 1]])

Draw = augment.Augmentation
Timings = dict[str, float]


def write_scan(folder: Path, key: str, shape: tuple[int, int, int], seed: int) -> list[dict]:
    """Write a scan of noise with a column of blocks as pre-processing does; give its rows of the table."""
    mask = np.zeros(shape, np.uint8)
    place = (np.array(shape[:2]) - BLOCK_VOXELS[:2]) // 2
    for code, top in enumerate(range(10, shape[2] - BLOCK_PITCH, BLOCK_PITCH), start=FIRST_CODE):
        begin = np.array([*place, top])
        mask[tuple(slice(b, e) for b, e in zip(begin, begin + BLOCK_VOXELS))] = code
    noise = np.random.default_rng(seed).normal(0, 100, shape)
    ct = np.where(mask > 0, 300 + noise, noise).astype(np.int16)
    write_volume(folder / f"{key}_ct.nii", Volume(ct, AFFINE))
    write_volume(folder / f"{key}_msk.nii", Volume(mask, AFFINE))
    return prepared_table(key, Volume(mask, AFFINE), at_border=set())


def write_split(folder: Path, shape: tuple[int, int, int], scans: int) -> prepared_data.SegmentationData:
    """Write scans and their table, and read them as the training does."""
    rows = [row for k in range(scans) for row in write_scan(folder, f"sub-{k}", shape, k)]
    with (folder / VERTEBRAE_FILE).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, VERTEBRA_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return prepared_data.read_segmentation_data(folder).without_bad_cases()[0]


# ---------------------------------------------------------------- separate passes with SciPy


def drawn_for(seed: int) -> Draw:
    """Give the numbers that `segmentation_example` draws for a seed."""
    generator = np.random.default_rng(seed)
    vertebrae.draw_kind(generator, PAPER)
    return augment.draw_augmentation(generator, PAPER.augmentation)


def turned(volume: np.ndarray, drawn: Draw, order: int) -> np.ndarray:
    """Mirror, zoom and rotate a whole volume, one pass after the other."""
    volume = volume[:, ::-1] if drawn.flip else volume
    volume = ndimage.zoom(volume, drawn.zoom, order=order, mode="nearest")
    about_p, about_r, about_i = drawn.degrees
    for degrees, axes in ((about_r, (0, 2)), (about_p, (1, 2)), (about_i, (0, 1))):
        volume = ndimage.rotate(volume, degrees, axes, reshape=True, order=order, mode="nearest")
    return volume


def cropped(volume: np.ndarray) -> np.ndarray:
    """Cut the middle out."""
    begin = (np.array(volume.shape) - PAPER.patch_voxels) // 2
    return volume[tuple(slice(b, b + PAPER.patch_voxels) for b in begin)]


def image_with_scipy(ct: np.ndarray, drawn: Draw) -> np.ndarray:
    """Augment the CT, already turned, and crop it."""
    image = drawn.gain * ct + np.float32(drawn.offset)
    if drawn.noise_sigma:
        generator = np.random.default_rng(drawn.noise_seed)
        image += drawn.noise_sigma * generator.standard_normal(image.shape, np.float32)
    if drawn.blur_sigma:
        image = ndimage.gaussian_filter(image, drawn.blur_sigma, mode="nearest")
    return cropped(np.clip(image, -1, 1))


def weight_with_scipy(target: np.ndarray) -> np.ndarray:
    """Give the boundary weight by two distance transforms."""
    inside, outside = (ndimage.distance_transform_edt(mask) for mask in (target, ~target))
    decay = np.exp(-((inside + outside) ** 2) / vertebrae.BOUNDARY_VARIANCE_MM2)
    return (1 + vertebrae.BOUNDARY_PEAK * decay).astype(np.float32)


def time_scipy(data: prepared_data.SegmentationData, item: int, drawn: Draw) -> Timings:
    """Make one example by separate passes; give the seconds of each."""
    ct, codes = (np.array(volume.data) for volume in data.scan("sub-0"))
    clock = [time.perf_counter()]
    image = turned(normalise_hu(ct), drawn, 3)
    clock.append(time.perf_counter())
    label = data.vertebrae[item].label
    target, memory = (turned(part, drawn, 0) for part in (codes == label, (codes > 0) & (codes < label)))
    clock.append(time.perf_counter())
    image = image_with_scipy(image, drawn)
    clock.append(time.perf_counter())
    weight = weight_with_scipy(cropped(target))
    x, y = np.stack([image, cropped(memory)], -1), np.stack([cropped(target), weight], -1)
    assert x.shape == y.shape == (*(PAPER.patch_voxels,) * 3, 2)
    clock.append(time.perf_counter())
    names = ("CT: zoom, three rotations", "target and memory: the same", "noise, blur, clip, crop", "weight")
    return {**dict(zip(names, np.diff(clock))), "whole": clock[-1] - clock[0]}


# ---------------------------------------------------------------- ours


def host_batch(data: prepared_data.SegmentationData, item: int, seed: int) -> datasets.Example:
    """Draw, place and read one example, as the pipeline does."""
    example = datasets.segmentation_example(
        data, item, np.random.default_rng(seed), spacing_mm=1.0, settings=PAPER
    )
    length = vertebrae.block_length(example["ct_hu"].size, PAPER.patch_voxels)
    return {**datasets.collate([example], length), "weight": np.ones(1, np.float32)}


def make_pieces() -> dict[str, Callable]:
    """Give the device's pieces, each compiled by itself, as functions of what was drawn and made before."""
    shape, radius = (PAPER.patch_voxels,) * 3, augment.blur_radius(PAPER.augmentation, 1.0)

    def places(drawn):
        return augment.sampling_coordinates(drawn["affine"], shape)

    def target_of(drawn, codes):
        return vertebrae.target_and_memory(codes, drawn["target_rank"], drawn["remembers"], drawn["ranks"])

    pieces = {
        "sample CT": lambda d, made: augment.sample_ct(d["ct_hu"], places(d), d["last"]),
        "noise": lambda d, made: augment.add_noise(made["sample CT"], d["noise_sigma"], d["noise_seed"]),
        "blur": lambda d, made: augment.blur(made["noise"], d["blur_sigma"], radius),
        "sample labels": lambda d, made: augment.sample_nearest(d["codes"], places(d), d["last"]),
        "target and memory": lambda d, made: target_of(d, made["sample labels"]),
        "boundary weight": lambda d, made: vertebrae.boundary_weight(made["target and memory"][0], 1.0),
    }
    return {name: tf.function(piece, jit_compile=True) for name, piece in pieces.items()}


def time_pieces(
    pieces: dict[str, Callable], data: prepared_data.SegmentationData, item: int, seed: int
) -> Timings:
    """Time every piece of one example by itself."""
    started = time.perf_counter()
    generator = np.random.default_rng(seed)
    example = datasets.segmentation_example(data, item, generator, spacing_mm=1.0, settings=PAPER)
    seconds = {"draw and place": time.perf_counter() - started}
    started = time.perf_counter()
    block = datasets.collate([example], vertebrae.block_length(example["ct_hu"].size, PAPER.patch_voxels))
    seconds["read block"] = time.perf_counter() - started
    drawn, made = {name: tf.constant(value[0]) for name, value in block.items()}, {}
    for name, piece in pieces.items():
        piece(drawn, dict(made))  # compiles
        seconds[name], made[name] = best_seconds(lambda piece=piece: piece(drawn, dict(made)))
    return seconds


def best_seconds(work: Callable) -> tuple[float, object]:
    """Give the least seconds of a few runs, and the result."""
    seconds = []
    for _ in range(PIECE_REPEATS):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result


def time_ours(build: Callable, data: prepared_data.SegmentationData, item: int, seed: int) -> float:
    """Make one example from the files to the finished tensors; give the seconds."""
    started = time.perf_counter()
    x, y, _ = build(host_batch(data, item, seed), True)
    assert x.shape == y.shape == (1, *(PAPER.patch_voxels,) * 3, 2)
    return time.perf_counter() - started


# ---------------------------------------------------------------- the host's share


def pass_rate(epoch_of: datasets.EpochDataset, epoch: int) -> float:
    """Give the examples a second of one epoch of the pipeline."""
    started = time.perf_counter()
    count = sum(len(batch["weight"]) for batch in epoch_of(epoch))
    return count / (time.perf_counter() - started)


def warm_rate(data: prepared_data.SegmentationData) -> float:
    """Give the median rate of three epochs from files that are in the page cache."""
    settings = preset_settings(SegmentationTrainingSettings, "paper", examples_per_epoch=WARM_EXAMPLES)
    epoch_of = datasets.segmentation_dataset(data, settings, spacing_mm=1.0, training=True)
    return statistics.median(pass_rate(epoch_of, epoch) for epoch in range(3))


def cold_rate(data: prepared_data.SegmentationData) -> float:
    """Give the median rate of passes that meet every scan once, dropped from the page cache before."""
    middles = tuple(column[len(column) // 2] for column in data.columns.values())
    once = prepared_data.SegmentationData(data.folder, middles).without_bad_cases()[0]
    epoch_of = datasets.segmentation_dataset(once, PAPER, spacing_mm=1.0, training=True)
    rates = []
    for epoch in range(COLD_PASSES):
        close_files(once)
        drop_from_cache(data.folder)
        rates.append(pass_rate(epoch_of, epoch))
    return statistics.median(rates)


def close_files(data: prepared_data.SegmentationData) -> None:
    """Forget the memory maps of a split: pages that are mapped cannot be dropped from the cache."""
    data._found.mapped = prepared_data.Found().mapped


def drop_from_cache(folder: Path) -> None:
    """Write a folder's files to the disk, and drop them from the page cache."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


# ---------------------------------------------------------------- table


def medians(runs: list[Timings]) -> Timings:
    """Give the median seconds of every piece."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def print_seconds(title: str, seconds: Timings) -> None:
    """Print one part of the table."""
    print(f"\n{title:<44}{'seconds':>10}")
    for name, value in seconds.items():
        print(f"  {name:<42}{value:>10.4f}")


def compare(folder: Path) -> float:
    """Print where the time of both goes, and give the ratio of the medians."""
    data = write_split(folder, SCAN_SHAPE, 1)
    item = len(data.vertebrae) // 2
    build = tf.function(vertebrae.segmentation_batch_builder(PAPER, 1.0), reduce_retracing=True)
    for seed in SEEDS:
        time_ours(build, data, item, seed)  # compiles
    pieces = make_pieces()
    ours = medians([time_pieces(pieces, data, item, seed) for seed in SEEDS])
    ours["whole"] = statistics.median(time_ours(build, data, item, seed) for seed in SEEDS)
    theirs = medians([time_scipy(data, item, drawn_for(seed)) for seed in SEEDS])
    print_seconds("separate passes with SciPy", theirs)
    print_seconds("ours", ours)
    return theirs["whole"] / ours["whole"]


def print_host_rates(folder: Path) -> None:
    """Print the examples a second of the host's share alone."""
    data = write_split(folder, HOST_SHAPE, HOST_SCANS)
    print(f"\n{'the host alone':<44}{'examples/s':>10}")
    print(f"  {'page cache warm':<42}{warm_rate(data):>10.1f}")
    close_files(data)
    print(f"  {'page cache cold':<42}{cold_rate(data):>10.1f}")


def main() -> int:
    """Print the tables and the ratio."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("example", "host"):
            (Path(folder) / name).mkdir()
        ratio = compare(Path(folder) / "example")
        print_host_rates(Path(folder) / "host")
    print(f"ratio: {ratio:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
