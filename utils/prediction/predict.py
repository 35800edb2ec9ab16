"""A run of the inference: which scans, which networks, one case after the other.

The networks are loaded and compiled once (`utils.prediction.networks`). A scan that cannot be used is
reported in one line and does not stop the others.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from utils import execution
from utils.files import printable
from utils.imaging.formats import hu_doubt, mask_forms, read_scan, scan_bytes, scan_grid, too_flat
from utils.imaging.grids import is_turned, transform_points
from utils.imaging.intensities import normalise_hu
from utils.imaging.nifti_forms import HeaderForms
from utils.imaging.resampling import working_ct
from utils.imaging.shown import beyond_scan, filled_beyond, without_padding
from utils.imaging.volume import Volume
from utils.localisation.chain import Votes, find_column
from utils.localisation.identify import Identification, number_column
from utils.prediction import derivatives, quality
from utils.prediction.case import (
    ANATOMICAL,
    COUNT,
    CasePrediction,
    Numbering,
    native_vertebrae,
    number_vertebrae,
    numbering_of,
    vertebra_table,
)
from utils.prediction.case_facts import facts_of_labels, relabelled_quality, walk_remarks
from utils.prediction.corrections import corrected_scans
from utils.prediction.keys import tell_apart
from utils.prediction.levels import column_json, doubt_about, identify_counted, parse_fixed, relabel_case
from utils.prediction.networks import Networks, load_networks, model_directories, uses_starter
from utils.prediction.papers import scan_papers
from utils.prediction.provenance import files_to_mend, is_done, record_of, relabelled_record, scan_identity
from utils.prediction.quality import CaseQuality, Remark
from utils.prediction.report import write_scan_report
from utils.prediction.scans import Scan, find_scans
from utils.settings import InferenceSettings, WalkOptions, worker_count
from utils.walk.along import walk_along
from utils.walk.locate import locate_spine
from utils.walk.look import without_beyond
from utils.walk.published import walk_published
from utils.walk.records import WalkResult, WalkSettings

#: Peak memory of a scan: TensorFlow with networks of the preset `full` at work (`small` takes 1 GB less), and
#: a multiple of the scan in float32. int16 takes 1.1, float32 1.6 (benchmarks/bench_inference.py measures
#: the first); of float64 the numbers read and those kept are 3.
_NETWORK_BYTES, _PEAK_OF_NATIVE = 1800 * 2**20, 3
#: Errors of TensorFlow and of Python where memory runs out; by name, as TensorFlow is loaded late.
_OUT_OF_MEMORY = ("ResourceExhaustedError", "MemoryError")
#: A scan in memory, and the identity that its files had before they were read.
ReadScan = tuple[Volume, dict[str, Any]]
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
    except ValueError as error:
        raise CommandLineError(str(error)) from None
    is_fixed = bool(settings.fix) or settings.first_label is not None
    if settings.corrections is not None and (is_fixed or not settings.relabel):
        raise CommandLineError("expected --from with --relabel, and without --fix and --first-label.")


# Cases ---------------------------------------------------------------------------------------------


def walk_settings(settings: InferenceSettings, **of_networks: Any) -> WalkSettings:
    """Give how to walk: what the command line says, and what the networks fix (`Networks.walk`)."""
    names = [field.name for field in dataclasses.fields(WalkOptions)]
    return WalkSettings(**{name: getattr(settings, name) for name in names}, **of_networks)


def segment(ct: Volume, networks: Networks, settings: WalkSettings) -> tuple[WalkResult, Votes | None]:
    """Find the vertebrae of a scan.

    Parameters
    ----------
    ct : Volume
        The scan in Hounsfield units, on any grid.
    networks : Networks
        The trained networks.
    settings : WalkSettings
        How to walk.

    Returns
    -------
    found : WalkResult
        From the top down, on the working grid.
    votes : Votes or None
        What the networks say of their levels; None with a published heatmap network, which says nothing.
    """
    if not networks.finds_centres:
        working = working_ct(ct, networks.spacing_mm, outside=networks.outside)
        heat = locate_spine(working, networks.heat, shape=networks.heatmap_shape)
        return walk_published(_normalised(working), heat, networks.patch, settings=settings), None
    # Before it is resampled, so that the working grid of a padded scan is that of the scan.
    ct = without_padding(ct)
    coarse = working_ct(ct, networks.heatmap_mm, outside="air")
    working = working_ct(ct, networks.spacing_mm, outside="air")
    column = find_column(coarse, networks.heat, networks.labels, outside=networks.heatmap_outside)
    centres = transform_points(column.centres_mm, np.eye(4), working.affine)
    if is_turned(ct.grid) and networks.outside == "edge":
        # What lies beyond the scan is then within the working grid, and shown as it would be beyond it.
        beyond = beyond_scan(working)
        found = walk_along(
            _normalised(filled_beyond(working, beyond)), centres, networks.patch, settings=settings
        )
        found = without_beyond(found, beyond, settings.probability_threshold)
    else:
        found = walk_along(_normalised(working), centres, networks.patch, settings=settings)
    return found, column.votes(networks.temperature)


def _normalised(ct: Volume) -> Volume:
    return Volume(normalise_hu(ct.data), ct.affine)


def read_with_identity(scan: Scan, settings: InferenceSettings) -> ReadScan:
    """Read a scan; its files may change meanwhile, so their identity is taken before."""
    identity = scan_identity(scan)
    return _read_image(scan, settings, settings.assume_orientation), identity


def _read_image(scan: Scan, settings: InferenceSettings, assumed: str | None) -> Volume:
    most_bytes = settings.max_gigabytes * 2**30
    return read_scan(scan.path, scan.series, most_bytes=most_bytes, assumed=assumed)


def predict_case(
    scan: Scan,
    networks: Networks | None,
    settings: InferenceSettings,
    *,
    read: ReadScan | None = None,
) -> tuple[CasePrediction, str]:
    """Read, segment and number one scan.

    Parameters
    ----------
    scan : Scan
        The scan.
    networks : Networks, optional
        The networks that segment it; None for a scan that is too flat for a vertebra.
    settings : InferenceSettings
        How to segment and number.
    read : tuple of Volume and dict, optional
        From `read_with_identity`, if the scan has been read already.

    Returns
    -------
    prediction : CasePrediction
        What is to be written.
    warning : str
        What the user should know about it, or "".

    Raises
    ------
    ValueError
        If the scan cannot be used, or no sequence has the known levels; the text names its file.
    """
    started = time.perf_counter()
    ct, identity = read_with_identity(scan, settings) if read is None else read
    hu_text = hu_doubt(ct)  # at once, before there is more in memory than the scan
    forms = mask_forms(scan.path, scan.series)
    axes_text = _assumption(forms, settings)
    if networks is None:
        found, votes = WalkResult((), Volume(np.zeros(ct.shape, np.uint8), ct.affine)), None
    else:
        found, votes = segment(ct, networks, walk_settings(settings, **networks.walk))
    places = [vertebra.index for vertebra in found.vertebrae]
    identification = _identify(found, votes, settings) if networks else None
    vertebrae, column = found.vertebrae, ""
    if identification is None:
        numbering = number_vertebrae(len(vertebrae), settings.first_label)
        doubt = _warning(len(vertebrae), len(numbering.codes), settings.first_label)
    else:
        vertebrae = tuple(each for each, code in zip(vertebrae, identification.codes) if code)
        numbering, doubt = numbering_of(identification), doubt_about(identification)
        column = "" if votes is None else column_json(votes, places, identification.codes)
    native = native_vertebrae(vertebrae, found.labels.affine, ct.grid, codes=numbering.codes)
    table = vertebra_table(scan.key, ct, native, vertebrae, numbering=numbering)
    doubts = {quality.HU_DOUBT: hu_text, quality.ORIENTATION: axes_text}
    doubts[quality.LOW_PROBABILITY if identification else quality.OTHER] = doubt
    remarks = [Remark(kind, None, text) for kind, text in doubts.items() if text]
    names = [numbering.name(code) for code in numbering.codes]
    remarks += walk_remarks(dataclasses.replace(found, vertebrae=vertebrae), names)
    known = CaseQuality(
        scan.key,
        numbering.kind,
        **facts_of_labels(identification, settings.first_label),
        no_spine=not found.vertebrae,
        seconds=round(time.perf_counter() - started, 2),
        network_calls=found.calls,
        warnings=quality.case_remarks(table, remarks),
        papers=scan_papers(scan, ct, hu_doubt=hu_text, assumed=(axes_text,) if axes_text else ()),
    )
    prediction = CasePrediction(
        *(scan.key, ct, native.labels, numbering, tuple(table), record_of(identity, networks, settings)),
        quality=known,
        trace=found.trace if settings.trace else (),
        identification=identification,
        column=column,
        forms=forms,
    )
    nothing = ": ".join(filter(None, ("no vertebra found", too_flat(ct.grid))))
    doubts = (hu_text, axes_text, doubt if vertebrae else nothing)
    return prediction, "; ".join(filter(None, doubts))


def _assumption(forms: HeaderForms | None, settings: InferenceSettings) -> str:
    """Say that the user, and not the scan, told where the axes lead; "" where the scan does."""
    if forms is None or forms.states_orientation:
        return ""
    axes = settings.assume_orientation.upper()
    return f"its header does not say how its axes lie, so {axes} is assumed (--assume-orientation)"


def _identify(found: WalkResult, votes: Votes | None, settings: InferenceSettings) -> Identification | None:
    """Decide the levels of what was found; None where vertebrae are to be counted."""
    fixed = parse_fixed(settings.fix, settings.first_label)
    if votes is not None:
        return number_column(votes, places=[each.index for each in found.vertebrae], fixed=fixed)
    return identify_counted(len(found.vertebrae), fixed=fixed) if settings.fix else None


def _warning(found: int, labelled: int, first_label: str | None) -> str:
    if labelled < found:
        start = f"from {first_label} down" if first_label else "from 1 up"
        return f"{found} vertebrae found, but VerSe has {labelled} labels {start}; the lowest are left out"
    return ""


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
    if is_done(scan, networks, settings):
        finds_centres = networks is None or networks.finds_centres
        is_counted = not (finds_centres or settings.first_label or settings.fix)
        kind = Numbering((), COUNT if is_counted else ANATOMICAL)
        wanted = {"formats": settings.formats, "assumed": settings.assume_orientation}
        if settings.measure:
            wanted["measured"] = lambda: (
                _read_image(scan, settings, settings.assume_orientation),
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
    wanted = {"formats": settings.formats, "measures": settings.measure}
    derivatives.write_case(prediction, settings.output, **wanted)
    seconds = time.perf_counter() - started
    message = f"{scan.key}: {len(prediction.table)} vertebrae, {seconds:.1f} s"
    return _Outcome(message, f"warning: {scan.name}: {warning}." if warning else "")


def _relabel(scan: Scan, settings: InferenceSettings) -> _Outcome:
    """Change the labels of a finished case; all else of its record stays, so it counts as done with them."""
    record = relabelled_record(scan, settings)
    prediction = relabel_case(
        _read_image(scan, settings, record.get("assume_orientation")),
        settings.output,
        scan.key,
        fixed=parse_fixed(settings.fix, settings.first_label),
        settings=record,
    )
    path = derivatives.case_path(settings.output, scan.key, quality.QUALITY_SUFFIX)
    known = relabelled_quality(prediction, quality.read_quality(path))
    forms = mask_forms(scan.path, scan.series)
    prediction = dataclasses.replace(prediction, quality=known, forms=forms)
    # The walk was that of this mask.
    kept = (derivatives.TRACE_SUFFIX,)
    wanted = {"formats": settings.formats, "measures": settings.measure}
    derivatives.write_case(prediction, settings.output, **wanted, keep=kept)
    names = " ".join(prediction.numbering.name(code) for code in prediction.numbering.codes)
    doubt = doubt_about(prediction.identification)
    return _Outcome(f"{scan.key}: relabelled {names}", f"warning: {scan.name}: {doubt}." if doubt else "")


def _print_error(line: str) -> None:
    tqdm.write(printable(line), file=sys.stderr)
