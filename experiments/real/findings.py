"""What was found in the real scans: read from predictions, or from heat and levels alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.real.facts import ScanFacts
from utils.imaging.centroids import read_centroids
from utils.imaging.nifti import read_ct, read_mask
from utils.imaging.shown import localiser_ct, without_padding
from utils.imaging.volume import Volume
from utils.localisation.chain import Votes, find_column
from utils.localisation.identify import Identification, number_column
from utils.prediction.column import read_column
from utils.prediction.derivatives import CENTROIDS_SUFFIX, COLUMN_SUFFIX, MASK_SUFFIX, case_path
from utils.prediction.networks import STARTER_DIR, Networks, load_networks
from utils.preparation.own_cases import own_key
from utils.settings import InferenceSettings


@dataclass(frozen=True, eq=False)
class Finding:
    """The vertebrae found in one scan.

    Attributes
    ----------
    codes : tuple of int
        Their labels, from the top down; 0 for what was taken for no vertebra.
    points_mm : np.ndarray of float64, (n, 3)
        Where they are, in world mm: peaks of the heat, or centroids of a mask.
    mask : Volume of uint8, optional
        The mask that the labels stand in; without one the points are peaks.
    identification : Identification, optional
        How sure the labels are; None where that is not known.
    """

    codes: tuple[int, ...]
    points_mm: np.ndarray
    mask: Volume | None = None
    identification: Identification | None = None


def finding_of_votes(votes: Votes) -> Finding:
    """Give the peaks of a column, with the levels that are decided from its votes.

    Parameters
    ----------
    votes : Votes
        What the networks say; without a vertebra where they find no spine.

    Returns
    -------
    Finding
    """
    if not len(votes.centres_mm):
        return Finding((), np.zeros((0, 3)))
    decided = number_column(votes)
    return Finding(decided.codes, votes.centres_mm, identification=decided)


def load_localiser(heatmap: Path, labelling: Path | None = None) -> Networks:
    """Load the networks of two model directories that find vertebrae and tell their levels.

    Parameters
    ----------
    heatmap : Path
        Of the one that finds them.
    labelling : Path, optional
        Of the other; by default the one that `infer.py` would take.

    Returns
    -------
    Networks

    Raises
    ------
    ValueError
        If there is none, or the first is one of the published kind; the text names the directory.
    """
    # All networks are loaded together; which one segments says nothing here.
    segmentation = STARTER_DIR / "segmentation"
    networks = load_networks(
        InferenceSettings(heatmap=heatmap, labelling=labelling, segmentation=segmentation)
    )
    if not networks.finds_centres:
        raise ValueError(f"{heatmap}: expected a network that finds vertebrae, found one of the whole spine.")
    return networks


def look_for_vertebrae(ct: Path, networks: Networks) -> Votes:
    """Give what the networks that find vertebrae and tell their levels say of a scan.

    Parameters
    ----------
    ct : Path
        The scan, a NIfTI file.
    networks : Networks
        From `load_localiser`.

    Returns
    -------
    Votes
        Under the temperature of the labelling network; without a vertebra where there is no spine.
    """
    coarse = localiser_ct(without_padding(read_ct(ct)), networks.heatmap_mm)
    column = find_column(coarse, networks.heat, networks.labels, outside=networks.heatmap_outside)
    return column.votes(networks.temperature)


def read_prediction(facts: ScanFacts, predictions: Path) -> Finding:
    """Read what infer.py wrote of a scan.

    Parameters
    ----------
    facts : ScanFacts
        The scan.
    predictions : Path
        The output folder of infer.py.

    Returns
    -------
    Finding
        How sure the labels are is computed anew from what stands beside them, if anything does.

    Raises
    ------
    ValueError
        If there is no prediction of the scan, or it cannot be used; the text names the file.
    """
    key = own_key(facts.ct)
    mask = read_mask(case_path(predictions, key, MASK_SUFFIX))
    centroids = read_centroids(case_path(predictions, key, CENTROIDS_SUFFIX), mask.grid)
    codes = tuple(int(code) for code in centroids.codes)
    known = read_column(case_path(predictions, key, COLUMN_SUFFIX))
    identification = None if known is None or not codes else _decided(*known, codes)
    return Finding(codes, centroids.points_mm, mask, identification)


def _decided(votes: Votes, labels: list[int], codes: tuple[int, ...]) -> Identification:
    """Give the decision on the vertebrae of a mask, in the order of their codes."""
    places = [labels.index(code) for code in codes]
    return number_column(votes).of_places(places)
