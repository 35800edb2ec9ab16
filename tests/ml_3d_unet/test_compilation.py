"""Whether XLA compiles the network: decided at the first batch, by time or by failure; it leaves no trace."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from ML_3D_Unet.utils import compilation
from ML_3D_Unet.utils.compilation import Compilation
from ML_3D_Unet.utils.train import RunOptions, Trainer


def squares(x):
    return tf.reduce_sum(x * x)


def counting(variable):
    """A function that changes a variable whenever it runs."""

    def function(x):
        variable.assign_add(1.0)
        return x + variable

    return function


@pytest.mark.parametrize(
    ("seconds", "compiles", "line"),
    [
        ([1.0, 3.0], True, "The network runs with XLA: 3.00 times as fast as without."),
        ([3.0, 1.5], False, "The network runs without XLA: 2.00 times as fast as with."),
    ],
)
def test_auto_takes_the_faster_and_says_by_how_much(monkeypatch, seconds, compiles, line):
    lines, left = [], list(seconds)
    chosen = Compilation("auto", (), lines.append)
    monkeypatch.setattr(chosen, "_seconds_of", lambda *_: left.pop(0))
    function = chosen.choose(squares, (tf.ones(3),))
    assert lines == [line] and chosen.wanted is compiles and function.function_spec is not None
    assert bool(function._jit_compile) is compiles
    # What was decided holds for the validation; only whether it runs at all is tried.
    left.append(0.0)
    assert bool(chosen.choose(squares, (tf.ones(3),))._jit_compile) is compiles and len(lines) == 1


@pytest.mark.parametrize("wanted", [True, "auto"])
def test_a_trial_leaves_variables_as_they_were(wanted):
    variable = tf.Variable(5.0)
    function = Compilation(wanted, [variable], lambda _: None).choose(counting(variable), (tf.zeros(()),))
    assert variable.numpy() == 5.0 and function(tf.zeros(())).numpy() == 6.0


@pytest.mark.parametrize("wanted", [True, "auto"])
def test_what_xla_cannot_run_is_run_without(wanted):
    lines = []
    read = Compilation(wanted, (), lines.append).choose(
        lambda text: tf.strings.regex_replace(text, "a", "b"), (tf.constant("a"),)
    )
    assert read(tf.constant("a")).numpy() == b"b"
    (line,) = lines
    assert line.startswith("XLA could not run the network (") and line.endswith("left out.")


def small_network(dropout):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv3D(2, 3, padding="same"), keras.layers.BatchNormalization()]
    last = keras.layers.Conv3D(1, 1, activation="sigmoid")
    return keras.Sequential([keras.Input((4, 4, 4, 1)), *layers, keras.layers.Dropout(dropout), last])


def trained(folder, jit_compile, dropout=0.5, **options):
    """Losses and weights of three epochs."""
    x = np.random.default_rng(0).normal(size=(4, 4, 4, 4, 1)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, (x > 0).astype("float32"))).batch(2)
    network = small_network(dropout)
    options = RunOptions(tensorboard=False, **options)
    trainer = Trainer(network, "sgd", 0.1, folder, jit_compile=jit_compile, options=options)
    rows = trainer.train(data, data, loss_fn=keras.losses.binary_crossentropy, EPOCHS=3)
    return [[row[name] for name in ("loss", "val_loss")] for row in rows], network.get_weights()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_with_and_without_xla_is_the_same(tmp_path, accumulate):
    (losses, weights), (others, other_weights) = (
        trained(tmp_path / str(compiles), compiles, 0.0, accumulate=accumulate) for compiles in (True, False)
    )
    np.testing.assert_allclose(losses, others, atol=1e-4)
    for one, other in zip(weights, other_weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("wanted", [True, "auto"])
def test_a_training_whose_compiled_step_fails_goes_on_without_it(tmp_path, monkeypatch, capsys, wanted):
    expected = trained(tmp_path / "plain", False)
    make = tf.function

    def failing(function, jit_compile=None, **keywords):
        def fail(*_):
            raise tf.errors.InternalError(None, None, "libdevice not found\nmore")

        return fail if jit_compile else make(function, **keywords)

    parts = {name: getattr(tf, name) for name in ("errors", "identity", "nest")}
    monkeypatch.setattr(compilation, "tf", types.SimpleNamespace(function=failing, **parts))
    losses, weights = trained(tmp_path / "fallen", wanted)
    said = capsys.readouterr()
    assert (said.out + said.err).count(
        "XLA could not run the network (InternalError: libdevice not found)"
    ) == 1
    np.testing.assert_allclose(losses, expected[0], atol=1e-5)
    for one, other in zip(weights, expected[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
