"""Muon for kernels: the step against a singular value decomposition, what stays Adam's, and a resume."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ML_3D_Unet.utils.optimizers import KernelMuon, is_kernel, orthogonal
from ML_3D_Unet.utils.train import Trainer

RATE, SHAPE = 0.01, (3, 3, 3, 8, 16)


def of_singular_values(matrix):
    """Give U V' of a matrix."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def alike(found, wanted):
    """Give the cosine of the angle between two arrays."""
    return np.vdot(found, wanted) / np.linalg.norm(found) / np.linalg.norm(wanted)


@pytest.mark.parametrize("shape", [(216, 16), (16, 216), (32, 32)])
def test_a_matrix_becomes_about_orthogonal(shape):
    # Singular values from 1 to .01, as a gradient's: all but the smallest come out near 1.
    rng = np.random.default_rng(3)
    left, _, right = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    values = np.geomspace(1, 0.01, min(shape))
    found = np.array(orthogonal(((left * values) @ right).astype("float32")))
    np.testing.assert_allclose(np.linalg.svd(found, compute_uv=False), 1.0, atol=0.4)
    assert alike(found, left @ right) > 0.97


def variables(*shapes):
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.normal(size=shape).astype("float32")) for shape in shapes]


def gradients(*shapes):
    rng = np.random.default_rng(1)
    return [tf.constant(rng.normal(size=shape).astype("float32")) for shape in shapes]


def test_the_steps_of_a_kernel_are_orthogonal_and_as_long_as_those_of_adam():
    (kernel,), (gradient,) = variables(SHAPE), gradients(SHAPE)
    optimizer = KernelMuon(RATE, momentum=0.5)
    before = np.array(kernel)
    optimizer.apply([gradient], [kernel])
    middle = np.array(kernel)
    optimizer.apply([2 * gradient[::-1]], [kernel])
    first, second = before - middle, middle - np.array(kernel)
    as_matrix = np.reshape(np.array(gradient), (-1, SHAPE[-1]))
    assert alike(first.reshape(as_matrix.shape), of_singular_values(as_matrix)) > 0.97
    assert np.sqrt(np.mean(first**2)) == pytest.approx(0.2 * RATE, rel=0.3)
    # Momentum .5 g + 2 h, and with the gradient once more .25 g + 3 h.
    following = 0.25 * as_matrix + 3 * np.reshape(np.array(gradient[::-1]), as_matrix.shape)
    assert alike(second.reshape(as_matrix.shape), of_singular_values(following)) > 0.97


def test_what_is_no_kernel_of_several_channels_is_left_to_adam():
    shapes = [(16,), (3, 3, 3, 2, 16), (1, 1, 1, 16, 1)]
    assert not any(map(is_kernel, shapes)) and is_kernel(SHAPE) and is_kernel((8, 8))
    ours, theirs = variables(*shapes), variables(*shapes)
    for optimizer, mine in ((KernelMuon(RATE), ours), (keras.optimizers.Adam(RATE), theirs)):
        for _ in range(2):
            optimizer.apply(gradients(*shapes), mine)
    for mine, other in zip(ours, theirs):
        np.testing.assert_array_equal(np.array(mine), np.array(other))


def test_it_can_be_made_anew():
    made = KernelMuon.from_config(KernelMuon(RATE, momentum=0.7, beta_2=0.99).get_config())
    assert (made.momentum, made.beta_2) == (0.7, 0.99)
    assert float(made.learning_rate) == pytest.approx(RATE)


def trained(folder, *epochs):
    """Train a network of two kernels, for so many epochs, then on to so many; give its weights."""
    x = np.random.default_rng(4).normal(size=(4, 6, 6, 6, 8)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, x[..., :1] > 0.3)).batch(2)
    for last in epochs:
        keras.utils.set_random_seed(5)
        layers = [keras.layers.Conv3D(8, 3, padding="same", activation="relu") for _ in range(2)]
        model = keras.Sequential([keras.Input(x.shape[1:]), *layers, keras.layers.Conv3D(1, 1)])
        trainer = Trainer(model, KernelMuon, RATE, folder)
        history = trainer.train(data, loss_fn=squared, EPOCHS=last)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    return model.get_weights()


def squared(y_true, y_pred):
    return tf.reduce_mean(tf.square(tf.cast(y_true, tf.float32) - y_pred), axis=[1, 2, 3, 4])


def test_a_training_goes_on_where_it_stopped(tmp_path):
    at_once = trained(tmp_path / "once", 6)
    for ours, theirs in zip(at_once, trained(tmp_path / "twice", 3, 6), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
