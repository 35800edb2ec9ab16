"""The training loop: sums worked out by hand on a model with one weight, and runs that are broken off."""

import json
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from ML_3D_Unet.utils.train import HISTORY_FIELDS, Trainer, read_history
from tests import forked

X = np.array([[1.0], [2.0], [3.0]], "float32")


def make_model(weight=1.0):
    """Give y = weight · x."""
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer=keras.initializers.Constant(weight))
    return keras.Sequential([keras.Input((1,)), layer])


def squared(y_true, y_pred):
    return tf.square(y_true - y_pred)[:, 0]


def pairs(x=X, batch=2):
    return tf.data.Dataset.from_tensor_slices((x, np.zeros_like(x))).batch(batch)


def of_unknown_shape(values):
    return tf.numpy_function(lambda array: array, [values], tf.float32)


def weight_of(model):
    return float(model.get_weights()[0][0, 0])


def train(folder, *, data=None, model=None, rate=0.0, loss_fn=squared, trainer_arguments=None, **arguments):
    """Train with plain gradient descent; give the trainer and its history."""
    trainer = Trainer(model or make_model(), "sgd", rate, folder, **(trainer_arguments or {}))
    return trainer, trainer.train(pairs() if data is None else data, loss_fn=loss_fn, **arguments)


@pytest.mark.parametrize("loss_fn", [squared, lambda y, p: tf.reduce_mean(tf.square(y - p))])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_steps_and_epoch_mean_by_hand(tmp_path, loss_fn, jit_compile):
    # Batch (1, 2): loss 1 + 4, gradient 2·(1 + 4)/2 = 5, weight 1 − .1·5 = .5.
    # Batch (3): loss (.5·3)² = 2.25, gradient 2·.5·9 = 9, weight .5 − .9 = −.4.
    trainer, history = train(
        tmp_path, rate=0.1, loss_fn=loss_fn, trainer_arguments={"jit_compile": jit_compile}
    )
    assert weight_of(trainer.model) == pytest.approx(-0.4, abs=1e-6)
    assert history[0]["loss"] == pytest.approx((1 + 4 + 2.25) / 3, rel=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_values_of_more_axes_are_averaged_over_all_but_the_first(tmp_path, jit_compile):
    # The mean of each example's square and three times its square: twice the loss worked out above.
    def loss_fn(y_true, y_pred):
        square = tf.square(y_true - y_pred)
        return tf.concat([square, 3 * square], axis=-1)[:, :, tf.newaxis]

    trainer, history = train(
        tmp_path,
        rate=0.05,
        loss_fn=loss_fn,
        accuracy_fn=loss_fn,
        trainer_arguments={"jit_compile": jit_compile},
    )
    assert weight_of(trainer.model) == pytest.approx(-0.4, abs=1e-6)
    assert history[0]["loss"] == history[0]["accuracy"] == pytest.approx(2 * (1 + 4 + 2.25) / 3, rel=1e-6)


def test_accuracy_is_a_mean_over_examples_not_over_batches(tmp_path):
    _, history = train(tmp_path, accuracy_fn=lambda y, p: tf.reduce_mean(p))
    assert history[0]["accuracy"] == pytest.approx((1 + 2 + 3) / 3)


def test_epoch_is_read_inside_the_compiled_step(tmp_path):
    trainer = Trainer(make_model(), "sgd", 0.0, tmp_path)

    def loss_fn(y_true, y_pred):
        return 0 * y_pred[:, 0] + tf.cast(trainer.epoch, tf.float32)

    history = trainer.train(pairs(), pairs(), loss_fn=loss_fn, EPOCHS=3)
    assert [row["loss"] for row in history] == [row["val_loss"] for row in history] == [0, 1, 2]
    assert int(trainer.epoch) == 3


def test_data_may_be_a_function_of_the_epoch_also_after_a_resume(tmp_path):
    def data(epoch):
        return pairs(X[: epoch + 1])

    train(tmp_path, data=data, EPOCHS=1)
    _, history = train(tmp_path, data=data, EPOCHS=3)
    assert [row["loss"] for row in history] == pytest.approx([1, 5 / 2, 14 / 3])


def test_prepare_makes_the_example_inside_the_step_and_knows_training(tmp_path):
    def prepare(batch, training):
        return batch["x"] * (2.0 if training else 3.0), {"target": batch["x"] * 0}

    data = tf.data.Dataset.from_tensor_slices({"x": X}).batch(2)
    _, history = train(
        tmp_path,
        data=data,
        valid_ds=data,
        loss_fn=lambda y, p: squared(y["target"], p),
        trainer_arguments={"prepare": prepare},
    )
    assert (history[0]["loss"], history[0]["val_loss"]) == pytest.approx((4 * 14 / 3, 9 * 14 / 3))


@pytest.mark.parametrize(("train_size", "expected"), [(2, 5 / 2), (3, 14 / 3), (5, 19 / 5)])
def test_endless_data_end_at_train_size(tmp_path, train_size, expected):
    # Batches of (1, 2), (3), (1, 2), ...: 5 examples are 1, 2, 3, 1, 2.
    _, history = train(tmp_path, data=pairs().repeat(), train_size=train_size)
    assert history[0]["loss"] == pytest.approx(expected)


def test_single_examples_are_batched(tmp_path):
    trainer, _ = train(tmp_path, data=pairs().unbatch(), rate=0.1, BATCH_SIZE=2)
    assert weight_of(trainer.model) == pytest.approx(-0.4, abs=1e-6)


def test_step_is_traced_once_for_full_batches(tmp_path):
    traces = []

    def loss_fn(y_true, y_pred):
        traces.append(y_pred.shape)
        return squared(y_true, y_pred)

    train(tmp_path, data=pairs(np.ones((8, 1), "float32")), loss_fn=loss_fn, EPOCHS=3)
    assert traces == [(2, 1)]


def test_learning_rate_follows_its_schedule(tmp_path):
    # One example x = 1: each epoch the weight shrinks by the factor 1 − 2·rate.
    arguments = {"trainer_arguments": {"learning_rate_schedule": [0.25, 0.125].__getitem__}}
    trainer, history = train(tmp_path, data=pairs(X[:1]), EPOCHS=2, **arguments)
    assert [row["learning_rate"] for row in history] == [0.25, 0.125]
    assert weight_of(trainer.model) == pytest.approx(0.5 * 0.75)


def test_validation_history_and_models_by_save_step(tmp_path):
    # With rate 1 and x = 1 the weight changes its sign every epoch: −1, 1, −1, 1, −1. The validation loss
    # stays the same, so the first epoch that was validated, the second, remains the best.
    _, history = train(tmp_path, data=pairs(X[:1]), valid_ds=pairs(X), rate=1.0, EPOCHS=5, save_step=2)
    assert [row["val_loss"] is not None for row in history] == [False, True, False, True, True]
    assert history[1]["val_loss"] == pytest.approx(14 / 3)
    assert history[1]["val_accuracy"] is None
    assert list(history[0]) == list(HISTORY_FIELDS)
    assert read_history(tmp_path / "history.csv", last_epoch=5) == history
    assert weight_of(keras.models.load_model(tmp_path / "best.keras")) == pytest.approx(1)
    assert weight_of(keras.models.load_model(tmp_path / "last.keras")) == pytest.approx(-1)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*"))


def test_best_is_that_of_the_lowest_validation_loss(tmp_path):
    # Rate 1.5 and x = 1: the weight is multiplied by −2 every epoch, so the first is the best.
    train(tmp_path, data=pairs(X[:1]), valid_ds=pairs(X), rate=1.5, EPOCHS=2)
    train(tmp_path, data=pairs(X[:1]), valid_ds=pairs(X), rate=1.5, EPOCHS=3)  # remembered by the checkpoint
    assert weight_of(keras.models.load_model(tmp_path / "best.keras")) == pytest.approx(-2)
    assert weight_of(keras.models.load_model(tmp_path / "last.keras")) == pytest.approx(-8)


def test_best_without_validation_is_by_training_loss_and_says_so(tmp_path, capsys):
    train(tmp_path, data=pairs(X[:1]), rate=1.5, EPOCHS=2)
    assert "lowest training loss" in capsys.readouterr().out
    assert weight_of(keras.models.load_model(tmp_path / "best.keras")) == pytest.approx(-2)


def test_complete_training_says_so_and_gives_its_history(tmp_path, capsys):
    _, history = train(tmp_path, EPOCHS=2)
    trainer, again = train(tmp_path, EPOCHS=2, rate=0.1)
    assert again == history
    assert weight_of(trainer.model) == 1.0
    assert "already complete, 2 of 2 epochs" in capsys.readouterr().out


def test_history_is_cut_to_the_epochs_of_the_checkpoint(tmp_path):
    train(tmp_path, EPOCHS=2)
    table = tmp_path / "history.csv"
    table.write_text(table.read_text() + "3,9,,,,0,1,1\n")
    _, history = train(tmp_path, EPOCHS=3)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history[2]["loss"] == pytest.approx(14 / 3)
    assert read_history(table, last_epoch=9) == history


def test_loss_not_finite_stops_with_epoch_and_step(tmp_path):
    bad = np.array([[1.0], [1.0], [np.nan], [1.0]], "float32")

    def data(epoch):
        return pairs(bad if epoch == 1 else np.ones_like(bad), batch=1)

    with pytest.raises(FloatingPointError, match="epoch 2 training, step 3"):
        train(tmp_path, data=data, EPOCHS=3)
    assert tf.train.latest_checkpoint(str(tmp_path)).endswith("ckpt-1")


def test_endless_run_stops_soon_after_the_loss_went_bad(tmp_path):
    bad = pairs(np.full((2, 1), np.inf, "float32")).repeat()
    with pytest.raises(FloatingPointError, match="epoch 1 training, step 1"):
        train(tmp_path, data=bad, trainer_arguments={"check_every": 4})


def test_weights_not_finite_are_never_saved(tmp_path):
    # |w·x| as sqrt((w·x)²) is 0 at w = 0, and its gradient there is 0/0.
    with pytest.raises(FloatingPointError, match="finite weights after epoch 1"):
        train(
            tmp_path,
            data=pairs(X[:1]),
            model=make_model(0.0),
            rate=0.1,
            loss_fn=lambda y, p: tf.sqrt(squared(y, p)),
        )
    assert tf.train.latest_checkpoint(str(tmp_path)) is None


def test_half_precision_scales_its_loss(tmp_path):
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = make_model()
    finally:
        keras.mixed_precision.set_dtype_policy("float32")

    # Gradients of 1e-8 are nothing in float16 unless the loss is scaled.
    def loss_fn(y_true, y_pred):
        return tf.cast(y_pred[:, 0], tf.float32) * 1e-8

    trainer, _ = train(tmp_path, data=pairs(X[:1]), model=model, rate=1e7, loss_fn=loss_fn)
    assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    assert weight_of(model) == pytest.approx(1 - 0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_ds": None}, "Expected train_ds to be a dataset .* received None"),
        ({"train_ds": 3}, "Expected train_ds to be a dataset .* received 3"),
        ({"valid_ds": "x"}, "Expected valid_ds to be a dataset .* received 'x'"),
        ({"train_ds": pairs(X[:0])}, "Expected train_ds to give at least one batch"),
        ({"valid_ds": pairs(X[:0])}, "Expected valid_ds to give at least one batch"),
        ({"train_ds": lambda epoch: None}, "Expected a dataset of epoch 0, received None"),
        ({"train_ds": tf.data.Dataset.from_tensors(X)}, r"Expected a dataset of pairs \(x, y\)"),
        ({"loss_fn": None}, r"Expected loss_fn\(y_true, y_pred\), received None"),
        ({"loss_fn": lambda y, p: of_unknown_shape(p)}, "Expected loss_fn to give .* unknown number of axes"),
        ({"EPOCHS": 0}, "Expected EPOCHS to be a positive integer, received 0"),
        ({"train_size": 1.5}, "Expected train_size to be a positive integer, received 1.5"),
    ],
)
def test_wrong_arguments_say_what_was_expected(tmp_path, arguments, message):
    trainer = Trainer(make_model(), "sgd", 0.0, tmp_path)
    with pytest.raises(ValueError, match=message):
        trainer.train(**{"train_ds": pairs(), "loss_fn": squared, **arguments})


def test_optimizers_by_instance_name_class_and_default(tmp_path):
    mine = keras.optimizers.SGD(0.3)
    assert Trainer(make_model(), mine, model_dir=tmp_path).optimizer is mine
    by_default = Trainer(make_model(), learning_rate=0.01, model_dir=tmp_path).optimizer
    assert isinstance(by_default, keras.optimizers.Adam)
    assert float(by_default.learning_rate) == pytest.approx(0.01)
    for maker in (keras.optimizers.Adam, lambda learning_rate: keras.optimizers.Adam(learning_rate)):
        made = Trainer(make_model(), maker, 0.01, tmp_path).optimizer
        assert isinstance(made, keras.optimizers.Adam) and float(made.learning_rate) == pytest.approx(0.01)
    for wrong in (3, keras.layers.Dense, lambda learning_rate: None):
        with pytest.raises(ValueError, match="Expected optimizer to be None, a name"):
            Trainer(make_model(), wrong, model_dir=tmp_path)


def test_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    train(tmp_path)
    other = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, use_bias=False)])
    with pytest.raises(ValueError, match=r"ckpt-1: expected a checkpoint of this model"):
        train(tmp_path, model=other, EPOCHS=2)


def run_apart(mode, folder):
    return forked.run("-m", "tests.ml_3d_unet.training_runs", mode, folder)


def last_line(done):
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_and_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path):
    assert run_apart("killed", tmp_path).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "ckpt-3.index").exists()
    result = last_line(run_apart("resumed", tmp_path))
    assert result["variables"] > 40  # weights, averages, dropout seeds, both moments of Adam
    assert result["differing"] == []
    assert result["same_losses"] and result["same_best"]
    assert result["epochs"] == [1, 2, 3, 4]


def test_two_replicas_equal_one_with_the_same_global_batch(tmp_path):
    result = last_line(run_apart("mirrored", tmp_path))
    assert result["distance"] < 1e-5
    np.testing.assert_allclose(*result["losses"], rtol=1e-6)
    assert result["odd_is_finite"]
    assert result["restored"]
    np.testing.assert_allclose(*result["odd_val_loss"], rtol=1e-5)
