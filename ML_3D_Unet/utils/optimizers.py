"""From what `Trainer` is given as an optimizer to one that can train a model."""

from __future__ import annotations

from collections.abc import Callable

import keras

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
