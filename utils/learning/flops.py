"""What a network costs: the multiplications and additions of its forward pass and of a training step.

They are read off the graph that TensorFlow traces, which computes nothing: those of convolutions and matrix
products, which are all but a few in a thousand of a 3D U-Net. A multiplication and the addition after it
count as two. Zeros that a padding adds are multiplied too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

#: Operations whose kernel is an input: where the kernel stands (None: it is the output), and the array of
#: which every number is met by every row of the kernel (None: it is the output).
_CONVOLUTIONS: dict[str, tuple[int | None, int | None]] = {
    "Conv2D": (1, None),
    "Conv3D": (1, None),
    "Conv2DBackpropInput": (1, 2),
    "Conv3DBackpropInputV2": (1, 2),
    "Conv2DBackpropFilter": (None, 2),
    "Conv3DBackpropFilterV2": (None, 2),
}


def flops_of_forward(model: keras.Model, *, batch_size: int = 1) -> int:
    """Count the floating-point operations of a forward pass.

    Parameters
    ----------
    model : keras.Model
        With one input of a known shape.
    batch_size : int
        Examples.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If the shape of the input is not known.
    """
    return _flops_of(lambda x: model(x, training=False), model, batch_size)


def flops_of_step(model: keras.Model, *, batch_size: int = 1) -> int:
    """Count the floating-point operations of forward and backward pass; the optimizer's are few.

    Every layer costs three times its forward pass, but for the first one: nobody asks for the gradient of
    the input. Parameters, result and errors are those of `flops_of_forward`.
    """

    def gradients(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(model(x, training=True))
        return [y, *tape.gradient(y, model.trainable_variables)]

    return _flops_of(gradients, model, batch_size)


def _flops_of(function: Callable[[tf.Tensor], Any], model: keras.Model, batch_size: int) -> int:
    shape = (batch_size, *model.input_shape[1:])
    if None in shape:
        raise ValueError(f"{model.name}: expected a network whose input has a known shape, found {shape}.")
    traced = tf.function(function).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    return 2 * sum(_products_of(operation) for operation in _needed_for(traced.outputs))


def _needed_for(outputs: list[tf.Tensor]) -> set[tf.Operation]:
    """Give the operations that outputs come from: a traced graph holds others too, which are never run."""
    found: set[tf.Operation] = set()
    queue = [tensor.op for tensor in outputs]
    while queue:
        operation = queue.pop()
        if operation not in found:
            found.add(operation)
            queue += [tensor.op for tensor in operation.inputs]
    return found


def _products_of(operation: tf.Operation) -> int:
    """Give the number of products of an operation; 0 for what is neither convolution nor matrix product."""
    if operation.type == "MatMul":
        rows_of_first = operation.get_attr("transpose_a")
        return operation.inputs[0].shape[0 if rows_of_first else 1] * math.prod(operation.outputs[0].shape)
    if operation.type not in _CONVOLUTIONS:
        return 0
    kernel, array = (
        (operation.outputs[0] if place is None else operation.inputs[place]).shape
        for place in _CONVOLUTIONS[operation.type]
    )
    return math.prod(kernel[:-1]) * math.prod(array)
