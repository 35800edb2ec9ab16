"""The pieces a 3D U-Net is made of: its arguments, checked once, and the layers of each block.

Everything here returns plain Keras layers that have not been called yet. `layers_func` applies them to
tensors and so builds a flat model; a layer that owns the same lists builds the same network as one object.
Either way a block's layers, their order and their names are decided in this file alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import keras
import numpy as np

from .normalisation import GroupNormalization

DEFAULT_DEPTH = 4
DEFAULT_FIRST_FILTERS = 8
NORMS = (None, "batch_norm", "instance_norm")
POOLINGS = {"max": keras.layers.MaxPooling3D, "avg": keras.layers.AveragePooling3D}

Tensor = keras.KerasTensor
Triple = tuple[int, int, int]
Activation = str | Callable | None
Norm = str | bool | None


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value > 0


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _plain(value: Any) -> Any:
    """Give an array as lists, which sizes and rates may come as; anything else as it is."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _as_triple(value: object) -> Triple | None:
    """Give a kernel as three sizes, or None if `value` is neither a size nor three of them."""
    if _is_count(value):
        return (int(value),) * 3
    if _is_sequence(value) and len(value) == 3 and all(_is_count(size) for size in value):
        return tuple(int(size) for size in value)
    return None


def check_choice(name: str, value: object, choices: Sequence) -> None:
    """Raise a `ValueError` that names the argument unless `value` is one of `choices`."""
    if not any(value is choice or value == choice for choice in choices):
        raise ValueError(f"Expected {name} to be one of {tuple(choices)}, received {value!r}.")


def check_count(name: str, value: object) -> int:
    """Give `value` as an int; raise a `ValueError` that names the argument unless it is a positive one."""
    if not _is_count(value):
        raise ValueError(f"Expected {name} to be a positive integer, received {value!r}.")
    return int(value)


def kernel_triple(ksize: int | Sequence[int]) -> Triple:
    """Give the kernel of one block as a triple.

    Parameters
    ----------
    ksize : int or sequence of 3 ints
        One size for the three axes, or one size an axis.

    Returns
    -------
    tuple of 3 ints

    Raises
    ------
    ValueError
        If `ksize` is neither.
    """
    triple = _as_triple(_plain(ksize))
    if triple is None:
        raise ValueError(f"Expected ksize to be a positive integer or three of them, received {ksize!r}.")
    return triple


def filters_per_level(n_filters: Sequence[int] | None, depth: int | None) -> tuple[int, ...]:
    """Give the number of filters of every level, from full resolution to the bottleneck.

    Parameters
    ----------
    n_filters : sequence of int, optional
        One number a level. None is 8, 16, 32, ... for `depth` levels.
    depth : int, optional
        Number of levels, the bottleneck included; None is ``len(n_filters)``, or 4 without `n_filters`.

    Returns
    -------
    tuple of int
        As long as the network is deep.

    Raises
    ------
    ValueError
        If the numbers are not positive integers, are fewer than two, or are not `depth` many.
    """
    depth = None if depth is None else check_count("depth", depth)
    n_filters = _plain(n_filters)
    if n_filters is None:
        n_filters = [DEFAULT_FIRST_FILTERS * 2**level for level in range(depth or DEFAULT_DEPTH)]
    if not _is_sequence(n_filters) or len(n_filters) < 2 or not all(_is_count(n) for n in n_filters):
        raise ValueError(
            f"Expected n_filters to be one positive integer a level, two or more, received {n_filters!r}."
        )
    if depth is not None and depth != len(n_filters):
        raise ValueError(
            f"Expected n_filters to have one entry for each of the depth={depth} levels, "
            f"received {len(n_filters)}: {n_filters!r}."
        )
    return tuple(int(n) for n in n_filters)


def ksize_per_level(ksize: int | Sequence | None, depth: int) -> tuple[Triple, ...]:
    """Give the kernel of every level as a triple.

    Parameters
    ----------
    ksize : int, sequence of 3 ints, or sequence of `depth` sequences of 3 ints, optional
        One size; one triple, which is always *one* kernel, also where `depth` is 3; or one triple a
        level. None is 3.
    depth : int
        Number of levels.

    Returns
    -------
    tuple of `depth` triples

    Raises
    ------
    ValueError
        If `ksize` is none of these.
    """
    ksize = _plain(ksize)
    one = _as_triple(3 if ksize is None else ksize)
    if one is not None:
        return (one,) * depth
    if _is_sequence(ksize) and len(ksize) == depth and all(_is_sequence(kernel) for kernel in ksize):
        triples = tuple(_as_triple(kernel) for kernel in ksize)
        if None not in triples:
            return triples
    raise ValueError(
        f"Expected ksize to be a positive integer, one triple, or one triple for each of the "
        f"{depth} levels, received {ksize!r}."
    )


def dropout_per_level(dropout: float | Sequence[float] | None, depth: int) -> tuple[float, ...]:
    """Give the dropout rate of every level above the bottleneck.

    Parameters
    ----------
    dropout : float or sequence of float, optional
        One rate for all levels, or at most ``depth - 1`` rates from full resolution downwards; the levels
        left out have none. None is no dropout.
    depth : int
        Number of levels, the bottleneck included.

    Returns
    -------
    tuple of ``depth - 1`` floats

    Raises
    ------
    ValueError
        If there are more rates than levels, or a rate is not in [0, 1).
    """
    n_rates = depth - 1
    rates = [] if dropout is None else _plain(dropout)
    if isinstance(rates, Real):
        rates = [rates] * n_rates
    good = _is_sequence(rates) and all(isinstance(rate, Real) and 0 <= rate < 1 for rate in rates)
    if not good or len(rates) > n_rates:
        raise ValueError(
            f"Expected dropout to be None, a rate in [0, 1), or at most {n_rates} of them "
            f"(depth {depth} less one), received {dropout!r}."
        )
    return tuple(float(rate) for rate in rates) + (0.0,) * (n_rates - len(rates))


def check_input_shape(input_shape: Sequence[int | None], depth: int) -> tuple[int | None, ...]:
    """Give the input shape as a tuple, after a check that it can be halved `depth` - 1 times.

    Parameters
    ----------
    input_shape : sequence of 4
        Three sizes in voxels, each of which may be None (any size), and the number of channels.
    depth : int
        Number of levels; each but the last halves the sizes.

    Raises
    ------
    ValueError
        If there are not four entries, or a size is not a multiple of ``2 ** (depth - 1)``.
    """
    shape = tuple(input_shape)
    factor = 2 ** (depth - 1)
    if len(shape) != 4 or not _is_count(shape[3]):
        raise ValueError(
            f"Expected input_shape to be three sizes and the channels, received {input_shape!r}."
        )
    if not all(size is None or (_is_count(size) and size % factor == 0) for size in shape[:3]):
        raise ValueError(
            f"Expected the sizes in input_shape to be multiples of {factor}, which is 2 ** (depth - 1) "
            f"for depth {depth}, received {input_shape!r}."
        )
    return shape


def part_name(name: str | None, part: str) -> str | None:
    """Give the name of a layer inside a named block; None, so that Keras chooses, in a nameless one."""
    return None if name is None else f"{name}_{part}"


def norm_kind(norm: Norm) -> str | None:
    """Give the kind of normalisation: True is that of batches, False is none.

    Raises
    ------
    ValueError
        If `norm` is no kind that there is.
    """
    kind = {True: "batch_norm", False: None}[norm] if isinstance(norm, bool) else norm
    check_choice("norm", kind, NORMS)
    return kind


def known_arguments(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Give those of some keywords that a block of convolutions takes; others are left out without a word.

    Code written for other U-Nets of this interface hands over keywords of its own.
    """
    own = ("filters", "kernel_size", "padding", "activation")
    known = {name for name in inspect.signature(keras.layers.Conv3D.__init__).parameters if name not in own}
    known |= {"norm_momentum", "norm_synchronized", "name", "dtype", "trainable"}
    return {name: value for name, value in keywords.items() if name in known}


def norm_and_activation(
    norm: Norm,
    activation: Activation,
    *,
    norm_momentum: float = 0.99,
    norm_synchronized: bool = False,
    name: str | None = None,
) -> list[keras.layers.Layer]:
    """Make what follows a convolution: the normalisation and the activation, each only if wanted.

    Parameters
    ----------
    norm : {None, 'batch_norm', 'instance_norm'} or bool
        Kind of normalisation, see `norm_kind`. That of an instance has the statistics of each example alone,
        when it is trained and when it is run: for batches of one, for which a moving average would stand
        badly.
    activation : str or callable, optional
        What `keras.layers.Activation` takes.
    norm_momentum : float
        Momentum of the moving mean and variance of batch normalisation.
    norm_synchronized : bool
        Whether replicas that train together share the statistics of their batches.
    name : str, optional
        Beginning of the layers' names.

    Raises
    ------
    ValueError
        If `norm` is something else.
    """
    kind, layers = norm_kind(norm), []
    if kind == "batch_norm":
        layers.append(
            keras.layers.BatchNormalization(
                momentum=norm_momentum, synchronized=norm_synchronized, name=part_name(name, "norm")
            )
        )
    if kind == "instance_norm":
        layers.append(GroupNormalization(name=part_name(name, "norm")))
    if activation is not None:
        layers.append(keras.layers.Activation(activation, name=part_name(name, "activation")))
    return layers


def conv_block_layers(
    n_convs: int,
    n_filters: int,
    ksize: int | Sequence[int],
    padding: str,
    norm: Norm,
    activation: Activation,
    *,
    norm_momentum: float = 0.99,
    norm_synchronized: bool = False,
    name: str | None = None,
    **conv_arguments,
) -> list[keras.layers.Layer]:
    """Make a block of convolutions, each followed by normalisation and activation.

    Parameters
    ----------
    n_convs : int
        Number of convolutions.
    n_filters : int
        Channels each of them puts out.
    ksize : int or 3 ints
        Kernel, in voxels.
    padding : {'same', 'valid'}
        As in Keras.
    norm, activation, norm_momentum, norm_synchronized
        See `norm_and_activation`.
    name : str, optional
        Beginning of the layers' names.
    **conv_arguments
        Handed to `keras.layers.Conv3D`.

    Raises
    ------
    ValueError
        If an argument is none of what is listed here.
    """
    check_choice("padding", padding, ("same", "valid"))
    filters, kernel = check_count("n_filters", n_filters), kernel_triple(ksize)
    layers = []
    for index in range(check_count("n_convs", n_convs)):
        part = part_name(name, str(index))
        layers.append(
            keras.layers.Conv3D(
                filters, kernel, padding=padding, name=part_name(part, "conv"), **conv_arguments
            )
        )
        layers += norm_and_activation(
            norm, activation, norm_momentum=norm_momentum, norm_synchronized=norm_synchronized, name=part
        )
    return layers


def dropout_layers(rate: float, *, name: str | None = None) -> list[keras.layers.Layer]:
    """Make the dropout of a block: no layer at all for the rate 0; `ValueError` outside [0, 1)."""
    (rate,) = dropout_per_level(rate, depth=2)
    return [keras.layers.Dropout(rate, name=part_name(name, "dropout"))] if rate else []


def pooling_layers(pooling: str, dropout: float = 0, *, name: str | None = None) -> list[keras.layers.Layer]:
    """Make the way down to the next level: pooling ('max' or 'avg') by 2 an axis, and dropout.

    Raises
    ------
    ValueError
        If `pooling` is neither, or the rate `dropout` is not in [0, 1).
    """
    check_choice("pooling", pooling, tuple(POOLINGS))
    return [POOLINGS[pooling](2, name=part_name(name, "pool")), *dropout_layers(dropout, name=name)]


def upsampling_layers(
    upsampling: bool,
    n_filters: int,
    norm: Norm,
    activation: Activation,
    *,
    norm_momentum: float = 0.99,
    norm_synchronized: bool = False,
    name: str | None = None,
    **conv_arguments,
) -> list[keras.layers.Layer]:
    """Make the way up to the next level: doubling each axis.

    Parameters
    ----------
    upsampling : bool
        True repeats every voxel and has no weights; False is a transposed convolution (kernel and stride
        2) with `n_filters` channels, followed by normalisation and activation.
    n_filters, norm, activation, norm_momentum, norm_synchronized, name, **conv_arguments
        As in `conv_block_layers`; used for the transposed convolution only.
    """
    part = part_name(name, "up")
    if upsampling:
        return [keras.layers.UpSampling3D(2, name=part)]
    transposed = keras.layers.Conv3DTranspose(n_filters, 2, strides=2, name=part, **conv_arguments)
    norms = {"norm_momentum": norm_momentum, "norm_synchronized": norm_synchronized}
    return [transposed, *norm_and_activation(norm, activation, **norms, name=part)]


def doublings(shape: Sequence[int | None], wanted: Sequence[int | None]) -> int:
    """Count how often (batch, a, b, c, channels) must be doubled to be as large as another; 0 if unknown."""
    if shape[1] is None or wanted[1] is None:
        return 0
    return max(0, (wanted[1] // shape[1]).bit_length() - 1)


def output_layers(n_outputs: int, final_activation: Activation) -> list[keras.layers.Layer]:
    """Make the last two layers, which compute in float32 whatever the policy of mixed precision.

    Parameters
    ----------
    n_outputs : int
        Channels of the network's output.
    final_activation : str or callable, optional
        Turns the logits (the output of layer ``last_logits``) into the output of layer ``output``.
    """
    count = check_count("n_outputs", n_outputs)
    return [
        keras.layers.Conv3D(count, 1, dtype="float32", name="last_logits"),
        keras.layers.Activation(final_activation, dtype="float32", name="output"),
    ]
