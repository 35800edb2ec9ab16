"""The files of a run: models saved whole or as weights, and a run that changes from one to the other."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from ML_3D_Unet.utils.layers_func import create_unet3d
from ML_3D_Unet.utils.run_directory import RunDirectory, bytes_of_weights
from ML_3D_Unet.utils.train import Trainer
from tests.ml_3d_unet.test_train import X, make_model, pairs, train, weight_of

#: Rate 1.5 and x = 1: the weight is multiplied by −2 every epoch, so the first is the best.
WORSENING = {"data": pairs(X[:1]), "valid_ds": pairs(X), "rate": 1.5}


def weights_in(path):
    model = make_model(0.0)
    model.load_weights(path)
    return weight_of(model)


def with_suffix(suffix):
    return {"trainer_arguments": {"model_suffix": suffix}}


def models(folder):
    return {path.name for path in folder.iterdir() if path.suffix in (".keras", ".h5")}


def test_weights_alone_are_saved(tmp_path, capsys):
    train(tmp_path, data=pairs(X[:1]), rate=1.5, EPOCHS=3, **with_suffix(".weights.h5"))
    assert models(tmp_path) == {"best.weights.h5", "last.weights.h5"}
    assert weights_in(tmp_path / "best.weights.h5") == pytest.approx(-2)
    assert weights_in(tmp_path / "last.weights.h5") == pytest.approx(-8)
    assert "best.weights.h5 is the model with the lowest training loss" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("epochs", [2, 3])
def test_a_run_of_whole_models_goes_on_with_weights_and_loses_nothing(tmp_path, epochs):
    train(tmp_path, EPOCHS=2, **WORSENING)
    before = {name: (tmp_path / name).read_bytes() for name in ("best.keras", "last.keras")}
    trainer, history = train(tmp_path, EPOCHS=epochs, **WORSENING, **with_suffix(".weights.h5"))
    assert [row["epoch"] for row in history] == list(range(1, epochs + 1))
    assert weights_in(tmp_path / "best.weights.h5") == pytest.approx(-2)  # of before
    assert weights_in(tmp_path / "last.weights.h5") == pytest.approx((-2) ** epochs)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    trainer.directory.load_weights(trainer.model, "best")
    assert weight_of(trainer.model) == pytest.approx(-2)


def test_a_run_of_weights_goes_on_with_whole_models_and_keeps_its_best(tmp_path):
    train(tmp_path, EPOCHS=2, **WORSENING, **with_suffix(".weights.h5"))
    trainer, _ = train(tmp_path, EPOCHS=3, **WORSENING)
    assert models(tmp_path) == {"best.weights.h5", "last.weights.h5", "last.keras"}
    trainer.directory.load_weights(trainer.model, "best")
    assert weight_of(trainer.model) == pytest.approx(-2)


@pytest.mark.parametrize(("age", "expected"), [(-60, 1.0), (60, 2.0)])
def test_weights_are_taken_from_a_whole_model_that_is_younger(tmp_path, age, expected):
    make_model(1.0).save_weights(tmp_path / "best.weights.h5")
    make_model(2.0).save(tmp_path / "best.keras")
    time = (tmp_path / "best.weights.h5").stat().st_mtime + age
    os.utime(tmp_path / "best.keras", (time, time))
    RunDirectory(tmp_path, model_suffix=".weights.h5").restore({})
    assert weights_in(tmp_path / "best.weights.h5") == expected


def test_another_suffix_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"model_suffix to be one of .*'\.weights\.h5'.* received '\.h5'"):
        Trainer(make_model(), model_dir=tmp_path / "run", model_suffix=".h5")
    assert not list(tmp_path.iterdir())


def test_a_process_that_does_not_write_leaves_the_directory_empty(tmp_path):
    directory = RunDirectory(tmp_path, writes=False)
    directory.restore({})
    directory.save_model(make_model(), "best")
    directory.save_history([])
    directory.draw_curves([])
    directory.save_checkpoint(1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"best\.keras: expected a saved model, found no such file"):
        directory.load_weights(make_model(), "best")


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    left = tmp_path / ".last.keras.0123456789abcdef.part.keras"
    left.write_text("half")
    train(tmp_path)
    assert not left.exists() and (tmp_path / "last.keras").is_file()


def test_a_model_that_cannot_be_saved_leaves_the_one_before(tmp_path, monkeypatch):
    directory, model = RunDirectory(tmp_path), make_model(3.0)
    directory.save_model(model, "best")

    def fail(path):
        path.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(model, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        directory.save_model(model, "best")
    assert [path.name for path in tmp_path.iterdir()] == ["best.keras"]
    np.testing.assert_equal(weight_of(keras.models.load_model(tmp_path / "best.keras")), 3.0)


@pytest.mark.parametrize("norm", ["batch_norm", "instance_norm"])
def test_weights_take_no_more_room_than_is_looked_for(tmp_path, norm):
    """HDF5 may crash on a full disk, so it must not come to it."""
    model = create_unet3d((16, 16, 16, 1), 2, [2, 4], 3, norm=norm, depth=2)
    model.save_weights(tmp_path / "a.weights.h5")
    assert (tmp_path / "a.weights.h5").stat().st_size <= bytes_of_weights(model)


@pytest.mark.parametrize(
    ("text", "raised"),
    [
        ("ckpt-1_temp/part-0; No space left on device", OSError),
        ("OOM when allocating tensor", tf.errors.ResourceExhaustedError),
    ],
)
def test_a_checkpoint_on_a_full_disk_is_told_from_memory_that_runs_out(tmp_path, monkeypatch, text, raised):
    directory = RunDirectory(tmp_path / "run")
    directory.restore({"model": make_model()})

    def fill(self, **_):
        raise tf.errors.ResourceExhaustedError(None, None, text)

    monkeypatch.setattr(tf.train.CheckpointManager, "save", fill)
    with pytest.raises(raised, match="No space left on device: '.*run'" if raised is OSError else text):
        directory.save_checkpoint(1)
