"""One scan, from its file to all that is to be written of it: read, segmented, numbered, relabelled.

The Python call (`utils.prediction.interface`) and the run over many scans (`utils.prediction.predict`) stand
on it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.imaging.formats import hu_doubt, mask_forms, read_scan, too_flat
from utils.imaging.grids import is_turned, transform_points
from utils.imaging.intensities import normalise_hu
from utils.imaging.nifti_forms import HeaderForms
from utils.imaging.resampling import working_ct
from utils.imaging.shown import framed_ct, middle_of_scan, upright_ct, without_padding
from utils.imaging.volume import Grid, Volume
from utils.localisation.chain import Votes, find_column
from utils.localisation.identify import Identification, number_column
from utils.prediction import quality
from utils.prediction.case import (
    CasePrediction,
    Numbering,
    native_vertebrae,
    number_vertebrae,
    numbering_of,
    vertebra_table,
)
from utils.prediction.case_facts import facts_of_labels, relabelled_quality, walk_remarks
from utils.prediction.column import column_json
from utils.prediction.derivatives import case_path
from utils.prediction.levels import doubt_about, identify_counted, parse_fixed, relabel_case
from utils.prediction.networks import Networks
from utils.prediction.papers import scan_papers
from utils.prediction.provenance import record_of, relabelled_record, scan_identity
from utils.prediction.quality import CaseQuality, Remark
from utils.prediction.scans import Scan
from utils.settings import InferenceSettings, WalkOptions
from utils.walk.along import walk_along
from utils.walk.locate import locate_spine
from utils.walk.look import without_beyond
from utils.walk.published import walk_published
from utils.walk.records import FoundVertebra, WalkResult, WalkSettings

#: A scan in memory, and the identity that its files had before they were read.
ReadScan = tuple[Volume, dict[str, Any]]


def read_with_identity(scan: Scan, settings: InferenceSettings) -> ReadScan:
    """Read a scan; its files may change meanwhile, so their identity is taken before."""
    identity = scan_identity(scan)
    return read_image(scan, settings, settings.assume_orientation), identity


def read_image(scan: Scan, settings: InferenceSettings, assumed: str | None) -> Volume:
    """Read the Hounsfield units of a scan, whose axes lie as `assumed` if it does not say how."""
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
        The networks that segment it; not needed for a scan that is too flat for a vertebra, which is shown
        to none.
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
    ct, identity = read or read_with_identity(scan, settings)
    hu_text = hu_doubt(ct)  # at once, before there is more in memory than the scan
    forms = mask_forms(scan.path, scan.series)
    axes_text = _assumption(forms, settings)
    networks = None if too_flat(ct.grid) else networks
    doubts = {quality.HU_DOUBT: hu_text, quality.ORIENTATION: axes_text}
    found, labelled = _found_and_labelled(ct, networks, settings)
    numbering = labelled.numbering
    native = native_vertebrae(labelled.vertebrae, found.labels.affine, ct.grid, codes=numbering.codes)
    table = vertebra_table(scan.key, ct, native, labelled.vertebrae, numbering=numbering)
    known = CaseQuality(
        scan.key,
        numbering.kind,
        **facts_of_labels(labelled.identification, settings.first_label),
        no_spine=not found.vertebrae,
        seconds=round(time.perf_counter() - started, 2),
        network_calls=found.calls,
        warnings=quality.case_remarks(table, _remarks(found, labelled, doubts)),
        papers=scan_papers(scan, ct, hu_doubt=hu_text, assumed=(axes_text,) if axes_text else ()),
    )
    prediction = CasePrediction(
        *(scan.key, ct, native.labels, numbering, tuple(table), record_of(identity, networks, settings)),
        quality=known,
        trace=found.trace if settings.trace else (),
        identification=labelled.identification,
        column=labelled.column,
        forms=forms,
    )
    return prediction, _warning(labelled, doubts, ct.grid)


def relabelled_case(scan: Scan, settings: InferenceSettings) -> CasePrediction:
    """Give the finished case of a scan with its labels decided anew, without any network.

    Parameters
    ----------
    scan : Scan
        The scan that the case is of.
    settings : InferenceSettings
        Where the case is, and its new levels.

    Returns
    -------
    CasePrediction
        To be written. All else of its record stays, so the case counts as done with the new levels.

    Raises
    ------
    ValueError
        If there is no such case, or one of another scan, or it cannot be read, or the levels contradict each
        other.
    """
    record = relabelled_record(scan, settings)
    ct = read_image(scan, settings, record.get("assume_orientation"))
    fixed = parse_fixed(settings.fix, settings.first_label)
    prediction = relabel_case(ct, settings.output, scan.key, fixed=fixed, settings=record)
    known = quality.read_quality(case_path(settings.output, scan.key, quality.QUALITY_SUFFIX))
    forms = mask_forms(scan.path, scan.series)
    return dataclasses.replace(prediction, quality=relabelled_quality(prediction, known), forms=forms)


# Finding -------------------------------------------------------------------------------------------


def walk_settings(settings: InferenceSettings, **of_networks: Any) -> WalkSettings:
    """Give how to walk: what the command line says, and what the networks fix (`Networks.walk`)."""
    names = [field.name for field in dataclasses.fields(WalkOptions)]
    return WalkSettings(**{name: getattr(settings, name) for name in names}, **of_networks)


def find_vertebrae(ct: Volume, networks: Networks, settings: WalkSettings) -> tuple[WalkResult, Votes | None]:
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
    if is_turned(ct.grid):
        middle = middle_of_scan(ct)
        coarse = framed_ct(ct, networks.heatmap_mm, middle)
        working, beyond = upright_ct(ct, networks.spacing_mm, middle_mm=middle, outside=networks.outside)
    else:
        coarse, working = working_ct(ct, networks.heatmap_mm), working_ct(ct, networks.spacing_mm)
        beyond = None
    column = find_column(coarse, networks.heat, networks.labels, outside=networks.heatmap_outside)
    centres = transform_points(column.centres_mm, np.eye(4), working.affine)
    found = walk_along(_normalised(working), centres, networks.patch, settings=settings)
    if beyond is not None:
        found = without_beyond(found, beyond, settings.probability_threshold)
    return found, column.votes(networks.temperature)


def _normalised(ct: Volume) -> Volume:
    return Volume(normalise_hu(ct.data), ct.affine)


# Labels --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Labelled:
    """Those of the vertebrae found that get a label, from the top down, and how it was decided.

    `doubt` says what is doubtful about the labels, or ""; the other fields are those of `CasePrediction`.
    """

    vertebrae: tuple[FoundVertebra, ...]
    numbering: Numbering
    doubt: str = ""
    identification: Identification | None = None
    column: str = ""


def _found_and_labelled(
    ct: Volume, networks: Networks | None, settings: InferenceSettings
) -> tuple[WalkResult, _Labelled]:
    if networks is None:
        nothing = WalkResult((), Volume(np.zeros(ct.shape, np.uint8), ct.affine))
        return nothing, _Labelled((), number_vertebrae(0, settings.first_label))
    found, votes = find_vertebrae(ct, networks, walk_settings(settings, **networks.walk))
    identification = _identify(found, votes, settings)
    if identification is None:
        return found, _counted(found.vertebrae, settings.first_label)
    places = [vertebra.index for vertebra in found.vertebrae]
    column = "" if votes is None else column_json(votes, places, identification.codes)
    labelled = tuple(each for each, code in zip(found.vertebrae, identification.codes) if code)
    doubt = doubt_about(identification)
    return found, _Labelled(labelled, numbering_of(identification), doubt, identification, column)


def _identify(found: WalkResult, votes: Votes | None, settings: InferenceSettings) -> Identification | None:
    """Decide the levels of what was found; None where vertebrae are to be counted."""
    fixed = parse_fixed(settings.fix, settings.first_label)
    if votes is not None:
        return number_column(votes, places=[each.index for each in found.vertebrae], fixed=fixed)
    return identify_counted(len(found.vertebrae), fixed=fixed) if settings.fix else None


def _counted(vertebrae: tuple[FoundVertebra, ...], first_label: str | None) -> _Labelled:
    numbering, doubt = number_vertebrae(len(vertebrae), first_label), ""
    if len(numbering.codes) < len(vertebrae):
        start = f"from {first_label} down" if first_label else "from 1 up"
        doubt = (
            f"{len(vertebrae)} vertebrae found, but VerSe has {len(numbering.codes)} labels {start}; "
            "the lowest are left out"
        )
    return _Labelled(vertebrae, numbering, doubt)


# Doubts --------------------------------------------------------------------------------------------


def _assumption(forms: HeaderForms | None, settings: InferenceSettings) -> str:
    """Say that the user, and not the scan, told where the axes lead; "" where the scan does."""
    if forms is None or forms.states_orientation:
        return ""
    axes = settings.assume_orientation.upper()
    return f"its header does not say how its axes lie, so {axes} is assumed (--assume-orientation)"


def _remarks(found: WalkResult, labelled: _Labelled, doubts: Mapping[str, str]) -> list[Remark]:
    """Give what the table does not tell: doubts about the scan by their kind, about the labels, and gaps."""
    kind = quality.LOW_PROBABILITY if labelled.identification else quality.OTHER
    texts = {**doubts, kind: labelled.doubt}
    names = [labelled.numbering.name(code) for code in labelled.numbering.codes]
    walk = walk_remarks(dataclasses.replace(found, vertebrae=labelled.vertebrae), names)
    return [*(Remark(kind, None, text) for kind, text in texts.items() if text), *walk]


def _warning(labelled: _Labelled, doubts: Mapping[str, str], grid: Grid) -> str:
    nothing = ": ".join(filter(None, ("no vertebra found", too_flat(grid))))
    return "; ".join(filter(None, (*doubts.values(), labelled.doubt if labelled.vertebrae else nothing)))
