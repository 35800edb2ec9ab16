"""The 3D U-Net as Keras layers: each block, the whole network as one layer, and models made of it.

They are the class form of what `layers_func` builds as a flat model. Both are made of the same lists of
layers (`blocks`), so with the same weights, which lie in the same order, they give the same numbers. A saved
model loads without custom objects wherever this file can be imported.

    model = create_unet3d_class((64, 64, 64, 2), n_filters=[8, 16, 32], norm="batch_norm")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import keras

from .blocks import (
    Activation,
    check_choice,
    check_input_shape,
    conv_block_layers,
    dropout_layers,
    dropout_per_level,
    filters_per_level,
    ksize_per_level,
    output_layers,
    pooling_layers,
    upsampling_layers,
)

__all__ = [
    "ConvBlock",
    "DecoderBlock",
    "DeconvBlock",
    "DownsampleBlock",
    "EncoderBlock",
    "Unet3D",
    "Unet3D_layer",
    "UpsampleBlock",
    "create_unet3d_class",
    "dropout_per_level",
    "filters_per_level",
    "fresh_copy",
    "ksize_per_level",
    "logits_model",
]

#: One name under which the layers are known, by whatever path this file was imported.
registered = keras.saving.register_keras_serializable(package="ML_3D_Unet")
#: Keywords of a block that are not those of its convolutions.
_LAYER_KEYWORDS = ("name", "dtype", "trainable", "autocast")
_ACTIVATIONS = ("activation", "final_activation")

Tensor = keras.KerasTensor
Shape = tuple[int | None, ...]


@contextmanager
def _policy(policy: keras.DTypePolicy) -> Iterator[None]:
    """Let layers that are made in the block compute as the layer that makes them."""
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def _built(layers: Sequence[keras.layers.Layer], shape: Shape) -> Shape:
    """Make the weights of layers that follow each other; give the shape of what comes out."""
    for layer in layers:
        layer.build(shape)
        shape = layer.compute_output_shape(shape)
    return tuple(shape)


def _shape_after(layers: Sequence[keras.layers.Layer], shape: Shape) -> Shape:
    for layer in layers:
        shape = layer.compute_output_shape(shape)
    return tuple(shape)


def _applied(layers: Sequence[keras.layers.Layer], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


class _Block(keras.layers.Layer):
    """What all blocks share: they remember their arguments and give them as their configuration.

    Parameters
    ----------
    arguments : dict
        Arguments of the block by name.
    keywords : dict
        Its further keywords: those of a Keras layer, and those that its parts take.
    """

    def __init__(self, arguments: dict[str, Any], keywords: dict[str, Any]) -> None:
        super().__init__(**{name: keywords[name] for name in _LAYER_KEYWORDS if name in keywords})
        more = {name: value for name, value in keywords.items() if name not in _LAYER_KEYWORDS}
        for name in _ACTIVATIONS:
            if isinstance(arguments.get(name), Mapping):  # as it stands in a saved configuration
                arguments = {**arguments, name: keras.activations.get(arguments[name])}
        # Read-only, or Keras would turn the lists in it into ones of its own.
        self._arguments = MappingProxyType({**arguments, **more})

    def get_config(self) -> dict[str, Any]:
        """Give all arguments, so that `from_config` makes the same block, with new weights."""
        config = {**super().get_config(), **self._arguments}
        for name in _ACTIVATIONS:
            if callable(config.get(name)):
                config[name] = keras.activations.serialize(config[name])
        return config


def _arguments(scope: dict[str, Any]) -> dict[str, Any]:
    """Give the arguments among the local variables at the beginning of an `__init__`."""
    return {name: value for name, value in scope.items() if name not in ("self", "kwargs", "__class__")}


@registered
class ConvBlock(_Block):
    """`n_convs` times a convolution, its normalisation and its activation.

    Parameters
    ----------
    n_convs, n_filters, ksize, padding, norm, activation
        See `blocks.conv_block_layers`.
    **kwargs
        ``norm_momentum``, ``norm_synchronized``, those of a Keras layer (``name``, ``dtype``), and anything
        else that `keras.layers.Conv3D` takes.

    Raises
    ------
    ValueError
        If an argument is not what was expected.
    """

    def __init__(
        self,
        n_convs: int = 2,
        n_filters: int = 8,
        ksize: int | Sequence[int] = 3,
        padding: str = "same",
        norm: str | None = None,
        activation: Activation = "relu",
        **kwargs,
    ) -> None:
        super().__init__(_arguments(locals()), kwargs)
        with _policy(self.dtype_policy):
            self.parts = conv_block_layers(**{**self._arguments, "name": self.name})

    def build(self, input_shape: Shape) -> None:
        """Make the weights for inputs of this shape."""
        _built(self.parts, input_shape)
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Give (batch, a, b, c, n_filters) for (batch, a, b, c, channels)."""
        return _applied(self.parts, x)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Give the shape of the output for one of the input."""
        return _shape_after(self.parts, input_shape)


@registered
class DownsampleBlock(_Block):
    """One level of the encoder: a convolution block, then pooling by 2 and dropout.

    Parameters
    ----------
    n_convs, n_filters, ksize, padding, activation, norm, **kwargs
        See `ConvBlock`.
    pooling : {'max', 'avg'}
        What each group of 2×2×2 voxels becomes.
    dropout : float
        Rate, applied to what goes down a level.
    """

    def __init__(
        self,
        n_convs: int = 2,
        n_filters: int = 8,
        ksize: int | Sequence[int] = 3,
        padding: str = "same",
        activation: Activation = "relu",
        pooling: str = "max",
        norm: str | None = None,
        dropout: float = 0,
        **kwargs,
    ) -> None:
        super().__init__(_arguments(locals()), kwargs)
        conv = {k: v for k, v in self._arguments.items() if k not in ("pooling", "dropout")}
        with _policy(self.dtype_policy):
            self.block = ConvBlock(**conv, name=f"{self.name}_convs")
            self.parts = pooling_layers(pooling, dropout, name=self.name)

    def build(self, input_shape: Shape) -> None:
        """Make the weights for inputs of this shape."""
        self.block.build(input_shape)
        _built(self.parts, self.block.compute_output_shape(input_shape))
        self.built = True

    def call(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give what the decoder takes up again, and what goes down a level, half as large an axis."""
        conv_out = self.block(x)
        return conv_out, _applied(self.parts, conv_out)


@registered
class EncoderBlock(_Block):
    """The encoder: a `DownsampleBlock` for every level but the last, and the bottleneck.

    Parameters
    ----------
    n_filters, ksize, dropout, depth
        See `blocks.filters_per_level`, `blocks.ksize_per_level`, `blocks.dropout_per_level`.
    n_convs, padding, activation, pooling, norm, **kwargs
        See `DownsampleBlock`.
    """

    def __init__(
        self,
        n_convs: int = 2,
        n_filters: Sequence[int] | None = None,
        ksize: int | Sequence | None = None,
        padding: str = "same",
        activation: Activation = "relu",
        pooling: str = "max",
        norm: str | None = None,
        dropout: float | Sequence[float] | None = None,
        depth: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(_arguments(locals()), kwargs)
        filters = filters_per_level(n_filters, depth)
        kernels, rates = ksize_per_level(ksize, len(filters)), dropout_per_level(dropout, len(filters))
        own = ("n_filters", "ksize", "dropout", "depth", "pooling")
        conv = {k: v for k, v in self._arguments.items() if k not in own}
        with _policy(self.dtype_policy):
            self.levels = [
                DownsampleBlock(
                    n_filters=filters[level],
                    ksize=kernels[level],
                    pooling=pooling,
                    dropout=rate,
                    name=f"{self.name}_{level}",
                    **conv,
                )
                for level, rate in enumerate(rates)
            ]
            self.bottleneck = ConvBlock(
                n_filters=filters[-1], ksize=kernels[-1], name=f"{self.name}_{len(rates)}", **conv
            )

    def build(self, input_shape: Shape) -> None:
        """Make the weights for inputs of this shape."""
        shape = input_shape
        for level in self.levels:
            level.build(shape)
            shape = _shape_after(level.parts, level.block.compute_output_shape(shape))
        self.bottleneck.build(shape)
        self.built = True

    def call(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Give the output of every level above the bottleneck, by level "0", "1", ..., and its own."""
        layers_to_concat = {}
        for number, level in enumerate(self.levels):
            layers_to_concat[str(number)], x = level(x)
        return layers_to_concat, self.bottleneck(x)

    def shapes(self, input_shape: Shape) -> tuple[dict[str, Shape], Shape]:
        """Give the shapes of what `call` gives."""
        skips, shape = {}, input_shape
        for number, level in enumerate(self.levels):
            skips[str(number)] = level.block.compute_output_shape(shape)
            shape = _shape_after(level.parts, skips[str(number)])
        return skips, self.bottleneck.compute_output_shape(shape)


@registered
class DeconvBlock(_Block):
    """The way up to the next level: doubling each axis.

    Parameters
    ----------
    upsampling : bool
        True repeats every voxel and has no weights; False is a transposed convolution (kernel and stride 2)
        with `n_filters` channels, followed by normalisation and activation.
    n_filters, norm, activation, **kwargs
        See `ConvBlock`; used for the transposed convolution only.
    """

    def __init__(
        self,
        upsampling: bool = True,
        n_filters: int = 8,
        norm: str | None = None,
        activation: Activation = "relu",
        **kwargs,
    ) -> None:
        super().__init__(_arguments(locals()), kwargs)
        with _policy(self.dtype_policy):
            self.parts = upsampling_layers(**{**self._arguments, "name": self.name})

    def build(self, input_shape: Shape) -> None:
        """Make the weights for inputs of this shape."""
        _built(self.parts, input_shape)
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Give (batch, 2a, 2b, 2c, channels)."""
        return _applied(self.parts, x)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Give the shape of the output for one of the input."""
        return _shape_after(self.parts, input_shape)


@registered
class UpsampleBlock(_Block):
    """One level of the decoder: double the size, join the encoder's output, dropout, convolutions.

    Parameters
    ----------
    n_convs, n_filters, ksize, padding, activation, norm, **kwargs
        See `ConvBlock`.
    dropout : float
        Rate, applied to the joined channels.
    depth : int
        Level whose entry of `layers_to_concat` is joined.
    upsampling : bool
        See `DeconvBlock`.
    """

    def __init__(
        self,
        n_convs: int = 2,
        n_filters: int = 8,
        ksize: int | Sequence[int] = 3,
        padding: str = "same",
        activation: Activation = "relu",
        norm: str | None = None,
        dropout: float = 0,
        depth: int = 0,
        upsampling: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(_arguments(locals()), kwargs)
        conv = {k: v for k, v in self._arguments.items() if k not in ("dropout", "depth", "upsampling")}
        up = {k: v for k, v in conv.items() if k not in ("n_convs", "ksize", "padding")}
        with _policy(self.dtype_policy):
            self.up = DeconvBlock(upsampling, name=f"{self.name}_up", **up)
            self.concat = keras.layers.Concatenate(name=f"{self.name}_concat")
            self.dropouts = dropout_layers(dropout, name=self.name)
            self.block = ConvBlock(**conv, name=f"{self.name}_convs")

    def build(self, layers_to_concat_shape: Mapping[str, Shape], x_shape: Shape) -> None:
        """Make the weights for inputs of these shapes."""
        self._check_level(layers_to_concat_shape)
        skip_shape = layers_to_concat_shape[str(self._arguments["depth"])]
        self.up.build(x_shape)
        joined = [self.up.compute_output_shape(x_shape), tuple(skip_shape)]
        self.concat.build(joined)
        shape = self.concat.compute_output_shape(joined)
        _built(self.dropouts, shape)
        self.block.build(tuple(shape))
        self.built = True

    def _check_level(self, layers_to_concat: Mapping[str, Any]) -> None:
        depth = self._arguments["depth"]
        if str(depth) not in layers_to_concat:
            raise ValueError(
                f"Expected depth to be one of the levels {sorted(layers_to_concat)} of layers_to_concat, "
                f"received {depth!r}."
            )

    def call(self, layers_to_concat: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Give (batch, 2a, 2b, 2c, n_filters) from the encoder's outputs and the level below."""
        joined = self.concat([self.up(x), layers_to_concat[str(self._arguments["depth"])]])
        return self.block(_applied(self.dropouts, joined))


@registered
class DecoderBlock(_Block):
    """The decoder: an `UpsampleBlock` for every level above the bottleneck, from below.

    Parameters
    ----------
    n_filters, ksize, dropout, depth
        As for `EncoderBlock`: level 0 first, the bottleneck's entries included but not used.
    n_convs, padding, activation, norm, upsampling, **kwargs
        See `UpsampleBlock`.
    """

    def __init__(
        self,
        n_convs: int = 2,
        n_filters: Sequence[int] | None = None,
        ksize: int | Sequence | None = None,
        padding: str = "same",
        activation: Activation = "relu",
        upsampling: bool = True,
        norm: str | None = None,
        dropout: float | Sequence[float] | None = None,
        depth: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(_arguments(locals()), kwargs)
        filters = filters_per_level(n_filters, depth)
        kernels, rates = ksize_per_level(ksize, len(filters)), dropout_per_level(dropout, len(filters))
        shared = {
            k: v for k, v in self._arguments.items() if k not in ("n_filters", "ksize", "dropout", "depth")
        }
        with _policy(self.dtype_policy):
            self.levels = [
                UpsampleBlock(
                    n_filters=filters[level],
                    ksize=kernels[level],
                    dropout=rates[level],
                    depth=level,
                    name=f"{self.name}_{level}",
                    **shared,
                )
                for level in reversed(range(len(rates)))
            ]

    def build(self, layers_to_concat_shape: Mapping[str, Shape], x_shape: Shape) -> None:
        """Make the weights for inputs of these shapes."""
        for level in self.levels:
            level.build(layers_to_concat_shape, x_shape)
            skip_shape = layers_to_concat_shape[str(level._arguments["depth"])]
            x_shape = (*tuple(skip_shape)[:-1], level._arguments["n_filters"])
        self.built = True

    def call(self, layers_to_concat: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Give (batch, a, b, c, n_filters[0]) from what the encoder gave."""
        for level in self.levels:
            x = level(layers_to_concat, x)
        return x


@registered
class UnetLogits(_Block):
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
        super().__init__(_arguments(locals()), kwargs)
        shared = {k: v for k, v in self._arguments.items() if k not in ("n_outputs", "stem")}
        both = {k: v for k, v in shared.items() if k not in ("pooling", "upsampling")}
        per_level = ("n_filters", "ksize", "dropout", "depth")
        filters = filters_per_level(both.get("n_filters"), both.get("depth"))
        kernels = ksize_per_level(both.get("ksize"), len(filters))
        conv = {k: v for k, v in both.items() if k not in per_level}
        with _policy(self.dtype_policy):
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
        skips, below = self.encoder.shapes(shape)
        self.decoder.build(skips, below)
        self.last_logits.build((*shape[:-1], skips["0"][-1]))
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Give the logits, (batch, a, b, c, n_outputs), of (batch, a, b, c, channels)."""
        if self.stem is not None:
            x = self.stem(x)
        return self.last_logits(self.decoder(*self.encoder(x)))


@registered
class Unet3D_layer(_Block):
    """The whole network as one layer: `logits`, then `output_activation`.

    Parameters
    ----------
    n_convs, n_filters, ksize, padding, activation, pooling, norm, dropout, depth, upsampling, n_outputs, \
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
        activation: Activation = "relu",
        pooling: str = "max",
        norm: str | None = None,
        dropout: float | Sequence[float] | None = None,
        depth: int | None = None,
        upsampling: bool = True,
        *,
        n_outputs: int = 1,
        final_activation: Activation = "sigmoid",
        stem: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(_arguments(locals()), kwargs)
        check_choice("padding", padding, ("same",))
        inner = {k: v for k, v in self._arguments.items() if k != "final_activation"}
        with _policy(self.dtype_policy):
            self.logits = UnetLogits(**inner, name="logits")
            self.output_activation = output_layers(n_outputs, self._arguments["final_activation"])[1]

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
        Those of `Unet3D_layer`; ``name`` and ``dtype`` are the model's.
    """

    def __init__(self, *args, name: str | None = None, dtype: Any = None, **kwargs) -> None:
        super().__init__(name=name, dtype=dtype)
        self.network = Unet3D_layer(*args, name="network", dtype=self.dtype_policy, **kwargs)

    def build(self, input_shape: Shape) -> None:
        """Make the weights for inputs (batch, a, b, c, channels)."""
        self.network.build(input_shape)
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Give the output, as `Unet3D_layer` does."""
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
    activation: Activation = "relu",
    pooling: str = "max",
    norm: str | None = None,
    dropout: float | Sequence[float] | None = None,
    depth: int | None = None,
    upsampling: bool = True,
    *,
    n_outputs: int = 1,
    final_activation: Activation = "sigmoid",
    stem: bool = True,
    name: str = "unet3d",
    **kwargs,
) -> keras.Model:
    """Build a 3D U-Net as a model of one layer, `Unet3D_layer`.

    Parameters, result and errors are those of `layers_func.create_unet3d`, which builds the same network as a
    flat model: the same weights in the same order, the same output.
    """
    arguments = {k: v for k, v in _arguments(locals()).items() if k not in ("input_shape", "name")}
    shape = check_input_shape(input_shape, len(filters_per_level(n_filters, depth)))
    inputs = keras.Input(shape, name="input")
    return keras.Model(inputs, Unet3D_layer(name="network", **arguments, **kwargs)(inputs), name=name)


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
