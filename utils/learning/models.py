"""The networks, built from their settings, and trained ones read back from their directory."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras

from ML_3D_Unet.utils.files import check_room
from ML_3D_Unet.utils.folding import without_large_arrays
from ML_3D_Unet.utils.layers_func import create_unet3d, encoder_unet3d, upsample_block
from ML_3D_Unet.utils.residual import create_residual_unet3d
from ML_3D_Unet.utils.run_directory import bytes_of_weights
from utils.files import written_whole
from utils.imaging.file_checks import READ_ERRORS, first_line
from utils.imaging.intensities import HU_GAIN, LOWEST, LOWEST_HU
from utils.learning.losses import LABELLING_OUTPUTS
from utils.learning.model_files import MODEL_FILES, WEIGHTS_SUFFIX, model_file
from utils.settings import (
    SETTINGS_FILE,
    HeatmapTrainingSettings,
    LabellingTrainingSettings,
    SegmentationTrainingSettings,
    load_settings,
)

#: Where the logit of heat begins: hardly any voxel is a centre.
RARE = -4.0
#: Middle and half width of the window of bone that the localiser sees beside the whole range, HU.
WINDOW_HU = (100.0, 200.0)


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
    outputs = {"n_outputs": 2, "final_activation": "softmax"}
    return _build_unet(settings, (*shape, 1), replicas, stem=False, **outputs)


def build_localiser(
    settings: HeatmapTrainingSettings, *, replicas: int = 1, shape: tuple[int | None, ...] | None = None
) -> keras.Model:
    """Build the network that finds vertebrae: a U-Net that gives the heat of their bodies' centres.

    The heat is read from the last two levels of the decoder: the one before the last has more features.

    Parameters
    ----------
    settings : HeatmapTrainingSettings
        Crop, filters, kind of normalisation, and the momentum of that of batches.
    replicas : int
        Devices that train together; several share the statistics of batch normalisation.
    shape : tuple of int or None, 3, optional
        Another shape than the crop's, None for any.

    Returns
    -------
    keras.Model
        From (batch, P, R, I, 1) to (batch, P, R, I, 2) in float32: heat of bodies and of the first sacral
        body (sigmoid).
    """
    filters = list(settings.filters)
    parts = {
        "ksize": 3,
        "norm": f"{settings.norm}_norm",
        "norm_momentum": settings.norm_momentum,
        "norm_synchronized": replicas > 1,
    }
    inputs = keras.Input((*(shape or settings.crop_voxels), 1), name="input")
    skips, x = encoder_unet3d(_with_bone_window(inputs), n_filters=filters, name="encoder", **parts)
    levels = [x]
    for number in reversed(range(1, len(filters))):
        x = upsample_block(skips, x, n_filters=filters[number - 1], depth=number, name="decoder", **parts)
        levels.append(x)
    fine = keras.layers.Concatenate(name="fine")(
        [keras.layers.UpSampling3D(2, name="coarse")(levels[-2]), levels[-1]]
    )
    rare = keras.initializers.Constant(RARE)
    heat = keras.layers.Conv3D(
        2, 3, padding="same", dtype="float32", name="last_logits", bias_initializer=rare
    )(fine)
    heat = keras.layers.Activation("sigmoid", dtype="float32", name="output")(heat)
    return keras.Model(inputs, heat, name="localiser")


def build_labelling_network(settings: LabellingTrainingSettings, *, replicas: int = 1) -> keras.Model:
    """Build the network that tells what lies around a point: no vertebra's body, or which, and its centre.

    Parameters
    ----------
    settings : LabellingTrainingSettings
        Patch, filters and dropout.
    replicas : int
        Devices that train together; each example is normalised by itself, so that it makes no difference.

    Returns
    -------
    keras.Model
        From (batch, n, n, n, 1) to (batch, LABELLING_OUTPUTS) in float32: logits and the way to the body's
        centre, as `losses.LEVELS` and those after it.
    """
    layers = keras.layers
    inputs = keras.Input((*(settings.patch_voxels,) * 3, 1), name="input")
    x = _with_bone_window(inputs)
    for level, count in enumerate(settings.filters):
        # The first level has one convolution: at its resolution another would cost as much as all the rest.
        for stride in (2, 1)[: 1 if level == 0 else 2]:
            name = f"level_{level + 1}_{2 - stride}"
            x = layers.Conv3D(count, 3, strides=stride, padding="same", use_bias=False, name=f"{name}_conv")(
                x
            )
            x = layers.GroupNormalization(groups=-1, name=f"{name}_norm")(x)
            x = layers.ReLU(name=f"{name}_activation")(x)
    x = layers.Conv3D(settings.filters[-1] // 2, 1, activation="relu", name="narrow")(x)
    x = layers.Dropout(settings.dropout, name="dropout")(layers.Flatten(name="flat")(x))
    x = layers.Dense(settings.filters[-1], activation="relu", name="dense")(x)
    outputs = layers.Dense(LABELLING_OUTPUTS, dtype="float32", name="last_logits")(x)
    return keras.Model(inputs, outputs, name="labelling")


def _with_bone_window(inputs: keras.KerasTensor) -> keras.KerasTensor:
    """Add a second channel, the tangens hyperbolicus of a window of bone.

    The contrast of a disc and a dull body is a fiftieth of the whole range. It is computed in float32, as
    bfloat16 has steps of 4 HU there.
    """
    middle, half_width = WINDOW_HU
    scale = 1.0 / (HU_GAIN * half_width)
    offset = (LOWEST_HU - LOWEST / HU_GAIN - middle) / half_width
    scaled = keras.layers.Rescaling(scale, offset, dtype="float32", name="window")(inputs)
    window = keras.layers.Activation("tanh", dtype="float32", name="window_tanh")(scaled)
    return keras.layers.Concatenate(dtype="float32", name="windows")([inputs, window])


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
    shape = (*(settings.patch_voxels,) * 3, 2)
    if settings.network == "unet":
        return _build_unet(settings, shape, replicas)
    return create_residual_unet3d(
        shape,
        settings.filters,
        f"{settings.norm}_norm",
        fine=settings.network == "fine_residual",
        places=settings.patch_kinds == "centred",
        norm_momentum=settings.norm_momentum,
        norm_synchronized=replicas > 1,
    )


def _build_unet(
    settings: HeatmapTrainingSettings | SegmentationTrainingSettings,
    input_shape: tuple[int, int, int, int],
    replicas: int,
    **differing: Any,
) -> keras.Model:
    return create_unet3d(
        input_shape=input_shape,
        n_convs=2,
        n_filters=list(settings.filters),
        ksize=3,
        padding="same",
        pooling="max",
        norm=f"{settings.norm}_norm",
        dropout=None,
        upsampling=True,
        activation="relu",
        norm_momentum=settings.norm_momentum,
        norm_synchronized=replicas > 1,
        **differing,
    )


def _heatmap_network_of(found: dict[str, Any]) -> keras.Model:
    if found.get("target") == "centres":
        return _localiser_of(found)
    parts = _architecture(found, ("filters", "norm", "norm_momentum"))
    settings = HeatmapTrainingSettings(target="spine", **parts)
    return build_heatmap_network(settings, tuple(found["heatmap_shape"]))


def _localiser_of(found: dict[str, Any]) -> keras.Model:
    """Build it for inputs of any shape: whole scans, where it was trained on crops."""
    names = ("filters", "norm", "norm_momentum")
    return build_localiser(HeatmapTrainingSettings(**_architecture(found, names)), shape=(None,) * 3)


def _segmentation_network_of(found: dict[str, Any]) -> keras.Model:
    names = ("filters", "norm", "norm_momentum", "patch_voxels", "network", "patch_kinds")
    return build_segmentation_network(SegmentationTrainingSettings(**_architecture(found, names)))


def _labelling_network_of(found: dict[str, Any]) -> keras.Model:
    names = ("filters", "patch_voxels", "dropout")
    return build_labelling_network(LabellingTrainingSettings(**_architecture(found, names)))


#: From the "stage" of `settings.json` to what builds its network.
_NETWORK_OF_STAGE: dict[str, Callable[[dict[str, Any]], keras.Model]] = {
    "HeatmapTrainingSettings": _heatmap_network_of,
    "LabellingTrainingSettings": _labelling_network_of,
    "SegmentationTrainingSettings": _segmentation_network_of,
}
#: What readers of a network raise on a damaged file.
_MODEL_ERRORS = (*READ_ERRORS, AttributeError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error)
#: What settings that are younger than some trained networks were before one could choose.
_BEFORE_THEY_WERE_SETTINGS = {"norm": "batch", "network": "unet", "patch_kinds": "paper"}


def _architecture(found: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Take the settings that make an architecture: what else an older or newer version wrote is no matter."""
    found = {**_BEFORE_THEY_WERE_SETTINGS, **found}
    values = {name: found[name] for name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def build_network(found: dict[str, Any], *, source: Path) -> keras.Model:
    """Build the network that a `settings.json` describes, with weights of its own.

    Parameters
    ----------
    found : dict
        Contents of the file, as a training leaves it.
    source : Path
        The file, which errors name.

    Returns
    -------
    keras.Model
        A heatmap or segmentation network.

    Raises
    ------
    ValueError
        If the settings are of another stage, or what makes the architecture is missing or makes none.
    """
    build = _NETWORK_OF_STAGE.get(found.get("stage"))
    if build is None:
        stages = ", ".join(_NETWORK_OF_STAGE)
        raise ValueError(f"{source}: expected one of the stages {stages}, found {found.get('stage')!r}.")
    try:
        return build(found)
    except KeyError as error:
        raise ValueError(f"{source}: expected the setting {error} of the network, found none.") from None
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{source}: expected settings that make a network, found {first_line(error)}"
        ) from error


def of_any_shape(localiser: keras.Model, found: dict[str, Any]) -> keras.Model:
    """Give the same localiser for inputs of any shape, without its largest arrays.

    Parameters
    ----------
    localiser : keras.Model
        As `load_model` gives it.
    found : dict
        The settings that it was trained with.

    Returns
    -------
    keras.Model
    """
    network = localiser
    if None not in localiser.input_shape[1:4]:  # the whole network of an earlier version
        network = compute_in(_localiser_of(found), "float32")
        network.set_weights(localiser.get_weights())
    # The joined channels of a whole scan would be the largest array of an inference.
    return without_large_arrays(network)


def load_model(directory: Path) -> tuple[keras.Model, dict[str, Any]]:
    """Read a trained network and the settings saved beside it.

    Parameters
    ----------
    directory : Path
        A model directory, as a training script leaves it. `best.weights.h5` is read, else the `best.keras` of
        an earlier training.

    Returns
    -------
    tuple of keras.Model, dict
        The network, without optimizer, and its settings.

    Raises
    ------
    ValueError
        If the network or its settings are not there or cannot be read; the text names the file.
    """
    path = model_file(directory)
    settings = load_settings(directory)
    read = _read_weights if path.name == MODEL_FILES[0] else _read_whole
    # In float32: a CPU has no fast half precision, and outputs should not depend on the training's GPU.
    return compute_in(read(path, settings), "float32"), settings


def _read_weights(path: Path, settings: dict[str, Any]) -> keras.Model:
    network = build_network(settings, source=path.with_name(SETTINGS_FILE))
    try:
        _check_shapes(network, path)
        network.load_weights(path)
    except _MODEL_ERRORS as error:
        raise ValueError(
            f"{path}: expected the weights of the network of {SETTINGS_FILE}, found {first_line(error)}"
        ) from error
    return network


def _check_shapes(network: keras.Model, path: Path) -> None:
    """Compare the shapes in a file with a network's: Keras would warn and go on for as long as it can."""
    expected, found = Counter(tuple(each.shape) for each in network.weights), _shapes_in(path)
    if found != expected:
        raise ValueError(
            f"{found.total()} arrays in place of {expected.total()}: {(expected - found).total()} of their "
            f"shapes are missing, {(found - expected).total()} are too many."
        )


def _shapes_in(path: Path) -> Counter[tuple[int, ...]]:
    """Count the arrays of a file by their shapes."""
    shapes: Counter[tuple[int, ...]] = Counter()

    def count(_: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            shapes[item.shape] += 1

    with h5py.File(path) as file:
        file.visititems(count)
    return shapes


def _read_whole(path: Path, _: dict[str, Any]) -> keras.Model:
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
        if damaged is not None:  # Keras does not read all parts to their ends
            raise ValueError(f"a checksum of {damaged} that is wrong")
        return keras.models.load_model(path, compile=False)
    except _MODEL_ERRORS as error:
        raise ValueError(f"{path}: expected a Keras model, found {first_line(error)}") from error


def save_weights(network: keras.Model, directory: Path) -> Path:
    """Write the weights of a network into a model directory, whole or not at all.

    Parameters
    ----------
    network : keras.Model
        The network; its settings are written by `utils.settings.save_settings`.
    directory : Path
        Folder, made if it is not there.

    Returns
    -------
    Path
        The file written.
    """
    path = directory / MODEL_FILES[0]
    with written_whole(path, suffix=WEIGHTS_SUFFIX) as temporary:
        check_room(temporary, bytes_of_weights(network))
        network.save_weights(temporary)
    return path


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


#: Layers that compute in float32 in any case.
_IN_FLOAT32 = ("window", "window_tanh", "windows", "last_logits", "output")


def compute_in(model: keras.Model, precision: str) -> keras.Model:
    """Let the layers of a network compute in other numbers than those it was trained in; its weights stay.

    Parameters
    ----------
    model : keras.Model
        Changed in place. Its weights are float32, and so are its last layers, in any case.
    precision : str
        "float32", "bfloat16" or "float16".

    Returns
    -------
    keras.Model
        The same model.
    """
    for layer in model._flatten_layers(include_self=False):
        is_last = layer.name in _IN_FLOAT32
        layer.dtype_policy = "float32" if is_last or precision == "float32" else f"mixed_{precision}"
    return model
