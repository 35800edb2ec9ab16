"""A run of the inference: which scans, which networks, one case after the other.

The networks are loaded and compiled once. A scan that cannot be used is reported in one line and does
not stop the others. TensorFlow is imported only when a network is needed, so a wrong command line is
answered at once.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from utils import execution
from utils.imaging.formats import hu_doubt, read_scan, scan_bytes
from utils.imaging.volume import Volume, normalise_hu, working_ct
from utils.prediction.case_facts import facts_of_labels, relabelled_quality, walk_remarks
from utils.prediction.derivatives import (
    ANATOMICAL,
    CasePrediction,
    Numbering,
    case_path,
    complete_case,
    from_the_top_down,
    native_vertebrae,
    number_vertebrae,
    read_case_settings,
    vertebra_table,
    write_case,
)
from utils.prediction.identify import Identification, parse_fixed
from utils.prediction.levels import (
    Levels,
    doubt_about,
    identify_vertebrae,
    labels_of_walk,
    load_levels,
    numbering_of,
    relabel_case,
)
from utils.prediction.locate import PredictHeat, locate_spine
from utils.prediction.quality import (
    HU_DOUBT,
    LOW_PROBABILITY,
    OTHER,
    QUALITY_SUFFIX,
    CaseQuality,
    Remark,
    case_remarks,
    read_quality,
)
from utils.prediction.report import write_report
from utils.prediction.scans import Scan, find_scans, scan_identity
from utils.prediction.traverse import PredictPatch, WalkResult, WalkSettings, walk
from utils.settings import InferenceSettings, settings_as_json, worker_count

if TYPE_CHECKING:
    import keras

#: Networks that are shipped with the code: the last place that is looked at.
STARTER_DIR = Path(__file__).resolve().parents[2] / "models" / "starter"
#: Settings that change nothing in what a case's files hold.
_INDIFFERENT = (
    *("inputs", "output", "work_dir", "model", "heatmap_model", "labelling_model", "relabel"),
    *("formats", "workers", "scheduler", "shard", "seed", "device", "skip_bad", "report"),
)
#: Peak memory of a scan: TensorFlow with networks of the preset `full` at work (`small` takes 1 GB less), and
#: a multiple of the scan in float32. int16 takes 1.1, float32 1.6 (benchmarks/bench_inference.py measures
#: the first); of float64 the numbers read and those kept are 3.
_NETWORK_BYTES, _PEAK_OF_NATIVE = 1800 * 2**20, 3
#: Counted up when predictions change their meaning, so that older ones are made again.
_INFERENCE = 2


class CommandLineError(ValueError):
    """A wrong command line: nothing has been run, exit status 2."""


@dataclass(frozen=True, eq=False)
class Networks:
    """The two trained networks as functions on arrays, and the settings they were trained with.

    Attributes
    ----------
    heat : callable
        From the whole CT on the heatmap grid to the heat.
    patch : callable
        From the CT and the memory of a patch to the probability of the next vertebra.
    heatmap_shape : tuple of int, 3
        Shape of the heatmap grid.
    patch_voxels : int
        Edge of the patch.
    spacing_mm : float
        Spacing of the working grid.
    preset : str
        Preset of the segmentation network.
    origin : dict
        Which files the networks come from; a case that was made with others is made again.
    """

    heat: PredictHeat
    patch: PredictPatch
    heatmap_shape: tuple[int, int, int]
    patch_voxels: int
    spacing_mm: float
    preset: str
    origin: dict[str, Any]

    @property
    def walk(self) -> dict[str, Any]:
        """What the networks fix of a walk; `paper` walks as published and ends at an absolute heat."""
        is_published = self.preset == "paper"
        end_rule = "absolute" if is_published else "relative"
        fixed = {"patch_voxels": self.patch_voxels, "spacing_mm": self.spacing_mm}
        return {**fixed, "end_rule": end_rule, "robust": not is_published}


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
        found = find_scans(settings.inputs)
        _check_command_line(found.scans, settings)
        for line in (*found.skipped, *(f"bad scan: {line}" for line in found.bad)):
            _complain(line)
        failed = _run(found.scans, settings) if found.scans else False
        failed = failed or bool(found.bad)
        if settings.report:
            print(f"{write_report(settings.output)}: open it in a browser.", flush=True)
    except CommandLineError as error:
        _complain(f"error: {error}")
        return 2
    except ValueError as error:
        _complain(f"error: {error}")
        return 1
    return 1 if failed and not settings.skip_bad else 0


def _with_absolute_paths(settings: InferenceSettings) -> InferenceSettings:
    """The workers of a cluster may stand in other folders."""
    names = ("work_dir", "output", "model", "heatmap_model", "labelling_model")
    places = {name: getattr(settings, name) for name in names}
    absolute = {name: place.absolute() for name, place in places.items() if place is not None}
    inputs = tuple(path.absolute() for path in settings.inputs)
    return dataclasses.replace(settings, **absolute, inputs=inputs)


def _check_command_line(scans: Sequence[Scan], settings: InferenceSettings) -> None:
    if not settings.inputs:
        raise CommandLineError("expected at least one scan or folder, received none (see --help).")
    try:
        number_vertebrae(0, settings.first_label)
        parse_fixed(settings.fix, settings.first_label)
        walk_settings(settings)
    except ValueError as error:
        raise CommandLineError(str(error)) from None
    by_key: dict[str, Scan] = {}
    for scan in scans:
        other = by_key.setdefault(scan.key, scan)
        if other is not scan:
            raise CommandLineError(
                f"expected inputs of different names, found {other.path} and {scan.path}, "
                f"which would both be written as {scan.key}."
            )


# Networks ------------------------------------------------------------------------------------------


def load_networks(settings: InferenceSettings) -> Networks:
    """Load and compile the two networks, batch normalisation folded into the convolutions before it.

    Parameters
    ----------
    settings : InferenceSettings
        `model` and `heatmap_model` name their directories. By default the segmentation network is that
        of the work folder, else the one shipped with the code; the heatmap network is the one beside
        it, else that of the work folder, else the one shipped.

    Returns
    -------
    Networks
        Ready to be called.

    Raises
    ------
    ValueError
        If a network is not there, is of another kind, or if the two were trained at different spacings.
        The text names the directories.
    """
    from ML_3D_Unet.utils.folding import without_norms
    from utils.learning.models import load_model

    segmentation_dir, heatmap_dir = model_directories(settings)
    segmentation, trained = load_model(segmentation_dir)
    heatmap, heatmap_trained = load_model(heatmap_dir)
    _check_kinds(segmentation_dir, segmentation, heatmap_dir, heatmap)
    spacing_mm, heatmap_spacing_mm = (
        _spacing(segmentation_dir, trained),
        _spacing(heatmap_dir, heatmap_trained),
    )
    if not np.isclose(spacing_mm, heatmap_spacing_mm):
        raise ValueError(
            f"{heatmap_dir}: a model of another preset: expected the spacing of {segmentation_dir}, "
            f"{spacing_mm:g} mm, found {heatmap_spacing_mm:g} mm."
        )
    return Networks(
        heat=_heat_function(without_norms(heatmap)),
        patch=_patch_function(without_norms(segmentation)),
        heatmap_shape=tuple(heatmap.input_shape[1:4]),
        patch_voxels=segmentation.input_shape[1],
        spacing_mm=spacing_mm,
        preset=str(trained.get("preset", "full")),
        origin={"segmentation": _identity(segmentation_dir), "heatmap": _identity(heatmap_dir)},
    )


def model_directories(settings: InferenceSettings) -> tuple[Path, Path]:
    """Give the directories of the segmentation and of the heatmap network (see `load_networks`)."""
    models = settings.work_dir / "models"
    segmentation = settings.model or _first_with_model(
        (models / "segmentation", STARTER_DIR / "segmentation"),
        f"python train_segmentation.py --work-dir {settings.work_dir}",
        "--model",
    )
    heatmap = settings.heatmap_model or _first_with_model(
        (segmentation.parent / "heatmap", models / "heatmap", STARTER_DIR / "heatmap"),
        f"python train_heatmap.py --work-dir {settings.work_dir}",
        "--heatmap-model",
    )
    return segmentation, heatmap


def labelling_directory(settings: InferenceSettings) -> Path | None:
    """Give the directory of the labelling network: the one named, the first there is, or None."""
    from utils.learning.models import MODEL_FILE

    if settings.labelling_model is not None:
        return settings.labelling_model
    beside = [] if settings.model is None else [settings.model.absolute().parent / "labelling"]
    places = (*beside, settings.work_dir / "models" / "labelling", STARTER_DIR / "labelling")
    return next((place for place in places if (place / MODEL_FILE).is_file()), None)


def _first_with_model(places: Sequence[Path], command: str, option: str) -> Path:
    from utils.learning.models import MODEL_FILE

    for place in places:
        if (place / MODEL_FILE).is_file():
            return place
    raise ValueError(
        f"{places[0]}: expected a trained network, found no {MODEL_FILE}. "
        f"Train one with `{command}`, or name its directory with {option}."
    )


def _check_kinds(
    segmentation_dir: Path, segmentation: keras.Model, heatmap_dir: Path, heatmap: keras.Model
) -> None:
    shape = segmentation.input_shape
    if len(shape) != 5 or shape[4] != 2 or len(set(shape[1:4])) != 1 or segmentation.output_shape[-1] != 1:
        raise ValueError(f"{segmentation_dir}: expected a segmentation network, found input shape {shape}.")
    shape = heatmap.input_shape
    if len(shape) != 5 or shape[4] != 1 or heatmap.output_shape[-1] != 2:
        raise ValueError(f"{heatmap_dir}: expected a heatmap network, found input shape {shape}.")


def _spacing(directory: Path, trained: dict[str, Any]) -> float:
    try:
        return float(trained["spacing_mm"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{directory / 'settings.json'}: expected the spacing_mm of the training, "
            f"found {trained.get('spacing_mm')!r}."
        ) from None


def _heat_function(model: keras.Model) -> PredictHeat:
    run = _compiled(model)
    return lambda ct: run(ct[None, ..., None])[0, ..., 0]


def _patch_function(model: keras.Model) -> PredictPatch:
    run = _compiled(model)
    return lambda ct, memory: run(np.stack([ct, memory], axis=-1)[None])[0, ..., 0]


def _compiled(model: keras.Model):
    """Trace the network once for its one shape: `model.predict` sets up a data pipeline for every patch."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)])
    def forward(batch: tf.Tensor) -> tf.Tensor:
        return model(batch, training=False)

    return lambda batch: forward(tf.constant(batch, tf.float32)).numpy()


def _identity(directory: Path) -> dict[str, Any]:
    from utils.learning.models import MODEL_FILE

    path = directory / MODEL_FILE
    stat = path.stat()
    return {"directory": str(directory.resolve()), "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}


# Cases ---------------------------------------------------------------------------------------------


def walk_settings(settings: InferenceSettings, **of_networks: Any) -> WalkSettings:
    """Give how to walk: what the command line says, and what the networks fix (`Networks.walk`)."""
    return WalkSettings(
        heat_threshold=settings.heat_threshold,
        max_steps=settings.max_steps,
        max_vertebrae=settings.max_vertebrae,
        min_volume_mm3=settings.min_volume_mm3,
        **of_networks,
    )


def segment(ct: Volume, networks: Networks, settings: WalkSettings) -> WalkResult:
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
    WalkResult
        From the top down, whatever the order of finding, on the working grid.
    """
    working = working_ct(ct, networks.spacing_mm)
    heat = locate_spine(working, networks.heat, shape=networks.heatmap_shape)
    normalised = Volume(normalise_hu(working.data), working.affine)
    found = walk(normalised, heat, networks.patch, settings=settings)
    vertebrae = tuple(from_the_top_down(found.vertebrae))
    return dataclasses.replace(found, vertebrae=vertebrae, labels=labels_of_walk(vertebrae, working.grid))


def predict_case(
    scan: Scan,
    networks: Networks,
    settings: InferenceSettings,
    *,
    levels: Levels | None = None,
    ct: Volume | None = None,
) -> tuple[CasePrediction, str]:
    """Read, segment and number one scan.

    Parameters
    ----------
    scan : Scan
        The scan.
    networks : Networks
        The networks that segment it.
    settings : InferenceSettings
        How to segment and number.
    levels : Levels, optional
        The network that tells levels; without it and without known levels vertebrae are counted.
    ct : Volume, optional
        The scan, if it has been read already.

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
    ct = read_scan(scan.path, scan.series) if ct is None else ct
    hu_text = hu_doubt(ct)  # at once, before there is more in memory than the scan
    found = segment(ct, networks, walk_settings(settings, **networks.walk))
    identification = _identified(ct, found, levels, settings)
    if identification is None:
        vertebrae = found.vertebrae
        numbering = number_vertebrae(len(vertebrae), settings.first_label)
        doubt = _warning(len(vertebrae), len(numbering.codes), settings.first_label)
    else:
        vertebrae = [each for each, code in zip(found.vertebrae, identification.codes) if code]
        numbering, doubt = numbering_of(identification), doubt_about(identification)
    native = native_vertebrae(vertebrae, found.labels.affine, ct.grid, codes=numbering.codes)
    table = vertebra_table(scan.key, ct, native, vertebrae, numbering=numbering)
    doubts = {HU_DOUBT: hu_text, OTHER if identification is None else LOW_PROBABILITY: doubt}
    remarks = [Remark(kind, None, text) for kind, text in doubts.items() if text]
    names = [numbering.name(code) for code in numbering.codes]
    quality = CaseQuality(
        scan.key,
        numbering.kind,
        **facts_of_labels(identification, settings.first_label),
        seconds=round(time.perf_counter() - started, 2),
        network_calls=found.calls,
        warnings=case_remarks(table, [*remarks, *walk_remarks(found.remarks, vertebrae, names)]),
    )
    prediction = CasePrediction(
        *(scan.key, ct, native.labels, numbering, tuple(table), _record(scan, networks, settings)),
        quality=quality,
        trace=found.trace if settings.trace else (),
        identification=identification,
    )
    doubts = (hu_text, doubt if vertebrae else "no vertebra found")
    return prediction, "; ".join(filter(None, doubts))


def _identified(
    ct: Volume, found: WalkResult, levels: Levels | None, settings: InferenceSettings
) -> Identification | None:
    """Decide the levels of what was found; None where vertebrae are to be counted."""
    if not is_identified(levels, settings):
        return None
    fixed = parse_fixed(settings.fix, settings.first_label)
    numbers = range(1, len(found.vertebrae) + 1)
    return identify_vertebrae(ct, found.labels, numbers, levels=levels, fixed=fixed)


def is_identified(levels: Levels | None, settings: InferenceSettings) -> bool:
    """Whether levels are decided together, not counted from the top: with a network, or by levels named."""
    return levels is not None or bool(settings.fix)


def _warning(found: int, labelled: int, first_label: str | None) -> str:
    if labelled < found:
        start = f"from {first_label} down" if first_label else "from 1 up"
        return f"{found} vertebrae found, but VerSe has {labelled} labels {start}; the lowest are left out"
    return ""


def _record(scan: Scan, networks: Networks, settings: InferenceSettings) -> dict[str, Any]:
    plain = settings_as_json(settings)
    for name in _INDIFFERENT:
        del plain[name]
    facts = {"spacing_mm": networks.spacing_mm, "preset": networks.preset, "inference": _INFERENCE}
    origin = {**networks.origin, **_labelling_origin(settings)}
    return {**plain, **facts, "scan": scan_identity(scan), "networks": origin}


def _labelling_origin(settings: InferenceSettings) -> dict[str, Any]:
    directory = labelling_directory(settings)
    return {} if directory is None else {"labelling": _identity(directory)}


@dataclass(frozen=True)
class _Job:
    """One scan, and how to segment it; picklable."""

    scan: Scan
    settings: InferenceSettings

    @property
    def peak_bytes(self) -> int:
        return _NETWORK_BYTES + _PEAK_OF_NATIVE * scan_bytes(self.scan.path, self.scan.series)


@dataclass(frozen=True)
class _Outcome:
    """What became of a scan: what is said about it, a warning, or the error that made it a bad one."""

    said: str = ""
    warning: str = ""
    error: str = ""


def _run(scans: Sequence[Scan], settings: InferenceSettings) -> bool:
    """Run all scans; tells whether one was bad."""
    if not _is_divided(settings):
        _networks_of_process(settings)
    elif not settings.relabel:
        model_directories(settings)  # said once, before anything runs, if a network is not there
    jobs = [_Job(scan, settings) for scan in execution.in_shard(scans, settings.shard)]
    bad = 0
    with tqdm(total=len(jobs), desc="infer", unit="scan") as bar:
        for outcome in _outcomes(jobs, settings):
            if outcome.said:
                tqdm.write(outcome.said)
            for line in filter(None, (outcome.warning, outcome.error)):
                _complain(line)
            bad += bool(outcome.error)
            bar.update()
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


def _read(job: _Job) -> Volume | None:
    """Read a scan; None if it is done or only its labels are to change, and it is not needed yet."""
    networks, _ = _networks_of_process(job.settings)
    if networks is None or _is_done(job.scan, networks, job.settings):
        return None
    return read_scan(job.scan.path, job.scan.series)


def _fit_together(current: _Job, following: _Job) -> bool:
    """Whether the memory holds the prediction of a scan and the next scan beside it."""
    needed = current.peak_bytes + scan_bytes(following.scan.path, following.scan.series)
    return needed <= execution.free_memory_bytes()


def _attempt(job: _Job, read: Callable[[], Volume | None] = lambda: None) -> _Outcome:
    """Do one scan; whatever is wrong with it must not end the others."""
    scan = job.scan
    try:
        networks, levels = _networks_of_process(job.settings)
        if networks is None:
            return _relabel(scan, levels, job.settings)
        return _do_case(scan, networks, levels, job.settings, ct=read())
    except ValueError as error:
        return _bad(scan, str(error))
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        return _bad(scan, f"{type(error).__name__}: {first_line}")


def _bad(scan: Scan, error: str) -> _Outcome:
    named = str(scan.path) in error
    return _Outcome(error=f"bad scan: {error}" if named else f"bad scan: {scan.name}: {error}")


@functools.lru_cache(maxsize=1)
def _networks_of_process(settings: InferenceSettings) -> tuple[Networks | None, Levels | None]:
    """Choose the device and load the networks, once a process; to relabel, only that of the levels."""
    from utils.learning.runtime import choose_device

    choose_device(settings.device)
    directory = labelling_directory(settings)
    levels = None if directory is None else load_levels(directory)
    if settings.relabel and not is_identified(levels, settings) and settings.first_label is None:
        raise ValueError(
            f"{settings.work_dir / 'models' / 'labelling'}: expected a labelling network for --relabel, "
            "found none. Train one with train_labelling.py, or name levels with --first-label or --fix."
        )
    return None if settings.relabel else load_networks(settings), levels


def _do_case(
    scan: Scan,
    networks: Networks,
    levels: Levels | None,
    settings: InferenceSettings,
    *,
    ct: Volume | None = None,
) -> _Outcome:
    if _is_done(scan, networks, settings):
        kind = number_vertebrae(0, settings.first_label)
        if is_identified(levels, settings):
            kind = Numbering((), ANATOMICAL)
        written = complete_case(settings.output, scan.key, kind, formats=settings.formats)
        added = f", now also as {', '.join(written)}" if written else ""
        return _Outcome(f"{scan.key}: already predicted{added}")
    started = time.perf_counter()
    prediction, warning = predict_case(scan, networks, settings, levels=levels, ct=ct)
    write_case(prediction, settings.output, formats=settings.formats)
    seconds = time.perf_counter() - started
    said = f"{scan.key}: {len(prediction.table)} vertebrae, {seconds:.1f} s"
    return _Outcome(said, f"warning: {scan.name}: {warning}." if warning else "")


def _relabel(scan: Scan, levels: Levels | None, settings: InferenceSettings) -> _Outcome:
    """Change the labels of a finished case; all else of its record stays, so it counts as done with them."""
    old = read_case_settings(settings.output, scan.key)
    if old is None:
        raise ValueError(f"{settings.output}: expected a prediction of {scan.key} to relabel, found none.")
    if old.get("scan") != scan_identity(scan):
        raise ValueError(f"{scan.path}: expected the scan that the prediction in {settings.output} is of.")
    networks = {name: origin for name, origin in old["networks"].items() if name != "labelling"}
    record = {
        **old,
        **{"first_label": settings.first_label, "fix": list(settings.fix)},
        "networks": {**networks, **_labelling_origin(settings)},
    }
    prediction = relabel_case(
        read_scan(scan.path, scan.series),
        settings.output,
        scan.key,
        levels=levels,
        fixed=parse_fixed(settings.fix, settings.first_label),
        settings=record,
    )
    known = read_quality(case_path(settings.output, scan.key, QUALITY_SUFFIX))
    prediction = dataclasses.replace(prediction, quality=relabelled_quality(prediction, known))
    write_case(prediction, settings.output, formats=settings.formats)
    names = " ".join(prediction.numbering.name(code) for code in prediction.numbering.codes)
    doubt = doubt_about(prediction.identification)
    return _Outcome(f"{scan.key}: relabelled {names}", f"warning: {scan.name}: {doubt}." if doubt else "")


def _is_done(scan: Scan, networks: Networks, settings: InferenceSettings) -> bool:
    found = read_case_settings(settings.output, scan.key)
    return found is not None and found == _record(scan, networks, settings)


def _complain(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
