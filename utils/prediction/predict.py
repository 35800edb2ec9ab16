"""A run of the inference: which scans, which are done already, one after the other or in several processes.

`utils.prediction.one_scan` segments each. The networks are loaded and compiled once
(`utils.prediction.networks`). A scan that cannot be used is reported in one line and does not stop the
others.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from utils import execution
from utils.files import printable
from utils.imaging.formats import mask_forms, scan_bytes, scan_grid, too_flat
from utils.prediction import derivatives
from utils.prediction.case import ANATOMICAL, COUNT, Numbering
from utils.prediction.corrections import corrected_scans
from utils.prediction.exports import check_formats, wanted_exports
from utils.prediction.keys import tell_apart
from utils.prediction.levels import doubt_about, parse_fixed
from utils.prediction.networks import Networks, load_networks, model_directories, uses_starter
from utils.prediction.one_scan import (
    ReadScan,
    predict_case,
    read_image,
    read_with_identity,
    relabelled_case,
)
from utils.prediction.provenance import files_to_mend, is_done
from utils.prediction.report import write_scan_report
from utils.prediction.scans import Scan, find_scans
from utils.settings import InferenceSettings, worker_count

#: Peak memory of a scan: TensorFlow with networks of the preset `full` at work (`small` takes 1 GB less), and
#: a multiple of the scan in float32. int16 takes 1.1, float32 1.6 (benchmarks/bench_inference.py measures
#: the first); of float64 the numbers read and those kept are 3.
_NETWORK_BYTES, _PEAK_OF_NATIVE = 1800 * 2**20, 3
#: Errors of TensorFlow and of Python where memory runs out; by name, as TensorFlow is loaded late.
_OUT_OF_MEMORY = ("ResourceExhaustedError", "MemoryError")
#: The first line where the user has trained nothing.
STARTER_NOTE = (
    "{models} holds no segmentation network: the starter weights are used "
    "(models/starter/README.md says how far to trust them; research only, no clinical use)."
)


class CommandLineError(ValueError):
    """A wrong command line: nothing has been run, exit status 2."""


def infer(settings: InferenceSettings) -> int:
    """Segment and number the vertebrae of scans.

    Writes a folder a subject under `output/derivatives`: mask, centroids, table, snapshot and settings.
    A case whose files were made from the same scan with the same settings and networks is not done again.

    Parameters
    ----------
    settings : InferenceSettings
        What to segment, with which networks.

    Returns
    -------
    int
        Exit status: 0, 1 if a scan was bad (unless `skip_bad`) or a network is missing, 2 for a wrong
        command line.
    """
    try:
        if settings.scheduler is not None:
            settings = _with_absolute_paths(settings)
        _check_command_line(settings)
        found = find_scans(settings.inputs)
        scans, shared_names = tell_apart(found.scans, settings.output, only_own=settings.relabel)
        corrected = corrected_scans(scans, settings)
        bad = [*found.bad, *corrected.bad]
        for line in (*found.skipped, *shared_names, *(f"bad scan: {line}" for line in bad)):
            _print_error(line)
        failed = _run(corrected.scans, settings) if scans else False
        failed = failed or bool(bad)
        if settings.report:
            print(f"{write_scan_report(settings.output)}: open it in a browser.", flush=True)
    except (ValueError, OSError) as error:
        _print_error(f"error: {error}")
        return 2 if isinstance(error, CommandLineError) else 1
    return 1 if failed and not settings.skip_bad else 0


def _with_absolute_paths(settings: InferenceSettings) -> InferenceSettings:
    """The workers of a cluster may stand in other folders."""
    names = ("work_dir", "output", "segmentation", "heatmap", "labelling")
    places = {name: getattr(settings, name) for name in names}
    absolute = {name: place.absolute() for name, place in places.items() if place is not None}
    inputs = tuple(path.absolute() for path in settings.inputs)
    return dataclasses.replace(settings, **absolute, inputs=inputs)


def _check_command_line(settings: InferenceSettings) -> None:
    if not settings.inputs:
        raise CommandLineError("expected at least one scan or folder, received none (see --help).")
    try:
        parse_fixed(settings.fix, settings.first_label)
        check_formats(settings.formats)
    except ValueError as error:
        raise CommandLineError(str(error)) from None
    is_fixed = bool(settings.fix) or settings.first_label is not None
    if settings.corrections is not None and (is_fixed or not settings.relabel):
        raise CommandLineError("expected --from with --relabel, and without --fix and --first-label.")


@dataclass(frozen=True)
class _Job:
    """One scan, and how to segment it; picklable."""

    scan: Scan
    settings: InferenceSettings

    @property
    def peak_bytes(self) -> int:
        return _NETWORK_BYTES + _PEAK_OF_NATIVE * scan_bytes(self.scan.path, self.scan.series)

    @functools.cached_property
    def is_flat(self) -> bool:
        """Whether no network need look at the scan; a header that cannot be read says nothing of it."""
        assumed = self.settings.assume_orientation
        try:
            return bool(too_flat(scan_grid(self.scan.path, self.scan.series, assumed=assumed)))
        except ValueError:
            return False

    def networks(self) -> Networks | None:
        """Give the networks of this process; None for a scan that needs none."""
        return None if self.is_flat else _networks_of_process(self.settings)


@dataclass(frozen=True)
class _Outcome:
    """What became of a scan: a message about it, a warning, or the error that made it a bad one."""

    message: str = ""
    warning: str = ""
    error: str = ""


def _run(scans: Sequence[tuple[Scan, InferenceSettings]], settings: InferenceSettings) -> bool:
    """Run all scans, each with its settings; tells whether one was bad."""
    if uses_starter(settings) and not settings.relabel:
        print(STARTER_NOTE.format(models=settings.work_dir / "models"), flush=True)
    jobs = [_Job(scan, own) for scan, own in execution.in_shard(scans, settings.shard)]
    if settings.relabel or all(job.is_flat for job in jobs):
        pass  # labels are decided anew from what is written beside the predictions, or there are none
    elif not _is_divided(settings):
        _networks_of_process(settings)
    else:
        model_directories(settings)  # a network that is not there ends the run before any scan
    bad = 0
    for outcome in tqdm(_outcomes(jobs, settings), total=len(jobs), desc="infer", unit="scan"):
        if outcome.message:
            tqdm.write(printable(outcome.message))
        for line in filter(None, (outcome.warning, outcome.error)):
            _print_error(line)
        bad += bool(outcome.error)
    print(f"{settings.output}: {len(jobs) - bad} of {len(jobs)} scans predicted.", flush=True)
    return bad > 0


def _is_divided(settings: InferenceSettings) -> bool:
    """Whether other processes do the work; this one then leaves GPU and networks to them."""
    return settings.scheduler is not None or worker_count(settings.workers) > 1


def _outcomes(jobs: Sequence[_Job], settings: InferenceSettings) -> Iterator[_Outcome]:
    if not _is_divided(settings):
        # In the order of the command line, the next scan being read while one is predicted.
        for job, read in execution.one_ahead(_read, jobs, may_begin=_fit_together):
            yield _attempt(job, read)
        return
    places = {"workers": settings.workers, "scheduler": settings.scheduler}
    for job, result in execution.outcomes(_attempt, jobs, **places, bytes_of=lambda job: job.peak_bytes):
        killed = isinstance(result, str)
        yield _bad(job.scan, f"expected to be segmented, found {result}") if killed else result


def _read(job: _Job) -> ReadScan | None:
    """Read a scan; None if it is done or only its labels are to change, and it is not needed yet."""
    if job.settings.relabel or is_done(job.scan, job.networks(), job.settings):
        return None
    return read_with_identity(job.scan, job.settings)


def _fit_together(current: _Job, following: _Job) -> bool:
    """Whether the memory holds the prediction of a scan and the next scan beside it."""
    needed = current.peak_bytes + scan_bytes(following.scan.path, following.scan.series)
    return needed <= execution.free_memory_bytes()


def _attempt(job: _Job, read: Callable[[], ReadScan | None] = lambda: None) -> _Outcome:
    """Do one scan; whatever is wrong with it must not end the others."""
    scan = job.scan
    try:
        if job.settings.relabel:
            return _relabel(scan, job.settings)
        return _do_case(scan, job.networks(), job.settings, read=read())
    except (ValueError, OSError) as error:
        return _bad(scan, str(error))
    except Exception as error:
        if type(error).__name__ in _OUT_OF_MEMORY:
            return _bad(
                scan, "expected it to fit into memory, found that used up; try --device cpu --workers 1"
            )
        first_line = (str(error).splitlines() or [""])[0]
        return _bad(scan, f"{type(error).__name__}: {first_line}")


def _bad(scan: Scan, error: str) -> _Outcome:
    names_scan = str(scan.path) in error
    return _Outcome(error=f"bad scan: {error}" if names_scan else f"bad scan: {scan.name}: {error}")


@functools.lru_cache(maxsize=1)
def _networks_of_process(settings: InferenceSettings) -> Networks:
    """Choose the device and load the networks, once a process."""
    from utils.learning.runtime import choose_device

    choose_device(settings.device)
    return load_networks(settings)


def _do_case(
    scan: Scan, networks: Networks | None, settings: InferenceSettings, *, read: ReadScan | None = None
) -> _Outcome:
    exports = wanted_exports(settings.formats, scan.path, scan.series)
    if is_done(scan, networks, settings):
        finds_centres = networks is None or networks.finds_centres
        is_counted = not (finds_centres or settings.first_label or settings.fix)
        kind = Numbering((), COUNT if is_counted else ANATOMICAL)
        wanted = {"exports": exports, "assumed": settings.assume_orientation}
        if settings.measure:
            wanted["measured"] = lambda: (
                read_image(scan, settings, settings.assume_orientation),
                mask_forms(scan.path, scan.series),
            )
        written = derivatives.complete_case(settings.output, scan.key, kind, **wanted)
        added = f", now also as {', '.join(written)}" if written else ""
        return _Outcome(f"{scan.key}: already predicted{added}")
    started = time.perf_counter()
    changed = files_to_mend(scan, networks, settings)
    prediction, warning = predict_case(scan, networks, settings, read=read)
    if changed:
        again = f"done again, as {', '.join(changed)} did not hold what was written"
        warning = "; ".join(filter(None, (again, warning)))
    wanted = {"exports": exports, "measures": settings.measure}
    derivatives.write_case(prediction, settings.output, **wanted)
    seconds = time.perf_counter() - started
    message = f"{scan.key}: {len(prediction.table)} vertebrae, {seconds:.1f} s"
    return _Outcome(message, f"warning: {scan.name}: {warning}." if warning else "")


def _relabel(scan: Scan, settings: InferenceSettings) -> _Outcome:
    """Change the labels of a finished case, in all forms in which it was written."""
    formats, is_measured = derivatives.forms_of_case(settings.output, scan.key)
    exports = wanted_exports((*settings.formats, *formats), scan.path, scan.series)
    prediction = relabelled_case(scan, settings)
    # The walk was that of this mask.
    kept = (derivatives.TRACE_SUFFIX,)
    wanted = {"exports": exports, "measures": settings.measure or is_measured}
    derivatives.write_case(prediction, settings.output, **wanted, keep=kept)
    names = " ".join(prediction.numbering.name(code) for code in prediction.numbering.codes)
    doubt = doubt_about(prediction.identification)
    return _Outcome(f"{scan.key}: relabelled {names}", f"warning: {scan.name}: {doubt}." if doubt else "")


def _print_error(line: str) -> None:
    tqdm.write(printable(line), file=sys.stderr)
