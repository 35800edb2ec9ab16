"""The 3D U-Net as Keras layers: each block, the whole network as one layer, and models made of it.

They are the class form of what `layers_func` builds as a flat model. Both are made of the same lists of
layers (`blocks`), so with the same weights, which lie in the same order, they give the same numbers. A saved
model loads without custom objects wherever this file can be imported.

    model = create_unet3d_class((64, 64, 64, 2), n_filters=[8, 16, 32], norm="batch_norm")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import Input, Model

from .blocks import (
    Activation,
    Norm,
    check_choice,
    check_input_shape,
    dropout_per_level,
    filters_per_level,
    ksize_per_level,
    output_layers,
)
from .layer_blocks import (
    Block,
    ConvBlock,
    DecoderBlock,
    DeconvBlock,
    DownsampleBlock,
    EncoderBlock,
    Shape,
    Tensor,
    UpsampleBlock,
    arguments_of,
    policy_of,
    registered,
    set_plainly,
    without,
)

__all__ = [
    "ConvBlock",
    "DecoderBlock",
    "DeconvBlock",
    "DownsampleBlock",
    "EncoderBlock",
    # Code written for the published module takes these from it too, by `import *`.
    "Input",
    "Model",
    "Unet3D",
    "Unet3D_layer",
    "UpsampleBlock",
    "create_unet3d_class",
    "dropout_per_level",
    "filters_per_level",
    "fresh_copy",
    "ksize_per_level",
    "logits_model",
    "np",
]


@registered
class UnetLogits(Block):
    """The whole network up to its logits, in float32: stem, encoder, decoder, and a convolution of one voxel.

    Parameters
    ----------
    n_outputs : int
        Channels of the output.
    stem : bool
        Whether an extra block of ``n_filters[0]`` filters comes before the first level.
    **kwargs
        Arguments of `EncoderBlock` and `DecoderBlock`.
    """

    def __init__(self, n_outputs: int = 1, stem: bool = True, **kwargs) -> None:
        super().__init__(arguments_of(locals()), kwargs)
        shared = without(self._arguments, "n_outputs", "stem")
        both = without(shared, "pooling", "upsampling")
        filters = filters_per_level(both.get("n_filters"), both.get("depth"))
        kernels = ksize_per_level(both.get("ksize"), len(filters))
        conv = without(both, "n_filters", "ksize", "dropout", "depth")
        with policy_of(self):
            self.stem = (
                ConvBlock(n_filters=filters[0], ksize=kernels[0], name="stem", **conv) if stem else None
            )
            self.encoder = EncoderBlock(pooling=shared.get("pooling", "max"), name="encoder", **both)
            self.decoder = DecoderBlock(upsampling=shared.get("upsampling", True), name="decoder", **both)
            self.last_logits = output_layers(n_outputs, None)[0]

    def build(self, input_shape: Shape) -> None:
        """Make the weights for inputs of this shape."""
        shape = tuple(input_shape)
        if self.stem is not None:
            self.stem.build(shape)
            shape = self.stem.compute_output_shape(shape)
        self.encoder.build(shape)
        below, skips = self.encoder.shapes(shape)
        self.decoder.build(below, skips)
        self.last_logits.build((*shape[:-1], skips["1"][-1]))
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Give the logits, (batch, a, b, c, n_outputs), of (batch, a, b, c, channels)."""
        if self.stem is not None:
            x = self.stem(x)
        return self.last_logits(self.decoder(*self.encoder(x)))


@registered
class Unet3D_layer(Block):
    """The whole network as one layer: `logits`, then `output_activation`.

    Parameters
    ----------
    n_convs, n_filters, ksize, padding, pooling, norm, dropout, upsampling, activation, depth, n_outputs, \
final_activation, stem, **kwargs
        See `layers_func.create_unet3d`.

    Attributes
    ----------
    logits : UnetLogits
        Everything before the last activation.
    output_activation : keras.layers.Activation
        Turns logits into the output.
    """

    def __init__(
        self,
        n_convs: int = 2,
        n_filters: Sequence[int] | None = None,
        ksize: int | Sequence | None = None,
        padding: str = "same",
        pooling: str = "max",
        norm: Norm = None,
        dropout: float | Sequence[float] | None = None,
        upsampling: bool = True,
        activation: Activation = "relu",
        depth: int | None = None,
        *,
        n_outputs: int = 1,
        final_activation: Activation = "sigmoid",
        stem: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(arguments_of(locals()), kwargs)
        check_choice("padding", padding, ("same",))
        with policy_of(self):
            self.logits = UnetLogits(**without(self._arguments, "final_activation"), name="logits")
            self.output_activation = output_layers(n_outputs, self.final_activation)[1]

    def build(self, input_shape: Shape) -> None:
        """Make the weights for inputs of this shape."""
        self.logits.build(input_shape)
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Give the output, (batch, a, b, c, n_outputs) in float32, of (batch, a, b, c, channels)."""
        return self.output_activation(self.logits(x))


@registered
class Unet3D(keras.Model):
    """The network as a model of its own class; its weights are made by `build` or at the first call.

    Parameters
    ----------
    *args, **kwargs
        Those of `Unet3D_layer`; ``name`` and ``dtype`` are the model's. Each is an attribute here too.
    """

    def __init__(self, *args, name: str | None = None, dtype: Any = None, **kwargs) -> None:
        super().__init__(name=name, dtype=dtype)
        self.network = Unet3D_layer(*args, name="network", dtype=self.dtype_policy, **kwargs)
        set_plainly(self, self.network._arguments)

    def build(self, input_shape: Shape) -> None:
        """Make the weights for inputs (batch, a, b, c, channels)."""
        self.network.build(input_shape)
        self.built = True

    def call(self, x: Tensor, **ignored: Any) -> Tensor:
        """Give the output, as `Unet3D_layer` does, whatever else is said (``trainable=True``)."""
        return self.network(x)

    def get_config(self) -> dict[str, Any]:
        """Give all arguments, so that `from_config` makes the same model, with new weights."""
        arguments = self.network.get_config()
        own = keras.layers.Layer.get_config(self)
        return {**arguments, **{key: own[key] for key in ("name", "dtype", "trainable")}}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping | None = None) -> Unet3D:
        """Make the model from what `get_config` gave."""
        config = dict(config)
        trainable = config.pop("trainable", True)
        if isinstance(config.get("dtype"), Mapping):
            config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        model = cls(**config)
        model.trainable = trainable
        return model


def create_unet3d_class(
    input_shape: Sequence[int | None],
    n_convs: int = 2,
    n_filters: Sequence[int] | None = None,
    ksize: int | Sequence | None = None,
    padding: str = "same",
    pooling: str = "max",
    norm: Norm = None,
    dropout: float | Sequence[float] | None = None,
    upsampling: bool = True,
    activation: Activation = "relu",
    depth: int | None = None,
    *,
    n_outputs: int = 1,
    final_activation: Activation = "sigmoid",
    stem: bool = True,
    name: str = "unet3d",
    **kwargs,
) -> keras.Model:
    """Build a 3D U-Net as a model of one layer, `Unet3D_layer`.

    Parameters, though in another order, result and errors are those of `layers_func.create_unet3d`, which
    builds the same network as a flat model: the same weights in the same order, the same output.
    """
    arguments = without(arguments_of(locals()), "input_shape", "name")
    shape = check_input_shape(input_shape, len(filters_per_level(n_filters, depth)))
    inputs = Input(shape, name="input")
    return Model(inputs, Unet3D_layer(name="network", **arguments, **kwargs)(inputs), name=name)


def logits_model(model: keras.Model) -> Callable[..., tuple[Tensor, Tensor]]:
    """Give a function that runs a network and shows its logits beside its output.

    Parameters
    ----------
    model : keras.Model
        A flat model, a model of one `Unet3D_layer`, or an `Unet3D`. Its weights are used, not copied.

    Returns
    -------
    callable (x, training=False) -> (output, logits)
        Both (batch, a, b, c, n_outputs) in float32.

    Raises
    ------
    ValueError
        If the model is none of these.
    """
    for layer in model.layers:
        if isinstance(layer, Unet3D_layer):
            return _with_logits(layer)
        if layer.name == "last_logits":
            inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs
            both = keras.Model(inputs, [model.outputs[0], layer.output])
            return lambda x, training=False: tuple(both(x, training=training))
    raise ValueError(
        f"Expected a model with a Unet3D_layer or a layer last_logits, received {model.name!r} with the "
        f"layers {[layer.name for layer in model.layers]}."
    )


def _with_logits(layer: Unet3D_layer) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(x: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        logits = layer.logits(x, training=training)
        return layer.output_activation(logits), logits

    return run


def fresh_copy(model: keras.Model) -> keras.Model:
    """Give a model of the same architecture with newly drawn weights, in either form."""
    copy = type(model).from_config(model.get_config())
    if not copy.built:
        copy.build_from_config(model.get_build_config())
    return copy
