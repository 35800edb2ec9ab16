"""The blocks of the 3D U-Net as Keras layers: convolutions, a level down, a level up, encoder, decoder.

Each holds its constructor arguments as attributes of the same name and gives them as its configuration.
Levels are numbered from 1, full resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import keras

from .blocks import (
    Activation,
    Norm,
    Tensor,
    check_choice,
    conv_block_layers,
    doublings,
    dropout_layers,
    dropout_per_level,
    filters_per_level,
    ksize_per_level,
    pooling_layers,
    upsampling_layers,
)

#: One name under which the layers are known, by whatever path this file was imported.
registered = keras.saving.register_keras_serializable(package="ML_3D_Unet")
#: Keywords of a block that are not those of its convolutions.
_LAYER_KEYWORDS = ("name", "dtype", "trainable", "autocast")
_ACTIVATIONS = ("activation", "final_activation")

Shape = tuple[int | None, ...]


@contextmanager
def policy_of(layer: keras.layers.Layer) -> Iterator[None]:
    """Let layers that are made in the block compute as the layer that makes them."""
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(layer.dtype_policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def without(arguments: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Give the arguments but for those of some names."""
    return {name: value for name, value in arguments.items() if name not in names}


def arguments_of(scope: dict[str, Any]) -> dict[str, Any]:
    """Give the arguments among the local variables at the beginning of a function."""
    return without(scope, "self", "kwargs", "__class__")


def set_plainly(layer: keras.layers.Layer, arguments: Mapping[str, Any]) -> None:
    """Set attributes to what was passed; Keras would put a list or a dict into a container of its own."""
    for name, value in arguments.items():
        object.__setattr__(layer, name, value)


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


class Block(keras.layers.Layer):
    """What all blocks share: they hold their arguments and give them as their configuration.

    Parameters
    ----------
    arguments : dict
        Arguments of the block by name, each of which becomes an attribute.
    keywords : dict
        Its further keywords: those of a Keras layer, and those that its parts take.
    """

    def __init__(self, arguments: dict[str, Any], keywords: dict[str, Any]) -> None:
        super().__init__(**{name: keywords[name] for name in _LAYER_KEYWORDS if name in keywords})
        for name in _ACTIVATIONS:
            if isinstance(arguments.get(name), Mapping):  # as it stands in a saved configuration
                arguments = {**arguments, name: keras.activations.get(arguments[name])}
        # Read-only, or Keras would turn the lists in it into ones of its own.
        self._arguments = MappingProxyType({**arguments, **without(keywords, *_LAYER_KEYWORDS)})
        set_plainly(self, arguments)

    def get_config(self) -> dict[str, Any]:
        """Give all arguments, so that `from_config` makes the same block, with new weights."""
        config = {**super().get_config(), **self._arguments}
        for name in _ACTIVATIONS:
            if callable(config.get(name)):
                config[name] = keras.activations.serialize(config[name])
        return config


class _Chain(Block):
    """A block of layers that follow each other, `parts`."""

    parts: list[keras.layers.Layer]

    def build(self, input_shape: Shape) -> None:
        """Make the weights for inputs of this shape."""
        _built(self.parts, input_shape)
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Give (batch, …, n_filters) for (batch, …, channels)."""
        return _applied(self.parts, x)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Give the shape of the output for one of the input."""
        return _shape_after(self.parts, input_shape)


@registered
class ConvBlock(_Chain):
    """`n_convs` times a convolution, its normalisation and its activation.

    Parameters
    ----------
    n_convs, n_filters, ksize, padding, norm, activation
        See `blocks.conv_block_layers`.
    depth : int, optional
        Number of the level that the block stands on. It is only held.
    id : int or str, optional
        What the caller knows the block by. It is only held.
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
        norm: Norm = None,
        activation: Activation = "relu",
        depth: int | None = None,
        id: int | str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(arguments_of(locals()), kwargs)
        conv = without(self._arguments, "depth", "id")
        with policy_of(self):
            self.parts = conv_block_layers(**{**conv, "name": self.name})


@registered
class DownsampleBlock(Block):
    """One level of the encoder: a convolution block, then pooling by 2 and dropout.

    Parameters
    ----------
    n_convs, n_filters, ksize, padding, norm, activation, depth, id, **kwargs
        See `ConvBlock`.
    pooling : {'max', 'avg'}
        What each group of 2×2×2 voxels becomes.
    dropout : float, optional
        Rate, applied to what goes down a level.
    """

    def __init__(
        self,
        n_convs: int = 2,
        n_filters: int = 8,
        ksize: int | Sequence[int] = 3,
        padding: str = "same",
        norm: Norm = None,
        pooling: str = "max",
        dropout: float | None = 0,
        activation: Activation = "relu",
        depth: int | None = None,
        id: int | str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(arguments_of(locals()), kwargs)
        conv = without(self._arguments, "pooling", "dropout")
        with policy_of(self):
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

    def shapes(self, input_shape: Shape) -> tuple[Shape, Shape]:
        """Give the shapes of what `call` gives."""
        shape = self.block.compute_output_shape(input_shape)
        return shape, _shape_after(self.parts, shape)


@registered
class EncoderBlock(Block):
    """The encoder: a `DownsampleBlock` for every level but the last, and the bottleneck.

    Parameters
    ----------
    n_filters, ksize, dropout, depth
        See `blocks.filters_per_level`, `blocks.ksize_per_level`, `blocks.dropout_per_level`.
    n_convs, padding, norm, pooling, activation, id, **kwargs
        See `DownsampleBlock`.
    """

    def __init__(
        self,
        n_convs: int = 2,
        n_filters: Sequence[int] | None = None,
        ksize: int | Sequence | None = None,
        padding: str = "same",
        norm: Norm = None,
        pooling: str = "max",
        dropout: float | Sequence[float] | None = None,
        activation: Activation = "relu",
        depth: int | None = None,
        id: int | str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(arguments_of(locals()), kwargs)
        filters = filters_per_level(n_filters, depth)
        kernels, rates = ksize_per_level(ksize, len(filters)), dropout_per_level(dropout, len(filters))
        conv = without(self._arguments, "n_filters", "ksize", "dropout", "depth", "pooling")
        own = [
            {"n_filters": count, "ksize": kernel, "depth": number, "name": f"{self.name}_{number}", **conv}
            for number, (count, kernel) in enumerate(zip(filters, kernels), start=1)
        ]
        with policy_of(self):
            self.levels = [
                DownsampleBlock(pooling=pooling, dropout=rate, **level) for level, rate in zip(own, rates)
            ]
            self.bottleneck = ConvBlock(**own[-1])

    def build(self, input_shape: Shape) -> None:
        """Make the weights for inputs of this shape."""
        shape = input_shape
        for level in self.levels:
            level.build(shape)
            shape = level.shapes(shape)[1]
        self.bottleneck.build(shape)
        self.built = True

    def call(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the bottleneck's output, and that of every level above it before its pooling: "1", "2", ..."""
        layers_to_concat = {}
        for number, level in enumerate(self.levels, start=1):
            layers_to_concat[str(number)], x = level(x)
        return self.bottleneck(x), layers_to_concat

    def shapes(self, input_shape: Shape) -> tuple[Shape, dict[str, Shape]]:
        """Give the shapes of what `call` gives."""
        skips, shape = {}, input_shape
        for number, level in enumerate(self.levels, start=1):
            skips[str(number)], shape = level.shapes(shape)
        return self.bottleneck.compute_output_shape(shape), skips


@registered
class DeconvBlock(_Chain):
    """The way up to the next level with weights: a transposed convolution, its normalisation and activation.

    Its kernel and its stride are 2, so it doubles each axis.

    Parameters
    ----------
    n_filters, norm, activation, depth, id, **kwargs
        See `ConvBlock`.
    padding : {'same', 'valid'}
        It makes no difference, as the kernel is as large as the stride.
    """

    def __init__(
        self,
        n_filters: int = 8,
        padding: str = "same",
        norm: Norm = None,
        activation: Activation = "relu",
        depth: int | None = None,
        id: int | str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(arguments_of(locals()), kwargs)
        check_choice("padding", padding, ("same", "valid"))
        transposed = without(self._arguments, "padding", "depth", "id")
        with policy_of(self):
            self.parts = upsampling_layers(**{**transposed, "upsampling": False, "name": self.name})


@registered
class UpsampleBlock(Block):
    """One level of the decoder: double the size, join the encoder's output, dropout, convolutions.

    Parameters
    ----------
    n_convs, n_filters, ksize, padding, activation, norm, depth, id, **kwargs
        See `ConvBlock`.
    dropout : float, optional
        Rate, applied to the joined channels.
    upsampling : bool
        True repeats every voxel and has no weights; False is a `DeconvBlock`.
    """

    def __init__(
        self,
        n_convs: int = 2,
        n_filters: int = 8,
        ksize: int | Sequence[int] = 3,
        padding: str = "same",
        activation: Activation = "relu",
        norm: Norm = None,
        dropout: float | None = 0,
        depth: int | None = None,
        upsampling: bool = True,
        id: int | str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(arguments_of(locals()), kwargs)
        conv = without(self._arguments, "dropout", "upsampling")
        with policy_of(self):
            self.doubling = keras.layers.UpSampling3D(2, name=f"{self.name}_doubling")
            self.up = self.doubling
            if not upsampling:
                self.up = DeconvBlock(name=f"{self.name}_up", **without(conv, "n_convs", "ksize"))
            self.concat = keras.layers.Concatenate(name=f"{self.name}_concat")
            self.dropouts = dropout_layers(dropout, name=self.name)
            self.block = ConvBlock(**conv, name=f"{self.name}_convs")

    def build(self, x_shape: Shape, skip_shape: Shape) -> None:
        """Make the weights for inputs of these shapes."""
        self.up.build(x_shape)
        shape = self.up.compute_output_shape(x_shape)
        joined = [(*skip_shape[:-1], shape[-1]), tuple(skip_shape)]
        self.concat.build(joined)
        shape = self.concat.compute_output_shape(joined)
        _built(self.dropouts, shape)
        self.block.build(tuple(shape))
        self.built = True

    def call(self, x: Tensor, skip: Tensor) -> Tensor:
        """Give the level's output, of the size of `skip`, from the level below and the encoder's output.

        `skip` is twice as large as `x`. Where it is larger, as that of a level further up, `x` is doubled as
        often as it takes.
        """
        x = self.up(x)
        for _ in range(doublings(x.shape, skip.shape)):
            x = self.doubling(x)
        return self.block(_applied(self.dropouts, self.concat([x, skip])))


@registered
class DecoderBlock(Block):
    """The decoder: an `UpsampleBlock` for every level above the bottleneck, from below.

    Parameters
    ----------
    n_filters, ksize, dropout, depth
        As for `EncoderBlock`: level 1 first, the bottleneck's entries included but not used.
    n_convs, padding, activation, norm, upsampling, id, **kwargs
        See `UpsampleBlock`.
    """

    def __init__(
        self,
        n_convs: int = 2,
        n_filters: Sequence[int] | None = None,
        ksize: int | Sequence | None = None,
        padding: str = "same",
        activation: Activation = "relu",
        norm: Norm = None,
        dropout: float | Sequence[float] | None = None,
        depth: int | None = None,
        upsampling: bool = True,
        id: int | str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(arguments_of(locals()), kwargs)
        filters = filters_per_level(n_filters, depth)
        kernels, rates = ksize_per_level(ksize, len(filters)), dropout_per_level(dropout, len(filters))
        shared = without(self._arguments, "n_filters", "ksize", "dropout", "depth")
        with policy_of(self):
            self.levels = [
                UpsampleBlock(
                    n_filters=filters[number - 1],
                    ksize=kernels[number - 1],
                    dropout=rates[number - 1],
                    depth=number,
                    name=f"{self.name}_{number}",
                    **shared,
                )
                for number in reversed(range(1, len(filters)))
            ]

    def build(self, x_shape: Shape, layers_to_concat_shape: Mapping[str, Shape]) -> None:
        """Make the weights for inputs of these shapes."""
        for level in self.levels:
            skip_shape = tuple(layers_to_concat_shape[str(level.depth)])
            level.build(tuple(x_shape), skip_shape)
            x_shape = (*skip_shape[:-1], level.n_filters)
        self.built = True

    def call(self, x: Tensor, layers_to_concat: Mapping[str, Tensor]) -> Tensor:
        """Give (batch, a, b, c, n_filters[0]) from what the encoder gave."""
        for level in self.levels:
            x = level(x, layers_to_concat[str(level.depth)])
        return x
