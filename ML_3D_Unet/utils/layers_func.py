"""A 3D U-Net as a flat Keras model, and the blocks it is built of as functions on tensors.

Tensors are (batch, axis 0, axis 1, axis 2, channels). Levels are counted from 1, full resolution, to
``depth``, the bottleneck. Keywords that none of these functions knows are left out without a word.

    model = create_unet3d((64, 64, 64, 2), n_filters=[8, 16, 32], norm="batch_norm")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras

from .blocks import (
    Activation,
    Norm,
    Tensor,
    check_choice,
    check_input_shape,
    conv_block_layers,
    doublings,
    dropout_layers,
    dropout_per_level,
    filters_per_level,
    known_arguments,
    ksize_per_level,
    output_layers,
    part_name,
    pooling_layers,
    upsampling_layers,
)


def _apply(layers: Sequence[keras.layers.Layer], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _block_name(name: str | None, depth: int | None) -> str | None:
    return name if depth is None else part_name(name, str(depth))


def n_conv_block(
    x: Tensor,
    n_convs: int = 2,
    n_filters: int = 8,
    ksize: int | Sequence[int] = 3,
    padding: str = "same",
    norm: Norm = None,
    activation: Activation = "relu",
    depth: int | None = None,
    name: str | None = None,
    **kwargs,
) -> Tensor:
    """Apply `n_convs` times a convolution, its normalisation and its activation.

    Parameters
    ----------
    x : tensor (batch, a, b, c, channels)
        Input.
    n_convs, n_filters, ksize, padding, norm, activation
        See `blocks.conv_block_layers`.
    depth : int, optional
        Level, only for the layers' names.
    name : str, optional
        Beginning of the layers' names; without it Keras chooses them.
    **kwargs
        ``norm_momentum``, ``norm_synchronized``, and anything else that `keras.layers.Conv3D` takes; others
        are left out.

    Returns
    -------
    tensor (batch, a, b, c, n_filters)
        Of the same size as `x` with padding 'same'.

    Raises
    ------
    ValueError
        If an argument is not what was expected.
    """
    more = {**known_arguments(kwargs), "name": _block_name(name, depth)}
    return _apply(conv_block_layers(n_convs, n_filters, ksize, padding, norm, activation, **more), x)


def downsample_block(
    x: Tensor,
    n_convs: int = 2,
    n_filters: int = 8,
    ksize: int | Sequence[int] = 3,
    padding: str = "same",
    activation: Activation = "relu",
    pooling: str = "max",
    norm: Norm = None,
    dropout: float | None = 0,
    depth: int | None = None,
    name: str | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Apply one level of the encoder: a convolution block, then pooling by 2 and dropout.

    Parameters
    ----------
    x : tensor (batch, a, b, c, channels)
        Input.
    n_convs, n_filters, ksize, padding, activation, norm, depth, name, **kwargs
        See `n_conv_block`.
    pooling : {'max', 'avg'}
        What each group of 2×2×2 voxels becomes.
    dropout : float
        Rate, applied to what goes down a level.

    Returns
    -------
    conv_out : tensor (batch, a, b, c, n_filters)
        What the decoder takes up again.
    x : tensor (batch, a/2, b/2, c/2, n_filters)
        What goes down a level.

    Raises
    ------
    ValueError
        If an argument is not what was expected.
    """
    conv_out = n_conv_block(x, n_convs, n_filters, ksize, padding, norm, activation, depth, name, **kwargs)
    return conv_out, _apply(pooling_layers(pooling, dropout, name=_block_name(name, depth)), conv_out)


def _skip_of_level(layers_to_concat: Mapping[str, Tensor], depth: int | None) -> Tensor:
    if str(depth) not in layers_to_concat:
        raise ValueError(
            f"Expected depth to be one of the levels {sorted(layers_to_concat)} of layers_to_concat, "
            f"received {depth!r}."
        )
    return layers_to_concat[str(depth)]


def upsample_block(
    layers_to_concat: Mapping[str, Tensor],
    x: Tensor,
    n_convs: int = 2,
    n_filters: int = 8,
    ksize: int | Sequence[int] = 3,
    padding: str = "same",
    activation: Activation = "relu",
    norm: Norm = None,
    dropout: float | None = 0,
    depth: int | None = None,
    upsampling: bool = True,
    name: str | None = None,
    **kwargs,
) -> Tensor:
    """Apply one level of the decoder: double the size, join the encoder's output, dropout, convolutions.

    Parameters
    ----------
    layers_to_concat : dict of str to tensor
        The encoder's outputs, by level.
    x : tensor (batch, a, b, c, channels)
        Input, from the level below.
    n_convs, n_filters, ksize, padding, activation, norm, name, **kwargs
        See `n_conv_block`.
    dropout : float
        Rate, applied to the joined channels.
    depth : int
        Level whose entry of `layers_to_concat` is joined. Where that is more than twice as large, `x` is
        doubled as often as it takes.
    upsampling : bool
        See `blocks.upsampling_layers`.

    Returns
    -------
    tensor (batch, 2a, 2b, 2c, n_filters)

    Raises
    ------
    ValueError
        If `depth` is no level of `layers_to_concat`, or another argument is not what was expected.
    """
    skip, block = _skip_of_level(layers_to_concat, depth), _block_name(name, depth)
    more = {**known_arguments(kwargs), "name": block}
    x = _apply(upsampling_layers(upsampling, n_filters, norm, activation, **more), x)
    x = _apply([keras.layers.UpSampling3D(2) for _ in range(doublings(x.shape, skip.shape))], x)
    x = keras.layers.Concatenate(name=part_name(block, "concat"))([x, skip])
    x = _apply(dropout_layers(dropout, name=block), x)
    return n_conv_block(x, n_convs, n_filters, ksize, padding, norm, activation, depth, name, **kwargs)


def encoder_unet3d(
    x: Tensor,
    n_convs: int = 2,
    n_filters: Sequence[int] | None = None,
    ksize: int | Sequence | None = None,
    padding: str = "same",
    activation: Activation = "relu",
    pooling: str = "max",
    norm: Norm = None,
    dropout: float | Sequence[float] | None = None,
    depth: int | None = None,
    **kwargs,
) -> tuple[dict[str, Tensor], Tensor]:
    """Apply the encoder: a `downsample_block` for every level but the last, and the bottleneck.

    Parameters
    ----------
    x : tensor (batch, a, b, c, channels)
        Input.
    n_filters, ksize, dropout, depth
        See `blocks.filters_per_level`, `blocks.ksize_per_level`, `blocks.dropout_per_level`.
    n_convs, padding, activation, pooling, norm, **kwargs
        See `downsample_block`.

    Returns
    -------
    layers_to_concat : dict of str to tensor
        Output of every level above the bottleneck before its pooling, by level: "1", "2", ...
    x : tensor
        Output of the bottleneck, ``2 ** (depth - 1)`` times smaller an axis.

    Raises
    ------
    ValueError
        If an argument is not what was expected.
    """
    filters = filters_per_level(n_filters, depth)
    kernels, rates = ksize_per_level(ksize, len(filters)), dropout_per_level(dropout, len(filters))
    layers_to_concat = {}
    for number, rate in enumerate(rates, start=1):
        block = (n_convs, filters[number - 1], kernels[number - 1], padding, activation, pooling, norm, rate)
        layers_to_concat[str(number)], x = downsample_block(x, *block, number, **kwargs)
    bottleneck = (n_convs, filters[-1], kernels[-1], padding, norm, activation, len(filters))
    x = n_conv_block(x, *bottleneck, **kwargs)
    return layers_to_concat, x


def decoder_unet3d(
    layers_to_concat: Mapping[str, Tensor],
    x: Tensor,
    n_convs: int = 2,
    n_filters: Sequence[int] | None = None,
    ksize: int | Sequence | None = None,
    padding: str = "same",
    activation: Activation = "relu",
    upsampling: bool = True,
    norm: Norm = None,
    dropout: float | Sequence[float] | None = None,
    depth: int | None = None,
    **kwargs,
) -> Tensor:
    """Apply the decoder: an `upsample_block` for every level above the bottleneck, from below.

    Parameters
    ----------
    layers_to_concat, x
        What `encoder_unet3d` returned.
    n_filters, ksize, dropout, depth
        As for the encoder: level 1 first, the bottleneck's entries included but not used.
    n_convs, padding, activation, upsampling, norm, **kwargs
        See `upsample_block`.

    Returns
    -------
    tensor (batch, a, b, c, n_filters[0])

    Raises
    ------
    ValueError
        If an argument is not what was expected.
    """
    filters = filters_per_level(n_filters, depth)
    kernels, rates = ksize_per_level(ksize, len(filters)), dropout_per_level(dropout, len(filters))
    for number in reversed(range(1, len(filters))):
        block = (filters[number - 1], kernels[number - 1], padding, activation, norm, rates[number - 1])
        x = upsample_block(layers_to_concat, x, n_convs, *block, number, upsampling, **kwargs)
    return x


def create_unet3d(
    input_shape: Sequence[int | None],
    n_convs: int = 2,
    n_filters: Sequence[int] | None = None,
    ksize: int | Sequence | None = None,
    padding: str = "same",
    activation: Activation = "relu",
    pooling: str = "max",
    norm: Norm = None,
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
    """Build a 3D U-Net as a flat model.

    Parameters
    ----------
    input_shape : sequence of 4
        Three sizes in voxels (None for any), multiples of ``2 ** (depth - 1)``, and the channels.
    n_convs : int
        Convolutions a block.
    n_filters : sequence of int, optional
        Filters of each level, the bottleneck last; None is 8, 16, 32, ...
    ksize : int, triple, or one triple a level, optional
        Kernels; None is 3.
    padding : {'same'}
        With any other the two arms of the network would not meet.
    activation : str or callable, optional
        What `keras.layers.Activation` takes.
    pooling : {'max', 'avg'}
        What each group of 2×2×2 voxels becomes on the way down.
    norm : {None, 'batch_norm', 'instance_norm'} or bool
        Between a convolution and its activation; True is that of batches, False none.
    dropout : float or sequence of at most ``depth - 1`` floats, optional
        Rate of each level, on its way down and where the decoder joins it.
    depth : int, optional
        Number of levels; None is ``len(n_filters)``.
    upsampling : bool
        True repeats voxels on the way up, False is a transposed convolution.
    n_outputs : int
        Channels of the output.
    final_activation : str or callable, optional
        Applied to the logits, which are the output of the layer ``last_logits``.
    stem : bool
        Whether an extra block of ``n_filters[0]`` filters comes before the first level.
    name : str
        Of the model.
    **kwargs
        Of batch normalisation: ``norm_momentum`` (0.99) and ``norm_synchronized`` (False: whether replicas
        share their statistics). What else `keras.layers.Conv3D` takes. Others are left out.

    Returns
    -------
    keras.Model
        From (batch, a, b, c, channels) to (batch, a, b, c, n_outputs) in float32.

    Raises
    ------
    ValueError
        If an argument is not what was expected; it says what was and what was received.
    """
    filters = filters_per_level(n_filters, depth)
    kernels = ksize_per_level(ksize, len(filters))
    check_choice("padding", padding, ("same",))
    inputs = keras.Input(check_input_shape(input_shape, len(filters)), name="input")
    x = inputs
    if stem:
        x = n_conv_block(x, n_convs, filters[0], kernels[0], padding, norm, activation, name="stem", **kwargs)
    arms = {"n_convs": n_convs, "n_filters": filters, "ksize": kernels, "padding": padding, **kwargs}
    arms |= {"activation": activation, "norm": norm, "dropout": dropout}
    skips, x = encoder_unet3d(x, pooling=pooling, name="encoder", **arms)
    x = decoder_unet3d(skips, x, upsampling=upsampling, name="decoder", **arms)
    return keras.Model(inputs, _apply(output_layers(n_outputs, final_activation), x), name=name)
