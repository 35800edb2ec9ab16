"""Preparation of a data set for training: every case is resampled once, in parallel processes.

Both stages work alike. They index the data set, leave out what is incomplete, prepare the cases that
are not prepared yet, and report the bad ones. A case is prepared when all its files are there, newer
than its sources, and made with the settings that `settings.json` beside them holds.
"""

from __future__ import annotations

import csv
import functools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from utils.files import written_whole
from utils.imaging.centroids import Centroids, centroids_of_mask, read_centroids, write_centroids
from utils.imaging.volume import (
    Volume,
    heatmap_ct,
    read_ct,
    read_pair,
    resample_labels,
    working_ct,
    write_volume,
)
from utils.settings import (
    HeatmapPreparationSettings,
    SegmentationPreparationSettings,
    load_settings,
    save_settings,
    settings_as_json,
    worker_count,
)
from utils.verse.cases import Case, index_cases
from utils.verse.labels import rank_of_code

PREPARED_SPLITS = ("training", "validation")
VERTEBRAE_FILE = "vertebrae.csv"
VERTEBRA_COLUMNS = (
    *("case", "label", "rank"),
    *("centre_p", "centre_r", "centre_i"),
    *("begin_p", "begin_r", "begin_i"),
    *("end_p", "end_r", "end_i"),
    *("voxels", "touches_border"),
)

#: Counted up when prepared files change their meaning, so that older ones are made again.
_PREPARATION = 1

PreparationSettings = HeatmapPreparationSettings | SegmentationPreparationSettings


@dataclass(frozen=True)
class _Job:
    """One case, the folder that receives its files, and how to make them."""

    case: Case
    folder: Path
    settings: PreparationSettings
    suffixes: tuple[str, ...]

    def output(self, suffix: str) -> Path:
        return self.folder / f"{self.case.key}{suffix}"

    @property
    def outputs(self) -> list[Path]:
        return [self.output(suffix) for suffix in self.suffixes]

    @property
    def sources(self) -> list[Path]:
        return [path for path in (self.case.ct, self.case.mask, self.case.centroids) if path is not None]

    @property
    def is_there(self) -> bool:
        """Whether all files are there."""
        return all(path.is_file() for path in self.outputs)

    @property
    def is_done(self) -> bool:
        """Whether all files are there, and newer than what they were made from."""
        return self.is_there and min(map(_modified, self.outputs)) >= max(map(_modified, self.sources))

    def discard(self) -> None:
        for path in self.outputs:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Outcome:
    """What became of a job: a note, or the error that made it a bad case."""

    key: str
    seconds: float
    note: str = ""
    error: str = ""


@dataclass(frozen=True)
class _Stage:
    """What sets one preparation apart from the other."""

    name: str
    suffixes: tuple[str, ...]
    decisive: tuple[str, ...]
    missing: Callable[[Case], list[str]]
    work: Callable[[_Job], str]


def prepare_heatmap(settings: HeatmapPreparationSettings) -> int:
    """Bring every CT of training and validation, and its centroids, to the heatmap network's grid.

    Writes `work_dir/heatmap/<split>/<key>_ct.nii` (int16 HU), `<key>_ctd.json` (VerSe form, on that
    grid) and `work_dir/heatmap/settings.json`. A case without a centroid file gets its points from its
    mask; its file says so.

    Parameters
    ----------
    settings : HeatmapPreparationSettings
        What to prepare, and how.

    Returns
    -------
    int
        Exit status: 0, or 1 if a case was bad (unless `skip_bad`) or nothing is there to train on.
    """
    return _prepare(settings, _HEATMAP)


def prepare_segmentation(settings: SegmentationPreparationSettings) -> int:
    """Resample every CT and mask of training and validation to the working grid.

    Writes `work_dir/segmentation/<split>/<key>_ct.nii` (int16 HU, uncompressed, for memory maps),
    `<key>_msk.nii` (uint8 VerSe codes), `<key>_vertebrae.csv`, the table `vertebrae.csv` of the whole
    split, and `work_dir/segmentation/settings.json`.

    Parameters
    ----------
    settings : SegmentationPreparationSettings
        What to prepare, and how.

    Returns
    -------
    int
        Exit status: 0, or 1 if a case was bad (unless `skip_bad`) or nothing is there to train on.
    """
    return _prepare(settings, _SEGMENTATION)


def vertebra_table(key: str, labels: Volume, *, at_border: set[int]) -> list[dict[str, object]]:
    """Describe every vertebra of a working mask, from the top of the spine down.

    Parameters
    ----------
    key : str
        The case.
    labels : Volume of uint8
        VerSe codes on the working grid.
    at_border : set of int
        Labels that touch the border of the scan (`labels_at_border` of the native mask).

    Returns
    -------
    list of dict
        `VERTEBRA_COLUMNS`: centre of mass and bounding box in voxels of the working grid, end
        exclusive; `touches_border` is 0 or 1.
    """
    boxes = {index + 1: box for index, box in enumerate(ndimage.find_objects(labels.data)) if box is not None}
    return [
        _vertebra_row(key, code, labels.data[boxes[code]] == code, boxes[code], touches=code in at_border)
        for code in sorted(boxes, key=rank_of_code)
    ]


def labels_at_border(mask: Volume) -> set[int]:
    """Give the labels that have a voxel on one of the six faces of a volume."""
    faces = [mask.data.take(index, axis) for axis in range(3) for index in (0, -1)]
    return {int(code) for face in faces for code in np.unique(face)} - {0}


# One case ------------------------------------------------------------------------------------------


def _heatmap_case(job: _Job) -> str:
    """Prepare one case for the heatmap network; gives a note for the log."""
    ct, centroids, source = _ct_and_centroids(job.case)
    small = heatmap_ct(working_ct(ct, job.settings.spacing_mm), job.settings.heatmap_shape)
    write_volume(job.output("_ct.nii"), _as_int16(small))
    write_centroids(job.output("_ctd.json"), centroids, small.grid, source=source)
    derived = ", centroids derived from the mask" if source else ""
    return f"{len(centroids.codes)} vertebrae{derived}"


def _ct_and_centroids(case: Case) -> tuple[Volume, Centroids, str | None]:
    if case.centroids is None:
        ct, mask = read_pair(case.ct, case.mask)
        centroids, source = centroids_of_mask(mask), "mask"
    else:
        ct = read_ct(case.ct)
        centroids, source = read_centroids(case.centroids, ct.grid), None
    if len(centroids.codes) == 0:
        raise ValueError(f"{case.centroids or case.mask}: expected at least one vertebra, found none.")
    return ct, centroids, source


def _segmentation_case(job: _Job) -> str:
    """Prepare one case for the segmentation network; gives a note for the log."""
    ct, mask = read_pair(job.case.ct, job.case.mask)
    if not mask.data.any():
        raise ValueError(f"{job.case.mask}: expected at least one vertebra, found none.")
    working = _as_int16(working_ct(ct, job.settings.spacing_mm))
    labels = resample_labels(mask, working.grid)
    table = vertebra_table(job.case.key, labels, at_border=labels_at_border(mask))
    write_volume(job.output("_ct.nii"), working)
    write_volume(job.output("_msk.nii"), labels)
    _write_table(job.output("_" + VERTEBRAE_FILE), table)
    return f"{len(table)} vertebrae, {' x '.join(map(str, working.shape))} voxels"


def _as_int16(ct: Volume) -> Volume:
    return Volume(np.rint(ct.data).astype(np.int16), ct.affine)


def _vertebra_row(
    key: str, code: int, vertebra: np.ndarray, box: tuple[slice, ...], *, touches: bool
) -> dict[str, object]:
    centre = np.add(ndimage.center_of_mass(vertebra), [side.start for side in box])
    values = (
        *(key, code, rank_of_code(code)),
        *(f"{position:.3f}" for position in centre),
        *(side.start for side in box),
        *(side.stop for side in box),
        *(int(np.count_nonzero(vertebra)), int(touches)),
    )
    return dict(zip(VERTEBRA_COLUMNS, values, strict=True))


_HEATMAP = _Stage(
    name="heatmap",
    suffixes=("_ct.nii", "_ctd.json"),
    decisive=("spacing_mm", "heatmap_shape"),
    # Points are enough; a mask is only a way to get them.
    missing=lambda case: [
        *(["CT"] if case.ct is None else []),
        *(["centroids"] if case.centroids is None and case.mask is None else []),
    ],
    work=_heatmap_case,
)
_SEGMENTATION = _Stage(
    name="segmentation",
    suffixes=("_ct.nii", "_msk.nii", "_" + VERTEBRAE_FILE),
    decisive=("spacing_mm",),
    missing=lambda case: [
        *(["CT"] if case.ct is None else []),
        *(["mask"] if case.mask is None else []),
    ],
    work=_segmentation_case,
)


# A whole stage -------------------------------------------------------------------------------------


def _prepare(settings: PreparationSettings, stage: _Stage) -> int:
    """Run a stage; what stops it as a whole (no data, a full disk) is one line and exit status 1."""
    try:
        return _run_stage(settings, stage)
    except (ValueError, OSError) as error:
        _complain(f"error: {error}")
        return 1


def _run_stage(settings: PreparationSettings, stage: _Stage) -> int:
    root = settings.work_dir / stage.name
    cases = index_cases(settings.data_dir)
    usable = _complete_cases(cases, settings.data_dir, stage)
    workers = worker_count(settings.workers)
    _discard_outdated(root, settings, stage)
    _discard_moved(root, cases, stage)
    save_settings(settings, root, preparation=_PREPARATION)
    jobs = [_Job(case, root / case.split, settings, stage.suffixes) for case in usable]
    waiting = [job for job in jobs if not job.is_done]
    bad = _run_jobs(waiting, stage, workers)
    if "_" + VERTEBRAE_FILE in stage.suffixes:
        for split in PREPARED_SPLITS:
            _join_tables(root / split)
    return _conclude(jobs, waiting, bad, root)


def _complete_cases(cases: Sequence[Case], data_dir: Path, stage: _Stage) -> list[Case]:
    """Give the cases of both splits that have what the stage needs; name what the others lack."""
    usable = []
    for case in cases:
        if case.split not in PREPARED_SPLITS:
            continue
        absent = stage.missing(case)
        if absent:
            _complain(f"warning: {case.key} ({case.split}) is left out, it has no {' and no '.join(absent)}")
        else:
            usable.append(case)
    if not any(case.split == "training" for case in usable):
        splits = ", ".join(sorted({case.split or "no split" for case in cases}))
        raise ValueError(
            f"{data_dir}: expected a complete training case, found none in {len(cases)} cases ({splits})."
        )
    return usable


def _discard_outdated(root: Path, settings: PreparationSettings, stage: _Stage) -> None:
    """Remove what was prepared with other settings, so that no folder ever mixes two spacings."""
    wanted = {**settings_as_json(settings), "preparation": _PREPARATION}
    try:
        found = load_settings(root)
    except ValueError:
        found = {}
    if all(found.get(name) == wanted[name] for name in (*stage.decisive, "preparation")):
        return
    outdated = [path for split in PREPARED_SPLITS for path in _prepared_files(root / split, stage)]
    if outdated:
        print(f"{root}: prepared with other settings; all cases are prepared again.")
    for path in outdated:
        path.unlink()


def _discard_moved(root: Path, cases: Sequence[Case], stage: _Stage) -> None:
    """Remove what was prepared of a case that has changed its split: it must not serve in both."""
    known = {case.key for case in cases}
    for split in PREPARED_SPLITS:
        here = {case.key for case in cases if case.split == split}
        for key in known - here:
            for suffix in stage.suffixes:
                (root / split / f"{key}{suffix}").unlink(missing_ok=True)


def _prepared_files(folder: Path, stage: _Stage) -> Iterator[Path]:
    if folder.is_dir():
        names = (*stage.suffixes, VERTEBRAE_FILE, ".part", ".part.nii")
        yield from (path for path in sorted(folder.iterdir()) if path.name.endswith(names))


def _run_jobs(jobs: Sequence[_Job], stage: _Stage, workers: int) -> list[_Outcome]:
    """Run all jobs, log a line for each, and give the bad ones."""
    bad = []
    with tqdm(total=len(jobs), desc=stage.name, unit="case", disable=not jobs) as bar:
        for outcome in _outcomes(jobs, functools.partial(_attempt, stage.work), workers):
            if outcome.error:
                bad.append(outcome)
                tqdm.write(f"bad case {outcome.key}: {outcome.error}", file=sys.stderr)
            else:
                tqdm.write(f"{outcome.key}: {outcome.note}, {outcome.seconds:.1f} s", file=sys.stdout)
            bar.update()
    return bad


def _outcomes(jobs: Sequence[_Job], attempt: Callable[[_Job], _Outcome], workers: int) -> Iterator[_Outcome]:
    if workers == 1 or len(jobs) < 2:
        yield from map(attempt, jobs)
        return
    # Spawned, not forked: a child starts clean whatever threads the parent runs.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context)
    try:
        waiting = {pool.submit(attempt, job): job for job in jobs}
        for future in as_completed(waiting):
            yield _result(future, waiting[future])
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future: Future[_Outcome], job: _Job) -> _Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        found = "a process that was killed (out of memory? rerun with --workers 1)"
        return _Outcome(job.case.key, 0.0, error=f"{job.case.ct}: expected to be prepared, found {found}.")


def _attempt(work: Callable[[_Job], str], job: _Job) -> _Outcome:
    """Prepare one case; whatever is wrong with it must not end the others."""
    started = time.perf_counter()
    note, error = "", ""
    # What stands there is outdated or half of a case; if this attempt fails nothing may be left to use.
    job.discard()
    try:
        note = work(job)
    except ValueError as problem:
        error = str(problem)
    except Exception as problem:
        error = f"{job.case.ct}: {type(problem).__name__}: {problem}"
    if error:
        job.discard()
    return _Outcome(job.case.key, time.perf_counter() - started, note=note, error=error)


def _conclude(jobs: Sequence[_Job], waiting: Sequence[_Job], bad: Sequence[_Outcome], root: Path) -> int:
    ready = [job for job in jobs if job.is_there]
    counts = [f"{sum(job.case.split == split for job in ready)} {split}" for split in PREPARED_SPLITS]
    print(f"{root}: {' and '.join(counts)} cases ready, {len(waiting) - len(bad)} of them prepared now.")
    if bad:
        _complain(f"error: {len(bad)} bad cases left out: {', '.join(outcome.key for outcome in bad)}")
    if not any(job.case.split == "training" for job in ready):
        _complain("error: expected a case to train on, found none that could be prepared.")
        return 1
    return 1 if bad and not jobs[0].settings.skip_bad else 0


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# Tables --------------------------------------------------------------------------------------------


def _write_table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    with written_whole(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, VERTEBRA_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _join_tables(folder: Path) -> None:
    """Join the tables of a folder's cases; each case has its own so that a killed run loses none."""
    if not folder.is_dir():
        return
    rows: list[dict[str, object]] = []
    for path in sorted(folder.glob("sub-*_" + VERTEBRAE_FILE)):
        with path.open(newline="") as stream:
            rows.extend(csv.DictReader(stream))
    _write_table(folder / VERTEBRAE_FILE, rows)
