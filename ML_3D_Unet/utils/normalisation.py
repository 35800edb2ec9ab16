"""Normalisation of every channel of every example, in one operation where TensorFlow has one.

x = GroupNormalization()(x)
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

#: Channels, in multiples of which TensorFlow's fused normalisation is fast on a CPU.
FUSED_CHANNELS = 16


@keras.saving.register_keras_serializable("ML_3D_Unet")
class GroupNormalization(keras.layers.GroupNormalization):
    """That of Keras with a group a channel, several times faster where TensorFlow has it in one operation.

    The statistics of an example are those that batch normalisation takes in the training of a batch of one.
    The name is that of Keras's, as files of weights call their parts by it.
    """

    def __init__(self, groups: int = -1, **kwargs: Any) -> None:
        super().__init__(groups=groups, **kwargs)

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Normalise every channel of every example; the batch must be known for the fastest way."""
        shape = inputs.shape
        if self.groups != shape[-1]:
            return super().call(inputs)
        if None in shape[1:-1] and self._is_single:
            return self._of_any_size(inputs)
        is_whole = len(shape) >= 4 and None not in shape
        if not is_whole or shape[-1] % FUSED_CHANNELS or keras.backend.backend() != "tensorflow":
            return super().call(inputs)
        import tensorflow as tf  # here alone, so that the layers run with every backend of Keras

        flat = (1, int(np.prod(shape[1:-2])), *shape[-2:])
        none = tf.zeros([0])
        values = {
            "scale": tf.cast(self.gamma, tf.float32),
            "offset": tf.cast(self.beta, tf.float32),
            **{"mean": none, "variance": none, "epsilon": self.epsilon, "is_training": True},
        }
        examples = tf.split(tf.cast(inputs, self.compute_dtype), shape[0])
        found = [tf.raw_ops.FusedBatchNormV3(x=tf.reshape(x, flat), **values).y for x in examples]
        return tf.reshape(tf.concat(found, axis=0), shape)

    @property
    def _is_single(self) -> bool:
        """Whether it computes in float32, with scale and centre."""
        return self.scale and self.center and self.compute_dtype == "float32"

    def _of_any_size(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Normalise images of unknown size, for which Keras spends most operations on shapes."""
        axes = tuple(range(1, len(inputs.shape) - 1))
        mean, variance = keras.ops.moments(inputs, axes, keepdims=True)
        factor = self.gamma * keras.ops.rsqrt(variance + self.epsilon)
        return inputs * factor + (self.beta - mean * factor)
