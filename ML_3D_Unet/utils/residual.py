"""A 3D U-Net of residual blocks that works from half the resolution down, for networks that must be cheap.

At full resolution a U-Net spends most of its operations on few filters. Here a convolution of kernel and
stride 2 brings the input to half the resolution at once, and the last features come back to the full one by a
transposed convolution, where one convolution joins them with the input. A `fine` one has a convolution before
that and a residual block after it, for outlines that depend on single voxels.

Every level of the decoder gives logits, which are summed (Isensee et al. 2018, "Brain tumor segmentation and
radiomics survival prediction"): deep supervision without further outputs or losses.

    model = create_residual_unet3d((64, 64, 64, 2), n_filters=[8, 24, 48, 64], norm="instance_norm")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from .blocks import Activation, Norm, Tensor, check_input_shape, filters_per_level
from .layers_func import n_conv_block


@keras.saving.register_keras_serializable("ML_3D_Unet")
class PatchPlace(keras.layers.Layer):
    """Tell every voxel of a patch where it lies in it: a channel an axis, -1 to 1, and one of the middle.

    Convolutions see no place (Liu et al. 2018, CoordConv); where what is asked for lies in the middle of the
    patch they must. The last channel is exp(-r² / 2 ``width``²), with r the distance from the middle and
    ``width`` in the same units.

    Parameters
    ----------
    width : float
        Width of the middle, as a share of half the patch's edge.
    """

    def __init__(self, width: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width

    def call(self, x: Tensor) -> Tensor:
        """Join the channels of the place to those of a tensor (batch, a, b, c, channels)."""
        axes = [2 * (np.arange(size) + 0.5) / size - 1 for size in x.shape[1:4]]
        along = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        middle = np.exp(-np.sum(along**2, axis=-1, keepdims=True) / (2 * self.width**2))
        place = keras.ops.convert_to_tensor(np.concatenate([along, middle], axis=-1), dtype=x.dtype)
        return keras.ops.concatenate([x, keras.ops.ones_like(x[..., :1]) * place], axis=-1)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Four channels are added."""
        return (*input_shape[:-1], input_shape[-1] + 4)

    def get_config(self) -> dict[str, Any]:
        """Give what makes the same layer."""
        return {**super().get_config(), "width": self.width}


def residual_block(
    x: Tensor, n_filters: int, norm: Norm, activation: Activation, *, name: str, **norms: Any
) -> Tensor:
    """Add to a tensor what two convolutions of 3×3×3 make of it (He et al. 2016), and activate the sum.

    Parameters
    ----------
    x : tensor (batch, a, b, c, n_filters)
        Input.
    n_filters : int
        Its channels, and the result's.
    norm, activation, **norms
        See `blocks.norm_and_activation`.
    name : str
        Beginning of the layers' names.
    """
    more = x
    for number, following in enumerate((activation, None), start=1):
        how = {"norm": norm, "activation": following, "use_bias": False, **norms}
        more = n_conv_block(more, 1, n_filters, name=f"{name}_{number}", **how)
    x = keras.layers.Add(name=f"{name}_sum")([x, more])
    return keras.layers.Activation(activation, name=f"{name}_activation")(x)


def create_residual_unet3d(
    input_shape: Sequence[int | None],
    n_filters: Sequence[int],
    norm: Norm = "instance_norm",
    activation: Activation = "relu",
    *,
    fine: bool = False,
    places: bool = False,
    n_outputs: int = 1,
    final_activation: Activation = "sigmoid",
    name: str = "residual_unet3d",
    **norms: Any,
) -> keras.Model:
    """Build a residual 3D U-Net as a flat model.

    Parameters
    ----------
    input_shape : sequence of 4
        Three sizes in voxels, multiples of ``2 ** (len(n_filters) - 1)``, and the channels.
    n_filters : sequence of int
        Filters of each level, full resolution first, at least two.
    norm, activation, **norms
        See `blocks.norm_and_activation`.
    fine : bool
        Whether a convolution and a residual block work at full resolution too, before the first step down and
        after the last one up.
    places : bool
        Whether every voxel is told where in the patch it lies (`PatchPlace`); the shape must be known then.
    n_outputs : int
        Channels of the output.
    final_activation : str or callable, optional
        Applied to the logits, which are the output of the layer ``last_logits``.
    name : str
        Of the model.

    Returns
    -------
    keras.Model
        From (batch, a, b, c, channels) to (batch, a, b, c, n_outputs) in float32.

    Raises
    ------
    ValueError
        If an argument is not what was expected; it says what was and what was received.
    """
    full, *deeper = filters_per_level(n_filters, None)
    shape = check_input_shape(input_shape, len(deeper) + 1)
    if places and None in shape[:3]:
        raise ValueError(f"Expected a patch of known size for places, received {shape}.")
    layers, how = keras.layers, {"norm": norm, "activation": activation, **norms}
    inputs = keras.Input(shape, name="input")
    x, skips = inputs, []
    if fine:
        first = n_conv_block(inputs, 1, full, name="encoder_1", use_bias=False, **how)
        # The input too, as normalised features no longer tell how dense the bone is.
        x = layers.Concatenate(name="read_1")([first, inputs])
    for level, count in enumerate(deeper, start=2):
        x = layers.Conv3D(count, 2, strides=2, name=f"down_{level}")(x)
        if level == 2 and places:
            x = layers.Conv3D(count, 1, name="placed")(PatchPlace(name="place")(x))
        x = residual_block(x, count, name=f"encoder_{level}", **how)
        skips.append(x)
    logits = None
    for level in reversed(range(2, len(deeper) + 2)):
        if level <= len(deeper):
            x = layers.Conv3D(deeper[level - 2], 1, name=f"narrow_{level}")(x)
            x = layers.UpSampling3D(2, name=f"up_{level}")(x)
            x = layers.Add(name=f"joined_{level}")([x, skips[level - 2]])
            x = residual_block(x, deeper[level - 2], name=f"decoder_{level}", **how)
        logits = _with_logits(logits, x, n_outputs, str(level))
    x = layers.Conv3DTranspose(full, 2, strides=2, name="up_1")(x)
    if fine:
        x = layers.Add(name="joined_1")([x, first])
        x = residual_block(x, full, name="decoder_1", **how)
    else:
        x = layers.Concatenate(name="joined_1")([x, inputs])
        x = n_conv_block(x, 1, full, name="decoder_1", use_bias=False, **how)
    # The sum is the layer that a distillation reads.
    own = layers.Conv3D(n_outputs, 1, dtype="float32", name="logits_1")(x)
    coarse = layers.UpSampling3D(2, dtype="float32", name="logits_up_1")(logits)
    logits = layers.Add(dtype="float32", name="last_logits")([own, coarse])
    outputs = layers.Activation(final_activation, dtype="float32", name="output")(logits)
    return keras.Model(inputs, outputs, name=name)


def _with_logits(logits: Tensor | None, x: Tensor, n_outputs: int, level: str) -> Tensor:
    """Add the logits of a level to those of the level below, brought to twice their size."""
    own = keras.layers.Conv3D(n_outputs, 1, dtype="float32", name=f"logits_{level}")(x)
    if logits is None:
        return own
    below = keras.layers.UpSampling3D(2, dtype="float32", name=f"logits_up_{level}")(logits)
    return keras.layers.Add(dtype="float32", name=f"logits_sum_{level}")([own, below])
