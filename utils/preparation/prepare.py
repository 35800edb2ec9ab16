"""Preparation of a data set for training: every case is resampled once, in processes or on a cluster.

Both stages work alike. They index the data set, leave out what is incomplete, prepare the cases that are
not prepared yet (see `utils.preparation.prepared`), and report the bad ones. What is done to a case stands in
`utils.preparation.working_case`. Prepared data of every spacing have a folder of their own. Several runs may
share it: each keeps to its shard of the cases, and the tables and settings they have in common come out the
same whoever writes them last.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils import execution
from utils import settings as stages
from utils.files import printable, read_table
from utils.imaging.nifti import native_bytes
from utils.preparation import prepared, working_case
from utils.preparation.drawn_cases import draw_cases
from utils.preparation.prepared import PREPARED_SPLITS, SIDECAR
from utils.preparation.spine_case import SPINE
from utils.preparation.working_case import CENTROIDS, CT, FINE_MASK, MASK, VERTEBRAE_FILE, write_table
from utils.settings import SETTINGS_FILE, load_settings, save_settings, settings_as_json
from utils.synthetic.phantom.record import PHANTOM_RECORD
from utils.verse.cases import OWN_SPLIT_FOLDER, Case, index_cases

#: Counted up when prepared files change their meaning, so that older ones are made again.
_PREPARATION = 3
#: Ends of the names of a case's prepared files, the sidecar apart, whatever the stage.
_SUFFIXES = (CT, MASK, FINE_MASK, CENTROIDS, SPINE, "_" + VERTEBRAE_FILE)
#: What serves every training: a folder that has it keeps it.
_KEPT = ("label_maps", "fine_masks")
#: Peak memory of a case as a multiple of its CT in float32 (benchmarks/bench_preprocessing.py measures it).
_PEAK_OF_NATIVE = 4


@dataclass(frozen=True)
class _Stage:
    """What sets one preparation apart from the other."""

    name: str
    decisive: tuple[str, ...]
    needed: Callable[[Case], tuple[str, ...]]
    sources: Callable[[Case], dict[str, Path | None]]
    write_case: Callable[[Case, stages.PreparationSettings, Path], str]

    def made_with(self, settings: stages.PreparationSettings) -> dict[str, Any]:
        """Give what decides about the content of the prepared files beside their sources."""
        values = settings_as_json(settings)
        # Named only where it is asked for: without it files are what they were before it could be.
        names = [*self.decisive, *(name for name in _KEPT if getattr(settings, name, False))]
        return {"preparation": _PREPARATION, **{name: values[name] for name in names}}


@dataclass(frozen=True)
class _Job:
    """One case, the folder that receives its files, and how to make them; picklable but for the stage."""

    case: Case
    folder: Path
    settings: stages.PreparationSettings

    @property
    def stage(self) -> _Stage:
        return _stage_of(self.settings)

    def output(self, suffix: str) -> Path:
        return self.folder / f"{self.case.key}{suffix}"

    @property
    def outputs(self) -> list[Path]:
        return [self.output(suffix) for suffix in _SUFFIXES]

    @property
    def sidecar(self) -> Path:
        return self.output(SIDECAR)

    @property
    def sources(self) -> dict[str, Path]:
        found = self.stage.sources(self.case)
        return {role: path for role, path in found.items() if path is not None}

    @property
    def main_source(self) -> Path:
        """The CT, or the mask of a case that has no CT."""
        return self.case.ct or self.case.mask

    @property
    def origin(self) -> str:
        """Whether the case lies in a folder of phantoms, and not among the user's own cases there."""
        top = self.settings.data_dir
        folders = [folder for folder in self.main_source.parents if folder.is_relative_to(top)]
        own = OWN_SPLIT_FOLDER.format(split=self.case.split)
        if any(folder.name == own for folder in folders):
            return prepared.SCAN
        is_phantom = any((folder / PHANTOM_RECORD).is_file() for folder in folders)
        return prepared.PHANTOM if is_phantom else prepared.SCAN

    @property
    def is_done(self) -> bool:
        """Whether all files are there, made with these settings from these sources."""
        return prepared.is_current(self.sidecar, self.stage.made_with(self.settings), self.sources)

    @property
    def peak_bytes(self) -> int:
        return _PEAK_OF_NATIVE * native_bytes(self.main_source)

    def discard(self) -> None:
        """Remove what stands there, and what a killed run left half-written."""
        for path in (self.sidecar, *self.outputs):
            path.unlink(missing_ok=True)
            for part in self.folder.glob(f".{path.name}.*.part*"):
                part.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Outcome:
    """What became of a job: a note, or the error that made it a bad case."""

    key: str
    seconds: float
    note: str = ""
    error: str = ""


def prepare_heatmap(settings: stages.HeatmapPreparationSettings) -> int:
    """Bring every CT of training and validation, and its vertebrae's centres, to the heatmap stage's grid.

    Writes `work_dir/heatmap/<spacing>/<split>/<key>_ct.nii` (int16 HU) and `settings.json` in the folder of
    the spacing. With the target "centres" the scan keeps its shape, what is known of its spine goes to
    `<key>_spine.json`, and `drawn-*` cases join (see `utils.preparation.drawn_cases`). With "spine" the scan
    is squeezed to `heatmap_shape`, and its points go to `<key>_ctd.json` (VerSe form, on that grid). A case
    without a centroid file gets its points from its mask. A folder holds data of one target: those of the
    other are removed, as those of other settings are.

    Parameters
    ----------
    settings : HeatmapPreparationSettings
        What to prepare, and how.

    Returns
    -------
    int
        Exit status: 0, or 1 if a case was bad (unless `skip_bad`) or nothing is there to train on.
    """
    return _prepare(settings)


def prepare_segmentation(settings: stages.SegmentationPreparationSettings) -> int:
    """Resample every CT and mask of training and validation to the working grid, cropped to the spine.

    Writes `work_dir/segmentation/<spacing>/<split>/<key>_ct.nii` (int16 HU, uncompressed, for memory maps),
    `<key>_msk.nii` (uint8 VerSe codes), `<key>_vertebrae.csv`, the table `vertebrae.csv` of the whole
    split, and `settings.json` in the folder of the spacing. With `label_maps`, training cases that have no
    CT get all but the first.

    Parameters
    ----------
    settings : SegmentationPreparationSettings
        What to prepare, and how.

    Returns
    -------
    int
        Exit status: 0, or 1 if a case was bad (unless `skip_bad`) or nothing is there to train on.
    """
    return _prepare(settings)


_HEATMAP = _Stage(
    name="heatmap",
    decisive=("spacing_mm", "heatmap_shape"),
    # Points are enough; a mask is only a way to get them.
    needed=lambda case: ("CT", "centroids") if case.mask is None else ("CT",),
    sources=lambda case: {
        "ct": case.ct,
        "centroids": case.centroids,
        "mask": case.mask if case.centroids is None else None,
    },
    write_case=working_case.write_heatmap_case,
)
_CENTRES = dataclasses.replace(
    _HEATMAP, decisive=("spacing_mm", "target"), write_case=working_case.write_centres_case
)
_SEGMENTATION = _Stage(
    name="segmentation",
    decisive=("spacing_mm", "margin_mm"),
    needed=lambda case: ("CT", "mask"),
    sources=lambda case: {"ct": case.ct, "mask": case.mask},
    write_case=working_case.write_segmentation_case,
)


def _stage_of(settings: stages.PreparationSettings) -> _Stage:
    if isinstance(settings, stages.SegmentationPreparationSettings):
        return _SEGMENTATION
    return _CENTRES if settings.target == "centres" else _HEATMAP


# A whole stage -------------------------------------------------------------------------------------


def _prepare(settings: stages.PreparationSettings) -> int:
    """Run a stage; what stops it as a whole (no data, a full disk) is one line and exit status 1."""
    try:
        return _run_stage(settings, _stage_of(settings))
    except (ValueError, OSError) as error:
        _print_error(f"error: {error}")
        return 1


def _run_stage(settings: stages.PreparationSettings, stage: _Stage) -> int:
    if settings.scheduler is not None:
        # The cluster's workers may stand in other folders.
        places = {name: getattr(settings, name).absolute() for name in ("data_dir", "work_dir")}
        settings = dataclasses.replace(settings, **places)
    root = prepared.spacing_folder(settings.work_dir, stage.name, settings.spacing_mm)
    settings = _with_what_is_there(settings, root)
    cases = index_cases(settings.data_dir)
    usable = _complete_cases(cases, settings, stage)
    _discard_outdated(root, settings, stage)
    _discard_moved(root, cases)
    # How a run was divided changes none of its results, so it is not kept with them.
    undivided = dataclasses.replace(settings, workers=0, scheduler=None, shard=None)
    save_settings(undivided, root, preparation=_PREPARATION)
    jobs = [_Job(case, root / case.split, settings) for case in usable]
    mine = execution.in_shard(jobs, settings.shard)
    waiting = [job for job in mine if not job.is_done]
    bad = _run_jobs(waiting, stage, settings)
    if isinstance(settings, stages.HeatmapPreparationSettings):
        draw_cases(settings, root)
    else:
        for split in PREPARED_SPLITS:
            _join_tables(root / split)
    return _conclude(jobs, waiting, bad, root)


def _with_what_is_there(settings: stages.PreparationSettings, root: Path) -> stages.PreparationSettings:
    """Go on with label maps and fine masks where a folder has them: they serve every training."""
    may_have = isinstance(settings, stages.SegmentationPreparationSettings)
    if not may_have or not (root / SETTINGS_FILE).is_file():
        return settings
    found = load_settings(root)
    kept = {name: getattr(settings, name) or bool(found.get(name)) for name in _KEPT}
    return dataclasses.replace(settings, **kept)


def _complete_cases(cases: Sequence[Case], settings: stages.PreparationSettings, stage: _Stage) -> list[Case]:
    """Give the cases of both splits that have what the stage needs; name what the others lack.

    With `label_maps` a mask is enough for training.
    """
    usable = []
    for case in cases:
        if case.split not in PREPARED_SPLITS:
            continue
        absent = [name for name in case.missing() if name in stage.needed(case)]
        if getattr(settings, "label_maps", False) and case.split == "training" and case.mask is not None:
            usable.append(case)
        elif absent:
            lacks = " and no ".join(absent)
            _print_error(f"warning: {case.key} ({case.split}) is left out, it has no {lacks}")
        else:
            usable.append(case)
    if not any(case.split == "training" for case in usable):
        splits = ", ".join(sorted({case.split or "no split" for case in cases}))
        raise ValueError(
            f"{settings.data_dir}: expected a complete training case, found none in {len(cases)} cases "
            f"({splits})."
        )
    return usable


def _discard_outdated(root: Path, settings: stages.PreparationSettings, stage: _Stage) -> None:
    """Remove what was prepared with other settings, so that no folder ever mixes two spacings."""
    wanted = stage.made_with(settings)
    outdated = [
        path
        for split in PREPARED_SPLITS
        for key, files in _prepared_files(root / split).items()
        if _is_outdated(root / split / f"{key}{SIDECAR}", wanted, alone=settings.shard is None)
        for path in files
    ]
    if outdated:
        print(f"{root}: prepared with other settings; all cases are prepared again.", flush=True)
        for split in PREPARED_SPLITS:
            (root / split / VERTEBRAE_FILE).unlink(missing_ok=True)
    for path in outdated:
        path.unlink(missing_ok=True)


def _is_outdated(sidecar: Path, wanted: dict[str, Any], *, alone: bool) -> bool:
    """Whether a case's files were made with other settings.

    Files without a sidecar are an older version's, or those of a run that was killed; but if this run is
    not alone another one may be at work on them.
    """
    found = prepared.read_sidecar(sidecar)
    return alone if found is None else found["made_with"] != wanted


def _prepared_files(folder: Path) -> dict[str, list[Path]]:
    """Give the prepared files of a folder by case, the sidecar last."""
    files: dict[str, list[Path]] = {}
    for suffix in (*_SUFFIXES, SIDECAR):
        for path in sorted(folder.glob(f"sub-*{suffix}")):
            files.setdefault(path.name.removesuffix(suffix), []).append(path)
    return files


def _discard_moved(root: Path, cases: Sequence[Case]) -> None:
    """Remove what was prepared of a case that has changed its split: it must not serve in both."""
    known = {case.key for case in cases}
    for split in PREPARED_SPLITS:
        here = {case.key for case in cases if case.split == split}
        for key in known - here:
            for suffix in (SIDECAR, *_SUFFIXES):
                (root / split / f"{key}{suffix}").unlink(missing_ok=True)


def _run_jobs(jobs: Sequence[_Job], stage: _Stage, settings: stages.PreparationSettings) -> list[_Outcome]:
    """Run all jobs, log a line for each, and give the bad ones."""
    bad = []
    places = {"workers": settings.workers, "scheduler": settings.scheduler}
    results = execution.outcomes(_attempt, jobs, **places, bytes_of=lambda job: job.peak_bytes)
    for job, result in tqdm(results, total=len(jobs), desc=stage.name, unit="case", disable=not jobs):
        outcome = result
        if isinstance(result, str):
            error = f"{job.main_source}: expected to be prepared, found {result}."
            outcome = _Outcome(job.case.key, 0.0, error=error)
        if outcome.error:
            bad.append(outcome)
            tqdm.write(printable(f"bad case {outcome.key}: {outcome.error}"), file=sys.stderr)
        else:
            line = f"{outcome.key}: {outcome.note}, {outcome.seconds:.1f} s"
            tqdm.write(printable(line), file=sys.stdout)
    return bad


def _attempt(job: _Job) -> _Outcome:
    """Prepare one case; whatever is wrong with it must not end the others."""
    started = time.perf_counter()
    note, error = "", ""
    # What stands there is outdated or half of a case; if this attempt fails nothing may be left to use.
    job.discard()
    try:
        sources = {role: prepared.identity(path) for role, path in job.sources.items()}
        note = job.stage.write_case(job.case, job.settings, job.folder)
        made_with = job.stage.made_with(job.settings)
        made = [path for path in job.outputs if path.is_file()]
        prepared.write_sidecar(job.sidecar, made_with, sources, made, origin=job.origin)
    except ValueError as problem:
        error = str(problem)
    except Exception as problem:
        error = f"{job.main_source}: {type(problem).__name__}: {problem}"
    if error:
        job.discard()
    return _Outcome(job.case.key, time.perf_counter() - started, note=note, error=error)


def _conclude(jobs: Sequence[_Job], waiting: Sequence[_Job], bad: Sequence[_Outcome], root: Path) -> int:
    ready = [job for job in jobs if job.sidecar.is_file()]
    counts = [f"{sum(job.case.split == split for job in ready)} {split}" for split in PREPARED_SPLITS]
    print(f"{root}: {' and '.join(counts)} cases ready, {len(waiting) - len(bad)} of them prepared now.")
    if bad:
        _print_error(f"error: {len(bad)} bad cases left out: {', '.join(outcome.key for outcome in bad)}")
    alone = jobs[0].settings.shard is None  # else another run may prepare the training cases
    if alone and not any(job.case.split == "training" for job in ready):
        _print_error("error: expected a case to train on, found none that could be prepared.")
        return 1
    return 1 if bad and not jobs[0].settings.skip_bad else 0


def _print_error(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


# Tables --------------------------------------------------------------------------------------------


def _join_tables(folder: Path) -> None:
    """Join the tables of a folder's whole cases; each case has its own so that a killed run loses none.

    Other runs may be at work on other cases. Whoever writes last has seen all tables: it looks again
    after writing.
    """
    if not folder.is_dir():
        return
    paths = None
    while paths != (found := _tables_of(folder)):
        paths = found
        rows = [row for path in paths for row in read_table(path, ())]
        write_table(folder / VERTEBRAE_FILE, rows)


def _tables_of(folder: Path) -> list[Path]:
    """Give the tables of the cases that have a sidecar."""
    tables = sorted(folder.glob("sub-*_" + VERTEBRAE_FILE))
    return [path for path in tables if (folder / path.name.replace("_" + VERTEBRAE_FILE, SIDECAR)).is_file()]
