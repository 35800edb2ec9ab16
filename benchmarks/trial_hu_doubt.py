"""Whether numbers are rightly taken for Hounsfield units: false alarms and misses.

Draws scans that the table of `utils.imaging.hu_check` was not fitted on (200 of all kinds: phantoms of every
range and style, limbs, heads, coarse scans), takes the real CTs of ../shared where they are, and the
surroundings of their spines with and without air. Every one must be believed as it is, and doubted with 1000
or 1024 added or taken away, ten times and divided by ten: drawn ones in one of these ways in turn, real ones
in all. Five minutes:

    python -m benchmarks.trial_hu_doubt

With --quick, 15 scans, one of each kind, and no real ones: 20 seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from experiments.fit_hu_histograms import KINDS, SCAN_PARTS, WRONGS, doubt_nats, healthy_parts
from experiments.real.facts import ScanFacts, scans_there
from utils.imaging.grids import transform_points
from utils.imaging.hu_check import DOUBT_NATS, wrong_numbers
from utils.imaging.nifti import read_ct

SEED, SCANS = 51000, 200
SHARED = Path(__file__).resolve().parents[2] / "shared"
#: How far the surroundings of a real spine reach beyond the body centres.
_AROUND_MM = 45.0
Part = tuple[str, np.ndarray]


def drawn_parts(scans: Iterable[int]) -> Iterator[Part]:
    """Give drawn scans, and of phantoms the surroundings of the spine, with their names."""
    for number in scans:
        for name, part in healthy_parts(SEED, number):
            if name.endswith(SCAN_PARTS):
                yield f"{number} {name}", part


def real_parts(shared: Path) -> Iterator[Part]:
    """Give the real scans below a folder, and the surroundings of their spines, with their names."""
    for facts in scans_there(shared).values():
        yield from _parts_of_real(shared, facts)


def _parts_of_real(shared: Path, facts: ScanFacts) -> Iterator[Part]:
    ct = read_ct(shared / facts.ct)
    yield f"{facts.name}: scan", ct.data
    if not facts.points_mm:
        return
    places = transform_points(np.array(list(facts.points_mm.values())), np.eye(4), ct.affine)
    reach = _AROUND_MM / ct.spacing_mm
    begin = np.clip(places.min(axis=0) - reach, 0, None).astype(int)
    end = (places.max(axis=0) + reach).astype(int)
    spine = ct.data[tuple(map(slice, begin, end))]
    yield f"{facts.name}: spine", spine
    yield f"{facts.name}: no air", spine[spine > -200]


def wrong_parts(number: int, part: np.ndarray, *, all_ways: bool) -> Iterator[Part]:
    """Give a scan with its numbers made wrong in every way, or in the one whose turn it is."""
    for place, (way, make) in enumerate(WRONGS.items()):
        if all_ways or number % len(WRONGS) == place:
            yield way, make(part.astype(np.int32))


def measure(parts: Iterable[Part], *, all_ways: bool = False) -> tuple[np.ndarray, tuple[float, float]]:
    """Count, and print each error.

    Parameters
    ----------
    parts : iterable of (str, np.ndarray)
        Healthy scans.
    all_ways : bool
        Whether each is made wrong in every way, or in the one whose turn it is.

    Returns
    -------
    counts : np.ndarray of int, (4,)
        False alarms, healthy ones, misses, wrong ones.
    nats : tuple of float, 2
        The largest doubt about a healthy one, and the smallest about a wrong one.
    """
    counts, healthy_nats, wrong_nats = np.zeros(4, int), [], []
    for number, (name, part) in enumerate(parts):
        doubt = wrong_numbers(part)
        counts += (bool(doubt), 1, 0, 0)
        healthy_nats.append(doubt_nats(part))
        if doubt:
            print(f"false alarm: {name}: {doubt} ({healthy_nats[-1]:.2f} nats)", flush=True)
        for way, wrong in wrong_parts(number, part, all_ways=all_ways):
            missed = not wrong_numbers(wrong)
            counts += (0, 0, missed, 1)
            wrong_nats.append(doubt_nats(wrong))
            if missed:
                print(f"miss: {name} {way} ({wrong_nats[-1]:.2f} nats)", flush=True)
    return counts, (max(healthy_nats), min(wrong_nats))


def main(*, quick: bool) -> None:
    """Measure, and print."""
    scans = range(len(KINDS) if quick else SCANS)
    rows = {f"{len(scans)} drawn scans and parts": measure(drawn_parts(scans))}
    if not quick:
        rows["real scans and parts"] = measure(real_parts(SHARED), all_ways=True)
    for name, ((alarms, healthy, misses, wrong), (most, least)) in rows.items():
        print(f"{name:30s} false alarms {alarms} of {healthy}, misses {misses} of {wrong}", end="; ")
        print(f"doubts up to {most:.2f} and from {least:.2f} nats, the limit being {DOUBT_NATS}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="15 scans, no real ones")
    main(quick=parser.parse_args().quick)
