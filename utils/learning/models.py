"""The two networks, built from their settings, and trained ones read back from their directory."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import keras

from ML_3D_Unet.utils.layers_func import create_unet3d
from utils.settings import HeatmapTrainingSettings, SegmentationTrainingSettings, load_settings

MODEL_FILE = "best.keras"


def build_heatmap_network(
    settings: HeatmapTrainingSettings, shape: tuple[int, int, int], *, replicas: int = 1
) -> keras.Model:
    """Build the heatmap U-Net: the whole volume in, heat and its complement out (softmax).

    Parameters
    ----------
    settings : HeatmapTrainingSettings
        Filters, kind of normalisation, and the momentum of that of batches.
    shape : tuple of int, 3
        Shape of the heatmap grid (P, R, I).
    replicas : int
        Devices that train together; several share the statistics of batch normalisation.

    Returns
    -------
    keras.Model
        From (batch, P, R, I, 1) to (batch, P, R, I, 2).
    """
    return create_unet3d(
        input_shape=(*shape, 1),
        n_filters=list(settings.filters),
        norm=f"{settings.norm}_norm",
        norm_momentum=settings.norm_momentum,
        norm_synchronized=replicas > 1,
        n_outputs=2,
        final_activation="softmax",
        stem=False,
        **_COMMON,
    )


def build_segmentation_network(settings: SegmentationTrainingSettings, *, replicas: int = 1) -> keras.Model:
    """Build the segmentation U-Net: CT patch and memory in, probability of the next vertebra out.

    Parameters
    ----------
    settings : SegmentationTrainingSettings
        Patch size, filters, kind of normalisation, and the momentum of that of batches.
    replicas : int
        Devices that train together; several share the statistics of batch normalisation.

    Returns
    -------
    keras.Model
        From (batch, n, n, n, 2) to (batch, n, n, n, 1).
    """
    return create_unet3d(
        input_shape=(*(settings.patch_voxels,) * 3, 2),
        n_filters=list(settings.filters),
        norm=f"{settings.norm}_norm",
        norm_momentum=settings.norm_momentum,
        norm_synchronized=replicas > 1,
        **_COMMON,
    )


_COMMON: dict[str, Any] = {
    "n_convs": 2,
    "ksize": 3,
    "padding": "same",
    "pooling": "max",
    "dropout": None,
    "upsampling": True,
    "activation": "relu",
}


def load_model(directory: Path) -> tuple[keras.Model, dict[str, Any]]:
    """Read a trained network and the settings saved beside it.

    Parameters
    ----------
    directory : Path
        A model directory, as a training script leaves it.

    Returns
    -------
    tuple of keras.Model, dict
        The network, without optimizer, and its settings.

    Raises
    ------
    ValueError
        If the network or its settings are not there or cannot be read; the text names the file.
    """
    path = directory / MODEL_FILE
    if not path.is_file():
        raise ValueError(f"{path}: expected a trained network, found no such file.")
    settings = load_settings(directory)
    try:
        # In float32: a CPU has no fast half precision, and outputs should not depend on the training's GPU.
        return compute_in(keras.models.load_model(path, compile=False), "float32"), settings
    except (ValueError, OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: expected a Keras model, found {first_line}") from error


def take_over_weights(network: keras.Model, directory: Path | None) -> None:
    """Give a new network the weights of a trained one.

    A network with instance normalisation may begin with one trained with batch normalisation, whose moving
    statistics it has no place for.

    Parameters
    ----------
    network : keras.Model
        Changed in place.
    directory : Path or None
        A model directory, as a training script leaves it; None changes nothing.

    Raises
    ------
    ValueError
        If the trained network cannot be read or its weights have other shapes; the text names the directory.
    """
    if directory is None:
        return
    trained, _ = load_model(directory)
    weights = trained.weights
    if not any(map(_is_statistic, network.weights)):
        weights = [weight for weight in weights if not _is_statistic(weight)]
    expected, found = ([weight.shape for weight in some] for some in (network.weights, weights))
    if expected != found:
        raise ValueError(
            f"{directory}: expected a network of {network.count_params()} parameters in the shapes of this "
            f"training's, found one of {trained.count_params()}; its preset, filters and norm must be the "
            "same."
        )
    network.set_weights([weight.numpy() for weight in weights])


def _is_statistic(weight: keras.Variable) -> bool:
    """Whether a weight is a moving mean or variance of batch normalisation."""
    return weight.name in ("moving_mean", "moving_variance")


def compute_in(model: keras.Model, precision: str) -> keras.Model:
    """Let the layers of a network compute in other numbers than those it was trained in; its weights stay.

    Parameters
    ----------
    model : keras.Model
        Changed in place. Its weights are float32, and so are its last two layers, in any case.
    precision : str
        "float32", "bfloat16" or "float16".

    Returns
    -------
    keras.Model
        The same model.
    """
    for layer in model._flatten_layers(include_self=False):
        is_last = layer.name in ("last_logits", "output")
        layer.dtype_policy = "float32" if is_last or precision == "float32" else f"mixed_{precision}"
    return model
