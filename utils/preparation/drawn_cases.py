"""Scans that are drawn for the networks that find and name vertebrae, prepared beside those that are read.

The name of a drawn scan says all that it is made from: `drawn-<seed>-<number>`, or, for one drawn from the
organs of a real scan, `drawn-trunk-<hash of their files>-<seed>-<number>`. One that is there already stays as
long as the settings ask for it. Others are removed, as a training takes all that its folder holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from utils.execution import in_shard, outcomes
from utils.files import sha256_of
from utils.imaging.volume import Volume
from utils.preparation.prepared import DRAWN, PREPARED_SPLITS
from utils.preparation.spine_case import SPINE, spine_of_drawn, write_spine_case
from utils.settings import HeatmapPreparationSettings
from utils.synthetic.drawn import draw_scan
from utils.synthetic.organs import OrganMap, read_organ_map
from utils.synthetic.trunk import draw_trunk_scan

#: Numbers of drawn validation scans begin here, so that either split may grow.
_FIRST_HELD_OUT = 1_000_000
#: Digits that tell organs apart.
_DIGITS = 8
#: Memory that drawing a scan takes.
_PEAK_BYTES = 1500 * 2**20


@dataclass(frozen=True)
class _Drawing:
    """One scan to draw."""

    folder: Path
    kind: str
    number: int
    settings: HeatmapPreparationSettings

    @property
    def key(self) -> str:
        return f"{self.kind}-{self.settings.seed}-{self.number:07d}"


def draw_cases(settings: HeatmapPreparationSettings, root: Path) -> None:
    """Draw what the settings ask for and is not there yet, in processes; remove what they do not ask for.

    Parameters
    ----------
    settings : HeatmapPreparationSettings
        Numbers of scans, seed, organs, workers. With the target "spine" no scan is drawn.
    root : Path
        Folder of the spacing; it receives the cases in a folder a split.

    Raises
    ------
    ValueError
        If the organs cannot be read, or a process was killed.
    OSError
        If a file of the organs is not there.
    """
    if settings.organs:
        # The cluster's workers may stand in other folders.
        settings = dataclasses.replace(settings, organs=tuple(path.absolute() for path in settings.organs))
    asked = [*_drawings(settings, root)] if settings.target == "centres" else []
    _discard_others(root, asked)
    waiting = [job for job in in_shard(asked, settings.shard) if not _is_there(job)]
    places = {"workers": settings.workers, "scheduler": settings.scheduler}
    results = outcomes(_draw, waiting, **places, bytes_of=lambda _: _PEAK_BYTES)
    for job, result in tqdm(results, total=len(waiting), desc="drawn", unit="scan", disable=not waiting):
        if result is not None:
            raise ValueError(f"{job.folder / job.key}: expected to be drawn, found {result}.")


def _drawings(settings: HeatmapPreparationSettings, root: Path) -> Iterator[_Drawing]:
    for split, count, first in zip(PREPARED_SPLITS, settings.drawn, (0, _FIRST_HELD_OUT)):
        for number in range(first, first + count):
            yield _Drawing(root / split, DRAWN, number, settings)
    if settings.organs:
        hashes = "".join(map(sha256_of, settings.organs))
        kind = f"{DRAWN}-trunk-{hashlib.sha256(hashes.encode()).hexdigest()[:_DIGITS]}"
        for number in range(settings.trunks):
            yield _Drawing(root / PREPARED_SPLITS[0], kind, number, settings)


def _discard_others(root: Path, asked: Sequence[_Drawing]) -> None:
    """Remove drawn scans that are not asked for, and what killed runs left of them."""
    keys = {(job.folder, job.key) for job in asked}
    found = [path for split in PREPARED_SPLITS for path in _drawn_files(root / split)]
    others = [path for path in found if (path.parent, path.name.lstrip(".").partition("_")[0]) not in keys]
    for path in others:
        path.unlink(missing_ok=True)
    count = sum(path.name.endswith(SPINE) for path in others)
    if count:
        print(f"{root}: {count} drawn scans that are not asked for are removed.", flush=True)


def _drawn_files(folder: Path) -> list[Path]:
    """Give the files of drawn scans, temporary ones of a killed run among them."""
    return [path for start in (DRAWN, f".{DRAWN}") for path in folder.glob(f"{start}-*")]


def _is_there(job: _Drawing) -> bool:
    return (job.folder / f"{job.key}{SPINE}").is_file()


def _draw(job: _Drawing) -> None:
    settings = job.settings
    place = {"spacing_mm": settings.spacing_mm}
    if job.kind == DRAWN:
        scan = draw_scan(settings.seed, job.number, **place)
    else:
        scan = draw_trunk_scan(_organs(settings.organs), settings.seed, job.number, **place)
    job.folder.mkdir(parents=True, exist_ok=True)
    for part in job.folder.glob(f".{job.key}_*"):
        part.unlink(missing_ok=True)
    write_spine_case(job.folder, job.key, Volume(scan.ct, scan.affine), spine_of_drawn(scan))


@lru_cache(maxsize=1)
def _organs(paths: tuple[Path, ...]) -> OrganMap:
    """Read the organs once a process."""
    return read_organ_map(*paths)
