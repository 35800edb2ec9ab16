"""The networks of an inference: where they are looked for, checked, and turned into functions on arrays.

TensorFlow is imported only when a network is loaded, so a wrong command line is answered at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from utils.files import sha256_of
from utils.imaging.intensities import normalise_hu
from utils.imaging.volume import Volume
from utils.learning.model_files import MODEL_FILES, has_model, model_file
from utils.localisation.candidates import PredictLabels, PredictTile, Reading, patches_at
from utils.settings import InferenceSettings, RunSettings, load_settings
from utils.verse.labels import MAX_RANK
from utils.walk.locate import PredictHeat
from utils.walk.records import PredictPatch

if TYPE_CHECKING:
    import keras

#: Networks that are shipped with the code: the last place that is looked at.
STARTER_DIR = Path(__file__).resolve().parents[2] / "models" / "starter"
#: Patches that the labelling network sees at once: the last ones are filled up, so that it is compiled once.
LABELLED_TOGETHER = 16


@dataclass(frozen=True, eq=False)
class Networks:
    """The trained networks as functions on arrays, and the settings they were trained with.

    Attributes
    ----------
    heat : callable
        From a tile of the CT to the channels of `utils.localisation.candidates`, or, of a published heatmap
        network, from the whole CT on the heatmap grid to the heat.
    labels : callable, optional
        From the CT on the grid of the tiles and points in it to logits. The one of no vertebra is that of a
        class as frequent as each level. None with a published heatmap network.
    patch : callable
        From the CT and the memory of a patch to the probability of the next vertebra.
    heatmap_shape : tuple of int, 3
        Shape of the tile, or of the heatmap grid.
    heatmap_mm : float
        Spacing of the tiles, and of the patches that are labelled.
    heatmap_outside : str
        What the heatmap network was shown beyond the scan, "air" or "edge".
    finds_centres : bool
        Whether the heatmap network finds the vertebrae one by one, or the spine, as published.
    temperature : float
        What the labelling network's log-probabilities are divided by.
    patch_voxels : int
        Edge of the patch.
    spacing_mm : float
        Spacing of the working grid.
    preset : str
        Preset of the segmentation network.
    outside : str
        What the segmentation network was shown beyond the scan, "air" or "edge".
    origin : dict
        What tells the networks from others; a case that was made with others is made again.
    loaded : dict of str to (keras.Model, dict)
        Each network as it was saved, by its kind, with the settings that it was trained with.
    """

    heat: PredictHeat | PredictTile
    patch: PredictPatch
    heatmap_shape: tuple[int, int, int]
    patch_voxels: int
    spacing_mm: float
    preset: str
    origin: dict[str, Any]
    outside: Literal["air", "edge"] = "edge"
    finds_centres: bool = True
    heatmap_mm: float = 3.0
    heatmap_outside: Literal["air", "edge"] = "edge"
    temperature: float = 1.0
    labels: PredictLabels | None = None
    loaded: Mapping[str, tuple[keras.Model, dict[str, Any]]] = field(default_factory=dict)

    @property
    def walk(self) -> dict[str, Any]:
        """What the networks fix of a walk."""
        return {name: getattr(self, name) for name in ("patch_voxels", "spacing_mm", "outside")}


def load_networks(settings: InferenceSettings) -> Networks:
    """Load and compile the networks, batch normalisation folded into the convolutions before it.

    Parameters
    ----------
    settings : InferenceSettings
        `segmentation`, `heatmap` and `labelling` name their directories (see `model_directories` and
        `labelling_directory`). A labelling network is loaded where the heatmap network finds the vertebrae.

    Returns
    -------
    Networks
        Ready to be called.

    Raises
    ------
    ValueError
        If a network is not there, is of another kind, or if two were trained at spacings that do not fit.
        The text names the directories.
    """
    from ML_3D_Unet.utils.folding import without_norms
    from utils.learning.models import load_model

    segmentation_dir, heatmap_dir = model_directories(settings)
    loaded = {"segmentation": load_model(segmentation_dir), "heatmap": load_model(heatmap_dir)}
    (segmentation, trained), (heatmap, heatmap_trained) = loaded.values()
    _check_kinds(segmentation_dir, segmentation, heatmap_dir, heatmap)
    spacing_mm, heatmap_mm = _spacing(segmentation_dir, trained), _spacing(heatmap_dir, heatmap_trained)
    finds_centres = heatmap_trained.get("target") == "centres"
    if not finds_centres and not np.isclose(spacing_mm, heatmap_mm):
        raise ValueError(
            f"{heatmap_dir}: a model of another preset: expected the spacing of {segmentation_dir}, "
            f"{spacing_mm:g} mm, found {heatmap_mm:g} mm."
        )
    if finds_centres != (trained.get("patch_kinds") == "centred"):
        raise ValueError(
            f"{segmentation_dir}: a model of another method than {heatmap_dir}: expected one trained with "
            f"--patch-kinds {'centred' if finds_centres else 'paper'}, found {trained.get('patch_kinds')!r}."
        )
    heat = _tile_function if finds_centres else _heat_function
    directories = {"segmentation": segmentation_dir, "heatmap": heatmap_dir}
    labels, temperature = None, 1.0
    if finds_centres:
        directories["labelling"] = labelling_directory(settings)
        loaded["labelling"] = load_model(directories["labelling"])
        labels, temperature = _labels_of(directories["labelling"], *loaded["labelling"], heatmap_mm)
    return Networks(
        heat=heat(heatmap, heatmap_trained),
        patch=_patch_function(without_norms(segmentation)),
        heatmap_shape=tuple(heatmap.input_shape[1:4]),
        patch_voxels=segmentation.input_shape[1],
        spacing_mm=spacing_mm,
        preset=str(trained.get("preset", "full")),
        origin={kind: identity_of_model(directory) for kind, directory in directories.items()},
        outside=_outside(segmentation_dir, trained),
        finds_centres=finds_centres,
        heatmap_mm=heatmap_mm,
        heatmap_outside=_outside(heatmap_dir, heatmap_trained),
        temperature=temperature,
        labels=labels,
        loaded=loaded,
    )


def _labels_of(
    directory: Path, model: keras.Model, trained: dict[str, Any], spacing_mm: float
) -> tuple[PredictLabels, float]:
    """Give the labelling network for scans of a spacing, and the temperature of what it says."""
    from utils.learning.losses import LABELLING_OUTPUTS

    shape = model.input_shape
    if len(shape) != 5 or shape[4] != 1 or model.output_shape[1:] != (LABELLING_OUTPUTS,):
        raise ValueError(f"{directory}: expected a labelling network, found input shape {shape}.")
    found_mm = _spacing(directory, trained)
    if not np.isclose(found_mm, spacing_mm):
        raise ValueError(
            f"{directory}: expected the spacing of the heatmap network, {spacing_mm:g} mm, "
            f"found {found_mm:g} mm."
        )
    temperature = _positive(directory, "temperature", trained.get("temperature", 1.0))
    return _label_function(directory, model, trained), temperature


def with_networks_of(models: Path) -> InferenceSettings:
    """Give the settings of an inference with the networks of a folder, and no others.

    Parameters
    ----------
    models : Path
        Folder with `segmentation`, `heatmap` and, where the method has one, `labelling`.

    Raises
    ------
    ValueError
        If it holds no segmentation network: that of another place is not taken for it.
    """
    directories = {kind: models / kind for kind in ("segmentation", "heatmap", "labelling")}
    present = {kind: folder for kind, folder in directories.items() if folder.is_dir()}
    if "segmentation" not in present:
        raise ValueError(f"{directories['segmentation']}: expected a trained network, found no such folder.")
    return dataclasses.replace(InferenceSettings(), work_dir=models.parent, **present)


def model_directories(settings: InferenceSettings) -> tuple[Path, Path]:
    """Give the directories of the segmentation and of the heatmap network.

    By default the segmentation network is that of the work folder, else the one shipped with the code; the
    heatmap network is the one beside it, else that of the work folder.

    Raises
    ------
    ValueError
        If one is not there; the text says how to train it.
    """
    models = settings.work_dir / "models"
    segmentation = settings.segmentation or _expected_model("segmentation", (models, STARTER_DIR), settings)
    heatmap = settings.heatmap or _expected_model("heatmap", (segmentation.parent, models), settings)
    return segmentation, heatmap


def labelling_directory(settings: InferenceSettings) -> Path:
    """Give the directory of the labelling network.

    By default it is that of the work folder, else the one beside the heatmap network, else the one shipped
    with the code. Errors as `model_directories`.
    """
    _, heatmap = model_directories(settings)
    places = (settings.work_dir / "models", heatmap.parent, STARTER_DIR)
    return settings.labelling or _expected_model("labelling", places, settings)


def uses_starter(settings: InferenceSettings) -> bool:
    """Whether the segmentation network is the one shipped with the code, as the user has none."""
    places = (settings.work_dir / "models" / "segmentation", STARTER_DIR / "segmentation")
    return settings.segmentation is None and _first_with_model(places) == places[1]


def _first_with_model(places: Sequence[Path]) -> Path | None:
    return next(filter(has_model, places), None)


def _expected_model(kind: str, folders: Sequence[Path], settings: InferenceSettings) -> Path:
    found = _first_with_model([folder / kind for folder in folders])
    if found is None:
        raise ValueError(
            f"{folders[0] / kind}: expected a trained network, found no {MODEL_FILES[0]}. Train one with "
            f"`python train_{kind}.py --work-dir {settings.work_dir}`, or name its directory with --{kind}."
        )
    return found


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
    return _positive(directory, "spacing_mm", trained.get("spacing_mm"))


def _positive(directory: Path, name: str, found: Any) -> float:
    """Give a number of the settings that a network was trained with; anything else ends the run."""
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    if not is_number or not 0 < found < np.inf:
        raise ValueError(
            f"{directory / 'settings.json'}: expected the {name} of the training, a positive number, "
            f"found {found!r:.80}."
        )
    return float(found)


def _outside(directory: Path, trained: dict[str, Any]) -> Literal["air", "edge"]:
    """What the network was shown beyond the scan; one saved before this was a setting, the edge."""
    found = trained.get("outside", "edge")
    if found not in ("air", "edge"):
        raise ValueError(
            f'{directory / "settings.json"}: expected outside to be "air" or "edge", found {found!r}.'
        )
    return found


def _heat_function(model: keras.Model, _: dict[str, Any]) -> PredictHeat:
    from ML_3D_Unet.utils.folding import without_norms

    run = _compiled(without_norms(model))
    return lambda ct: run(ct[None, ..., None])[0, ..., 0]


def _tile_function(model: keras.Model, trained: dict[str, Any]) -> PredictTile:
    from utils.learning.models import of_any_shape

    run = _compiled(of_any_shape(model, trained))
    return lambda ct: run(ct[None, ..., None])[0]


def _label_function(directory: Path, model: keras.Model, trained: dict[str, Any]) -> PredictLabels:
    from utils.learning.losses import LEVELS, OFFSET, RIB

    edge, outside = model.input_shape[1], _outside(directory, trained)
    run = _compiled(model, LABELLED_TOGETHER)
    # No vertebra has a share of its own in training: its logit becomes that of a class as frequent as each of
    # the levels, so that all are likelihoods.
    none_share = np.clip(float(trained["none_share"]), 0.01, 0.99)
    correction = np.log((1 - none_share) / (none_share * MAX_RANK))

    def labels(ct: Volume, points_voxels: np.ndarray) -> Reading:
        outputs = []
        for start in range(0, len(points_voxels), LABELLED_TOGETHER):
            points = points_voxels[start : start + LABELLED_TOGETHER]
            batch = np.zeros((LABELLED_TOGETHER, edge, edge, edge, 1), np.float32)
            batch[: len(points), ..., 0] = normalise_hu(patches_at(ct, points, edge=edge, outside=outside))
            outputs.append(run(batch)[: len(points)].astype(np.float64))
        found = np.concatenate(outputs)
        found[:, 0] += correction
        return Reading(found[:, LEVELS], found[:, RIB], found[:, OFFSET])

    return labels


def _patch_function(model: keras.Model) -> PredictPatch:
    run = _compiled(model)
    return lambda ct, memory: run(np.stack([ct, memory], axis=-1)[None])[0, ..., 0]


def _compiled(model: keras.Model, batch_size: int = 1):
    """Trace the network once for its one shape: `model.predict` sets up a data pipeline for every patch."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((batch_size, *model.input_shape[1:]), tf.float32)])
    def forward(batch: tf.Tensor) -> tf.Tensor:
        return model(batch, training=False)

    return lambda batch: forward(tf.constant(batch, tf.float32)).numpy()


#: Settings that say where and how a network was made, and nothing of what it does.
_OF_THE_RUN = (
    *(field.name for field in dataclasses.fields(RunSettings)),
    *("work_dir", "start_from", "name", "average_of"),
)


def identity_of_model(directory: Path) -> dict[str, Any]:
    """Give what tells the network of a directory from another one, wherever the directory lies.

    Parameters
    ----------
    directory : Path
        A model directory.

    Returns
    -------
    dict
        SHA-256 of the file with the weights, and of the settings but those that say where and how the
        training ran.

    Raises
    ------
    ValueError
        If there is no network, or no settings; the text names the file.
    """
    settings = {name: value for name, value in load_settings(directory).items() if name not in _OF_THE_RUN}
    text = json.dumps(settings, sort_keys=True)
    return {
        "weights_sha256": sha256_of(model_file(directory)),
        "settings_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
