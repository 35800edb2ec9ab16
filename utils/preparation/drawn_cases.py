"""Scans that are drawn for the network that finds and names vertebrae, prepared beside those that are read.

The name of a drawn scan says all that it is made from: `drawn-<seed>-<number>`, or `drawn-trunk-<seed>-<number>`
for one drawn from the organs of a real scan. One that is there already stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from utils.execution import in_shard, outcomes
from utils.imaging.volume import Volume
from utils.preparation.prepared import DRAWN, PREPARED_SPLITS
from utils.preparation.spine_case import SPINE, spine_of_drawn, write_spine_case
from utils.settings import HeatmapPreparationSettings
from utils.synthetic.drawn import draw_scan
from utils.synthetic.organs import OrganMap, read_organ_map
from utils.synthetic.trunk import draw_trunk_scan

#: Numbers of drawn validation scans begin here, so that either split may grow.
_FIRST_HELD_OUT = 1_000_000
#: Memory that drawing a scan takes.
_PEAK_BYTES = 1500 * 2**20


@dataclass(frozen=True)
class _Drawing:
    """One scan to draw."""

    folder: Path
    number: int
    is_trunk: bool
    settings: HeatmapPreparationSettings

    @property
    def key(self) -> str:
        kind = f"{DRAWN}-trunk" if self.is_trunk else DRAWN
        return f"{kind}-{self.settings.seed}-{self.number:07d}"


def draw_cases(settings: HeatmapPreparationSettings, root: Path) -> None:
    """Draw what the settings ask for and is not there yet, in processes.

    Parameters
    ----------
    settings : HeatmapPreparationSettings
        Numbers of scans, seed, organs, workers.
    root : Path
        Folder of the spacing; it receives the cases in a folder a split.

    Raises
    ------
    ValueError
        If the organs cannot be read, or a process was killed.
    """
    waiting = [job for job in in_shard([*_drawings(settings, root)], settings.shard) if not _is_there(job)]
    places = {"workers": settings.workers, "scheduler": settings.scheduler}
    results = outcomes(_draw, waiting, **places, bytes_of=lambda _: _PEAK_BYTES)
    for job, result in tqdm(results, total=len(waiting), desc="drawn", unit="scan", disable=not waiting):
        if result is not None:
            raise ValueError(f"{job.folder / job.key}: expected to be drawn, found {result}.")


def _drawings(settings: HeatmapPreparationSettings, root: Path) -> Iterator[_Drawing]:
    for split, count, first in zip(PREPARED_SPLITS, settings.drawn, (0, _FIRST_HELD_OUT)):
        for number in range(first, first + count):
            yield _Drawing(root / split, number, False, settings)
    for number in range(settings.trunks if settings.organs else 0):
        yield _Drawing(root / PREPARED_SPLITS[0], number, True, settings)


def _is_there(job: _Drawing) -> bool:
    return (job.folder / f"{job.key}{SPINE}").is_file()


def _draw(job: _Drawing) -> None:
    settings = job.settings
    place = {"spacing_mm": settings.spacing_mm}
    if job.is_trunk:
        scan = draw_trunk_scan(_organs(settings.organs), settings.seed, job.number, **place)
    else:
        scan = draw_scan(settings.seed, job.number, **place)
    job.folder.mkdir(parents=True, exist_ok=True)
    write_spine_case(job.folder, job.key, Volume(scan.ct, scan.affine), spine_of_drawn(scan))


@lru_cache(maxsize=1)
def _organs(paths: tuple[Path, ...]) -> OrganMap:
    """Read the organs once a process."""
    return read_organ_map(*paths)
