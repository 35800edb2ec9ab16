"""The trainings end to end on tiny data, the resume, the refusals, and the loss in the compiled step."""

import dataclasses
import json
import math
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import forked
from tests.learning import examples
from utils.learning import models, training
from utils.presets import preset_settings
from utils.settings import HeatmapTrainingSettings, load_settings, save_settings

MODEL_FILES = {"best.weights.h5", "last.weights.h5", "history.csv", "curves.png", "settings.json"}


@pytest.fixture(autouse=True)
def chosen_device(monkeypatch):
    """Leave the devices alone: TensorFlow refuses to hide a GPU that this process has used already."""

    def say(device, preset):
        print(f"Device chosen for {device}, {preset}.")
        return "cpu"

    monkeypatch.setattr(training.runtime, "choose_device", say)
    yield
    keras.mixed_precision.set_dtype_policy("float32")


# ---------------------------------------------------------------- the weight of false positives


def parts_of_loss(model, x, y):
    """False negatives and false positives of a batch, weighted and averaged, without TensorFlow's help."""
    probability = model(x).numpy()[..., 0]
    vertebra, weight = y[..., 0], y[..., 1]
    negatives = np.mean(weight * vertebra * (1 - probability), axis=(1, 2, 3))
    positives = np.mean(weight * (1 - vertebra) * probability, axis=(1, 2, 3))
    return float(negatives.mean()), float(positives.mean())


class CountingTrainer(training.VertebraTrainer):
    """Counts how often Python runs through the losses, which is how often the step is traced."""

    traces = 0

    def compute_losses(self, x, y, training):
        self.traces += 1
        return super().compute_losses(x, y, training)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("schedule", ["ramp", "constant"])
def test_weight_changes_inside_the_compiled_step(tmp_path, schedule, jit_compile):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 4, 4, 2)), keras.layers.Conv3D(1, 1, activation="sigmoid")])
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, 4, 4, 4, 2)).astype(np.float32)
    y = np.stack([x[..., 0] > 0.5, generator.uniform(1, 9, (2, 4, 4, 4))], axis=-1).astype(np.float32)
    how = {"schedule": schedule, "epochs": 6, "jit_compile": jit_compile}
    trainer = CountingTrainer(model, "sgd", 0.0, tmp_path, **how)
    traces = []

    def batches(epoch):
        traces.append(trainer.traces)
        return tf.data.Dataset.from_tensors((x, y)).repeat(2)

    history = trainer.train(batches, batches, loss_fn=training.losses.vertebra_loss, EPOCHS=6)
    negatives, positives = parts_of_loss(model, x, y)
    ramp = [0.1 + 0.9 / (1 + math.exp(-(epoch - 2) / 0.6)) for epoch in range(6)]
    weights = ramp if schedule == "ramp" else [0.131] * 6
    found = [row["loss"] for row in history]
    np.testing.assert_allclose(found, [negatives + weight * positives for weight in weights], rtol=1e-5)
    # In validation the weight is 1 in every epoch.
    np.testing.assert_allclose([row["val_loss"] for row in history], negatives + positives, rtol=1e-5)
    # The first epoch traces the step of training and that of validation, the others nothing.
    assert traces[2:] == [traces[2]] * 10 and trainer.traces == traces[2] > 0


def test_cosine_falls_from_the_first_rate_to_the_last():
    rate = training.cosine_schedule(2.0, 1.0, 5)
    assert [rate(epoch) for epoch in range(5)] == pytest.approx(
        [2, 1.5 + math.sqrt(0.125), 1.5, 1.5 - math.sqrt(0.125), 1]
    )
    assert rate(9) == 1.0  # beyond the end of the run
    assert training.cosine_schedule(2.0, 1.0, 1)(0) == 2.0
    constant = training.cosine_schedule(1e-3, 1e-3, 45)
    assert {constant(epoch) for epoch in range(45)} == {1e-3}


# ---------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trainings (the heatmap's of centres) unbroken and broken off, and what comparing them found."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("whole", "broken"):
        examples.write_segmentation_stage(folder / name)
        examples.write_spine_stage(folder / name)
    done = forked.run("-m", "tests.learning.training_runs", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_segmentation_training_leaves_its_files(runs):
    directory = runs[0] / "whole" / "models" / "segmentation"
    assert {path.name for path in directory.iterdir()} >= MODEL_FILES
    model, settings = models.load_model(directory)
    assert model.input_shape == (None, 16, 16, 16, 2)
    assert settings["spacing_mm"] == examples.SPACING_MM and settings["preset"] == "small"
    rows = examples.history_of(directory)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    assert [bool(row["val_loss"]) for row in rows] == [False, True, True]  # every 2, and the last
    assert len(list((directory / "tensorboard").iterdir())) == 1
    # 2e-3 falls to 1e-4 over three epochs.
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([2e-3, 1.05e-3, 1e-4])


@pytest.mark.parametrize("stage", ["segmentation", "heatmap", "labelling"])
def test_a_broken_run_goes_on_as_if_it_had_never_stopped(runs, stage):
    folder, found = runs[0], runs[1][stage]
    assert found["stopped"] and found["epochs_before"] == ["1"] and found["status"] == [0, 0]
    assert found["differing_weights"] == 0
    measured = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
    histories = [
        [[row[name] for name in measured] for row in examples.history_of(folder / name / "models" / stage)]
        for name in ("whole", "broken")
    ]
    assert histories[0] == histories[1] and len(histories[0]) == 3
    assert len({row[1] for row in histories[0]}) == 3


def files_of(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_other_settings_do_not_go_on_in_the_directory(runs, tmp_path, capsys):
    work_dir = shutil.copytree(runs[0] / "whole", tmp_path / "work")
    directory = work_dir / "models" / "segmentation"
    before = files_of(directory)
    settings = examples.training_settings(work_dir, learning_rate=5e-3, seed=4)
    assert training.train_segmentation(settings) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {directory}: expected a run with the same settings")
    assert "learning_rate, seed" in said and said.count("\n") == 1
    assert files_of(directory) == before


def test_a_run_of_before_a_setting_was_there_has_its_default(runs, tmp_path, capsys):
    work_dir = shutil.copytree(runs[0] / "whole", tmp_path / "work")
    directory = work_dir / "models" / "segmentation"
    found = load_settings(directory)
    assert found.pop("outside") == "edge"
    (directory / "settings.json").write_text(json.dumps(found))
    assert training.train_segmentation(examples.training_settings(work_dir)) == 0
    changed = examples.training_settings(work_dir, outside="air")
    (directory / "settings.json").write_text(json.dumps(found))
    assert training.train_segmentation(changed) == 1
    assert "found other values of outside;" in capsys.readouterr().err


def test_a_finished_run_is_left_as_it_is(runs, tmp_path, capsys):
    work_dir = shutil.copytree(runs[0] / "whole", tmp_path / "work")
    model = work_dir / "models" / "segmentation" / "best.weights.h5"
    before = model.read_bytes()
    assert training.train_segmentation(examples.training_settings(work_dir)) == 0
    assert "already complete, 3 of 3 epochs" in capsys.readouterr().out
    assert model.read_bytes() == before


def heatmap_settings(work_dir, **changes):
    tiny = {"filters": (2, 3, 4), "epochs": 2, "examples_per_epoch": 2, "batch_size": 2, "validate_every": 1}
    published = {"target": "spine", "spacing_mm": examples.SPACING_MM, "sigma_voxels": 2.0}
    return preset_settings(
        HeatmapTrainingSettings,
        "small",
        work_dir=work_dir,
        device="cpu",
        **{**tiny, **published, **changes},
    )


def test_localiser_training_leaves_its_files(runs):
    directory = runs[0] / "whole" / "models" / "heatmap"
    assert {path.name for path in directory.iterdir()} >= MODEL_FILES
    model, settings = models.load_model(directory)
    # It was trained on crops, and sees whole scans.
    assert model.output_shape == (None, None, None, None, 2) and settings["crop_voxels"] == [8, 8, 12]
    assert (settings["target"], settings["spacing_mm"], settings["sigma_mm"]) == ("centres", 3.0, 4.5)
    assert "heatmap_shape" not in settings
    assert settings["training_cases"] == ["sub-a", "sub-b"] and settings["validation_cases"] == ["sub-c"]
    rows = examples.history_of(directory)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(math.isfinite(float(row[name])) for row in rows[1:] for name in ("loss", "val_loss"))
    assert len(list((directory / "tensorboard").iterdir())) == 1


def test_labelling_training_leaves_its_files(runs):
    directory = runs[0] / "whole" / "models" / "labelling"
    assert {path.name for path in directory.iterdir()} >= MODEL_FILES
    model, settings = models.load_model(directory)
    assert (model.input_shape, model.output_shape) == ((None, 12, 12, 12, 1), (None, 31))
    assert (settings["spacing_mm"], settings["none_share"], settings["outside"]) == (3.0, 0.3, "air")
    assert settings["training_cases"] == ["sub-a", "sub-b"] and settings["validation_cases"] == ["sub-c"]
    rows = examples.history_of(directory)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    # The one scan of the validation shows one vertebra, whose level is right or not.
    assert {float(row["val_accuracy"]) for row in rows[1:]} <= {0.0, 1.0}
    assert all(math.isfinite(float(row[name])) for row in rows[1:] for name in ("loss", "val_loss"))


def test_heatmap_training_leaves_its_files(tmp_path, capsys):
    examples.write_heatmap_stage(tmp_path)
    assert training.train_heatmap(heatmap_settings(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("Device chosen for cpu, small.\n")
    directory = tmp_path / "models" / "heatmap"
    assert {path.name for path in directory.iterdir()} >= MODEL_FILES
    model, settings = models.load_model(directory)
    assert model.output_shape == (None, *examples.HEATMAP_SHAPE, 2)
    assert settings["heatmap_shape"] == list(examples.HEATMAP_SHAPE) and settings["spacing_mm"] == 2.0
    rows = examples.history_of(directory)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    # Divergence plus one minus Dice: more than the second part alone.
    assert all(float(row["val_loss"]) > 1 - float(row["val_accuracy"]) > 0 for row in rows)


def test_a_training_in_half_precision_leaves_a_network_that_computes_in_float32(tmp_path, monkeypatch):
    built = []
    build = models.build_segmentation_network
    monkeypatch.setattr(
        models, "build_segmentation_network", lambda *a, **k: built.append(build(*a, **k)) or built[-1]
    )
    examples.write_segmentation_stage(tmp_path)
    settings = examples.training_settings(tmp_path, precision="bfloat16", epochs=1, filters=(2, 2))
    assert training.train_segmentation(settings) == 0
    directory = tmp_path / "models" / "segmentation"
    assert load_settings(directory)["computed_in"] == "bfloat16"
    (trained,) = built
    model = models.load_model(directory)[0]
    x = np.random.default_rng(0).normal(size=(1, 16, 16, 16, 2)).astype("float32")
    half, whole = (network.get_layer("encoder_2_1_0_conv").compute_dtype for network in (trained, model))
    assert (half, whole) == ("bfloat16", "float32")
    assert all(weight.dtype == "float32" for weight in model.weights)
    # The same weights; rounded to 8 bits on the way in one of them.
    difference = np.abs(np.array(trained(x)) - np.array(model(x))).max()
    assert 0 < difference < 0.05


def test_a_run_in_other_numbers_does_not_go_on_in_the_directory(tmp_path, capsys):
    examples.write_segmentation_stage(tmp_path)
    run = {"epochs": 1, "filters": (2, 2)}
    assert training.train_segmentation(examples.training_settings(tmp_path, **run)) == 0
    # What "auto" came to is what counts.
    assert training.train_segmentation(examples.training_settings(tmp_path, precision="float32", **run)) == 0
    capsys.readouterr()
    assert training.train_segmentation(examples.training_settings(tmp_path, precision="bfloat16", **run)) == 1
    assert "other values of computed_in;" in capsys.readouterr().err


def test_float16_on_a_cpu_ends_with_status_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        training.train_segmentation(examples.training_settings(tmp_path, precision="float16"))
    assert end.value.code == 2 and "--precision" in capsys.readouterr().err


# ---------------------------------------------------------------- refusals

STAGES = {
    "heatmap": (training.train_heatmap, heatmap_settings, examples.write_heatmap_stage),
    "segmentation": (
        training.train_segmentation,
        examples.training_settings,
        examples.write_segmentation_stage,
    ),
}
each_stage = pytest.mark.parametrize("stage", list(STAGES))


@each_stage
def test_nothing_prepared_ends_with_status_1(tmp_path, capsys, stage):
    train, settings, _ = STAGES[stage]
    assert train(settings(tmp_path)) == 1
    said = capsys.readouterr().err
    folder = tmp_path / stage / "2mm"
    command = f"python pre_processing_{stage}.py --work-dir {tmp_path} --preset small"
    command += " --target spine --spacing-mm 2" if stage == "heatmap" else ""
    assert said == f"error: {folder}: expected prepared data, found none; run `{command}`.\n"
    assert not (tmp_path / "models").exists()


def test_the_labelling_network_needs_the_scans_of_the_heatmap_stage(tmp_path, capsys):
    # Those of the published heatmap, which know no levels, are not taken for them.
    examples.write_heatmap_stage(tmp_path)
    assert training.train_labelling(examples.labelling_settings(tmp_path)) == 1
    command = f"python pre_processing_heatmap.py --work-dir {tmp_path} --preset small"
    folder = tmp_path / "heatmap" / "3mm"
    said = capsys.readouterr().err
    assert said == f"error: {folder}: expected prepared data, found none; run `{command}`.\n"
    same_place = examples.labelling_settings(tmp_path, spacing_mm=examples.SPACING_MM)
    assert training.train_labelling(same_place) == 1
    assert "target" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_a_labelling_network_goes_on_from_another_of_its_kind(runs, tmp_path, capsys):
    work_dir = shutil.copytree(runs[0] / "whole", tmp_path / "work")
    trained = work_dir / "models" / "labelling"
    still = {"name": "mine", "learning_rate": 1e-12, "final_learning_rate": 1e-12}
    assert training.train_labelling(examples.labelling_settings(work_dir, start_from=trained, **still)) == 0
    first, second = (models.load_model(work_dir / "models" / name)[0] for name in ("labelling", "mine"))
    for one, two in zip(first.weights, second.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), two.numpy(), atol=1e-6)
    capsys.readouterr()
    wrong = {"name": "other", "start_from": work_dir / "models" / "heatmap"}
    assert training.train_labelling(examples.labelling_settings(work_dir, **wrong)) == 1
    said = capsys.readouterr().err
    assert str(work_dir / "models" / "heatmap") in said and said.count("\n") == 1
    assert not (work_dir / "models" / "other").exists()


@each_stage
def test_no_training_case_ends_with_status_1(tmp_path, capsys, stage):
    train, settings, write = STAGES[stage]
    shutil.rmtree(write(tmp_path) / "training")
    assert train(settings(tmp_path)) == 1
    said = capsys.readouterr().err
    folder = tmp_path / stage / "2mm" / "training"
    assert f"{folder}: expected prepared cases" in said and "pre-processing" in said
    assert not (tmp_path / "models").exists()


@each_stage
def test_data_of_another_spacing_are_not_trained_on(tmp_path, capsys, stage):
    train, settings, write = STAGES[stage]
    write(tmp_path)
    assert train(settings(tmp_path, spacing_mm=1.5)) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / stage / '1.5mm'}: expected prepared data, found none; run")
    assert said.endswith(" --spacing-mm 1.5`.\n") and not (tmp_path / "models").exists()


@each_stage
def test_a_directory_of_data_with_another_spacing_is_refused(tmp_path, capsys, stage):
    train, settings, write = STAGES[stage]
    facts = {key: load_settings(write(tmp_path))[key] for key in ("spacing_mm",)}
    directory = tmp_path / "models" / stage
    shape = {"heatmap_shape": examples.HEATMAP_SHAPE} if stage == "heatmap" else {}
    save_settings(settings(tmp_path), directory, spacing_mm=facts["spacing_mm"] / 2, **shape)
    assert train(settings(tmp_path)) == 1
    said = capsys.readouterr().err
    assert f"{directory}: " in said and "spacing_mm" in said


def test_a_bad_mask_met_in_training_is_named(tmp_path, capsys):
    """A case that is not the first, so that it would be met inside the pipeline only."""
    folder = examples.write_segmentation_stage(tmp_path) / "training"
    table = folder / "vertebrae.csv"
    lines = table.read_text().splitlines()
    lines[-1] = lines[-1].replace("sub-b,21,22", "sub-b,22,23")  # a label that the mask does not hold
    table.write_text("\n".join(lines) + "\n")
    settings = examples.training_settings(tmp_path, examples_per_epoch=2, epochs=1)
    assert training.train_segmentation(settings) == 1
    said = capsys.readouterr().err
    assert "bad case:" in said and "sub-b_msk.nii: expected label 22" in said
    assert (tmp_path / "models/segmentation/best.weights.h5").is_file()  # trained on the good ones
    assert training.train_segmentation(dataclasses.replace(settings, skip_bad=True)) == 0


@each_stage
def test_settings_that_make_no_network_claim_no_directory(tmp_path, capsys, stage, monkeypatch):
    train, settings, write = STAGES[stage]
    write(tmp_path)

    def refuse(*arguments, **keywords):
        raise ValueError("Expected other filters.")

    monkeypatch.setattr(models, "create_unet3d", refuse)
    monkeypatch.setattr(models, "create_residual_unet3d", refuse)
    assert train(settings(tmp_path, filters=(2, 3, 4))) == 1
    assert capsys.readouterr().err == "error: Expected other filters.\n"
    assert not (tmp_path / "models").exists()


@each_stage
def test_a_network_to_start_from_that_is_not_there_claims_no_directory(tmp_path, capsys, stage):
    train, settings, write = STAGES[stage]
    write(tmp_path)
    assert train(settings(tmp_path, start_from=tmp_path / "none")) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'none' / 'best.weights.h5'}: expected a trained network")
    assert not (tmp_path / "models").exists()


def test_a_training_begins_with_the_weights_of_another(tmp_path):
    settings = heatmap_settings(tmp_path, seed=1)
    examples.write_heatmap_stage(tmp_path)
    assert training.train_heatmap(settings) == 0
    directory = tmp_path / "models" / "heatmap"
    trained, _ = models.load_model(directory.rename(tmp_path / "trained"))
    still = {"learning_rate": 1e-12, "final_learning_rate": 1e-12}
    assert training.train_heatmap(heatmap_settings(tmp_path, start_from=tmp_path / "trained", **still)) == 0
    begun, _ = models.load_model(directory)
    for first, second in zip(trained.trainable_weights, begun.trainable_weights, strict=True):
        np.testing.assert_allclose(first.numpy(), second.numpy(), atol=1e-6)


@each_stage
def test_a_model_folder_that_cannot_be_made_is_one_line(tmp_path, capsys, stage):
    train, settings, write = STAGES[stage]
    write(tmp_path)
    (tmp_path / "models").write_text("a file where a folder should be")
    assert train(settings(tmp_path)) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and str(tmp_path / "models") in said and said.count("\n") == 1


@pytest.mark.parametrize(("call", "done"), [(4, 1), (5, 1)], ids=["training", "validation"])
def test_memory_that_runs_out_is_one_line_and_costs_no_epoch(tmp_path, monkeypatch, capfd, call, done):
    """Epochs of two steps; the second one is validated."""
    examples.write_segmentation_stage(tmp_path)
    calls = []

    def count(loss):
        calls.append(loss)
        if len(calls) == call:
            raise MemoryError("no room")  # which TensorFlow makes a ResourceExhaustedError
        return loss

    def counted(*arguments):
        loss = occupancy_loss(*arguments)
        found = tf.numpy_function(count, [loss], tf.float32)
        return loss + 0 * tf.stop_gradient(tf.ensure_shape(found, loss.shape))

    occupancy_loss = training.losses.occupancy_loss
    monkeypatch.setattr(training.losses, "occupancy_loss", counted)
    assert training.train_segmentation(examples.training_settings(tmp_path)) == 1
    monkeypatch.setattr(training.losses, "occupancy_loss", occupancy_loss)
    (line,) = [text for text in capfd.readouterr().err.splitlines() if text.startswith("error")]
    assert "--batch-size 1 --accumulate 2," in line and "memory of the CPU" in line
    halved = examples.training_settings(tmp_path, batch_size=1, accumulate=2)
    assert training.train_segmentation(halved) == 0
    assert f"going on after epoch {done}, of 3 epochs" in capfd.readouterr().out
    quartered = examples.training_settings(tmp_path, batch_size=1)
    assert training.train_segmentation(quartered) == 1
    assert "found other values of accumulate;" in capfd.readouterr().err
