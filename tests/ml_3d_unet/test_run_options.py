"""What a run may do beside the plain loop, each worked out by hand on a model with one weight."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ML_3D_Unet.utils import feeding, history, watch
from ML_3D_Unet.utils.averages import MovingAverage
from ML_3D_Unet.utils.layers_func import create_unet3d
from ML_3D_Unet.utils.train import EpochPart, RunOptions, Trainer
from tests.ml_3d_unet.test_train import X, make_model, pairs, squared, train, weight_of


def with_options(**options):
    return {"trainer_arguments": {"options": RunOptions(**options)}}


# ---------------------------------------------------------------- weights of examples, and filled batches


def test_weights_of_examples_count_in_loss_gradient_and_mean(tmp_path):
    # Examples 1, 2, 3 with weights 1, 0, .5: loss (1 + .5·9) / 1.5, gradient 2·(1 + 4.5) / 1.5, rate .1.
    data = tf.data.Dataset.from_tensors((X, 0 * X, np.array([1, 0, 0.5], "float32")))
    trainer, rows = train(tmp_path, data=data, valid_ds=data, rate=0.1)
    assert rows[0]["loss"] == pytest.approx(5.5 / 1.5)
    assert weight_of(trainer.model) == pytest.approx(1 - 0.1 * 11 / 1.5, abs=1e-6)
    assert rows[0]["val_loss"] == pytest.approx((1 - 1.1 / 1.5) ** 2 * 5.5 / 1.5)


def test_a_scalar_loss_counts_as_the_mean_of_the_weights(tmp_path):
    data = tf.data.Dataset.from_tensors((X, 0 * X, np.array([1, 0, 0], "float32")))
    both = data.concatenate(tf.data.Dataset.from_tensors((X[:1], X[:1], np.ones(1, "float32"))))
    _, rows = train(tmp_path, data=both, loss_fn=lambda y, p: tf.reduce_mean(tf.square(y - p)))
    # A mean of 14/3 with weight 1, and one of 0 with weight 1.
    assert rows[0]["loss"] == pytest.approx(14 / 3 / 2)


@pytest.mark.parametrize(("replicas", "expected"), [(1, [1, 2, 3]), (2, [1, 2, 3, 1]), (4, [1, 2, 3, 1])])
def test_a_batch_is_filled_up_with_examples_of_weight_0(replicas, expected):
    (filled,) = feeding.filled_to_replicas(pairs(X, batch=3), replicas).as_numpy_iterator()
    x, y = filled.batch
    assert x[:, 0].tolist() == expected and y.shape == x.shape
    assert filled.weight.tolist() == [1, 1, 1, 0][: len(expected)]


def test_a_dataset_of_dictionaries_is_filled_up_too():
    data = tf.data.Dataset.from_tensors({"x": X})
    (filled,) = feeding.filled_to_replicas(data, 2).as_numpy_iterator()
    assert filled.batch["x"][:, 0].tolist() == [1, 2, 3, 1]


# ---------------------------------------------------------------- accumulation


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 7])
def test_parts_of_a_batch_give_the_update_of_the_whole(tmp_path, accumulate, jit_compile):
    # Gradient 2·(1 + 4 + 9) / 3, rate .1; parts of two and one example must not be averaged as equals.
    arguments = {"options": RunOptions(accumulate=accumulate), "jit_compile": jit_compile}
    trainer, rows = train(tmp_path, data=pairs(batch=3), rate=0.1, trainer_arguments=arguments)
    assert weight_of(trainer.model) == pytest.approx(1 - 2.8 / 3, abs=1e-6)
    assert rows[0]["loss"] == pytest.approx(14 / 3)


def test_parts_are_seen_by_the_network_one_by_one(tmp_path):
    sizes = []

    def loss_fn(y_true, y_pred):
        sizes.append(int(y_pred.shape[0]))
        return squared(y_true, y_pred)

    train(tmp_path, data=pairs(batch=3), loss_fn=loss_fn, **with_options(accumulate=2))
    assert sizes == [2, 1]


@pytest.mark.parametrize("keep_last", [False, True])
def test_the_best_is_that_of_the_lowest_validation_loss_or_the_last(tmp_path, keep_last):
    # From the weight 1 training goes to 0; validation wants it to stay at 1 (x = 1, y = 1).
    valid_ds = tf.data.Dataset.from_tensor_slices((X[:1], np.ones((1, 1), "float32"))).batch(1)
    trainer, rows = train(
        tmp_path,
        data=pairs(X[:1]),
        valid_ds=valid_ds,
        rate=0.1,
        EPOCHS=3,
        **with_options(keep_last=keep_last),
    )
    losses = [row["val_loss"] for row in rows]
    assert losses == sorted(losses) and losses[0] < losses[-1]
    last, best = (weight_of(keras.models.load_model(tmp_path / f"{name}.keras")) for name in ("last", "best"))
    assert last == pytest.approx(weight_of(trainer.model))
    assert (best == last) == keep_last


# ---------------------------------------------------------------- moving average


def test_the_average_by_hand(tmp_path):
    # One example x = 1 and rate .25: the weight is halved by every step, 1/2, 1/4, 1/8.
    # Update t keeps min(decay, (1 + t) / (10 + t)) of the average, which begins at 1.
    data = pairs(np.ones((3, 1), "float32"), batch=1)
    trainer, rows = train(
        tmp_path, data=data, valid_ds=pairs(X[:1]), rate=0.25, **with_options(moving_average=0.15)
    )
    average = 1.0
    for weight, keep in ((1 / 2, 1 / 10), (1 / 4, 0.15), (1 / 8, 0.15)):
        average = keep * average + (1 - keep) * weight
    assert float(trainer.average.averages[0][0, 0]) == pytest.approx(average, rel=1e-6)
    assert weight_of(trainer.model) == pytest.approx(1 / 8)
    # The average is what is validated and saved; the training goes on from the weight.
    assert rows[0]["val_loss"] == pytest.approx(average**2, rel=1e-5)
    for name in ("best.keras", "last.keras"):
        assert weight_of(keras.models.load_model(tmp_path / name)) == pytest.approx(average, rel=1e-6)


def test_the_average_goes_on_after_a_resume(tmp_path):
    def run(folder, epochs):
        return train(folder, data=pairs(X[:1]), rate=0.1, EPOCHS=epochs, **with_options(moving_average=0.9))[
            0
        ]

    run(tmp_path / "broken", 2)
    broken, whole = run(tmp_path / "broken", 5), run(tmp_path / "whole", 5)
    assert float(broken.average.averages[0][0, 0]) == float(whole.average.averages[0][0, 0])
    assert int(broken.average.updates) == 5


def test_statistics_of_batch_normalisation_are_averaged_and_counters_are_not():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5, seed=0)]
    )
    average = MovingAverage(model, 0.5)
    assert len(average.averages) == 4  # gamma, beta, moving mean and variance
    model.layers[0].moving_mean.assign([10.0, 20.0])
    average.update()  # keeps (1 + 0) / (10 + 0)
    with average.in_place_of_weights():
        np.testing.assert_allclose(model.layers[0].moving_mean, [9.0, 18.0])
    np.testing.assert_allclose(model.layers[0].moving_mean, [10.0, 20.0])


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match=r"in \[0, 1\), received"):
        MovingAverage(make_model(), decay)


# ---------------------------------------------------------------- early stopping and plateaus


def rows_of(losses):
    return [{"val_loss": loss} for loss in losses]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([], 0), ([None], 0), ([3.0], 0), ([3, None, 2], 0), ([2, 3, None, 2], 2), ([1, 3, 0.5, 4], 1)],
)
def test_validations_without_gain(losses, expected):
    assert history.validations_without_gain(rows_of(losses)) == expected


@pytest.mark.parametrize(
    ("losses", "after", "expected"),
    [
        ([3, 2, 1], 1, 1.0),
        ([1, 2, 2], 2, 0.1),
        ([1, 2, None, 2, 2], 2, 0.1),  # the count begins anew after a plateau
        ([1, 2, 2, 2, 2], 2, 0.01),
        ([1, 2, 0.5, 2, 2], 2, 0.1),
        ([1, 2, 2, 2], 0, 1.0),
    ],
)
def test_plateaus_lower_the_rate(losses, after, expected):
    assert history.plateau_scale(rows_of(losses), after, 0.1) == pytest.approx(expected)


def test_a_run_without_gain_stops_and_says_so_again(tmp_path, capsys):
    # Rate 1.5 and x = 1: the weight is multiplied by −2 every epoch, so the first validation is the best.
    arguments = {"data": pairs(X[:1]), "valid_ds": pairs(X), "rate": 1.5, "EPOCHS": 9}
    _, rows = train(tmp_path, **arguments, **with_options(stop_after=2))
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert "stopped after epoch 3, as 2 validations brought no lower loss" in capsys.readouterr().out
    _, again = train(tmp_path, **arguments, **with_options(stop_after=2))
    assert again == rows
    assert "stopped after epoch 3" in capsys.readouterr().out
    assert weight_of(keras.models.load_model(tmp_path / "best.keras")) == pytest.approx(-2)


def test_a_plateau_lowers_the_rate_also_after_a_resume(tmp_path):
    def run(folder, epochs):
        arguments = {"data": pairs(X[:1]), "valid_ds": pairs(X), "rate": 1.5, "EPOCHS": epochs}
        return train(folder, **arguments, **with_options(plateau_after=1, plateau_factor=0.5))[1]

    run(tmp_path / "broken", 2)
    for rows in (run(tmp_path / "broken", 4), run(tmp_path / "whole", 4)):
        # Weights −2 and 4 at 1.5; the second is no gain, so the rate is halved: factor 1 − 2·.75 = −.5.
        # That gives −2, as good as the first but not better, so it is halved again: factor 1 − 2·.375 = .25.
        assert [row["learning_rate"] for row in rows] == [1.5, 1.5, 0.75, 0.375]
        assert rows[3]["val_loss"] == pytest.approx((-2 * 0.25) ** 2 * 14 / 3)


# ---------------------------------------------------------------- checkpoints within an epoch


class Broken(Exception):
    pass


def breaking(epoch_to_break, step_to_break, parts=None):
    """Give a function of epoch and part: four batches of one example, ended by an error in one epoch."""

    def batches(epoch, part):
        for step in range(part.first_step, 4):
            if epoch == epoch_to_break and step == step_to_break:
                raise Broken
            yield np.full((1, 1), 1 + epoch + step, "float32"), np.zeros((1, 1), "float32")

    def data(epoch, part):
        if parts is not None:
            parts.append((epoch, part))
        spec = (tf.TensorSpec((1, 1)), tf.TensorSpec((1, 1)))
        return tf.data.Dataset.from_generator(lambda: batches(epoch, part), output_signature=spec)

    return data


def test_a_run_goes_on_within_the_epoch(tmp_path):
    options = with_options(save_minutes=1e-9)  # after every step
    arguments = {"rate": 1e-3, "EPOCHS": 3, **options}
    with pytest.raises(tf.errors.OpError, match="Broken"):
        train(tmp_path / "broken", data=breaking(1, 2), **arguments)
    parts = []
    broken, rows = train(tmp_path / "broken", data=breaking(9, 9, parts), **arguments)
    whole, expected = train(tmp_path / "whole", data=breaking(9, 9), **arguments)
    assert parts == [(1, EpochPart(first_step=2)), (2, EpochPart())]
    assert weight_of(broken.model) == weight_of(whole.model)
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]
    assert all(row["seconds"] > 0 for row in rows)


def test_a_plain_dataset_is_skipped_to_where_the_run_was(tmp_path):
    def data(epoch):
        return breaking(9, 9)(epoch, EpochPart())

    def broken_data(epoch):
        return breaking(0, 3)(epoch, EpochPart())

    options = with_options(save_minutes=1e-9)
    with pytest.raises(tf.errors.OpError, match="Broken"):
        train(tmp_path / "broken", data=broken_data, rate=1e-3, **options)
    broken, rows = train(tmp_path / "broken", data=data, rate=1e-3, **options)
    whole, expected = train(tmp_path / "whole", data=data, rate=1e-3, **options)
    assert weight_of(broken.model) == weight_of(whole.model)
    assert rows[0]["loss"] == expected[0]["loss"]


def test_the_last_three_checkpoints_are_kept_and_none_is_written_over(tmp_path):
    train(tmp_path, data=breaking(9, 9), EPOCHS=2, **with_options(save_minutes=1e-9))
    # Four within and one after each of two epochs.
    kept = {path.name for path in tmp_path.glob("ckpt-*.index")}
    assert kept == {"ckpt-8.index", "ckpt-9.index", "ckpt-10.index"}


# ---------------------------------------------------------------- watching


def test_the_share_of_waiting_by_a_clock_set_by_hand(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])

    def slow():
        for index in range(3):
            now[0] += 2.0  # the batch comes after two seconds
            yield index

    clock = watch.WaitClock()
    for _ in clock.timed(slow()):
        now[0] += 6.0  # its step takes six
    assert (clock.waited, clock.seconds, clock.share) == (6.0, 24.0, 0.25)


def test_the_bar_does_not_count_what_only_fills_up(capsys):
    clock = watch.WaitClock()
    with watch.ProgressBar("epoch 1", total=5, initial=2, clock=clock, visible=True) as bar:
        bar.advance(2)
        bar.advance(2)
        bar.show({"loss": 0.5, "accuracy": 0.25})
        shown = str(bar._bar)
    assert "5/5" in shown and "loss=0.5000" in shown and "accuracy=0.2500" in shown and "waiting=" in shown
    assert "examples/s" in shown


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, tf.make_ndarray(event.tensor_proto)) for event in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
    }


def test_tensorboard_receives_scalars_and_a_panel(tmp_path):
    def panel(x, y, prediction):
        assert x.shape == y.shape == prediction.shape == (1, 1)
        return np.broadcast_to(np.array([1.0, 0.0, 0.2], "float32"), (1, 4, 6, 3))

    arguments = {"options": RunOptions(tensorboard=True), "panel": panel}
    _, rows = train(tmp_path, valid_ds=pairs(), EPOCHS=2, trainer_arguments=arguments)
    found = events(tmp_path / "tensorboard")
    assert {"loss", "val_loss", "learning_rate", "examples_per_second", "data_wait_share"} <= set(found)
    assert [(step, float(value)) for step, value in found["loss"]] == [
        (row["epoch"], pytest.approx(row["loss"])) for row in rows
    ]
    (_, (width, height, picture)) = found["panel"][0]
    assert (int(width), int(height)) == (6, 4) and picture.startswith(b"\x89PNG")
    assert tf.io.decode_png(picture).numpy()[0, 0].tolist() == [255, 0, 51]


def test_without_tensorboard_nothing_of_it_is_written(tmp_path):
    train(tmp_path, valid_ds=pairs())
    assert not (tmp_path / "tensorboard").exists()


# ---------------------------------------------------------------- devices


def test_batches_are_brought_to_the_device_ahead_of_time():
    found = list(feeding.prefetched_on(pairs(), "/CPU:0"))
    assert [x.shape[0] for x, _ in found] == [2, 1] and "CPU:0" in found[0][0].device


def test_examples_are_made_by_a_function_that_network_and_update_are_not_compiled_with(tmp_path):
    """Blocks of several sizes: one tracing of the network, one of the examples for each size."""
    traces = {"examples": 0, "losses": 0}

    def prepare(batch, training):
        traces["examples"] += 1
        return batch[:, :1], 0 * batch[:, :1], tf.ones(tf.shape(batch)[:1])

    def loss_fn(y_true, y_pred):
        traces["losses"] += 1
        return squared(y_true, y_pred)

    def data(epoch):
        sizes = [3, 4, 5, 3, 4, 5]
        spec = tf.TensorSpec((2, None))
        blocks = [np.ones((2, size), "float32") for size in sizes]
        return tf.data.Dataset.from_generator(lambda: iter(blocks), output_signature=spec)

    train(tmp_path, data=data, loss_fn=loss_fn, EPOCHS=2, trainer_arguments={"prepare": prepare})
    assert traces == {"examples": 3, "losses": 1}


def test_a_loss_scale_is_refused_on_several_replicas(tmp_path, monkeypatch):
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        Trainer(make_model(), optimizer, model_dir=tmp_path)  # one replica
        monkeypatch.setattr(type(strategy), "num_replicas_in_sync", 2)
        with pytest.raises(ValueError, match=r"2 replicas.*float16"):
            Trainer(make_model(), optimizer, model_dir=tmp_path)


def test_float16_with_its_loss_scale_is_compiled_with_xla(tmp_path):
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = create_unet3d((4, 4, 4, 1), n_convs=1, n_filters=[2, 4], norm="batch_norm")
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    x = np.random.default_rng(0).normal(size=(4, 4, 4, 4, 1)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, (x > 0).astype("float32"))).batch(2)
    trainer = Trainer(model, learning_rate=1e-2, model_dir=tmp_path, jit_compile=True)

    def loss_fn(y_true, y_pred):
        return tf.reduce_mean(tf.square(y_true - y_pred), axis=[1, 2, 3, 4])

    rows = trainer.train(data, data, loss_fn=loss_fn, EPOCHS=6)
    assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"] and np.isfinite(rows[-1]["val_loss"])
