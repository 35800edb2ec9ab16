"""Fit the table by which numbers are told to be Hounsfield units or not (`utils.imaging.hu_check`).

Command python experiments/fit_hu_histograms.py
Time    four minutes on one CPU core
Result  utils/imaging/hu_histograms.csv, and on the screen how far the scans that it is fitted on lie from
        `DOUBT_NATS`: the largest doubt about one as it is, the smallest about one with wrong numbers

Histograms of drawn scans, of the surroundings of the spine with and without air, and, apart from these, of
the vertebrae alone and of any box, are smoothed and grouped by how well one explains another. The table holds
the means of the groups, each with a little of the mean of all. `benchmarks/trial_hu_doubt.py` measures it on
other scans.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy import ndimage

from utils.files import write_text_whole
from utils.imaging import hu_check
from utils.synthetic.drawn import draw_phantom_scan
from utils.synthetic.no_spine import draw_no_spine
from utils.synthetic.phantom.make import make_phantom
from utils.synthetic.phantom.ranges import RANGES

TABLE = Path(hu_check.__file__).with_name("hu_histograms.csv")
SEED, SCANS = 7000, 90
#: What is grouped together, and into how many groups.
SCAN_PARTS, SCAN_GROUPS = ("scan", "spine", "no air"), 16
OTHER_PARTS, OTHER_GROUPS = ("bone", "box"), 8
#: Kinds of scans, in turn: ranges and style of a phantom, or what `draw_no_spine` draws, or a coarse scan.
KINDS = (
    *((ranges, style) for ranges in RANGES for style in ("2019", "2020-ax", "2020-sag")),
    *((kind, "") for kind in ("thigh", "arm", "head")),
    *(("coarse", ""),) * 3,
)
#: Ways in which numbers are made wrong.
WRONGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "+1000": lambda hu: hu + 1000,
    "+1024": lambda hu: hu + 1024,
    "not rescaled": lambda hu: np.maximum(hu, -1024) + 1024,
    "-1000": lambda hu: hu - 1000,
    "-1024": lambda hu: hu - 1024,
    "x10": lambda hu: hu * 10,
    "/10": lambda hu: np.rint(hu / 10),
}
_STEP_MM, _LEAST_VOXELS, _BLUR_BINS, _OF_ALL = 2.0, 2000, 1.0, 0.1
_TURNS, _KEPT_VOXELS = 40, 300_000


def healthy_parts(seed: int, number: int) -> Iterator[tuple[str, np.ndarray]]:
    """Draw a scan, and give it and parts of it with their names.

    Parameters
    ----------
    seed, number : int
        Fix the scan; its kind goes round with the number.

    Yields
    ------
    str, np.ndarray of int32
        "scan", and of a phantom "spine" (the box of the labelled vertebrae), "no air" (its voxels over
        -200 HU, in a row) and "bone" (the vertebrae's voxels, in a row); "box" is a box of any scan.
    """
    kind, style = KINDS[number % len(KINDS)]
    codes = np.zeros(0)
    if kind in RANGES:
        phantom = make_phantom(seed + number, style=style, step_mm=_STEP_MM, ranges=RANGES[kind])
        ct, codes = phantom.ct, phantom.mask
    elif kind == "coarse":
        ct = draw_phantom_scan(seed, number).ct
    else:
        ct = draw_no_spine(seed, number, kind=kind).ct
    ct = ct.astype(np.int32)
    yield f"{kind} {style}: scan", ct
    yield f"{kind} {style}: box", _any_box(np.random.default_rng([seed, number]), ct)
    if codes.any():
        for name, part in parts_around(ct, codes):
            yield f"{kind} {style}: {name}", part


def parts_around(ct: np.ndarray, codes: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Give the parts "spine", "no air" and "bone" of a scan whose vertebrae are known."""
    (box,) = ndimage.find_objects((codes > 0).astype(np.uint8))
    yield "spine", ct[box]
    yield "no air", ct[box][ct[box] > -200]
    yield "bone", ct[codes > 0]


def _any_box(rng: np.random.Generator, ct: np.ndarray) -> np.ndarray:
    begin = [int(n * rng.uniform(0.2, 0.5)) for n in ct.shape]
    return ct[tuple(slice(b, b + max(int(0.3 * n), 2)) for b, n in zip(begin, ct.shape))]


def grouped(histograms: np.ndarray, groups: int, seed: int = 0) -> np.ndarray:
    """Group histograms, and give the mean of each group.

    Parameters
    ----------
    histograms : np.ndarray, (n, bins)
        Shares; they are smoothed first.
    groups : int
        How many groups.
    seed : int
        Of the first guess.

    Returns
    -------
    np.ndarray, (groups, bins)
        Each histogram belongs to the mean under which its voxels are the most likely: k-means with the
        divergence of Kullback and Leibler as distance.
    """
    smooth = ndimage.gaussian_filter1d(histograms, _BLUR_BINS, axis=1, mode="constant")
    means = smooth[np.random.default_rng(seed).choice(len(smooth), groups, replace=False)]
    for _ in range(_TURNS):
        means = (1 - _OF_ALL) * means + _OF_ALL * smooth.mean(axis=0)
        nearest = (histograms @ np.log(means + 1e-7).T).argmax(axis=1)
        members = (smooth[nearest == group] for group in range(groups))
        means = np.array([own.mean(axis=0) if len(own) else smooth.mean(axis=0) for own in members])
    return (1 - _OF_ALL) * means + _OF_ALL * smooth.mean(axis=0)


def table_text(of_scans: np.ndarray, of_parts: np.ndarray) -> str:
    """Give the text of the table: a row a bin, shares in millionths."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = (*(f"scan_{n}" for n in range(len(of_scans))), *(f"part_{n}" for n in range(len(of_parts))))
    writer.writerow(["hu_from", *names])
    lows = hu_check.LOWEST_BIN_HU + hu_check.BIN_HU * np.arange(hu_check.BINS)
    shares = np.rint(1e6 * np.concatenate([of_scans, of_parts])).astype(int)
    writer.writerows([low, *row] for low, row in zip(lows, shares.T))
    return stream.getvalue()


def thinned(data: np.ndarray) -> np.ndarray:
    """Give some of the voxels of a scan, (n,): enough to tell what its numbers are."""
    return data.ravel()[:: max(1, data.size // _KEPT_VOXELS)].copy()


def doubt_nats(data: np.ndarray) -> float:
    """Give by how many nats a voxel the best of the wrong meanings explains numbers better than HU do."""
    fits = hu_check.fits_of(*hu_check.telling_numbers(data))
    return float(fits[1:].max() - fits[0])


def fitted(parts: Sequence[tuple[str, np.ndarray]], kinds: Sequence[str], groups: int) -> np.ndarray:
    """Group the histograms of the parts of some kinds, those aside that show too little."""
    telling = [hu_check.telling_numbers(data) for name, data in parts if name.endswith(tuple(kinds))]
    told = [hu_check.histogram(*each) for each in telling if each[1].sum() > _LEAST_VOXELS]
    return grouped(np.array(told), groups)


def main() -> None:
    """Draw, fit, write and print."""
    drawn = (part for number in range(SCANS) for part in healthy_parts(SEED, number))
    parts = [(name, thinned(data)) for name, data in drawn]
    of_scans, of_parts = fitted(parts, SCAN_PARTS, SCAN_GROUPS), fitted(parts, OTHER_PARTS, OTHER_GROUPS)
    write_text_whole(TABLE, table_text(of_scans, of_parts))
    hu_check.typical_histograms.cache_clear()
    print(f"{TABLE}: {len(of_scans)} histograms of scans and {len(of_parts)} of parts, from {SCANS} scans.")
    for kind in (*SCAN_PARTS, *OTHER_PARTS):
        own = [data for name, data in parts if name.endswith(kind)]
        wrong = {name: min(doubt_nats(make(data)) for data in own) for name, make in WRONGS.items()}
        worst = min(wrong, key=lambda name: wrong[name])
        healthy = max(map(doubt_nats, own))
        print(
            f"{kind:7s} {len(own):3d}: {healthy:5.2f} at most; wrong {wrong[worst]:5.2f} at least ({worst})"
        )


if __name__ == "__main__":
    main()
