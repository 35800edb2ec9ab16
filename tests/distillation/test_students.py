"""Students: which there are, what they are trained with, their directories, and what is refused."""

import dataclasses
import json
import math
import shutil
import types
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests.learning import examples
from tests.learning.test_training import chosen_device, files_of  # noqa: F401 (a fixture)
from utils.distillation import comparison
from utils.distillation import students as distillation
from utils.learning import losses, models, training
from utils.learning.model_files import MODEL_FILES
from utils.presets import preset_settings
from utils.settings import DistillationSettings, save_settings

TITLES = ["teacher", "student", "student + KD (soft, T = 2)", "student + KD (logits)"]


def settings_of(work_dir, **changes):
    tiny = {"filters": (2, 2), "epochs": 2, "device": "cpu", "tensorboard": False}
    return preset_settings(DistillationSettings, "small", work_dir=Path(work_dir), **{**tiny, **changes})


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_divergence_against_its_definition(temperature):
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(0, 3, (2, 2, 3, 3, 3, 1)).astype("float32")
    p, q = (1 / (1 + np.exp(-z.astype("float64") / temperature)) for z in (teacher, student))
    by_hand = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = losses.softened_divergence(tf.constant(teacher), tf.constant(student), temperature)
    np.testing.assert_allclose(found, temperature**2 * by_hand.mean(axis=(1, 2, 3, 4)), rtol=1e-4)


@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_the_released_divergence_has_no_square_of_the_temperature(temperature):
    generator = np.random.default_rng(1)
    teacher, student = generator.normal(0, 3, (2, 2, 3, 3, 3, 1)).astype("float32")
    p, q = (1 / (1 + np.exp(-z.astype("float64") / temperature)) for z in (teacher, student))
    by_hand = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(axis=(1, 2, 3, 4))
    plain = losses.softened_divergence(teacher, student, temperature, t_squared=False)
    np.testing.assert_allclose(plain, by_hand, rtol=1e-4)
    # As a student is trained with it.
    for t_squared, factor in ((True, temperature**2), (False, 1.0)):
        settings = settings_of("work", temperatures=(temperature,), t_squared=t_squared)
        loss = distillation.variants(settings)[1].distillation_fn(teacher, student, 1.0)
        np.testing.assert_allclose(loss, factor * by_hand, rtol=1e-4)


def test_gradient_of_the_divergence_has_one_scale_at_any_temperature():
    # d/dz_s of T² KL is T (q - p) = T (sigmoid(z_s / T) - sigmoid(z_t / T)); for large T (z_s - z_t) / 4.
    teacher, student = tf.fill((1, 1, 1, 1, 1), 1.0), tf.Variable(tf.fill((1, 1, 1, 1, 1), 0.5))
    for temperature in (1.0, 3.0, 1000.0):
        with tf.GradientTape() as tape:
            loss = losses.softened_divergence(teacher, student, temperature)
        expected = temperature * (
            1 / (1 + math.exp(-0.5 / temperature)) - 1 / (1 + math.exp(-1 / temperature))
        )
        assert float(tape.gradient(loss, student)[0, 0, 0, 0, 0]) == pytest.approx(expected, rel=1e-3)
    assert expected == pytest.approx(-0.5 / 4, rel=1e-3)


def test_divergence_is_finite_and_0_for_equals_however_certain():
    certain = tf.constant([-500.0, 0.0, 500.0], shape=(3, 1, 1, 1, 1))
    np.testing.assert_array_equal(losses.softened_divergence(certain, certain, 1.0), 0)
    # p = 1 against q = 0 with logits ±500: 1 · 1000 + 0 - 500.
    assert float(losses.softened_divergence(certain[2:], certain[:1], 1.0)[0]) == pytest.approx(500.0)
    half = tf.cast(certain, tf.float16)
    assert losses.softened_divergence(half, half, 1.0).dtype == tf.float32


def test_logit_difference_by_hand():
    teacher = tf.constant([1.0, 2.0, 0.0, 0.0], shape=(2, 2, 1, 1, 1))
    student = tf.constant([0.0, 0.0, 3.0, 1.0], shape=(2, 2, 1, 1, 1))
    np.testing.assert_allclose(losses.logit_difference(teacher, student), [2.5, 5.0])


def test_voxels_weigh_as_in_the_loss_against_the_labels():
    # Two voxels: vertebra with w = 3, background with w = 2, at Λ = .5.
    truth = tf.constant([[1.0, 3.0], [0.0, 2.0]], shape=(1, 2, 1, 1, 2))
    weights = losses.voxel_weights(truth, tf.constant(0.5))
    np.testing.assert_allclose(np.ravel(weights), [3.0, 1.0])
    teacher = tf.constant([2.0, 1.0], shape=(1, 2, 1, 1, 1))
    assert float(losses.logit_difference(teacher, 0 * teacher, weights)[0]) == pytest.approx((3 * 4 + 1) / 2)
    even, weighted = (losses.softened_divergence(teacher, 0 * teacher, 2.0, w) for w in (1.0, 5.0))
    assert float(weighted[0]) == pytest.approx(5 * float(even[0]))
    # An error of 1 everywhere costs what it costs in the loss against the labels.
    wrong = losses.vertebra_loss(truth, 1.0 - truth[..., :1], tf.constant(0.5))
    assert float(tf.reduce_mean(weights)) == pytest.approx(float(wrong[0]))


@pytest.mark.parametrize("voxels", ["even", "loss"])
def test_the_step_of_a_student_weighs_voxels_as_asked(tmp_path, voxels):
    keras.utils.set_random_seed(0)
    models_of_two = [
        keras.Sequential(
            [
                keras.Input((2, 2, 2, 2)),
                keras.layers.Conv3D(1, 1, name="last_logits"),
                keras.layers.Activation("sigmoid"),
            ]
        )
        for _ in range(2)
    ]
    generator = np.random.default_rng(0)
    x = generator.normal(size=(1, 2, 2, 2, 2)).astype("float32")
    y = np.stack([x[..., 0] > 0, generator.uniform(1, 9, x.shape[:-1])], axis=-1).astype("float32")
    trainer = distillation.VertebraDistiller(
        *models_of_two,
        "sgd",
        0.0,
        tmp_path,
        distill_on="logits",
        voxels=voxels,
        schedule="constant",
        epochs=1,
    )
    trainer.distillation_fn = losses.logit_difference
    (row,) = trainer.train(tf.data.Dataset.from_tensors((x, y)), loss_fn=losses.vertebra_loss)
    student, teacher = (np.array(model.layers[0](x)) for model in models_of_two)
    weights = y[..., 1:] * np.where(y[..., :1] > 0, 1.0, 0.131) if voxels == "loss" else 1.0
    hard = float(losses.vertebra_loss(tf.constant(y), models_of_two[0](x), tf.constant(0.131))[0])
    expected = 0.5 * hard + 0.5 * np.mean(weights * (student - teacher) ** 2)
    assert row["loss"] == pytest.approx(float(expected), rel=1e-5)


# ---------------------------------------------------------------- which students


def names(**changes):
    return [variant.name for variant in distillation.variants(settings_of("work", **changes))]


def test_a_student_for_each_temperature_and_method():
    assert names() == ["scratch", "soft-t2", "logits"]
    assert names(temperatures=(1.0, 2.5, 1.0)) == ["scratch", "soft-t1", "soft-t2.5", "logits"]
    assert names(methods=("logits",), temperatures=()) == ["scratch", "logits"]
    assert names(methods=("soft",)) == ["scratch", "soft-t2"]


def test_students_have_the_teachers_settings_but_their_own_size(tmp_path):
    of_teacher = examples.training_settings(tmp_path / "elsewhere", learning_rate=7e-3, seed=5)
    save_settings(of_teacher, tmp_path)
    found = json.loads((tmp_path / "settings.json").read_text())
    own = settings_of(tmp_path, seed=9, epochs=None, accumulate=2)
    student = distillation.student_settings(found, own)
    expected = dataclasses.replace(
        of_teacher,
        work_dir=tmp_path,
        name="student",
        filters=(2, 2),
        seed=9,
        accumulate=2,
        tensorboard=False,
    )
    assert student == expected
    assert distillation.student_settings(found, settings_of(tmp_path, epochs=4)).epochs == 4
    with pytest.raises(ValueError, match=r"settings.json: patch_voxels: expected a positive multiple of 32"):
        distillation.student_settings(found, settings_of(tmp_path, filters=(2,) * 6))
    # What the teacher left out its students leave out too.
    found["exclude"] = ["sub-a", "sub-v*"]
    left_out = distillation.student_settings(found, settings_of(tmp_path, exclude=("sub-b", "sub-a"))).exclude
    assert left_out == ("sub-a", "sub-v*", "sub-b")
    del found["shift_mm"]
    with pytest.raises(ValueError, match=r"settings.json: expected .* found none of shift_mm"):
        distillation.student_settings(found, own)


def test_teachers_of_earlier_versions_are_understood(tmp_path):
    save_settings(examples.training_settings(tmp_path), tmp_path)
    found = json.loads((tmp_path / "settings.json").read_text())
    for later in ("name", "exclude", "outside"):
        found.pop(later, None)
    student = distillation.student_settings(found, settings_of(tmp_path))
    assert student.name == "student" and student.exclude == ()
    assert student.spacing_mm == examples.SPACING_MM


def test_students_see_what_their_teacher_saw_and_no_case_that_they_leave_out(tmp_path):
    examples.write_segmentation_stage(tmp_path)
    teacher = tmp_path / "elsewhere"
    save_settings(examples.training_settings(tmp_path, exclude=("sub-a", "sub-of-other-data")), teacher)
    (teacher / MODEL_FILES[0]).touch()
    settings = settings_of(tmp_path, segmentation=teacher, exclude=("sub-c",))
    inputs = distillation.read_inputs(settings, types.SimpleNamespace(is_chief=True))
    assert inputs.facts == {"spacing_mm": 2.0, "training_cases": ["sub-b"], "validation_cases": []}
    assert {vertebra.case for vertebra in inputs.data.vertebrae} == {"sub-b"}
    assert inputs.held_out.vertebrae == () and inputs.bad == []
    with pytest.raises(ValueError, match="--exclude: expected keys or patterns"):
        distillation.read_inputs(
            dataclasses.replace(settings, exclude=("sub-x",)), types.SimpleNamespace(is_chief=True)
        )


def test_students_of_two_names_have_folders_of_their_own():
    assert distillation.student_directory(settings_of("work")) == Path("work/models/student")
    named = settings_of("work", name="small-t2")
    assert distillation.student_directory(named) == Path("work/models/small-t2")
    (scratch, *_) = distillation.variants(named)
    assert distillation.run_directory(named, scratch) == Path("work/models/small-t2_runs/scratch")


# ---------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    """Prepared data, a teacher, and the students that were trained with it."""
    folder = tmp_path_factory.mktemp("work")
    examples.write_segmentation_stage(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.runtime, "choose_device", lambda device, preset: "cpu")
        assert training.train_segmentation(examples.training_settings(folder, epochs=1)) == 0
        assert comparison.compare_students(settings_of(folder)) == 0
    return folder


def test_each_student_has_a_directory_of_its_own(work_dir):
    runs = work_dir / "models" / "student_runs"
    assert {path.name for path in runs.iterdir()} == {"scratch", "soft-t2", "logits"}
    weights = []
    for run in runs.iterdir():
        assert [row["epoch"] for row in examples.history_of(run)] == ["1", "2"]
        model, settings = models.load_model(run)
        assert model.output_shape == (None, 16, 16, 16, 1)
        assert settings["filters"] == [2, 2] and settings["student"] == run.name
        weights.append(model.get_weights()[0])
    assert not np.array_equal(weights[0], weights[1]) and not np.array_equal(weights[0], weights[2])


def test_the_best_student_with_a_teacher_stands_where_inference_looks(work_dir):
    def lowest(name):
        rows = examples.history_of(work_dir / "models" / "student_runs" / name)
        return min(float(row["val_loss"]) for row in rows if row["val_loss"])

    best = min(("soft-t2", "logits"), key=lowest)
    model, settings = models.load_model(work_dir / "models" / "student")
    assert settings["student"] == best
    of_run = models.load_model(work_dir / "models" / "student_runs" / best)[0]
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), of_run.get_weights()))


def test_the_table_is_written_three_ways(work_dir):
    folder = work_dir / "models" / "student"
    table = pd.read_csv(folder / "students.csv")
    assert list(table["network"]) == TITLES
    teacher = models.load_model(work_dir / "models" / "segmentation")[0]
    assert table["parameters"][0] == teacher.count_params() > table["parameters"][1]
    assert (table["vertebrae"] == 2).all() and (table["seconds_per_patch"] > 0).all()
    page = (folder / "students.md").read_text()
    assert all(title in page for title in TITLES) and "2 validation vertebrae" in page
    assert (folder / "students.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_leaves_everything_as_it_is(work_dir, capsys):
    before = files_of(work_dir / "models" / "student_runs")
    assert comparison.compare_students(settings_of(work_dir)) == 0
    assert files_of(work_dir / "models" / "student_runs") == before
    assert capsys.readouterr().out.count("already complete") == 3


def test_a_run_broken_off_goes_on_with_the_student_it_was_at(work_dir, tmp_path, monkeypatch):
    examples.write_segmentation_stage(tmp_path)
    teacher = settings_of(tmp_path, segmentation=work_dir / "models" / "segmentation")
    make = distillation._make_trainer

    def break_at_logits(variant, *arguments):
        if variant.name == "logits":
            raise KeyboardInterrupt
        return make(variant, *arguments)

    monkeypatch.setattr(distillation, "_make_trainer", break_at_logits)
    with pytest.raises(KeyboardInterrupt):
        comparison.compare_students(teacher)
    monkeypatch.undo()
    monkeypatch.setattr(training.runtime, "choose_device", lambda device, preset: "cpu")
    done = files_of(tmp_path / "models" / "student_runs" / "soft-t2")
    assert comparison.compare_students(teacher) == 0
    assert files_of(tmp_path / "models" / "student_runs" / "soft-t2") == done
    # As in the run that was not broken off: the data and the first weights are the same.
    pair = [
        models.load_model(folder / "models" / "student_runs" / "logits")[0] for folder in (work_dir, tmp_path)
    ]
    for a, b in zip(*(model.get_weights() for model in pair)):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_another_teacher_does_not_go_on_in_the_same_directory(work_dir, tmp_path, capsys):
    copy = shutil.copytree(work_dir, tmp_path / "work")
    teacher = copy / "models" / "segmentation"
    model, _ = models.load_model(teacher)
    model.set_weights([w + 1 for w in model.get_weights()])
    model.save_weights(teacher / "best.weights.h5")
    assert comparison.compare_students(settings_of(copy)) == 1
    said = capsys.readouterr()
    assert "soft-t2: expected a run with the same settings" in said.err and "teacher_sha256" in said.err
    assert said.out.count("already complete") == 1  # the student from scratch has no teacher


def test_without_a_teacher_the_command_that_makes_one_is_named(tmp_path, capsys):
    examples.write_segmentation_stage(tmp_path)
    assert comparison.compare_students(settings_of(tmp_path)) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'models' / 'segmentation'}: expected a trained" in said
    assert "train_segmentation.py" in said and said.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_a_teacher_for_another_spacing_is_refused(work_dir, tmp_path, capsys):
    copy = shutil.copytree(work_dir, tmp_path / "work")
    path = copy / "models" / "segmentation" / "settings.json"
    path.write_text(path.read_text().replace('"spacing_mm": 2.0', '"spacing_mm": 1.0'))
    assert comparison.compare_students(settings_of(copy)) == 1
    said = capsys.readouterr().err
    assert f"{copy / 'segmentation' / '1mm'}: expected prepared data, found none" in said
