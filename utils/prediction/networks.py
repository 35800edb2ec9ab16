"""The networks of an inference: where they are looked for, checked, and turned into functions on arrays.

TensorFlow is imported only when a network is loaded, so a wrong command line is answered at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from utils.files import sha256_of
from utils.learning.model_files import MODEL_FILES, has_model, model_file
from utils.localisation.candidates import LEVELS, PredictTile
from utils.settings import InferenceSettings, RunSettings, load_settings
from utils.verse.labels import MAX_RANK
from utils.walk.locate import PredictHeat
from utils.walk.records import PredictPatch

if TYPE_CHECKING:
    import keras

#: Networks that are shipped with the code: the last place that is looked at.
STARTER_DIR = Path(__file__).resolve().parents[2] / "models" / "starter"


@dataclass(frozen=True, eq=False)
class Networks:
    """The two trained networks as functions on arrays, and the settings they were trained with.

    Attributes
    ----------
    heat : callable
        From a tile of the CT to the channels of `utils.localisation.candidates`, or, of a published heatmap
        network, from the whole CT on the heatmap grid to the heat.
    patch : callable
        From the CT and the memory of a patch to the probability of the next vertebra.
    heatmap_shape : tuple of int, 3
        Shape of the tile, or of the heatmap grid.
    heatmap_mm : float
        Spacing of the tiles.
    heatmap_outside : str
        What the heatmap network was shown beyond the scan, "air" or "edge".
    finds_centres : bool
        Whether the heatmap network finds the vertebrae one by one, or the spine, as published.
    temperature : float
        What the levels' log-probabilities are divided by.
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

    @property
    def walk(self) -> dict[str, Any]:
        """What the networks fix of a walk."""
        return {name: getattr(self, name) for name in ("patch_voxels", "spacing_mm", "outside")}


def load_networks(settings: InferenceSettings) -> Networks:
    """Load and compile the two networks, batch normalisation folded into the convolutions before it.

    Parameters
    ----------
    settings : InferenceSettings
        `segmentation` and `heatmap` name their directories. By default the segmentation network is that
        of the work folder, else the one shipped with the code; the heatmap network is the one beside
        it, else that of the work folder.

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
    spacing_mm, heatmap_mm = _spacing(segmentation_dir, trained), _spacing(heatmap_dir, heatmap_trained)
    finds_centres = heatmap_trained.get("target") == "centres"
    if not finds_centres and not np.isclose(spacing_mm, heatmap_mm):
        raise ValueError(
            f"{heatmap_dir}: a model of another preset: expected the spacing of {segmentation_dir}, "
            f"{spacing_mm:g} mm, found {heatmap_mm:g} mm."
        )
    heat = _tile_function if finds_centres else _heat_function
    return Networks(
        heat=heat(heatmap, heatmap_trained),
        patch=_patch_function(without_norms(segmentation)),
        heatmap_shape=tuple(heatmap.input_shape[1:4]),
        patch_voxels=segmentation.input_shape[1],
        spacing_mm=spacing_mm,
        preset=str(trained.get("preset", "full")),
        origin={
            "segmentation": identity_of_model(segmentation_dir),
            "heatmap": identity_of_model(heatmap_dir),
        },
        outside=_outside(segmentation_dir, trained),
        finds_centres=finds_centres,
        heatmap_mm=heatmap_mm,
        heatmap_outside=_outside(heatmap_dir, heatmap_trained),
        temperature=float(heatmap_trained.get("temperature", 1.0)),
    )


def model_directories(settings: InferenceSettings) -> tuple[Path, Path]:
    """Give the directories of the segmentation and of the heatmap network (see `load_networks`)."""
    models = settings.work_dir / "models"
    segmentation = settings.segmentation or _expected_model("segmentation", (models, STARTER_DIR), settings)
    heatmap = settings.heatmap or _expected_model("heatmap", (segmentation.parent, models), settings)
    return segmentation, heatmap


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
    if len(shape) != 5 or shape[4] != 1 or heatmap.output_shape[-1] not in (2, LEVELS + MAX_RANK):
        raise ValueError(f"{heatmap_dir}: expected a heatmap network, found input shape {shape}.")


def _spacing(directory: Path, trained: dict[str, Any]) -> float:
    try:
        return float(trained["spacing_mm"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{directory / 'settings.json'}: expected the spacing_mm of the training, "
            f"found {trained.get('spacing_mm')!r}."
        ) from None


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
