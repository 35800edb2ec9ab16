"""Time a training step of the segmentation network with Keras's normalisation of instances and with ours.

Command python benchmarks/bench_normalisation.py --precision bfloat16
Time    a minute on two CPU cores
Result  two cores of an Intel Xeon (AMX), bfloat16: see docs/speed.md

Reads and writes nothing. Both networks have the filters of the preset `starter` and the same weights; they
take turns, round by round, on one batch of random patches. Prints milliseconds a step (forward, backward, and
the update), the median of the rounds, and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ML_3D_Unet.utils import blocks
from utils.learning.models import build_segmentation_network
from utils.presets import preset_settings
from utils.settings import SegmentationTrainingSettings


class KerasNormalization(blocks.GroupNormalization):
    """The layer of the project, computed as Keras does."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalise every channel of every example."""
        return keras.layers.GroupNormalization.call(self, inputs)


def network_with(layer: type, settings: SegmentationTrainingSettings) -> keras.Model:
    """Build the segmentation network with a layer for its normalisation."""
    ours = blocks.GroupNormalization
    blocks.GroupNormalization = layer
    try:
        return build_segmentation_network(settings)
    finally:
        blocks.GroupNormalization = ours


def step_of(network: keras.Model, batch: int) -> Callable[[], tf.Tensor]:
    """Give a compiled training step on one batch of random patches."""
    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build(network.trainable_variables)
    shown = tf.random.stateless_normal((batch, *network.input_shape[1:]), (0, 1))
    wanted = tf.cast(shown[..., :1] > 1, tf.float32)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(network(shown, training=True) - wanted))
        optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)
        return loss

    return step


def milliseconds(step: Callable[[], tf.Tensor], steps: int) -> float:
    """Time some steps, and give the mean."""
    began = time.perf_counter()
    for _ in range(steps):
        loss = step()
    loss.numpy()
    return 1000 * (time.perf_counter() - began) / steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, time, print, and give the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=2, help="patches a step")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    parser.add_argument("--steps", type=int, default=5, help="steps a round")
    parser.add_argument("--patch-voxels", type=int, default=56, help="edge of a patch")
    chosen = parser.parse_args(arguments)
    mixed = chosen.precision == "bfloat16"
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if mixed else "float32")
    settings = preset_settings(SegmentationTrainingSettings, "starter", patch_voxels=chosen.patch_voxels)
    layers = {"Keras": KerasNormalization, "fused": blocks.GroupNormalization}
    networks = {name: network_with(layer, settings) for name, layer in layers.items()}
    networks["fused"].set_weights(networks["Keras"].get_weights())
    steps = {name: step_of(network, chosen.batch_size) for name, network in networks.items()}
    for step in steps.values():
        milliseconds(step, 2)  # traced, and warm
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(chosen.rounds):
        for name, step in steps.items():
            found[name].append(milliseconds(step, chosen.steps))
    medians = {name: statistics.median(times) for name, times in found.items()}
    for name, times in found.items():
        print(f"{name}: {medians[name]:.0f} ms a step ({min(times):.0f} to {max(times):.0f})")
    print(f"ratio: {medians['Keras'] / medians['fused']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
