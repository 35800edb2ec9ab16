"""From trained votes to probabilities that mean something: a temperature, fitted on validation columns.

Votes of neighbouring vertebrae are not independent, since their patches overlap: added up, they claim too
much. One number that all votes are divided by makes up for it (Guo et al., "On calibration of modern neural
networks", ICML 2017; there for one vote, here for the probability of the whole sequence). Columns for it are
made from the validation scans by cutting fields of view out of them, as scans show any part of a spine. Where
the networks that segment are trained already, the masks are what they predict there: a vertebra cut in two or
taken for two is among them as often as it will be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from tqdm import tqdm

from utils.imaging.grids import cropped_grid
from utils.imaging.resampling import resample_labels
from utils.imaging.volume import Volume
from utils.learning import training
from utils.learning.labelling import PredictLevel, Votes, level_function, lies_on, perturb, vertebra_votes
from utils.learning.model_files import has_model
from utils.learning.models import load_model
from utils.learning.prepared_data import SegmentationData
from utils.learning.runtime import Runtime
from utils.localisation.identify import sequence_log_probability, transitions_of
from utils.prediction.networks import load_networks
from utils.prediction.predict import segment, walk_settings
from utils.settings import InferenceSettings, LabellingTrainingSettings, save_settings
from utils.verse.labels import code_of_rank

Transitions = Mapping[tuple[int, int], np.ndarray]
#: Gives the numbers, from the top down, of the vertebrae that the trained networks find in a CT in HU.
FindVertebrae = Callable[[Volume], Volume]
#: Range of temperatures, and columns made of every validation scan: with its masks, and with predicted ones.
TEMPERATURES = (0.25, 20.0)
COLUMNS_A_SCAN = 8
PREDICTED_COLUMNS_A_SCAN = 4
#: Without validation data: votes of three neighbours count as one.
UNFITTED_TEMPERATURE = 3.0
#: Least share of a vertebra that the cut field must show, and how far beyond it the field may reach, in mm.
LEAST_SHOWN, FIELD_REACH_MM = 0.2, 20.0


@dataclass(frozen=True)
class LabelledColumn:
    """The votes about a column, and its true codes from the top down."""

    votes: Votes
    codes: tuple[int, ...]


def train_labelling(settings: LabellingTrainingSettings) -> int:
    """Train the labelling network, fit its temperature, and leave both in `work_dir/models/<name>`.

    Parameters
    ----------
    settings : LabellingTrainingSettings
        All of the training.

    Returns
    -------
    int
        Exit status: 0, or 1 after a line that says what is wrong.
    """
    return training.run_training(_train_and_calibrate, settings)


def _train_and_calibrate(settings: LabellingTrainingSettings, chosen: Runtime) -> list[str]:
    bad, held_out = training.fit_labelling_network(settings, chosen)
    if chosen.is_chief:
        calibrate(settings, held_out)
    return bad


def calibrate(settings: LabellingTrainingSettings, held_out: SegmentationData) -> float:
    """Fit the temperature of the trained network, and write it into the settings beside it.

    Parameters
    ----------
    settings : LabellingTrainingSettings
        Of the training.
    held_out : SegmentationData
        The validation split; without a vertebra the temperature is `UNFITTED_TEMPERATURE`.

    Returns
    -------
    float
        The temperature.
    """
    directory = training.model_directory(settings)
    network, found = load_model(directory)
    columns, masks = [], "none"
    if held_out.vertebrae:
        columns, masks = _columns_to_fit(held_out, settings, level_function(network))
    temperature = fitted_temperature(columns) if columns else UNFITTED_TEMPERATURE
    facts = {name: found[name] for name in training.RUN_FACTS if name in found}
    fitted = {"temperature": temperature, "calibration_columns": len(columns), "calibration_masks": masks}
    save_settings(settings, directory, **facts, **fitted)
    print(f"{directory}: temperature {temperature:.2f}, from {len(columns)} columns ({masks}).", flush=True)
    return temperature


def _columns_to_fit(
    held_out: SegmentationData, settings: LabellingTrainingSettings, predict: PredictLevel
) -> tuple[list[LabelledColumn], str]:
    """Give the columns, and a word for their masks."""
    find = trained_networks(settings)
    columns = [] if find is None else predicted_columns(held_out, settings, predict, find)
    if columns:
        return columns, "predicted"
    return validation_columns(held_out, settings, predict), "reference"


def trained_networks(settings: LabellingTrainingSettings) -> FindVertebrae | None:
    """Give the networks that segment as one function: those named, or both of the work folder, or None.

    Raises
    ------
    ValueError
        If a network that is named is not there.
    """
    named = {"segmentation": settings.segmentation, "heatmap": settings.heatmap}
    models = settings.work_dir / "models"
    if not any(named.values()) and not all(has_model(models / name) for name in named):
        return None
    inference = InferenceSettings(work_dir=settings.work_dir, **named)
    networks = load_networks(inference)
    how = walk_settings(inference, **networks.walk)
    return lambda ct: segment(ct, networks, how).labels


def fitted_temperature(columns: Sequence[LabelledColumn]) -> float:
    """Give the temperature under which the true sequences of columns are the most probable.

    Parameters
    ----------
    columns : sequence of LabelledColumn
        At least one.

    Returns
    -------
    float
        Within `TEMPERATURES`.
    """

    transitions = [transitions_of(column.votes.centres_mm) for column in columns]

    def loss(log_temperature: float) -> float:
        temperature = float(np.exp(log_temperature))
        return -float(np.mean([_log_probability(*pair, temperature) for pair in zip(columns, transitions)]))

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 0.02}).x))


def _log_probability(column: LabelledColumn, transitions: Transitions, temperature: float) -> float:
    parts = (column.votes.log_probabilities, column.votes.complete, transitions)
    # A sequence that the rules do not allow (L6 below T12, say) must not rule every temperature out.
    return max(sequence_log_probability(*parts, column.codes, temperature=temperature), -50.0)


def validation_columns(
    held_out: SegmentationData, settings: LabellingTrainingSettings, predict: PredictLevel
) -> list[LabelledColumn]:
    """Cut columns out of the validation scans, and ask the network about them.

    Parameters
    ----------
    held_out : SegmentationData
        The validation split.
    settings : LabellingTrainingSettings
        Patch and seed.
    predict : callable
        The network.

    Returns
    -------
    list of LabelledColumn
        `COLUMNS_A_SCAN` a scan, the first of which is the whole of it. The others have masks as
        predictions have them: from reference masks the votes would seem surer than they are.
    """
    columns = []
    for place, case in enumerate(held_out.cases_with_ct):
        scan = held_out.labelling_scan(case)
        for generator in _column_generators(settings, place, COLUMNS_A_SCAN):
            part, seen = cut_column(*scan, generator)
            if generator is not None:
                seen = disturbed_masks(seen, generator)
            found = list(seen.label_boxes)
            votes = vertebra_votes(part, seen, found, predict=predict, shape=settings.patch_voxels)
            columns.append(LabelledColumn(votes, tuple(code_of_rank(rank) for rank in found)))
    return columns


def predicted_columns(
    held_out: SegmentationData,
    settings: LabellingTrainingSettings,
    predict: PredictLevel,
    find: FindVertebrae,
) -> list[LabelledColumn]:
    """Cut columns out of the validation scans, segment them, and ask the network about what is found.

    Parameters
    ----------
    held_out : SegmentationData
        The validation split.
    settings : LabellingTrainingSettings
        Patch and seed.
    predict : callable
        The labelling network.
    find : callable
        The networks that segment.

    Returns
    -------
    list of LabelledColumn
        At most `PREDICTED_COLUMNS_A_SCAN` a scan.
    """
    columns = []
    for place, case in enumerate(tqdm(held_out.cases_with_ct, desc="calibration", unit="scan")):
        scan = held_out.working_scan(case)
        for generator in _column_generators(settings, place, PREDICTED_COLUMNS_A_SCAN):
            part, seen = cut_column(*scan, generator, least_shown=0.0)
            found = find(part)
            numbers, codes = true_codes_of(found, seen)
            if numbers:
                votes = vertebra_votes(part, found, numbers, predict=predict, shape=settings.patch_voxels)
                columns.append(LabelledColumn(votes, codes))
    return columns


def _column_generators(
    settings: LabellingTrainingSettings, place: int, count: int
) -> list[np.random.Generator | None]:
    """Give what the columns of a scan are cut by: the first one is the whole scan, the others are drawn."""
    return [None, *(np.random.default_rng([settings.seed, place, number]) for number in range(1, count))]


def true_codes_of(found: Volume, ranks: Volume) -> tuple[list[int], tuple[int, ...]]:
    """Give what predicted vertebrae are: the code of the reference that most of each lies in.

    Parameters
    ----------
    found : Volume
        Numbers, 1 at the top.
    ranks : Volume
        The reference, on any grid with parallel axes.

    Returns
    -------
    numbers : list of int
        The vertebrae, without those before the first and after the last that the reference has: it may leave
        out what the scan cuts.
    codes : tuple of int
        Their codes; 0 for no vertebra.
    """
    if not lies_on(ranks, found.grid):
        ranks = resample_labels(ranks, found.grid)
    numbers = list(range(1, int(found.data.max(initial=0)) + 1))
    true = [int(np.bincount(ranks.data[found.data == number]).argmax()) for number in numbers]
    places = np.flatnonzero(true)
    if not places.size:
        return [], ()
    kept = slice(places[0], places[-1] + 1)
    return numbers[kept], tuple(code_of_rank(rank) if rank else 0 for rank in true[kept])


def disturbed_masks(ranks: Volume, generator: np.random.Generator) -> Volume:
    """Change every mask of a column the way in which predictions differ from the reference.

    Parameters
    ----------
    ranks : Volume
        On the labelling grid.
    generator : np.random.Generator
        Source of randomness.

    Returns
    -------
    Volume
        Where two of the changed masks meet the upper one stands.
    """
    disturbed = np.zeros_like(ranks.data)
    for rank in ranks.label_boxes:
        this = ranks.data == rank
        changed, _ = perturb(this, (ranks.data > 0) & ~this, ranks.data, rank, generator)
        disturbed[changed & (disturbed == 0)] = rank
    return Volume(disturbed, ranks.affine)


def cut_column(
    ct: Volume,
    ranks: Volume,
    generator: np.random.Generator | None,
    *,
    least_shown: float = LEAST_SHOWN,
) -> tuple[Volume, Volume]:
    """Cut a shorter field of view out of a scan: from near one vertebra's top to near another's bottom.

    Parameters
    ----------
    ct, ranks : Volume
        On one grid, axes (P, R, I).
    generator : np.random.Generator or None
        Source of randomness; None leaves the scan as it is.
    least_shown : float
        Share of a vertebra.

    Returns
    -------
    ct, ranks : Volume
        Without vertebrae of which less than `least_shown` is left.
    """
    if generator is None:
        return ct, ranks
    boxes = list(ranks.label_boxes.values())
    first, last = np.sort(generator.integers(0, len(boxes), 2))
    reach = FIELD_REACH_MM / ct.spacing_mm[2]
    # From a little inside the outermost vertebrae, which are cut then, to well beyond them.
    top = int(np.clip(boxes[first][2].start - generator.uniform(-0.3, 1) * reach, 0, None))
    bottom = int(boxes[last][2].stop + generator.uniform(-0.3, 1) * reach) + 1
    affine = cropped_grid(ct.grid, (0, 0, top), ct.shape).affine
    seen = ranks.data[:, :, top:bottom].copy()
    for rank in np.unique(seen[seen > 0]).tolist():
        if np.count_nonzero(seen == rank) < least_shown * np.count_nonzero(ranks.data == rank):
            seen[seen == rank] = 0
    return Volume(ct.data[:, :, top:bottom], affine), Volume(seen, affine)
