"""From what `Trainer` is given as an optimizer to one that can train a model, and Muon for kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

#: Coefficients of the iteration that `orthogonal` repeats, and how often (Jordan et al. 2024).
_QUINTIC, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
#: Root mean square of a step's entries, as a part of the rate: about that of Adam (Liu et al. 2025).
_STEP_SIZE = 0.2
#: Fewest inputs and outputs of a kernel that is taken for a matrix.
_LEAST_CHANNELS = 8


@keras.saving.register_keras_serializable("ML_3D_Unet")
class KernelMuon(keras.optimizers.Adam):
    """Adam, but for the kernels of convolutions, whose steps are orthogonal matrices: Muon.

    A kernel (..., inputs, outputs) is taken for a matrix with a column an output. A step goes along the
    orthogonal matrix that is nearest to the momentum, in which all directions count alike, instead of a few
    that outweigh the others (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"),
    and is scaled so that learning rates of Adam serve (Liu et al. 2025, arXiv:2502.16982). What has not
    `_LEAST_CHANNELS` inputs and outputs is Adam's: first and last kernels, biases, norms.

    Keras has a Muon too, which leaves all kernels of convolutions to Adam.

    Parameters
    ----------
    learning_rate : float or schedule
        As Adam's.
    momentum : float
        Share of the momentum that a step of a kernel keeps.
    **keywords
        Those of `keras.optimizers.Adam`.
    """

    def __init__(self, learning_rate: Any = 0.001, *, momentum: float = 0.95, **keywords: Any) -> None:
        super().__init__(learning_rate=learning_rate, **keywords)
        self.momentum = momentum

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Change a variable by its gradient."""
        if not is_kernel(variable.shape):
            super().update_step(gradient, variable, learning_rate)
            return
        gradient = ops.cast(gradient, variable.dtype)
        kept = self._momentums[self._get_variable_index(variable)]
        # Nesterov's: the gradient counts once more, on top of the momentum that it has entered.
        following = ops.add(ops.multiply(kept, self.momentum), gradient)
        self.assign(kept, following)
        matrix = ops.reshape(gradient + self.momentum * following, (-1, variable.shape[-1]))
        size = _STEP_SIZE * max(int(n) for n in matrix.shape) ** 0.5
        step = ops.cast(learning_rate, variable.dtype) * size * orthogonal(matrix)
        self.assign_sub(variable, ops.reshape(step, variable.shape))

    def get_config(self) -> dict[str, Any]:
        """Give what makes the same optimizer."""
        return {**super().get_config(), "momentum": self.momentum}


def is_kernel(shape: Any) -> bool:
    """Tell whether a variable of this shape is a matrix, or a kernel that may be taken for one."""
    return len(shape) >= 2 and min(int(n) for n in shape[-2:]) >= _LEAST_CHANNELS


def orthogonal(matrix: Any) -> Any:
    """Give about the orthogonal matrix nearest to one, U V' of its singular value decomposition U S V'.

    Newton-Schulz iterations with coefficients that leave the singular values between .7 and 1.2 rather than
    at 1, but get there in few steps (Jordan et al. 2024). Values under a hundredth of the norm stay smaller.

    Parameters
    ----------
    matrix : tensor (m, n)
        Any but 0.

    Returns
    -------
    tensor (m, n)
    """
    rows, columns = (int(n) for n in matrix.shape)
    x = ops.transpose(matrix) if rows > columns else matrix
    x = x / (ops.sqrt(ops.sum(ops.square(x))) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        square = ops.matmul(x, ops.transpose(x))
        x = a * x + ops.matmul(b * square + c * ops.matmul(square, square), x)
    return ops.transpose(x) if rows > columns else x


#: An instance, a name, a class or another function of the learning rate; None is Adam.
Optimizer = keras.optimizers.Optimizer | str | Callable[..., keras.optimizers.Optimizer] | None


def make_optimizer(optimizer: Optimizer, learning_rate: float) -> keras.optimizers.Optimizer:
    """Give an optimizer from an instance, which is used as it is, a name, a class, or None.

    Raises
    ------
    ValueError
        If `optimizer` is none of these.
    """
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return optimizer
    if _makes_optimizers(optimizer):
        made = optimizer(learning_rate=float(learning_rate))
        if isinstance(made, keras.optimizers.Optimizer):
            return made
    elif optimizer is None or isinstance(optimizer, str):
        config = {"learning_rate": float(learning_rate)}
        return keras.optimizers.get({"class_name": optimizer or "adam", "config": config})
    raise ValueError(
        "Expected optimizer to be None, a name, a Keras optimizer or the class of one, received "
        f"{optimizer!r}."
    )


def _makes_optimizers(value: object) -> bool:
    if isinstance(value, type):
        return issubclass(value, keras.optimizers.Optimizer)
    return callable(value)


def own_optimizer(optimizer: Optimizer) -> Optimizer:
    """Give an optimizer for one training alone: an instance holds the state of the model that it trains."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return optimizer
    return type(optimizer).from_config(optimizer.get_config())


def scaled_where_half(
    optimizer: keras.optimizers.Optimizer, model: keras.Model, *, replicas: int
) -> keras.optimizers.Optimizer:
    """Scale the loss of a float16 model, whose small gradients would else be 0.

    Raises
    ------
    ValueError
        If there are several replicas: Keras looks for gradients that are not finite before it adds up those
        of all replicas, which would then disagree.
    """
    is_half = any(layer.compute_dtype == "float16" for layer in model.layers)
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if (is_half or scales) and replicas > 1:
        raise ValueError(
            f"Expected float32 or bfloat16 on {replicas} replicas, received a model or an optimizer for "
            "float16, whose loss scale works on one replica only."
        )
    return keras.optimizers.LossScaleOptimizer(optimizer) if is_half and not scales else optimizer
