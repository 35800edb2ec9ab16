"""Knowledge distillation: its loss by hand on models with one weight, and three models that stay apart."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ML_3D_Unet.utils.kd import DistillingTrainer, Trainer_KD, divergence, softened
from ML_3D_Unet.utils.layers import create_unet3d_class
from ML_3D_Unet.utils.layers_func import create_unet3d
from tests.ml_3d_unet.test_run_options import Broken

X = np.array([[1.0], [2.0]], "float32")


def make_model(weight, outputs=1):
    """Give sigmoid(weight · x)."""
    inputs = keras.Input((1,))
    start = keras.initializers.Constant(weight)
    logits = keras.layers.Dense(outputs, use_bias=False, kernel_initializer=start, name="last_logits")(inputs)
    return keras.Model(inputs, keras.layers.Activation("sigmoid", name="output")(logits))


def pairs(epoch=0, count=2):
    return tf.data.Dataset.from_tensor_slices((X[:count], 0 * X[:count])).batch(2)


def hard_loss(y_true, y_pred):
    return y_pred[:, 0] - y_true[:, 0]


def difference(teacher, student):
    return tf.square(teacher - student)[:, 0]


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, "float64")))


def weight_of(model):
    return float(model.get_weights()[0][0, 0])


def distil(folder, *, rate=0.0, distillation_fn=difference, trained=None, **keywords):
    """Train a student of weight .5 with a teacher of weight 2 on x = 1 alone; give trainer and history."""
    trainer = DistillingTrainer(make_model(0.5), make_model(2.0), "sgd", rate, folder, **keywords)
    trainer.distillation_fn = distillation_fn
    return trainer, trainer.train(pairs(count=1), pairs(), loss_fn=hard_loss)


# ---------------------------------------------------------------- the loss


def test_softened_probabilities():
    one = tf.constant([[-2.0], [0.0], [4.0]], tf.float16)
    np.testing.assert_allclose(softened(one, 2.0), sigmoid([[-1.0], [0.0], [2.0]]), rtol=1e-6)
    assert softened(one, 2.0).dtype == tf.float32
    two = tf.constant([[0.0, 2.0 * np.log(3.0)]])
    np.testing.assert_allclose(softened(two, 2.0), [[0.25, 0.75]], rtol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_loss_of_two_parts(tmp_path, weight):
    _, (row,) = distil(tmp_path, temperature=2.0, distillation_weight=weight)
    soft = (sigmoid(2.0 / 2) - sigmoid(0.5 / 2)) ** 2
    assert row["loss"] == pytest.approx((1 - weight) * sigmoid(0.5) + weight * soft, rel=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_one_step_by_hand(tmp_path, jit_compile):
    # On logits: ½ sigmoid(w) + ½ (2 − w)², whose derivative at w = ½ is ½ s (1 − s) − 1.5.
    trainer, _ = distil(tmp_path, rate=0.1, distill_on="logits", jit_compile=jit_compile)
    slope = 0.5 * sigmoid(0.5) * (1 - sigmoid(0.5)) - 1.5
    assert weight_of(trainer.model) == pytest.approx(0.5 - 0.1 * slope, rel=1e-5)


def test_teacher_comes_first_and_a_scalar_counts_for_every_example(tmp_path):
    def signed_mean(teacher, student):
        return tf.reduce_mean(teacher - student)

    _, (row,) = distil(tmp_path, distillation_fn=signed_mean, distill_on="logits", distillation_weight=1.0)
    assert row["loss"] == pytest.approx(1.5)


def test_divergence_by_hand():
    teacher, student = np.array([[0.25], [0.5]]), np.array([[0.5], [0.5]])
    expected = [0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5), 0.0]
    np.testing.assert_allclose(divergence(tf.constant(teacher), tf.constant(student)), expected, atol=1e-6)
    both = (np.concatenate([p, 1 - p], axis=-1) for p in (teacher, student))
    np.testing.assert_allclose(divergence(*map(tf.constant, both)), expected, atol=1e-6)


def test_without_a_function_probabilities_are_compared_by_their_divergence(tmp_path):
    trainer = DistillingTrainer(
        make_model(0.5), make_model(2.0), "sgd", 0.0, tmp_path, temperature=2.0, distillation_weight=1.0
    )
    (row,) = trainer.train(pairs(count=1), loss_fn=hard_loss)
    t, s = sigmoid(1.0), sigmoid(0.25)
    assert row["loss"] == pytest.approx(t * np.log(t / s) + (1 - t) * np.log((1 - t) / (1 - s)), rel=1e-4)


def test_values_of_more_axes_are_averaged_over_the_example(tmp_path):
    def twice(teacher, student):
        return tf.stack([teacher - student, 3.0 * (teacher - student)], axis=-1)

    _, (row,) = distil(tmp_path, distillation_fn=twice, distill_on="logits", distillation_weight=1.0)
    assert row["loss"] == pytest.approx(2 * 1.5)


def test_validation_is_against_the_labels_alone(tmp_path):
    trainer = DistillingTrainer(make_model(0.5), make_model(2.0), "sgd", 0.0, tmp_path)
    trainer.distillation_fn = difference
    arguments = {"loss_fn": hard_loss, "accuracy_fn": lambda y, p: p[:, 0]}
    (row,) = trainer.train(pairs(), pairs(), **arguments)
    assert row["val_loss"] == row["val_accuracy"] == pytest.approx(sigmoid([0.5, 1.0]).mean())
    assert row["accuracy"] == pytest.approx(sigmoid([0.5, 1.0]).mean())


def normed(filters, **more):
    return {"n_filters": filters, "n_convs": 1, "norm": "batch_norm", "norm_momentum": 0.5, **more}


def volumes(epoch=0):
    x = tf.random.stateless_normal((4, 4, 4, 4, 1), (7, epoch))
    return tf.data.Dataset.from_tensor_slices((x, tf.cast(x > 0, tf.float32))).batch(2)


def squared(y_true, y_pred):
    return tf.reduce_mean(tf.square(y_true - y_pred), axis=[1, 2, 3, 4])


def test_the_teacher_is_left_alone(tmp_path):
    teacher = create_unet3d((4, 4, 4, 1), **normed([2, 4], dropout=0.5))
    before = teacher.get_weights()
    trainer = DistillingTrainer(create_unet3d((4, 4, 4, 1), **normed([2, 2])), teacher, model_dir=tmp_path)
    trainer.distillation_fn = squared
    first = trainer.train(volumes, loss_fn=squared)
    assert all(np.array_equal(a, b) for a, b in zip(before, teacher.get_weights()))
    own = {id(variable) for variable in trainer.model.variables}
    assert not own & {id(variable) for variable in teacher.variables}
    assert len(trainer.optimizer.variables) == 2 + 2 * len(trainer.model.trainable_variables)
    assert np.isfinite(first[0]["loss"])


# ---------------------------------------------------------------- three models


def three(folder, **keywords):
    arguments = {"temperature": 2.0, "optimizer": "sgd", "learning_rate": 0.1, **keywords}
    return Trainer_KD(make_model(0.5), make_model(2.0), model_dir=folder / "run", **arguments)


def train(trainer, data=pairs, epochs=1):
    return trainer.train(data, pairs(), loss_fn=hard_loss, distillation_fn=difference, EPOCHS=epochs)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_three_models_in_three_directories(tmp_path):
    trainer = three(tmp_path)
    histories = train(trainer, epochs=2)
    folders = ("run_teacher_scratch", "run_student_scratch", "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(folders)
    saved = [keras.models.load_model(tmp_path / name / "last.keras") for name in folders]
    assert all(model.output_shape == (None, 1) for model in saved)
    teacher, scratch, student = map(weight_of, saved)
    assert student == pytest.approx(weight_of(trainer.model)) != pytest.approx(scratch)
    assert scratch == pytest.approx(weight_of(trainer.scratch_model))
    assert teacher < 2.0  # the labels are 0
    assert {name: len(rows) for name, rows in histories.items()} == {
        "teacher": 2,
        "student_scratch": 2,
        "student": 2,
    }


def test_the_student_learns_from_the_best_teacher(tmp_path):
    # Rate −1 makes the teacher worse with every epoch, so its best is that of the first.
    trainer = three(tmp_path, learning_rate=-1.0)
    train(trainer, epochs=3)
    best, last = (
        weight_of(keras.models.load_model(tmp_path / "run_teacher_scratch" / f"{name}.keras"))
        for name in ("best", "last")
    )
    assert weight_of(trainer.teacher_model) == best < last


def test_the_student_learns_from_the_best_teacher_saved_as_weights(tmp_path):
    # Rate −1 makes the teacher worse with every epoch, so its best is that of the first.
    trainer = three(tmp_path, learning_rate=-1.0, model_suffix=".weights.h5")
    train(trainer, epochs=2)
    folder, model = tmp_path / "run_teacher_scratch", make_model(0.0)
    model.load_weights(folder / "best.weights.h5")
    best = weight_of(model)
    model.load_weights(folder / "last.weights.h5")
    assert weight_of(trainer.teacher_model) == best < weight_of(model)
    assert not list(tmp_path.glob("*/*.keras"))


def test_an_optimizer_is_made_anew_for_each(tmp_path):
    mine = keras.optimizers.SGD(0.1, momentum=0.5)
    trainer = three(tmp_path, optimizer=mine)
    made = [t.optimizer for t in (trainer._teacher_trainer, trainer._scratch_trainer, trainer._trainer)]
    assert len({id(optimizer) for optimizer in [mine, *made]}) == 4
    assert all(optimizer.momentum == 0.5 for optimizer in made)
    train(trainer)


def test_what_is_trained_already_is_left_out(tmp_path):
    trainer = three(tmp_path, teacher_trained=True, student_trained=True)
    histories = train(trainer)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert weight_of(trainer.teacher_model) == 2.0 and trainer.scratch_model is None
    assert (histories["teacher"], histories["student_scratch"], len(histories["student"])) == ([], [], 1)


def test_a_run_goes_on_in_each_and_says_when_all_is_done(tmp_path, capsys):
    first = train(three(tmp_path))
    second = train(three(tmp_path), epochs=2)
    assert {name: rows[:1] for name, rows in second.items()} == first
    assert {len(rows) for rows in second.values()} == {2}
    assert capsys.readouterr().out.count("going on after epoch 1, of 2 epochs") == 3
    before = {path.name: contents(path) for path in tmp_path.iterdir()}
    train(three(tmp_path), epochs=2)
    assert capsys.readouterr().out.count("already complete, 2 of 2 epochs") == 3
    assert {path.name: contents(path) for path in tmp_path.iterdir()} == before


def test_a_run_broken_off_in_the_scratch_student_leaves_the_teacher_untouched(tmp_path):
    passes = []

    def breaking(epoch):
        passes.append(epoch)
        if len(passes) == 4:  # two epochs of the teacher, then the second of the student
            raise Broken
        return pairs()

    with pytest.raises(Broken):
        train(three(tmp_path / "broken"), data=breaking, epochs=2)
    teacher = contents(tmp_path / "broken" / "run_teacher_scratch")
    assert not (tmp_path / "broken" / "run").exists()
    broken, whole = three(tmp_path / "broken"), three(tmp_path / "whole")
    for trainer in (broken, whole):
        train(trainer, epochs=2)
    assert contents(tmp_path / "broken" / "run_teacher_scratch") == teacher
    assert weight_of(broken.model) == weight_of(whole.model)
    assert weight_of(broken.scratch_model) == weight_of(whole.scratch_model)


def test_a_student_in_class_form_learns_from_a_flat_teacher(tmp_path):
    student = create_unet3d_class((4, 4, 4, 1), **normed([2, 2]))
    teacher = create_unet3d((4, 4, 4, 1), **normed([2, 4]))
    trainer = Trainer_KD(student, teacher, 2.0, learning_rate=1e-2, model_dir=tmp_path / "run")
    trainer.train(volumes, volumes(), loss_fn=squared, distillation_fn=squared)
    saved = keras.models.load_model(tmp_path / "run" / "best.keras")
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 4, 1)).astype("float32")
    np.testing.assert_array_equal(saved(x), student(x))
    assert type(saved.layers[1]).__name__ == "Unet3D_layer"
    assert not np.array_equal(student.get_weights()[0], trainer.scratch_model.get_weights()[0])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "Expected temperature to be a positive number, received 0.0"),
        ({"distillation_weight": 1.5}, "Expected distillation_weight to be from 0 to 1, received 1.5"),
        ({"distill_on": "features"}, r"Expected distill_on to be one of .* received 'features'"),
    ],
)
def test_wrong_arguments_say_what_was_expected(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        three(tmp_path, **arguments)


@pytest.mark.parametrize("wrong", [3, "kl_divergence"])
def test_a_distillation_function_must_be_one(tmp_path, wrong):
    with pytest.raises(ValueError, match=rf"Expected distillation_fn\(.*\), received {wrong!r}"):
        three(tmp_path).train(pairs, loss_fn=hard_loss, distillation_fn=wrong)
    assert not list(tmp_path.iterdir())


def test_logits_need_a_distillation_function(tmp_path):
    with pytest.raises(ValueError, match=r"Expected distillation_fn\(teacher, student\), received None"):
        three(tmp_path, distill_on="logits").train(pairs, loss_fn=hard_loss)
    assert not list(tmp_path.iterdir())
