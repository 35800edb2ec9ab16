"""Networks that are only run, made lighter: without batch normalisation, joined channels and repeated voxels.

With fixed statistics a normalisation is a factor and an addend a channel, and so a part of the convolution
before it: kernel · γ / √(σ² + ε), and (bias − μ) · γ / √(σ² + ε) + β. The network then passes over its
largest arrays once less.

A convolution of joined channels is the sum of the convolutions of its parts, so the joined array, the largest
of a U-Net, need not be made. Nor need one that is twice as large by repeating its voxels: what a convolution
makes of it is a transposed convolution of the smaller one, with 8 products for 27.

    fast = without_norms(keras.models.load_model("best.keras"))
    small = without_large_arrays(fast)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from .blocks import Tensor, norm_kind
from .layer_blocks import Block

_Convolution = (keras.layers.Conv3D, keras.layers.Conv3DTranspose)
#: From the three taps of a kernel to the four that it has on an array of which each voxel stands twice.
_TAPS_OF_HALVES = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)


def without_norms(model: keras.Model) -> keras.Model:
    """Give a network of the same output in which convolutions do what batch normalisation after them did.

    Parameters
    ----------
    model : keras.Model
        A flat model, or a functional one that holds blocks of `layers`, such as a `Unet3D_layer`. It stays as
        it is.

    Returns
    -------
    keras.Model
        Its output for ``training=False`` is that of `model`, up to rounding; not meant to be trained. A
        normalisation that follows no convolution stays, and a model that is not functional is given back.
    """
    norms = _norms_by_convolution(model)
    if not norms or not hasattr(model, "operations"):  # as only functional models have
        return model
    folded = {id(norm) for norm in norms.values()}
    names = {layer.name for layer in model.layers if id(layer) in folded}
    copy = keras.models.clone_model(
        model,
        clone_function=lambda layer: _copied(layer, norms),
        call_function=lambda layer, x, **more: x if layer.name in names else layer(x, **more),
    )
    # By their names, as the copy may list its layers in another order.
    for layer in model.layers:
        if layer.name in names or not layer.weights:
            continue
        sources = [each for each in _with_weights(layer) if id(each) not in folded]
        for source, target in zip(sources, _with_weights(copy.get_layer(layer.name)), strict=True):
            weights = source.get_weights()
            target.set_weights(_folded(source, norms[id(source)]) if id(source) in norms else weights)
    return copy


def without_large_arrays(model: keras.Model, *, least_channels: int = 8) -> keras.Model:
    """Give a network of the same output that convolves channels part by part, and arrays before their voxels
    are repeated.

    Parameters
    ----------
    model : keras.Model
        A flat functional model. It stays as it is, and shares all other layers with the result.
    least_channels : int
        Channels that the smallest part must have: a convolution of few channels is slow.

    Returns
    -------
    keras.Model
        Its output is that of `model`, up to rounding; not meant to be trained.
    """
    known = {id(tensor): tensor for tensor in model.inputs}
    parts: dict[int, list[Tensor]] = {}
    halves: dict[int, Tensor] = {}
    given = {id(tensor) for tensor in model.outputs}
    for node in [node for layer in model.layers for node in layer._inbound_nodes]:
        layer, inputs = node.operation, node.input_tensors
        # A layer may serve other models too, on other tensors.
        if not inputs or any(id(each) not in known and id(each) not in parts for each in inputs):
            continue
        output = id(node.output_tensors[0])
        if output not in given and _is_joined_for_convolutions(layer, least_channels):
            parts[output] = [known[id(each)] for each in inputs]
            continue
        found = parts.get(id(inputs[0])) or [known[id(each)] for each in inputs]
        if id(inputs[0]) in parts or (id(found[0]) in halves and _reads_neighbours(layer)):
            known[output] = _convolved(layer, found, halves)
            continue
        known[output] = layer(found if len(found) > 1 else found[0])
        if isinstance(layer, keras.layers.UpSampling3D) and tuple(layer.size) == (2, 2, 2):
            halves[id(known[output])] = found[0]
    outputs = [known[id(tensor)] for tensor in model.outputs]
    return keras.Model(model.input, outputs if len(outputs) > 1 else outputs[0], name=model.name)


def _is_joined_for_convolutions(layer: keras.layers.Layer, least_channels: int) -> bool:
    if not isinstance(layer, keras.layers.Concatenate):
        return False
    followers = [node.operation for node in layer._outbound_nodes]
    return (
        layer.axis in (-1, 4)
        and all(type(each) is keras.layers.Conv3D and each.groups == 1 for each in followers)
        and min(tensor.shape[-1] for tensor in layer.input) >= least_channels
    )


def _reads_neighbours(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a plain convolution with a kernel of 3×3×3."""
    return (
        type(layer) is keras.layers.Conv3D
        and (tuple(layer.kernel_size), tuple(layer.strides)) == ((3, 3, 3), (1, 1, 1))
        and (layer.padding, tuple(layer.dilation_rate), layer.groups) == ("same", (1, 1, 1), 1)
    )


def _convolved(
    convolution: keras.layers.Conv3D, parts: Sequence[Tensor], halves: Mapping[int, Tensor]
) -> Tensor:
    """Convolve tensors as if their channels were joined; `halves` has what was repeated, by its result."""
    kernel, *bias = convolution.get_weights()
    kernels = np.split(kernel, np.cumsum([part.shape[-1] for part in parts])[:-1], axis=3)
    sums = []
    for number, (part, own) in enumerate(zip(parts, kernels)):
        # The last one has the bias; what follows the sum follows all of it.
        has_bias = bool(bias) and number == len(parts) - 1
        config = {
            **{name: convolution.get_config()[name] for name in ("filters", "padding", "dtype")},
            **{"name": f"{convolution.name}_{number}", "use_bias": has_bias},
        }
        if id(part) in halves and _reads_neighbours(convolution):
            layer = keras.layers.Conv3DTranspose(kernel_size=4, strides=2, **config)
            part, own = halves[id(part)], _kernel_of_halves(own)
        else:
            sizes = ("kernel_size", "strides", "dilation_rate")
            config.update((name, getattr(convolution, name)) for name in sizes)
            layer = keras.layers.Conv3D(**config)
        sums.append(layer(part))
        layer.set_weights([own, *bias] if has_bias else [own])
    total = sums[0]
    if len(sums) > 1:
        total = keras.layers.Add(name=f"{convolution.name}_sum", dtype=convolution.dtype_policy)(sums)
    return keras.layers.Activation(convolution.activation, name=convolution.name)(total)


def _kernel_of_halves(kernel: np.ndarray) -> np.ndarray:
    """Give the kernel (4, 4, 4, out, in) of the transposed convolution with stride 2 that does to an array
    what a kernel (3, 3, 3, in, out) does to the one in which each of its voxels stands twice along each axis.
    """
    taps = _TAPS_OF_HALVES
    return np.einsum("ia,jb,kc,abcxy->ijkyx", taps, taps, taps, kernel)


def _norms_by_convolution(model: keras.Model) -> dict[int, keras.layers.BatchNormalization]:
    """Pair the convolutions (by `id`) that a normalisation of their channels directly follows with it."""
    pairs = []
    for layer in model._flatten_layers():
        parts = list(getattr(layer, "parts", ())) if isinstance(layer, Block) else []
        pairs += itertools.pairwise(parts)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and len(layer._inbound_nodes) == 1:
            before = layer.input._keras_history.operation
            if len(before._inbound_nodes) == 1 and len(before._outbound_nodes) == 1:
                pairs.append((before, layer))
    return {id(before): after for before, after in pairs if _is_foldable(before, after)}


def _is_foldable(before: keras.layers.Layer, after: keras.layers.Layer) -> bool:
    return (
        isinstance(before, _Convolution)
        and isinstance(after, keras.layers.BatchNormalization)
        and before.activation is keras.activations.linear
        and after.axis in (-1, 4)
    )


def _copied(
    layer: keras.layers.Layer, norms: dict[int, keras.layers.BatchNormalization]
) -> keras.layers.Layer:
    config = layer.get_config()
    if id(layer) in norms:
        config["use_bias"] = True
    if isinstance(layer, Block) and norm_kind(config.get("norm")) == "batch_norm":
        config["norm"] = None
        if "use_bias" in config:
            config["use_bias"] = True
    return type(layer).from_config(config)


def _with_weights(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Give the innermost layers that have weights, in an order that layers without weights do not change."""
    layers = layer._flatten_layers()
    return [layer for layer in layers if layer.weights and not layer._layers]


def _folded(
    convolution: keras.layers.Layer, norm: keras.layers.BatchNormalization
) -> tuple[np.ndarray, np.ndarray]:
    """Give kernel and bias of a convolution with the normalisation after it, computed in float64."""
    kernel = np.asarray(convolution.kernel, np.float64)
    bias = np.asarray(convolution.bias, np.float64) if convolution.use_bias else 0.0
    factor = 1 / np.sqrt(np.asarray(norm.moving_variance, np.float64) + norm.epsilon)
    factor = factor * np.asarray(norm.gamma) if norm.scale else factor
    addend = np.asarray(norm.beta) if norm.center else 0.0
    # A transposed convolution keeps its output channels last but one.
    transposed = isinstance(convolution, keras.layers.Conv3DTranspose)
    kernel = kernel * (factor[:, None] if transposed else factor)
    return kernel, (bias - np.asarray(norm.moving_mean, np.float64)) * factor + addend
